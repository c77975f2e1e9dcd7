"""The gradient of the aggregate's weight.

    grad_weight[n, g, u, v, a, b] = sum over c in g  grad_y[n, c, a, b] * x[n, c, place(a, u), place(b, v)]

Axes, runs and grid are those of ``aggregate_kernels``, but a program takes all channels of one group. A lane holds the
sums of a run's positions with all taps along it, for one tap v across, and goes over the channels, BLOCK_C that lie
side by side at a time: RUN + K - 1 loads of x and RUN of grad_y serve RUN * K sums, and none leaves its lane. What is
read in place of x outside the image is x inside it: sums with it are not written, zeros are.

Where the taps along a run are neighbours in memory, a position's are gathered and written at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from invbench.ops.triton_gpu.aggregate_kernels import SIZES, lines_of, programs_of


@triton.jit
def channels_of(tile, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels of a tile [BLOCK, BLOCK_C], in an order that depends on BLOCK_C alone: [BLOCK] each."""
    if BLOCK_C == 1:
        return (tl.reshape(tile, [BLOCK]),)
    else:
        even, odd = tl.split(tl.reshape(tile, [BLOCK, BLOCK_C // 2, 2]))
        return channels_of(even, BLOCK, BLOCK_C // 2) + channels_of(odd, BLOCK, BLOCK_C // 2)


@triton.jit
def row_of(parts, COUNT: tl.constexpr):
    """A tile [BLOCK, COUNT] of COUNT parts [BLOCK], COUNT a power of two."""
    if COUNT == 1:
        return parts[0]
    else:
        pairs = ()
        for k in tl.static_range(COUNT // 2):
            pairs = pairs + (tl.join(parts[k], parts[k + COUNT // 2]),)
        return row_of(pairs, COUNT // 2)


@triton.jit(do_not_specialize=SIZES)
def grad_weight_kernel(
    grad_y_ptr,  # [N, C, A_out, B_out]
    x_ptr,  # [N, C, A, B]
    grad_weight_ptr,  # [N, G, K, K, A_out, B_out]
    N, A, B, A_out, B_out, G, runs, padding, huge,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_a, grad_y_stride_b,
    x_stride_n, x_stride_c, x_stride_a, x_stride_b,
    grad_weight_stride_n, grad_weight_stride_g, grad_weight_stride_u, grad_weight_stride_v,
    grad_weight_stride_a, grad_weight_stride_b,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RUN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr, TAPS: tl.constexpr,
    SLOTS: tl.constexpr, UNIT: tl.constexpr, MET: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    IS_FAR: tl.constexpr,
):  # fmt: skip
    """Write grad_weight from grad_y and x; PARTS * BLOCK_C divides GROUP_CHANNELS, SLOTS > 0 holds a row of K taps."""
    if IS_FAR:
        x_stride_c, grad_y_stride_c = tl.cast(x_stride_c, tl.int64), tl.cast(grad_y_stride_c, tl.int64)
    APART: tl.constexpr = STRIDE // UNIT
    SPREAD: tl.constexpr = DILATION // UNIT
    block, run, group, first = programs_of(G, runs, GROUP_CHANNELS, GROUP_CHANNELS)
    n, b, is_line = lines_of(block, N, B_out, BLOCK, INDEX)
    a = tl.minimum(run * RUN, A_out - RUN)
    top = a * STRIDE - padding
    left = b * STRIDE - padding
    c = (group * GROUP_CHANNELS + tl.expand_dims(tl.arange(0, BLOCK_C), 0)).to(tl.int64)

    x_ptrs = x_ptr + c * x_stride_c + n * x_stride_n
    grad_y_ptrs = grad_y_ptr + c * grad_y_stride_c + n * grad_y_stride_n + b.to(tl.int64) * grad_y_stride_b
    grad_y_ptrs += tl.cast(a, tl.int64) * grad_y_stride_a
    written_ptrs = grad_weight_ptr + tl.cast(group, tl.int64) * grad_weight_stride_g + n * grad_weight_stride_n
    written_ptrs += b.to(tl.int64) * grad_weight_stride_b + tl.cast(a, tl.int64) * grad_weight_stride_a
    for counted in range(K):
        v = tl.minimum(counted, huge)
        across = left + v * DILATION
        inside = tl.reshape((across >= 0) & (across < B), [BLOCK])
        x_line_ptrs = x_ptrs + tl.minimum(tl.maximum(across, 0), B - 1).to(tl.int64) * x_stride_b
        for start in range(0, K, TAPS):
            begin = top + start * DILATION
            sums = ()
            for _ in tl.static_range(RUN * TAPS):
                sums = sums + (tl.zeros([BLOCK], ACC),)
            for counted_vectors in range(GROUP_CHANNELS // (PARTS * BLOCK_C)):
                channel = tl.minimum(counted_vectors, huge).to(tl.int64) * (PARTS * BLOCK_C)
                x_vector_ptrs = x_line_ptrs + channel * x_stride_c
                grad_y_vector_ptrs = grad_y_ptrs + channel * grad_y_stride_c
                for _ in tl.static_range(PARTS):
                    grad_y = ()
                    ptrs = grad_y_vector_ptrs
                    for p in tl.static_range(RUN):
                        grad_y = grad_y + channels_of(tl.load(ptrs).to(ACC), BLOCK, BLOCK_C)
                        ptrs += grad_y_stride_a
                    for q in tl.static_range((RUN - 1) * APART + (TAPS - 1) * SPREAD + 1):
                        if (MET >> q) % 2 == 1:
                            along = tl.minimum(tl.maximum(begin + q * UNIT, 0), A - 1)
                            x = tl.load(x_vector_ptrs + tl.cast(along, tl.int64) * x_stride_a).to(ACC)
                            x = channels_of(x, BLOCK, BLOCK_C)
                            more = ()
                            for p in tl.static_range(RUN):
                                for u in tl.static_range(TAPS):
                                    total = sums[p * TAPS + u]
                                    if q == p * APART + u * SPREAD:
                                        for k in tl.static_range(BLOCK_C):
                                            total += grad_y[p * BLOCK_C + k] * x[k]
                                    more = more + (total,)
                            sums = more
                    x_vector_ptrs += BLOCK_C * x_stride_c
                    grad_y_vector_ptrs += BLOCK_C * grad_y_stride_c
            tap_ptrs = written_ptrs + tl.cast(v, tl.int64) * grad_weight_stride_v
            tap_ptrs += tl.cast(start, tl.int64) * grad_weight_stride_u
            for p in tl.static_range(RUN):
                is_written = is_line & (a + p >= run * RUN)
                row = ()
                for u in tl.static_range(TAPS):
                    along = begin + (p * APART + u * SPREAD) * UNIT
                    row = row + (tl.where(inside & (along >= 0) & (along < A), sums[p * TAPS + u], 0.0),)
                if SLOTS > 0:
                    for _ in tl.static_range(SLOTS - TAPS):
                        row = row + (tl.zeros([BLOCK], ACC),)
                    slot = tl.expand_dims(tl.arange(0, SLOTS), 0)
                    tile = tl.reshape(row_of(row, SLOTS), [BLOCK, SLOTS])
                    slot_ptrs = tap_ptrs + slot.to(tl.int64) * grad_weight_stride_u
                    tl.store(slot_ptrs, tile, mask=is_written & (slot < TAPS))
                else:
                    ptrs = tap_ptrs
                    for u in tl.static_range(TAPS):
                        tl.store(ptrs, tl.expand_dims(row[u], 1), mask=is_written)
                        ptrs += grad_weight_stride_u
                tap_ptrs += grad_weight_stride_a
