"""The loops of the Numba kernels: rows of tiles, and the units of work that threads take one after another.

A unit packs the image rows that it needs into its thread's scratch (see ``slots``), makes or finds the weight of a few
rows, and runs tiles along them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from invbench.ops.numba_cpu.hidden import make_hidden
from invbench.ops.numba_cpu.matmul import generate_weight
from invbench.ops.numba_cpu.record import INDEX, compiled, inlined
from invbench.ops.numba_cpu.seams import add_seams, finish_strip
from invbench.ops.numba_cpu.simd import EXACT, VECTOR_BYTES, bytes_of, fetch_add
from invbench.ops.numba_cpu.slots import (
    blocks_of,
    clear,
    convert,
    image_rows,
    pack,
    phase_bytes,
    phases_of,
    read_slots,
    write_slots,
)
from invbench.ops.numba_cpu.tiles import (
    POSITIONS,
    RUNS,
    SEVEN,
    SINGLE,
    aggregate_tile,
    products_tile,
    scatter_tile,
)

NEXT_SLOT = 8 * INDEX["next_slot"]
POSITIONS_1, POSITIONS_2 = POSITIONS[1], POSITIONS[2]


@compiled
def _weight(job: Any, zero: Any, tile: int, n: int, g: int, top: int, bottom: int) -> tuple[int, int, int, int]:
    """Where the weight of some rows is, in the type that is computed with: address, and steps for taps, rows and
    columns. It is made or converted into the tile unless it can be read where it lies."""
    size = bytes_of(zero)
    given = job.weight + n * job.weight_n + g * job.weight_g + top * job.weight_h
    if job.weight and job.weight_element == EXACT:
        return given, job.weight_t, job.weight_h, job.weight_w
    if not job.weight:
        generate_weight(job, zero, tile, n, g, top * job.W_out, (bottom - top) * job.W_out)
    else:
        for tap in range(job.K * job.K):
            for row in range(bottom - top):
                convert(
                    zero, EXACT, tile + tap * job.tile_step + row * job.W_out * size, size,
                    given + tap * job.weight_t + row * job.weight_h, job.weight_element, job.weight_w, job.W_out,
                )  # fmt: skip
    return tile, job.tile_step, job.W_out * size, size


# --- Rows of tiles ---


@inlined
def _met(job: Any, i: int) -> tuple[int, int]:
    """The rows of the window of output row i that lie in the image: from, to."""
    first = job.stride * i - job.padding
    return max(0, -(first // job.dilation)), min(job.K, (job.H - 1 - first) // job.dilation + 1)


@inlined
def _mode(job: Any) -> int:
    if job.dilation > 1 or job.K < 3:
        return SINGLE
    return SEVEN if job.K == 7 and job.stride == 1 else RUNS


@inlined
def _position_bytes(job: Any) -> int:
    """From a position's first slot to that of its neighbour."""
    return job.vectors * VECTOR_BYTES * (1 if job.dilation == 1 else job.stride)


@inlined
def _walk(job: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int) -> Any:
    """The walk of the window whose first slot is at x and whose first weight is at weight."""
    phase = phase_bytes(job)
    return (
        x, job.dilation * phases_of(job) * phase, phase,
        job.dilation * job.vectors * VECTOR_BYTES, _position_bytes(job),
        weight, job.K * weight_tap, weight_tap, weight_position, rows, job.K, job.stride,
    )  # fmt: skip


@inlined
def _tile_positions(job: Any) -> int:
    """Positions of a tile; one where the row is shorter than that."""
    most = POSITIONS_1 if job.vectors == 1 else POSITIONS_2
    return most if job.W_out >= most else 1


@compiled
def _aggregate_row(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int, y: int, y_position: int
) -> None:
    """One row of y from a row of windows."""
    step, apart = _tile_positions(job), _position_bytes(job)
    shape = (np.int64(step == 1), job.vectors, _mode(job))
    for begin in range(0, job.W_out, step):
        # The last tile overlaps the one before it: computing a position twice is cheaper than going one by one.
        j = min(begin, job.W_out - step)
        walk = _walk(job, x + j * apart, weight + j * weight_position, weight_tap, weight_position, rows)
        aggregate_tile(zero, shape, walk, y + j * y_position, y_position)


