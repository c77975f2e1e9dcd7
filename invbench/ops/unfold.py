"""im2col and a weighted sum: what people use today. It writes K*K copies of x and as many products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.ops.layout import memory_format_of, pad
from invbench.spec import LayerSpec


def unavailable(device: str) -> str | None:
    """Plain PyTorch runs wherever torch does."""
    return None


def aggregate(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]; sums in float32 at least."""
    N, G, taps, H_out, W_out = weight.shape
    accumulator = torch.promote_types(x.dtype, torch.float32)
    padded = pad(x.to(accumulator), spec)
    patches = F.unfold(padded, spec.K, dilation=spec.dilation, stride=spec.stride)  # [N, C*K*K, H_out*W_out]
    patches = patches.view(N, G, spec.group_channels, taps, H_out, W_out)
    y = (patches * weight.to(accumulator).unsqueeze(2)).sum(3).view(N, spec.C, H_out, W_out)
    return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))
