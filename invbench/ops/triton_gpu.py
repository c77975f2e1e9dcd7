"""Triton kernels for GPUs: the aggregate and its two gradients, one kernel each.

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

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from invbench.ops.layout import memory_format_of
from invbench.ops.library import Aggregate, Window, empty_grad_x, empty_weight, empty_y, taps_are_last
from invbench.spec import InvbenchError

INT32_MAX = 2**31 - 1
ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}

# ADJACENT is advice to Triton: positions, which it cannot see to lie side by side, mostly do. Without it, Triton before
# 3.7 gives neighbouring lanes different channels of contiguous images, and spills. It is not true at the end of a row,
# but harmless: it is given only where a column's step is 1, so that nothing is known of the alignment, and only loads
# known to be aligned are widened.

# Sizes differ from layer to layer, and knowing that one is 1 or divisible by 16 makes no kernel faster.
SIZES = ["N", "H", "W", "H_out", "W_out", "G", "padding"]


@triton.jit
def _positions(block, height, width, BLOCK_P: tl.constexpr, INDEX: tl.constexpr):
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
def _offsets(n, row, column, stride_n, stride_h, stride_w, BLOCK_P: tl.constexpr, ADJACENT: tl.constexpr):
    """Where each position lies in memory: [BLOCK_P], int64."""
    offsets = n * stride_n + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    if ADJACENT:
        offsets = tl.max_contiguous(offsets, BLOCK_P)
    return offsets


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
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
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    group = (program // BLOCKS) % G
    member = (program % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, i, j = _positions(program // (BLOCKS * G), H_out, W_out, BLOCK_P, INDEX)
    is_position = n < N
    is_channel = tl.expand_dims(member < GROUP_CHANNELS, P_AXIS)
    top = i * STRIDE - padding
    left = j * STRIDE - padding

    x_ptrs = x_ptr + tl.expand_dims(c * x_stride_c, P_AXIS)
    weight_ptrs = weight_ptr + tl.cast(group, tl.int64) * weight_stride_g
    weight_ptrs += _offsets(n, i, j, weight_stride_n, weight_stride_h, weight_stride_w, BLOCK_P, False)
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
    y_offsets = _offsets(n, i, j, y_stride_n, y_stride_h, y_stride_w, BLOCK_P, ADJACENT)
    y_ptrs += tl.expand_dims(y_offsets, C_AXIS)
    tl.store(y_ptrs, acc, mask=tl.expand_dims(is_position, C_AXIS) & is_channel)


@triton.jit(do_not_specialize=SIZES)
def _grad_x_kernel(
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
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    BLOCKS: tl.constexpr = (GROUP_CHANNELS + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    group = (program // BLOCKS) % G
    member = (program % BLOCKS) * BLOCK_C + tl.arange(0, BLOCK_C)
    c = (group * GROUP_CHANNELS + member).to(tl.int64)
    n, r, q = _positions(program // (BLOCKS * G), H, W, BLOCK_P, INDEX)
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
    grad_x_offsets = _offsets(n, r, q, grad_x_stride_n, grad_x_stride_h, grad_x_stride_w, BLOCK_P, ADJACENT)
    grad_x_ptrs += tl.expand_dims(grad_x_offsets, C_AXIS)
    tl.store(grad_x_ptrs, acc, mask=tl.expand_dims(is_position, C_AXIS) & is_channel)


@triton.jit(do_not_specialize=SIZES)
def _grad_weight_kernel(
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
    P_AXIS: tl.constexpr = 1 - C_AXIS  # tiles are [BLOCK_P, BLOCK_C] or [BLOCK_C, BLOCK_P]
    program = tl.program_id(0)
    group = tl.cast(program % G, tl.int64)
    member = tl.arange(0, BLOCK_C)
    c = group * GROUP_CHANNELS + member
    n, i, j = _positions(program // G, H_out, W_out, BLOCK_P, INDEX)
    is_position = n < N
    is_channel = tl.expand_dims(member < GROUP_CHANNELS, P_AXIS)
    top = i * STRIDE - padding
    left = j * STRIDE - padding

    x_ptrs = x_ptr + tl.expand_dims(c * x_stride_c, P_AXIS)
    grad_y_ptrs = grad_y_ptr + tl.expand_dims(c * grad_y_stride_c, P_AXIS)
    grad_y_offsets = _offsets(n, i, j, grad_y_stride_n, grad_y_stride_h, grad_y_stride_w, BLOCK_P, ADJACENT)
    grad_y_ptrs += tl.expand_dims(grad_y_offsets, C_AXIS)
    grad_weight_ptrs = grad_weight_ptr + group * grad_weight_stride_g
    grad_weight_ptrs += _offsets(
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


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes, and the warps that compute it.

    ``channels_fast``: neighbouring lanes hold neighbouring channels, otherwise neighbouring positions. ``unroll``: taps
    of a window row whose loads are in flight together.
    """

    positions: int
    channels: int
    channels_fast: bool
    unroll: int
    num_warps: int = 4


