"""The gradient of any weight, with neighbouring positions in a vector: sums over channels need no sum over lanes.

For this an image row is packed as [channels, columns], the columns sorted by their remainder by the stride, so that the
columns that a tap meets at neighbouring positions are neighbours.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.elements import EXACT, write
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import (
    INT64,
    REGISTERS,
    VECTOR_BYTES,
    bytes_of,
    count_to,
    load,
    multiply_add,
    store,
    vector_of,
    write_integer,
)
from invbench.ops.numba_cpu.slots import clear, image_rows, inside, turn
from invbench.ops.numba_cpu.tiles import cells_of, each_size, in_registers, steps

# Taps of a row that share what a tile loads of grad_y, and output rows that share what it loads of x: sums, and what is
# in hand, have to fit the registers.
RUN_OF_TAPS = (7, 3, 1)
ROWS_OF_Y = (3, 2, 1) if REGISTERS == 32 else (1,)
MOST_ROWS = ROWS_OF_Y[0]


@intrinsic
def correlate_tile(
    typing_context: Any, zero: Any, rows: Any, taps: Any, grad_y: Any, grad_step: Any, grad_row: Any, x: Any,
    x_step: Any, offsets: Any, channels: Any, grad_weight: Any, tap_step: Any, weight_row: Any,
) -> Any:  # fmt: skip
    """grad_weight[row, tap] = sum over channels of grad_y[row, channel] * x[channel, tap], for a vector of positions.

    rows: one of ROWS_OF_Y; grad_row and weight_row from one to the next. taps: one of RUN_OF_TAPS. offsets: where an
    int64 lies for each tap, which is how far its columns are from x.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, count, grad_y, grad_step, grad_row, x, x_step, offsets, channels = arguments[1:10]
        grad_weight, tap_step, weight_row = arguments[10:]
        vector = vector_of(zero)

        def emit(rows: int, taps: int) -> None:
            sums = cells_of(builder, vector, rows, taps)
            row_at = [builder.add(grad_y, step) for step in steps(builder, grad_row, rows)]
            tap_at = [builder.add(x, load(builder, INT64, offsets, 8 * tap)) for tap in range(taps)]
            with count_to(builder, channels) as channel, in_registers(builder, sums) as values:
                offset = builder.mul(channel.index, grad_step)
                gradients = [load(builder, vector, builder.add(at, offset)) for at in row_at]
                offset = builder.mul(channel.index, x_step)
                for tap, at in enumerate(tap_at):
                    column = load(builder, vector, builder.add(at, offset))
                    for gradient, row in zip(gradients, values, strict=True):
                        row[tap] = multiply_add(builder, gradient, column, row[tap])
            for cells, row_step in zip(sums, steps(builder, weight_row, rows), strict=True):
                for cell, tap_offset in zip(cells, steps(builder, tap_step, taps), strict=True):
                    to = builder.add(builder.add(grad_weight, row_step), tap_offset)
                    store(builder, builder.load(cell), to)

        each_size(builder, (height, count), (ROWS_OF_Y, RUN_OF_TAPS), emit)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 12), generate


