"""Groups of few channels: forward and grad_x with neighbouring positions in a vector, which channels would not fill.

The image is packed as ``columns`` does it, and so are the sums of grad_x: [rows, channels of a unit's groups, columns
sorted by their remainder by the stride]. Taps of one remainder meet columns that are evenly apart, so that a tile needs
no more than steps. For grad_x, a column gathers what positions give to it; there the rows of grad_y and of the weight
have zeros around them.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.columns import (
    greatest_divisor,
    line_bytes,
)
from invbench.ops.numba_cpu.elements import EXACT
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.rows import met, weight_of
from invbench.ops.numba_cpu.simd import (
    VECTOR_BYTES,
    ask_for,
    bytes_of,
    constant,
    count_to,
    load,
    multiply_add,
    prefetch,
    store,
    vector_of,
)
from invbench.ops.numba_cpu.slots import columns_of, image_rows, inside, turn, write_slots
from invbench.ops.numba_cpu.tiles import cells_of, each_size, in_registers, slot_at, steps

# Vectors of positions and channels of a tile.
VECTORS, CHANNELS = (4, 2, 1), (2, 1)


@intrinsic
def _tile(
    typing_context: Any, zero: Any, channels: Any, vectors: Any, rows: Any, taps: Any,
    weight: Any, weight_row: Any, weight_tap: Any, ahead: Any, x: Any, x_row: Any, x_tap: Any, x_channel: Any,
    result: Any, result_channel: Any, adds: Any,
) -> Any:  # fmt: skip
    """result[channel] = sum over rows and taps of weight[row, tap] * x[channel, row, tap], for some vectors of
    positions; with ``adds``, it is added. channels: one of CHANNELS; vectors: one of VECTORS. ahead: bytes to a weight
    that is asked for meanwhile; 0 for none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, width, rows, taps, weight, weight_row, weight_tap, ahead = arguments[1:9]
        x, x_row, x_tap, x_channel, result, result_channel, adds = arguments[9:]
        vector, asks = vector_of(zero), builder.icmp_signed("!=", ahead, constant(0))

        def emit(channels: int, vectors: int) -> None:
            sums = cells_of(builder, vector, channels, vectors)
            results = [builder.add(result, step) for step in steps(builder, result_channel, channels)]
            with builder.if_then(builder.icmp_signed("!=", adds, constant(0))):
                for cells, at in zip(sums, results, strict=True):
                    for v, cell in enumerate(cells):
                        builder.store(load(builder, vector, at, v * VECTOR_BYTES), cell)
            channel_at = steps(builder, x_channel, channels)
            with count_to(builder, rows) as row, count_to(builder, taps) as tap:
                at = builder.add(builder.mul(row.index, weight_row), builder.mul(tap.index, weight_tap))
                at = builder.add(weight, at)
                factors = slot_at(builder, vector, at, vectors)
                with builder.if_then(asks):
                    for v in range(vectors):
                        prefetch(builder, builder.add(builder.add(at, ahead), constant(v * VECTOR_BYTES)), writes=False)
                at = builder.add(builder.mul(row.index, x_row), builder.mul(tap.index, x_tap))
                at = builder.add(x, at)
                with in_registers(builder, sums) as values:
                    for line, step in zip(values, channel_at, strict=True):
                        pixels = slot_at(builder, vector, builder.add(at, step), vectors)
                        for v, (factor, pixel) in enumerate(zip(factors, pixels, strict=True)):
                            line[v] = multiply_add(builder, factor, pixel, line[v])
            for cells, at in zip(sums, results, strict=True):
                for v, cell in enumerate(cells):
                    store(builder, builder.load(cell), at, v * VECTOR_BYTES)

        each_size(builder, (height, width), (CHANNELS, VECTORS), emit)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 15), generate


@compiled
def _tiles(
    job: Any, zero: Any, count: int, rows: int, taps: int, weight: int, weight_row: int, weight_tap: int, ahead: int,
    x: int, x_row: int, x_tap: int, x_channel: int, result: int, result_channel: int, adds: int,
) -> None:  # fmt: skip
    """As ``_tile``, for all channels of a group and so many vectors."""
    channels, channel = job.C // job.G, 0
    while channel < channels:
        height = 2 if channels - channel >= 2 else 1
        done = 0
        while done < count:
            width = 4 if count - done >= 4 else 2 if count - done >= 2 else 1
            offset = done * VECTOR_BYTES
            _tile(
                zero, height, width, rows, taps, weight + offset, weight_row, weight_tap, ahead if channel == 0 else 0,
                x + channel * x_channel + offset, x_row, x_tap, x_channel,
                result + channel * result_channel + offset, result_channel, adds,
            )  # fmt: skip
            done += width
        channel += height


