"""The gradient of the weight, with neighbouring positions in a vector: sums over channels need no sum over lanes.

For this an image row is packed as [channels, columns], the columns sorted by their remainder by the stride, so that the
columns that a tap meets at neighbouring positions are neighbours.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.elements import EXACT
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import (
    INT64,
    VECTOR_BYTES,
    bytes_of,
    constant,
    count_to,
    load,
    multiply_add,
    store,
    vector_of,
    write_integer,
)
from invbench.ops.numba_cpu.slots import clear, columns_of, convert, image_rows, inside, write_slots
from invbench.ops.numba_cpu.tiles import cells_of, in_registers

# Taps that share what a tile loads of grad_y.
RUN_OF_TAPS = (7, 3, 1)


@intrinsic
def correlate_tile(
    typing_context: Any, zero: Any, taps: Any, grad_y: Any, grad_step: Any, x: Any, x_step: Any, offsets: Any,
    channels: Any, grad_weight: Any, tap_step: Any,
) -> Any:  # fmt: skip
    """grad_weight[tap] = sum over channels of grad_y[channel] * x[channel, tap], for a vector of positions.

    taps: 7, 3 or 1. offsets: where an int64 lies for each tap, which is how far its columns are from x.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, count, grad_y, grad_step, x, x_step, offsets, channels, grad_weight, tap_step = arguments
        vector = vector_of(zero)

        def emit(taps: int) -> None:
            sums = cells_of(builder, vector, taps, 1)
            tap_at = [builder.add(x, load(builder, INT64, offsets, 8 * tap)) for tap in range(taps)]
            with count_to(builder, channels) as channel, in_registers(builder, sums) as values:
                gradient = load(builder, vector, builder.add(grad_y, builder.mul(channel.index, grad_step)))
                offset = builder.mul(channel.index, x_step)
                for value, at in zip(values, tap_at, strict=True):
                    value[0] = multiply_add(builder, gradient, load(builder, vector, builder.add(at, offset)), value[0])
            for tap, (cell,) in enumerate(sums):
                to = builder.add(grad_weight, builder.mul(tap_step, constant(tap)))
                store(builder, builder.load(cell), to)

        for taps in RUN_OF_TAPS:
            with builder.if_then(builder.icmp_signed("==", count, constant(taps))):
                emit(taps)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 9), generate


@inlined
def remainder_bytes(job: Any, zero: Any) -> int:
    """Bytes of the columns of one remainder of one channel, with room for the vector that begins with the last."""
    size = bytes_of(zero)
    columns = -(-columns_of(job) // job.stride)
    return (-(-columns * size // VECTOR_BYTES) + 1) * VECTOR_BYTES


@inlined
def row_of_positions_bytes(job: Any, zero: Any) -> int:
    """Bytes of a row of output positions in whole vectors."""
    return -(-job.W_out * bytes_of(zero) // VECTOR_BYTES) * VECTOR_BYTES


@compiled
def write_offsets(job: Any, zero: Any, offsets: int) -> None:
    """For each tap of a row, how far its columns are from those of remainder 0."""
    for v in range(job.K):
        column = job.dilation * v
        offset = column % job.stride * remainder_bytes(job, zero) + column // job.stride * bytes_of(zero)
        write_integer(offset, offsets + 8 * v)


@compiled
def pack_columns(job: Any, zero: Any, target: int, n: int, g: int, top: int, bottom: int) -> None:
    """[rows, channels of the group, columns] of x, for the output rows from top to bottom; zeros outside the image."""
    size, channels = bytes_of(zero), job.C // job.G
    step = remainder_bytes(job, zero)
    channel_bytes = job.stride * step
    source = job.x + n * job.x_n + g * channels * job.x_c
    for row in range(image_rows(job, bottom - top)):
        h, at = job.stride * top - job.padding + row, target + row * channels * channel_bytes
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
def _transposed(
    zero: Any, target: int, channel_bytes: int, source: int, element: int, c_step: int, w_step: int, channels: int,
    count: int,
) -> None:  # fmt: skip
    """[channels, columns] from numbers that are c_step and w_step apart."""
    size = bytes_of(zero)
    if element == EXACT and c_step == size:
        write_slots(zero, source, w_step, target, EXACT, channel_bytes, size, channels, count)
        return
    for c in range(channels):
        convert(zero, EXACT, target + c * channel_bytes, size, source + c * c_step, element, w_step, count)


@compiled
def correlate_row(job: Any, zero: Any, columns: int, offsets: int, row: int, n: int, g: int, i: int, to: int) -> None:
    """The gradient of the weight of one output row, [K*K, positions], in whole vectors.

    columns: the packed row of the image that the window's first row meets. row: scratch for a row of grad_y.
    """
    channels = job.C // job.G
    row_bytes, channel_bytes = row_of_positions_bytes(job, zero), job.stride * remainder_bytes(job, zero)
    clear(row, channels * row_bytes)
    grad_y = job.y + n * job.y_n + g * channels * job.y_c + i * job.y_h
    _transposed(zero, row, row_bytes, grad_y, job.y_element, job.y_c, job.y_w, channels, job.W_out)
    run = 7 if job.K == 7 else 3
    for u in range(job.K):
        first_tap = to + u * job.K * job.tile_step
        if not 0 <= job.stride * i + job.dilation * u - job.padding < job.H:
            for v in range(job.K):
                clear(first_tap + v * job.tile_step, row_bytes)
            continue
        x = columns + job.dilation * u * channels * channel_bytes
        for offset in range(0, row_bytes, VECTOR_BYTES):
            v = 0
            while v < job.K:
                taps = run if v + run <= job.K else 1
                correlate_tile(
                    zero, taps, row + offset, row_bytes, x + offset, channel_bytes, offsets + 8 * v, channels,
                    first_tap + v * job.tile_step + offset, job.tile_step,
                )  # fmt: skip
                v += taps
