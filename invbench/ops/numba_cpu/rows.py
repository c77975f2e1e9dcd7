"""Rows of tiles, and the weight of a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from invbench.ops.numba_cpu.elements import EXACT
from invbench.ops.numba_cpu.matmul import generate_weight
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, bytes_of
from invbench.ops.numba_cpu.slots import convert, phase_bytes, phases_of
from invbench.ops.numba_cpu.tiles import POSITIONS, RUNS, SEVEN, SINGLE, aggregate_tile, scatter_tile

POSITIONS_1, POSITIONS_2 = POSITIONS[1], POSITIONS[2]


@compiled
def weight_of(job: Any, zero: Any, tile: int, n: int, g: int, top: int, bottom: int) -> tuple[int, int, int, int]:
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


@inlined
def met(job: Any, i: int) -> tuple[int, int]:
    """The rows of the window of output row i that lie in the image: from, to."""
    first = job.stride * i - job.padding
    return max(0, -(first // job.dilation)), min(job.K, (job.H - 1 - first) // job.dilation + 1)


@inlined
def mode_of(job: Any) -> int:
    """How tiles walk over the window."""
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
        weight, job.K * weight_tap, weight_tap, weight_position, rows, job.K, job.stride, job.ahead * weight_position,
    )  # fmt: skip


@inlined
def _tile_positions(job: Any) -> int:
    """Positions of a tile; one where the row is shorter than that."""
    most = POSITIONS_1 if job.vectors == 1 else POSITIONS_2
    return most if job.W_out >= most else 1


@compiled
def aggregate_row(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int, y: int, y_position: int
) -> None:
    """One row of y from a row of windows."""
    step, apart = _tile_positions(job), _position_bytes(job)
    shape = (np.int64(step == 1), job.vectors, mode_of(job))
    for begin in range(0, job.W_out, step):
        # The last tile overlaps the one before it: computing a position twice is cheaper than going one by one.
        j = min(begin, job.W_out - step)
        walk = _walk(job, x + j * apart, weight + j * weight_position, weight_tap, weight_position, rows)
        aggregate_tile(zero, shape, walk, y + j * y_position, y_position)


@compiled
def aggregate_groups(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int, y: int, y_position: int,
    groups: int, x_group: int, weight_group: int, y_group: int,
) -> None:  # fmt: skip
    """As ``aggregate_row``, for some groups that are ``*_group`` bytes apart, in turn for each tile's positions: so a
    weight and y whose groups are neighbours are read and written in order."""
    step, apart = _tile_positions(job), _position_bytes(job)
    shape = (np.int64(step == 1), job.vectors, mode_of(job))
    for begin in range(0, job.W_out, step):
        j = min(begin, job.W_out - step)
        for g in range(groups):
            slots, factors = x + g * x_group + j * apart, weight + g * weight_group + j * weight_position
            walk = _walk(job, slots, factors, weight_tap, weight_position, rows)
            aggregate_tile(zero, shape, walk, y + g * y_group + j * y_position, y_position)


@compiled
def scatter_row(
    job: Any, zero: Any, x: int, weight: int, weight_tap: int, weight_position: int, rows: int, grad_y: int, step: int
) -> None:
    """Add what one row of grad_y brings to grad_x. No position may be added twice, so a rest goes one by one."""
    tile, apart = _tile_positions(job), _position_bytes(job)
    j = 0
    while j < job.W_out:
        several = tile > 1 and j + tile <= job.W_out
        shape = (np.int64(not several), job.vectors, mode_of(job))
        walk = _walk(job, x + j * apart, weight + j * weight_position, weight_tap, weight_position, rows)
        scatter_tile(zero, shape, walk, grad_y + j * step, step)
        j += tile if several else 1
