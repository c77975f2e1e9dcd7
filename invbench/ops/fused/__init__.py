"""Operators that make the weight where it is used, so that it is never whole in memory.

``NAME_span_forward`` starts from hidden channels, ``NAME_layer_forward``, which not all have, is a whole layer. Each is
differentiable once by an operator of its own, ``NAME_..._backward``, and more often through plain ones, with the weight
in memory. ``NAME_layer_inference`` is the whole layer where no gradient is needed, its batch norm folded into
``reduce``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from invbench.ops.fused.parts import Generator, Gradients, Kept, Kernels, Norm, Reducer, SpanKernels, empty_y
from invbench.ops.fused.span import Span
from invbench.ops.fused.whole import Inference, Whole
from invbench.ops.layout import pad
from invbench.ops.library import Aggregate
from invbench.spec import InvbenchError, LayerSpec

__all__ = ["Fused", "Generator", "Gradients", "Kept", "Kernels", "Norm", "Reducer", "SpanKernels", "empty_y"]


class Fused:
    """The operators of a kernel module.

    whole: the module itself, if it trains whole layers; if not, ``trains_whole`` is False and ``layer`` is not there.
    """

    def __init__(self, name: str, kernels: SpanKernels, aggregate: Aggregate, whole: Kernels | None = None) -> None:
        self._span = Span(name, kernels, aggregate)
        self._inference = Inference(name, kernels)
        self._whole = Whole(name, whole, self._span) if whole else None
        self.trains_whole = whole is not None

    def span(self, x: Tensor, hidden: Tensor, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and hidden [N, r, H_out, W_out], differentiable."""
        image, padding = _extended(x, spec)
        geometry = (generator.G, spec.K, spec.stride, spec.dilation, padding)
        y: Tensor = self._span.span_forward(image, hidden, generator.span, generator.bias, *geometry)
        return y.to(x.dtype)

    def infer(self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], without derivatives; a norm has
        its statistics."""
        image, padding = _extended(x, spec)
        mean, variance, scale, shift, epsilon = reducer.norm or (None, None, None, None, 0.0)
        y: Tensor = self._inference.layer_inference(
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
        assert self._whole is not None  # torch.compile cannot ask whether it is true
        if reducer.norm is None:
            raise InvbenchError("a differentiable layer needs a norm: got none; use span on the hidden channels")
        mean, variance, scale, shift, epsilon = reducer.norm
        results: tuple[Tensor, Tensor, Tensor] = self._whole.layer_forward(
            image, None if pooled is image else pooled, reducer.weight, reducer.bias, mean, variance, scale, shift,
            epsilon, reducer.rectifies, generator.span, generator.bias,
            generator.G, spec.K, spec.stride, spec.dilation, padding,
        )  # fmt: skip
        y, _, statistics = results
        return y if y.dtype == x.dtype else y.to(x.dtype), statistics


def _extended(x: Tensor, spec: LayerSpec) -> tuple[Tensor, int]:
    """The image that kernels read, and the zeros that they assume around it; see ``Aggregate.__call__``."""
    if spec.padding_mode == "zeros":
        return x, spec.padding
    return pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec), 0
