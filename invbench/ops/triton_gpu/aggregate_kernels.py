"""The aggregate and the gradient of its image, one kernel each; ``aggregate_grad_weight`` has the other gradient.

    y[n, c, a, b]      = sum over (u, v)  weight[n, g(c), u, v, a, b] * x[n, c, place(a, u), place(b, v)]
    grad_x[n, c, r, q] = sum over (u, v)  weight[n, g(c), u, v, a, b] * grad_y[n, c, a, b]
                         with the a and b, where there are such, that place(a, u) = r and place(b, v) = q
    place(a, u)        = stride*a + dilation*u - padding, and place(b, v) likewise; x is zero outside the image

Axes: A is the one that runs lie along, B the one across them. Where channels are the fastest dimension in memory A are
the columns, otherwise the rows: neighbouring lanes hold a group's channels (one 16-byte load brings 4 of float32), or
neighbouring columns. Tensors may have any strides and are read where they lie; offsets are int64, or fit int32 where
nothing IS_FAR.

Tile: a lane holds a run of RUN positions along A, for PARTS channels or vectors of channels, in registers: for each tap
v across, an x is loaded once for all positions of the run that it meets (RUN + K - 1 loads where positions one by one
make RUN * K), and a weight once. The run's coordinate along A is the whole program's, so that loads outside the image
are branched around. A loop goes over the taps across; those along the run are unrolled, TAPS at a time.

Grid: one axis, because the others end at 65535. A program computes one run of BLOCK lines, counted through the whole
batch so that small images fill their blocks, for PARTS * BLOCK_C channels of one group. The groups of one run are
neighbours, then the runs of one block of lines: they share cache lines. Each output is written by one program, in a
fixed order of summation and without atomics: results repeat bit for bit. Sums are in float32, for float64 in float64.

Limits: zero padding only (the other modes read an extended image); coordinates that the window reaches, and the number
of programs, stay below 2**31. channels_last images are loaded one channel at a time where C/G is odd or a memory step
(C, for a dense image) is no multiple of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Sizes differ from layer to layer, and knowing that one is 1 or divisible by 16 makes no kernel faster.
SIZES = ["N", "H", "W", "A", "B", "A_out", "B_out", "G", "runs", "padding", "huge"]

# ADJACENT is advice to Triton: lines, which it cannot see to lie side by side, mostly do. Without it, neighbouring
# lanes get different channels of contiguous images. It is not true at the end of a row, but harmless: it is given only
# where a column's step is 1, so that nothing is known of the alignment, and only loads known to be aligned are widened.

# ``tl.minimum(.., huge)`` hides from compilers that a loop's taps are equally far apart in memory: knowing it, they
# keep an address for each load of the loop, many more than there are registers. Nothing exceeds ``huge``.


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


@triton.jit
def lines_of(block, N, size, BLOCK: tl.constexpr, INDEX: tl.constexpr):
    """Image, coordinate and existence of each line of a block: [BLOCK, 1] each; those that do not exist lie in the
    last image, so that what is read for them does."""
    line = tl.cast(block, INDEX) * BLOCK + tl.expand_dims(tl.arange(0, BLOCK), 1)
    n = line // size
    return tl.minimum(n, N - 1).to(tl.int64), line % size, n < N


@triton.jit
def programs_of(G, runs, GROUP_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of this program: its block of lines, its run, its group, and its first channel in the group."""
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + CHANNELS - 1) // CHANNELS
    program = tl.program_id(0)
    group = (program // BLOCKS) % G
    program_of_run = program // (BLOCKS * G)
    return program_of_run // runs, program_of_run % runs, group, (program % BLOCKS) * CHANNELS


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    x_ptr,  # [N, C, A, B]
    weight_ptr,  # [N, G, K, K, A_out, B_out]
    y_ptr,  # [N, C, A_out, B_out]
    N, A, B, A_out, B_out, G, runs, padding, huge,
    x_stride_n, x_stride_c, x_stride_a, x_stride_b,
    weight_stride_n, weight_stride_g, weight_stride_u, weight_stride_v, weight_stride_a, weight_stride_b,
    y_stride_n, y_stride_c, y_stride_a, y_stride_b,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RUN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr, TAPS: tl.constexpr,
    UNIT: tl.constexpr, MET: tl.constexpr, X_STEP: tl.constexpr, WEIGHT_STEP: tl.constexpr,
    ADJACENT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, IS_FAR: tl.constexpr,
):  # fmt: skip
    """Write y from x and weight."""
    if IS_FAR:
        x_stride_c, x_stride_a = tl.cast(x_stride_c, tl.int64), tl.cast(x_stride_a, tl.int64)
        weight_stride_u, y_stride_c = tl.cast(weight_stride_u, tl.int64), tl.cast(y_stride_c, tl.int64)
    # What the next position and the next tap of the run's axis are apart, in units of UNIT, which divides both; of
    # single positions, the taps only.
    APART: tl.constexpr = STRIDE // UNIT
    SPREAD: tl.constexpr = DILATION // UNIT
    block, run, group, first = programs_of(G, runs, GROUP_CHANNELS, PARTS * BLOCK_C)
    member = first + tl.expand_dims(tl.arange(0, BLOCK_C), 0)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, b, is_line = lines_of(block, N, B_out, BLOCK, INDEX)
    # The last run ends where the image does: it repeats positions of the one before, and does not write them.
    a = tl.minimum(run * RUN, A_out - RUN)
    top = a * STRIDE - padding
    left = b * STRIDE - padding

    x_step = X_STEP if X_STEP > 0 else x_stride_a
    weight_step = WEIGHT_STEP if WEIGHT_STEP > 0 else weight_stride_a
    x_line = n * x_stride_n + left.to(tl.int64) * x_stride_b
    y_line = n * y_stride_n + b.to(tl.int64) * y_stride_b
    if ADJACENT:
        x_line = tl.max_contiguous(x_line, [BLOCK, 1])
        y_line = tl.max_contiguous(y_line, [BLOCK, 1])
    x_ptrs = x_ptr + c * x_stride_c + x_line
    weight_ptrs = weight_ptr + tl.cast(group, tl.int64) * weight_stride_g + tl.cast(a, tl.int64) * weight_stride_a
    weight_ptrs += n * weight_stride_n + b.to(tl.int64) * weight_stride_b
    sums = ()
    for _ in tl.static_range(RUN * PARTS):
        sums = sums + (tl.zeros([BLOCK, BLOCK_C], ACC),)
    for counted in range(K):
        v = tl.minimum(counted, huge)
        across = left + v * DILATION
        inside = is_line & (across >= 0) & (across < B)
        for start in range(0, K, TAPS):
            begin = top + start * DILATION
            x_run_ptrs = x_ptrs + (tl.cast(begin, tl.int64) * x_stride_a + tl.cast(v, tl.int64) * DILATION * x_stride_b)
            taps_ptrs = weight_ptrs + (
                tl.cast(start, tl.int64) * weight_stride_u + tl.cast(v, tl.int64) * weight_stride_v
            )
            taps_of = ()
            for _ in tl.static_range(RUN):
                taps_of = taps_of + (taps_ptrs,)
                taps_ptrs += weight_step
            for q in tl.static_range((RUN - 1) * APART + (TAPS - 1) * SPREAD + 1):
                if (MET >> q) % 2 == 1:
                    if begin + q * UNIT >= 0 and begin + q * UNIT < A:
                        x = ()
                        ptrs = x_run_ptrs
                        for part in tl.static_range(PARTS):
                            is_read = inside
                            if GROUP_CHANNELS % (PARTS * BLOCK_C) != 0:
                                is_read = inside & (member + part * BLOCK_C < GROUP_CHANNELS)
                            x = x + (tl.load(ptrs, mask=is_read, other=0).to(ACC),)
                            ptrs += BLOCK_C * x_stride_c
                        more = ()
                        for p in tl.static_range(RUN):
                            if (
                                q >= p * APART
                                and q - p * APART <= (TAPS - 1) * SPREAD
                                and (q - p * APART) % SPREAD == 0
                            ):
                                weight = tl.load(taps_of[p] + ((q - p * APART) // SPREAD) * weight_stride_u).to(ACC)
                                for part in tl.static_range(PARTS):
                                    more = more + (sums[p * PARTS + part] + weight * x[part],)
                            else:
                                for part in tl.static_range(PARTS):
                                    more = more + (sums[p * PARTS + part],)
                        sums = more
                x_run_ptrs += UNIT * x_step
    y_ptrs = y_ptr + c * y_stride_c + tl.cast(a, tl.int64) * y_stride_a
    y_ptrs += y_line
    for p in tl.static_range(RUN):
        ptrs = y_ptrs
        for part in tl.static_range(PARTS):
            is_written = is_line & (a + p >= run * RUN) & (member + part * BLOCK_C < GROUP_CHANNELS)
            tl.store(ptrs, sums[p * PARTS + part], mask=is_written)
            ptrs += BLOCK_C * y_stride_c
        y_ptrs += y_stride_a


@triton.jit(do_not_specialize=SIZES)
def grad_x_kernel(
    grad_y_ptr,  # [N, C, A_out, B_out]
    weight_ptr,  # [N, G, K, K, A_out, B_out]
    grad_x_ptr,  # [N, C, A, B]
    N, A, B, A_out, B_out, G, runs, padding, huge,
    grad_y_stride_n, grad_y_stride_c, grad_y_stride_a, grad_y_stride_b,
    weight_stride_n, weight_stride_g, weight_stride_u, weight_stride_v, weight_stride_a, weight_stride_b,
    grad_x_stride_n, grad_x_stride_c, grad_x_stride_a, grad_x_stride_b,
    GROUP_CHANNELS: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    RUN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr, TAPS: tl.constexpr,
    FIRST: tl.constexpr, COUNT: tl.constexpr, PADDING: tl.constexpr, MET: tl.constexpr,
    STEP: tl.constexpr, WEIGHT_STEP: tl.constexpr, ADJACENT: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    IS_FAR: tl.constexpr,
):  # fmt: skip
    """Write grad_x from grad_y and weight; RUN is a multiple of STRIDE, or 1."""
    if IS_FAR:
        grad_y_stride_c, grad_x_stride_c = tl.cast(grad_y_stride_c, tl.int64), tl.cast(grad_x_stride_c, tl.int64)
        weight_stride_u = tl.cast(weight_stride_u, tl.int64)
    block, run, group, first = programs_of(G, runs, GROUP_CHANNELS, PARTS * BLOCK_C)
    member = first + tl.expand_dims(tl.arange(0, BLOCK_C), 0)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, b, is_line = lines_of(block, N, B, BLOCK, INDEX)
    a = run * RUN

    grad_y_step = STEP if STEP > 0 else grad_y_stride_a
    weight_step = WEIGHT_STEP if WEIGHT_STEP > 0 else weight_stride_a
    grad_y_ptrs = grad_y_ptr + c * grad_y_stride_c
    weight_ptrs = weight_ptr + tl.cast(group, tl.int64) * weight_stride_g + n * weight_stride_n
    sums = ()
    for _ in tl.static_range(RUN * PARTS):
        sums = sums + (tl.zeros([BLOCK, BLOCK_C], ACC),)
    for counted in range(K):
        v = tl.minimum(counted, huge)
        # The one output coordinate that reads b with tap v, if the stride hits it.
        scaled = b + padding - v * DILATION
        across = scaled // STRIDE
        inside = is_line & (scaled >= 0) & (scaled % STRIDE == 0) & (across < B_out)
        across = across.to(tl.int64)
        grad_y_line = n * grad_y_stride_n + across * grad_y_stride_b
        if ADJACENT:
            grad_y_line = tl.max_contiguous(grad_y_line, [BLOCK, 1])
        grad_y_line_ptrs = grad_y_ptrs + grad_y_line
        weight_line_ptrs = weight_ptrs + (across * weight_stride_b + tl.cast(v, tl.int64) * weight_stride_v)
        for start in range(0, K, TAPS):
            # Of a run, which outputs read which of its positions is the same for all runs; of a single position not.
            i = a // STRIDE + FIRST
            grad_y_run_ptrs = grad_y_line_ptrs + tl.cast(i, tl.int64) * grad_y_stride_a
            taps_ptrs = weight_line_ptrs + tl.cast(i, tl.int64) * weight_stride_a
            for q in tl.static_range(COUNT):
                if (MET >> q) % 2 == 1:
                    is_read = i + q >= 0 and i + q < A_out
                    if RUN == 1:
                        scaled_i = a + padding - (start + q) * DILATION
                        i = scaled_i // STRIDE
                        is_read = scaled_i >= 0 and scaled_i % STRIDE == 0 and i < A_out
                        grad_y_run_ptrs = grad_y_line_ptrs + tl.cast(i, tl.int64) * grad_y_stride_a
                        taps_ptrs = weight_line_ptrs + tl.cast(i, tl.int64) * weight_stride_a
                        taps_ptrs += tl.cast(start, tl.int64) * weight_stride_u
                    if is_read:
                        grad_y = ()
                        ptrs = grad_y_run_ptrs
                        for part in tl.static_range(PARTS):
                            is_part = inside
                            if GROUP_CHANNELS % (PARTS * BLOCK_C) != 0:
                                is_part = inside & (member + part * BLOCK_C < GROUP_CHANNELS)
                            grad_y = grad_y + (tl.load(ptrs, mask=is_part, other=0).to(ACC),)
                            ptrs += BLOCK_C * grad_y_stride_c
                        more = ()
                        for p in tl.static_range(RUN):
                            if RUN == 1:
                                weight = tl.load(taps_ptrs + q * weight_stride_u, mask=inside, other=0).to(ACC)
                                for part in tl.static_range(PARTS):
                                    more = more + (sums[part] + weight * grad_y[part],)
                            elif (
                                p + PADDING >= (FIRST + q) * STRIDE
                                and p + PADDING - (FIRST + q) * STRIDE <= (K - 1) * DILATION
                                and (p + PADDING - (FIRST + q) * STRIDE) % DILATION == 0
                            ):
                                tap_ptrs = (
                                    taps_ptrs + (p + PADDING - (FIRST + q) * STRIDE) // DILATION * weight_stride_u
                                )
                                weight = tl.load(tap_ptrs, mask=inside, other=0).to(ACC)
                                for part in tl.static_range(PARTS):
                                    more = more + (sums[p * PARTS + part] + weight * grad_y[part],)
                            else:
                                for part in tl.static_range(PARTS):
                                    more = more + (sums[p * PARTS + part],)
                        sums = more
                if RUN > 1:
                    grad_y_run_ptrs += grad_y_step
                    taps_ptrs += weight_step
    grad_x_ptrs = grad_x_ptr + c * grad_x_stride_c + tl.cast(a, tl.int64) * grad_x_stride_a
    grad_x_line = n * grad_x_stride_n + b.to(tl.int64) * grad_x_stride_b
    if ADJACENT:
        grad_x_line = tl.max_contiguous(grad_x_line, [BLOCK, 1])
    grad_x_ptrs += grad_x_line
    for p in tl.static_range(RUN):
        ptrs = grad_x_ptrs
        for part in tl.static_range(PARTS):
            is_written = is_line & (a + p < A) & (member + part * BLOCK_C < GROUP_CHANNELS)
            tl.store(ptrs, sums[p * PARTS + part], mask=is_written)
            ptrs += BLOCK_C * grad_x_stride_c
        grad_x_ptrs += grad_x_stride_a
