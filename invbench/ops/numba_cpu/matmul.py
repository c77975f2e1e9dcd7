"""Matrix products, and the weight that one of them makes from the hidden channels, where it is used."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.record import compiled
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
from invbench.ops.numba_cpu.tiles import cells_of, in_registers, slot_at, steps

# Rows and vectors of a tile: sums, the vectors in hand and a factor have to fit the registers. RedNet's K*K is 49.
ROWS, COLUMNS = (7, 3) if REGISTERS == 32 else (5, 2)


@intrinsic
def matmul_tile(
    typing_context: Any, zero: Any, one: Any, vectors: Any,
    left: Any, left_row: Any, left_step: Any, right: Any, right_step: Any, depth: Any,
    bias: Any, bias_step: Any, result: Any, result_row: Any,
) -> Any:  # fmt: skip
    """result[row] = bias[row] + sum over range(depth) of left[row, k] * right[k], for one row or ROWS of them, and for
    up to COLUMNS vectors.

    left: numbers, left_row and left_step apart. right: the vectors of one k are neighbours. bias: numbers, bias_step
    apart.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, count = arguments[1:3]
        left, left_row, left_step, right, right_step, depth, bias, bias_step, result, result_row = arguments[3:]
        vector, real = vector_of(zero), real_of(zero)

        def emit(rows: int, vectors: int) -> None:
            sums = cells_of(builder, vector, rows, vectors)
            for row, step in zip(sums, steps(builder, bias_step, rows), strict=True):
                start = broadcast(builder, load(builder, real, builder.add(bias, step)), vector)
                for cell in row:
                    builder.store(start, cell)
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

        is_one = builder.icmp_signed("!=", one, constant(0))
        for vectors in range(1, COLUMNS + 1):
            fits = builder.icmp_signed("==", count, constant(vectors))
            with builder.if_then(fits), builder.if_else(is_one) as (single, several):
                with single:
                    emit(1, vectors)
                with several:
                    emit(ROWS, vectors)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 12), generate


@compiled
def generate_weight(job: Any, zero: Any, tile: int, n: int, g: int, first: int, count: int) -> None:
    """tile [K*K, positions] = bias + span @ hidden, for so many positions from the first on."""
    size, taps = bytes_of(zero), job.K * job.K
    lanes = VECTOR_BYTES // size
    span, bias = job.span + g * taps * job.span_row, job.bias + g * taps * job.bias_step
    hidden = job.hidden + n * job.hidden_n + first * size
    vectors, done = -(-count // lanes), 0
    step = ROWS if taps >= ROWS else 1
    while done < vectors:
        # Never one vector alone at the end, if two tiles of two can share what is left.
        left = vectors - done
        width = left if left <= COLUMNS else min(COLUMNS, left - 2 if left <= COLUMNS + 1 else COLUMNS)
        for begin in range(0, taps, step):
            tap = min(begin, taps - step)
            matmul_tile(
                zero, step == 1, width, span + tap * job.span_row, job.span_row, size,
                hidden + done * VECTOR_BYTES, job.hidden_step, job.r, bias + tap * job.bias_step, job.bias_step,
                tile + done * VECTOR_BYTES + tap * job.tile_step, job.tile_step,
            )  # fmt: skip
        done += width
