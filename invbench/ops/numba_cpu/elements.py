"""Elements: how a number lies in memory, and reading and writing it in the type that is computed with."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from invbench.ops.numba_cpu.record import inlined
from invbench.ops.numba_cpu.simd import load, real_of, store

# How an element lies in memory: in the type that is computed with, or in 16 bits.
EXACT, FLOAT16, BFLOAT16 = range(3)


def _single_from_half(builder: Any, half: Any) -> Any:
    """float32 from the bits of a float16. Integer arithmetic, because LLVM's own conversion calls a function that
    Numba does not link where the processor lacks F16C."""
    bits = functools.partial(ir.Constant, ir.IntType(32))
    wide = builder.zext(half, ir.IntType(32))
    sign = builder.shl(builder.and_(wide, bits(0x8000)), bits(16))
    magnitude = builder.shl(builder.and_(wide, bits(0x7FFF)), bits(13))
    rebias = bits((127 - 15) << 23)
    normal = builder.add(magnitude, rebias)
    not_finite = builder.icmp_unsigned(">=", magnitude, bits(31 << 23))
    normal = builder.select(not_finite, builder.add(normal, rebias), normal)
    # A subnormal is its fraction without the implied one: put the one there and subtract its value, 2**-14.
    least_normal = bits((127 - 14) << 23)
    with_one = builder.bitcast(builder.add(magnitude, least_normal), ir.FloatType())
    without_one = builder.fsub(with_one, builder.bitcast(least_normal, ir.FloatType()))
    is_subnormal = builder.icmp_unsigned("<", magnitude, bits(1 << 23))
    result = builder.select(is_subnormal, builder.bitcast(without_one, ir.IntType(32)), normal)
    return builder.bitcast(builder.or_(result, sign), ir.FloatType())


def _half_from_single(builder: Any, single: Any) -> Any:
    """The bits of the float16 nearest to a float32, ties to even; NaN stays NaN."""
    bits = functools.partial(ir.Constant, ir.IntType(32))
    pattern = builder.bitcast(single, ir.IntType(32))
    sign = builder.and_(pattern, bits(0x80000000))
    magnitude = builder.xor(pattern, sign)
    odd = builder.and_(builder.lshr(magnitude, bits(13)), bits(1))
    rebased = builder.sub(magnitude, bits((127 - 15) << 23))
    rounded = builder.lshr(builder.add(builder.add(rebased, bits(0xFFF)), odd), bits(13))
    # Adding 0.5, whose last place is that of float16's subnormals, lets the addition round.
    half = ir.Constant(ir.FloatType(), 0.5)
    shifted = builder.bitcast(builder.fadd(builder.bitcast(magnitude, ir.FloatType()), half), ir.IntType(32))
    subnormal = builder.sub(shifted, builder.bitcast(half, ir.IntType(32)))
    is_subnormal = builder.icmp_unsigned("<", magnitude, bits((127 - 14) << 23))
    result = builder.select(is_subnormal, subnormal, rounded)
    is_too_large = builder.icmp_unsigned(">=", magnitude, bits((127 + 16) << 23))
    result = builder.select(is_too_large, bits(0x7C00), result)
    is_nan = builder.icmp_unsigned(">", magnitude, bits(0xFF << 23))
    result = builder.select(is_nan, bits(0x7E00), result)
    return builder.trunc(builder.or_(result, builder.lshr(sign, bits(16))), ir.IntType(16))


def _single_from_bfloat(builder: Any, bfloat: Any) -> Any:
    """float32 from the bits of a bfloat16, which are its upper half."""
    wide = builder.shl(builder.zext(bfloat, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
    return builder.bitcast(wide, ir.FloatType())


def _bfloat_from_single(builder: Any, single: Any) -> Any:
    """The bits of the bfloat16 nearest to a float32, ties to even; NaN stays NaN."""
    bits = functools.partial(ir.Constant, ir.IntType(32))
    pattern = builder.bitcast(single, ir.IntType(32))
    upper = builder.lshr(pattern, bits(16))
    odd = builder.and_(upper, bits(1))
    rounded = builder.lshr(builder.add(builder.add(pattern, bits(0x7FFF)), odd), bits(16))
    is_nan = builder.icmp_unsigned(">", builder.and_(pattern, bits(0x7FFFFFFF)), bits(0xFF << 23))
    result = builder.select(is_nan, builder.or_(upper, bits(0x40)), rounded)
    return builder.trunc(result, ir.IntType(16))


_FROM_BITS = {FLOAT16: _single_from_half, BFLOAT16: _single_from_bfloat}
_TO_BITS = {FLOAT16: _half_from_single, BFLOAT16: _bfloat_from_single}


@intrinsic(prefer_literal=True)
def read(typing_context: Any, element: Any, zero: Any, address: Any) -> Any:
    """The number at an address, in ``zero``'s type; element, a constant, says how it lies there."""
    code = element.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if code == EXACT:
            return load(builder, real_of(zero), arguments[2])
        single = _FROM_BITS[code](builder, load(builder, ir.IntType(16), arguments[2]))
        return builder.fpext(single, real_of(zero)) if zero == types.float64 else single

    zero = types.unliteral(zero)
    return zero(element, zero, types.int64), generate


@intrinsic(prefer_literal=True)
def write(typing_context: Any, element: Any, zero: Any, number: Any, address: Any) -> Any:
    """A number of ``zero``'s type to an address, rounded to nearest; element, a constant, says how it is to lie
    there."""
    code = element.literal_value
    zero = types.unliteral(zero)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = arguments[2]
        if code != EXACT:
            single = builder.fptrunc(number, ir.FloatType()) if zero == types.float64 else number
            number = _TO_BITS[code](builder, single)
        store(builder, number, arguments[3])
        return context.get_dummy_value()

    # Numba converts another number to the type that is named here.
    return types.void(element, zero, zero, types.int64), generate


@inlined
def read_any(zero: Any, element: int, address: int) -> Any:
    """The number at an address, in ``zero``'s type, whatever way it lies there."""
    if element == EXACT:
        return read(EXACT, zero, address)
    return read(FLOAT16, zero, address) if element == FLOAT16 else read(BFLOAT16, zero, address)
