"""Batch norm over rows of positions, with its rectifier, where gradients are wanted: forward and backward.

    mean = sum(raw) / M,  variance = sum((raw - mean)^2) / M            of each channel, M = N * H_out * W_out
    hidden = rectified(raw * factor + shift - mean * factor),  factor = scale / sqrt(variance + epsilon)

with the batch's statistics or with given ones. Sums over a row are made in pieces of ``PIECE`` positions, whose totals
are added in float64, so that no error grows with the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.elements import EXACT, read, read_any, write
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import (
    FLAGS,
    broadcast,
    bytes_of,
    constant,
    each_number,
    float_of,
    load,
    multiply_add,
    none_of,
    store,
)
from invbench.ops.numba_cpu.sums import sums, total_of

PIECE = 2048


@intrinsic
def _spread_of(typing_context: Any, zero: Any, address: Any, count: Any, mean: Any) -> Any:
    """The sum of (number - mean)^2 over so many neighbouring numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, address, count, mean = arguments

        def body(kind: Any, offset: Any) -> list[Any]:
            number = load(builder, kind, builder.add(address, offset))
            deviation = builder.fsub(number, broadcast(builder, mean, kind))
            return [builder.fmul(deviation, deviation, flags=FLAGS)]

        return sums(builder, zero, count, 1, body)[0]

    return zero(zero, types.int64, types.int64, zero), generate


@intrinsic
def _normalise_numbers(
    typing_context: Any, zero: Any, target: Any, source: Any, count: Any, factor: Any, addend: Any, rectifies: Any
) -> Any:
    """target = source * factor + addend, rectified if asked for; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, source, count, factor, addend, rectifies = arguments
        rectifies = builder.icmp_signed("!=", rectifies, constant(0))
        for kind, offset in each_number(builder, zero, count):
            number = load(builder, kind, builder.add(source, offset))
            number = multiply_add(builder, number, broadcast(builder, factor, kind), broadcast(builder, addend, kind))
            none = none_of(kind)
            rectified = builder.select(builder.fcmp_ordered("<", number, none), none, number)
            store(builder, builder.select(rectifies, rectified, number), builder.add(target, offset))
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 3, zero, zero, types.int64), generate


@intrinsic
def _mask_numbers(
    typing_context: Any, zero: Any, gradient: Any, hidden: Any, raw: Any, count: Any, mean: Any, rectifies: Any
) -> Any:
    """The gradient, zero where the rectifier was at work; returns its sum, and that of its products with raw - mean."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, gradient, hidden, raw, count, mean, rectifies = arguments
        keeps = builder.icmp_signed("==", rectifies, constant(0))

        def body(kind: Any, offset: Any) -> list[Any]:
            at = builder.add(gradient, offset)
            number, output = load(builder, kind, at), load(builder, kind, builder.add(hidden, offset))
            none = none_of(kind)
            masked = builder.select(builder.fcmp_ordered("<=", output, none), none, number)
            number = builder.select(keeps, number, masked)
            store(builder, number, at)
            deviation = builder.fsub(load(builder, kind, builder.add(raw, offset)), broadcast(builder, mean, kind))
            return [number, builder.fmul(number, deviation, flags=FLAGS)]

        return context.make_tuple(builder, signature.return_type, sums(builder, zero, count, 2, body))

    return types.UniTuple(zero, 2)(zero, *[types.int64] * 4, zero, types.int64), generate