@compiled
def _scatter_row(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int, grad_y: int, step: int
) -> None:
    """Add what one row of grad_y brings to grad_x. No position may be added twice, so a rest goes one by one."""
    tile, apart = _tile_positions(job), _position_bytes(job)
    j = 0
    while j < job.W_out:
        several = tile > 1 and j + tile <= job.W_out
        shape = (np.int64(not several), job.vectors, _mode(job))
        walk = _walk(job, x + j * apart, weight + j * weight_position, weight_tap, weight_position, rows)
        scatter_tile(zero, shape, walk, grad_y + j * step, step)
        j += tile if several else 1


@compiled
def _products_row(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, grad_y: int, step: int, adds: int
) -> None:
    """One row of grad_weight; added to what is there if ``adds``."""
    apart = _position_bytes(job)
    shape = (np.int64(1), job.vectors, _mode(job))
    for j in range(job.W_out):
        walk = _walk(job, x + j * apart, weight + j * weight_position, weight_tap, weight_position, job.K)
        products_tile(zero, shape, walk, grad_y + j * step, adds)


# --- Units ---


@inlined
def _pack_blocks(job: Any, zero: Any, image: int, n: int, g: int, top: int, bottom: int, clears: bool) -> None:
    """The image rows that the output rows from top to bottom need, for every block of a group."""
    blocks, most = blocks_of(job, zero)
    rows = image_rows(job, bottom - top)
    block_bytes = image_rows(job, job.strip) * phases_of(job) * phase_bytes(job)
    for block in range(blocks):
        channels = min(most, job.C // job.G - block * most)
        source = job.x + n * job.x_n + (g * (job.C // job.G) + block * most) * job.x_c
        pack(job, zero, image + block * block_bytes, source, channels, job.stride * top - job.padding, rows, clears)


@compiled
def _forward(job: Any, zero: Any) -> None:
    """y, and before it the hidden channels where a layer is to make them. A unit is a strip of rows for one group of
    one image."""
    size, slot = bytes_of(zero), job.vectors * VECTOR_BYTES
    scratch = job.scratch + fetch_add(job.address + NEXT_SLOT, 1) * job.scratch_bytes
    if job.reduce:
        make_hidden(job, zero, scratch)
    image, tile, row = scratch, scratch + job.image_bytes, scratch + job.image_bytes + job.tile_bytes
    blocks, most = blocks_of(job, zero)
    row_bytes = phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    strips = -(-job.H_out // job.strip)
    while True:
        unit = fetch_add(job.address, 1)
        if unit >= job.N * job.G * strips:
            break
        g, n = unit % job.G, unit // job.G // strips
        top = unit // job.G % strips * job.strip
        bottom = min(top + job.strip, job.H_out)
        _pack_blocks(job, zero, image, n, g, top, bottom, False)
        for first in range(top, bottom, job.rows):
            last = min(first + job.rows, bottom)
            weight, tap, weight_h, position = _weight(job, zero, tile, n, g, first, last)
            for block in range(blocks):
                channels = min(most, job.C // job.G - block * most)
                direct = job.y_element == EXACT and job.y_c == size and channels * size == slot
                for i in range(first, last):
                    u, end = _met(job, i)
                    x = image + block * block_bytes + (job.stride * (i - top) + job.dilation * u) * row_bytes
                    at = weight + (i - first) * weight_h + u * job.K * tap
                    y = job.y + n * job.y_n + i * job.y_h + (g * (job.C // job.G) + block * most) * job.y_c
                    if direct:
                        _aggregate_row(job, zero, x, at, tap, position, end - u, y, job.y_w)
                    else:
                        _aggregate_row(job, zero, x, at, tap, position, end - u, row, slot)
                        write_slots(zero, row, slot, y, job.y_element, job.y_c, job.y_w, channels, job.W_out)


@compiled
def _backward(job: Any, zero: Any) -> None:
    """grad_x and grad_weight, as far as they are wanted. A unit is a strip of rows for one group of one image."""
    size, slot = bytes_of(zero), job.vectors * VECTOR_BYTES
    scratch = job.scratch + fetch_add(job.address + NEXT_SLOT, 1) * job.scratch_bytes
    blocks, most = blocks_of(job, zero)
    group_channels, taps = job.C // job.G, job.K * job.K
    row_bytes = phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    image, sums = scratch, scratch + job.image_bytes
    tile = sums + (job.image_bytes if job.grad_x else 0)
    row = tile + job.tile_bytes
    gradients = row + -(-job.W_out * slot // 64) * 64
    strips = -(-job.H_out // job.strip)
    straight = job.grad_weight_element == EXACT and job.grad_weight_t == size
    while True:
        unit = fetch_add(job.address, 1)
        if unit >= job.N * job.G * strips:
            break
        g, n = unit % job.G, unit // job.G // strips
        strip = unit // job.G % strips
        top = strip * job.strip
        bottom = min(top + job.strip, job.H_out)
        if job.grad_weight:
            _pack_blocks(job, zero, image, n, g, top, bottom, True)
        if job.grad_x:
            clear(sums, blocks * block_bytes)
        for first in range(top, bottom, job.rows):
            last = min(first + job.rows, bottom)
            weight, tap, weight_h, position = tile, size, size, size
            if job.grad_x:
                weight, tap, weight_h, position = _weight(job, zero, tile, n, g, first, last)
            for i in range(first, last):
                u, end = _met(job, i)
                for block in range(blocks):
                    channels = min(most, group_channels - block * most)
                    grad_y = job.y + n * job.y_n + i * job.y_h + (g * group_channels + block * most) * job.y_c
                    step = job.y_w
                    if not (job.y_element == EXACT and job.y_c == size and channels * size == slot):
                        read_slots(zero, row, slot, grad_y, job.y_element, job.y_c, job.y_w, channels, job.W_out)
                        grad_y, step = row, slot
                    at = block * block_bytes + job.stride * (i - top) * row_bytes
                    if job.grad_x:
                        _scatter_row(
                            job, zero, sums + at + job.dilation * u * row_bytes,
                            weight + (i - first) * weight_h + u * job.K * tap, tap, position, end - u, grad_y, step,
                        )  # fmt: skip
                    if job.grad_weight:
                        to = job.grad_weight + n * job.grad_weight_n + g * job.grad_weight_g + i * job.grad_weight_h
                        apart = job.grad_weight_w
                        if not straight:
                            to, apart = gradients, taps * size
                        _products_row(job, zero, image + at, to, size, apart, grad_y, step, np.int64(block > 0))
                if job.grad_weight and not straight:
                    to = job.grad_weight + n * job.grad_weight_n + g * job.grad_weight_g + i * job.grad_weight_h
                    write_slots(
                        zero, gradients, taps * size, to, job.grad_weight_element, job.grad_weight_t,
                        job.grad_weight_w, taps, job.W_out,
                    )  # fmt: skip
        if job.grad_x:
            finish_strip(job, zero, sums, n, g, strip)


# --- What is called ---


def entries(version: str) -> dict[str, Callable[[Any], None]]:
    """The functions that a launch can name, by kernel and by bytes of the type that is computed with.

    version: stands for all the code that they are made of. Numba finds a function in its disk cache by the function's
    own code, the processor, and what it captures, but not by the code of what it calls; so each captures the version.
    """

    def forward_4(job: Any) -> None:
        version  # noqa: B018
        _forward(numba.carray(job, 1)[0], np.float32(0))

    def forward_8(job: Any) -> None:
        version  # noqa: B018
        _forward(numba.carray(job, 1)[0], np.float64(0))

    def backward_4(job: Any) -> None:
        version  # noqa: B018
        _backward(numba.carray(job, 1)[0], np.float32(0))

    def backward_8(job: Any) -> None:
        version  # noqa: B018
        _backward(numba.carray(job, 1)[0], np.float64(0))

    def seams_4(job: Any) -> None:
        version  # noqa: B018
        add_seams(numba.carray(job, 1)[0], np.float32(0))

    def seams_8(job: Any) -> None:
        version  # noqa: B018
        add_seams(numba.carray(job, 1)[0], np.float64(0))

    functions = (forward_4, forward_8, backward_4, backward_8, seams_4, seams_8)
    return {function.__name__: function for function in functions}
