"""How opaque kernels become PyTorch operators: fake formulas, autograd, double backward and forward mode.

Aggregation is linear in x and in the weight, so its forward pass and its two gradients are closed under
differentiation: each one's derivative is one of the other two. Three operators that name each other in their
autograd formulas are therefore differentiable as often as anyone likes. Where no more derivatives follow, a fourth one
makes both gradients at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from invbench.ops.layout import empty_image, memory_format_of, pad
from invbench.ops.registering import register
from invbench.spec import LayerSpec


@dataclass(frozen=True, slots=True)
class Window:
    """How the K x K window lies on the image: tap (u, v) of output (i, j) reads x at
    (stride*i + dilation*u - padding, stride*j + dilation*v - padding), which is zero outside the image."""

    K: int
    stride: int
    dilation: int
    padding: int


class Kernels(Protocol):
    """What a kernel module implements. Tensors may have any strides; results are new and dense.

    A weight in 16 bits can come with an image in float32; then y and both gradients are in float32.
    """

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""

    def gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """grad_x and grad_weight, in the layouts of x and weight."""


def empty_y(x: Tensor, weight: Tensor) -> Tensor:
    """An uninitialised y [N, C, H_out, W_out] in x's memory format, for weight [N, G, K*K, H_out, W_out]."""
    return empty_image(x, weight.shape[3:])


def empty_grad_x(grad_y: Tensor, size: tuple[int, int], channels_last: bool) -> Tensor:
    """An uninitialised [N, C, H, W] tensor with (H, W) = size, contiguous or channels_last."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (*grad_y.shape[:2], *size)
    return torch.empty(shape, dtype=grad_y.dtype, device=grad_y.device, memory_format=memory_format)


def empty_weight(grad_y: Tensor, G: int, taps: int, taps_last: bool) -> Tensor:
    """An uninitialised [N, G, K*K, H_out, W_out] tensor: contiguous, or a view of [N, H_out, W_out, G, K*K], which
    is what a channels_last 1x1 convolution writes."""
    N, _, H_out, W_out = grad_y.shape
    if taps_last:
        return grad_y.new_empty((N, H_out, W_out, G, taps)).permute(0, 3, 4, 1, 2)
    return grad_y.new_empty((N, G, taps, H_out, W_out))


def empty_gradients(grad_y: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of x and weight, in their layouts and in grad_y's dtype."""
    grad_x = empty_grad_x(grad_y, (x.shape[2], x.shape[3]), memory_format_of(x) == torch.channels_last)
    return grad_x, empty_weight(grad_y, weight.shape[1], weight.shape[2], taps_are_last(weight))


def taps_are_last(weight: Tensor) -> bool:
    """Whether the taps of weight [N, G, K*K, H_out, W_out] are its fastest dimension."""
    return weight.shape[2] > 1 and weight.stride(2) == 1 and not weight.is_contiguous()


