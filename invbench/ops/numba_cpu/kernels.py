"""The kernels of the Numba backend; see the package for the equations and the loop nests.

All code that a kernel is made of is in this file, because Numba renews its cache when the kernel's own file changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

# Channels of one unit, and the most an inner loop over channels can run: a bound that lets LLVM pick a vector width.
LANES = 16
# Columns of one tile: with LANES channels its sums stay in the first-level cache.
COLUMNS = 64
# Rows of one strip: each source row is packed once for up to so many rows of the result.
ROWS = 4

Flat = npt.NDArray[Any]
Steps = tuple[int, ...]

# No nnan and no ninf: those would let LLVM assume NaN and infinity away.
OPTIONS = {"fastmath": {"contract", "reassoc", "nsz"}, "error_model": "numpy", "nogil": True}


# --- Elements: how a number lies in memory, and in which type it is summed ---


def _summed_as(element: Any) -> Any:
    """Numba's type of the sums for an element type: int16 holds a float16's bits, uint16 a bfloat16's."""
    return types.float32 if element in (types.int16, types.uint16) else element


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


_FROM_BITS = {types.int16: _single_from_half, types.uint16: _single_from_bfloat}
_TO_BITS = {types.int16: _half_from_single, types.uint16: _bfloat_from_single}


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


# Numba's own indexing first asks whether an index counts from the end, which keeps LLVM from vectorising a loop whose
# index it cannot prove to be positive; these two go to memory directly.
@intrinsic
def _load(typing_context: Any, flat: Any, index: Any) -> Any:
    """flat[index] in the type it is summed in."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_address(context, builder, signature.args[0], *arguments))
        convert = _FROM_BITS.get(signature.args[0].dtype)
        return convert(builder, value) if convert else value

    return _summed_as(flat.dtype)(flat, types.int64), generate


@intrinsic
def _store(typing_context: Any, flat: Any, index: Any, value: Any) -> Any:
    """flat[index] = value, rounded to nearest."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, value = arguments
        convert = _TO_BITS.get(signature.args[0].dtype)
        builder.store(
            convert(builder, value) if convert else value,
            _address(context, builder, signature.args[0], array, index),
        )
        return context.get_dummy_value()

    return types.void(flat, types.int64, _summed_as(flat.dtype)), generate


def _scratch(flat: Flat, size: int) -> Flat:
    """An uninitialised array of the type in which the elements of flat are summed."""
    raise NotImplementedError("inside kernels only")


@overload(_scratch, inline="always")
def _(flat: Any, size: Any) -> Callable[[Any, Any], Flat]:
    dtype = np.float64 if flat.dtype == types.float64 else np.float32

    def allocate(flat: Any, size: Any) -> Flat:
        return np.empty(size, dtype)

    return allocate


# --- Kernels ---


