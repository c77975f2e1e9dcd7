"""From tensors to launches of the aggregate's kernels: what a program computes, and its arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from invbench.ops.layout import memory_format_of
from invbench.ops.library import Window
from invbench.ops.triton_gpu.aggregate_grad_weight import grad_weight_kernel
from invbench.ops.triton_gpu.aggregate_kernels import forward_kernel, grad_x_kernel
from invbench.ops.triton_gpu.launching import INT32_MAX, Launch
from invbench.spec import InvbenchError

ACCUMULATORS = {torch.float32: tl.float32, torch.float64: tl.float64}
LONGEST_RUN = 8  # positions: the sums of 8 channels each fill half of a lane's registers
MOST_PRODUCTS = 64  # of a run's positions with the taps along it: all are code
MOST_TAPS = 31  # unrolled
FILLING_WARPS = 1056  # eight for each multiprocessor of an H100: problems of fewer have shorter runs
WARPS = 4  # of a program


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes, for an image that it reads K*K times.

    ``along``: the dimension that its runs lie along, 3 where lanes hold neighbouring channels, otherwise 2, as they
    hold neighbouring columns. ``lines``: how many runs. ``channels`` of neighbouring lanes and their vectors, and
    ``parts`` of so many channels that a lane holds. ``run``: the most positions of a run. ``warps`` of a program.
    """

    along: int
    lines: int
    channels: int
    parts: int
    run: int
    warps: int = WARPS

    @property
    def across(self) -> int:
        """The image's other dimension."""
        return 5 - self.along