@inlined
def _taps_of(job: Any, remainder: int) -> tuple[int, int, int]:
    """The taps of a row whose columns have a remainder: the first, from one to the next, and how many; 0 if none."""
    step = job.stride // greatest_divisor(job.stride, job.dilation)
    for v in range(min(step, job.K)):
        if job.dilation * v % job.stride == remainder:
            return v, step, (job.K - 1 - v) // step + 1
    return 0, step, 0


@compiled
def _turn_rows(job: Any, zero: Any, tile: int, weight: int, tap: int, taps: int, first: int, last: int) -> None:
    """A given weight as [taps, positions], of the output rows from first to last; rows that are neighbours at once."""
    rows, positions = last - first, job.W_out
    if job.weight_h == job.W_out * job.weight_w:
        rows, positions = 1, rows * positions
    for row in range(rows):
        turn(
            zero, tile + row * positions * bytes_of(zero), job.tile_step, weight + row * job.weight_h, EXACT,
            job.weight_w, tap, positions, taps,
        )  # fmt: skip


@compiled
def _weight_by_columns(job: Any, zero: Any, tile: int, n: int, g: int, first: int, last: int) -> tuple[int, int, int]:
    """Where the weight of some rows is, positions being neighbours: address, and steps for taps and rows. A vector may
    be read wherever a row has a position."""
    size, taps = bytes_of(zero), job.K * job.K
    weight, tap, weight_h, position = weight_of(job, zero, tile, n, g, first, last)
    if weight == tile:
        return weight, tap, weight_h
    end = job.weight + (job.N - 1) * job.weight_n + (job.G - 1) * job.weight_g + (taps - 1) * job.weight_t
    end += (job.H_out - 1) * job.weight_h + job.W_out * size
    most = weight + (taps - 1) * tap + (last - first - 1) * weight_h + job.W_out * size + VECTOR_BYTES
    if position == size and most <= end:
        return weight, tap, weight_h
    _turn_rows(job, zero, tile, weight, tap, taps, first, last)
    return tile, job.tile_step, job.W_out * size


@inlined
def _turns_together(job: Any, zero: Any, tap: int, group: int, position: int) -> bool:
    """Whether the taps of neighbouring groups are neighbours, and those of one too few to be turned by vectors."""
    size, taps = bytes_of(zero), job.K * job.K
    return tap == size and group == taps * size and position != size and taps * size < VECTOR_BYTES


@inlined
def _are_together(job: Any, zero: Any) -> bool:
    """Whether a weight is given whose groups are turned together; asked only by columns."""
    is_given = job.weight and job.weight_element == EXACT
    return is_given and _turns_together(job, zero, job.weight_t, job.weight_g, job.weight_w)


@inlined
def gives_together(job: Any, zero: Any) -> bool:
    """As ``_are_together``, of the gradient of the weight, in any backward pass."""
    is_wanted = job.by_columns and job.grad_weight and job.grad_weight_element == EXACT
    return is_wanted and _turns_together(job, zero, job.grad_weight_t, job.grad_weight_g, job.grad_weight_w)


@compiled
def _turn_together(job: Any, zero: Any, tile: int, n: int, groups: range, first: int, last: int) -> None:
    """The weight of some rows and groups as [groups, taps, positions]."""
    source = job.weight + n * job.weight_n + groups.start * job.weight_g + first * job.weight_h
    _turn_rows(job, zero, tile, source, bytes_of(zero), len(groups) * job.K * job.K, first, last)


@compiled
def _weight_of(
    job: Any, zero: Any, tile: int, n: int, groups: range, g: int, first: int, last: int
) -> tuple[int, int, int]:
    """As ``_weight_by_columns``, of one of the groups, which may have been turned together before."""
    if _are_together(job, zero):
        return tile + (g - groups.start) * job.K * job.K * job.tile_step, job.tile_step, job.W_out * bytes_of(zero)
    return _weight_by_columns(job, zero, tile, n, g, first, last)


