"""From tensors to launches of the span kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from invbench.ops.fused import Generator
from invbench.ops.library import Window
from invbench.ops.triton_gpu import span_gradients, span_kernels
from invbench.ops.triton_gpu.launching import INTERPRETED, ROWS_MAX, Launch
from invbench.ops.triton_gpu.tiling import (
    FORWARD,
    GRAD_HIDDEN,
    GRAD_SPAN,
    GRAD_X,
    Chip,
    Cut,
    Problem,
    default_cut,
    shares_of,
)  # fmt: skip
from invbench.spec import InvbenchError


def readable(image: Tensor) -> Tensor:
    """The image [N, C, H, W], or a copy in channels_last where channels are not neighbours, which costs less than to
    read them one by one, or where offsets within an image of the batch are too large."""
    reach = sum((size - 1) * step for size, step in zip(image.shape[1:], image.stride()[1:], strict=True))
    if reach <= ROWS_MAX and _channels_are_neighbours(image):
        return image
    return _empty_channels_last(image).copy_(image)


def writable(image: Tensor) -> Tensor:
    """The new image [N, C, H, W], or one in channels_last to write in its place, and then to copy from."""
    return image if _channels_are_neighbours(image) else _empty_channels_last(image)


def _channels_are_neighbours(image: Tensor) -> bool:
    return image.shape[1] == 1 or image.stride(1) == 1


def _empty_channels_last(image: Tensor) -> Tensor:
    # Not by a memory format, which keeps odd strides of dimensions of one.
    N, C, H, W = image.shape
    return image.new_empty((N, H, W, C)).permute(0, 3, 1, 2)


def dense(generator: Generator) -> Generator:
    """The generator with dense parameters."""
    return Generator(generator.span.contiguous(), generator.bias.contiguous(), generator.G)


def problem_of(x: tuple[int, ...], y: tuple[int, ...], generator: Generator, window: Window) -> Problem:
    """The sizes, from the shapes of x [N, C, H, W] and y [N, C, H_out, W_out]; InvbenchError for other padding than a
    layer has that pads with zeros, and for strides that the kernels do not take."""
    if max(x[1] * x[2] * x[3], generator.span.shape[1] * y[2] * y[3]) > ROWS_MAX:
        raise InvbenchError(
            f"span and aggregate in one kernel take images below 2**27 numbers: got {[*x[1:]]}; use another backend"
        )
    if window.padding != window.dilation * (window.K // 2):
        raise InvbenchError(
            f"span and aggregate in one kernel pad a window by half: got padding={window.padding} for K={window.K}, "
            f"dilation={window.dilation}; use another backend"
        )
    stride, dilation, K = window.stride, window.dilation, window.K
    if stride > min(2, K) or (stride > 1 and dilation > 1):
        raise InvbenchError(
            f"span and aggregate in one kernel take strides up to 2 and K, or a dilation: got stride={stride}, "
            f"dilation={dilation}, K={K}; use another backend"
        )
    N, C, H, W = x
    return Problem(N, C, H, W, y[2], y[3], generator.G, generator.span.shape[1], window)


def forward_launch(
    x: Tensor, hidden: Tensor, generator: Generator, y: Tensor, window: Window, cut: Cut | None = None
) -> Launch:
    """Write y [N, C, H_out, W_out] from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""
    problem = problem_of(tuple(x.shape), tuple(y.shape), generator, window)
    cut = cut or default_cut(FORWARD, problem, chip_of(x.device))
    p = problem
    return Launch(
        kernel=span_kernels.span_forward_kernel,
        programs=cut.programs,
        arguments=(
            x, hidden, generator.span, generator.bias, y,
            p.N, p.H, p.W, p.H_out, p.W_out, cut.unit_blocks, cut.lines, cut.strips, cut.tile.rows, cut.tile.images,
            *x.stride(), *hidden.stride(), *y.stride(),
        ),
        constants=_constants(cut) | _parts(cut) | rows_of_forward(cut) | {"KEEP_SPAN": cut.keeps_span},
        num_warps=cut.num_warps,
        num_stages=1,
    )  # fmt: skip


def grad_x_launch(
    grad_y: Tensor, hidden: Tensor, generator: Generator, grad_x: Tensor, window: Window, cut: Cut | None = None
) -> Launch:
    """Write grad_x [N, C, H, W] from grad_y [N, C, H_out, W_out] and hidden [N, r, H_out, W_out]."""
    problem = problem_of(tuple(grad_x.shape), tuple(grad_y.shape), generator, window)
    cut = cut or default_cut(GRAD_X, problem, chip_of(grad_x.device))
    p = problem
    return Launch(
        kernel=span_kernels.span_grad_x_kernel,
        programs=cut.programs,
        arguments=(
            grad_y, hidden, generator.span, generator.bias, grad_x,
            p.H, p.W, p.H_out, p.W_out, cut.unit_blocks, cut.lines, cut.strips, cut.tile.rows,
            *grad_y.stride(), *hidden.stride(), *grad_x.stride(),
        ),
        constants=_constants(cut) | _parts(cut) | {"ALONE": cut.alone, "KEEP_SPAN": cut.keeps_span},
        num_warps=cut.num_warps,
        num_stages=1,
    )  # fmt: skip