@inlined
def line_bytes(job: Any) -> int:
    """Bytes of a packed image row: the channels of a unit's groups, up to an odd number of vectors, so that the rows of
    a window do not all fall into the same sets of a cache."""
    return job.chunk * (job.C // job.G) * job.stride * job.remainder_bytes | VECTOR_BYTES


@compiled
def write_offsets(job: Any, zero: Any, offsets: int) -> None:
    """For each tap of a row, how far its columns are from those of remainder 0."""
    for v in range(job.K):
        column = job.dilation * v
        offset = column % job.stride * job.remainder_bytes + column // job.stride * bytes_of(zero)
        write_integer(offset, offsets + 8 * v)


@compiled
def pack_columns(job: Any, zero: Any, target: int, n: int, groups: range, top: int, bottom: int) -> None:
    """[rows, channels of the groups, columns] of x, for the output rows from top to bottom; zeros outside the image."""
    size, channels = bytes_of(zero), len(groups) * (job.C // job.G)
    step, line = job.remainder_bytes, line_bytes(job)
    channel_bytes = job.stride * step
    source = job.x + n * job.x_n + groups.start * (job.C // job.G) * job.x_c
    for row in range(image_rows(job, bottom - top)):
        h, at = job.stride * top - job.padding + row, target + row * line
        if not 0 <= h < job.H:
            continue
        clear(at, channels * channel_bytes)
        for remainder in range(job.stride):
            start, stop = inside(job, remainder, job.stride)
            pixels = source + h * job.x_h + (remainder + job.stride * start - job.padding) * job.x_w
            to = at + remainder * step + start * size
            _transposed(
                zero, to, channel_bytes, pixels, job.x_element, job.x_c, job.stride * job.x_w, channels, stop - start
            )


@compiled
def pack_positions(job: Any, zero: Any, target: int, n: int, groups: range, first: int, last: int) -> None:
    """[rows, channels of the groups, positions] of grad_y, for the output rows from first to last."""
    group_channels, pitch = job.C // job.G, job.positions_bytes
    channels, line = len(groups) * group_channels, job.chunk * group_channels * pitch
    clear(target, (last - first) * line)
    for i in range(first, last):
        grad_y = job.y + n * job.y_n + groups.start * group_channels * job.y_c + i * job.y_h
        to = target + (i - first) * line + job.margin_bytes
        _transposed(zero, to, pitch, grad_y, job.y_element, job.y_c, job.y_w, channels, job.W_out)


@compiled
def _transposed(
    zero: Any, target: int, channel_bytes: int, source: int, element: int, c_step: int, w_step: int, channels: int,
    count: int,
) -> None:  # fmt: skip
    """[channels, columns] from numbers that are c_step and w_step apart."""
    # Columns and channels take each other's places: a slot is a channel's columns.
    turn(zero, target, channel_bytes, source, element, w_step, c_step, count, channels)


@compiled
def _correlate_chain(
    job: Any, zero: Any, columns: int, offsets: int, grad_y: int, grad_row: int, count: int, to: int, weight_row: int
) -> None:
    """The gradient of one row of the window's taps for each of so many output rows, all of which it meets at one row of
    the image. columns: that row, packed; grad_y: the first output row, packed, grad_row from one to the next; to: the
    gradient of the first, weight_row from one to the next."""
    pitch, channel_bytes = job.positions_bytes, job.stride * job.remainder_bytes
    run, done = 7 if job.K == 7 else 3, 0
    while done < count:
        rows = min(MOST_ROWS, count - done)
        for offset in range(0, job.W_out * bytes_of(zero), VECTOR_BYTES):
            v = 0
            while v < job.K:
                taps = run if v + run <= job.K else 1
                correlate_tile(
                    zero, rows, taps, grad_y + done * grad_row + offset, pitch, grad_row, columns + offset,
                    channel_bytes, offsets + 8 * v, job.C // job.G,
                    to + done * weight_row + v * job.tile_step + offset, job.tile_step, weight_row,
                )  # fmt: skip
                v += taps
        done += rows


@compiled
def correlate(
    job: Any, zero: Any, columns: int, offsets: int, grad_y: int, gradient: int, top: int, first: int, last: int
) -> None:
    """gradient [K*K, positions] of the weight of the output rows from first to last; zeros up to whole vectors.

    columns: the packed channels of a group, of the image rows that the output rows from top on meet; grad_y: those of
    the output rows from first on.
    """
    size, line = bytes_of(zero), line_bytes(job)
    grad_y += job.margin_bytes
    grad_line = job.chunk * (job.C // job.G) * job.positions_bytes
    # One image row after the other: output rows that meet it are ``apart``, and meet it at rows of the window that are
    # ``less``. So the rows of a tap are written in order: the last vector of one reaches into the next.
    common = greatest_divisor(job.stride, job.dilation)
    apart, less = job.dilation // common, job.stride // common
    weight_row = apart * job.W_out * size - less * job.K * job.tile_step
    for reached in range(job.stride * first, job.stride * (last - 1) + job.dilation * (job.K - 1) + 1):
        for i in range(first, last):
            ahead = reached - job.stride * i
            if ahead < 0 or ahead % job.dilation or ahead // job.dilation >= job.K:
                continue
            u = ahead // job.dilation
            count = 1 + min((last - 1 - i) // apart, u // less)
            to = gradient + (i - first) * job.W_out * size + u * job.K * job.tile_step
            if 0 <= reached - job.padding < job.H:
                at, grad_row = columns + (reached - job.stride * top) * line, grad_y + (i - first) * grad_line
                _correlate_chain(job, zero, at, offsets, grad_row, apart * grad_line, count, to, weight_row)
            else:
                for row in range(count):
                    for v in range(job.K):
                        clear(to + row * weight_row + v * job.tile_step, job.W_out * size)
            break
    count = (last - first) * job.W_out
    for tap in range(job.K * job.K):
        for position in range(count, -(-count * size // VECTOR_BYTES) * VECTOR_BYTES // size):
            write(EXACT, zero, zero, gradient + tap * job.tile_step + position * size)


@inlined
def greatest_divisor(left: int, right: int) -> int:
    """Of two positive numbers."""
    while right:
        left, right = right, left % right
    return left
