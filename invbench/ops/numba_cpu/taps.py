"""The gradient of a weight whose taps are neighbours in memory, as beside channels_last images: the taps of a row of
the window share a vector, and are written where they belong.

For a position, such a vector is one of neighbouring columns of a channel, as ``columns`` packs them, times one number
of grad_y. So no lane is lost where rows of the image are short, and the result, which is the largest of all tensors, is
written once and in order. What limits this is reaching memory in time: both grad_y and the result are asked for ahead.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.columns import line_bytes
from invbench.ops.numba_cpu.elements import EXACT, write
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.rows import met
from invbench.ops.numba_cpu.simd import (
    REGISTERS,
    broadcast,
    bytes_of,
    constant,
    count_to,
    element_bytes,
    load,
    multiply_add,
    prefetch,
    real_of,
    shuffle,
    store,
)
from invbench.ops.numba_cpu.tiles import cells_of, each_size, in_registers, steps

# Lanes of a vector by taps of a row (and the windows that there are tiles for); and output rows that share what a tile
# loads of x: with whole vectors of float32, AVX-512's and AVX2's registers hold its sums.
LANES = {3: 4, 5: 8, 7: 8}
ROWS = (3, 2, 1) if REGISTERS == 32 else (2, 1)
# Bytes of a group's channels, of more of which this is slower than whole vectors of positions are: those have no spare
# lanes, and what they lose is lost once, whatever the number of channels.
MOST_BYTES = 128
# Positions by which grad_y (so many bytes of it) and the gradient are asked for ahead, by cache lines of so many bytes.
POSITIONS_AHEAD = 4
CACHE_LINE = 64


@intrinsic
def _correlate_row(
    typing_context: Any, zero: Any, rows: Any, K: Any, x: Any, x_row: Any, x_channel: Any, grad_y: Any, grad_row: Any,
    grad_position: Any, channels: Any, positions: Any, grad_weight: Any, weight_row: Any, weight_position: Any,
) -> Any:  # fmt: skip
    """grad_weight[row, position, u, v] = sum over channels of grad_y[row, position, channel] *
    x[row + u, channel, position + v], for so many neighbouring positions.

    rows: one of ROWS. K: one of LANES. Channels of grad_y and columns of x are neighbours, and so are all taps of a
    position; a vector may be read from each column of x at which a position's taps begin.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, window, x, x_row, x_channel, grad_y, grad_row, grad_position = arguments[1:9]
        channels, positions, grad_weight, weight_row, weight_position = arguments[9:]
        real, size = real_of(zero), element_bytes(zero)

        def ask_ahead(grad_at: list[Any], weight_at: list[Any], taps: int) -> None:
            grad_ahead, weight_ahead = (
                builder.mul(step, constant(POSITIONS_AHEAD)) for step in (grad_position, weight_position)
            )
            for at in grad_at:
                for offset in range(0, MOST_BYTES, CACHE_LINE):
                    prefetch(builder, builder.add(at, builder.add(grad_ahead, constant(offset))), writes=False)
            for at in weight_at:
                for offset in (*range(0, taps * size, CACHE_LINE), taps * size - 1):
                    prefetch(builder, builder.add(at, builder.add(weight_ahead, constant(offset))), writes=True)

        def emit(rows: int, K: int) -> None:
            lanes = LANES[K]
            vector, spare = ir.VectorType(real, lanes), lanes - K
            with count_to(builder, positions) as position:

                def rows_at(first: Any, apart: Any, row_step: Any, count: int) -> list[Any]:
                    at = builder.add(first, builder.mul(position.index, apart))
                    return [builder.add(at, step) for step in steps(builder, row_step, count)]

                grad_at = rows_at(grad_y, grad_position, grad_row, rows)
                weight_at = rows_at(grad_weight, weight_position, weight_row, rows)
                x_at = rows_at(x, constant(size), x_row, rows + K - 1)
                ask_ahead(grad_at, weight_at, K * K)
                sums = cells_of(builder, vector, rows, K)
                with count_to(builder, channels) as channel, in_registers(builder, sums) as values:
                    offset = builder.mul(channel.index, constant(size))
                    numbers = [load(builder, real, builder.add(at, offset)) for at in grad_at]
                    factors = [broadcast(builder, number, vector) for number in numbers]
                    offset = builder.mul(channel.index, x_channel)
                    for index, at in enumerate(x_at):
                        columns = load(builder, vector, builder.add(at, offset))
                        for row, factor in enumerate(factors):
                            u = index - row
                            if 0 <= u < K:
                                values[row][u] = multiply_add(builder, factor, columns, values[row][u])
                for cells, at in zip(sums, weight_at, strict=True):
                    gradients = [builder.load(cell) for cell in cells]
                    for u, gradient in enumerate(gradients[:-1]):
                        store(builder, gradient, at, u * K * size)  # the next one covers the lanes that are no taps
                    # The last one ends with the last tap, and begins with some of the row before.
                    order = [*range(K - spare, K), *range(lanes, lanes + K)]
                    last = shuffle(builder, gradients[-2], gradients[-1], order)
                    store(builder, last, at, ((K - 1) * K - spare) * size)

        each_size(builder, (height, window), (ROWS, LANES), emit)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 13), generate


@inlined
def goes_by_taps(job: Any, zero: Any) -> bool:
    """Whether the gradient of the weight is to be made by ``correlate_taps``: it has neighbouring taps, a window that
    there is a tile for, and few channels a group."""
    size = bytes_of(zero)
    is_exact = job.grad_weight_element == EXACT and job.y_element == EXACT
    fits = (job.K == 3 or job.K == 5 or job.K == 7) and job.stride == 1 and job.dilation == 1
    are_neighbours = job.grad_weight_t == size and job.y_c == size
    return job.grad_weight != 0 and is_exact and fits and are_neighbours and job.C // job.G * size <= MOST_BYTES


@compiled
def correlate_taps(job: Any, zero: Any, columns: int, n: int, g: int, top: int, first: int, last: int) -> None:
    """The gradient of a group's weight, of the output rows from first to last, where it belongs.

    columns: the packed channels of the group, of the image rows that the output rows from top on meet.
    """
    row_bytes, channels = line_bytes(job), job.C // job.G
    gradient = job.grad_weight + n * job.grad_weight_n + g * job.grad_weight_g
    i = first
    while i < last:
        rows = min(ROWS[0], last - i)
        _correlate_row(
            zero, rows, job.K, columns + (i - top) * row_bytes, row_bytes, job.remainder_bytes,
            job.y + n * job.y_n + g * channels * job.y_c + i * job.y_h, job.y_h, job.y_w, channels, job.W_out,
            gradient + i * job.grad_weight_h, job.grad_weight_h, job.grad_weight_w,
        )  # fmt: skip
        i += rows
    for i in range(first, last):
        # Rows of the window that lie outside the image are not packed: what was made of them means nothing.
        u, end = met(job, i)
        for begin, stop in ((0, u), (end, job.K)):
            for j in range(job.W_out if begin < stop else 0):
                at = gradient + i * job.grad_weight_h + j * job.grad_weight_w
                for tap in range(begin * job.K, stop * job.K):
                    write(EXACT, zero, zero, at + tap * bytes_of(zero))
