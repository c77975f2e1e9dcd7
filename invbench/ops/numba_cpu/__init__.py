"""Parallel CPU kernels in explicit SIMD: involution, whole layers of it, and their gradients, by Numba.

    y[n, c, i, j]        = sum over (u, v)              weight[n, g(c), (u, v), i, j] * x[n, c, h, q]
    grad_x[n, c, h, q]   = sum over (u, v, i, j) at h, q  weight[n, g(c), (u, v), i, j] * grad_y[n, c, i, j]
    grad_weight[n, g, (u, v), i, j] = sum over c in group g    grad_y[n, c, i, j] * x[n, c, h, q]
    h = stride*i + dilation*u - padding,  q = stride*j + dilation*v - padding

The weight is given, or made where it is used: for a few rows of one group at a time, from hidden channels and the span
(a matrix product whose result stays in cache), in the forward pass and again in the backward pass. Where gradients are
not needed, the hidden channels are computed here, too, batch norm folded in.

``simd`` knows the processor's vectors, ``tiles`` and ``matmul`` the inner loops, ``slots`` the layout that they read,
``kernels`` the loops around them, ``jobs`` how work is cut for threads and caches, ``running`` how a kernel is
compiled, cached and run on torch's threads.

Channels of a group that are neighbours in a vector are what makes this fast: a position's weight is one number for all
of them. So channels_last images are read and written where they lie; other layouts and 16-bit numbers are converted a
few rows at a time, on the way into and out of the second-level cache. Groups of few channels leave lanes empty.

Every sum is made in one order, whatever the number of threads. A tap outside the image is left out where its whole row
of the window is outside, else multiplied by zero. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import functools
import struct

import numba
import torch
from torch import Tensor

from invbench.ops import fused, library
from invbench.ops.fused import Generator, Reducer
from invbench.ops.layout import memory_format_of
from invbench.ops.library import Window, empty_grad_x, empty_weight, empty_y
from invbench.ops.numba_cpu.hidden import CHUNK
from invbench.ops.numba_cpu.jobs import (
    CACHED_BYTES,
    Job,
    Problem,
    backward_plan,
    forward_plan,
    layer_plan,
    matrix_width,
    reduce_plan,
)
from invbench.ops.numba_cpu.running import launch
from invbench.ops.numba_cpu.simd import VECTOR_BYTES
from invbench.ops.numba_cpu.tiles import AHEAD


def unavailable(device: str) -> str | None:
    """Numba's CPU target is the only one here."""
    if numba.config.DISABLE_JIT:
        return "Numba is told not to compile: got NUMBA_DISABLE_JIT=1; unset it"
    return None if device == "cpu" else f"it runs on cpu: got {device}; use backend triton"


