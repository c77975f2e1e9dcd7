"""The operators that are a whole layer: ``NAME_layer_inference``, ``NAME_layer_forward``, ``NAME_layer_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invbench.ops.fused.parts import (
    Generator,
    Gradients,
    Kept,
    Kernels,
    Norm,
    Reducer,
    SpanKernels,
    check_layer,
    no_derivative,
)
from invbench.ops.fused.span import Span
from invbench.ops.layout import memory_format_of
from invbench.ops.library import Window, refuse_tangents
from invbench.ops.registering import register
from invbench.spec import InvbenchError


class Inference:
    """``layer_inference``, without derivatives; the tensors are those of ``Whole``."""

    def __init__(self, name: str, kernels: SpanKernels) -> None:
        def layer_inference(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            norm = None
            if scale is not None and shift is not None:
                norm = Norm(mean, variance, scale, shift, epsilon)
            if (norm is None or mean is None or variance is None) and (norm, mean, variance) != (None, None, None):
                raise InvbenchError("a norm needs mean, variance, scale and shift: got some of them")
            parts = (reduce_bias, scale, shift)
            refuse_tangents(x, pooled, reduce, span, bias, *(part for part in parts if part is not None))
            reducer, generator = Reducer(reduce, reduce_bias, norm, rectifies), Generator(span, bias, G)
            window = Window(K, stride, dilation, padding)
            check_layer(x, pooled, reducer, generator, window)
            return kernels.layer_inference(x, pooled, reducer, generator, window)

        def fake(
            x: Tensor, pooled: Tensor, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor | None, shift: Tensor | None, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            return torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x))

        self.layer_inference = register(f"{name}_layer_inference", layer_inference, fake, no_derivative)


class Whole:
    """``layer_forward``, differentiable, with its backward pass.

    x [N, C, H, W]; pooled [N, C, H_out, W_out], or None where x itself is reduced; reduce [r, C] and reduce_bias [r];
    mean, variance, scale and shift of the norm, each [r]; span [G*K*K, r], bias [G*K*K]; y [N, C, H_out, W_out].
    """

    def __init__(self, name: str, kernels: Kernels, span: Span) -> None:
        self.name, self.span = name, span
        self._register_backward(kernels)
        self._register_forward(kernels)

    def _register_forward(self, kernels: Kernels) -> None:
        def layer_forward(
            x: Tensor, pooled: Tensor | None, reduce: Tensor, reduce_bias: Tensor | None, mean: Tensor | None,
            variance: Tensor | None, scale: Tensor, shift: Tensor, epsilon: float, rectifies: bool,
            span: Tensor, bias: Tensor, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
            parts = (pooled, reduce_bias)
            refuse_tangents(x, reduce, scale, shift, span, bias, *(part for part in parts if part is not None))
            reducer = Reducer(reduce, reduce_bias, Norm(mean, variance, scale, shift, epsilon), rectifies)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            reduced = x if pooled is None else pooled
            check_layer(x, reduced, reducer, generator, window)
            y, kept = kernels.layer_forward(x, reduced, reducer, generator, window)
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
                found = self._differentiable_backward(grad_y, tensors, statistics, *ctx.constants)
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

    def _differentiable_backward(
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
        y = self.span.span_forward(x, hidden, span, bias, *geometry)
        wanted = [view for view in views if view is not None and view.requires_grad]
        found = iter(torch.autograd.grad(y, wanted, grad_y, create_graph=True))
        return tuple(next(found) if view is not None and view.requires_grad else None for view in views)

    def _register_backward(self, kernels: Kernels) -> None:
        def layer_backward(
            grad_y: Tensor, x: Tensor, pooled: Tensor | None, raw: Tensor, statistics: Tensor, reduce: Tensor,
            scale: Tensor, shift: Tensor, span: Tensor, bias: Tensor, has_statistics: bool, epsilon: float,
            rectifies: bool, G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            refuse_tangents(grad_y, x, reduce, scale, shift, span, bias)
            mean, variance = statistics.unbind() if has_statistics else (None, None)
            reducer = Reducer(reduce, None, Norm(mean, variance, scale, shift, epsilon), rectifies)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            check_layer(x, x if pooled is None else pooled, reducer, generator, window)
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

        self.layer_backward = register(f"{self.name}_layer_backward", layer_backward, fake, no_derivative)
