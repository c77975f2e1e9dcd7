"""The hidden channels of a layer: reduce, at inference with batch norm and a rectifier, and the gradients of reduce."""

from __future__ import annotations

from typing import Any

import numpy as np

from invbench.ops.numba_cpu.elements import BFLOAT16, EXACT, FLOAT16, read, write
from invbench.ops.numba_cpu.matmul import add_matmul, matmul
from invbench.ops.numba_cpu.record import INDEX, NEXT_SLOT, compiled, inlined
from invbench.ops.numba_cpu.simd import (
    VECTOR_BYTES,
    bytes_of,
    fetch,
    fetch_add,
    finish_vector,
    float_of,
    multiply_vector,
)
from invbench.ops.numba_cpu.slots import clear, read_slots, write_slots

# Positions that are reduced at once, and columns of reduce that are folded at once.
CHUNK, FOLDED = 112, 64

FOLD_NEXT, FOLD_DONE = 8 * INDEX["fold_next"], 8 * INDEX["fold_done"]
REDUCE_NEXT, REDUCE_DONE = 8 * INDEX["reduce_next"], 8 * INDEX["reduce_done"]


@inlined
def _read(zero: Any, element: int, address: int) -> Any:
    if element == EXACT:
        return read(EXACT, zero, address)
    return read(FLOAT16, zero, address) if element == FLOAT16 else read(BFLOAT16, zero, address)


@compiled
def _fold(job: Any, zero: Any, scales: int, unit: int) -> None:
    """Some rows of the matrix, each a column of reduce times the scales of the norm; from unit 0 also the biases."""
    size, width = bytes_of(zero), job.matrix_row
    clear(scales, width)
    for k in range(job.r):
        scale = zero + 1
        if job.norm_variance:
            variance = _read(zero, job.norm_variance_element, job.norm_variance + k * job.norm_variance_r)
            scale = _read(zero, job.norm_scale_element, job.norm_scale + k * job.norm_scale_r)
            scale = scale / np.sqrt(variance + float_of(zero, job.norm_epsilon))
        write(EXACT, zero, scale, scales + k * size)
    first = unit * FOLDED
    count = min(FOLDED, job.C - first)
    rows = job.matrix + first * width
    read_slots(
        zero, rows, width, job.reduce + first * job.reduce_c, job.reduce_element, job.reduce_r, job.reduce_c,
        job.r, count,
    )  # fmt: skip
    for row in range(count):
        for offset in range(0, width, VECTOR_BYTES):
            multiply_vector(zero, rows + row * width + offset, scales + offset)
    if unit == 0:
        biases = job.matrix + job.C * width
        clear(biases, 2 * width)
        for k in range(job.r):
            bias = zero
            if job.reduce_bias:
                bias = _read(zero, job.reduce_bias_element, job.reduce_bias + k * job.reduce_bias_r)
            if job.norm_variance:
                mean = _read(zero, job.norm_mean_element, job.norm_mean + k * job.norm_mean_r)
                shift = _read(zero, job.norm_shift_element, job.norm_shift + k * job.norm_shift_r)
                bias = (bias - mean) * read(EXACT, zero, scales + k * size) + shift
            write(EXACT, zero, bias, biases + k * size)


@compiled
def _reduce(job: Any, zero: Any, scratch: int, n: int, row: int, first: int, count: int) -> None:
    """hidden [r, positions] of one image, for some positions that are neighbours."""
    size, width = bytes_of(zero), job.matrix_row
    sums = scratch + CHUNK * job.C * size
    bias, zeros = job.matrix + job.C * width, job.matrix + (job.C + 1) * width
    pixels, pixel = job.pooled + n * job.pooled_n + row * job.pooled_h + first * job.pooled_w, job.pooled_w
    if not (job.pooled_element == EXACT and job.pooled_c == size):
        slot = job.C * size
        read_slots(zero, scratch, slot, pixels, job.pooled_element, job.pooled_c, pixel, job.C, count)
        pixels, pixel = scratch, slot
    matmul(
        zero, count, width // VECTOR_BYTES, pixels, pixel, size, job.matrix, width, job.C, zeros, 0, sums, width
    )  # fmt: skip
    for p in range(count):
        for offset in range(0, width, VECTOR_BYTES):
            finish_vector(zero, sums + p * width + offset, bias + offset, job.rectifies)
    to = job.hidden + n * job.hidden_n + (row * job.W_out + first) * size
    write_slots(zero, sums, width, to, EXACT, job.hidden_step, size, job.r, count)


