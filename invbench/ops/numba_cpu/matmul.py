"""Matrix products, and the weight that one of them makes from the hidden channels, where it is used."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import (
    REGISTERS,
    VECTOR_BYTES,
    broadcast,
    bytes_of,
    constant,
    count_to,
    load,
    multiply_add,
    real_of,
    store,
    vector_of,
)
from invbench.ops.numba_cpu.tiles import cells_of, each_size, in_registers, slot_at, steps

# Rows and vectors of a tile: sums, the vectors in hand and a factor have to fit the registers. Rows of two sorts,
# because RedNet's K*K is 49 and its hidden channels are multiples of 16.
ROWS, EVEN_ROWS, COLUMNS = (7, 8, 3) if REGISTERS == 32 else (5, 4, 2)


@intrinsic
def matmul_tile(
    typing_context: Any, zero: Any, height: Any, vectors: Any,
    left: Any, left_row: Any, left_step: Any, right: Any, right_step: Any, depth: Any,
    bias: Any, bias_step: Any, result: Any, result_row: Any, adds: Any,
) -> Any:  # fmt: skip
    """result[row] = bias[row] + sum over range(depth) of left[row, k] * right[k], for 1, ROWS or EVEN_ROWS rows, and
    for up to COLUMNS vectors; with ``adds``, what is there takes the place of the bias.

    left: numbers, left_row and left_step apart. right: the vectors of one k are neighbours. bias: numbers, bias_step
    apart.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        height, count = arguments[1:3]
        left, left_row, left_step, right, right_step, depth, bias, bias_step, result, result_row, adds = arguments[3:]
        vector, real = vector_of(zero), real_of(zero)
        adds = builder.icmp_signed("!=", adds, constant(0))

        def start(sums: list[list[Any]]) -> None:
            bias_at, result_at = steps(builder, bias_step, len(sums)), steps(builder, result_row, len(sums))
            rows = list(zip(sums, bias_at, result_at, strict=True))
            with builder.if_else(adds) as (from_result, from_bias):
                with from_result:
                    for row, _, step in rows:
                        for v, cell in enumerate(row):
                            builder.store(load(builder, vector, builder.add(result, step), v * VECTOR_BYTES), cell)
                with from_bias:
                    for row, step, _ in rows:
                        number = broadcast(builder, load(builder, real, builder.add(bias, step)), vector)
                        for cell in row:
                            builder.store(number, cell)

        def emit(rows: int, vectors: int) -> None:
            sums = cells_of(builder, vector, rows, vectors)
            start(sums)
            row_at = [builder.add(left, step) for step in steps(builder, left_row, rows)]
            with count_to(builder, depth) as k, in_registers(builder, sums) as values:
                columns = slot_at(builder, vector, builder.add(right, builder.mul(k.index, right_step)), vectors)
                offset = builder.mul(k.index, left_step)
                for at, row_values in zip(row_at, values, strict=True):
                    factor = broadcast(builder, load(builder, real, builder.add(at, offset)), vector)
                    for v, column in enumerate(columns):
                        row_values[v] = multiply_add(builder, factor, column, row_values[v])
            for cells, step in zip(sums, steps(builder, result_row, rows), strict=True):
                for v, cell in enumerate(cells):
                    store(builder, builder.load(cell), builder.add(result, step), v * VECTOR_BYTES)

        each_size(builder, (height, count), ((1, ROWS, EVEN_ROWS), range(1, COLUMNS + 1)), emit)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 13), generate


@inlined
def tile_width(left: int) -> int:
    """Vectors of the next tile, if so many are left: never one alone at the end, if two tiles of two can share them."""
    if left <= COLUMNS:
        return left
    return left - 2 if left == COLUMNS + 1 and left - 2 <= COLUMNS else COLUMNS


@inlined
def tile_height(rows: int) -> int:
    """Rows of a tile, of so many rows in all."""
    if rows % EVEN_ROWS == 0:
        return EVEN_ROWS
    return ROWS if rows >= ROWS else 1


@compiled
def matmul(
    zero: Any, rows: int, vectors: int, left: int, left_row: int, left_step: int, right: int, right_step: int,
    depth: int, bias: int, bias_step: int, result: int, result_row: int,
) -> None:  # fmt: skip
    """result[row] = bias[row] + sum over range(depth) of left[row, k] * right[k], as ``matmul_tile``, for any size."""
    step, done = tile_height(rows), 0
    while done < vectors:
        width, offset = tile_width(vectors - done), done * VECTOR_BYTES
        for begin in range(0, rows, step):
            row = min(begin, rows - step)  # the last tile overlaps the one before it
            matmul_tile(
                zero, step, width, left + row * left_row, left_row, left_step, right + offset, right_step, depth,
                bias + row * bias_step, bias_step, result + offset + row * result_row, result_row, 0,
            )  # fmt: skip
        done += width


@compiled
def add_matmul(
    zero: Any, rows: int, vectors: int, left: int, left_row: int, left_step: int, right: int, right_step: int,
    depth: int, result: int, result_row: int,
) -> None:  # fmt: skip
    """result[row] += sum over range(depth) of left[row, k] * right[k]. No row may be added twice, so a rest goes row by
    row."""
    done = 0
    while done < vectors:
        width, offset = tile_width(vectors - done), done * VECTOR_BYTES
        row, height = 0, tile_height(rows)
        while row < rows:
            step = height if row + height <= rows else 1
            to = result + offset + row * result_row
            matmul_tile(
                zero, step, width, left + row * left_row, left_row, left_step, right + offset, right_step, depth,
                to, 0, to, result_row, 1,
            )  # fmt: skip
            row += step
        done += width


@compiled
def generate_weight(job: Any, zero: Any, tile: int, n: int, g: int, first: int, count: int) -> None:
    """tile [K*K, positions] = bias + span @ hidden, for so many positions from the first on."""
    size, taps = bytes_of(zero), job.K * job.K
    matmul(
        zero, taps, -(-count * size // VECTOR_BYTES), job.span + g * taps * job.span_row, job.span_row, size,
        job.hidden + n * job.hidden_n + first * size, job.hidden_step, job.r,
        job.bias + g * taps * job.bias_step, job.bias_step, tile, job.tile_step,
    )  # fmt: skip