class Aggregate:
    """The operators ``invbench::NAME_forward``, ``NAME_grad_x`` and ``NAME_grad_weight`` of one kernel module.

    Calling it computes y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out].
    """

    def __init__(self, name: str, kernels: Kernels) -> None:
        self.name = name
        self._register_gradients(kernels)
        self._register_forward(kernels)
        self._register_grad_x(kernels)
        self._register_grad_weight(kernels)

    def __call__(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out], differentiable in both modes."""
        if spec.padding_mode == "zeros":
            return _bilinear(self.forward, x, weight, spec.K, spec.stride, spec.dilation, spec.padding)
        # Only zeros can be left out of the arithmetic; the other modes read an extended image (one copy of x), in
        # float32 at least: its gradient is folded back onto x, and 16 bits would round it before that.
        extended = pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec)
        return _bilinear(self.forward, extended, weight, spec.K, spec.stride, spec.dilation, 0).to(x.dtype)

    def _register_forward(self, kernels: Kernels) -> None:
        def forward(x: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int) -> Tensor:
            refuse_tangents(x, weight)
            return kernels.forward(x, weight, Window(K, stride, dilation, padding))

        def fake(x: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int) -> Tensor:
            return empty_y(x, weight)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            x, weight, *ctx.geometry = inputs
            ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
            ctx.size, ctx.channels_last = x.shape[2:], memory_format_of(x) == torch.channels_last
            ctx.G, ctx.taps_last = weight.shape[1], taps_are_last(weight)

        def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
            x, weight = ctx.saved_tensors
            grad_x = grad_weight = None
            is_last = not torch.is_grad_enabled() and forward_ad._current_level < 0  # noqa: SLF001 -- as in _bilinear
            if x is not None and weight is not None and is_last:
                return *self.gradients(grad_y, x, weight, *ctx.geometry), None, None, None, None
            if weight is not None:
                grad_x = _bilinear(self.grad_x, grad_y, weight, *ctx.geometry, *ctx.size, ctx.channels_last)
            if x is not None:
                grad_weight = _bilinear(self.grad_weight, grad_y, x, *ctx.geometry, ctx.G, ctx.taps_last)
            return grad_x, grad_weight, None, None, None, None

        self.forward = register(f"{self.name}_forward", forward, fake, backward, setup_context)

    def _register_gradients(self, kernels: Kernels) -> None:
        def gradients(
            grad_y: Tensor, x: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int
        ) -> tuple[Tensor, Tensor]:
            refuse_tangents(grad_y, x, weight)
            return kernels.gradients(grad_y, x, weight, Window(K, stride, dilation, padding))

        def fake(
            grad_y: Tensor, x: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int
        ) -> tuple[Tensor, Tensor]:
            return empty_gradients(grad_y, x, weight)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            grad_y, x, weight, *ctx.geometry = inputs
            ctx.save_for_backward(grad_y, x, weight)

        def backward(ctx: Any, for_grad_x: Tensor, for_grad_weight: Tensor) -> tuple[Tensor | None, ...]:
            # Reached where a graph was captured without knowing that its gradients would be differentiated.
            grad_y, x, weight = ctx.saved_tensors
            grad_grad_y = _bilinear(self.forward, for_grad_x, weight, *ctx.geometry)
            grad_grad_y = grad_grad_y + _bilinear(self.forward, x, for_grad_weight, *ctx.geometry)
            layouts = memory_format_of(x) == torch.channels_last, taps_are_last(weight)
            grad_x = _bilinear(self.grad_x, grad_y, for_grad_weight, *ctx.geometry, *x.shape[2:], layouts[0])
            grad_weight = _bilinear(self.grad_weight, grad_y, for_grad_x, *ctx.geometry, weight.shape[1], layouts[1])
            return grad_grad_y, grad_x, grad_weight, None, None, None, None

        self.gradients = register(f"{self.name}_gradients", gradients, fake, backward, setup_context)

    def _register_grad_x(self, kernels: Kernels) -> None:
        def grad_x(
            grad_y: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int,
            H: int, W: int, channels_last: bool,
        ) -> Tensor:  # fmt: skip
            refuse_tangents(grad_y, weight)
            return kernels.grad_x(grad_y, weight, Window(K, stride, dilation, padding), (H, W), channels_last)

        def fake(
            grad_y: Tensor, weight: Tensor, K: int, stride: int, dilation: int, padding: int,
            H: int, W: int, channels_last: bool,
        ) -> Tensor:  # fmt: skip
            return empty_grad_x(grad_y, (H, W), channels_last)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            grad_y, weight, *ctx.geometry = inputs[:6]
            ctx.save_for_backward(
                grad_y if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None
            )
            ctx.G, ctx.taps_last = weight.shape[1], taps_are_last(weight)

        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            grad_y, weight = ctx.saved_tensors
            grad_grad_y = None if weight is None else _bilinear(self.forward, grad, weight, *ctx.geometry)
            grad_weight = None
            if grad_y is not None:
                grad_weight = _bilinear(self.grad_weight, grad_y, grad, *ctx.geometry, ctx.G, ctx.taps_last)
            return grad_grad_y, grad_weight, *[None] * 7

        self.grad_x = register(f"{self.name}_grad_x", grad_x, fake, backward, setup_context)

    def _register_grad_weight(self, kernels: Kernels) -> None:
        def grad_weight(
            grad_y: Tensor, x: Tensor, K: int, stride: int, dilation: int, padding: int, G: int, taps_last: bool
        ) -> Tensor:
            refuse_tangents(grad_y, x)
            return kernels.grad_weight(grad_y, x, Window(K, stride, dilation, padding), G, taps_last)

        def fake(
            grad_y: Tensor, x: Tensor, K: int, stride: int, dilation: int, padding: int, G: int, taps_last: bool
        ) -> Tensor:
            return empty_weight(grad_y, G, K * K, taps_last)

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            grad_y, x, *ctx.geometry = inputs[:6]
            ctx.save_for_backward(grad_y if ctx.needs_input_grad[1] else None, x if ctx.needs_input_grad[0] else None)
            ctx.size, ctx.channels_last = x.shape[2:], memory_format_of(x) == torch.channels_last

        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            grad_y, x = ctx.saved_tensors
            grad_grad_y = None if x is None else _bilinear(self.forward, x, grad, *ctx.geometry)
            grad_x = None
            if grad_y is not None:
                grad_x = _bilinear(self.grad_x, grad_y, grad, *ctx.geometry, *ctx.size, ctx.channels_last)
            return grad_grad_y, grad_x, *[None] * 6

        self.grad_weight = register(f"{self.name}_grad_weight", grad_weight, fake, backward, setup_context)


def _bilinear(operator: Callable[..., Tensor], left: Tensor, right: Tensor, *geometry: Any) -> Tensor:
    """operator(left, right, ...), which is linear in both, with the tangent that forward-mode differentiation needs."""
    if forward_ad._current_level < 0:  # noqa: SLF001 -- torch offers no public question
        return operator(left, right, *geometry)
    left, left_tangent = forward_ad.unpack_dual(left)
    right, right_tangent = forward_ad.unpack_dual(right)
    result = operator(left, right, *geometry)
    tangents = [] if left_tangent is None else [operator(left_tangent, right, *geometry)]
    tangents += [] if right_tangent is None else [operator(left, right_tangent, *geometry)]
    return forward_ad.make_dual(result, sum(tangents[1:], tangents[0])) if tangents else result


def refuse_tangents(*tensors: Tensor) -> None:
    """Raise where an operator is called on dual tensors by something other than ``_bilinear``, such as a graph that was
    compiled before: the result would have no tangent, which reads as zero."""
    if has_tangents(*tensors):
        raise NotImplementedError(
            "forward-mode differentiation cannot look into a function that was compiled without it: "
            "got dual tensors; compile the function that calls torch.func.jvp, or call this one uncompiled"
        )


def has_tangents(*tensors: Tensor) -> bool:
    """Whether forward-mode differentiation goes through any of the tensors, or may do so."""
    if forward_ad._current_level < 0:  # noqa: SLF001 -- torch offers no public question
        return False
    try:
        return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    except RuntimeError:  # compiled graphs run where tangents cannot even be asked for
        return True
