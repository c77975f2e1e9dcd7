"""The gradients of hidden channels, span and bias, with the weight's gradient on chip only.

grad_hidden and the gradients of span and bias sum over groups and positions. Programs write sums of their own, which
are then added in a fixed order; or, with ATOMIC, add to one result in the order in which they finish.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.band import product, taps_of
from invbench.ops.triton_gpu.span_kernels import load_span
from invbench.ops.triton_gpu.walking import SIZES, WIDTH, channels_of, extents_of, line_of_y, load_row, place_of


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
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    TERMS: tl.constexpr = max(16, SLOTS)  # matrix units sum over 16 at least
    alone, line, strip, row_0, column_0, n = place_of(tl.program_id(0), 1, lines, strips, DILATION)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, is_position, q, is_column = line_of_y(line, columns, columns_out, K, STRIDE, Q)
    in_columns, in_line = is_column[None, None, :], is_position[None, :, None]
    first = strip * HEIGHT
    x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += q[None, None, :] * (DILATION * x_stride_w)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += j[None, :, None] * (DILATION * grad_y_stride_w)
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
    ptrs = grad_hidden_ptr + n * grad_hidden_stride_n + row_0 * grad_hidden_stride_h + column_0 * grad_hidden_stride_w
    ptrs += channel * grad_hidden_stride_c + j[:, None] * (DILATION * grad_hidden_stride_w)
    for k in tl.static_range(HEIGHT):
        is_written = is_position[:, None] & (channel < r) & (first + k < rows_out)
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
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + WIDTH - 1) // WIDTH
    R_BLOCKS: tl.constexpr = (r + R - 1) // R
    unit_block = tl.program_id(0) % unit_blocks
    channel = ((tl.program_id(0) // unit_blocks) % R_BLOCKS) * R + tl.arange(0, R)[:, None]  # [R, 1]
    share = tl.program_id(0) // unit_blocks // R_BLOCKS
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    for_span, for_bias = (), ()
    for u in tl.static_range(K):
        for_span = for_span + (tl.zeros([UNITS, R, SLOTS], tl.float32),)
        for_bias = for_bias + (tl.zeros([UNITS, LINE, SLOTS], tl.float32),)
    for tile in range(share * tiles_each, min(share * tiles_each + tiles_each, tiles)):
        alone, line, strip, row_0, column_0, n = place_of(tile, 1, lines, strips, DILATION)
        rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
        j, shift, odd, is_position, q, is_column = line_of_y(line, columns, columns_out, K, STRIDE, Q)
        in_columns, in_line = is_column[None, :, None] & is_channel, is_position[None, :, None] & is_channel
        in_hidden = is_position[None, :] & (channel < r)
        x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
        x_ptrs += c * x_stride_c + q[None, :, None] * (DILATION * x_stride_w)
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
