"""The banded product: an aggregate over one window row as a matrix product.

Of M positions of a row, each has a weight for each of K neighbouring columns, one column further right than its
neighbour's. Written into one matrix [M, Q] over all Q columns that any of them reads, the weights are a band, zero
elsewhere, and the sum over the window's row is ``band @ x`` with x [Q, channels]: work for the matrix units, and each
x is read once for all positions.

Making the band is a matter of shifting each row of taps by its position. Taps are shifted in pairs that share a
register of 32 bits: a row moves by whole pairs if its position is an even number of columns from the first one, so that
positions are taken in an order where a row's ``shift`` counts pairs, and rows at ``odd`` columns move by one tap more.
Taps of a row lie in ``SLOTS`` columns, a power of two above K: the empty slot at the end is what an odd row moves into.
Shifting a row is then a rotation among the few lanes of a warp that hold it, and where a lane's pair belongs is known
before any weight is: in exactly one of the band's stretches of SLOTS columns.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, EXACT: tl.constexpr):
    """acc + a @ b, acc in float32; EXACT where Triton's interpreter runs, which multiplies the bits of bfloat16."""
    if EXACT:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32))
    return tl.dot(a, b, acc=acc)


@triton.jit
def _stretch(shift, PAIRS: tl.constexpr):
    """Which stretch of the band each pair of a row lies in: [M, PAIRS], from shift [M], above -64 * PAIRS."""
    lane = tl.arange(0, PAIRS)
    # Division truncates, so what is divided must not be negative.
    return (shift[:, None] - lane[None, :] + (65 * PAIRS - 1)) // PAIRS - 64


@triton.jit
def band_of(taps, shift, odd, Q: tl.constexpr, DTYPE: tl.constexpr, stretch=0, STRETCH: tl.constexpr = False):
    """The band [B, M, Q] in DTYPE (16 bits) of taps [B, M, SLOTS]; tap v of row m in column 2*shift[m] + odd[m] + v.

    shift: [M], pairs, may be negative; odd: [M], 0 or 1. Columns outside the band's Q are dropped; with STRETCH, those
    outside the SLOTS columns of the row's stretch [M], too. Taps from K on are zero, and K < SLOTS.
    """
    B: tl.constexpr = taps.shape[0]
    M: tl.constexpr = taps.shape[1]
    PAIRS: tl.constexpr = taps.shape[2] // 2
    STRETCHES: tl.constexpr = Q // (2 * PAIRS)
    bits = taps.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(bits, [B, M, PAIRS, 2]))
    pairs = low | (high << 16)  # [B, M, PAIRS]
    source = (tl.arange(0, PAIRS)[None, :] - shift[:, None]) & (PAIRS - 1)
    source = tl.broadcast_to(tl.expand_dims(source, 0), [B, M, PAIRS])
    rotated = tl.gather(pairs, source, 2)
    before = tl.gather(pairs, (source - 1) & (PAIRS - 1), 2)
    by_one_tap = (rotated << 16) | ((before >> 16) & 0xFFFF)
    rotated = tl.where(odd[None, :, None] != 0, by_one_tap, rotated)
    here = _stretch(shift, PAIRS)[:, None, :] == tl.arange(0, STRETCHES)[None, :, None]  # [M, STRETCHES, PAIRS]
    if STRETCH:
        here = here & (stretch[:, None, None] == tl.arange(0, STRETCHES)[None, :, None])
    band = tl.where(tl.expand_dims(here, 0), rotated[:, :, None, :], 0)
    band = tl.reshape(band, [B, M, Q // 2])
    low = (band & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    high = (band >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return tl.reshape(tl.join(low, high), [B, M, Q])


@triton.jit
def taps_of(band, shift, odd, K: tl.constexpr, SLOTS: tl.constexpr, DTYPE: tl.constexpr):
    """The taps [B, M, SLOTS] in DTYPE (16 bits) of a matrix [B, M, Q] in float32: its band, zero from tap K on.

    The inverse of ``band_of``, of a band that lies inside the Q columns.
    """
    B: tl.constexpr = band.shape[0]
    M: tl.constexpr = band.shape[1]
    Q: tl.constexpr = band.shape[2]
    PAIRS: tl.constexpr = SLOTS // 2
    STRETCHES: tl.constexpr = Q // SLOTS
    bits = band.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(bits, [B, M, STRETCHES, PAIRS, 2]))
    pairs = low | (high << 16)  # [B, M, STRETCHES, PAIRS]
    here = _stretch(shift, PAIRS)[:, None, :] == tl.arange(0, STRETCHES)[None, :, None]
    # All but one are zeros: a sum that cannot overflow.
    pairs = tl.sum(tl.where(tl.expand_dims(here, 0), pairs, 0), 2)  # [B, M, PAIRS]
    lane = tl.arange(0, PAIRS)
    source = (lane[None, :] + shift[:, None]) & (PAIRS - 1)
    source = tl.broadcast_to(tl.expand_dims(source, 0), [B, M, PAIRS])
    rotated = tl.gather(pairs, source, 2)
    after = tl.gather(pairs, (source + 1) & (PAIRS - 1), 2)
    by_one_tap = ((rotated >> 16) & 0xFFFF) | (after << 16)
    rotated = tl.where(odd[None, :, None] != 0, by_one_tap, rotated)
    low_tap = tl.where(2 * lane < K, rotated & 0xFFFF, 0)
    high_tap = tl.where(2 * lane + 1 < K, rotated >> 16, 0)
    taps = tl.reshape(tl.join(low_tap, high_tap), [B, M, SLOTS])
    return taps.to(tl.int16).to(DTYPE, bitcast=True)
