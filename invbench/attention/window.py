"""Windowed products in plain PyTorch, tap by tap: views of the extended image, and one pass over it for each tap.

Measured at C=256, 28x28, K=7, 16 heads, N=2, float32, two CPU threads, forward / training step of both products: tap by
tap 25 / 108 ms, im2col and a sum 326 / 712, im2col and small matrix products 351 / 945, whole rows of keys against rows
of queries by matrix products 24 / 228. Tap by tap also writes least: scores, but not K*K copies of the image. Channels
last it takes 40 / 329 ms, so images are made contiguous before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from invbench.ops.layout import memory_format_of, pad
from invbench.spec import LayerSpec


def extended(x: Tensor, spec: LayerSpec) -> Tensor:
    """x [N, C, H, W] with its border, contiguous.

    Raises InvbenchError for an image that the padding mode cannot extend.
    """
    spec.check_size(x.shape[2], x.shape[3])
    return pad(x.contiguous(), spec)


def taps(border: Tensor, spec: LayerSpec, size: tuple[int, int]) -> Iterator[Tensor]:
    """What each tap sees from every output position: K*K views [..., H_out, W_out] of ``extended``'s image."""
    return line_taps(border, (spec.K, spec.K), spec.stride, spec.dilation, size)


def line_taps(
    border: Tensor, window: tuple[int, int], stride: int, dilation: int, size: tuple[int, int]
) -> Iterator[Tensor]:
    """The same for a window that need not be square: of ``window`` rows and columns; size: H_out and W_out."""
    rows, columns = (stride * (n - 1) + 1 for n in size)
    for top in range(0, dilation * window[0], dilation):
        # One view for all taps of a row: the backward pass of each view fills an image with zeros.
        band = border[..., top : top + rows : stride, :]
        for left in range(0, dilation * window[1], dilation):
            yield band[..., left : left + columns : stride]


def products(q: Tensor, seen: Iterator[Tensor]) -> Tensor:
    """q . k of each tap [N, G, taps, H_out, W_out], in float32 at least, from q and taps [N, G, C/G, H_out, W_out]."""
    accumulator = torch.promote_types(q.dtype, torch.float32)
    return torch.stack([(q * k).sum(2, dtype=accumulator) for k in seen], 2)


def weighted_sum(seen: Iterator[Tensor], weight: Tensor, shared_by: int = 2) -> Tensor:
    """The sum over taps of weight times what they see, with two dimensions for channels, in float32 at least.

    seen: [N, A, B, H_out, W_out] of each tap. weight: [N, B or A, taps, H_out, W_out]; shared_by: the one of the two
    dimensions, 1 or 2, whose channels share a weight.
    """
    y: Tensor | None = None
    # unbind, not indexing: its backward pass stacks the gradients once instead of adding full-size tensors.
    for x, tap_weight in zip(seen, weight.unbind(2), strict=True):
        if y is None:
            accumulator = torch.promote_types(x.dtype, torch.float32)
            y = torch.zeros(x.shape, dtype=accumulator, device=x.device)
        y = y.addcmul_(x, tap_weight.unsqueeze(shared_by))
    assert y is not None
    return y


def like(y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous image y [N, C, H_out, W_out] in the memory format of x and this dtype."""
    # There and back, for the backward pass: it makes the gradient contiguous, too. One with channels last, times
    # contiguous taps, took 1.5 times a whole training step.
    y = y.flatten().view(y.shape)
    return y.to(dtype).contiguous(memory_format=memory_format_of(x))