@numba.njit(forceinline=True, **OPTIONS)
def _reach(offset: int, stride: int, size: int, start: int, stop: int) -> tuple[int, int]:
    """The part of range(start, stop) whose j have 0 <= stride*j + offset < size; the two may have crossed."""
    return max(start, -(offset // stride)), min(stop, (size - 1 - offset) // stride + 1)


@numba.njit(forceinline=True, **OPTIONS)
def _whole_lanes(size: int) -> int:
    """The least multiple of LANES that is not below size."""
    return -(-size // LANES) * LANES


@numba.njit(forceinline=True, **OPTIONS)
def _clear(flat: Flat, start: int, stop: int) -> None:
    for index in range(start, stop):
        _store(flat, index, 0.0)


@numba.njit(forceinline=True, **OPTIONS)
def _pack(packed: Flat, start: int, flat: Flat, base: int, step: int, size: int) -> None:
    """packed[start + m] = flat[base + step*m]: the unit step apart, because only that can be vectorised."""
    if step == 1:
        for m in range(size):
            _store(packed, start + m, _load(flat, base + m))
    else:
        for m in range(size):
            _store(packed, start + m, _load(flat, base + step * m))


@numba.njit(forceinline=True, **OPTIONS)
def _add_products(
    sums: Flat, at: int, sums_steps: Steps, left: Flat, left_at: int, left_steps: Steps,
    right: Flat, right_at: int, right_steps: Steps, channels: int, size: int,
) -> None:  # fmt: skip
    """sums[c, m] += left[c, m] * right[c, m] for each m of range(size), and beyond it up to a multiple of LANES: a
    vector at a time, without scalar iterations for a rest. Each array has steps for c and m; that of left is 1."""
    unit_steps = sums_steps[1] == 1 and right_steps[1] == 1
    for begin in range(0, size, LANES):
        lanes = min(LANES, _whole_lanes(size) - begin)  # always LANES, which LLVM would unroll into scalars
        for c in range(channels):
            a = at + c * sums_steps[0] + begin * sums_steps[1]
            b = left_at + c * left_steps[0] + begin
            d = right_at + c * right_steps[0] + begin * right_steps[1]
            if unit_steps:
                for m in range(lanes):
                    _store(sums, a + m, _load(sums, a + m) + _load(left, b + m) * _load(right, d + m))
            else:
                for m in range(lanes):
                    product = _load(left, b + m) * _load(right, d + m * right_steps[1])
                    _store(sums, a + m * sums_steps[1], _load(sums, a + m * sums_steps[1]) + product)


@numba.njit(forceinline=True, **OPTIONS)
def _met(
    first: int, last: int, size: int, K: int, stride: int, dilation: int, padding: int, transposed: bool
) -> tuple[int, int]:
    """The rows (or columns) of the source, of which there are size, that windows meet for range(first, last) of the
    result."""
    beyond = dilation * (K - 1) - padding
    if transposed:
        return max(0, -((beyond - first) // stride)), min(size, (last - 1 + padding) // stride + 1)
    return max(0, stride * first - padding), min(size, stride * (last - 1) + beyond + 1)


@numba.njit(forceinline=True, **OPTIONS)
def _pack_rows(packed: Flat, width: int, flat: Flat, base: int, steps: Steps, channels: int, columns: int) -> None:
    """packed [channels, width] from a row of flat that begins at base, has so many columns and steps for [N, C, H, W];
    zeros after them, where whole vectors read beyond the image."""
    for c in range(channels):
        _pack(packed, c * width, flat, base + c * steps[1], steps[3], columns)
        _clear(packed, c * width + columns, (c + 1) * width)


@numba.njit(forceinline=True, **OPTIONS)
def _unpack(flat: Flat, base: int, step: int, sums: Flat, start: int, size: int) -> None:
    """flat[base + step*m] = sums[start + m]"""
    if step == 1:
        for m in range(size):
            _store(flat, base + m, _load(sums, start + m))
    else:
        for m in range(size):
            _store(flat, base + step * m, _load(sums, start + m))


def aggregate_by_channels(
    source: Flat, weight: Flat, result: Flat,
    source_steps: Steps, weight_steps: Steps, result_steps: Steps, geometry: Steps, transposed: bool,
) -> None:  # fmt: skip
    """y from x, or transposed: grad_x from grad_y. The source's channels have the memory step 1."""
    N, C, G, H, W, H_out, W_out, K, stride, dilation, padding = geometry
    rows, columns = (H, W) if transposed else (H_out, W_out)
    group_channels = C // G
    blocks = -(-group_channels // LANES)  # of a group
    for index in numba.prange(N * rows * G * blocks):
        unit: Any = np.int64(index)  # Numba counts in uint64, and its quotient by an int64 is a float64
        row, block = unit // (G * blocks) % rows, unit % (G * blocks)
        n, g = unit // (G * blocks) // rows, block // blocks
        first = block % blocks * LANES  # of the unit's channels in its group
        channels = min(LANES, group_channels - first)
        first += g * group_channels
        sums = _scratch(source, COLUMNS * LANES)  # [COLUMNS, LANES]
        for left in range(0, columns, COLUMNS):
            right = min(left + COLUMNS, columns)
            _clear(sums, 0, COLUMNS * LANES)
            for u in range(K):
                shift = dilation * u - padding
                i, h = (row - shift) // stride if transposed else row, row if transposed else stride * row + shift
                if not (0 <= i < H_out and 0 <= h < H and h == stride * i + shift):
                    continue
                weight_row = n * weight_steps[0] + g * weight_steps[1] + i * weight_steps[3]
                source_row = n * source_steps[0] + first + (i if transposed else h) * source_steps[2]
                for v in range(K):
                    offset = dilation * v - padding
                    if transposed:
                        start, stop = _reach(offset - left, stride, right - left, 0, W_out)
                    else:
                        start, stop = _reach(offset, stride, W, left, right)
                    weight_tap = weight_row + (u * K + v) * weight_steps[2]
                    for j in range(start, stop):
                        q = stride * j + offset
                        tap = _load(weight, weight_tap + j * weight_steps[4])
                        at = ((q if transposed else j) - left) * LANES
                        pixel = source_row + (j if transposed else q) * source_steps[3]
                        for c in range(min(channels, LANES)):
                            _store(sums, at + c, _load(sums, at + c) + tap * _load(source, pixel + c))
            result_row = n * result_steps[0] + first * result_steps[1] + row * result_steps[2]
            for column in range(left, right):
                pixel = result_row + column * result_steps[3]
                for c in range(channels):
                    _store(result, pixel + c * result_steps[1], _load(sums, (column - left) * LANES + c))


def aggregate_by_columns(
    source: Flat, weight: Flat, result: Flat,
    source_steps: Steps, weight_steps: Steps, result_steps: Steps, geometry: Steps, transposed: bool,
) -> None:  # fmt: skip
    """y from x, or transposed: grad_x from grad_y, for any memory steps."""
    N, C, G, H, W, H_out, W_out, K, stride, dilation, padding = geometry
    rows, columns = (H, W) if transposed else (H_out, W_out)
    source_rows, source_columns = (H_out, W_out) if transposed else (H, W)
    group_channels = C // G
    blocks, strips = -(-group_channels // LANES), -(-rows // ROWS)
    # Widths of a row of sums and of a packed row, with room for the vector that begins with the last column.
    step, source_step = (stride, 1) if transposed else (1, stride)
    width = COLUMNS + step * LANES
    source_width = min(source_columns, stride * COLUMNS + dilation * (K - 1)) + source_step * LANES
    for index in numba.prange(N * G * blocks * strips):
        unit: Any = np.int64(index)  # Numba counts in uint64, and its quotient by an int64 is a float64
        top = unit % strips * ROWS
        bottom = min(top + ROWS, rows)
        block = unit // strips % (G * blocks)
        n, g = unit // strips // (G * blocks), block // blocks
        first = block % blocks * LANES  # of the unit's channels in its group
        channels = min(LANES, group_channels - first)
        first += g * group_channels
        sums = _scratch(source, ROWS * LANES * width)  # [ROWS, LANES, width]
        packed = _scratch(source, LANES * source_width)  # [LANES, source_width], one row of the source
        taps = _scratch(source, COLUMNS + LANES)
        source_top, source_bottom = _met(top, bottom, source_rows, K, stride, dilation, padding, transposed)
        for left in range(0, columns, COLUMNS):
            right = min(left + COLUMNS, columns)
            source_left, source_right = _met(left, right, source_columns, K, stride, dilation, padding, transposed)
            _clear(sums, 0, sums.size)
            for source_row in range(source_top, source_bottom):
                is_packed = False
                for row in range(top, bottom):
                    i, h = (source_row, row) if transposed else (row, source_row)
                    u = (h + padding - stride * i) // dilation
                    if not (0 <= u < K and dilation * u == h + padding - stride * i):
                        continue
                    if not is_packed:
                        is_packed = True
                        base = n * source_steps[0] + first * source_steps[1] + source_row * source_steps[2]
                        base += source_left * source_steps[3]
                        _pack_rows(
                            packed, source_width, source, base, source_steps, channels, source_right - source_left
                        )
                    weight_row = n * weight_steps[0] + g * weight_steps[1] + i * weight_steps[3]
                    for v in range(K):
                        offset = dilation * v - padding
                        if transposed:
                            start, stop = _reach(offset - left, stride, right - left, 0, W_out)
                        else:
                            start, stop = _reach(offset, stride, W, left, right)
                        size = stop - start
                        if size <= 0:
                            continue
                        base = weight_row + (u * K + v) * weight_steps[2] + start * weight_steps[4]
                        _pack(taps, 0, weight, base, weight_steps[4], size)
                        _clear(taps, size, _whole_lanes(size))
                        q = stride * start + offset
                        at = (row - top) * LANES * width + (q if transposed else start) - left
                        source_at = (start if transposed else q) - source_left
                        _add_products(
                            sums, at, (width, step), taps, 0, (0, 1),
                            packed, source_at, (source_width, source_step), channels, size,
                        )  # fmt: skip
            for row in range(top, bottom):
                base = n * result_steps[0] + first * result_steps[1] + row * result_steps[2] + left * result_steps[3]
                for c in range(channels):
                    at = ((row - top) * LANES + c) * width
                    _unpack(result, base + c * result_steps[1], result_steps[3], sums, at, right - left)


def weight_by_columns(
    grad_y: Flat, x: Flat, result: Flat,
    grad_steps: Steps, x_steps: Steps, result_steps: Steps, geometry: Steps,
) -> None:  # fmt: skip
    """grad_weight from grad_y and x, for any memory steps."""
    N, C, G, H, W, H_out, W_out, K, stride, dilation, padding = geometry
    channels, strips = C // G, -(-H_out // ROWS)
    # Widths of a row of sums and of a packed row, with room for the vector that begins with the last column.
    width = COLUMNS + LANES
    x_width = min(W, stride * COLUMNS + dilation * (K - 1)) + stride * LANES
    for index in numba.prange(N * G * strips):
        unit: Any = np.int64(index)  # Numba counts in uint64, and its quotient by an int64 is a float64
        n, g = unit // strips // G, unit // strips % G
        top = unit % strips * ROWS
        bottom = min(top + ROWS, H_out)
        packed_grads = _scratch(x, ROWS * channels * width)  # [ROWS, C/G, width]
        packed = _scratch(x, channels * x_width)  # [C/G, x_width], one row of x
        sums = _scratch(x, width)
        x_top, x_bottom = _met(top, bottom, H, K, stride, dilation, padding, False)
        for left in range(0, W_out, COLUMNS):
            right = min(left + COLUMNS, W_out)
            x_left, x_right = _met(left, right, W, K, stride, dilation, padding, False)
            for i in range(top, bottom):
                base = n * grad_steps[0] + g * channels * grad_steps[1] + i * grad_steps[2] + left * grad_steps[3]
                grads = packed_grads[(i - top) * channels * width :]
                _pack_rows(grads, width, grad_y, base, grad_steps, channels, right - left)
            _clear(sums, 0, sums.size)
            for i in range(top, bottom):
                for u in range(K):
                    if not 0 <= stride * i + dilation * u - padding < H:
                        base = n * result_steps[0] + g * result_steps[1] + i * result_steps[3] + left * result_steps[4]
                        for tap in range(u * K, (u + 1) * K):
                            _unpack(result, base + tap * result_steps[2], result_steps[4], sums, 0, right - left)
            for h in range(x_top, x_bottom):
                is_packed = False
                for i in range(top, bottom):
                    u = (h + padding - stride * i) // dilation
                    if not (0 <= u < K and dilation * u == h + padding - stride * i):
                        continue
                    if not is_packed:
                        is_packed = True
                        base = n * x_steps[0] + g * channels * x_steps[1] + h * x_steps[2] + x_left * x_steps[3]
                        _pack_rows(packed, x_width, x, base, x_steps, channels, x_right - x_left)
                    for v in range(K):
                        offset = dilation * v - padding
                        start, stop = _reach(offset, stride, W, left, right)
                        _clear(sums, 0, sums.size)
                        at = (i - top) * channels * width + start - left
                        x_at = stride * start + offset - x_left
                        _add_products(
                            sums, start - left, (0, 1), packed_grads, at, (width, 1),
                            packed, x_at, (x_width, stride), channels, stop - start,
                        )  # fmt: skip
                        _clear(sums, max(start, stop) - left, right - left)
                        base = n * result_steps[0] + g * result_steps[1] + i * result_steps[3] + left * result_steps[4]
                        base += (u * K + v) * result_steps[2]
                        _unpack(result, base, result_steps[4], sums, 0, right - left)
