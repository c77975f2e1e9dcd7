"""Span and aggregate in one kernel, forward and backward: the weight is made of hidden channels where it is used.

    weight[n, g, (u, v), i, j] = span[g, (u, v), :] . hidden[n, :, i, j] + bias[g, (u, v)]

All products run on the matrix units, in 16 bits with sums in float32: the span, a window row of the aggregate as a
banded product (``band``), and their gradients.

Programs walk as ``walking`` says.

A product with a band adds zeros times what is beside the window: an infinity or NaN in x or grad_y reaches the results
of its line, where the plain sum would leave those alone whose windows do not meet it; and where parts have more rows
than the window, that of the rows below it, too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.band import (
    add_third,
    band_columns,
    band_in_thirds,
    band_of,
    kept_row,
    product,
    row_of,
    two_of,
)  # fmt: skip
from invbench.ops.triton_gpu.walking import (
    SIZES,
    WIDTH,
    by_sixteen,
    channels_of,
    extents_of,
    line_of_x,
    line_of_y,
    load_row,
    place_of,
    sum_of_parts,
    window_row_of,
)  # fmt: skip

# A warp holds the span as second matrix of a product from its load on: eight by four lanes, each with neighbouring
# hidden channels. These are therefore summed over in an order of their own, in runs of 32, or of 16 where there are no
# more.


@triton.jit
def hidden_channels(R: tl.constexpr):
    """The hidden channels in the order in which ``load_span`` has them: [R]."""
    RUN: tl.constexpr = min(R, 32)
    k = tl.arange(0, R)
    channels = k // RUN * RUN + k // 2 % 4 * (RUN // 4) + k % RUN // 8 * 2 + k % 2
    return tl.max_contiguous(tl.multiple_of(channels, 2), 2)


@triton.jit
def span_rows(span_ptr, bias_ptr, group, u_0, slot, r, K: tl.constexpr, R: tl.constexpr):
    """Where the warps' first window rows u_0 ([B, 1, 1], or 0 of all) have their span, in runs of hidden channels, and
    their bias, from slot [SLOTS], each one's tap: [R // RUN, B, RUN, SLOTS] and [B, 1, SLOTS]."""
    RUN: tl.constexpr = min(R, 32)
    channel = tl.arange(0, R // RUN)[:, None, None, None] * RUN + tl.arange(0, RUN)[None, None, :, None]
    row = (group[:, None, None] * K + u_0) * K + slot[None, None, :]
    return span_ptr + tl.expand_dims(row, 0) * r + channel, bias_ptr + row


@triton.jit
def load_span(rows, k, u_0, slot, r, K: tl.constexpr, DTYPE: tl.constexpr):
    """The span's ``rows`` for window row u_0 + k: [B, R, SLOTS], of the ``hidden_channels``; zeros from row K on."""
    RUNS: tl.constexpr = rows.shape[0]
    B: tl.constexpr = rows.shape[1]
    RUN: tl.constexpr = rows.shape[2]
    channel = tl.arange(0, RUNS)[:, None, None, None] * RUN + tl.arange(0, RUN)[None, None, :, None]
    inside = tl.expand_dims((slot < K)[None, None, :] & (u_0 + k < K), 0) & (channel < r)
    span = tl.load(rows + k * (K * r), mask=inside, other=0).to(DTYPE)
    span = tl.permute(tl.reshape(span, [RUNS, B, 4, RUN // 8, 2, slot.shape[0]]), [1, 0, 3, 2, 4, 5])
    return tl.reshape(span, [B, RUNS * RUN, slot.shape[0]])


@triton.jit
def load_bias(rows, k, u_0, slot, K: tl.constexpr):
    """The bias' ``rows`` for window row u_0 + k: [B, 1, SLOTS], float32; zeros from row K on."""
    inside = (slot < K)[None, None, :] & (u_0 + k < K)
    return tl.load(rows + k * K, mask=inside, other=0).to(tl.float32)


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
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, FOLD: tl.constexpr,
    PARTS: tl.constexpr, EACH: tl.constexpr, AT_ONCE: tl.constexpr, THIRDS: tl.constexpr, KEEP_SPAN: tl.constexpr,
    EXACT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Write y, LINE = 16 columns of ROWS rows of UNITS units of IMAGES images a program.

    A trip of its loop computes AT_ONCE rows, a divisor of ROWS: what is kept of x then moves on less often.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    WARPS: tl.constexpr = PARTS * UNITS
    unit_block, line, strip, row_0, column_0, first_n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS, PARTS)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_y(
        line, columns, columns_out, ROWS, by_sixteen(band_columns(16), Q // 16), K, STRIDE, Q, FOLD
    )  # fmt: skip
    slot, channel = tl.arange(0, SLOTS), hidden_channels(R)[None, :]
    u_0 = window_row_of(PARTS, UNITS, EACH)
    x_ptrs = x_ptr + first_n * IMAGES * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += c[None, :, :, :] * x_stride_c + q * (DILATION * x_stride_w)
    hidden_ptrs = hidden_ptr + first_n * IMAGES * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
    hidden_ptrs += channel * hidden_stride_c + j[:, None] * (DILATION * hidden_stride_w)
    in_columns, in_hidden = is_column & is_channel[None, :, :, :], is_position[:, None] & (channel < r)
    below_x, below_hidden, below_y = below_q, 0, 0
    if PARTS > 1:
        below_x += u_0[None, :, :, :]
    if FOLD > 1:
        below_hidden, below_y = below[:, None], below[None, :, None]
    x_ptrs += below_x * (DILATION * x_stride_h)
    hidden_ptrs += below_hidden * (DILATION * hidden_stride_h)
    _, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    y_ptrs = y_ptr + first_n * IMAGES * y_stride_n + row_0 * y_stride_h + column_0 * y_stride_w
    y_ptrs += c * y_stride_c + j[None, :, None] * (DILATION * y_stride_w) + below_y * (DILATION * y_stride_h)
    in_line = is_position[None, :, None] & is_channel

    of_span, of_bias = span_rows(span_ptr, bias_ptr, group, u_0, slot, r, K, R)
    spans, biases = (), ()
    if KEEP_SPAN:
        for k in tl.static_range(EACH):
            spans = spans + (load_span(of_span, k, u_0, slot, r, K, DTYPE),)
            biases = biases + (load_bias(of_bias, k, u_0, slot, K),)
    first = strip * ROWS * FOLD
    for _ in range(min(IMAGES, N - first_n * IMAGES)):
        kept = ()
        for k in tl.static_range(EACH - STRIDE):
            row = first * STRIDE - PADDING + k
            x = load_row(x_ptrs, row, below_x, rows, DILATION * x_stride_h, in_columns)
            kept = kept + (kept_row(x, THIRDS),)
        next_hidden = load_row(hidden_ptrs, first, below_hidden, rows_out, DILATION * hidden_stride_h, in_hidden)
        for start in range(first, first + ROWS, AT_ONCE):
            for at in tl.static_range(AT_ONCE):
                i = start + at
                for fresh in tl.static_range(STRIDE):
                    row = i * STRIDE - PADDING + (EACH - STRIDE) + fresh
                    x = load_row(x_ptrs, row, below_x, rows, DILATION * x_stride_h, in_columns)
                    kept = kept + (kept_row(x, THIRDS),)
                hidden = tl.broadcast_to(tl.expand_dims(next_hidden.to(DTYPE), 0), [WARPS, LINE, R])
                # All that follows waits for hidden: it is loaded a row ahead.
                is_next = in_hidden & (i + 1 < first + ROWS)
                next_hidden = load_row(
                    hidden_ptrs, i + 1, below_hidden, rows_out, DILATION * hidden_stride_h, is_next
                )  # fmt: skip
                y = tl.zeros([WARPS, LINE, WIDTH], tl.float32)
                third_before, row_before = tl.zeros([WARPS, LINE, 4], tl.int32), tl.zeros([2, WARPS, 8, 4], tl.int32)
                for k in tl.static_range(EACH):
                    if KEEP_SPAN:
                        span, bias = spans[k], biases[k]
                    else:
                        span = load_span(of_span, k, u_0, slot, r, K, DTYPE)
                        bias = load_bias(of_bias, k, u_0, slot, K)
                    taps = product(hidden, span, tl.broadcast_to(bias, [WARPS, LINE, SLOTS]), EXACT)
                    if THIRDS:
                        band, third = band_in_thirds(taps, shift, odd, DTYPE, PTX)
                        y = product(band, two_of(kept[k][0], kept[k][1], DTYPE), y, EXACT)
                        y = add_third(
                            y, third_before, third, row_before, kept[k][2], k % 2 == 1, k == EACH - 1, DTYPE, EXACT
                        )  # fmt: skip
                        third_before, row_before = third, kept[k][2]
                    else:
                        y = product(band_of(taps, shift, odd, Q, DTYPE, PTX), row_of(kept[k], DTYPE), y, EXACT)
                kept = kept[STRIDE:]
                is_written = in_line & (i + below_y < rows_out)
                tl.store(y_ptrs + i * (DILATION * y_stride_h), sum_of_parts(y, PARTS).to(DTYPE), mask=is_written)
        x_ptrs += x_stride_n
        y_ptrs += y_stride_n
        hidden_ptrs += hidden_stride_n
        # Nothing: compilers, which cannot know, would otherwise compute what rows need, the same for all images, before
        # the first, and keep it in registers.
        first += tl.minimum(ROWS, 0)


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
    R: tl.constexpr, SLOTS: tl.constexpr, UNITS: tl.constexpr, ALONE: tl.constexpr, FOLD: tl.constexpr,
    PARTS: tl.constexpr, EACH: tl.constexpr, KEEP_SPAN: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Write grad_x, LINE = 16 columns of ROWS rows of UNITS units a program; ROWS is a multiple of STRIDE, and so is
    EACH where there are parts.

    Parts read rows of y that lie apart as their window rows do, so that they give to the same rows at a time.
    """
    DTYPE: tl.constexpr = grad_y_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    POSITIONS: tl.constexpr = 16 if ALONE else 32 // STRIDE
    WARPS: tl.constexpr = PARTS * UNITS
    unit_block, line, strip, row_0, column_0, n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS, PARTS)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_x(
        line, columns, columns_out, ROWS, K, STRIDE, ALONE, FOLD
    )  # fmt: skip
    slot, channel = tl.arange(0, SLOTS), hidden_channels(R)[None, None, :]
    u_0 = window_row_of(PARTS, UNITS, EACH)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += c * grad_y_stride_c + j[None, :, None] * (DILATION * grad_y_stride_w)
    hidden_ptrs = hidden_ptr + n * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
    hidden_ptrs += channel * hidden_stride_c + j[None, :, None] * (DILATION * hidden_stride_w)
    is_read, in_hidden = is_position[None, :, None] & is_channel, is_position[None, :, None] & (channel < r)
    below_y, below_hidden, below_x, stretch = -u_0 // STRIDE, -window_row_of(PARTS, 1, EACH) // STRIDE, 0, 0
    if FOLD > 1:
        below_y, below_hidden = below_y + below[None, :, None], below_hidden + below[None, :, None]
        below_x, stretch = below_q[None, :, None], below // ROWS
    grad_y_ptrs += below_y * (DILATION * grad_y_stride_h)
    hidden_ptrs += below_hidden * (DILATION * hidden_stride_h)
    _, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    grad_x_ptrs = grad_x_ptr + n * grad_x_stride_n + row_0 * grad_x_stride_h + column_0 * grad_x_stride_w
    grad_x_ptrs += c * grad_x_stride_c + q[None, :, None] * (DILATION * grad_x_stride_w)
    grad_x_ptrs += below_x * (DILATION * grad_x_stride_h)
    in_line = is_column[None, :, None] & is_channel

    of_span, of_bias = span_rows(span_ptr, bias_ptr, group, u_0, slot, r, K, R)
    spans, biases = (), ()
    if KEEP_SPAN:
        for k in tl.static_range(EACH):
            spans = spans + (load_span(of_span, k, u_0, slot, r, K, DTYPE),)
            biases = biases + (load_bias(of_bias, k, u_0, slot, K),)
    sums = ()  # of the rows that the windows of a row of y meet
    for _ in tl.static_range(EACH):
        sums = sums + (tl.zeros([WARPS, LINE, WIDTH], tl.float32),)
    first = strip * ROWS * FOLD
    start = (first + PADDING - (EACH - 1) + 16 * STRIDE) // STRIDE - 16
    for i in range(start, (first + ROWS - 1 + PADDING) // STRIDE + 1):
        hidden = load_row(hidden_ptrs, i, below_hidden, rows_out, DILATION * hidden_stride_h, in_hidden).to(DTYPE)
        hidden = tl.broadcast_to(tl.expand_dims(hidden, 1), [PARTS, UNITS, POSITIONS, R])
        hidden = tl.reshape(hidden, [WARPS, POSITIONS, R])
        grad_y = load_row(grad_y_ptrs, i, below_y, rows_out, DILATION * grad_y_stride_h, is_read)
        more = ()
        for k in tl.static_range(EACH):
            if KEEP_SPAN:
                span, bias = spans[k], biases[k]
            else:
                span = load_span(of_span, k, u_0, slot, r, K, DTYPE)
                bias = load_bias(of_bias, k, u_0, slot, K)
            taps = product(hidden, span, tl.broadcast_to(bias, [WARPS, POSITIONS, SLOTS]), EXACT)
            band = band_of(taps, shift, odd, LINE, DTYPE, PTX, stretch, FOLD > 1)  # [WARPS, POSITIONS, LINE]
            more = more + (product(tl.permute(band, [0, 2, 1]), grad_y, sums[k], EXACT),)
        for done in tl.static_range(STRIDE):
            row = i * STRIDE - PADDING + done
            is_written = in_line & (row >= first) & (row < first + ROWS) & (row + below_x < rows)
            grad_x = sum_of_parts(more[done], PARTS).to(grad_x_ptr.dtype.element_ty)
            tl.store(grad_x_ptrs + row * (DILATION * grad_x_stride_h), grad_x, mask=is_written)
        sums = more[STRIDE:]
        for _ in tl.static_range(STRIDE):
            sums = sums + (tl.zeros([WARPS, LINE, WIDTH], tl.float32),)
