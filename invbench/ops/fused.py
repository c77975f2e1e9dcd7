"""Operators that make the weight where it is used, so that it is never whole in memory.

``NAME_span_forward`` and ``NAME_span_backward`` start from the hidden channels and are differentiable once by
themselves; a second derivative goes through the operators of ``library.Aggregate``, with the weight in memory.
``NAME_layer`` is the whole layer where no gradient is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from invbench.ops.layout import memory_format_of, pad
from invbench.ops.library import Aggregate, Window, refuse_tangents
from invbench.ops.registering import register
from invbench.spec import LayerSpec


class Generator(NamedTuple):
    """weight [N, G, K*K, H_out, W_out] = span [G*K*K, r] times hidden [N, r, H_out, W_out], plus bias [G*K*K]."""

    span: Tensor
    bias: Tensor
    G: int


class Norm(NamedTuple):
    """A batch norm with fixed statistics: (hidden - mean) / sqrt(variance + epsilon) * scale + shift, each [r]."""

    mean: Tensor
    variance: Tensor
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


class Kernels(Protocol):
    """What a kernel module implements. Tensors may have any strides; results are new and dense."""

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span and its bias; the last three in float32 at least, hidden's
        channels_last."""

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which hidden is made."""


def empty_y(x: Tensor, hidden: Tensor) -> Tensor:
    """An uninitialised y [N, C, H_out, W_out] in x's memory format, for hidden [N, r, H_out, W_out]."""
    size = (*x.shape[:2], *hidden.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


class Fused:
    """The operators ``invbench::NAME_span_forward``, ``NAME_span_backward`` and ``NAME_layer`` of a kernel module."""

    def __init__(self, name: str, kernels: Kernels, aggregate: Aggregate) -> None:
        self.name, self.aggregate = name, aggregate
        self._register_backward(kernels)
        self._register_forward(kernels)
        self._register_layer(kernels)

    def span(self, x: Tensor, hidden: Tensor, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and hidden [N, r, H_out, W_out], differentiable."""
        image, padding = _extended(x, spec)
        geometry = (generator.G, spec.K, spec.stride, spec.dilation, padding)
        y: Tensor = self.span_forward(image, hidden, generator.span, generator.bias, *geometry)
        return y.to(x.dtype)

    def layer(self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], without derivatives."""
        image, padding = _extended(x, spec)
        mean, variance, scale, shift, epsilon = reducer.norm or (None, None, None, None, 0.0)
        y: Tensor = self.layer_forward(
            image, pooled, reducer.weight, reducer.bias, mean, variance, scale, shift, epsilon, reducer.rectifies,
            generator.span, generator.bias, generator.G, spec.K, spec.stride, spec.dilation, padding,
        )  # fmt: skip
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def _register_forward(self, kernels: Kernels) -> None:
        def span_forward(
            x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            refuse_tangents(x, hidden, span, bias)
            return kernels.span_forward(x, hidden, Generator(span, bias, G), Window(K, stride, dilation, padding))

        def fake(
            x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            return empty_y(x, hidden)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs[:4])
            ctx.geometry = inputs[4:]

        def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
            x, hidden, span, bias = ctx.saved_tensors
            if torch.is_grad_enabled():  # for a second derivative, through operators that have one
                gradients = self._differentiable_backward(grad_y, x, hidden, span, bias, *ctx.geometry)
            else:
                gradients = self.span_backward(grad_y, x, hidden, span, bias, *ctx.geometry)
            inputs = (x, hidden, span, bias)
            cast = (gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True))
            return *cast, None, None, None, None, None

        self.span_forward = register(f"{self.name}_span_forward", span_forward, fake, backward, setup_context)

    def _differentiable_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor, G: int, *geometry: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, span and bias, by operators that can be differentiated again."""
        hidden, span, bias = (tensor.to(x.dtype) for tensor in (hidden, span, bias))
        weight = torch.einsum("nrhw,kr->nkhw", hidden, span) + bias[:, None, None]
        weight = weight.unflatten(1, (G, -1))
        grad_x = self.aggregate.grad_x(
            grad_y, weight, *geometry, *x.shape[2:], memory_format_of(x) is torch.channels_last
        )
        grads = self.aggregate.grad_weight(grad_y, x, *geometry, G, True).flatten(1, 2)
        grad_hidden = torch.einsum("nkhw,kr->nrhw", grads, span)
        return grad_x, grad_hidden, torch.einsum("nkhw,nrhw->kr", grads, hidden), grads.sum((0, 2, 3))

    def _register_backward(self, kernels: Kernels) -> None:
        def span_backward(
            grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            refuse_tangents(grad_y, x, hidden, span, bias)
            generator = Generator(span, bias, G)
            return kernels.span_backward(grad_y, x, hidden, generator, Window(K, stride, dilation, padding))

        def fake(
            grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            exact = torch.promote_types(x.dtype, torch.float32)
            grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
            grad_hidden = torch.empty_like(hidden, dtype=exact, memory_format=torch.channels_last)
            return grad_x, grad_hidden, span.new_empty(span.shape, dtype=exact), bias.new_empty(bias.shape, dtype=exact)

        self.span_backward = register(f"{self.name}_span_backward", span_backward, fake)

    def _register_layer(self, kernels: Kernels) -> None:
        def layer_forward(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            norm = None
            if mean is not None and variance is not None and scale is not None and shift is not None:
                norm = Norm(mean, variance, scale, shift, epsilon)
            reducer, generator = Reducer(reduce, reduce_bias, norm, rectifies), Generator(span, bias, G)
            return kernels.layer_forward(x, pooled, reducer, generator, Window(K, stride, dilation, padding))

        def fake(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            return torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x))

        self.layer_forward = register(f"{self.name}_layer", layer_forward, fake)


def _extended(x: Tensor, spec: LayerSpec) -> tuple[Tensor, int]:
    """The image that kernels read, and the zeros that they assume around it; see ``Aggregate.__call__``."""
    if spec.padding_mode == "zeros":
        return x, spec.padding
    return pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec), 0
