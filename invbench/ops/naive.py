"""Tap by tap in plain PyTorch: short enough to be believed by reading. In float64 it is the reference.

y[n, c, i, j] += weight[n, g(c), (u, v), i, j] * padded[n, c, s*i + d*u, s*j + d*v]     for each tap (u, v)
"""

from __future__ import annotations

import torch
from torch import Tensor

from invbench.ops.layout import empty_output, pad
from invbench.spec import LayerSpec


def unavailable(device: str) -> str | None:
    """Plain PyTorch runs wherever torch does."""
    return None


def aggregate(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]; sums in float32 at least."""
    accumulator = torch.promote_types(x.dtype, torch.float32)
    groups = (spec.G, spec.group_channels)
    padded = pad(x.to(accumulator), spec).unflatten(1, groups)  # [N, G, C/G, H + 2p, W + 2p]
    y = empty_output(x, spec, accumulator).zero_()
    y_groups = y.unflatten(1, groups)  # [N, G, C/G, H_out, W_out]
    rows = spec.stride * (y.shape[2] - 1) + 1
    columns = spec.stride * (y.shape[3] - 1) + 1
    # unbind, not indexing: its backward pass stacks the gradients once instead of adding K*K full-size tensors.
    for tap, tap_weight in enumerate(weight.unbind(2)):  # [N, G, H_out, W_out]
        top, left = (spec.dilation * offset for offset in divmod(tap, spec.K))
        window = padded[..., top : top + rows : spec.stride, left : left + columns : spec.stride]
        y_groups.addcmul_(window, tap_weight.to(accumulator).unsqueeze(2))
    return y.to(x.dtype)
