"""The hidden channels of a layer, from what is reduced: reduce, batch norm and a rectifier, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from invbench.ops.numba_cpu.elements import EXACT, read, read_any, write
from invbench.ops.numba_cpu.matmul import add_matmul, matmul
from invbench.ops.numba_cpu.norm import measure, norm_backward, normalise
from invbench.ops.numba_cpu.record import (
    FOLD,
    GRAD_HIDDEN,
    GRAD_REDUCE,
    NORM,
    REDUCE,
    TOTAL,
    compiled,
    inlined,
    take,
    take_next,
    wait,
)
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, bytes_of, finish_vector, float_of, multiply_vector
from invbench.ops.numba_cpu.slots import clear, read_slots, write_slots
from invbench.ops.numba_cpu.sums import add_parts

# Positions that are reduced at once, and columns of reduce that are folded at once.
CHUNK, FOLDED = 112, 64
# Rows of a gradient that are added up at once.
TOTALLED = 16


@compiled
def _fold(job: Any, zero: Any, scales: int, unit: int) -> None:
    """Some rows of the matrix, each a column of reduce times the scales of the norm, unless that is to be seen apart;
    from unit 0 also the biases."""
    size, width, folds = bytes_of(zero), job.matrix_row, job.norm_variance and not job.raw
    clear(scales, width)
    for k in range(job.r):
        scale = zero + 1
        if folds:
            variance = read_any(zero, job.norm_variance_element, job.norm_variance + k * job.norm_variance_r)
            scale = read_any(zero, job.norm_scale_element, job.norm_scale + k * job.norm_scale_r)
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
                bias = read_any(zero, job.reduce_bias_element, job.reduce_bias + k * job.reduce_bias_r)
            if folds:
                mean = read_any(zero, job.norm_mean_element, job.norm_mean + k * job.norm_mean_r)
                shift = read_any(zero, job.norm_shift_element, job.norm_shift + k * job.norm_shift_r)
                bias = (bias - mean) * read(EXACT, zero, scales + k * size) + shift
            write(EXACT, zero, bias, biases + k * size)


@compiled
def _reduce(job: Any, zero: Any, scratch: int, n: int, row: int, first: int, count: int) -> None:
    """hidden [r, positions] of one image, or raw, for some positions that are neighbours."""
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
            finish_vector(zero, sums + p * width + offset, bias + offset, np.int64(job.rectifies and not job.raw))
    to, step = job.hidden + n * job.hidden_n, job.hidden_step
    if job.raw:
        step = job.H_out * job.W_out * size
        to = job.raw + n * job.r * step
    write_slots(zero, sums, width, to + (row * job.W_out + first) * size, EXACT, step, size, job.r, count)


@compiled
def make_hidden(job: Any, zero: Any, scratch: int) -> None:
    """hidden [N, r, positions]: fold, then reduce, then norm where that is to be seen apart."""
    units = -(-job.C // FOLDED)
    unit = take(job, FOLD)
    while unit < units:
        _fold(job, zero, scratch, unit)
        unit = take_next(job, FOLD)
    wait(job, FOLD, units)
    is_flat = job.pooled_h == job.W_out * job.pooled_w
    rows, columns = (1, job.H_out * job.W_out) if is_flat else (job.H_out, job.W_out)
    chunks = -(-columns // CHUNK)
    units = job.N * rows * chunks
    unit = take(job, REDUCE)
    while unit < units:
        first = unit % chunks * CHUNK
        _reduce(job, zero, scratch, unit // chunks // rows, unit // chunks % rows, first, min(CHUNK, columns - first))
        unit = take_next(job, REDUCE)
    wait(job, REDUCE, units)
    if job.raw:
        unit = take(job, NORM)
        while unit < job.r:
            measure(job, zero, unit)
            normalise(job, zero, unit)
            unit = take_next(job, NORM)
        wait(job, NORM, job.r)


@compiled
def make_hidden_again(job: Any, zero: Any) -> None:
    """hidden [N, r, positions] from raw and the statistics, in a backward pass."""
    unit = take(job, NORM)
    while unit < job.r:
        normalise(job, zero, unit)
        unit = take_next(job, NORM)
    wait(job, NORM, job.r)


@compiled
def _gather(job: Any, zero: Any, k: int) -> None:
    """Channel k of grad_raw: the sum of what the chunks of groups brought to the gradient of hidden."""
    size, chunks = bytes_of(zero), -(-job.G // job.chunk)
    for n in range(job.N):
        for strip in range(-(-job.H_out // job.strip)):
            top = strip * job.strip
            count = (min(top + job.strip, job.H_out) - top) * job.W_out
            source = job.grad_hidden + n * job.grad_hidden_n + k * job.grad_hidden_step + strip * job.grad_hidden_strip
            to = job.grad_raw + ((n * job.r + k) * job.H_out + top) * job.W_out * size
            add_parts(zero, to, count, source, chunks, job.grad_hidden_part)


@compiled
def hidden_backward(job: Any, zero: Any) -> None:
    """grad_raw [N, r, positions], dense: the gradient of hidden, or of raw where there is one."""
    unit = take(job, GRAD_HIDDEN)
    while unit < job.r:
        _gather(job, zero, unit)
        if job.raw:
            norm_backward(job, zero, unit)
        unit = take_next(job, GRAD_HIDDEN)
    wait(job, GRAD_HIDDEN, job.r)


@compiled
def _reduce_backward(job: Any, zero: Any, scratch: int, n: int, first: int, count: int, to: int) -> None:
    """What some positions of one image that are neighbours bring to the gradients of what was reduced, and of reduce.

    Without an image of its own, what was reduced is x, whose gradient lies in grad_x already.
    """
    size, width = bytes_of(zero), job.grad_reduce_row
    pixels, results = scratch, scratch + CHUNK * width
    is_whole, adds = job.C * size == width, not job.grad_pooled
    positions = job.H_out * job.W_out
    gradient = job.grad_raw + (n * job.r * positions + first) * size
    source, step = job.pooled + n * job.pooled_n + first * job.pooled_w, job.pooled_w
    if not (is_whole and job.pooled_element == EXACT and job.pooled_c == size):
        read_slots(zero, pixels, width, source, job.pooled_element, job.pooled_c, step, job.C, count)
        source, step = pixels, width
    add_matmul(
        zero, job.r, width // VECTOR_BYTES, gradient, positions * size, size, source, step, count,
        to, job.grad_reduce_row,
    )  # fmt: skip
    target, target_c, target_w = job.grad_pooled + n * job.grad_pooled_n, job.grad_pooled_c, job.grad_pooled_w
    element = job.grad_pooled_element
    if adds:
        target, target_c, target_w = job.grad_x + n * job.grad_x_n, job.grad_x_c, job.grad_x_w
        element = job.grad_x_element
    target += first * target_w
    at, step = results, width
    if is_whole and element == EXACT and target_c == size:
        at, step = target, target_w
    elif adds:
        read_slots(zero, results, width, target, element, target_c, target_w, job.C, count)
    if adds:
        add_matmul(
            zero, count, width // VECTOR_BYTES, gradient, size, positions * size, job.matrix, width, job.r, at, step
        )
    else:
        matmul(
            zero, count, width // VECTOR_BYTES, gradient, size, positions * size, job.matrix, width, job.r,
            job.zeros, 0, at, step,
        )  # fmt: skip
    if at == results:
        write_slots(zero, results, width, target, element, target_c, target_w, job.C, count)


@inlined
def _reduce_units(job: Any) -> int:
    """Units of the gradient of reduce in one image."""
    runs = -(-job.H_out * job.W_out // CHUNK)
    return -(-runs // job.runs)


@compiled
def reduce_backward(job: Any, zero: Any, scratch: int) -> None:
    """The gradients of what was reduced, and the sums of that of reduce. A unit is some runs of positions of one image,
    whose sums are its own."""
    positions, units = job.H_out * job.W_out, _reduce_units(job)
    runs = -(-positions // CHUNK)
    unit = take(job, GRAD_REDUCE)
    while unit < job.N * units:
        to = job.grad_reduce + unit * job.grad_reduce_part
        clear(to, job.r * job.grad_reduce_row)
        for run in range(unit % units * job.runs, min((unit % units + 1) * job.runs, runs)):
            first = run * CHUNK
            _reduce_backward(job, zero, scratch, unit // units, first, min(CHUNK, positions - first), to)
        unit = take_next(job, GRAD_REDUCE)
    wait(job, GRAD_REDUCE, job.N * units)


@compiled
def add_totals(job: Any, zero: Any) -> None:
    """The gradients of the span, of its bias, and of reduce, from the parts that units have summed."""
    size, taps = bytes_of(zero), job.K * job.K
    parts = -(-job.N // job.images) * -(-job.H_out // job.strip)
    rows = -(-job.r // TOTALLED) if job.raw else 0
    spans = -(-job.G * taps // TOTALLED)
    unit = take(job, TOTAL)
    while unit < spans + rows:
        if unit < spans:
            _total_spans(job, zero, unit * TOTALLED, min(TOTALLED, job.G * taps - unit * TOTALLED), parts)
        else:
            first = (unit - spans) * TOTALLED
            for k in range(first, min(first + TOTALLED, job.r)):
                source, to = job.grad_reduce + k * job.grad_reduce_row, job.total_reduce + k * job.C * size
                add_parts(zero, to, job.C, source, job.N * _reduce_units(job), job.grad_reduce_part)
        unit = take(job, TOTAL)


@compiled
def _total_spans(job: Any, zero: Any, first: int, count: int, parts: int) -> None:
    """Some rows of the gradient of the span, and of its bias."""
    size = bytes_of(zero)
    for k in range(first, first + count):
        source, to = job.grad_span + k * job.grad_span_row, job.total_span + k * job.r * size
        add_parts(zero, to, job.r, source, parts, job.grad_span_part)
    add_parts(zero, job.total_bias + first * size, count, job.grad_bias + first * size, parts, job.grad_bias_part)
