"""What a layer that makes its weight on the way consists of, what kernels compute for it, and what does not fit."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from invbench.ops.layout import empty_image
from invbench.ops.library import Window
from invbench.spec import InvbenchError


class Generator(NamedTuple):
    """weight [N, G, K*K, H_out, W_out] = span [G*K*K, r] times hidden [N, r, H_out, W_out], plus bias [G*K*K]."""

    span: Tensor
    bias: Tensor
    G: int


class Norm(NamedTuple):
    """A batch norm: (hidden - mean) / sqrt(variance + epsilon) * scale + shift, each [r]. Without mean and variance, it
    uses those of the batch."""

    mean: Tensor | None
    variance: Tensor | None
    scale: Tensor
    shift: Tensor
    epsilon: float


class Reducer(NamedTuple):
    """hidden [N, r, H_out, W_out] = weight [r, C] times an image [N, C, H_out, W_out], plus bias [r], normalised and
    rectified, as far as there is a bias, a norm and a rectifier."""

    weight: Tensor
    bias: Tensor | None
    norm: Norm | None
    rectifies: bool


class Kept(NamedTuple):
    """What the backward pass of a layer needs of its forward pass, in float32 at least.

    raw: hidden [N, r, H_out, W_out] before its norm. statistics [2, r]: the norm's mean and variance.
    """

    raw: Tensor
    statistics: Tensor


class Gradients(NamedTuple):
    """The gradients of a layer: for x and what was reduced in their dtypes and memory formats, the others in float32
    at least. pooled: None where x itself was reduced. norm [3, r]: for its scale, its shift, and for reduce's bias."""

    x: Tensor
    pooled: Tensor | None
    reduce: Tensor
    norm: Tensor
    span: Tensor
    bias: Tensor


class SpanKernels(Protocol):
    """What a kernel module implements. Tensors may have any strides; results are new and dense."""

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span and its bias: hidden's as ``empty_grad_hidden`` makes it, those of
        span and bias in float32 at least."""

    def empty_grad_hidden(self, hidden: Tensor) -> Tensor:
        """An uninitialised gradient of hidden [N, r, H_out, W_out]."""

    def layer_inference(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which
        hidden is made; a norm has its statistics."""


class Kernels(SpanKernels, Protocol):
    """What a kernel module implements that trains whole layers, too."""

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> tuple[Tensor, Kept]:
        """As ``layer_inference``, with what the backward pass needs; there is a norm."""

    def layer_backward(
        self, grad_y: Tensor, x: Tensor, pooled: Tensor | None, kept: Kept, reducer: Reducer, generator: Generator,
        window: Window,
    ) -> Gradients:  # fmt: skip
        """The gradients of a layer; without pooled, x itself was reduced, and its gradient is the whole one."""


def check_span(x: Tensor, hidden_size: tuple[int, ...], generator: Generator, window: Window) -> None:
    """Refuse, with an InvbenchError, what a kernel would read or write beyond its end: parts of a layer may have been
    replaced by others of any size."""
    for part in (generator.span, generator.bias):
        if part.device != x.device:
            raise InvbenchError(f"a layer's parts must be where x is: got x on {x.device}, a part on {part.device}")
    N, C, H, W = x.shape
    reach = 2 * window.padding - window.dilation * (window.K - 1) - 1
    r, size = generator.span.shape[1], ((H + reach) // window.stride + 1, (W + reach) // window.stride + 1)
    if hidden_size != (N, r, *size):
        raise InvbenchError(
            f"the hidden channels do not fit x {list(x.shape)} and a span of {r}: expected {[N, r, *size]}, "
            f"got {list(hidden_size)}; reduce and pool must make the channels and positions that span takes"
        )
    taps = generator.G * window.K**2
    if C % generator.G or generator.span.shape[0] != taps or generator.bias.shape != (taps,):
        raise InvbenchError(
            f"span and its bias do not fit C={C}, G={generator.G} and K={window.K}: expected {taps} channels, "
            f"got {generator.span.shape[0]} and {list(generator.bias.shape)}"
        )


def check_layer(x: Tensor, reduced: Tensor, reducer: Reducer, generator: Generator, window: Window) -> None:
    """As ``check_span``, for what hidden is made from."""
    r, C = reducer.weight.shape
    if x.shape[1] != C or reduced.shape[1] != C:
        raise InvbenchError(f"reduce takes {C} channels: got {list(reduced.shape)} for x {list(x.shape)}")
    if (reduced.dtype == torch.float64) != (x.dtype == torch.float64):
        raise InvbenchError(f"x and what is reduced must be of one dtype: got {x.dtype} and {reduced.dtype}")
    for part in (reducer.bias, *(reducer.norm or ())[:4]):
        if part is not None and part.shape != (r,):
            raise InvbenchError(f"reduce's bias and the norm must have {r} numbers each: got {list(part.shape)}")
    for part in (reduced, reducer.weight, reducer.bias, *(reducer.norm or ())[:4]):
        if part is not None and part.device != x.device:
            raise InvbenchError(f"a layer's parts must be where x is: got x on {x.device}, a part on {part.device}")
    check_span(x, (reduced.shape[0], r, *reduced.shape[2:]), generator, window)


def no_derivative(ctx: Any, *gradients: Tensor) -> None:
    """The backward of an operator that has none: without one, autograd would silently give no gradients."""
    raise NotImplementedError(
        "this operator computes without derivatives, as a layer does under torch.no_grad: "
        "call or export the layer with gradients enabled"
    )


def empty_y(x: Tensor, hidden: Tensor) -> Tensor:
    """An uninitialised y [N, C, H_out, W_out] in x's memory format, for hidden [N, r, H_out, W_out]."""
    return empty_image(x, hidden.shape[2:])
