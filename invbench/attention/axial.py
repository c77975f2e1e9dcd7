"""Axial attention: each pixel attends to its column, and then to its row (Wang et al., ECCV 2020, equation 4).

    w[t] = softmax over t of  norm(q[o] . k[o + t]) + norm(q[o] . r_q[t]) + norm(k[o + t] . r_k[t])
    y[o] = norm(sum over t of w[t] * v[o + t]) + norm(sum over t of w[t] * r_v[t])

in each of G heads, for t along the line: |t| < span, inside the image. q, k and v are one 1x1 convolution
C -> C/2 + C/2 + C without bias, and a norm. The embeddings r of the 2*span - 1 distances are shared by heads. A stride
is an average pool afterwards.

Lines of up to ``span`` positions are attended to as a whole, by matrix products. Of longer ones each position sees
the 2*span - 1 around it, tap by tap; what would be outside has no weight, but is in the statistics of a norm in train
mode. With keys(n) = n where n <= span, 2*span - 1 otherwise, for both axes together:

    params    2*(2*C*C + 4*C + 2*(C/G)*(2*span - 1) + 6*G + 4*C)
    macs      N*H*W*(4*C*C + 7*C/2*(keys(H) + keys(W)))
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from invbench.attention.window import like, line_taps, products, weighted_sum
from invbench.spec import InvbenchError, require_choice, require_positive

AXES = ("height", "width")

for _name in ("_scores", "_sums", "_halves"):
    fx.wrap(_name)  # their shapes are not for torch.fx to know


def keys(n: int, span: int) -> int:
    """To how many positions, some perhaps outside, each one of a line of n attends."""
    return n if n <= span else 2 * span - 1


class AxialAttention1d(nn.Module):
    """x [N, C, H, W] to y of the same shape and memory format, along one axis; C = channels.

    heads: G, divide C; each has an even number of channels. span: the least distance that is not attended to; lines of
    up to so many positions are seen whole. axis: "height" or "width".

    Raises InvbenchError for sizes below 1, and heads that C has none of or that are of odd size.
    """

    def __init__(self, channels: int, heads: int = 8, span: int = 56, axis: str = "height") -> None:
        super().__init__()
        for name, value in (("channels", channels), ("heads", heads), ("span", span)):
            require_positive(name, value)
        require_choice("axis", axis, AXES)
        reason = refusal(channels, heads)
        if reason:
            raise InvbenchError(reason)
        self.channels, self.heads, self.span, self.axis = channels, heads, span, axis
        self.qkv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.norm_qkv = nn.BatchNorm2d(2 * channels)
        self.norm_scores = nn.BatchNorm2d(3 * heads)
        self.norm_out = nn.BatchNorm2d(2 * channels)
        head = channels // heads
        self.relative = nn.Parameter(torch.randn(2 * head, 2 * span - 1) * head**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H, W] from x [N, C, H, W]."""
        qkv = self.qkv(x)
        if self.training:  # before the norm, not behind it: one whose gradient has another layout is slow
            qkv = qkv.contiguous()
        qkv = self.norm_qkv(qkv)
        scores = self.norm_scores(_scores(qkv, self.relative, self.heads, self.span, self.axis))
        return _halves(self.norm_out(_sums(scores, qkv, self.relative, self.heads, self.span, self.axis)), x)

    def extra_repr(self) -> str:
        """What it was made of, for print(layer)."""
        return f"{self.channels}, heads={self.heads}, span={self.span}, {self.axis}"


