"""SAN's two kinds of self-attention, which weigh pixels with vectors (Zhao et al., CVPR 2020, sections 3.1 and 3.2).

    pairwise    weight[o, t] = softmax over t of f(x1[o] - x2[o + t], p[o] - p[o + t])
    patchwise   weight[o, t] = f(x1[o], x2[o + t'] of all t')[t]
    y[n, c, i, j] = sum over t of  weight[n, c % (mid/share), t, i, j] * x3[n, c, o + t]

x1, x2 (C -> rel = C/16) and x3 (C -> mid) are 1x1 convolutions with bias; p is a 1x1 convolution 2 -> 2 of positions
between -1 and 1; f is norm, ReLU, 1x1 convolution without bias, norm, ReLU, 1x1 convolution. x2, x3 and p are extended
beyond the image, by reflection in the paper's networks, by zeros or otherwise if so told.

With P output positions, I = N*H*W input positions, r = rel, m = mid and w = mid/share weights:

    pairwise    params  2*(C*r + r) + C*m + m + 6 + 2*(r + 2) + (r + 2)*r + 2*r + r*w + w
                macs    P*C*r (x1) + I*C*(r + m) (x2, x3) + 4*H*W (p, once a batch) + P*K*K*((r + 2)*r + r*w + m)
    patchwise   with a = r*(K*K + 1)
                params  2*(C*r + r) + C*m + m + 2*a + a*w + 2*w + w*w*K*K + w*K*K
                macs    P*C*r (x1) + I*C*(r + m) (x2, x3) + P*(a*w + w*w*K*K + m*K*K)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from invbench.attention.window import extended, like, taps, weighted_sum
from invbench.spec import InvbenchError, LayerSpec, require_positive

RELATION = 16  # C / rel

for _name in ("_positions", "_differences", "_patches", "_pairwise_sum", "_patchwise_sum"):
    fx.wrap(_name)  # their shapes are not for torch.fx to know


class _San(nn.Module):
    """What both have: x1, x2 and x3 as ``conv1``, ``conv2`` and ``conv3``. Names are the official repository's.

    A kind adds what makes weights of x1 and x2, by ``add_relation``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        mid: int | None = None,
        share: int = 8,
        stride: int = 1,
        dilation: int = 1,
        padding_mode: str = "reflect",
    ) -> None:
        super().__init__()
        require_positive("share", share)
        mid = channels if mid is None else mid
        reason = refusal(channels)
        if reason:
            raise InvbenchError(reason)
        if mid % share:
            raise InvbenchError(f"share must divide mid: got mid={mid} and share={share}; try share=1")
        self.rel = channels // RELATION
        self.spec = LayerSpec(mid, kernel_size, mid // share, stride, dilation, padding_mode=padding_mode)
        self.conv1 = nn.Conv2d(channels, self.rel, 1, stride)
        self.conv2 = nn.Conv2d(channels, self.rel, 1)
        self.conv3 = nn.Conv2d(channels, mid, 1)
        self.add_relation()

    def add_relation(self) -> None:
        """``conv_w``, and what else makes the weights."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The spec, for print(layer)."""
        s = self.spec
        share = s.group_channels
        return (
            f"mid={s.C}, kernel_size={s.K}, share={share}, stride={s.stride}, dilation={s.dilation}, {s.padding_mode}"
        )


class PairwiseAttention2d(_San):
    """x [N, C, H, W] to y [N, mid, ceil(H / stride), ceil(W / stride)], C = channels, in the memory format of x.

    kernel_size: K, odd. mid: channels of x3 and y, by default C. share: channels that have the same weight, a
    divisor of mid. stride, dilation: of the window. padding_mode: reflect, which takes images larger than the border,
    zeros, replicate or circular.

    Raises InvbenchError for sizes below 1, an even kernel_size, channels that are no multiple of 16, and a share that
    does not divide mid.
    """

    def add_relation(self) -> None:
        """``conv_p``, p, and ``conv_w``, f."""
        self.conv_p = nn.Conv2d(2, 2, 1)
        self.conv_w = _mapping(self.rel + 2, self.rel, self.spec.G)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, mid, H_out, W_out] from x [N, C, H, W]."""
        place = self.conv_p(_positions(x))
        between = _differences(self.conv1(x), self.conv2(x), place, self.spec)
        return _pairwise_sum(self.conv3(x), self.conv_w(between), self.spec)


class PatchwiseAttention2d(_San):
    """x [N, C, H, W] to y [N, mid, ceil(H / stride), ceil(W / stride)]; arguments as of ``PairwiseAttention2d``."""

    def add_relation(self) -> None:
        """``conv_w``, f."""
        self.conv_w = _mapping(self.rel * (self.spec.taps + 1), self.spec.G, self.spec.G * self.spec.taps)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, mid, H_out, W_out] from x [N, C, H, W]."""
        weight = self.conv_w(_patches(self.conv1(x), self.conv2(x), self.spec))
        return _patchwise_sum(self.conv3(x), weight, self.spec)