@compiled
def make_hidden(job: Any, zero: Any, scratch: int) -> None:
    """hidden [N, r, positions]: fold, then reduce. A thread that finds no unit left waits for those that are at one."""
    units = -(-job.C // FOLDED)
    while True:
        unit = fetch_add(job.address + FOLD_NEXT, 1)
        if unit >= units:
            break
        _fold(job, zero, scratch, unit)
        fetch_add(job.address + FOLD_DONE, 1)
    while fetch(job.address + FOLD_DONE) < units:
        pass
    is_flat = job.pooled_h == job.W_out * job.pooled_w
    rows, columns = (1, job.H_out * job.W_out) if is_flat else (job.H_out, job.W_out)
    chunks = -(-columns // CHUNK)
    units = job.N * rows * chunks
    while True:
        unit = fetch_add(job.address + REDUCE_NEXT, 1)
        if unit >= units:
            break
        first = unit % chunks * CHUNK
        _reduce(job, zero, scratch, unit // chunks // rows, unit // chunks % rows, first, min(CHUNK, columns - first))
        fetch_add(job.address + REDUCE_DONE, 1)
    while fetch(job.address + REDUCE_DONE) < units:
        pass


@compiled
def reduce_backward(job: Any, zero: Any) -> None:
    """The gradients of reduce: grad_pooled, and the sums of that for the weight, from the gradient of hidden.

    A unit is some runs of positions of one image, whose sums for the weight are its own.
    """
    size, width = bytes_of(zero), job.matrix_row
    pixels = job.scratch + fetch_add(job.address + NEXT_SLOT, 1) * job.scratch_bytes
    sums = pixels + CHUNK * width
    is_whole = job.C * size == width
    runs = -(-job.H_out * job.W_out // CHUNK)
    units = -(-runs // job.chunk)
    while True:
        unit = fetch_add(job.address, 1)
        if unit >= job.N * units:
            break
        n = unit // units
        to = job.grad_span + unit * job.grad_span_part
        for run in range(unit % units * job.chunk, min((unit % units + 1) * job.chunk, runs)):
            first = run * CHUNK
            count = min(CHUNK, job.H_out * job.W_out - first)
            gradient = job.hidden + n * job.hidden_n + first * size
            source = job.pooled + n * job.pooled_n + first * job.pooled_w
            target = job.grad_pooled + n * job.grad_pooled_n + first * job.grad_pooled_w
            at, step = source, job.pooled_w
            if not (is_whole and job.pooled_element == EXACT and job.pooled_c == size):
                read_slots(zero, pixels, width, source, job.pooled_element, job.pooled_c, step, job.C, count)
                at, step = pixels, width
            add_matmul(
                zero, job.r, width // VECTOR_BYTES, gradient, job.hidden_step, size, at, step, count,
                to, job.grad_span_row,
            )  # fmt: skip
            is_direct = is_whole and job.grad_pooled_element == EXACT and job.grad_pooled_c == size
            at, step = (target, job.grad_pooled_w) if is_direct else (sums, width)
            matmul(
                zero, count, width // VECTOR_BYTES, gradient, size, job.hidden_step, job.matrix, width, job.r,
                job.zeros, 0, at, step,
            )  # fmt: skip
            if not is_direct:
                write_slots(
                    zero, sums, width, target, job.grad_pooled_element, job.grad_pooled_c, job.grad_pooled_w, job.C,
                    count,
                )  # fmt: skip
