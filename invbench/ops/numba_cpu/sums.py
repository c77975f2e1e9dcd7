"""Sums over the lanes of several vectors at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from invbench.ops.numba_cpu.simd import FLAGS, shuffle


def pieces(count: int, neighbours: bool) -> Iterator[list[int]]:
    """range(count) in runs that can be stored at once: as long as powers of two for neighbours in memory, else 1."""
    start = 0
    while start < count:
        length = 1 << ((count - start).bit_length() - 1) if neighbours else 1
        yield list(range(start, start + length))
        start += length


def sums_over_lanes(builder: Any, vectors: list[Any], size: int) -> Iterator[tuple[Any, int]]:
    """The sum over the lanes of each vector: (vector of sums, how many of its lanes count), in order.

    Pairs of vectors are merged, half of the lanes of each: n - 1 merges instead of n sums of all lanes. The merges
    first stay inside blocks of 16 bytes, within which x86 shuffles cheaply.
    """
    lanes, block = vectors[0].type.count, 16 // size
    most = max(block, min(lanes, 1 << (len(vectors) - 1).bit_length()))
    for start in range(0, len(vectors), most):
        chosen = vectors[start : start + most]
        count = len(chosen)
        chosen += [ir.Constant(vectors[0].type, None)] * (most - count)
        merged = 1
        while merged < block:
            lower = [base + part * lanes + at for base, part, at in _interleaved(lanes, block, merged, 0)]
            upper = [base + part * lanes + at for base, part, at in _interleaved(lanes, block, merged, block // 2)]
            chosen = [_merge(builder, *pair, lower, upper) for pair in zip(chosen[::2], chosen[1::2], strict=True)]
            merged *= 2
        parts = 1  # of a vector, each of which holds the blocks of one set of sums
        while parts < lanes // block:
            length = lanes // parts
            firsts = [part * length + at for part in range(parts) for at in range(length // 2)]
            seconds = [at + length // 2 for at in firsts]
            if len(chosen) > 1:
                firsts += [at + lanes for at in firsts]
                seconds += [at + lanes for at in seconds]
                chosen = [
                    _merge(builder, *pair, firsts, seconds) for pair in zip(chosen[::2], chosen[1::2], strict=True)
                ]
                parts *= 2
            else:
                chosen = [_merge(builder, chosen[0], chosen[0], firsts, seconds)]
                lanes //= 2
        yield chosen[0], count
        lanes = vectors[0].type.count


def _interleaved(lanes: int, block: int, merged: int, offset: int) -> Iterator[tuple[int, int, int]]:
    """(block's first lane, which of the pair, lane in the block): half a block of each of a pair, in turns of so many
    lanes as have been merged."""
    for base in range(0, lanes, block):
        for turn in range(block // 2 // merged):
            for part in (0, 1):
                for lane in range(merged):
                    yield base, part, offset + turn * merged + lane


def _merge(builder: Any, left: Any, right: Any, firsts: list[int], seconds: list[int]) -> Any:
    first, second = shuffle(builder, left, right, firsts), shuffle(builder, left, right, seconds)
    return builder.fadd(first, second, flags=FLAGS)
