"""From tensors to launches of the banded kernels, and what these do not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invbench.ops.library import Window
from invbench.ops.triton_gpu.banded_kernels import (
    banded_forward_kernel,
    banded_grad_weight_kernel,
    banded_grad_x_kernel,
)  # fmt: skip
from invbench.ops.triton_gpu.launching import INT32_MAX, INTERPRETED, ROWS_MAX, TRITON_VERSION, Launch
from invbench.ops.triton_gpu.span_launching import chip_of, rows_of_forward, takes_ptx
from invbench.ops.triton_gpu.tiling import (
    BANDED_FORWARD,
    BANDED_GRAD_WEIGHT,
    BANDED_GRAD_X,
    LINE,
    WIDTH,
    Cut,
    Problem,
    default_cut,
)  # fmt: skip

# Whether contiguous images are for these kernels, and where y is made, weights of neighbouring positions: with Triton
# before 3.7, these would spill.
TAKES_NEIGHBOURS = TRITON_VERSION >= (3, 7)
# Of these, a band's zeros would be most of the work.
LEAST_CHANNELS = 4


def takes(x: Tensor, weight: Tensor, y: Tensor, window: Window) -> bool:
    """Whether these kernels compute what relates x [N, C, H, W], weight [N, G, K*K, H_out, W_out] and y [N, C, H_out,
    W_out], of which one is to be written: in 16 bits, in layouts that they read and write well, for windows that a band
    can hold; with padding that is not half a window, x is an image that was extended."""
    K, group_channels = window.K, x.shape[1] // weight.shape[1]
    is_folded = x.shape[3] <= LINE // 2 * window.dilation
    most = ROWS_MAX if is_folded else INT32_MAX  # rows of folded lines lie further apart
    return (
        x.dtype in (torch.float16, torch.bfloat16)
        and x.dtype == weight.dtype == y.dtype
        and (x.stride(1) == y.stride(1) == 1 or (TAKES_NEIGHBOURS and x.stride(3) == y.stride(3) == 1))
        and LEAST_CHANNELS <= group_channels <= WIDTH
        and K <= 7  # a band can hold 15, but from 9 on the kernels spill
        and window.stride <= min(2, K)
        and (window.stride == 1 or window.dilation == 1)
        and window.padding == window.dilation * (K // 2)
        and all(_reach(tensor) <= most for tensor in (x, weight, y))
    )


def _reach(tensor: Tensor) -> int:
    """The largest offset within one of a batch."""
    return sum((size - 1) * step for size, step in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))


def forward_launch(x: Tensor, weight: Tensor, y: Tensor, window: Window, cut: Cut | None = None) -> Launch:
    """Write y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]."""
    cut = cut or _default(BANDED_FORWARD, x, weight, window)
    return _launch(banded_forward_kernel, (x, weight, y), cut)


def grad_x_launch(grad_y: Tensor, weight: Tensor, grad_x: Tensor, window: Window, cut: Cut | None = None) -> Launch:
    """Write grad_x [N, C, H, W] from grad_y [N, C, H_out, W_out] and weight [N, G, K*K, H_out, W_out]."""
    cut = cut or _default(BANDED_GRAD_X, grad_x, weight, window)
    return _launch(banded_grad_x_kernel, (grad_y, weight, grad_x), cut)


def grad_weight_launch(
    grad_y: Tensor, x: Tensor, grad_weight: Tensor, window: Window, cut: Cut | None = None
) -> Launch:
    """Write grad_weight [N, G, K*K, H_out, W_out] from grad_y [N, C, H_out, W_out] and x [N, C, H, W]."""
    cut = cut or _default(BANDED_GRAD_WEIGHT, x, grad_weight, window)
    return _launch(banded_grad_weight_kernel, (grad_y, x, grad_weight), cut)


def _default(kernel: str, image: Tensor, weight: Tensor, window: Window) -> Cut:
    (N, C, H, W), (_, G, _, H_out, W_out) = image.shape, weight.shape
    return default_cut(kernel, Problem(N, C, H, W, H_out, W_out, G, 0, window), chip_of(image.device))


def _launch(kernel: Any, tensors: tuple[Tensor, ...], cut: Cut) -> Launch:
    p = cut.problem
    more: dict[str, Any] = {"ALONE": cut.alone}
    if cut.kernel == BANDED_FORWARD:
        more = rows_of_forward(cut)
    elif cut.kernel == BANDED_GRAD_WEIGHT:
        more = {"Q": p.columns, "PTX": takes_ptx(cut)}
    return Launch(
        kernel=kernel,
        programs=cut.programs,
        arguments=(
            *tensors, p.H, p.W, p.H_out, p.W_out, cut.unit_blocks, cut.lines, cut.strips, cut.tile.rows,
            *(step for tensor in tensors for step in tensor.stride()),
        ),
        constants={
            "GROUP_CHANNELS": p.group_channels, "K": p.window.K, "STRIDE": p.window.stride,
            "DILATION": p.window.dilation, "SLOTS": p.slots, "UNITS": cut.tile.units,
            "FOLD": cut.fold, "EXACT": INTERPRETED, **more,
        },
        num_warps=cut.num_warps,
        num_stages=1,
    )  # fmt: skip
