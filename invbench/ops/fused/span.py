"""The operators that start from hidden channels: ``NAME_span_forward`` and ``NAME_span_backward``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invbench.ops.fused.parts import Generator, SpanKernels, check_span, empty_y, no_derivative
from invbench.ops.layout import memory_format_of
from invbench.ops.library import Aggregate, Window, refuse_tangents
from invbench.ops.registering import register


class Span:
    """``span_forward(x, hidden, span, bias, G, K, stride, dilation, padding)``, differentiable, and its backward pass.

    x [N, C, H, W], hidden [N, r, H_out, W_out], span [G*K*K, r], bias [G*K*K]; y [N, C, H_out, W_out].
    """

    def __init__(self, name: str, kernels: SpanKernels, aggregate: Aggregate) -> None:
        self.name, self.aggregate = name, aggregate
        self._register_backward(kernels)
        self._register_forward(kernels)

    def _register_forward(self, kernels: SpanKernels) -> None:
        def span_forward(
            x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> Tensor:  # fmt: skip
            refuse_tangents(x, hidden, span, bias)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            check_span(x, tuple(hidden.shape), generator, window)
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

    def _register_backward(self, kernels: SpanKernels) -> None:
        def span_backward(
            grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            refuse_tangents(grad_y, x, hidden, span, bias)
            generator, window = Generator(span, bias, G), Window(K, stride, dilation, padding)
            check_span(x, tuple(hidden.shape), generator, window)
            return kernels.span_backward(grad_y, x, hidden, generator, window)

        def fake(
            grad_y: Tensor, x: Tensor, hidden: Tensor, span: Tensor, bias: Tensor,
            G: int, K: int, stride: int, dilation: int, padding: int,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
            exact = torch.promote_types(x.dtype, torch.float32)
            grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
            grad_hidden = kernels.empty_grad_hidden(hidden)
            return grad_x, grad_hidden, span.new_empty(span.shape, dtype=exact), bias.new_empty(bias.shape, dtype=exact)

        self.span_backward = register(f"{self.name}_span_backward", span_backward, fake, no_derivative)
