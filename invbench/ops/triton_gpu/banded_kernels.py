"""The aggregate and its two gradients in 16 bits on the matrix units, with the weight given.

A window row of the aggregate is a banded product (``band``), whose band is loaded; programs walk as ``walking`` says. A
group has at most one unit where its weight's gradient is written. Infinities and NaN spread as in ``span_kernels``.
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
    kept_row_transposed,
    product,
    row_of,
    taps_of,
    transposed_row_of,
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
)  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def banded_forward_kernel(
    x_ptr,  # [N, C, H, W]
    weight_ptr,  # [N, G, K*K, H_out, W_out]
    y_ptr,  # [N, C, H_out, W_out]
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_g, weight_stride_tap, weight_stride_h, weight_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SLOTS: tl.constexpr,
    Q: tl.constexpr, UNITS: tl.constexpr, FOLD: tl.constexpr, AT_ONCE: tl.constexpr, THIRDS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Write y, LINE = 16 columns of ROWS rows of UNITS units a program; a trip of its loop AT_ONCE rows, a divisor."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    unit_block, line, strip, row_0, column_0, n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_y(
        line, columns, columns_out, ROWS, by_sixteen(band_columns(16), Q // 16), K, STRIDE, Q, FOLD
    )  # fmt: skip
    j, is_position = j[None, :, None], is_position[None, :, None]  # [1, LINE, 1]
    in_columns = is_column & is_channel[None, :, :, :]  # [Q // 16, UNITS, 16, WIDTH]
    if FOLD > 1:
        below = below[None, :, None]
    slot = tl.arange(0, SLOTS)[None, None, :]
    x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += c[None, :, :, :] * x_stride_c + q * (DILATION * x_stride_w) + below_q * (DILATION * x_stride_h)
    y_ptrs = y_ptr + n * y_stride_n + row_0 * y_stride_h + column_0 * y_stride_w
    y_ptrs += c * y_stride_c + j * (DILATION * y_stride_w) + below * (DILATION * y_stride_h)
    weight_ptrs = weight_ptr + n * weight_stride_n + row_0 * weight_stride_h + column_0 * weight_stride_w
    weight_ptrs += group[:, None, None] * weight_stride_g + slot * weight_stride_tap + j * (DILATION * weight_stride_w)
    weight_ptrs += below * (DILATION * weight_stride_h)

    first = strip * ROWS * FOLD
    kept = ()
    for u in tl.static_range(K - STRIDE):
        row = first * STRIDE - PADDING + u
        x = load_row(x_ptrs, row, below_q, rows, DILATION * x_stride_h, in_columns)
        kept = kept + (kept_row(x, THIRDS),)
    for start in range(first, first + ROWS, AT_ONCE):
        for at in tl.static_range(AT_ONCE):
            i = start + at
            for fresh in tl.static_range(STRIDE):
                row = i * STRIDE - PADDING + (K - STRIDE) + fresh
                x = load_row(x_ptrs, row, below_q, rows, DILATION * x_stride_h, in_columns)
                kept = kept + (kept_row(x, THIRDS),)
            y = tl.zeros([UNITS, LINE, WIDTH], tl.float32)
            third_before, row_before = tl.zeros([UNITS, LINE, 4], tl.int32), tl.zeros([2, UNITS, 8, 4], tl.int32)
            for u in tl.static_range(K):
                ptrs = weight_ptrs + u * K * weight_stride_tap
                taps = load_row(ptrs, i, below, rows_out, DILATION * weight_stride_h, is_position & (slot < K))
                if THIRDS:
                    band, third = band_in_thirds(taps, shift, odd, DTYPE, False)
                    y = product(band, two_of(kept[u][0], kept[u][1], DTYPE), y, EXACT)
                    y = add_third(y, third_before, third, row_before, kept[u][2], u % 2 == 1, u == K - 1, DTYPE, EXACT)
                    third_before, row_before = third, kept[u][2]
                else:
                    y = product(band_of(taps, shift, odd, Q, DTYPE, False), row_of(kept[u], DTYPE), y, EXACT)
            kept = kept[STRIDE:]
            is_written = is_position & is_channel & (i + below < rows_out)
            tl.store(y_ptrs + i * (DILATION * y_stride_h), y.to(DTYPE), mask=is_written)


@triton.jit(do_not_specialize=SIZES)
def banded_grad_x_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    weight_ptr,  # [N, G, K*K, H_out, W_out]
    grad_x_ptr,  # [N, C, H, W]
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    weight_stride_n, weight_stride_g, weight_stride_tap, weight_stride_h, weight_stride_w,
    grad_x_stride_n, grad_x_stride_c, grad_x_stride_h, grad_x_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SLOTS: tl.constexpr,
    UNITS: tl.constexpr, ALONE: tl.constexpr, FOLD: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write grad_x, LINE = 16 columns of ROWS rows of UNITS units a program; ROWS is a multiple of STRIDE."""
    DTYPE: tl.constexpr = grad_y_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    unit_block, line, strip, row_0, column_0, n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_x(
        line, columns, columns_out, ROWS, K, STRIDE, ALONE, FOLD
    )  # fmt: skip
    stretch = 0
    j, is_position = j[None, :, None], is_position[None, :, None]  # [1, POSITIONS, 1]
    q, in_line = q[None, :, None], is_column[None, :, None] & is_channel  # [1, LINE, 1], [UNITS, LINE, WIDTH]
    if FOLD > 1:
        below, below_q, stretch = below[None, :, None], below_q[None, :, None], below // ROWS
    slot = tl.arange(0, SLOTS)[None, None, :]
    grad_x_ptrs = grad_x_ptr + n * grad_x_stride_n + row_0 * grad_x_stride_h + column_0 * grad_x_stride_w
    grad_x_ptrs += c * grad_x_stride_c + q * (DILATION * grad_x_stride_w) + below_q * (DILATION * grad_x_stride_h)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += c * grad_y_stride_c + j * (DILATION * grad_y_stride_w) + below * (DILATION * grad_y_stride_h)
    weight_ptrs = weight_ptr + n * weight_stride_n + row_0 * weight_stride_h + column_0 * weight_stride_w
    weight_ptrs += group[:, None, None] * weight_stride_g + slot * weight_stride_tap + j * (DILATION * weight_stride_w)
    weight_ptrs += below * (DILATION * weight_stride_h)

    sums = ()
    for u in tl.static_range(K):
        sums = sums + (tl.zeros([UNITS, LINE, WIDTH], tl.float32),)
    first = strip * ROWS * FOLD
    start = (first + PADDING - (K - 1) + 16 * STRIDE) // STRIDE - 16
    for i in range(start, (first + ROWS - 1 + PADDING) // STRIDE + 1):
        grad_y = load_row(grad_y_ptrs, i, below, rows_out, DILATION * grad_y_stride_h, is_position & is_channel)
        more = ()
        for u in tl.static_range(K):
            ptrs = weight_ptrs + u * K * weight_stride_tap
            taps = load_row(ptrs, i, below, rows_out, DILATION * weight_stride_h, is_position & (slot < K))
            band = band_of(taps, shift, odd, LINE, DTYPE, False, stretch, FOLD > 1)  # [UNITS, POSITIONS, LINE]
            more = more + (product(tl.permute(band, [0, 2, 1]), grad_y, sums[u], EXACT),)
        for done in tl.static_range(STRIDE):
            row = i * STRIDE - PADDING + done
            is_written = in_line & (row >= first) & (row < first + ROWS) & (row + below_q < rows)
            tl.store(grad_x_ptrs + row * (DILATION * grad_x_stride_h), more[done].to(DTYPE), mask=is_written)
        sums = more[STRIDE:]
        for _ in tl.static_range(STRIDE):
            sums = sums + (tl.zeros([UNITS, LINE, WIDTH], tl.float32),)


@triton.jit(do_not_specialize=SIZES)
def banded_grad_weight_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    x_ptr,  # [N, C, H, W]
    grad_weight_ptr,  # [N, G, K*K, H_out, W_out]
    H, W, H_out, W_out, unit_blocks, lines, strips, ROWS,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    grad_weight_stride_n, grad_weight_stride_g, grad_weight_stride_tap, grad_weight_stride_h, grad_weight_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, SLOTS: tl.constexpr,
    Q: tl.constexpr, UNITS: tl.constexpr, FOLD: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr,
):  # fmt: skip
    """Write grad_weight, LINE = 16 columns of ROWS rows of UNITS groups, of up to WIDTH channels, a program."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    LINE: tl.constexpr = 16
    PADDING: tl.constexpr = K // 2
    unit_block, line, strip, row_0, column_0, n = place_of(tl.program_id(0), unit_blocks, lines, strips, DILATION)
    group, c, is_channel = channels_of(unit_block, GROUP_CHANNELS, UNITS)
    rows, columns, rows_out, columns_out = extents_of(H, W, H_out, W_out, row_0, column_0, DILATION)
    j, shift, odd, below, is_position, q, below_q, is_column = line_of_y(
        line, columns, columns_out, ROWS, by_sixteen(tl.arange(0, 16), Q // 16), K, STRIDE, Q, FOLD
    )  # fmt: skip
    j, is_position = j[None, :, None], is_position[None, :, None]  # [1, LINE, 1]
    in_columns = is_column & is_channel[None, :, :, :]  # [Q // 16, UNITS, 16, WIDTH]
    if FOLD > 1:
        below = below[None, :, None]
    slot = tl.arange(0, SLOTS)[None, None, :]
    x_ptrs = x_ptr + n * x_stride_n + row_0 * x_stride_h + column_0 * x_stride_w
    x_ptrs += c[None, :, :, :] * x_stride_c + q * (DILATION * x_stride_w) + below_q * (DILATION * x_stride_h)
    grad_y_ptrs = grad_y_ptr + n * grad_y_stride_n + row_0 * grad_y_stride_h + column_0 * grad_y_stride_w
    grad_y_ptrs += c * grad_y_stride_c + j * (DILATION * grad_y_stride_w) + below * (DILATION * grad_y_stride_h)
    ptrs = grad_weight_ptr + n * grad_weight_stride_n + row_0 * grad_weight_stride_h + column_0 * grad_weight_stride_w
    ptrs += group[:, None, None] * grad_weight_stride_g + slot * grad_weight_stride_tap
    ptrs += j * (DILATION * grad_weight_stride_w) + below * (DILATION * grad_weight_stride_h)
    in_line = is_position & is_channel

    first = strip * ROWS * FOLD
    kept = ()
    for u in tl.static_range(K - STRIDE):
        row = first * STRIDE - PADDING + u
        x = load_row(x_ptrs, row, below_q, rows, DILATION * x_stride_h, in_columns)
        kept = kept + (kept_row_transposed(x),)
    for i in range(first, first + ROWS):
        for fresh in tl.static_range(STRIDE):
            row = i * STRIDE - PADDING + (K - STRIDE) + fresh
            x = load_row(x_ptrs, row, below_q, rows, DILATION * x_stride_h, in_columns)
            kept = kept + (kept_row_transposed(x),)
        grad_y = load_row(grad_y_ptrs, i, below, rows_out, DILATION * grad_y_stride_h, in_line)
        for u in tl.static_range(K):
            band = tl.zeros([UNITS, LINE, Q], tl.float32)
            band = product(grad_y, transposed_row_of(kept[u], DTYPE), band, EXACT)
            taps = taps_of(band, shift, odd, K, SLOTS, DTYPE, PTX)
            tap_ptrs = ptrs + i * (DILATION * grad_weight_stride_h) + u * K * grad_weight_stride_tap
            tl.store(tap_ptrs, taps, mask=is_position & (slot < K) & (i + below < rows_out))
        kept = kept[STRIDE:]
