"""How programs of the banded and the span kernels walk over an image.

A program has UNITS units. A unit is a group, or 16 channels of a larger one: it aggregates those, so that a larger
group's weight is made once for each of its units. A program walks down a strip of ROWS rows, a line wide: 16 columns of
x, or with a stride of 2 eight positions of y. To read a row of the image once for the K rows of windows that need it,
it keeps the last rows; to write grad_x, it keeps the sums of the rows that are not complete yet.

An image of up to 8 columns would leave half of a line empty. There a line is folded: FOLD = 2 strips, one below the
other, lie side by side in it.

Where one warp cannot keep what it needs of all K window rows, the window has PARTS parts of EACH rows, each with a warp
of its own; their results are added. Warps stand in the order of parts, and then of units.

Windows are at most 15 wide; strides are 1 or 2, and at most K. With a dilation d, rows and columns that lie d apart are
an image of their own: there are d*d of them, without dilation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.band import band_columns

# Channels of a unit, the narrower side of a tile of matrix units.
WIDTH = tl.constexpr(16)

# Sizes differ from layer to layer, and knowing that one is 1 or divisible by 16 makes no kernel faster.
SIZES = ["N", "H", "W", "H_out", "W_out", "taps_all", "unit_blocks", "lines", "strips", "ROWS", "IMAGES"]
SIZES += ["tiles", "tiles_each"]


@triton.jit
def place_of(program, unit_blocks, lines, strips, DILATION: tl.constexpr):
    """A program's block of units, line, strip, first row and column of its image of every d-th, and n (int64)."""
    unit_block = program % unit_blocks
    program = program // unit_blocks
    line = program % lines
    program = program // lines
    strip = program % strips
    program = program // strips
    row, column = (program // DILATION) % DILATION, program % DILATION
    return unit_block, line, strip, row, column, (program // (DILATION * DILATION)).to(tl.int64)


@triton.jit
def channels_of(unit_block, GROUP_CHANNELS: tl.constexpr, UNITS: tl.constexpr, PARTS: tl.constexpr = 1):
    """The warps' groups [PARTS*UNITS], their channels [PARTS*UNITS, 1, WIDTH], and whether there are such."""
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + WIDTH - 1) // WIDTH
    unit = unit_block * UNITS + tl.arange(0, PARTS * UNITS) % UNITS
    member = ((unit % BLOCKS) * WIDTH)[:, None, None] + tl.arange(0, WIDTH)[None, None, :]
    group = unit // BLOCKS
    return group, group[:, None, None] * GROUP_CHANNELS + member, member < GROUP_CHANNELS


@triton.jit
def window_row_of(PARTS: tl.constexpr, UNITS: tl.constexpr, EACH: tl.constexpr):
    """The first window row of each warp: [PARTS*UNITS, 1, 1], or a plain zero."""
    row = 0
    if PARTS > 1:
        row = ((tl.arange(0, PARTS * UNITS) // UNITS) * EACH)[:, None, None]
    return row


@triton.jit
def sum_of_parts(results, PARTS: tl.constexpr):
    """The units' results [UNITS, M, WIDTH], from those of the warps [PARTS*UNITS, M, WIDTH]."""
    if PARTS > 1:
        UNITS: tl.constexpr = results.shape[0] // PARTS
        results = tl.sum(tl.reshape(results, [PARTS, UNITS, results.shape[1], results.shape[2]]), 0)
    return results


@triton.jit
def columns_of(M: tl.constexpr, STRIDE: tl.constexpr):
    """The order in which a tile takes its M positions of a row: each one's number, pair and oddness, [M] each."""
    m = tl.arange(0, M)
    if STRIDE == 1:  # the even ones before the odd ones
        return (m % (M // 2)) * 2 + m // (M // 2), m % (M // 2), m // (M // 2)
    return m, m, m * 0


@triton.jit
def by_sixteen(columns, E: tl.constexpr):
    """All 16 * E columns of a row, as ``kept_row`` takes them, from the first 16: [E, 1, 16, 1]."""
    return tl.arange(0, E)[:, None, None, None] * 16 + columns[None, None, :, None]


@triton.jit
def load_row(ptrs, row, below, rows, stride, inside):
    """A row of an image at ptrs, and of those that are that far below it; zeros where they are outside."""
    return tl.load(ptrs + row * stride, mask=inside & (row + below >= 0) & (row + below < rows), other=0)


@triton.jit
def extents_of(H, W, H_out, W_out, row_0, column_0, DILATION: tl.constexpr):
    """Rows and columns of x and of y, in an image of every d-th from row_0 and column_0 on."""
    rows, columns = tl.cdiv(H - row_0, DILATION), tl.cdiv(W - column_0, DILATION)
    return rows, columns, tl.cdiv(H_out - row_0, DILATION), tl.cdiv(W_out - column_0, DILATION)


@triton.jit
def line_of_y(
    line, columns, columns_out, ROWS, order, K: tl.constexpr, STRIDE: tl.constexpr, Q: tl.constexpr, FOLD: tl.constexpr
):  # fmt: skip
    """A line's positions, [16] each: the column, its shift and oddness, how far it lies below, and whether there is
    such; and the columns of x that their windows read, those numbered by order, of which there are Q, a power of two:
    each one's column, how far it lies below, and whether there is such. What is below is a plain zero where no line is
    folded."""
    PADDING: tl.constexpr = K // 2
    position, shift, odd = columns_of(16, STRIDE)
    j = line * 16 // STRIDE + position
    q = line * 16 - PADDING + order
    below, below_q = 0, 0
    if FOLD > 1:
        j, q = position % (16 // FOLD), order % (Q // FOLD) - PADDING
        below, below_q = position // (16 // FOLD) * ROWS, order // (Q // FOLD) * ROWS
        shift += position // (16 // FOLD) * ((Q - 16) // FOLD // 2)
    is_column = (q >= 0) & (q < min(columns, line * 16 + 16 // FOLD - STRIDE - PADDING + K))
    is_position = j < columns_out
    if STRIDE > 1:  # there are eight
        is_position = is_position & (position < 16 // STRIDE)
    return j, shift, odd, below, is_position, q, below_q, is_column


@triton.jit
def line_of_x(
    line, columns, columns_out, ROWS, K: tl.constexpr, STRIDE: tl.constexpr, ALONE: tl.constexpr, FOLD: tl.constexpr
):  # fmt: skip
    """The positions whose windows meet a line of grad_x, [32 // STRIDE] each, or [16] where it is ALONE, the only line
    of its image: the column, its shift, counted from the line, and oddness, how far it lies below, and whether there is
    such; and the line's columns, [16] each, as a band orders them: the column, how far it lies below, and whether there
    is such."""
    PADDING: tl.constexpr = K // 2
    below, below_q = 0, 0
    if ALONE:
        position, shift, odd = columns_of(16, 1)
        j, q = position % (16 // FOLD), band_columns(16) % (16 // FOLD)
        # The window of a position begins PADDING columns before it.
        odd = (odd + PADDING) % 2
        shift = (position - PADDING - odd) // 2  # of an even number: nothing to truncate
        is_position = j < columns_out
        if FOLD > 1:
            below, below_q = position // (16 // FOLD) * ROWS, band_columns(16) // (16 // FOLD) * ROWS
    else:
        position, shift, odd = columns_of(32 // STRIDE, STRIDE)
        shift -= (K - 1) // 2
        # With a stride of 2, the line begins where a window begins K - 1 columns, an even number, before it.
        left = line * 16 - (STRIDE - 1) * (PADDING % 2)
        # Division truncates, so what is divided must not be negative.
        j = (left + PADDING - (K - 1) + 16 * STRIDE) // STRIDE - 16 + position
        is_position = (j >= 0) & (j < columns_out) & (position * STRIDE < 16 + K - 1)
        q = left + band_columns(16)
    return j, shift, odd, below, is_position, q, below_q, (q >= 0) & (q < columns)
