"""Sums of neighbouring numbers, and of parts that threads have summed apart, each in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.simd import FLAGS, count_to, each_number, load, real_of, store, vector_of
from invbench.ops.numba_cpu.tiles import cells_of

# What is summed for each number: kind of what is met (number or vector), offset in bytes -> values.
Body = Callable[[Any, Any], list[Any]]


def sums(builder: Any, zero: Any, count: Any, wanted: int, body: Body) -> list[Any]:
    """So many sums, over neighbouring numbers, of what body returns for each."""
    kinds = vector_of(zero), real_of(zero)
    cells = {kind: cells_of(builder, kind, 1, wanted)[0] for kind in kinds}
    for kind, offset in each_number(builder, zero, count):
        for cell, value in zip(cells[kind], body(kind, offset), strict=True):
            builder.store(builder.fadd(builder.load(cell), value, flags=FLAGS), cell)
    pairs = zip(*cells.values(), strict=True)
    return [builder.fadd(_over_lanes(builder, builder.load(v)), builder.load(r), flags=FLAGS) for v, r in pairs]


def _over_lanes(builder: Any, vector: Any) -> Any:
    lanes = [builder.extract_element(vector, ir.Constant(ir.IntType(32), lane)) for lane in range(vector.type.count)]
    while len(lanes) > 1:
        lanes = [builder.fadd(left, right) for left, right in zip(lanes[::2], lanes[1::2], strict=True)]
    return lanes[0]


@intrinsic
def total_of(typing_context: Any, zero: Any, address: Any, count: Any) -> Any:
    """The sum of so many neighbouring numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, address, count = arguments

        def body(kind: Any, offset: Any) -> list[Any]:
            return [load(builder, kind, builder.add(address, offset))]

        return sums(builder, zero, count, 1, body)[0]

    return zero(zero, types.int64, types.int64), generate


@intrinsic
def add_parts(typing_context: Any, zero: Any, target: Any, count: Any, source: Any, parts: Any, part_step: Any) -> Any:
    """target = the sum of so many parts, part_step bytes apart, for each of so many neighbouring numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, count, source, parts, part_step = arguments
        for kind, offset in each_number(builder, zero, count):
            cell = cells_of(builder, kind, 1, 1)[0][0]
            with count_to(builder, parts) as part:
                at = builder.add(builder.add(source, offset), builder.mul(part.index, part_step))
                builder.store(builder.fadd(builder.load(cell), load(builder, kind, at)), cell)
            store(builder, builder.load(cell), builder.add(target, offset))
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 5), generate
