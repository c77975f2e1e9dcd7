"""How tensors lie in memory: what an output looks like, and how an image is extended at its borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.spec import LayerSpec


def memory_format_of(x: Tensor) -> torch.memory_format:
    """``channels_last`` if channels are the fastest dimension of x [N, C, H, W], also in a slice; else contiguous."""
    channels_fastest = x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last if channels_fastest and not x.is_contiguous() else torch.contiguous_format


def empty_image(x: Tensor, size: torch.Size) -> Tensor:
    """An uninitialised image [N, C, *size] in the dtype and memory format of x [N, C, H, W]."""
    N, C = x.shape[:2]
    H, W = size
    channels_last = memory_format_of(x) == torch.channels_last
    strides = (C * H * W, 1, W * C, C) if channels_last else (C * H * W, H * W, W, 1)
    return x.new_empty_strided((N, C, H, W), strides)  # by a memory format, torch takes twice the time


def empty_output(x: Tensor, spec: LayerSpec, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised y [N, C, H_out, W_out] in the layout of x [N, C, H, W]."""
    N, C, H, W = x.shape
    return torch.empty(
        (N, C, spec.out_size(H), spec.out_size(W)),
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )


def pad(x: Tensor, spec: LayerSpec) -> Tensor:
    """x [N, C, H, W] extended by ``spec.padding`` on each side in its padding mode, in the layout of x."""
    border = (spec.padding,) * 4
    if spec.padding == 0:
        return x
    if spec.padding_mode == "zeros":
        return F.pad(x, border)
    # A pixel can stand in many places of the border, and its gradient is their sum: in float32 at least.
    accumulator = torch.promote_types(x.dtype, torch.float32)
    padded = F.pad(x.to(accumulator), border, mode=spec.padding_mode).to(x.dtype)
    return padded.contiguous(memory_format=memory_format_of(x))  # the circular mode forgets it
