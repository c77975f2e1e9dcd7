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

``kernels`` is what runs on the GPU, ``launching`` how the work is cut and a kernel started.
``compiling`` and ``inspection`` (with ``sass``) say what a launch is compiled to, ``traffic`` what it asks of memory;
running imports none of them.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from invbench.ops.layout import memory_format_of
from invbench.ops.library import Aggregate, Window, empty_grad_x, empty_weight, empty_y, taps_are_last
from invbench.ops.triton_gpu.kernels import forward_kernel
from invbench.ops.triton_gpu.launching import forward_launch, grad_weight_launch, grad_x_launch


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
INTERPRETED = not isinstance(forward_kernel, triton.runtime.JITFunction)


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