class AxialAttention2d(nn.Module):
    """x [N, C, H, W] to y [N, C, ceil(H / stride), ceil(W / stride)]: height, then width, then an average pool.

    Arguments as of ``AxialAttention1d``.
    """

    def __init__(self, channels: int, heads: int = 8, span: int = 56, stride: int = 1) -> None:
        super().__init__()
        require_positive("stride", stride)
        self.height = AxialAttention1d(channels, heads, span, "height")
        self.width = AxialAttention1d(channels, heads, span, "width")
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W]."""
        y: Tensor = self.pool(self.width(self.height(x)))
        return y


def refusal(channels: int, heads: int) -> str | None:
    """Why there is no such attention, and the remedy, or None."""
    if channels % heads or channels // heads % 2:
        return (
            "axial attention has queries and keys of half a head's channels: got "
            f"C={channels} and G={heads}; choose G so that C/G is even"
        )
    return None


def _scores(qkv: Tensor, relative: Tensor, heads: int, span: int, axis: str) -> Tensor:
    """The three kinds of products, 3*heads channels, of qkv [N, 2*C, H, W] and relative [2*C/G, 2*span - 1].

    [lines, 3*G, L, L], queries before keys, where lines are seen whole; otherwise [N, 3*G, 2*span - 1, H*W].
    """
    q, k, _ = _parts(qkv, heads)
    r_q, r_k, _ = _split(relative, 0)
    L = _length(q, axis)
    if span >= L:
        q, k = _lines(q, axis), _lines(k, axis)  # [N*W, G, C/G/2, H] along the height
        r_q, r_k = _between(r_q, L), _between(r_k, L)
        qk = torch.einsum("bgci,bgcj->bgij", q, k)
        return torch.cat((qk, torch.einsum("bgci,cij->bgij", q, r_q), torch.einsum("bgcj,cij->bgij", k, r_k)), 1)
    border = _extended(k, span, axis)
    qk = products(q, _taps(border, span, axis, q)).to(q.dtype)
    qr = torch.einsum("ngchw,ct->ngthw", q, r_q)
    of_keys = torch.einsum("ngchw,ct->ngthw", border, r_k)
    kr = torch.stack([tap[:, :, t] for t, tap in enumerate(_taps(of_keys, span, axis, q))], 2)
    return torch.cat((qk, qr, kr), 1).flatten(3)


def _sums(scores: Tensor, qkv: Tensor, relative: Tensor, heads: int, span: int, axis: str) -> Tensor:
    """Of values and of embeddings, weighted by the softmax of scores, as ``_scores`` has them: [N, 2*C, H, W]."""
    _, _, v = _parts(qkv, heads)
    _, _, r_v = _split(relative, 0)
    N, _, _, H, W = v.shape
    L = _length(v, axis)
    accumulator = torch.promote_types(scores.dtype, torch.float32)
    together = scores.unflatten(1, (3, heads)).sum(1, dtype=accumulator)
    if span >= L:
        weight = together.softmax(3).to(v.dtype)
        of_values = torch.einsum("bgij,bgcj->bgci", weight, _lines(v, axis))
        of_embeddings = torch.einsum("bgij,cij->bgci", weight, _between(r_v, L))
        both = torch.cat((of_values.flatten(1, 2), of_embeddings.flatten(1, 2)), 1)  # [N*W, 2*C, H]
        others = W if axis == "height" else H
        both = both.unflatten(0, (N, others))
        y: Tensor = both.permute(0, 2, 3, 1) if axis == "height" else both.permute(0, 2, 1, 3)
        return y.contiguous()
    window = together.unflatten(3, (H, W)) + _outside(L, span, axis, together)
    weight = window.softmax(2)
    of_values = weighted_sum(_taps(_extended(v, span, axis), span, axis, v), weight).to(v.dtype)
    of_embeddings = torch.einsum("ngthw,ct->ngchw", weight.to(v.dtype), r_v)
    return torch.cat((of_values.flatten(1, 2), of_embeddings.flatten(1, 2)), 1)


def _halves(both: Tensor, x: Tensor) -> Tensor:
    """The sum over values and the one over embeddings, [N, 2*C, H, W], made one: [N, C, H, W] in x's memory format."""
    of_values, of_embeddings = both.chunk(2, 1)
    return like(of_values + of_embeddings, x, both.dtype)


def _split(x: Tensor, dimension: int) -> tuple[Tensor, Tensor, Tensor]:
    """The query's quarter, the key's and the value's half."""
    quarter = x.shape[dimension] // 4
    q, k, v = x.split((quarter, quarter, 2 * quarter), dimension)
    return q, k, v


def _parts(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q and k [N, G, C/G/2, H, W] and v [N, G, C/G, H, W]."""
    return _split(qkv.contiguous().unflatten(1, (heads, -1)), 2)


def _length(x: Tensor, axis: str) -> int:
    """Of a line in x [..., H, W]."""
    return x.shape[-2] if axis == "height" else x.shape[-1]


def _lines(x: Tensor, axis: str) -> Tensor:
    """x [N, G, c, H, W] as a batch of lines [N*W, G, c, H] along the height, or [N*H, G, c, W] along the width."""
    return (x.permute(0, 4, 1, 2, 3) if axis == "height" else x.permute(0, 3, 1, 2, 4)).flatten(0, 1)


def _between(relative: Tensor, L: int) -> Tensor:
    """Embeddings [c, 2*span - 1] of distances as those of queries i and keys j on a line, [c, i, j]."""
    span = (relative.shape[1] + 1) // 2
    return relative[:, span - L : span + L - 1].unfold(1, L, 1).flip(1)


def _extended(x: Tensor, span: int, axis: str) -> Tensor:
    border = (0, 0, span - 1, span - 1) if axis == "height" else (span - 1, span - 1, 0, 0)
    return F.pad(x, border)


def _taps(border: Tensor, span: int, axis: str, inside: Tensor) -> Iterator[Tensor]:
    window = (2 * span - 1, 1) if axis == "height" else (1, 2 * span - 1)
    return line_taps(border, window, 1, 1, (inside.shape[-2], inside.shape[-1]))


def _outside(L: int, span: int, axis: str, like_scores: Tensor) -> Tensor:
    """-inf where a tap is outside the image, and 0: [taps, L, 1] along the height, [taps, 1, L] along the width."""
    place = torch.arange(L, device=like_scores.device)
    steps = torch.arange(1 - span, span, device=like_scores.device)
    sees = place + steps.unsqueeze(1)
    mask = torch.zeros(sees.shape, device=like_scores.device, dtype=like_scores.dtype)
    mask = mask.masked_fill((sees < 0) | (sees >= L), -torch.inf)
    return mask.unsqueeze(2) if axis == "height" else mask.unsqueeze(1)
