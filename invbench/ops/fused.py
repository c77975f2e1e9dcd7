"""Operators that make the weight where it is used, so that it is never whole in memory.

``NAME_span_forward`` starts from hidden channels, ``NAME_layer_forward`` is a whole layer. Each is differentiable once
by an operator of its own, ``NAME_..._backward``, and more often through plain ones, with the weight in memory.
``NAME_layer_inference`` is the whole layer where no gradient is needed, its batch norm folded into ``reduce``.
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


class Kernels(Protocol):
    """What a kernel module implements. Tensors may have any strides; results are new and dense."""

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span and its bias; the last three in float32 at least, hidden's
        contiguous."""

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window, keeps: bool
    ) -> tuple[Tensor, Kept | None]:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which
        hidden is made; with what the backward pass needs, if asked for: then there is a norm."""

    def layer_backward(
        self, grad_y: Tensor, x: Tensor, pooled: Tensor | None, kept: Kept, reducer: Reducer, generator: Generator,
        window: Window,
    ) -> Gradients:  # fmt: skip
        """The gradients of a layer; without pooled, x itself was reduced, and its gradient is the whole one."""


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


def _check_layer(x: Tensor, reduced: Tensor, reducer: Reducer, generator: Generator, window: Window) -> None:
    C, r = reducer.weight.shape[1], reducer.weight.shape[0]
    if reduced.shape[1] != C:
        raise InvbenchError(f"reduce takes {C} channels: got {reduced.shape[1]} in {list(reduced.shape)}")
    if reducer.norm and (reducer.norm.scale.shape != (r,) or reducer.norm.shift.shape != (r,)):
        raise InvbenchError(f"the norm does not fit {r} hidden channels: got {list(reducer.norm.scale.shape)}")
    _check(x, (reduced.shape[0], r, *reduced.shape[2:]), generator, window)


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
    """The operators of a kernel module."""

    def __init__(self, name: str, kernels: Kernels, aggregate: Aggregate) -> None:
        self.name, self.aggregate = name, aggregate
        self._register_span_backward(kernels)
        self._register_span_forward(kernels)
        self._register_layer_inference(kernels)
        self._register_layer_backward(kernels)
        self._register_layer_forward(kernels)

    def span(self, x: Tensor, hidden: Tensor, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and hidden [N, r, H_out, W_out], differentiable."""
        image, padding = _extended(x, spec)
        geometry = (generator.G, spec.K, spec.stride, spec.dilation, padding)
        y: Tensor = self.span_forward(image, hidden, generator.span, generator.bias, *geometry)
        return y.to(x.dtype)

    def infer(self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], without derivatives; a norm has
        its statistics."""
        image, padding = _extended(x, spec)
        mean, variance, scale, shift, epsilon = reducer.norm or (None, None, None, None, 0.0)
        y: Tensor = self.layer_inference(
            image, pooled, reducer.weight, reducer.bias, mean, variance, scale, shift, epsilon, reducer.rectifies,
            generator.span, generator.bias, generator.G, spec.K, spec.stride, spec.dilation, padding,
        )  # fmt: skip
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def layer(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, spec: LayerSpec
    ) -> tuple[Tensor, Tensor]:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], differentiable; and the mean and
        variance [2, r] that the norm used, which there has to be."""
        image, padding = _extended(x, spec)
        if reducer.norm is None:
            raise InvbenchError("a differentiable layer needs a norm: got none; use span on the hidden channels")
        mean, variance, scale, shift, epsilon = reducer.norm
        results: tuple[Tensor, Tensor, Tensor] = self.layer_forward(
            image, None if pooled is image else pooled, reducer.weight, reducer.bias, mean, variance, scale, shift,
            epsilon, reducer.rectifies, generator.span, generator.bias,
            generator.G, spec.K, spec.stride, spec.dilation, padding,
        )  # fmt: skip
        y, _, statistics = results
        return y if y.dtype == x.dtype else y.to(x.dtype), statistics

    def _register_span_forward(self, kernels: Kernels) -> None:
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

    def _register_span_backward(self, kernels: Kernels) -> None:
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

    def _register_layer_inference(self, kernels: Kernels) -> None:
        def layer_inference(
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
            _check_layer(x, pooled, reducer, generator, window)
            return kernels.layer_forward(x, pooled, reducer, generator, window, keeps=False)[0]

        def fake(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            return torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x))

        self.layer_inference = register(f"{self.name}_layer_inference", layer_inference, fake, _no_derivative)

    def _register_layer_forward(self, kernels: Kernels) -> None:
        def layer_forward(
            x: Tensor, pooled: Tensor | None, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
            refuse_tangents(x, reduce, scale, shift, span, bias)
            reducer = Reducer(reduce, reduce_bias, Norm(mean, variance, scale, shift, epsilon), rectifies)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            reduced = x if pooled is None else pooled
            _check_layer(x, reduced, reducer, generator, window)
            y, kept = kernels.layer_forward(x, reduced, reducer, generator, window, keeps=True)
            assert kept
            return y, kept.raw, kept.statistics

        def fake(
            x: Tensor, pooled: Tensor | None, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
            reduced = x if pooled is None else pooled
            y = torch.empty_like(reduced, dtype=x.dtype, memory_format=memory_format_of(x))
            (N, _, H, W), r = reduced.shape, reduce.shape[0]
            exact = torch.promote_types(x.dtype, torch.float32)
            return y, x.new_empty((N, r, H, W), dtype=exact), x.new_empty((2, r), dtype=exact)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
            x, pooled, reduce, reduce_bias, mean, _, scale, shift, epsilon, rectifies, span, bias, *geometry = inputs
            _, raw, statistics = output
            ctx.mark_non_differentiable(raw, statistics)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x, pooled, raw, statistics, reduce, reduce_bias, scale, shift, span, bias)
            ctx.constants = (mean is not None, epsilon, rectifies, *geometry)

        def backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
            x, pooled, raw, statistics, reduce, reduce_bias, scale, shift, span, bias = ctx.saved_tensors
            if grad_y is None:
                return (None,) * 17
            tensors = (x, pooled, reduce, reduce_bias, scale, shift, span, bias)
            if torch.is_grad_enabled():  # for a second derivative, through operators that have one
                found = self._differentiable_layer_backward(grad_y, tensors, statistics, *ctx.constants)
            else:
                gradients = Gradients(*self.layer_backward(
                    grad_y, x, pooled, raw, statistics, reduce, scale, shift, span, bias, *ctx.constants
                ))  # fmt: skip
                for_scale, for_shift, for_bias = gradients.norm.unbind()
                found = (
                    gradients.x, gradients.pooled, gradients.reduce, for_bias, for_scale, for_shift, gradients.span,
                    gradients.bias,
                )  # fmt: skip
            cast = [
                None if tensor is None or gradient is None else gradient.to(tensor.dtype)
                for gradient, tensor in zip(found, tensors, strict=True)
            ]
            return *cast[:4], None, None, *cast[4:6], None, None, *cast[6:], None, None, None, None, None

        self.layer_forward = register(f"{self.name}_layer_forward", layer_forward, fake, backward, setup_context)

    def _differentiable_layer_backward(
        self, grad_y: Tensor, tensors: tuple[Tensor | None, ...], statistics: Tensor, has_statistics: bool,
        epsilon: float, rectifies: bool, *geometry: int,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        """The gradients for the tensors that the layer had, by operators that can be differentiated again."""
        # Views, so that the gradient for x does not come through pooled, which was made from it.
        views = [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
        x, pooled, reduce, reduce_bias, scale, shift, span, bias = views
        exact = statistics.dtype
        reduced = x if pooled is None else pooled
        assert reduced is not None
        parts = (None if part is None else part.to(exact) for part in (reduced, reduce, reduce_bias, scale, shift))
        reduced, reduce, reduce_bias, scale, shift = parts
        hidden = torch.einsum("nchw,rc->nrhw", reduced, reduce)
        if reduce_bias is not None:
            hidden = hidden + reduce_bias[:, None, None]
        mean, variance = statistics.unbind() if has_statistics else (None, None)
        batch = not has_statistics
        hidden = torch.nn.functional.batch_norm(hidden, mean, variance, scale, shift, batch, eps=epsilon)
        hidden = hidden.relu() if rectifies else hidden
        y = self.span_forward(x, hidden, span, bias, *geometry)
        wanted = [view for view in views if view is not None]
        found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
        return tuple(None if view is None else next(found) for view in views)

    def _register_layer_backward(self, kernels: Kernels) -> None:
        def layer_backward(
            grad_y: Tensor, x: Tensor, pooled: Tensor | None, raw: Tensor, statistics: Tensor, reduce: Tensor,
            scale: Tensor, shift: Tensor, span: Tensor, bias: Tensor, has_statistics: bool, epsilon: float,
            rectifies: bool, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            refuse_tangents(grad_y, x, reduce, scale, shift, span, bias)
            mean, variance = statistics.unbind() if has_statistics else (None, None)
            reducer = Reducer(reduce, None, Norm(mean, variance, scale, shift, epsilon), rectifies)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            _check_layer(x, x if pooled is None else pooled, reducer, generator, window)
            gradients = kernels.layer_backward(grad_y, x, pooled, Kept(raw, statistics), reducer, generator, window)
            # An operator returns tensors only; this one is not used.
            grad_pooled = x.new_empty(0) if gradients.pooled is None else gradients.pooled
            return gradients.x, grad_pooled, *gradients[2:]

        def fake(
            grad_y: Tensor, x: Tensor, pooled: Tensor | None, raw: Tensor, statistics: Tensor, reduce: Tensor,
            scale: Tensor, shift: Tensor, span: Tensor, bias: Tensor, has_statistics: bool, epsilon: float,
            rectifies: bool, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            exact = statistics.dtype
            grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
            grad_pooled = x.new_empty(0)
            if pooled is not None:
                grad_pooled = torch.empty_like(pooled, memory_format=memory_format_of(pooled))
            parameters = (tensor.new_empty(tensor.shape, dtype=exact) for tensor in (reduce, span, bias))
            grad_reduce, grad_span, grad_bias = parameters
            return grad_x, grad_pooled, grad_reduce, raw.new_empty((3, raw.shape[1])), grad_span, grad_bias

        self.layer_backward = register(f"{self.name}_layer_backward", layer_backward, fake, _no_derivative)


def _extended(x: Tensor, spec: LayerSpec) -> tuple[Tensor, int]:
    """The image that kernels read, and the zeros that they assume around it; see ``Aggregate.__call__``."""
    if spec.padding_mode == "zeros":
        return x, spec.padding
    return pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec), 0
