"""Span and aggregate in one kernel, forward and backward: the weight is made of hidden channels where it is used.

    weight[n, g, (u, v), i, j] = span[g, (u, v), :] . hidden[n, :, i, j] + bias[g, (u, v)]

All products run on the matrix units, in 16 bits with sums in float32: the span, a window row of the aggregate as a
banded product (``band``), and their gradients.

A program has UNITS units. A unit is a group, or 16 channels of a larger one: it aggregates those, so that a larger
group's weight is made once for each of its units. A program walks down a strip of ROWS rows, LINE columns wide. To read
a row of the image once for the K rows of windows that need it, it keeps the last rows; to write grad_x, it keeps the
sums of the rows that are not complete yet.

Windows are at most 15 wide; strides are 1 or 2, and at most K. With a dilation d, rows and columns that lie d apart are
an image of their own: there are d*d of them, without dilation.

A product with a band adds zeros times what is beside the window: an infinity or NaN in x reaches the positions of its
line, where the plain sum would leave those alone whose windows do not meet it.

grad_hidden and the gradients of span and bias sum over groups and positions. Programs write sums of their own, which
are then added in a fixed order; or, with ATOMIC, add to one result in the order in which they finish.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.band import band_of, product, taps_of

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
def channels_of(unit_block, GROUP_CHANNELS: tl.constexpr, UNITS: tl.constexpr):
    """The units' groups [UNITS], their channels [UNITS, 1, WIDTH], and whether there are such."""
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + WIDTH - 1) // WIDTH
    unit = unit_block * UNITS + tl.arange(0, UNITS)
    member = ((unit % BLOCKS) * WIDTH)[:, None, None] + tl.arange(0, WIDTH)[None, None, :]
    group = unit // BLOCKS
    return group, group[:, None, None] * GROUP_CHANNELS + member, member < GROUP_CHANNELS


