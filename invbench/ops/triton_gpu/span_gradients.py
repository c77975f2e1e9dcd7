"""The gradients of hidden channels, span and bias, with the weight's gradient on chip only.

grad_hidden and the gradients of span and bias sum over groups and positions. Programs write sums of their own, which
are then added in a fixed order; or, with ATOMIC, add to one result in the order in which they finish.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.band import kept_row_transposed, product, taps_of, transposed_row_of
from invbench.ops.triton_gpu.walking import (
    SIZES,
    WIDTH,
    by_sixteen,
    channels_of,
    extents_of,
    line_of_y,
    load_row,
    place_of,
    window_row_of,
)  # fmt: skip


@triton.jit
def load_terms(span_ptr, group, u, r, K: tl.constexpr, R: tl.constexpr, SLOTS: tl.constexpr, DTYPE: tl.constexpr):
    """The span's rows whose taps ``terms_of`` joins, from window row u on: [UNITS, R, 16]; zeros from row K on."""
    AT_ONCE: tl.constexpr = 16 // SLOTS
    channel, term = tl.arange(0, R)[None, :, None], tl.arange(0, 16)[None, None, :]
    u, slot = u + term % AT_ONCE, term // AT_ONCE
    inside = (slot < K) & (channel < r) & (u < K)
    return tl.load(span_ptr + ((group[:, None, None] * K + u) * K + slot) * r + channel, mask=inside, other=0).to(DTYPE)


