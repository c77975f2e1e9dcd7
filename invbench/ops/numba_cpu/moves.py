"""Numbers moved: copied and transposed by the largest pieces that fit, whole vectors or their halves and quarters."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.simd import (
    VECTOR_BYTES,
    constant,
    count_to,
    element_bytes,
    load,
    real_of,
    shuffle,
    store,
)


def _sides(zero: Any) -> list[int]:
    """Numbers of a vector, and of its half and quarter."""
    lanes = VECTOR_BYTES // element_bytes(zero)
    return [side for side in (lanes, lanes // 2, lanes // 4) if side > 1]


@intrinsic
def copy_numbers(typing_context: Any, zero: Any, target: Any, source: Any, count: Any) -> Any:
    """So many neighbouring numbers from one place to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, source, count = arguments
        size = element_bytes(zero)

        def copy(side: int, first: Any) -> None:
            kind = ir.VectorType(real_of(zero), side) if side > 1 else real_of(zero)
            offset = builder.mul(first, constant(size))
            store(builder, load(builder, kind, builder.add(source, offset)), builder.add(target, offset))

        # Of these branches one is taken, that of the largest pieces of which there is one; the last piece overlaps the
        # one before it.
        larger = count
        for side in (*_sides(zero), 1):
            fits = builder.and_(
                builder.icmp_signed(">=", count, constant(side)), builder.icmp_signed("<=", count, larger)
            )
            larger = constant(side - 1)
            with builder.if_then(fits):
                with count_to(builder, builder.sdiv(count, constant(side))) as index:
                    copy(side, builder.mul(index.index, constant(side)))
                copy(side, builder.sub(count, constant(side)))
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 3), generate


@intrinsic
def square_side(typing_context: Any, zero: Any, rows: Any, columns: Any) -> Any:
    """The side of the largest square for ``transpose`` of which so many rows and columns hold one; 0 if none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        least = builder.select(builder.icmp_signed("<", *arguments[1:]), *arguments[1:])
        largest = constant(0)
        for side in reversed(_sides(zero)):
            largest = builder.select(builder.icmp_signed(">=", least, constant(side)), constant(side), largest)
        return largest

    return types.int64(zero, types.int64, types.int64), generate


@intrinsic
def transpose(
    typing_context: Any, zero: Any, side: Any, target: Any, target_step: Any, source: Any, source_step: Any
) -> Any:
    """A square, transposed: so many rows, at the steps given from one to the next, of so many neighbouring numbers.
    side: one that ``square_side`` gives."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen, target, target_step, source, source_step = arguments[1:]

        def emit(side: int) -> None:
            vector = ir.VectorType(real_of(zero), side)
            rows = [
                load(builder, vector, builder.add(source, builder.mul(source_step, constant(row))))
                for row in range(side)
            ]
            # Each round exchanges blocks of half the size between rows that are this half apart.
            half = side // 2
            while half:
                order = [lane + (side - half if lane & half else 0) for lane in range(side)]
                lower = [lane + half if not lane & half else lane + side for lane in range(side)]
                for row in range(side):
                    if not row & half:
                        first, second = rows[row], rows[row + half]
                        rows[row] = shuffle(builder, first, second, order)
                        rows[row + half] = shuffle(builder, first, second, lower)
                half //= 2
            for row in range(side):
                store(builder, rows[row], builder.add(target, builder.mul(target_step, constant(row))))

        for side in _sides(zero):
            with builder.if_then(builder.icmp_signed("==", chosen, constant(side))):
                emit(side)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 5), generate
