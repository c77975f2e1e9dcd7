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


# Values of 16 bits are kept from one trip of a loop to the next as such pairs: by themselves, each would be moved to
# and from the half of a register.


@triton.jit
def pairs_of(values):
    """Neighbours of values [B, M, 2 * P] in 16 bits, two in 32 bits: [B, M, P]."""
    bits = values.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(bits, [values.shape[0], values.shape[1], values.shape[2] // 2, 2]))
    return low | (high << 16)


@triton.jit
def halves_of(pairs, DTYPE: tl.constexpr):
    """The values [B, M, 2 * P] in DTYPE of pairs [B, M, P]."""
    low = (pairs & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return tl.reshape(tl.join(low, high), [pairs.shape[0], pairs.shape[1], 2 * pairs.shape[2]])


# Compilers make each lane hold neighbouring numbers of a matrix product's rows, four where these were joined of halves.
# Columns of a band are therefore in an order in which those four are what the lane has made: of each 16, columns 0, 1,
# 8 and 9, then 2, 3, 10 and 11. No pair has to move to another lane.


@triton.jit
def band_columns(Q: tl.constexpr):
    """The columns of a band in the order in which ``band_of`` makes them: [Q]."""
    k = tl.arange(0, Q)
    return k // 16 * 16 + k // 2 % 2 * 8 + k % 16 // 4 * 2 + k % 2


@triton.jit
def band_of(taps, shift, odd, Q: tl.constexpr, DTYPE: tl.constexpr, stretch=0, STRETCH: tl.constexpr = False):
    """The band [B, M, Q] in DTYPE (16 bits) of taps [B, M, SLOTS]; tap v of row m in column 2*shift[m] + odd[m] + v.

    Its columns are ordered as ``band_columns`` says.

    shift: [M], pairs, any; odd: [M], 0 or 1. Columns outside the band's Q are dropped; with STRETCH, those
    outside the SLOTS columns of the row's stretch [M], too. Taps from K on are zero, and K < SLOTS.
    """
    B: tl.constexpr = taps.shape[0]
    M: tl.constexpr = taps.shape[1]
    PAIRS: tl.constexpr = taps.shape[2] // 2
    pairs = pairs_of(taps.to(DTYPE))  # [B, M, PAIRS]
    source = (tl.arange(0, PAIRS)[None, :] - shift[:, None]) & (PAIRS - 1)
    source = tl.broadcast_to(tl.expand_dims(source, 0), [B, M, PAIRS])
    rotated = tl.gather(pairs, source, 2)
    before = tl.gather(pairs, (source - 1) & (PAIRS - 1), 2)
    by_one_tap = (rotated << 16) | ((before >> 16) & 0xFFFF)
    rotated = tl.where(odd[None, :, None] != 0, by_one_tap, rotated)
    # Pair 8*e + 4*f + g of the band, [Q // 16, 4, 2] by e, g and f, is pair 4*f + g of the taps, or pair g.
    if PAIRS == 4:
        rotated = rotated[:, :, None, :, None]
    else:
        rotated = tl.permute(tl.reshape(rotated, [B, M, 2, 4]), [0, 1, 3, 2])[:, :, None, :, :]
    pair = (
        tl.arange(0, Q // 16)[:, None, None] * 8 + tl.arange(0, 4)[None, :, None] + tl.arange(0, 2)[None, None, :] * 4
    )
    behind = pair[None, :, :, :] - shift[:, None, None, None]  # [M, Q // 16, 4, 2]
    here = (behind >= 0) & (behind < PAIRS)
    if STRETCH:
        here = here & (stretch[:, None, None, None] == (pair // PAIRS)[None, :, :, :])
    return halves_of(tl.reshape(tl.where(tl.expand_dims(here, 0), rotated, 0), [B, M, Q // 2]), DTYPE)


@triton.jit
def taps_of(band, shift, odd, K: tl.constexpr, SLOTS: tl.constexpr, DTYPE: tl.constexpr):
    """The taps [B, M, SLOTS] in DTYPE (16 bits) of a matrix [B, M, Q] in float32: its band, zero from tap K on.

    The inverse of ``band_of``, of a band that lies inside the Q columns, these in their natural order.
    """
    B: tl.constexpr = band.shape[0]
    M: tl.constexpr = band.shape[1]
    Q: tl.constexpr = band.shape[2]
    PAIRS: tl.constexpr = SLOTS // 2
    STRETCHES: tl.constexpr = Q // SLOTS
    pairs = tl.reshape(pairs_of(band.to(DTYPE)), [B, M, STRETCHES, PAIRS])
    pair = tl.arange(0, STRETCHES)[:, None] * PAIRS + tl.arange(0, PAIRS)[None, :]
    behind = pair[None, :, :] - shift[:, None, None]  # [M, STRETCHES, PAIRS]
    here = (behind >= 0) & (behind < PAIRS)
    # All but one are zeros: a sum that cannot overflow.
    pairs = tl.sum(tl.where(tl.expand_dims(here, 0), pairs, 0), 2)  # [B, M, PAIRS]
    lane = tl.arange(0, PAIRS)
    source = (lane[None, :] + shift[:, None]) & (PAIRS - 1)
    source = tl.broadcast_to(tl.expand_dims(source, 0), [B, M, PAIRS])
    rotated = tl.gather(pairs, source, 2)
    after = tl.gather(pairs, (source + 1) & (PAIRS - 1), 2)
    by_one_tap = ((rotated >> 16) & 0xFFFF) | (after << 16)
    rotated = tl.where(odd[None, :, None] != 0, by_one_tap, rotated)
    below_K = tl.where(2 * lane + 1 < K, -1, tl.where(2 * lane < K, 0xFFFF, 0))
    return halves_of(rotated & below_K[None, None, :], DTYPE)