def grad_hidden_launch(
    grad_y: Tensor, x: Tensor, generator: Generator, grad_hidden: Tensor, window: Window, cut: Cut | None = None
) -> Launch:
    """Write grad_hidden [N, r, H_out, W_out] from grad_y [N, C, H_out, W_out] and x [N, C, H, W]."""
    problem = problem_of(tuple(x.shape), tuple(grad_y.shape), generator, window)
    cut = cut or default_cut(GRAD_HIDDEN, problem, chip_of(x.device))
    p = problem
    return Launch(
        kernel=span_gradients.span_grad_hidden_kernel,
        programs=cut.programs,
        arguments=(
            grad_y, x, generator.span, grad_hidden,
            p.H, p.W, p.H_out, p.W_out, cut.unit_blocks, cut.lines, cut.strips,
            *grad_y.stride(), *x.stride(), *grad_hidden.stride(),
        ),
        constants=_constants(cut) | {"Q": problem.columns, "HEIGHT": cut.tile.rows, "KEEP_SPAN": cut.keeps_span},
        num_warps=cut.num_warps,
        num_stages=1,
    )  # fmt: skip


def grad_span_launch(
    grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, grad_hidden: Tensor, window: Window,
    atomic: bool = False, cut: Cut | None = None,
) -> tuple[Launch, Tensor, Tensor]:  # fmt: skip
    """Write the gradients of span [..., G*K*K, r] and bias [..., G*K*K], which sum over what comes first, from grad_y
    [N, C, H_out, W_out], x [N, C, H, W] and hidden [N, r, H_out, W_out]; with ``atomic`` there is nothing to sum. Where
    the cut is ``with_hidden``, grad_hidden [N, r, H_out, W_out] is written, too."""
    problem = problem_of(tuple(x.shape), tuple(grad_y.shape), generator, window)
    cut = cut or default_cut(GRAD_SPAN, problem, chip_of(x.device))
    p, shares = problem, shares_of(cut)
    taps = generator.span.shape[0]
    make = torch.zeros if atomic else torch.empty
    parts = () if atomic else (shares, p.blocks)
    grad_span = make((*parts, taps, p.r), dtype=torch.float32, device=x.device)
    grad_bias = make((*parts, taps), dtype=torch.float32, device=x.device)
    launch = Launch(
        kernel=span_gradients.span_grad_span_kernel,
        programs=cut.programs * shares,
        arguments=(
            grad_y, x, hidden, generator.span, grad_hidden, grad_span, grad_bias,
            p.H, p.W, p.H_out, p.W_out, cut.unit_blocks, cut.lines, cut.strips, cut.tile.rows,
            cut.places, triton.cdiv(cut.places, shares), taps,
            *grad_y.stride(), *x.stride(), *hidden.stride(), *grad_hidden.stride(),
        ),
        constants=_constants(cut) | _parts(cut)
        | {"Q": problem.columns, "WITH_HIDDEN": cut.with_hidden, "ATOMIC": atomic},
        num_warps=cut.num_warps,
        num_stages=1,
    )  # fmt: skip
    return launch, grad_span, grad_bias


def _constants(cut: Cut) -> dict[str, Any]:
    problem = cut.problem
    return {
        "GROUP_CHANNELS": problem.group_channels,
        "K": problem.window.K,
        "STRIDE": problem.window.stride,
        "DILATION": problem.window.dilation,
        "r": problem.r,
        "R": problem.hidden_channels,
        "SLOTS": problem.slots,
        "UNITS": cut.tile.units,
        "FOLD": cut.fold,
        "EXACT": INTERPRETED,
        "PTX": takes_ptx(cut),
    }


def takes_ptx(cut: Cut) -> bool:
    """Whether a kernel rounds by an instruction of its own, which no interpreter runs."""
    return cut.chip.rounds_pairs and not INTERPRETED


def rows_of_forward(cut: Cut) -> dict[str, int]:
    """How a forward kernel reads and keeps rows of x."""
    return {"Q": cut.problem.columns, "AT_ONCE": cut.rows_at_once, "THIRDS": cut.in_thirds}


def _parts(cut: Cut) -> dict[str, int]:
    return {"PARTS": cut.parts, "EACH": cut.part_rows}


@functools.cache
def chip_of(device: torch.device) -> Chip:
    """The device's chip; for one that is not there or does not say, an NVIDIA H100."""
    if device.type not in ("cuda", "xpu"):
        return Chip()
    properties = torch.get_device_module(device).get_device_properties(device)
    count = getattr(properties, "multi_processor_count", 0) or getattr(properties, "gpu_subslice_count", 0)
    lanes = getattr(properties, "warp_size", 32)
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    capability = 10 * properties.major + properties.minor if is_nvidia else 0
    return Chip(count or Chip().multiprocessors, lanes if lanes in (32, 64) else 32, capability)