@triton.jit
def columns_of(M: tl.constexpr, STRIDE: tl.constexpr):
    """The order in which a tile takes its M positions of a row: each one's number, pair and oddness, [M] each."""
    m = tl.arange(0, M)
    if STRIDE == 1:  # the even ones before the odd ones
        return (m % (M // 2)) * 2 + m // (M // 2), m % (M // 2), m // (M // 2)
    return m, m, m * 0


@triton.jit
def load_row(ptrs, row, rows, stride, inside):
    """A row of an image at ptrs, zeros where it is outside."""
    return tl.load(ptrs + row * stride, mask=inside & (row >= 0) & (row < rows), other=0)


@triton.jit
def load_span(span_ptr, group, u, slot, r, K: tl.constexpr, R: tl.constexpr, DTYPE: tl.constexpr):
    """The span's rows for window row u: [UNITS, R, SLOTS], from slot [SLOTS], each one's tap."""
    channel = tl.arange(0, R)[None, :, None]
    row = (group[:, None, None] * K + u) * K + slot[None, None, :]
    return tl.load(span_ptr + row * r + channel, mask=(slot < K)[None, None, :] & (channel < r), other=0).to(DTYPE)


@triton.jit
def load_bias(bias_ptr, group, u, slot, K: tl.constexpr):
    """The bias for window row u: [UNITS, 1, SLOTS], float32."""
    ptrs = bias_ptr + (group[:, None, None] * K + u) * K + slot[None, None, :]
    return tl.load(ptrs, mask=(slot < K)[None, None, :], other=0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def span_forward_kernel(
    x_ptr,  # [N, C, H, W]
    hidden_ptr,  # [N, r, H_out, W_out]
    span_ptr,  # [G*K*K, r], dense
    bias_ptr,  # [G*K*K], dense
    y_ptr,  # [N, C, H_out, W_out]
    N, H, W, H_out, W_out, unit_blocks, lines, strips, ROWS, IMAGES,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    hidden_stride_n, hidden_stride_c, hidden_stride_h, hidden_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, r: tl.constexpr,
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, KEEP_SPAN: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write y, LINE = 16 columns of ROWS rows of UNITS units of IMAGES images a program."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16  # rows of a tile; with a stride of 2, half of them are positions
    POSITIONS: tl.constexpr = LINE // STRIDE
    PADDING: tl.constexpr = K // 2
    unit_block, line, strip, row_0, column_0, first_n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    position, shift, odd = columns_of(LINE, STRIDE)
    rows, rows_out = tl.cdiv(H - row_0, DILATION), tl.cdiv(H_out - row_0, DILATION)
    columns = tl.cdiv(W - column_0, DILATION)
    columns_out = min(tl.cdiv(W_out - column_0, DILATION), line * POSITIONS + POSITIONS)
    j = (line * POSITIONS + position)[None, :, None]  # [1, LINE, 1]
    q = (line * LINE - PADDING + tl.arange(0, Q))[None, :, None]  # [1, Q, 1]
    # Q is a power of two, and windows need no more than these.
    in_columns = (q >= 0) & (q < min(columns, line * LINE + LINE - STRIDE - PADDING + K)) & is_channel
    in_line = j < columns_out
    slot, channel = tl.arange(0, SLOTS), tl.arange(0, R)[None, :]
    x_ptrs = x_ptr + first_n * IMAGES * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += c * x_stride_c + q * (DILATION * x_stride_w)
    y_ptrs = y_ptr + first_n * IMAGES * y_stride_n + row_0 * y_stride_h + column_0 * y_stride_w
    y_ptrs += c * y_stride_c + j * (DILATION * y_stride_w)
    hidden_ptrs = hidden_ptr + first_n * IMAGES * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
    hidden_ptrs += channel * hidden_stride_c + (line * POSITIONS + position)[:, None] * (DILATION * hidden_stride_w)
    in_hidden = ((line * POSITIONS + position)[:, None] < columns_out) & (channel < r)

    spans, biases = (), ()
    if KEEP_SPAN:
        for u in tl.static_range(K):
            spans = spans + (load_span(span_ptr, group, u, slot, r, K, R, DTYPE),)
            biases = biases + (load_bias(bias_ptr, group, u, slot, K),)
    first = strip * ROWS
    for _ in range(min(IMAGES, N - first_n * IMAGES)):
        kept = ()
        for u in tl.static_range(K - STRIDE):
            kept = kept + (load_row(x_ptrs, first * STRIDE - PADDING + u, rows, DILATION * x_stride_h, in_columns),)
        for i in range(first, first + ROWS):
            hidden = load_row(hidden_ptrs, i, rows_out, DILATION * hidden_stride_h, in_hidden)
            hidden = tl.broadcast_to(tl.expand_dims(hidden.to(DTYPE), 0), [UNITS, LINE, R])
            for fresh in tl.static_range(STRIDE):
                row = i * STRIDE - PADDING + (K - STRIDE) + fresh
                kept = kept + (load_row(x_ptrs, row, rows, DILATION * x_stride_h, in_columns),)
            y = tl.zeros([UNITS, LINE, WIDTH], tl.float32)
            for u in tl.static_range(K):
                if KEEP_SPAN:
                    span, bias = spans[u], biases[u]
                else:
                    span = load_span(span_ptr, group, u, slot, r, K, R, DTYPE)
                    bias = load_bias(bias_ptr, group, u, slot, K)
                taps = product(hidden, span, tl.broadcast_to(bias, [UNITS, LINE, SLOTS]), EXACT)
                y = product(band_of(taps, shift, odd, Q, DTYPE), kept[u], y, EXACT)
            kept = kept[STRIDE:]
            tl.store(y_ptrs + i * (DILATION * y_stride_h), y.to(DTYPE), mask=in_line & is_channel & (i < rows_out))
        x_ptrs += x_stride_n
        y_ptrs += y_stride_n
        hidden_ptrs += hidden_stride_n


@triton.jit(do_not_specialize=SIZES)
def span_grad_x_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    hidden_ptr,  # [N, r, H_out, W_out]
    span_ptr,  # [G*K*K, r], dense
    bias_ptr,  # [G*K*K], dense
    grad_x_ptr,  # [N, C, H, W]
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    hidden_stride_n, hidden_stride_c, hidden_stride_h, hidden_stride_w,
    grad_x_stride_n, grad_x_stride_c, grad_x_stride_h, grad_x_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, r: tl.constexpr,
    R: tl.constexpr, SLOTS: tl.constexpr, UNITS: tl.constexpr, KEEP_SPAN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write grad_x, LINE = 16 columns of ROWS rows of UNITS units a program; ROWS is a multiple of STRIDE."""
    DTYPE: tl.constexpr = grad_y_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    POSITIONS: tl.constexpr = 32 // STRIDE  # all whose windows meet the line, K - 1 columns wider, and some more
    unit_block, line, strip, row_0, column_0, n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    position, shift, odd = columns_of(POSITIONS, STRIDE)
    rows, rows_out = tl.cdiv(H - row_0, DILATION), tl.cdiv(H_out - row_0, DILATION)
    columns, columns_out = tl.cdiv(W - column_0, DILATION), tl.cdiv(W_out - column_0, DILATION)
    # With a stride of 2, the line begins where a window begins K - 1 columns, an even number, before it.
    q = line * LINE - (STRIDE - 1) * (PADDING % 2) + tl.arange(0, LINE)[None, :, None]  # [1, LINE, 1]
    # Division truncates, so what is divided must not be negative.
    j = (line * LINE - (STRIDE - 1) * (PADDING % 2) + PADDING - (K - 1) + 16 * STRIDE) // STRIDE - 16 + position
    in_columns = (j >= 0) & (j < columns_out) & (position * STRIDE < LINE + K - 1)
    in_line = (q >= 0) & (q < columns) & is_channel
    slot, channel = tl.arange(0, SLOTS), tl.arange(0, R)[None, :]
    grad_x_ptrs = grad_x_ptr + n * grad_x_stride_n + row_0 * grad_x_stride_h + column_0 * grad_x_stride_w
    grad_x_ptrs += c * grad_x_stride_c + q * (DILATION * grad_x_stride_w)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += c * grad_y_stride_c + j[None, :, None] * (DILATION * grad_y_stride_w)
    hidden_ptrs = hidden_ptr + n * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
    hidden_ptrs += channel * hidden_stride_c + j[:, None] * (DILATION * hidden_stride_w)
    in_hidden = in_columns[:, None] & (channel < r)

    spans, biases = (), ()
    if KEEP_SPAN:
        for u in tl.static_range(K):
            spans = spans + (load_span(span_ptr, group, u, slot, r, K, R, DTYPE),)
            biases = biases + (load_bias(bias_ptr, group, u, slot, K),)
    sums = ()  # of the rows that the windows of a row of y meet
    for u in tl.static_range(K):
        sums = sums + (tl.zeros([UNITS, LINE, WIDTH], tl.float32),)
    last = strip * ROWS + ROWS
    start = (strip * ROWS + PADDING - (K - 1) + 16 * STRIDE) // STRIDE - 16
    for i in range(start, (last - 1 + PADDING) // STRIDE + 1):
        hidden = load_row(hidden_ptrs, i, rows_out, DILATION * hidden_stride_h, in_hidden).to(DTYPE)
        hidden = tl.broadcast_to(tl.expand_dims(hidden, 0), [UNITS, POSITIONS, R])
        is_read = in_columns[None, :, None] & is_channel
        grad_y = load_row(grad_y_ptrs, i, rows_out, DILATION * grad_y_stride_h, is_read)
        more = ()
        for u in tl.static_range(K):
            if KEEP_SPAN:
                span, bias = spans[u], biases[u]
            else:
                span = load_span(span_ptr, group, u, slot, r, K, R, DTYPE)
                bias = load_bias(bias_ptr, group, u, slot, K)
            taps = product(hidden, span, tl.broadcast_to(bias, [UNITS, POSITIONS, SLOTS]), EXACT)
            band = band_of(taps, shift - (K - 1) // 2, odd, LINE, DTYPE)  # [UNITS, POSITIONS, LINE]
            more = more + (product(tl.permute(band, [0, 2, 1]), grad_y, sums[u], EXACT),)
        for done in tl.static_range(STRIDE):
            row = i * STRIDE - PADDING + done
            is_written = in_line & (row >= strip * ROWS) & (row < last) & (row < rows)
            grad_x = more[done].to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptrs + row * (DILATION * grad_x_stride_h), grad_x, mask=is_written)
        sums = more[STRIDE:]
        for _ in tl.static_range(STRIDE):
            sums = sums + (tl.zeros([UNITS, LINE, WIDTH], tl.float32),)


@triton.jit(do_not_specialize=SIZES)
def span_grad_hidden_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    x_ptr,  # [N, C, H, W]
    span_ptr,  # [G*K*K, r], dense
    grad_hidden_ptr,  # [N, r, H_out, W_out]
    H, W, H_out, W_out, unit_blocks, lines, strips,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    grad_hidden_stride_n, grad_hidden_stride_c, grad_hidden_stride_h, grad_hidden_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, r: tl.constexpr,
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, HEIGHT: tl.constexpr,
    KEEP_SPAN: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write grad_hidden, LINE = 16 columns of HEIGHT rows a program, which goes through all units."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16  # rows of a tile; with a stride of 2, half of them are positions
    POSITIONS: tl.constexpr = LINE // STRIDE
    PADDING: tl.constexpr = K // 2
    TERMS: tl.constexpr = max(16, SLOTS)  # matrix units sum over 16 at least
    alone, line, strip, row_0, column_0, n = place_of(tl.program_id(0), 1, lines, strips, DILATION)
    position, shift, odd = columns_of(LINE, STRIDE)
    rows, rows_out = tl.cdiv(H - row_0, DILATION), tl.cdiv(H_out - row_0, DILATION)
    columns = tl.cdiv(W - column_0, DILATION)
    columns_out = min(tl.cdiv(W_out - column_0, DILATION), line * POSITIONS + POSITIONS)
    j = (line * POSITIONS + position)[None, :, None]  # [1, LINE, 1]
    q = (line * LINE - PADDING + tl.arange(0, Q))[None, None, :]  # [1, 1, Q]
    in_columns = (q >= 0) & (q < min(columns, line * LINE + LINE - STRIDE - PADDING + K))
    in_line = j < columns_out
    first = strip * HEIGHT
    x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w + q * (DILATION * x_stride_w)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += j * (DILATION * grad_y_stride_w)
    # Taps stand in every second of TERMS columns where there are more of these than slots.
    term = tl.arange(0, TERMS)
    term_tap = tl.where(term % (TERMS // SLOTS) == 0, term // (TERMS // SLOTS), K)

    sums = ()
    for _ in tl.static_range(HEIGHT):
        sums = sums + (tl.zeros([UNITS, LINE, R], tl.float32),)
    for unit_block in range(unit_blocks):
        group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
        spans = ()
        if KEEP_SPAN:
            for u in tl.static_range(K):
                spans = spans + (load_span(span_ptr, group, u, term_tap, r, K, R, DTYPE),)
        grad_ys = ()
        for k in tl.static_range(HEIGHT):
            ptrs = grad_y_ptrs + c * grad_y_stride_c
            grad_ys = grad_ys + (load_row(ptrs, first + k, rows_out, DILATION * grad_y_stride_h, in_line & is_channel),)
        c, is_channel = tl.permute(c, [0, 2, 1]), tl.permute(is_channel, [0, 2, 1])  # [UNITS, WIDTH, 1]
        for t in tl.static_range(STRIDE * (HEIGHT - 1) + K):
            row = first * STRIDE - PADDING + t
            x = load_row(x_ptrs + c * x_stride_c, row, rows, DILATION * x_stride_h, in_columns & is_channel)
            more = ()
            for k in tl.static_range(HEIGHT):
                total = sums[k]
                if t >= STRIDE * k and t < STRIDE * k + K:
                    band = product(grad_ys[k], x, tl.zeros([UNITS, LINE, Q], tl.float32), EXACT)
                    taps = taps_of(band, shift, odd, K, SLOTS, DTYPE)
                    if TERMS > SLOTS:
                        taps = tl.reshape(tl.join(taps, tl.zeros_like(taps)), [UNITS, LINE, TERMS])
                    if KEEP_SPAN:
                        span = spans[t - STRIDE * k]
                    else:
                        span = load_span(span_ptr, group, t - STRIDE * k, term_tap, r, K, R, DTYPE)  # [UNITS, R, TERMS]
                    total = product(taps, tl.permute(span, [0, 2, 1]), total, EXACT)
                more = more + (total,)
            sums = more
    channel = tl.arange(0, R)[None, :]
    j = line * POSITIONS + position
    ptrs = grad_hidden_ptr + n * grad_hidden_stride_n + row_0 * grad_hidden_stride_h + column_0 * grad_hidden_stride_w
    ptrs += channel * grad_hidden_stride_c + j[:, None] * (DILATION * grad_hidden_stride_w)
    for k in tl.static_range(HEIGHT):
        is_written = (j < columns_out)[:, None] & (channel < r) & (first + k < rows_out)
        grad_hidden = tl.sum(sums[k], 0).to(grad_hidden_ptr.dtype.element_ty)
        tl.store(ptrs + (first + k) * (DILATION * grad_hidden_stride_h), grad_hidden, mask=is_written)


@triton.jit(do_not_specialize=SIZES)
def span_grad_span_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    x_ptr,  # [N, C, H, W]
    hidden_ptr,  # [N, r, H_out, W_out]
    grad_span_ptr,  # [SHARES, BLOCKS, G*K*K, r] float32, dense; with ATOMIC [G*K*K, r], zeros
    grad_bias_ptr,  # [SHARES, BLOCKS, G*K*K] float32, dense; with ATOMIC [G*K*K], zeros
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS, tiles, tiles_each, taps_all,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    hidden_stride_n, hidden_stride_c, hidden_stride_h, hidden_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, r: tl.constexpr,
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, ATOMIC: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write what a share of the tiles gives to the gradients of R channels of span, and of bias, for UNITS units."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16  # rows of a tile; with a stride of 2, half of them are positions
    POSITIONS: tl.constexpr = LINE // STRIDE
    PADDING: tl.constexpr = K // 2
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + WIDTH - 1) // WIDTH
    R_BLOCKS: tl.constexpr = (r + R - 1) // R
    unit_block = tl.program_id(0) % unit_blocks
    channel = ((tl.program_id(0) // unit_blocks) % R_BLOCKS) * R + tl.arange(0, R)[:, None]  # [R, 1]
    share = tl.program_id(0) // unit_blocks // R_BLOCKS
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    position, shift, odd = columns_of(LINE, STRIDE)
    for_span, for_bias = (), ()
    for u in tl.static_range(K):
        for_span = for_span + (tl.zeros([UNITS, R, SLOTS], tl.float32),)
        for_bias = for_bias + (tl.zeros([UNITS, LINE, SLOTS], tl.float32),)
    for tile in range(share * tiles_each, min(share * tiles_each + tiles_each, tiles)):
        alone, line, strip, row_0, column_0, n = place_of(tile, 1, lines, strips, DILATION)
        rows, rows_out = tl.cdiv(H - row_0, DILATION), tl.cdiv(H_out - row_0, DILATION)
        columns = tl.cdiv(W - column_0, DILATION)
        columns_out = min(tl.cdiv(W_out - column_0, DILATION), line * POSITIONS + POSITIONS)
        j = line * POSITIONS + position  # [LINE]
        q = (line * LINE - PADDING + tl.arange(0, Q))[None, :, None]  # [1, Q, 1]
        in_columns = (q >= 0) & (q < min(columns, line * LINE + LINE - STRIDE - PADDING + K)) & is_channel
        in_line = (j < columns_out)[None, :, None] & is_channel
        in_hidden = (j < columns_out)[None, :] & (channel < r)
        x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
        x_ptrs += c * x_stride_c + q * (DILATION * x_stride_w)
        grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
        grad_y_ptrs += c * grad_y_stride_c + j[None, :, None] * (DILATION * grad_y_stride_w)
        hidden_ptrs = hidden_ptr + n * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
        hidden_ptrs += channel * hidden_stride_c + j[None, :] * (DILATION * hidden_stride_w)
        first = strip * ROWS
        kept = ()
        for u in tl.static_range(K - STRIDE):
            kept = kept + (load_row(x_ptrs, first * STRIDE - PADDING + u, rows, DILATION * x_stride_h, in_columns),)
        for i in range(first, first + ROWS):
            hidden = load_row(hidden_ptrs, i, rows_out, DILATION * hidden_stride_h, in_hidden).to(DTYPE)
            hidden = tl.broadcast_to(tl.expand_dims(hidden, 0), [UNITS, R, LINE])
            grad_y = load_row(grad_y_ptrs, i, rows_out, DILATION * grad_y_stride_h, in_line)
            for fresh in tl.static_range(STRIDE):
                row = i * STRIDE - PADDING + (K - STRIDE) + fresh
                kept = kept + (load_row(x_ptrs, row, rows, DILATION * x_stride_h, in_columns),)
            more_span, more_bias = (), ()
            for u in tl.static_range(K):
                band = tl.zeros([UNITS, LINE, Q], tl.float32)
                band = product(grad_y, tl.permute(kept[u], [0, 2, 1]), band, EXACT)
                taps = taps_of(band, shift, odd, K, SLOTS, DTYPE)
                more_span = more_span + (product(hidden, taps, for_span[u], EXACT),)
                more_bias = more_bias + (for_bias[u] + taps.to(tl.float32),)
            for_span, for_bias = more_span, more_bias
            kept = kept[STRIDE:]
    slot = tl.arange(0, SLOTS)
    unit = unit_block * UNITS + tl.arange(0, UNITS)
    if not ATOMIC:
        share_block = share.to(tl.int64) * BLOCKS
        grad_span_ptr += (share_block * taps_all) * r
        grad_bias_ptr += share_block * taps_all
        block_offset = (unit % BLOCKS)[:, None] * taps_all
    else:
        block_offset = (unit * 0)[:, None]
    for u in tl.static_range(K):
        tap = block_offset + (group[:, None] * K + u) * K + slot[None, :]  # [UNITS, SLOTS]
        span_ptrs = grad_span_ptr + tap[:, None, :] * r + channel[None, :, :]
        is_span = (slot < K)[None, None, :] & (channel < r)[None, :, :]
        is_bias = (slot < K)[None, :] & ((tl.program_id(0) // unit_blocks) % R_BLOCKS == 0) & (unit >= 0)[:, None]
        grad_bias = tl.sum(for_bias[u], 1)  # [UNITS, SLOTS]
        if ATOMIC:
            tl.atomic_add(span_ptrs, for_span[u], mask=is_span, sem="relaxed")
            tl.atomic_add(grad_bias_ptr + tap, grad_bias, mask=is_bias, sem="relaxed")
        else:
            tl.store(span_ptrs, for_span[u], mask=is_span)
            tl.store(grad_bias_ptr + tap, grad_bias, mask=is_bias)
