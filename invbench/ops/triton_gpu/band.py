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
def pairs_of(values):
    """Neighbours of values [B, M, 2 * P] in 16 bits, two in 32 bits: [B, M, P]."""
    bits = values.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    low, high = tl.split(tl.reshape(bits, [values.shape[0], values.shape[1], values.shape[2] // 2, 2]))
    return low | (high << 16)


@triton.jit
def joined(low, high):
    """Two values in 16 bits each as one of 32."""
    low, high = low.to(tl.int16, bitcast=True).to(tl.int32), high.to(tl.int16, bitcast=True).to(tl.int32)
    return (low & 0xFFFF) | (high << 16)


@triton.jit
def rounded_pairs_of(values, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """``pairs_of`` values [B, M, 2 * P], rounded to DTYPE: [B, M, P].

    With PTX, those in float32 by the one instruction that rounds both and writes them side by side. Compilers find it
    for two values that are stored next to each other, not for two that are joined: those they round one by one, on a
    unit that takes a warp eight cycles.
    """
    if PTX and values.dtype == tl.float32:
        low, high = tl.split(tl.reshape(values, [values.shape[0], values.shape[1], values.shape[2] // 2, 2]))
        IS_HALF: tl.constexpr = DTYPE == tl.float16  # noqa: SIM300 -- a type is no constant
        ROUND: tl.constexpr = "cvt.rn.f16x2.f32 $0, $2, $1;" if IS_HALF else "cvt.rn.bf16x2.f32 $0, $2, $1;"
        return tl.inline_asm_elementwise(ROUND, "=r,f,f", [low, high], tl.int32, is_pure=True, pack=1)
    return pairs_of(values.to(DTYPE))


@triton.jit
def both_of(pairs, DTYPE: tl.constexpr):
    """The values in DTYPE of pairs [...]: [..., 2]."""
    low = (pairs & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    high = (pairs >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    return tl.join(low, high)


@triton.jit
def halves_of(pairs, DTYPE: tl.constexpr):
    """The values [B, M, 2 * P] in DTYPE of pairs [B, M, P]."""
    return tl.reshape(both_of(pairs, DTYPE), [pairs.shape[0], pairs.shape[1], 2 * pairs.shape[2]])


# A row of an image that several products take as their second matrix is kept as that matrix lies in the lanes of a
# warp: eight by four, each with pairs along what is summed over. Kept as it was loaded, it would go through shared
# memory for each of the products, and values of 16 bits in and out of the halves of registers. What pins the lanes is a
# gather that moves nothing: compilers lay one out along its last dimensions, and keep to that, where they otherwise
# prefer the layout of the load. The units come before these dimensions, so that each is a warp's.


@triton.jit
def kept_row(row, THIRDS: tl.constexpr):
    """The row [Q // 16, B, 16, 16] of 16 channels, in the order of ``band_columns``, as second matrix of a product that
    sums over columns, which ``row_of`` gives back; of THIRDS, three stretches of eight columns for ``two_of``."""
    E: tl.constexpr = row.shape[0]
    B: tl.constexpr = row.shape[1]
    low, high = tl.split(tl.permute(tl.reshape(row, [E, B, 4, 2, 2, 2, 8]), [0, 3, 5, 1, 6, 2, 4]))
    kept = pinned(joined(low, high))
    if THIRDS:
        begin, end = tl.split(tl.permute(kept, [1, 2, 3, 4, 5, 0]))
        first, second = tl.split(tl.permute(begin, [1, 2, 3, 4, 0]))
        third, _ = tl.split(tl.permute(end, [1, 2, 3, 4, 0]))
        kept = (first, second, third)
    return kept


@triton.jit
def row_of(kept, DTYPE: tl.constexpr):
    """The row [B, Q, 16] in DTYPE that ``kept_row`` keeps."""
    E: tl.constexpr = kept.shape[0]
    B: tl.constexpr = kept.shape[3]
    return tl.reshape(tl.permute(both_of(kept, DTYPE), [3, 0, 5, 1, 6, 2, 4]), [B, 16 * E, 16])


@triton.jit
def two_of(stretch, another, DTYPE: tl.constexpr):
    """Two stretches of rows that ``kept_row`` keeps as one matrix [B, 16, 16] in DTYPE."""
    B: tl.constexpr = stretch.shape[1]
    return tl.reshape(tl.permute(both_of(tl.join(stretch, another), DTYPE), [1, 3, 4, 5, 0, 2]), [B, 16, 16])


@triton.jit
def kept_row_transposed(row):
    """The row [Q // 16, B, 16, 16] of 16 channels as second matrix of a product that sums over channels, which
    ``transposed_row_of`` gives back."""
    E: tl.constexpr = row.shape[0]
    B: tl.constexpr = row.shape[1]
    low, high = tl.split(tl.permute(tl.reshape(row, [E, B, 2, 8, 4, 2, 2]), [0, 2, 5, 1, 3, 4, 6]))
    return pinned(joined(low, high))


@triton.jit
def transposed_row_of(kept, DTYPE: tl.constexpr):
    """The matrix [B, 16, Q] in DTYPE of the row that ``kept_row_transposed`` keeps."""
    E: tl.constexpr = kept.shape[0]
    B: tl.constexpr = kept.shape[3]
    return tl.reshape(tl.permute(both_of(kept, DTYPE), [3, 5, 2, 6, 0, 1, 4]), [B, 16, 16 * E])


@triton.jit
def pinned(pairs):
    """The pairs [E, 2, 2, B, 8, 4], unchanged, in the lanes that a gather has."""
    here = tl.arange(0, 4)[None, None, None, None, None, :]
    return tl.gather(pairs, tl.broadcast_to(here, pairs.shape), 5)


# Compilers make each lane hold neighbouring numbers of a matrix product's rows, four where these were joined of halves.
# Columns of a band are therefore in an order in which those four are what the lane has made: of each 16, columns 0, 1,
# 8 and 9, then 2, 3, 10 and 11. No pair has to move to another lane.


@triton.jit
def band_columns(Q: tl.constexpr):
    """The columns of a band in the order in which ``band_of`` makes them: [Q]."""
    k = tl.arange(0, Q)
    return k // 16 * 16 + k // 2 % 2 * 8 + k % 16 // 4 * 2 + k % 2


@triton.jit
def rotated_pairs_of(taps, shift, odd, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The pairs [B, M, SLOTS // 2] of taps [B, M, SLOTS] in DTYPE, each where its row's ``shift`` and ``odd`` put it in
    any of the band's stretches of SLOTS columns."""
    B: tl.constexpr = taps.shape[0]
    M: tl.constexpr = taps.shape[1]
    PAIRS: tl.constexpr = taps.shape[2] // 2
    # From a product, each unit is left to its warp; more rows than one tile of it has are not, in either way.
    if taps.dtype == tl.float32 or M > 16:
        pairs, shift, odd = rounded_pairs_of(taps, DTYPE, PTX), shift[None, :, None], odd[None, :, None]
        rotated = _rotated(pairs, tl.arange(0, PAIRS)[None, None, :], shift, odd, 2)
    else:  # loaded taps by eight rows and behind the units, so that a gather leaves these to their warps, too
        low, high = tl.split(tl.permute(tl.reshape(taps, [B, M // 8, 8, PAIRS, 2]), [1, 0, 2, 3, 4]))
        shift, odd = tl.reshape(shift, [M // 8, 1, 8, 1]), tl.reshape(odd, [M // 8, 1, 8, 1])
        rotated = _rotated(joined(low, high), tl.arange(0, PAIRS)[None, None, None, :], shift, odd, 3)
        rotated = tl.reshape(tl.permute(rotated, [1, 0, 2, 3]), [B, M, PAIRS])
    return rotated


@triton.jit
def _rotated(pairs, lane, shift, odd, AXIS: tl.constexpr):
    """Pairs rotated along their last axis, whose lanes are given, by ``shift``, and by one value more where ``odd``."""
    source = tl.broadcast_to((lane - shift) & (pairs.shape[AXIS] - 1), pairs.shape)
    rotated = tl.gather(pairs, source, AXIS)
    before = tl.gather(pairs, (source - 1) & (pairs.shape[AXIS] - 1), AXIS)
    return tl.where(odd != 0, (rotated << 16) | ((before >> 16) & 0xFFFF), rotated)


@triton.jit
def band_of(
    taps, shift, odd, Q: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, stretch=0, STRETCH: tl.constexpr = False
):  # fmt: skip
    """The band [B, M, Q] in DTYPE (16 bits) of taps [B, M, SLOTS]; tap v of row m in column 2*shift[m] + odd[m] + v.

    Its columns are ordered as ``band_columns`` says.

    shift: [M], pairs, any; odd: [M], 0 or 1. Columns outside the band's Q are dropped; with STRETCH, those
    outside the SLOTS columns of the row's stretch [M], too. Taps from K on are zero, and K < SLOTS.
    """
    B: tl.constexpr = taps.shape[0]
    M: tl.constexpr = taps.shape[1]
    PAIRS: tl.constexpr = taps.shape[2] // 2
    rotated = rotated_pairs_of(taps, shift, odd, DTYPE, PTX)
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
def taps_of(band, shift, odd, K: tl.constexpr, SLOTS: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The taps [B, M, SLOTS] in DTYPE (16 bits) of a matrix [B, M, Q] in float32: its band, zero from tap K on.

    The inverse of ``band_of``, of a band that lies inside the Q columns, these in their natural order.
    """
    B: tl.constexpr = band.shape[0]
    M: tl.constexpr = band.shape[1]
    Q: tl.constexpr = band.shape[2]
    PAIRS: tl.constexpr = SLOTS // 2
    STRETCHES: tl.constexpr = Q // SLOTS
    pairs = tl.reshape(rounded_pairs_of(band, DTYPE, PTX), [B, M, STRETCHES, PAIRS])
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


# Windows up to seven wide on a line of 16 positions read three stretches of eight columns. Matrix units sum over two of
# them: the third stretches of two window rows go into one product. Which two is told by the window alone, not by the
# row of y, so that the order of summation, and with it every bit of a result, is the same for all cuts.


@triton.jit
def band_in_thirds(taps, shift, odd, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """The ``band_of`` taps [B, M, 8], Q = 24: its first 16 columns [B, M, 16] in DTYPE, and the third stretch, as pairs
    [B, M, 4]."""
    rotated = rotated_pairs_of(taps, shift, odd, DTYPE, PTX)
    first, second = _stretch_of(rotated, shift, 0), _stretch_of(rotated, shift, 1)
    return _two_stretches_of(first, second, DTYPE), _stretch_of(rotated, shift, 2)


@triton.jit
def add_third(
    y, third_before, third, row_before, row, IS_SECOND: tl.constexpr, IS_LAST: tl.constexpr, DTYPE: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """y [B, M, 16] and what the third stretches of this window row and the one before add to it, pairs [B, M, 4] of the
    bands and [2, B, 8, 4] of the rows, where it IS_SECOND of two; where it is not, but the last, what its own does."""
    if IS_SECOND:
        y = product(_two_stretches_of(third_before, third, DTYPE), two_of(row_before, row, DTYPE), y, EXACT)
    elif IS_LAST:
        y = product(_two_stretches_of(third, third * 0, DTYPE), two_of(row, row * 0, DTYPE), y, EXACT)
    return y


@triton.jit
def _stretch_of(rotated, shift, S: tl.constexpr):
    """Stretch S of a band, as pairs [B, M, 4], from the ``rotated_pairs_of`` its taps."""
    behind = 4 * S + tl.arange(0, 4)[None, :] - shift[:, None]
    return tl.where(tl.expand_dims((behind >= 0) & (behind < 4), 0), rotated, 0)


@triton.jit
def _two_stretches_of(stretch, another, DTYPE: tl.constexpr):
    """Two stretches of bands, pairs [B, M, 4] each, as one matrix [B, M, 16] in DTYPE, in the order of ``two_of``."""
    return halves_of(tl.reshape(tl.join(stretch, another), [stretch.shape[0], stretch.shape[1], 8]), DTYPE)
