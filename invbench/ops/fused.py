"""Operators that make the weight where it is used, so that it is never whole in memory.

``NAME_reduce_forward`` makes hidden channels, ``NAME_span_forward`` starts from them; each is differentiable once by an
operator of its own, ``NAME_..._backward``, and more often through plain ones, with the weight in memory. ``NAME_layer``
is the whole layer where no gradient is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from invbench.ops.layout import memory_format_of, pad
from invbench.ops.library import Aggregate, Window, refuse_tangents
from invbench.ops.registering import register
from invbench.spec import InvbenchError, LayerSpec


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

    def reduce_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """hidden [N, r, H, W], contiguous and in x's dtype, from x [N, C, H, W] and weight [r, C]."""

    def reduce_backward(self, grad_hidden: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """grad_x [N, C, H, W] in x's dtype and memory format, grad_weight [r, C] in float32 at least."""

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span and its bias; the last three in float32 at least, hidden's
        contiguous."""

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which hidden is made."""


def _check(x: Tensor, hidden_size: tuple[int, ...], generator: Generator, window: Window) -> None:
    """Refuse, with an InvbenchError, what a kernel would read or write beyond its end: parts of a layer may have been
    replaced by others of any size."""
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


def _check_reduce(x: Tensor, weight: Tensor) -> None:
    if x.shape[1] != weight.shape[1]:
        raise InvbenchError(f"reduce takes {weight.shape[1]} channels: got {x.shape[1]} in {list(x.shape)}")


def _no_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError(
        "this operator computes without derivatives, as a layer does under torch.no_grad: "
        "call or export the layer with gradients enabled"
    )


def empty_y(x: Tensor, hidden: Tensor) -> Tensor:
    """An uninitialised y [N, C, H_out, W_out] in x's memory format, for hidden [N, r, H_out, W_out]."""
    size = (*x.shape[:2], *hidden.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


class Fused:
    """The operators ``invbench::NAME_span_forward``, ``NAME_span_backward`` and ``NAME_layer`` of a kernel module."""

    def __init__(self, name: str, kernels: Kernels, aggregate: Aggregate) -> None:
        self.name, self.aggregate = name, aggregate
        self._register_reduce(kernels)
        self._register_backward(kernels)
        self._register_forward(kernels)
        self._register_layer(kernels)

    def reduce(self, x: Tensor, weight: Tensor) -> Tensor:
        """hidden [N, r, H, W], contiguous, from x [N, C, H, W] and weight [r, C], differentiable."""
        hidden: Tensor = self.reduce_forward(x, weight)
        return hidden

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

    def _register_reduce(self, kernels: Kernels) -> None:
        def reduce_forward(x: Tensor, weight: Tensor) -> Tensor:
            refuse_tangents(x, weight)
            _check_reduce(x, weight)
            return kernels.reduce_forward(x, weight)

        def fake_forward(x: Tensor, weight: Tensor) -> Tensor:
            return x.new_empty((x.shape[0], weight.shape[0], *x.shape[2:]))

        def reduce_backward(grad_hidden: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            refuse_tangents(grad_hidden, x, weight)
            _check_reduce(x, weight)
            return kernels.reduce_backward(grad_hidden, x, weight)

        def fake_backward(grad_hidden: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
            return grad_x, weight.new_empty(weight.shape, dtype=torch.promote_types(x.dtype, torch.float32))

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        def backward(ctx: Any, grad_hidden: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            if torch.is_grad_enabled():  # for a second derivative
                grad_x = torch.einsum("nrhw,rc->nchw", grad_hidden, weight.to(grad_hidden.dtype))
                return grad_x.to(x.dtype), torch.einsum("nrhw,nchw->rc", grad_hidden, x).to(weight.dtype)
            grad_x, grad_weight = self.reduce_backward(grad_hidden, x, weight)
            return grad_x, grad_weight.to(weight.dtype)

        self.reduce_backward = register(f"{self.name}_reduce_backward", reduce_backward, fake_backward, _no_derivative)
        self.reduce_forward = register(
            f"{self.name}_reduce_forward", reduce_forward, fake_forward, backward, setup_context
        )

    def _register_forward(self, kernels: Kernels) -> None:
        def span_forward(
            x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            refuse_tangents(x, hidden, span, bias)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            _check(x, tuple(hidden.shape), generator, window)
            return kernels.span_forward(x, hidden, generator, window)

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
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            _check(x, tuple(hidden.shape), generator, window)
            return kernels.span_backward(grad_y, x, hidden, generator, window)

        def fake(
            grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            exact = torch.promote_types(x.dtype, torch.float32)
            grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
            grad_hidden = torch.empty_like(hidden, dtype=exact, memory_format=torch.contiguous_format)
            return grad_x, grad_hidden, span.new_empty(span.shape, dtype=exact), bias.new_empty(bias.shape, dtype=exact)

        self.span_backward = register(f"{self.name}_span_backward", span_backward, fake, _no_derivative)

    def _register_layer(self, kernels: Kernels) -> None:
        def layer_forward(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            norm = None
            if mean is not None and variance is not None and scale is not None and shift is not None:
                norm = Norm(mean, variance, scale, shift, epsilon)
            refuse_tangents(x, pooled, reduce, span, bias)
            reducer, generator = Reducer(reduce, reduce_bias, norm, rectifies), Generator(span, bias, G)
            window = Window(K, stride, dilation, padding)
            _check_reduce(pooled, reduce)
            _check(x, (pooled.shape[0], reduce.shape[0], *pooled.shape[2:]), generator, window)
            return kernels.layer_forward(x, pooled, reducer, generator, window)

        def fake(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            return torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x))

        self.layer_forward = register(f"{self.name}_layer", layer_forward, fake, _no_derivative)


def _extended(x: Tensor, spec: LayerSpec) -> tuple[Tensor, int]:
    """The image that kernels read, and the zeros that they assume around it; see ``Aggregate.__call__``."""
    if spec.padding_mode == "zeros":
        return x, spec.padding
    return pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec), 0