@compiled
def aggregate_small(
    job: Any, zero: Any, columns: int, tile: int, row: int, n: int, groups: range, top: int, first: int, last: int
) -> None:
    """The output rows from first to last of some groups. columns: the packed rows of their image, from those that row
    top needs on. row: scratch for a row of their channels, [channels, positions]."""
    size, group_channels = bytes_of(zero), job.C // job.G
    remainder = job.remainder_bytes
    channel_bytes, line, pitch = job.stride * remainder, line_bytes(job), job.positions_bytes
    rows_bytes = len(groups) * group_channels * pitch
    common = greatest_divisor(job.stride, job.dilation)
    vectors = -(-job.W_out * size // VECTOR_BYTES)
    if _are_together(job, zero):
        _turn_together(job, zero, tile, n, groups, first, last)
    for g in groups:
        channel = (g - groups.start) * group_channels
        weight, tap, weight_h = _weight_of(job, zero, tile, n, groups, g, first, last)
        # In memory, the next rows of a tap are neighbours.
        ahead = (last - first) * weight_h if job.ahead and tap != job.tile_step else 0
        adds = 0
        for phase in range(job.stride):
            v, step, taps = _taps_of(job, phase)
            if taps == 0:
                continue
            at = columns + channel * channel_bytes + phase * remainder + job.dilation * v // job.stride * size
            for i in range(first, last):
                u, end = met(job, i)
                _tiles(
                    job, zero, vectors, end - u, taps,
                    weight + (i - first) * weight_h + (u * job.K + v) * tap, job.K * tap, step * tap, ahead,
                    at + (job.stride * (i - top) + job.dilation * u) * line, job.dilation * line,
                    job.dilation // common * size, channel_bytes,
                    row + (i - first) * rows_bytes + channel * pitch, pitch, adds,
                )  # fmt: skip
            adds = 1
    for i in range(first, last):
        y = job.y + n * job.y_n + i * job.y_h + groups.start * group_channels * job.y_c
        # Positions and channels take each other's places.
        write_slots(
            zero, row + (i - first) * rows_bytes, pitch, y, job.y_element, job.y_w, job.y_c, job.W_out,
            len(groups) * group_channels,
        )  # fmt: skip


@compiled
def scatter_small(
    job: Any, zero: Any, sums: int, padded: int, tile: int, grad_y: int, n: int, groups: range, top: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """Add what the output rows from first to last of some groups bring to grad_x. sums: of the unit, from those that
    row top needs on. grad_y: its packed rows. padded: scratch for a group's weight with zeros around its rows, which
    are there already."""
    size, K, group_channels = bytes_of(zero), job.K, job.C // job.G
    remainder, margin, pitch = job.remainder_bytes, job.margin_bytes, job.positions_bytes
    channel_bytes, line = job.stride * remainder, line_bytes(job)
    grad_line = job.chunk * group_channels * pitch
    common = greatest_divisor(job.stride, job.dilation)
    columns = -(-columns_of(job) // job.stride)
    vectors = -(-columns * size // VECTOR_BYTES)
    if _are_together(job, zero):
        _turn_together(job, zero, tile, n, groups, first, last)
    for g in groups:
        channel = (g - groups.start) * group_channels
        weight, tap, weight_h = _weight_of(job, zero, tile, n, groups, g, first, last)
        asks = job.ahead and tap != job.tile_step
        for i in range(first, last):
            if asks:  # The row after the next, of every tap.
                for k in range(K * K):
                    for offset in range(0, job.W_out * size, VECTOR_BYTES):
                        ask_for(weight + (i - first + 2) * weight_h + k * tap + offset)
            turn(zero, padded + margin, pitch, weight + (i - first) * weight_h, EXACT, size, tap, job.W_out, K * K)
            u, end = met(job, i)
            for phase in range(job.stride):
                v, step, taps = _taps_of(job, phase)
                if taps == 0:
                    continue
                shift, shifts = job.dilation * v // job.stride * size, job.dilation // common * size
                for row in range(u, end):
                    to = sums + (job.stride * (i - top) + job.dilation * row) * line + channel * channel_bytes
                    _tiles(
                        job, zero, vectors, 1, taps,
                        padded + margin + (row * K + v) * pitch - shift, 0, step * pitch - shifts, 0,
                        grad_y + (i - first) * grad_line + channel * pitch + margin - shift, 0, -shifts, pitch,
                        to + phase * remainder, channel_bytes, 1,
                    )  # fmt: skip


@compiled
def finish_small(job: Any, zero: Any, sums: int, n: int, groups: range) -> None:
    """Write grad_x of some groups, of which a unit has summed all rows."""
    size, channels = bytes_of(zero), len(groups) * (job.C // job.G)
    remainder, line = job.remainder_bytes, line_bytes(job)
    target = job.grad_x + n * job.grad_x_n + groups.start * (job.C // job.G) * job.grad_x_c
    for row in range(image_rows(job, job.H_out)):
        h = row - job.padding
        if not 0 <= h < job.H:
            continue
        for phase in range(job.stride):
            start, stop = inside(job, phase, job.stride)
            pixels = target + h * job.grad_x_h + (phase + job.stride * start - job.padding) * job.grad_x_w
            write_slots(
                zero, sums + row * line + phase * remainder + start * size, job.stride * remainder, pixels,
                job.grad_x_element, job.stride * job.grad_x_w, job.grad_x_c, stop - start, channels,
            )  # fmt: skip
