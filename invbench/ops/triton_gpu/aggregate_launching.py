"""From tensors to launches of the aggregate's kernels: what a program computes, and its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from invbench.ops.layout import memory_format_of
from invbench.ops.library import Window
from invbench.ops.triton_gpu.aggregate_kernels import forward_kernel, grad_weight_kernel, grad_x_kernel
from invbench.ops.triton_gpu.launching import INT32_MAX, Launch
from invbench.spec import InvbenchError

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}


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
    return _launch(forward_kernel, (x, weight, y), sizes, window, tile, (sizes.H_out, sizes.W_out), blocks)


def grad_x_launch(grad_y: Tensor, weight: Tensor, grad_x: Tensor, window: Window) -> Launch:
    """Write grad_x [N, C, H, W] from grad_y [N, C, H_out, W_out] and weight [N, G, K*K, H_out, W_out]."""
    sizes = Sizes.of(grad_x.shape, grad_y.shape, weight.shape[1])
    tile = aggregate_tile(grad_y, window.K, sizes.group_channels)
    blocks = sizes.G * triton.cdiv(sizes.group_channels, tile.channels)
    return _launch(grad_x_kernel, (grad_y, weight, grad_x), sizes, window, tile, (sizes.H, sizes.W), blocks)


def grad_weight_launch(grad_y: Tensor, x: Tensor, grad_weight: Tensor, window: Window) -> Launch:
    """Write grad_weight [N, G, K*K, H_out, W_out] from grad_y [N, C, H_out, W_out] and x [N, C, H, W]."""
    sizes = Sizes.of(x.shape, grad_y.shape, grad_weight.shape[1])
    tile = grad_weight_tile(x, window.K, sizes.group_channels)
    # A row of taps is gathered and written at once where it is contiguous in memory.
    row_taps = triton.next_power_of_2(window.K) if grad_weight.stride(2) == 1 else 0
    return _launch(
        grad_weight_kernel, (grad_y, x, grad_weight), sizes, window, tile, (sizes.H_out, sizes.W_out), sizes.G,
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