def refusal(channels: int) -> str | None:
    """Why there is no such attention, and the remedy, or None."""
    if channels % RELATION:
        near = max(1, round(channels / RELATION)) * RELATION
        return f"SAN's attention compares C/16 channels: got C={channels}; use a multiple of 16, such as C={near}"
    return None


def _mapping(channels: int, hidden: int, out: int) -> nn.Sequential:
    """f, the relation's way to weights."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 1),
    )


def _positions(x: Tensor) -> Tensor:
    """Column and row of each pixel of x [N, C, H, W], from -1 to 1: [1, 2, H, W]."""
    rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    y, x_place = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x_place, y)).unsqueeze(0)


def _differences(x1: Tensor, x2: Tensor, place: Tensor, spec: LayerSpec) -> Tensor:
    """x1[o] - x2[o + t] and p[o] - p[o + t], as an image of taps and positions: [N, rel + 2, K*K, H_out * W_out]."""
    size = (x1.shape[2], x1.shape[3])
    here = place[..., :: spec.stride, :: spec.stride]

    def between(a: Tensor, b: Tensor) -> Iterator[Tensor]:
        return (a - tap for tap in taps(extended(b, spec), spec, size))

    features = torch.stack(list(between(x1.contiguous(), x2)), 2)
    places = torch.stack(list(between(here, place)), 2)
    return torch.cat((features, places.expand(len(x1), -1, -1, -1, -1)), 1).flatten(3)


def _patches(x1: Tensor, x2: Tensor, spec: LayerSpec) -> Tensor:
    """x1[o] and x2[o + t] of all t, channel rel + c*K*K + t: [N, rel * (K*K + 1), H_out, W_out]."""
    seen = torch.stack(list(taps(extended(x2, spec), spec, (x1.shape[2], x1.shape[3]))), 2)
    return torch.cat((x1.contiguous(), seen.flatten(1, 2)), 1)


def _pairwise_sum(x3: Tensor, scores: Tensor, spec: LayerSpec) -> Tensor:
    """y from scores [N, mid/share, K*K, H_out * W_out], in float32 at least in between."""
    accumulator = torch.promote_types(x3.dtype, torch.float32)
    size = (spec.out_size(x3.shape[2]), spec.out_size(x3.shape[3]))
    return _interleaved_sum(x3, scores.softmax(2, dtype=accumulator).unflatten(3, size), spec)


def _patchwise_sum(x3: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """y from weight [N, mid/share * K*K, H_out, W_out]."""
    return _interleaved_sum(x3, weight.contiguous().unflatten(1, (spec.G, spec.taps)), spec)


def _interleaved_sum(x3: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, mid, H_out, W_out] from weight [N, mid/share, K*K, H_out, W_out]: channel c has weight c % (mid/share)."""
    border = extended(x3, spec).unflatten(1, (spec.group_channels, spec.G))
    y = weighted_sum(taps(border, spec, (weight.shape[3], weight.shape[4])), weight, shared_by=1)
    return like(y.flatten(1, 2), x3, x3.dtype)
