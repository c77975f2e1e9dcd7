"""The aggregate and its two gradients, one kernel each.

    y[n, c, i, j]                   = sum over (u, v)  weight[n, g(c), (u, v), i, j] * x[n, c, row(i, u), col(j, v)]
    grad_x[n, c, r, q]              = sum over (u, v)  weight[n, g(c), (u, v), i, j] * grad_y[n, c, i, j]
                                      with the i and j, where there are such, that row(i, u) = r and col(j, v) = q
    grad_weight[n, g, (u, v), i, j] = sum over c in g  grad_y[n, c, i, j] * x[n, c, row(i, u), col(j, v)]
    row(i, u) = stride*i + dilation*u - padding        and col(j, v) likewise; x is zero outside the image

Layout: tensors may have any strides and are read where they lie; offsets are int64. The tile's fast axis follows the
image that is read K*K times: channels_last puts a group's channels on neighbouring lanes (one 16-byte load brings 8
bfloat16 channels), anything else puts positions there.

Grid: one axis, because the others end at 65535. A program computes BLOCK_P positions, counted through the whole batch
so that small images fill their blocks, for BLOCK_C channels of one group (grad_weight: for all channels of one group).
The groups of one block of positions are neighbours and share cache lines. Each output is written by one program, in a
fixed order of summation and without atomics: results repeat bit for bit. Sums are in float32, for float64 in float64.

Limits: zero padding only (the other modes read an extended image); coordinates that the window reaches, and the number
of programs, stay below 2**31. channels_last images are loaded one channel at a time
where C/G is odd or a memory step (C, for a dense image) is no multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ADJACENT is advice to Triton: positions, which it cannot see to lie side by side, mostly do. Without it, Triton before
# 3.7 gives neighbouring lanes different channels of contiguous images, and spills. It is not true at the end of a row,
# but harmless: it is given only where a column's step is 1, so that nothing is known of the alignment, and only loads
# known to be aligned are widened.

# Sizes differ from layer to layer, and knowing that one is 1 or divisible by 16 makes no kernel faster.
SIZES = ["N", "H", "W", "H_out", "W_out", "G", "padding"]


@triton.jit
def positions_of(block, height, width, BLOCK_P: tl.constexpr, INDEX: tl.constexpr):
    """Image, row and column of each position of a block: [BLOCK_P] each, int64, INDEX and INDEX."""
    area = tl.cast(height, tl.int64) * width
    first = tl.cast(block, tl.int64) * BLOCK_P
    first_n = first // area
    # One 64-bit division a program: counted from the start of the block's first image, positions fit INDEX.
    position = tl.cast(first - first_n * area, INDEX) + tl.arange(0, BLOCK_P)
    area = tl.cast(area, INDEX)
    n = first_n + position // area
    position = position % area
    return n, position // width, position % width


@triton.jit
def offsets_of(n, row, column, stride_n, stride_h, stride_w, BLOCK_P: tl.constexpr, ADJACENT: tl.constexpr):
    """Where each position lies in memory: [BLOCK_P], int64."""
    offsets = n * stride_n + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    if ADJACENT:
        offsets = tl.max_contiguous(offsets, BLOCK_P)
    return offsets


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr,  # [N, C, H, W]
    weight_ptr,  # [N, G, K*K, H_out, W_out]
    y_ptr,  # [N, C, H_out, W_out]
    N, H, W, H_out, W_out, G, padding,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    weight_stride_n, weight_stride_g, weight_stride_tap, weight_stride_h, weight_stride_w,
    y_stride_n, y_stride_c, y_stride_h, y_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, C_AXIS: tl.constexpr, UNROLL: tl.constexpr,
    ADJACENT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Write y from x and weight."""
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    group = (program // BLOCKS) % G
    member = (program % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, i, j = positions_of(program // (BLOCKS * G), H_out, W_out, BLOCK_P, INDEX)
    is_position = n < N
    is_channel = tl.expand_dims(member < GROUP_CHANNELS, P_AXIS)
    top = i * STRIDE - padding
    left = j * STRIDE - padding

    x_ptrs = x_ptr + tl.expand_dims(c * x_stride_c, P_AXIS)
    weight_ptrs = weight_ptr + tl.cast(group, tl.int64) * weight_stride_g
    weight_ptrs += offsets_of(n, i, j, weight_stride_n, weight_stride_h, weight_stride_w, BLOCK_P, False)
    acc = tl.zeros([BLOCK_P, BLOCK_C] if C_AXIS == 1 else [BLOCK_C, BLOCK_P], ACC)
    for u in range(K):
        row = top + u * DILATION
        in_rows = is_position & (row >= 0) & (row < H)
        x_row_offsets = n * x_stride_n + row.to(tl.int64) * x_stride_h  # [BLOCK_P]
        for v in tl.range(0, K, loop_unroll_factor=UNROLL):
            column = left + v * DILATION
            inside = tl.expand_dims(in_rows & (column >= 0) & (column < W), C_AXIS) & is_channel
            x_offsets = x_row_offsets + column.to(tl.int64) * x_stride_w
            if ADJACENT:
                x_offsets = tl.max_contiguous(x_offsets, BLOCK_P)
            x_tap_ptrs = x_ptrs + tl.expand_dims(x_offsets, C_AXIS)
            weight_tap_ptrs = weight_ptrs + tl.cast(u * K + v, tl.int64) * weight_stride_tap
            weight = tl.load(weight_tap_ptrs, mask=is_position, other=0).to(ACC)  # [BLOCK_P]
            x = tl.load(x_tap_ptrs, mask=inside, other=0).to(ACC)
            acc += tl.expand_dims(weight, C_AXIS) * x
    y_ptrs = y_ptr + tl.expand_dims(c * y_stride_c, P_AXIS)
    y_offsets = offsets_of(n, i, j, y_stride_n, y_stride_h, y_stride_w, BLOCK_P, ADJACENT)
    y_ptrs += tl.expand_dims(y_offsets, C_AXIS)
    tl.store(y_ptrs, acc, mask=tl.expand_dims(is_position, C_AXIS) & is_channel)


@triton.jit(do_not_specialize=SIZES)
def grad_x_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    weight_ptr,  # [N, G, K*K, H_out, W_out]
    grad_x_ptr,  # [N, C, H, W]
    N, H, W, H_out, W_out, G, padding,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    weight_stride_n, weight_stride_g, weight_stride_tap, weight_stride_h, weight_stride_w,
    grad_x_stride_n, grad_x_stride_c, grad_x_stride_h, grad_x_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, C_AXIS: tl.constexpr, UNROLL: tl.constexpr,
    ADJACENT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Write grad_x from grad_y and weight."""
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    group = (program // BLOCKS) % G
    member = (program % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, r, q = positions_of(program // (BLOCKS * G), H, W, BLOCK_P, INDEX)
    is_position = n < N
    is_channel = tl.expand_dims(member < GROUP_CHANNELS, P_AXIS)

    grad_y_ptrs = grad_y_ptr + tl.expand_dims(c * grad_y_stride_c, P_AXIS)
    weight_ptrs = weight_ptr + tl.cast(group, tl.int64) * weight_stride_g + n * weight_stride_n
    acc = tl.zeros([BLOCK_P, BLOCK_C] if C_AXIS == 1 else [BLOCK_C, BLOCK_P], ACC)
    for u in range(K):
        # The one output row that reads row r with tap row u, if the stride hits it.
        scaled_i = r + padding - u * DILATION
        i = scaled_i // STRIDE
        in_rows = is_position & (scaled_i >= 0) & (scaled_i % STRIDE == 0) & (i < H_out)
        grad_y_row_offsets = n * grad_y_stride_n + i.to(tl.int64) * grad_y_stride_h  # [BLOCK_P]
        weight_row_ptrs = weight_ptrs + i.to(tl.int64) * weight_stride_h
        for v in tl.range(0, K, loop_unroll_factor=UNROLL):
            scaled_j = q + padding - v * DILATION
            j = scaled_j // STRIDE
            inside = in_rows & (scaled_j >= 0) & (scaled_j % STRIDE == 0) & (j < W_out)
            j = j.to(tl.int64)
            grad_y_offsets = grad_y_row_offsets + j * grad_y_stride_w
            if ADJACENT:
                grad_y_offsets = tl.max_contiguous(grad_y_offsets, BLOCK_P)
            grad_y_tap_ptrs = grad_y_ptrs + tl.expand_dims(grad_y_offsets, C_AXIS)
            weight_tap_ptrs = weight_row_ptrs + j * weight_stride_w + tl.cast(u * K + v, tl.int64) * weight_stride_tap
            weight = tl.load(weight_tap_ptrs, mask=inside, other=0).to(ACC)  # [BLOCK_P]
            grad_y = tl.load(grad_y_tap_ptrs, mask=tl.expand_dims(inside, C_AXIS) & is_channel, other=0).to(ACC)
            acc += tl.expand_dims(weight, C_AXIS) * grad_y
    grad_x_ptrs = grad_x_ptr + tl.expand_dims(c * grad_x_stride_c, P_AXIS)
    grad_x_offsets = offsets_of(n, r, q, grad_x_stride_n, grad_x_stride_h, grad_x_stride_w, BLOCK_P, ADJACENT)
    grad_x_ptrs += tl.expand_dims(grad_x_offsets, C_AXIS)
    tl.store(grad_x_ptrs, acc, mask=tl.expand_dims(is_position, C_AXIS) & is_channel)


@triton.jit(do_not_specialize=SIZES)
def grad_weight_kernel(
    grad_y_ptr,  # [N, C, H_out, W_out]
    x_ptr,  # [N, C, H, W]
    grad_weight_ptr,  # [N, G, K*K, H_out, W_out]
    N, H, W, H_out, W_out, G, padding,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_h, grad_y_stride_w,
    x_stride_n, x_stride_c, x_stride_h, x_stride_w,
    grad_weight_stride_n, grad_weight_stride_g, grad_weight_stride_tap, grad_weight_stride_h, grad_weight_stride_w,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, C_AXIS: tl.constexpr, UNROLL: tl.constexpr,
    ADJACENT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, ROW_TAPS: tl.constexpr,
):  # fmt: skip
    """Write grad_weight from grad_y and x."""
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    program = tl.program_id(0)
    group = tl.cast(program % G, tl.int64)
    member = tl.arange(0, BLOCK_C)
    c = group * GROUP_CHANNELS + member
    n, i, j = positions_of(program // G, H_out, W_out, BLOCK_P, INDEX)
    is_position = n < N
    is_channel = tl.expand_dims(member < GROUP_CHANNELS, P_AXIS)
    top = i * STRIDE - padding
    left = j * STRIDE - padding

    x_ptrs = x_ptr + tl.expand_dims(c * x_stride_c, P_AXIS)
    grad_y_ptrs = grad_y_ptr + tl.expand_dims(c * grad_y_stride_c, P_AXIS)
    grad_y_offsets = offsets_of(n, i, j, grad_y_stride_n, grad_y_stride_h, grad_y_stride_w, BLOCK_P, ADJACENT)
    grad_y_ptrs += tl.expand_dims(grad_y_offsets, C_AXIS)
    grad_weight_ptrs = grad_weight_ptr + group * grad_weight_stride_g
    grad_weight_ptrs += offsets_of(
        n, i, j, grad_weight_stride_n, grad_weight_stride_h, grad_weight_stride_w, BLOCK_P, False
    )  # fmt: skip
    # The group's first block of channels stays in registers; the others are read again for each tap.
    grad_y = tl.load(grad_y_ptrs, mask=tl.expand_dims(is_position, C_AXIS) & is_channel, other=0).to(ACC)
    if ROW_TAPS > 0:
        tap_columns = tl.expand_dims(tl.arange(0, ROW_TAPS), 0)  # [1, ROW_TAPS]
        tap_row = tl.zeros([BLOCK_P, ROW_TAPS], ACC)
    for u in range(K):
        row = top + u * DILATION
        in_rows = is_position & (row >= 0) & (row < H)
        x_row_offsets = n * x_stride_n + row.to(tl.int64) * x_stride_h  # [BLOCK_P]
        for v in tl.range(0, K, loop_unroll_factor=UNROLL):
            column = left + v * DILATION
            inside = tl.expand_dims(in_rows & (column >= 0) & (column < W), C_AXIS)
            x_offsets = x_row_offsets + column.to(tl.int64) * x_stride_w
            if ADJACENT:
                x_offsets = tl.max_contiguous(x_offsets, BLOCK_P)
            x_tap_ptrs = x_ptrs + tl.expand_dims(x_offsets, C_AXIS)
            products = grad_y * tl.load(x_tap_ptrs, mask=inside & is_channel, other=0).to(ACC)
            for start in range(BLOCK_C, GROUP_CHANNELS, BLOCK_C):
                more = tl.expand_dims(start + member < GROUP_CHANNELS, P_AXIS)
                grad_y_more_ptrs = grad_y_ptrs + tl.cast(start, tl.int64) * grad_y_stride_c
                x_more_ptrs = x_tap_ptrs + tl.cast(start, tl.int64) * x_stride_c
                grad_y_more = tl.load(grad_y_more_ptrs, mask=tl.expand_dims(is_position, C_AXIS) & more, other=0)
                products += grad_y_more.to(ACC) * tl.load(x_more_ptrs, mask=inside & more, other=0).to(ACC)
            gradient = tl.sum(products, C_AXIS)  # [BLOCK_P]
            if ROW_TAPS > 0:
                tap_row = tl.where(tap_columns == v, tl.expand_dims(gradient, 1), tap_row)
            else:
                tap_ptrs = grad_weight_ptrs + tl.cast(u * K + v, tl.int64) * grad_weight_stride_tap
                tl.store(tap_ptrs, gradient, mask=is_position)
        if ROW_TAPS > 0:
            tap_offsets = (u * K + tap_columns).to(tl.int64) * grad_weight_stride_tap
            is_tap = tl.expand_dims(is_position, 1) & (tap_columns < K)
            tl.store(tl.expand_dims(grad_weight_ptrs, 1) + tap_offsets, tap_row, mask=is_tap)