@intrinsic
def _combine_numbers(
    typing_context: Any, zero: Any, target: Any, source: Any, count: Any, mean: Any, factor: Any, other: Any,
    addend: Any,
) -> Any:  # fmt: skip
    """target = target * factor + (source - mean) * other + addend."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, source, count, mean, factor, other, addend = arguments
        for kind, offset in each_number(builder, zero, count):
            first, second, rest = (broadcast(builder, number, kind) for number in (factor, other, addend))
            at = builder.add(target, offset)
            number = load(builder, kind, builder.add(source, offset))
            deviation = builder.fsub(number, broadcast(builder, mean, kind))
            rest = multiply_add(builder, deviation, second, rest)
            store(builder, multiply_add(builder, load(builder, kind, at), first, rest), at)
        return context.get_dummy_value()

    return types.void(zero, *[types.int64] * 3, zero, zero, zero, zero), generate


@inlined
def _affine(job: Any, zero: Any, k: int) -> tuple[Any, Any, Any]:
    """The mean of channel k, and the factor and addend that normalise it."""
    size = bytes_of(zero)
    mean = read(EXACT, zero, job.statistics + k * size)
    variance = read(EXACT, zero, job.statistics + (job.r + k) * size)
    scale = read_any(zero, job.norm_scale_element, job.norm_scale + k * job.norm_scale_r)
    shift = read_any(zero, job.norm_shift_element, job.norm_shift + k * job.norm_shift_r)
    factor = scale / np.sqrt(variance + float_of(zero, job.norm_epsilon))
    return mean, factor, shift - mean * factor


@compiled
def measure(job: Any, zero: Any, k: int) -> None:
    """The mean and variance of channel k of raw, unless they are given."""
    size, positions = bytes_of(zero), job.H_out * job.W_out
    if job.norm_mean:
        mean = read_any(zero, job.norm_mean_element, job.norm_mean + k * job.norm_mean_r)
        variance = read_any(zero, job.norm_variance_element, job.norm_variance + k * job.norm_variance_r)
    else:
        total = 0.0
        for n in range(job.N):
            row = job.raw + (n * job.r + k) * positions * size
            for first in range(0, positions, PIECE):
                total += total_of(zero, row + first * size, min(PIECE, positions - first))
        mean = total / (job.N * positions)
        spread = 0.0
        for n in range(job.N):
            row = job.raw + (n * job.r + k) * positions * size
            for first in range(0, positions, PIECE):
                spread += _spread_of(zero, row + first * size, min(PIECE, positions - first), mean)
        variance = spread / (job.N * positions)
    write(EXACT, zero, mean, job.statistics + k * size)
    write(EXACT, zero, variance, job.statistics + (job.r + k) * size)


@compiled
def normalise(job: Any, zero: Any, k: int) -> None:
    """Channel k of hidden, from raw and the statistics."""
    size, positions = bytes_of(zero), job.H_out * job.W_out
    _, factor, addend = _affine(job, zero, k)
    for n in range(job.N):
        row, to = job.raw + (n * job.r + k) * positions * size, job.hidden + n * job.hidden_n + k * job.hidden_step
        _normalise_numbers(zero, to, row, positions, factor, addend, job.rectifies)


@compiled
def norm_backward(job: Any, zero: Any, k: int) -> None:
    """Channel k of grad_raw, where the gradient of hidden is, and the gradients of the norm and of reduce's bias."""
    size, positions = bytes_of(zero), job.H_out * job.W_out
    mean, factor, _ = _affine(job, zero, k)
    total, product = 0.0, 0.0
    for n in range(job.N):
        row = (n * job.r + k) * positions * size
        hidden = job.hidden + n * job.hidden_n + k * job.hidden_step
        for first in range(0, positions, PIECE):
            count, offset = min(PIECE, positions - first), first * size
            gradient, raw = job.grad_raw + row + offset, job.raw + row + offset
            found = _mask_numbers(zero, gradient, hidden + offset, raw, count, mean, job.rectifies)
            total += found[0]
            product += found[1]
    variance = read(EXACT, zero, job.statistics + (job.r + k) * size)
    inverse = 1 / np.sqrt(np.float64(variance + float_of(zero, job.norm_epsilon)))
    for index, value in enumerate((product * inverse, total, factor * total if job.norm_mean else 0.0)):
        write(EXACT, zero, value, job.grad_norm + (index * job.r + k) * size)
    # Where the statistics are the batch's, they depend on raw, too.
    other = -factor * product * inverse * inverse / (job.N * positions)
    addend = -factor * total / (job.N * positions)
    for n in range(job.N):
        row = (n * job.r + k) * positions * size
        if job.norm_mean:
            _normalise_numbers(zero, job.grad_raw + row, job.grad_raw + row, positions, factor, 0.0, 0)
        else:
            _combine_numbers(zero, job.grad_raw + row, job.raw + row, positions, mean, factor, other, addend)
