"""The loops of the Numba kernels: rows of tiles, and the units of work that threads take one after another.

A unit packs the image rows that it needs into its thread's scratch (see ``slots``), makes or finds the weight of a few
rows, and runs tiles along them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from invbench.ops.numba_cpu.backward import run_units
from invbench.ops.numba_cpu.columns import pack_columns
from invbench.ops.numba_cpu.elements import EXACT
from invbench.ops.numba_cpu.hidden import (
    add_totals,
    hidden_backward,
    make_hidden,
    make_hidden_again,
    reduce_backward,
)
from invbench.ops.numba_cpu.record import NEXT_SLOT, UNIT, compiled, inlined, take
from invbench.ops.numba_cpu.rows import aggregate_groups, aggregate_row, met, mode_of, weight_of
from invbench.ops.numba_cpu.seams import add_seams
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, bytes_of, fetch_add
from invbench.ops.numba_cpu.slots import blocks_of, image_rows, pack, phase_bytes, phases_of, write_slots
from invbench.ops.numba_cpu.small_groups import aggregate_small
from invbench.ops.numba_cpu.tiles import SEVEN


@compiled
def _pack_groups(job: Any, zero: Any, image: int, n: int, groups: range, top: int, bottom: int) -> None:
    """The image rows that the output rows from top to bottom need, for every block of some groups, row by row as they
    lie in memory."""
    blocks, most = blocks_of(job, zero)
    group_channels, row_bytes = job.C // job.G, phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    for row in range(image_rows(job, bottom - top)):
        for g in groups:
            to = image + (g - groups.start) * job.image_bytes + row * row_bytes
            for block in range(blocks):
                channels = min(most, group_channels - block * most)
                source = job.x + n * job.x_n + (g * group_channels + block * most) * job.x_c
                pack(job, zero, to + block * block_bytes, source, channels, job.stride * top - job.padding + row, 1)


@compiled
def _aggregate_rows(
    job: Any, zero: Any, image: int, tile: int, row: int, n: int, g: int, top: int, first: int, last: int
) -> None:
    """The output rows from first to last of one group. image: its packed rows, from those that row top needs on."""
    size, slot = bytes_of(zero), job.vectors * VECTOR_BYTES
    blocks, most = blocks_of(job, zero)
    row_bytes = phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    weight, tap, weight_h, position = weight_of(job, zero, tile, n, g, first, last)
    for block in range(blocks):
        channels = min(most, job.C // job.G - block * most)
        direct = job.y_element == EXACT and job.y_c == size and channels * size == slot
        for i in range(first, last):
            u, end = met(job, i)
            x = image + block * block_bytes + (job.stride * (i - top) + job.dilation * u) * row_bytes
            at = weight + (i - first) * weight_h + u * job.K * tap
            y = job.y + n * job.y_n + i * job.y_h + (g * (job.C // job.G) + block * most) * job.y_c
            if direct:
                aggregate_row(job, zero, x, at, tap, position, end - u, y, job.y_w)
            else:
                aggregate_row(job, zero, x, at, tap, position, end - u, row, slot)
                write_slots(zero, row, slot, y, job.y_element, job.y_c, job.y_w, channels, job.W_out)


@inlined
def _takes_groups_in_turn(job: Any, zero: Any) -> bool:
    """Whether a tile's positions are computed for one group after the other before the next tile: where a position's
    taps lie side by side in a given weight, and slots in y, which are then read and written in order. Only for K=7:
    measured, the smaller runs of other windows lose more by it than they win."""
    size = bytes_of(zero)
    reads = job.weight and job.weight_element == EXACT and job.weight_t == size and job.weight_w > size
    writes = job.y_element == EXACT and job.y_c == size and job.C // job.G * size == job.vectors * VECTOR_BYTES
    return reads and writes and mode_of(job) == SEVEN


@compiled
def _aggregate_in_turn(job: Any, zero: Any, image: int, n: int, groups: range, top: int, first: int, last: int) -> None:
    """The output rows from first to last of some groups, if it ``_takes_groups_in_turn``. image: their packed rows,
    from those that row top needs on."""
    row_bytes, y_group = phases_of(job) * phase_bytes(job), job.C // job.G * job.y_c
    for i in range(first, last):
        u, end = met(job, i)
        x = image + (job.stride * (i - top) + job.dilation * u) * row_bytes
        weight = job.weight + n * job.weight_n + groups.start * job.weight_g + i * job.weight_h
        y = job.y + n * job.y_n + i * job.y_h + groups.start * y_group
        aggregate_groups(
            job, zero, x, weight + u * job.K * job.weight_t, job.weight_t, job.weight_w, end - u, y, job.y_w,
            len(groups), job.image_bytes, job.weight_g, y_group,
        )  # fmt: skip


@compiled
def _forward(job: Any, zero: Any) -> None:
    """y, and before it the hidden channels where a layer is to make them. A unit is a strip of rows of one image, for
    a chunk of groups."""
    scratch = job.scratch + fetch_add(job.address + NEXT_SLOT, 1) * job.scratch_bytes
    if job.reduce:
        make_hidden(job, zero, scratch)
    image, tile = scratch, scratch + job.chunk * job.image_bytes
    row = tile + job.tile_bytes
    strips, chunks = -(-job.H_out // job.strip), -(-job.G // job.chunk)
    unit = take(job, UNIT)
    while unit < job.N * strips * chunks:
        chunk, strip, n = unit % chunks, unit // chunks % strips, unit // chunks // strips
        groups = range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.G))
        top = strip * job.strip
        bottom = min(top + job.strip, job.H_out)
        if job.by_columns:
            pack_columns(job, zero, image, n, groups, top, bottom)
        else:
            _pack_groups(job, zero, image, n, groups, top, bottom)
        for first in range(top, bottom, job.rows):
            last = min(first + job.rows, bottom)
            if job.by_columns:
                aggregate_small(job, zero, image, tile, row, n, groups, top, first, last)
                continue
            if len(groups) > 1 and _takes_groups_in_turn(job, zero):
                _aggregate_in_turn(job, zero, image, n, groups, top, first, last)
                continue
            for g in groups:
                at = image + (g - groups.start) * job.image_bytes
                _aggregate_rows(job, zero, at, tile, row, n, g, top, first, last)
        unit = take(job, UNIT)


@compiled
def _backward(job: Any, zero: Any) -> None:
    """grad_x, grad_weight and the gradients of the generator and of what makes hidden, as far as they are wanted."""
    scratch = job.scratch + fetch_add(job.address + NEXT_SLOT, 1) * job.scratch_bytes
    if job.raw:
        make_hidden_again(job, zero)
    run_units(job, zero, scratch)
    if job.seams:
        add_seams(job, zero)
    if job.grad_span:
        hidden_backward(job, zero)
        if job.raw:
            reduce_backward(job, zero, scratch)
        add_totals(job, zero)


# --- What is called ---


def entries(version: str, size: int) -> dict[str, Callable[[Any], None]]:
    """The functions that a launch can name, by kernel, for the type of so many bytes that is computed with.

    version: stands for all the code that they are made of. Numba finds a function in its disk cache by the function's
    own code, the processor, and what it captures, but not by the code of what it calls; so each captures the version.
    """
    zero = np.float64(0) if size == 8 else np.float32(0)

    def forward(job: Any) -> None:
        version  # noqa: B018
        _forward(numba.carray(job, 1)[0], zero)

    def backward(job: Any) -> None:
        version  # noqa: B018
        _backward(numba.carray(job, 1)[0], zero)

    return {function.__name__: function for function in (forward, backward)}