def aggregate_tile(image: Tensor, K: int, group_channels: int) -> Tile:
    """The tile of the forward pass and of grad_x, for the image [N, C, H, W] that they read K*K times.

    A lane has at most 64 sums, of 8 positions and 8 channels, and float64 takes two registers for each. Two lanes share
    a position where each loads vectors of channels, so that the 32 bytes they load are a whole sector.
    """
    sums = 4 if image.element_size() == 8 else 8
    if not _channels_fast(image):
        # Of fewer at a time the code is longer, and takes long to compile; of more, their addresses fill registers.
        channels = min(triton.next_power_of_2(group_channels), 4)
        parts = _shared(triton.cdiv(group_channels, channels), max(1, sums // channels))
        run, warps = _longest_run(K), WARPS
        # In 16 bits, compilers spill a few registers so that one more program has room, if so few would do: at these
        # sizes they do not.
        if image.element_size() == 2:
            run, warps = min(run, 6) if K < 7 else run, 2 * WARPS if 7 <= K <= 9 else WARPS
        return Tile(2, 32 * warps, channels, parts, run, warps)
    vector = _vector(image, group_channels)
    channels = min(triton.next_power_of_2(group_channels), max(2 * vector, 8 if vector == 1 else 1))
    lanes = max(1, channels // vector)
    # Channels that cannot be loaded as vectors take a lane each.
    parts = _shared(triton.cdiv(group_channels, channels), max(1, sums // vector if vector > 1 else 2))
    return Tile(3, 32 * WARPS // lanes, channels, parts, _longest_run(K))


def grad_weight_tile(image: Tensor, K: int, group_channels: int) -> Tile:
    """The tile of grad_weight, for the image [N, C, H, W] that it reads K*K times: a lane has all its channels."""
    longest = _longest_run(K) // (2 if image.element_size() == 8 else 1) or 1
    if not _channels_fast(image):
        return Tile(2, 32 * WARPS, 1, group_channels, longest)
    channels = min(_vector(image, group_channels), 4)
    # With longer runs, the gathered rows of taps would spill.
    return Tile(3, 32 * WARPS, channels, group_channels // channels, max(1, min(longest, 4, 32 // K)))


def _channels_fast(image: Tensor) -> bool:
    return memory_format_of(image) == torch.channels_last


def _longest_run(K: int) -> int:
    # Twice as long as the window, a run has most of what sharing gives; longer ones of K = 3 spill.
    return max(1, min(LONGEST_RUN, 2 * K, MOST_PRODUCTS // K)) if K <= MOST_TAPS else 1


def _shared(count: int, most: int) -> int:
    """``count`` in the fewest shares of up to ``most``: what the largest has."""
    return triton.cdiv(count, triton.cdiv(count, most))


def _vector(image: Tensor, group_channels: int) -> int:
    """Channels of a channels_last image [N, C, H, W] that a lane loads at once."""
    stride_n, _, stride_h, stride_w = image.stride()
    in_bytes = image.storage_offset() * image.element_size()
    # What Triton knows of alignment.
    if any(step % 16 for step in (stride_n, stride_h, stride_w, in_bytes)):
        return 1
    return math.gcd(group_channels, 16 // image.element_size())


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
    run, constants = _run_of_outputs(y, tile, sizes, window)
    constants |= {
        "PARTS": tile.parts,
        "ADJACENT": _adjacent(tile, x, y),
        "X_STEP": _fixed(x, tile),
        "WEIGHT_STEP": _fixed(weight, tile),
    }
    return _launch(forward_kernel, (x, weight, y), y, sizes, window, tile, run, constants)


def grad_x_launch(grad_y: Tensor, weight: Tensor, grad_x: Tensor, window: Window) -> Launch:
    """Write grad_x [N, C, H, W] from grad_y [N, C, H_out, W_out] and weight [N, G, K*K, H_out, W_out]."""
    sizes = Sizes.of(grad_x.shape, grad_y.shape, weight.shape[1])
    tile = aggregate_tile(grad_y, window.K, sizes.group_channels)
    K, stride, dilation, padding = window.K, window.stride, window.dilation, window.padding
    run = _run(grad_x, tile, sizes)
    run = triton.cdiv(run, stride) * stride
    # Of the run that begins at 0: the first output that reads it, and the last.
    first, end = -((dilation * (K - 1) - padding) // stride), (run - 1 + padding) // stride + 1
    if run <= dilation or run > LONGEST_RUN or K == 1 or _taps(K) < K or end - first > MOST_PRODUCTS:
        run, first, end, met = 1, 0, _taps(K), 2 ** _taps(K) - 1
    else:
        reads = {divmod(p + padding - dilation * u, stride) for p in range(run) for u in range(K)}
        met = sum(1 << (i - first) for i, rest in reads if rest == 0)
    constants = {"PARTS": tile.parts, "FIRST": first, "COUNT": end - first, "MET": met, "PADDING": padding}
    constants |= {
        "ADJACENT": _adjacent(tile, grad_y, grad_x),
        "STEP": _fixed(grad_y, tile),
        "WEIGHT_STEP": _fixed(weight, tile),
    }
    return _launch(grad_x_kernel, (grad_y, weight, grad_x), grad_x, sizes, window, tile, run, constants)


def grad_weight_launch(grad_y: Tensor, x: Tensor, grad_weight: Tensor, window: Window) -> Launch:
    """Write grad_weight [N, G, K*K, H_out, W_out] from grad_y [N, C, H_out, W_out] and x [N, C, H, W]."""
    sizes = Sizes.of(x.shape, grad_y.shape, grad_weight.shape[1])
    tile = grad_weight_tile(x, window.K, sizes.group_channels)
    run, constants = _run_of_outputs(grad_y, tile, sizes, window)
    # A row of taps is gathered and written at once where it is contiguous in memory.
    gathered = tile.along == 3 and grad_weight.stride(2) == 1 and constants["TAPS"] == window.K
    constants["PARTS"] = 1 if tile.channels > 1 else math.gcd(sizes.group_channels, 2)
    constants["SLOTS"] = triton.next_power_of_2(window.K) if gathered else 0
    return _launch(grad_weight_kernel, (grad_y, x, grad_weight), grad_y, sizes, window, tile, run, constants)


def _run_of_outputs(output: Tensor, tile: Tile, sizes: Sizes, window: Window) -> tuple[int, dict[str, Any]]:
    """Positions of a run over ``output`` [N, C, H_out, W_out], and which places of x it meets."""
    run, unit, taps = _run(output, tile, sizes), math.gcd(window.stride, window.dilation), _taps(window.K)
    apart, spread = window.stride // unit, window.dilation // unit
    # Positions that share no x are better computed by many programs.
    if run <= spread or taps <= apart or (run - 1) * apart + (taps - 1) * spread >= MOST_PRODUCTS:
        run, unit, apart, spread = 1, window.dilation, 0, 1
    met = {p * apart + u * spread for p in range(run) for u in range(taps)}
    return run, {"TAPS": taps, "UNIT": unit, "MET": sum(1 << place for place in met)}


def _run(output: Tensor, tile: Tile, sizes: Sizes) -> int:
    """Positions of a run: as equal shares of the dimension as they get, shorter where programs are few."""
    length, lines = output.shape[tile.along], output.shape[0] * output.shape[tile.across]
    blocks = triton.cdiv(lines, tile.lines) * sizes.G * triton.cdiv(sizes.group_channels, tile.channels * tile.parts)
    run = _shared(length, tile.run)
    while run > 2 and triton.cdiv(length, run) * blocks * tile.warps < FILLING_WARPS:
        run = _shared(length, triton.cdiv(run, 2))
    return run


def _taps(K: int) -> int:
    """Taps along a run that are unrolled: a divisor of K."""
    return max(taps for taps in range(1, MOST_TAPS + 1) if K % taps == 0)


def _fixed(tensor: Tensor, tile: Tile) -> int:
    """The memory step along a run where it is a layer's, not an image's: then it is part of the code; else 0."""
    return tensor.stride(tile.along - 4) if tile.along == 3 else 0


def _adjacent(tile: Tile, *images: Tensor) -> bool:
    """Whether lanes of neighbouring columns hold what lies side by side in all of these images."""
    return tile.along == 2 and all(image.stride(3) == 1 for image in images)


def _strides(tensor: Tensor, tile: Tile, K: int) -> tuple[int, ...]:
    """Of an image [N, C, H, W] or a weight [N, G, K*K, H_out, W_out]: those of the two axes last, along first."""
    steps = tensor.stride()
    axes = (steps[tile.along - 4], steps[tile.across - 4])
    if tensor.ndim == 4:
        return (*steps[:2], *axes)
    row, column = K * steps[2], steps[2]
    return (*steps[:2], *((column, row) if tile.along == 3 else (row, column)), *axes)


def _launch(
    kernel: Any,
    tensors: tuple[Tensor, Tensor, Tensor],
    output: Tensor,
    sizes: Sizes,
    window: Window,
    tile: Tile,
    run: int,
    constants: dict[str, Any],
) -> Launch:
    sizes.check_reach(window)
    lines, runs = sizes.N * output.shape[tile.across], triton.cdiv(output.shape[tile.along], run)
    channel_blocks = triton.cdiv(sizes.group_channels, tile.channels * tile.parts)
    accumulator = torch.promote_types(torch.promote_types(tensors[0].dtype, tensors[1].dtype), torch.float32)
    image, out = (sizes.H, sizes.W), (sizes.H_out, sizes.W_out)
    if tile.along == 3:
        image, out = image[::-1], out[::-1]
    steps = [_strides(tensor, tile, window.K) for tensor in tensors]
    # By which kernels multiply steps of memory, but for those from image to image, which are multiplied in 64 bits.
    most = max(window.K, window.stride, window.dilation, tile.channels * tile.parts)
    return Launch(
        kernel=kernel,
        programs=triton.cdiv(lines, tile.lines) * runs * sizes.G * channel_blocks,
        arguments=(
            *tensors,
            *(sizes.N, *image, *out, sizes.G, runs, window.padding, INT32_MAX),
            *(step for of_tensor in steps for step in of_tensor),
        ),
        constants={
            "GROUP_CHANNELS": sizes.group_channels,
            "K": window.K,
            "STRIDE": window.stride,
            "DILATION": window.dilation,
            "RUN": run,
            "BLOCK": tile.lines,
            "BLOCK_C": tile.channels,
            "TAPS": _taps(window.K),
            "ACC": ACCUMULATORS[accumulator],
            "INDEX": tl.int32 if lines + tile.lines <= INT32_MAX else tl.int64,
            "IS_FAR": any(most * step > INT32_MAX for of_tensor in steps for step in of_tensor[1:]),
            **constants,
        },
        num_warps=tile.warps,
    )