class NumbaKernels:
    """The aggregate, the aggregate of a weight that is made on the way, and their gradients."""

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""
        y = empty_y(x, weight)
        _forward(_problem(x, weight.shape[1], y.shape[2:], window), x, y, weight=weight)
        return y

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""
        grad_x = empty_grad_x(grad_y, size, channels_last)
        _backward(_problem(grad_x, weight.shape[1], grad_y.shape[2:], window), grad_y, weight=weight, grad_x=grad_x)
        return grad_x

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""
        grad_weight = empty_weight(grad_y, G, window.K**2, taps_last)
        _backward(_problem(x, G, grad_y.shape[2:], window), grad_y, x=x, grad_weight=grad_weight)
        return grad_weight

    def reduce_forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """hidden [N, r, H, W], contiguous and in x's dtype, from x [N, C, H, W] and weight [r, C]."""
        problem, exact, r = _image_problem(x), _computed_in(x), weight.shape[0]
        hidden = torch.empty((problem.N, r, problem.H, problem.W), dtype=exact)
        if hidden.numel():
            job = Job(reduce_plan(problem, r))
            matrix = torch.empty((problem.C + 2, matrix_width(r, problem.size)), dtype=exact)
            readable = _readable(weight, exact)
            job.put(pooled=x, reduce=readable)
            job.put_values(matrix=matrix.data_ptr(), **_hidden_fields(hidden.flatten(2)))
            _run("hidden", job, problem)
            del readable
        return hidden.to(x.dtype)

    def reduce_backward(self, grad_hidden: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """grad_x [N, C, H, W] in x's dtype and memory format, grad_weight [r, C] in float32 at least."""
        problem, exact, r = _image_problem(x), _computed_in(x), weight.shape[0]
        grad_x = torch.empty_like(x, memory_format=memory_format_of(x))
        plan = Job(reduce_plan(problem, r))
        runs = -(-problem.H * problem.W // CHUNK)
        units = problem.N * -(-runs // plan["chunk"])
        width = matrix_width(problem.C, problem.size)
        sums = torch.zeros((units, r, width), dtype=exact)
        if grad_x.numel():
            gradient = grad_hidden.to(exact).contiguous()
            matrix = torch.nn.functional.pad(weight.to(exact), (0, width - problem.C)).contiguous()
            dense = x if x.stride(2) == problem.W * x.stride(3) else x.contiguous()
            zeros = sums.new_zeros(1)
            plan.put(pooled=dense, grad_pooled=grad_x)
            plan.put_values(
                matrix=matrix.data_ptr(), matrix_row=width * problem.size, zeros=zeros.data_ptr(),
                grad_span=sums.data_ptr(), grad_span_part=sums.stride(0) * problem.size,
                grad_span_row=width * problem.size, **_hidden_fields(gradient.flatten(2)),
            )  # fmt: skip
            _run("reduce_backward", plan, problem)
        return grad_x, sums[..., : problem.C].sum(0)

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""
        y = fused.empty_y(x, hidden)
        problem = _problem(x, generator.G, y.shape[2:], window)
        _forward(problem, x, y, hidden=_rows_of_positions(hidden, problem), generator=generator)
        return y

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span [G*K*K, r] and its bias, in float32 at least."""
        problem, exact = _problem(x, generator.G, grad_y.shape[2:], window), _computed_in(x)
        grad_x = empty_grad_x(grad_y, (problem.H, problem.W), memory_format_of(x) == torch.channels_last)
        job = Job(backward_plan(problem, hidden.shape[1]))
        sums = _Sums(problem, job, hidden, exact)
        _backward(
            problem, grad_y, x=x, grad_x=grad_x, hidden=_rows_of_positions(hidden, problem), generator=generator,
            sums=sums, job=job,
        )  # fmt: skip
        return grad_x, *sums.gradients()

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which hidden is made."""
        y = torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x))
        if not y.numel():
            return y
        problem = _problem(x, generator.G, y.shape[2:], window)
        exact, r = _computed_in(x), reducer.weight.shape[0]
        hidden = _empty_rows_of_positions(problem, r, exact)
        matrix = torch.empty((problem.C + 2, matrix_width(r, problem.size)), dtype=exact)
        job = Job(layer_plan(problem, r, torch.get_num_threads()))
        kept = _put_weight(job, None, hidden, generator)
        job.put(x=x, y=y, pooled=pooled)
        parts = {"reduce": reducer.weight, "reduce_bias": reducer.bias}
        if reducer.norm:
            mean, variance, scale, shift, epsilon = reducer.norm
            parts |= {"norm_mean": mean, "norm_variance": variance, "norm_scale": scale, "norm_shift": shift}
            job.put_values(norm_epsilon=_bits(epsilon))
        for name, part in parts.items():
            if part is not None:
                kept.append(_readable(part, exact))
                job.put(**{name: kept[-1]})
        job.put_values(matrix=matrix.data_ptr(), rectifies=int(reducer.rectifies))
        _run("forward", job, problem)
        del kept, matrix
        return y


@functools.cache
def _bits(number: float) -> int:
    """The bits of a float64, as an int64."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _computed_in(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _readable(tensor: Tensor, exact: torch.dtype) -> Tensor:
    """The tensor, if a kernel can read it: in 16 bits or in the type that is computed in; else a copy that it can."""
    return tensor if tensor.dtype in (exact, torch.float16, torch.bfloat16) else tensor.to(exact)


def _image_problem(x: Tensor) -> Problem:
    """Of a 1x1 layer on x [N, C, H, W]."""
    return _problem(x, 1, x.shape[2:], Window(1, 1, 1, 0))


def _problem(x: Tensor, G: int, size: torch.Size, window: Window) -> Problem:
    N, C, H, W = x.shape
    return Problem(N, C, G, H, W, size[0], size[1], window, 8 if x.dtype == torch.float64 else 4)


def _empty_rows_of_positions(problem: Problem, r: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised hidden [N, r, positions], with room for the vector that begins with the last position."""
    return torch.empty((problem.N, r, problem.H_out * problem.W_out + VECTOR_BYTES // problem.size), dtype=dtype)


def _rows_of_positions(hidden: Tensor, problem: Problem) -> Tensor:
    """hidden [N, r, H_out, W_out] as ``_empty_rows_of_positions`` makes it."""
    exact = torch.float64 if problem.size == 8 else torch.float32
    rows = _empty_rows_of_positions(problem, hidden.shape[1], exact)
    positions = problem.H_out * problem.W_out
    rows[..., :positions].unflatten(2, (problem.H_out, problem.W_out)).copy_(hidden)
    return rows


def _hidden_fields(hidden: Tensor) -> dict[str, int]:
    size = hidden.element_size()
    return {
        "hidden": hidden.data_ptr(), "hidden_n": hidden.stride(0) * size, "hidden_step": hidden.stride(1) * size
    }  # fmt: skip


def _put_weight(job: Job, weight: Tensor | None, hidden: Tensor | None, generator: Generator | None) -> list[Tensor]:
    """Say where the weight lies, or how it is made; returns what must live as long as the job."""
    if hidden is None or generator is None:
        job.put(weight=weight)
        if weight is not None and weight.dtype in (torch.float32, torch.float64) and weight.nbytes > CACHED_BYTES:
            job.put_values(ahead=AHEAD)
        return []
    span, bias = generator.span.to(hidden.dtype).contiguous(), generator.bias.to(hidden.dtype).contiguous()
    size = span.element_size()
    job.put_values(
        span=span.data_ptr(), span_row=span.stride(0) * size, bias=bias.data_ptr(), bias_step=size, r=span.shape[1],
        **_hidden_fields(hidden),
    )  # fmt: skip
    return [span, bias]


class _Sums:
    """Where the units of a backward pass sum the gradients of hidden, of the span and of its bias, each apart."""

    def __init__(self, problem: Problem, job: Job, hidden: Tensor, dtype: torch.dtype) -> None:
        self.problem, self.strip, r = problem, job["strip"], hidden.shape[1]
        taps, lanes = problem.G * problem.window.K**2, VECTOR_BYTES // problem.size
        strips, parts = -(-problem.H_out // self.strip), -(-problem.N // job["images"])
        width = matrix_width(r, problem.size)
        # Each strip with room for the vector that begins with its last position.
        room = self.strip * problem.W_out + lanes
        self.hidden = torch.empty((-(-problem.G // job["chunk"]), problem.N, r, strips, room), dtype=dtype)
        self.span = torch.empty((parts * strips, taps, width), dtype=dtype)
        self.bias = torch.empty((parts * strips, taps), dtype=dtype)
        self.zeros = torch.zeros(1, dtype=dtype)

    def put(self, job: Job) -> None:
        """Say where they lie."""
        tensors = (self.hidden, self.span, self.bias)
        hidden, span, bias = ([step * self.problem.size for step in t.stride()] for t in tensors)
        job.put_values(
            grad_hidden=self.hidden.data_ptr(), grad_hidden_part=hidden[0], grad_hidden_n=hidden[1],
            grad_hidden_step=hidden[2], grad_hidden_strip=hidden[3],
            grad_span=self.span.data_ptr(), grad_span_part=span[0], grad_span_row=span[1],
            grad_bias=self.bias.data_ptr(), grad_bias_part=bias[0],
            zeros=self.zeros.data_ptr(),
        )  # fmt: skip

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """For hidden [N, r, H_out, W_out], contiguous; for the span [G*K*K, r] and for its bias [G*K*K]."""
        size, r = (self.problem.H_out, self.problem.W_out), self.hidden.shape[2]
        hidden = self.hidden[..., : self.strip * size[1]].sum(0).flatten(2)[..., : size[0] * size[1]]
        return hidden.unflatten(2, size).contiguous(), self.span[..., :r].sum(0), self.bias.sum(0)


def _forward(
    problem: Problem, x: Tensor, y: Tensor, weight: Tensor | None = None, hidden: Tensor | None = None,
    generator: Generator | None = None,
) -> None:  # fmt: skip
    """Fill y."""
    if not y.numel():
        return
    threads = torch.get_num_threads()
    job = Job(forward_plan(problem, threads))
    kept = _put_weight(job, weight, hidden, generator)
    job.put(x=x, y=y)
    _run("forward", job, problem)
    del kept


def _backward(
    problem: Problem, grad_y: Tensor, x: Tensor | None = None, weight: Tensor | None = None,
    grad_x: Tensor | None = None, grad_weight: Tensor | None = None, hidden: Tensor | None = None,
    generator: Generator | None = None, sums: _Sums | None = None, job: Job | None = None,
) -> None:  # fmt: skip
    """Fill grad_x and grad_weight, and the sums of a generator's gradients, as far as they are given."""
    if grad_x is not None and not _windows_cover(problem):
        grad_x.zero_()
    if not grad_y.numel():
        return
    job = job or Job(backward_plan(problem))
    kept = _put_weight(job, weight, hidden, generator)
    job.put(x=x, y=grad_y, grad_x=grad_x, grad_weight=grad_weight)
    if sums:
        sums.put(job)
    seams = None
    strips = -(-problem.H_out // job["strip"])
    if grad_x is not None and strips > 1:
        shared = max(0, problem.window.dilation * (problem.window.K - 1) - problem.window.stride + 1)
        size = problem.N * problem.G * (strips - 1) * problem.blocks * 2 * shared * problem.row_bytes
        seams = torch.empty(size + 64, dtype=torch.uint8)
        job.put_values(seams=seams.data_ptr())
    _run("backward", job, problem)
    if seams is not None:
        _run("seams", job, problem)
    del kept, seams


def _windows_cover(problem: Problem) -> bool:
    """Whether every pixel lies between the first and the last tap of the windows, and none between two of them."""
    w = problem.window
    if w.stride > w.dilation * (w.K - 1) + 1:
        return False

    def reach(positions: int) -> int:
        return w.stride * (positions - 1) + w.dilation * (w.K - 1) + 1 - w.padding

    return reach(problem.H_out) >= problem.H and reach(problem.W_out) >= problem.W


def _run(kernel: str, job: Job, problem: Problem) -> None:
    threads = job.threads()
    job.put_scratch(threads)
    launch(kernel, problem.size, job.fields, threads)


kernels = NumbaKernels()
aggregate = library.Aggregate("numba", kernels)
fused_layer = fused.Fused("numba", kernels, aggregate)
