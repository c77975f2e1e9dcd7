"""Triton kernels for GPUs: the aggregate, whole layers of involution, and their gradients.

With the weight given, any dtype, window and layout (``aggregate_kernels``, ``aggregate_grad_weight``,
``aggregate_launching``). In 16 bits, on the matrix units, by the ``band``: with the weight given (``banded_kernels``,
``banded_launching``), and with the weight made where it is used (``span_kernels``, ``span_gradients``,
``span_launching``). ``walking`` is how their programs go over an image, ``tiling`` how the work is cut for them and
what that asks of memory, ``tuning`` which cut is the fastest. ``reduce_kernel`` makes the hidden channels for
inference. ``launching`` is what all launches share.

Nothing waits for the GPU but the first ``tuning`` of a problem, and nothing here is CUDA's alone: a launch goes to the
current stream of its tensors' device.

``compiling`` and ``inspection`` (with ``sass``) say what a launch is compiled to, ``traffic`` what it asks of memory,
``aggregate_traffic`` what one of the aggregate's will ask; running imports none of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from invbench.ops import fused
from invbench.ops.fused import Fused, Generator, Reducer
from invbench.ops.layout import empty_image, memory_format_of
from invbench.ops.library import Aggregate, Window, empty_grad_x, empty_weight, empty_y, taps_are_last
from invbench.ops.triton_gpu import aggregate_launching, banded_launching, span_launching
from invbench.ops.triton_gpu.launching import INTERPRETED, Launch
from invbench.ops.triton_gpu.reduce_kernel import empty_hidden, reduce_launch
from invbench.ops.triton_gpu.span_launching import chip_of, dense, problem_of, readable, writable
from invbench.ops.triton_gpu.tiling import FORWARD, GRAD_SPAN, GRAD_X, Cut
from invbench.ops.triton_gpu.tuning import TUNER, Task, Tuner


class TritonKernels:
    """``library.Kernels``; tensors may have any strides."""

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""
        y = empty_y(x, weight)
        if y.numel():
            reads_well = banded_launching.TAKES_NEIGHBOURS or taps_are_last(weight)
            banded = reads_well and banded_launching.takes(x, weight, y, window)
            by = banded_launching if banded else aggregate_launching
            by.forward_launch(x, weight, y, window).run(x.device)
        return y

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""
        grad_x = empty_grad_x(grad_y, size, channels_last)
        if grad_x.numel():
            # With neighbouring positions in all of them, the banded kernel would spill.
            reads_well = channels_last or taps_are_last(weight)
            banded = reads_well and banded_launching.takes(grad_x, weight, grad_y, window)
            by = banded_launching if banded else aggregate_launching
            by.grad_x_launch(grad_y, weight, grad_x, window).run(grad_y.device)
        return grad_x

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""
        grad_weight = empty_weight(grad_y, G, window.K**2, taps_last)
        if grad_weight.numel():
            by = banded_launching if banded_launching.takes(x, grad_weight, grad_y, window) else aggregate_launching
            by.grad_weight_launch(grad_y, x, grad_weight, window).run(x.device)
        return grad_weight

    def gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """grad_x and grad_weight, in the layouts of x and weight."""
        channels_last, size = memory_format_of(x) == torch.channels_last, (x.shape[2], x.shape[3])
        grad_x = self.grad_x(grad_y, weight, window, size, channels_last)
        return grad_x, self.grad_weight(grad_y, x, window, weight.shape[1], taps_are_last(weight))


class TritonSpanKernels:
    """``fused.SpanKernels``; x and hidden in 16 bits.

    atomic: whether the gradients of span and bias are added up in the order in which programs finish, which is faster
    and does not repeat bit for bit. tuner: chooses cuts.
    """

    def __init__(self, atomic: bool = False, tuner: Tuner = TUNER) -> None:
        self.atomic, self.tuner = atomic, tuner

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""
        return self._span_forward(x, hidden, generator, window, fused.empty_y(x, hidden))

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span [G*K*K, r] and its bias, the last two in float32."""
        grad_x = empty_grad_x(grad_y, (x.shape[2], x.shape[3]), memory_format_of(x) == torch.channels_last)
        grad_hidden = self.empty_grad_hidden(hidden)
        if not grad_y.numel():
            span, bias = (torch.zeros_like(part, dtype=torch.float32) for part in (generator.span, generator.bias))
            return grad_x.zero_(), grad_hidden.zero_(), span, bias
        grad_y, x, hidden, generator = readable(grad_y), readable(x), readable(hidden), dense(generator)
        found_x, found_hidden = writable(grad_x), writable(grad_hidden)
        task = Task(
            GRAD_SPAN, problem_of(x.shape, grad_y.shape, generator, window), chip_of(x.device), x.dtype, x.device,
            self.atomic,
        )  # fmt: skip

        def span_launch(cut: Cut) -> tuple[Launch, Tensor, Tensor]:
            return span_launching.grad_span_launch(grad_y, x, hidden, generator, found_hidden, window, self.atomic, cut)

        # By sums of other tiles, other bits: no choice of tuning may change them, unless nothing repeats anyway.
        cut = self.tuner.cut(task, lambda cut: span_launch(cut)[0]) if self.atomic else task.default
        launch, grad_span, grad_bias = span_launch(cut)
        launch.run(x.device)
        if not cut.with_hidden:
            span_launching.grad_hidden_launch(grad_y, x, generator, found_hidden, window).run(x.device)
        x_launch = partial(span_launching.grad_x_launch, grad_y, hidden, generator, found_x, window)
        task = replace(task, kernel=GRAD_X, atomic=False)
        x_launch(self.tuner.cut(task, x_launch)).run(x.device)
        grad_x = grad_x if found_x is grad_x else grad_x.copy_(found_x)
        grad_hidden = grad_hidden if found_hidden is grad_hidden else grad_hidden.copy_(found_hidden)
        if self.atomic:
            return grad_x, grad_hidden, grad_span, grad_bias
        return grad_x, grad_hidden, grad_span.sum((0, 1)), grad_bias.sum((0, 1))

    def empty_grad_hidden(self, hidden: Tensor) -> Tensor:
        """An uninitialised gradient of hidden [N, r, H_out, W_out] in its dtype and memory format."""
        return empty_image(hidden, hidden.shape[2:])

    def layer_inference(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which hidden is made."""
        image = readable(x)
        reduced = image if pooled is x else readable(pooled)
        hidden = empty_hidden(reduced, reducer.weight.shape[0])
        if hidden.numel():
            reduce_launch(reduced, reducer, hidden).run(x.device)
        return self._span_forward(image, hidden, generator, window, fused.empty_y(x, hidden))

    def _span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window, y: Tensor) -> Tensor:
        """y, written."""
        if not y.numel():
            return y
        found = writable(y)
        launch = partial(
            span_launching.forward_launch, readable(x), readable(hidden), dense(generator), found, window
        )  # fmt: skip
        task = Task(FORWARD, problem_of(x.shape, y.shape, generator, window), chip_of(x.device), x.dtype, x.device)
        launch(self.tuner.cut(task, launch)).run(x.device)
        return y if found is y else y.copy_(found)


aggregate = Aggregate("triton", TritonKernels())
fused_layer = Fused("triton", TritonSpanKernels(), aggregate)


def unavailable(device: str) -> str | None:
    """Why nothing can run on this type of device here, and the remedy; None if it can."""
    if device == "cpu" and INTERPRETED:
        return None
    if device not in ("cuda", "xpu"):
        return (
            f"it runs on GPUs: got {device}; use --device cuda on a machine with a GPU, "
            "or set TRITON_INTERPRET=1 to check results on the CPU"
        )
    if not torch.get_device_module(device).is_available():
        return (
            f"PyTorch finds no {device} device here: got torch {torch.__version__}; install the GPU's driver and a "
            f"PyTorch built for {device}, or set TRITON_INTERPRET=1 to check results on the CPU"
        )
    return None
