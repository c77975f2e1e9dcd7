"""The local relation layer: pixels that resemble one another are composed (Hu et al., ICCV 2019, section 3.2).

    y = projection of  sum over t of  weight[n, c // share, t, i, j] * x[n, c, o + t]
    weight = softmax over t of  -(q[o] - k[o + t])**2 + prior[t]

q and k are 1x1 convolutions C -> C/share without bias, one number for each run of ``share`` channels; their squared
difference is the first of the three measures that the paper compares. The prior is a small network
of the tap's offset: 1x1 convolution 2 -> h, ReLU, 1x1 convolution h -> C/share, both with bias. The projection is 1x1,
C -> C, without bias. Where x is extended by zeros, so are the keys, and they take part.

With P output positions, I = N*H*W input positions, g = ceil(C / share) and h = max(1, g // 2):

    params    2*C*g + C*C + 3*h + h*g + g
    macs      P*C*g (q) + I*C*g (k) + K*K*(2*h + h*g) (prior, once a batch) + P*C*K*K + P*C*C
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from invbench.attention.window import extended, like, taps, weighted_sum
from invbench.spec import LayerSpec, require_positive

fx.wrap("local_relation")  # its shapes are not for torch.fx to know


class LocalRelation2d(nn.Module):
    """x [N, C, H, W] to y [N, C, ceil(H / stride), ceil(W / stride)], C = channels, in the memory format of x.

    kernel_size: K, odd. share: channels that have the same weight; the last ones are fewer where it does not divide C.
    stride, dilation: of the window. padding_mode: zeros, reflect, replicate or circular, of x and the keys.

    Raises InvbenchError for sizes below 1 and an even kernel_size.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        share: int = 8,
        stride: int = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        require_positive("share", share)
        require_positive("channels", channels)
        self.channels, self.share = channels, share
        groups = -(-channels // share)
        self.spec = LayerSpec(groups * share, kernel_size, groups, stride, dilation, padding_mode=padding_mode)
        self.query = nn.Conv2d(channels, groups, 1, stride, bias=False)
        self.key = nn.Conv2d(channels, groups, 1, bias=False)
        hidden = max(1, groups // 2)
        self.prior = nn.Sequential(nn.Conv2d(2, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, groups, 1))
        self.projection = nn.Conv2d(channels, channels, 1, bias=False)
        steps = torch.arange(kernel_size, dtype=torch.float32) - kernel_size // 2
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij")).unsqueeze(0)
        self.register_buffer("offsets", offsets, persistent=False)  # [1, 2, K, K], whole numbers: exact in any dtype
        self.offsets: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W]."""
        prior = self.prior(self.offsets)
        y: Tensor = self.projection(local_relation(x, self.query(x), self.key(x), prior, self.spec))
        return y

    def extra_repr(self) -> str:
        """The spec, for print(layer)."""
        s = self.spec
        return (
            f"{self.channels}, kernel_size={s.K}, share={self.share}, stride={s.stride}, dilation={s.dilation}, "
            f"{s.padding_mode}"
        )


def local_relation(x: Tensor, q: Tensor, k: Tensor, prior: Tensor, spec: LayerSpec) -> Tensor:
    """The sum over the window [N, C, H_out, W_out].

    x: [N, C, H, W]. q: [N, g, H_out, W_out], k: [N, g, H, W]. prior: [1, g, K, K].
    """
    size = (q.shape[2], q.shape[3])
    accumulator = torch.promote_types(q.dtype, torch.float32)
    query = q.contiguous().to(accumulator)
    likeness = [-((query - key) ** 2) for key in taps(extended(k, spec), spec, size)]
    weight = (torch.stack(likeness, 2) + prior.flatten(2)[..., None, None]).softmax(2)  # [N, g, K*K, H_out, W_out]
    C = x.shape[1]
    border = extended(x.to(q.dtype), spec)
    if spec.C > C:  # the last run of channels is a short one
        border = F.pad(border, (0, 0, 0, 0, 0, spec.C - C))
    y = weighted_sum(taps(border.unflatten(1, (spec.G, spec.group_channels)), spec, size), weight)
    return like(y.flatten(1, 2)[:, :C], x, q.dtype)