def aggregate_tile(image: Tensor, K: int, group_channels: int) -> Tile:
    """The tile of the forward pass and of grad_x, for the image [N, C, H, W] that they read K*K times.

    A thread has at most 8 sums (4 in float64), so that the loads of 7 taps fit its registers. Where lanes share a
    position there are fewer positions than threads: then each lane loads the weight it needs, and none goes through
    shared memory.
    """
    channels_fast = _channels_fast(image)
    channels = min(triton.next_power_of_2(group_channels), 64 if channels_fast else 16)
    positions = min(64 if channels_fast else 128, _sums(image, channels_fast, group_channels) // channels)
    return Tile(positions, channels, channels_fast, unroll=min(K, 7))


def grad_weight_tile(image: Tensor, K: int, group_channels: int) -> Tile:
    """The tile of grad_weight, for the image [N, C, H, W] that it reads K*K times.

    A position's channels stay in one warp, which then adds them up without shared memory.
    """
    channels_fast = _channels_fast(image)
    channels = min(triton.next_power_of_2(group_channels), 128 if channels_fast else 16)
    positions = min(64, _sums(image, channels_fast, group_channels) // channels) if channels_fast else 128
    # With several blocks of channels a single tap has loads enough in flight.
    return Tile(positions, channels, channels_fast, unroll=min(K, 7) if channels >= group_channels else 1)


def _channels_fast(image: Tensor) -> bool:
    return memory_format_of(image) == torch.channels_last


def _sums(image: Tensor, channels_fast: bool, group_channels: int) -> int:
    """Sums that a program of 4 warps keeps in registers beside its loads in flight."""
    # Channels that cannot be loaded as vectors take an address and a mask each.
    scalars = channels_fast and (group_channels % 4 != 0 or not _aligned(image))
    return (256 if scalars else 1024) // (2 if image.element_size() == 8 else 1)


def _aligned(image: Tensor) -> bool:
    """Whether Triton knows that each position's channels in image [N, C, H, W] begin at a multiple of 16 bytes."""
    stride_n, _, stride_h, stride_w = image.stride()
    in_bytes = image.storage_offset() * image.element_size()
    return not any(step % 16 for step in (stride_n, stride_h, stride_w, in_bytes))


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel: its arguments in order, and all that its code depends on besides their types."""

    kernel: Any
    programs: int
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]
    num_warps: int

    def run(self, device: torch.device) -> None:
        """Queue it on the device's current stream."""
        with _device_guard(device):
            self.kernel[(self.programs,)](*self.arguments, **self.constants, num_warps=self.num_warps)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of one aggregate."""

    N: int
    C: int
    H: int
    W: int
    H_out: int
    W_out: int
    G: int

    @classmethod
    def of(cls, image: tuple[int, ...], output: tuple[int, ...], G: int) -> Sizes:
        """From the shapes of x [N, C, H, W] and y [N, C, H_out, W_out]."""
        N, C, H, W = image
        return cls(N, C, H, W, output[2], output[3], G)

    @property
    def group_channels(self) -> int:
        """Channels that share one weight."""
        return self.C // self.G

    def check_reach(self, window: Window) -> None:
        """Refuse a window whose coordinates leave int32, which no image of a real layer comes near."""
        reach = max(self.H, self.W) + window.stride + window.dilation * window.K
        if reach > INT32_MAX:
            raise InvbenchError(
                f"backend 'triton' counts rows and columns in 32 bits: got H={self.H}, W={self.W} and {window}, "
                "which reach 2**31; use a smaller stride or dilation, or backend 'naive'"
            )


def forward_launch(x: Tensor, weight: Tensor, y: Tensor, window: Window) -> Launch:
    """Write y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]."""
    sizes = Sizes.of(x.shape, y.shape, weight.shape[1])
    tile = aggregate_tile(x, window.K, sizes.group_channels)
    blocks = sizes.G * triton.cdiv(sizes.group_channels, tile.channels)
    return _launch(_forward_kernel, (x, weight, y), sizes, window, tile, (sizes.H_out, sizes.W_out), blocks)


def grad_x_launch(grad_y: Tensor, weight: Tensor, grad_x: Tensor, window: Window) -> Launch:
    """Write grad_x [N, C, H, W] from grad_y [N, C, H_out, W_out] and weight [N, G, K*K, H_out, W_out]."""
    sizes = Sizes.of(grad_x.shape, grad_y.shape, weight.shape[1])
    tile = aggregate_tile(grad_y, window.K, sizes.group_channels)
    blocks = sizes.G * triton.cdiv(sizes.group_channels, tile.channels)
    return _launch(_grad_x_kernel, (grad_y, weight, grad_x), sizes, window, tile, (sizes.H, sizes.W), blocks)


def grad_weight_launch(grad_y: Tensor, x: Tensor, grad_weight: Tensor, window: Window) -> Launch:
    """Write grad_weight [N, G, K*K, H_out, W_out] from grad_y [N, C, H_out, W_out] and x [N, C, H, W]."""
    sizes = Sizes.of(x.shape, grad_y.shape, grad_weight.shape[1])
    tile = grad_weight_tile(x, window.K, sizes.group_channels)
    # A row of taps is gathered and written at once where it is contiguous in memory.
    row_taps = triton.next_power_of_2(window.K) if grad_weight.stride(2) == 1 else 0
    return _launch(
        _grad_weight_kernel, (grad_y, x, grad_weight), sizes, window, tile, (sizes.H_out, sizes.W_out), sizes.G,
        ROW_TAPS=row_taps,
    )  # fmt: skip


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, Tensor, Tensor],
    sizes: Sizes,
    window: Window,
    tile: Tile,
    positions: tuple[int, int],
    channel_blocks: int,
    **constants: Any,
) -> Launch:
    sizes.check_reach(window)
    area = positions[0] * positions[1]
    accumulator = torch.promote_types(torch.promote_types(tensors[0].dtype, tensors[1].dtype), torch.float32)
    return Launch(
        kernel=kernel,
        programs=triton.cdiv(sizes.N * area, tile.positions) * channel_blocks,
        arguments=(
            *tensors,
            *(sizes.N, sizes.H, sizes.W, sizes.H_out, sizes.W_out, sizes.G, window.padding),
            *(step for tensor in tensors for step in tensor.stride()),
        ),
        constants={
            "GROUP_CHANNELS": sizes.group_channels,
            "K": window.K,
            "STRIDE": window.stride,
            "DILATION": window.dilation,
            "BLOCK_P": tile.positions,
            "BLOCK_C": tile.channels,
            "C_AXIS": int(tile.channels_fast),
            "UNROLL": tile.unroll,
            "ADJACENT": not tile.channels_fast and all(t.stride(3) == 1 for t in tensors if t.ndim == 4),
            "ACC": ACCUMULATORS[accumulator],
            "INDEX": tl.int32 if area + tile.positions <= INT32_MAX else tl.int64,
            **constants,
        },
        num_warps=tile.num_warps,
    )


def _device_guard(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)


class TritonKernels:
    """``library.Kernels``; tensors may have any strides."""

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""
        y = empty_y(x, weight)
        if y.numel():
            forward_launch(x, weight, y, window).run(x.device)
        return y

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""
        grad_x = empty_grad_x(grad_y, size, channels_last)
        if grad_x.numel():
            grad_x_launch(grad_y, weight, grad_x, window).run(grad_y.device)
        return grad_x

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""
        grad_weight = empty_weight(grad_y, G, window.K**2, taps_last)
        if grad_weight.numel():
            grad_weight_launch(grad_y, x, grad_weight, window).run(x.device)
        return grad_weight

    def gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """grad_x and grad_weight, in the layouts of x and weight."""
        channels_last, size = memory_format_of(x) == torch.channels_last, (x.shape[2], x.shape[3])
        grad_x = self.grad_x(grad_y, weight, window, size, channels_last)
        return grad_x, self.grad_weight(grad_y, x, window, weight.shape[1], taps_are_last(weight))


aggregate = Aggregate("triton", TritonKernels())

# How the kernels were decorated, whatever the environment says by now.
INTERPRETED = not isinstance(_forward_kernel, triton.runtime.JITFunction)


def unavailable(device: str) -> str | None:
    """Why nothing can run on this type of device here, and the remedy; None if it can."""
    if device == "cpu" and INTERPRETED:
        return None
    if device not in ("cuda", "xpu"):
        return (
            f"it runs on GPUs: got {device}; use --device cuda on a machine with a GPU, "
            "or set TRITON_INTERPRET=1 to check results on the CPU"
        )
    if not torch.get_device_module(device).is_available():
        return (
            f"PyTorch finds no {device} device here: got torch {torch.__version__}; install the GPU's driver and a "
            f"PyTorch built for {device}, or set TRITON_INTERPRET=1 to check results on the CPU"
        )
    return None