@triton.jit
def terms_of(taps, next_taps, AT_ONCE: tl.constexpr):
    """What matrix units sum over at once [UNITS, LINE, 16]: the taps [UNITS, LINE, SLOTS] of two window rows, by turns,
    or of one that has as many slots."""
    if AT_ONCE == 2:
        taps = tl.reshape(tl.join(taps, next_taps), [taps.shape[0], taps.shape[1], 16])
    return taps


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
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, FOLD: tl.constexpr,
    HEIGHT: tl.constexpr, KEEP_SPAN: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Write grad_hidden, LINE = 16 columns of HEIGHT rows a program, which goes through all units."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    AT_ONCE: tl.constexpr = 16 // SLOTS  # window rows: matrix units sum over 16 terms at least
    alone, line, strip, row_0, column_0, n = place_of(tl.program_id(0), 1, lines, strips, DILATION)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_y(
        line, columns, columns_out, HEIGHT, tl.arange(0, Q), K, STRIDE, Q, FOLD
    )  # fmt: skip
    in_columns, in_line = is_column[None, None, :], is_position[None, :, None]
    first = strip * HEIGHT * FOLD
    below_x, below_y, below_hidden = 0, 0, 0
    if FOLD > 1:
        below_x, below_y, below_hidden = below_q[None, None, :], below[None, :, None], below[:, None]
    x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += q[None, None, :] * (DILATION * x_stride_w) + below_x * (DILATION * x_stride_h)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += j[None, :, None] * (DILATION * grad_y_stride_w) + below_y * (DILATION * grad_y_stride_h)
    sums, waiting = (), ()
    for _ in tl.static_range(HEIGHT):
        sums = sums + (tl.zeros([UNITS, LINE, R], tl.float32),)
        waiting = waiting + (tl.zeros([UNITS, LINE, SLOTS], DTYPE),)
    nothing = tl.zeros([UNITS, LINE, SLOTS], DTYPE)
    for unit_block in range(unit_blocks):
        group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
        spans = ()
        if KEEP_SPAN:
            for u in tl.static_range(0, K, AT_ONCE):
                spans = spans + (load_terms(span_ptr, group, u, r, K, R, SLOTS, DTYPE),)
        grad_ys = ()
        for k in tl.static_range(HEIGHT):
            ptrs, is_read = grad_y_ptrs + c * grad_y_stride_c, in_line & is_channel
            grad_y = load_row(ptrs, first + k, below_y, rows_out, DILATION * grad_y_stride_h, is_read)
            grad_ys = grad_ys + (grad_y,)
        c, is_channel = tl.permute(c, [0, 2, 1]), tl.permute(is_channel, [0, 2, 1])  # [UNITS, WIDTH, 1]
        for t in tl.static_range(STRIDE * (HEIGHT - 1) + K):
            row = first * STRIDE - PADDING + t
            x = load_row(x_ptrs + c * x_stride_c, row, below_x, rows, DILATION * x_stride_h, in_columns & is_channel)
            more, later = (), ()
            for k in tl.static_range(HEIGHT):
                total, taps = sums[k], waiting[k]
                if t >= STRIDE * k and t < STRIDE * k + K:
                    band = product(grad_ys[k], x, tl.zeros([UNITS, LINE, Q], tl.float32), EXACT)
                    before, taps = taps, taps_of(band, shift, odd, K, SLOTS, DTYPE, PTX)
                    if (t - STRIDE * k) % AT_ONCE == AT_ONCE - 1 or t - STRIDE * k == K - 1:
                        if KEEP_SPAN:
                            span = spans[(t - STRIDE * k) // AT_ONCE]
                        else:
                            u = (t - STRIDE * k) // AT_ONCE * AT_ONCE
                            span = load_terms(span_ptr, group, u, r, K, R, SLOTS, DTYPE)
                        if (t - STRIDE * k) % AT_ONCE == 1:
                            terms = terms_of(before, taps, AT_ONCE)
                        else:
                            terms = terms_of(taps, nothing, AT_ONCE)
                        total = product(terms, tl.permute(span, [0, 2, 1]), total, EXACT)
                more, later = more + (total,), later + (taps,)
            sums, waiting = more, later
    channel = tl.arange(0, R)[None, :]
    ptrs = grad_hidden_ptr + n * grad_hidden_stride_n + row_0 * grad_hidden_stride_h + column_0 * grad_hidden_stride_w
    ptrs += channel * grad_hidden_stride_c + j[:, None] * (DILATION * grad_hidden_stride_w)
    ptrs += below_hidden * (DILATION * grad_hidden_stride_h)
    for k in tl.static_range(HEIGHT):
        is_written = is_position[:, None] & (channel < r) & (first + k + below_hidden < rows_out)
        grad_hidden = tl.sum(sums[k], 0).to(grad_hidden_ptr.dtype.element_ty)
        tl.store(ptrs + (first + k) * (DILATION * grad_hidden_stride_h), grad_hidden, mask=is_written)


@triton.jit(do_not_specialize=SIZES)
def span_grad_span_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    x_ptr,  # [N, C, H, W]
    hidden_ptr,  # [N, r, H_out, W_out]
    span_ptr,  # [G*K*K, r], dense
    grad_hidden_ptr,  # [N, r, H_out, W_out]
    grad_span_ptr,  # [SHARES, BLOCKS, G*K*K, r] float32, dense; with ATOMIC [G*K*K, r], zeros
    grad_bias_ptr,  # [SHARES, BLOCKS, G*K*K] float32, dense; with ATOMIC [G*K*K], zeros
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS, tiles, tiles_each, taps_all,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    hidden_stride_n, hidden_stride_c, hidden_stride_h, hidden_stride_w,
    grad_hidden_stride_n, grad_hidden_stride_c, grad_hidden_stride_h, grad_hidden_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, r: tl.constexpr,
    R: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, UNITS: tl.constexpr, FOLD: tl.constexpr,
    PARTS: tl.constexpr, EACH: tl.constexpr, WITH_HIDDEN: tl.constexpr, ATOMIC: tl.constexpr, EXACT: tl.constexpr,
    PTX: tl.constexpr,
):  # fmt: skip
    """Write what a share of the tiles gives to the gradients of span and bias for UNITS units, and WITH_HIDDEN, where
    these are all units, grad_hidden of the tiles."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + WIDTH - 1) // WIDTH
    WARPS: tl.constexpr = PARTS * UNITS
    AT_ONCE: tl.constexpr = 16 // SLOTS
    unit_block = tl.program_id(0) % unit_blocks
    share = tl.program_id(0) // unit_blocks
    channel = tl.arange(0, R)[:, None]
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS, PARTS)
    u_0 = window_row_of(PARTS, UNITS, EACH)
    spans, nothing = (), tl.zeros([WARPS, LINE, SLOTS], DTYPE)
    if WITH_HIDDEN:
        for k in tl.static_range(0, EACH, AT_ONCE):
            spans = spans + (load_terms(span_ptr, group, u_0 + k, r, K, R, SLOTS, DTYPE),)
    for_span, for_bias = (), ()
    for _ in tl.static_range(EACH):
        for_span = for_span + (tl.zeros([WARPS, R, SLOTS], tl.float32),)
        for_bias = for_bias + (tl.zeros([WARPS, LINE, SLOTS], tl.float32),)
    for tile in range(share * tiles_each, min(share * tiles_each + tiles_each, tiles)):
        alone, line, strip, row_0, column_0, n = place_of(tile, 1, lines, strips, DILATION)
        rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
        j, shift, odd, below, is_position, q, below_q, is_column = line_of_y(
            line, columns, columns_out, ROWS, by_sixteen(tl.arange(0, 16), Q // 16), K, STRIDE, Q, FOLD
        )  # fmt: skip
        in_columns, in_line = is_column & is_channel[None, :, :, :], is_position[None, :, None] & is_channel
        in_hidden = is_position[None, :] & (channel < r)
        below_x, below_y, below_hidden = below_q, 0, 0
        if PARTS > 1:
            below_x += u_0[None, :, :, :]
        if FOLD > 1:
            below_y, below_hidden = below[None, :, None], below[None, :]
        x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
        x_ptrs += c[None, :, :, :] * x_stride_c + q * (DILATION * x_stride_w) + below_x * (DILATION * x_stride_h)
        grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
        grad_y_ptrs += c * grad_y_stride_c + j[None, :, None] * (DILATION * grad_y_stride_w)
        grad_y_ptrs += below_y * (DILATION * grad_y_stride_h)
        hidden_ptrs = hidden_ptr + n * hidden_stride_n + row_0 * hidden_stride_h + column_0 * hidden_stride_w
        hidden_ptrs += channel * hidden_stride_c + j[None, :] * (DILATION * hidden_stride_w)
        hidden_ptrs += below_hidden * (DILATION * hidden_stride_h)
        grad_hidden_ptrs = grad_hidden_ptr + n * grad_hidden_stride_n
        if WITH_HIDDEN:
            grad_hidden_ptrs += row_0 * grad_hidden_stride_h + column_0 * grad_hidden_stride_w
            grad_hidden_ptrs += tl.trans(channel) * grad_hidden_stride_c + j[:, None] * (
                DILATION * grad_hidden_stride_w
            )
            in_grad_hidden, below_grad_hidden = is_position[:, None] & (tl.trans(channel) < r), 0
            if FOLD > 1:
                below_grad_hidden = below[:, None]
            grad_hidden_ptrs += below_grad_hidden * (DILATION * grad_hidden_stride_h)
        first = strip * ROWS * FOLD
        kept = ()
        for k in tl.static_range(EACH - STRIDE):
            row = first * STRIDE - PADDING + k
            x = load_row(x_ptrs, row, below_x, rows, DILATION * x_stride_h, in_columns)
            kept = kept + (kept_row_transposed(x),)
        for i in range(first, first + ROWS):
            hidden = load_row(hidden_ptrs, i, below_hidden, rows_out, DILATION * hidden_stride_h, in_hidden).to(DTYPE)
            hidden = tl.broadcast_to(tl.expand_dims(hidden, 0), [WARPS, R, LINE])
            grad_y = load_row(grad_y_ptrs, i, below_y, rows_out, DILATION * grad_y_stride_h, in_line)
            for fresh in tl.static_range(STRIDE):
                row = i * STRIDE - PADDING + (EACH - STRIDE) + fresh
                x = load_row(x_ptrs, row, below_x, rows, DILATION * x_stride_h, in_columns)
                kept = kept + (kept_row_transposed(x),)
            more_span, more_bias, taps = (), (), nothing
            grad_hidden = tl.zeros([WARPS, LINE, R], tl.float32)
            for k in tl.static_range(EACH):
                band = tl.zeros([WARPS, LINE, Q], tl.float32)
                band = product(grad_y, transposed_row_of(kept[k], DTYPE), band, EXACT)
                before, taps = taps, taps_of(band, shift, odd, K, SLOTS, DTYPE, PTX)
                if WITH_HIDDEN and (k % AT_ONCE == AT_ONCE - 1 or k == EACH - 1):
                    terms = terms_of(before, taps, AT_ONCE) if k % AT_ONCE == 1 else terms_of(taps, nothing, AT_ONCE)
                    span = tl.permute(spans[k // AT_ONCE], [0, 2, 1])
                    grad_hidden = product(terms, span, grad_hidden, EXACT)
                more_span = more_span + (product(hidden, taps, for_span[k], EXACT),)
                more_bias = more_bias + (for_bias[k] + taps.to(tl.float32),)
            for_span, for_bias = more_span, more_bias
            kept = kept[STRIDE:]
            if WITH_HIDDEN:
                tl.store(
                    grad_hidden_ptrs + i * (DILATION * grad_hidden_stride_h),
                    tl.sum(grad_hidden, 0).to(grad_hidden_ptr.dtype.element_ty),
                    mask=in_grad_hidden & (i + below_grad_hidden < rows_out),
                )
    slot = tl.arange(0, SLOTS)[None, None, :]
    unit = unit_block * UNITS + tl.arange(0, WARPS) % UNITS
    if not ATOMIC:
        share_block = share.to(tl.int64) * BLOCKS
        grad_span_ptr += (share_block * taps_all) * r
        grad_bias_ptr += share_block * taps_all
        block_offset = (unit % BLOCKS)[:, None, None] * taps_all
    else:
        block_offset = (unit * 0)[:, None, None]
    for k in tl.static_range(EACH):
        tap = block_offset + (group[:, None, None] * K + u_0 + k) * K + slot  # [WARPS, 1, SLOTS]
        is_tap = (slot < K) & (u_0 + k < K) & (unit >= 0)[:, None, None]
        grad_bias = tl.sum(for_bias[k], 1, keep_dims=True)  # [WARPS, 1, SLOTS]
        span_ptrs = grad_span_ptr + tap * r + channel[None, :, :]
        if ATOMIC:
            tl.atomic_add(span_ptrs, for_span[k], mask=is_tap & (channel < r)[None, :, :], sem="relaxed")
            tl.atomic_add(grad_bias_ptr + tap, grad_bias, mask=is_tap, sem="relaxed")
        else:
            tl.store(span_ptrs, for_span[k], mask=is_tap & (channel < r)[None, :, :])
            tl.store(grad_bias_ptr + tap, grad_bias, mask=is_tap)
