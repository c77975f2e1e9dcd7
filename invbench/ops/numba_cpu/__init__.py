"""Parallel CPU kernels in explicit SIMD: involution, whole layers of it, and their gradients, by Numba.

    y[n, c, i, j]        = sum over (u, v)              weight[n, g(c), (u, v), i, j] * x[n, c, h, q]
    grad_x[n, c, h, q]   = sum over (u, v, i, j) at h, q  weight[n, g(c), (u, v), i, j] * grad_y[n, c, i, j]
    grad_weight[n, g, (u, v), i, j] = sum over c in group g    grad_y[n, c, i, j] * x[n, c, h, q]
    h = stride*i + dilation*u - padding,  q = stride*j + dilation*v - padding

The weight is given, or made where it is used: for a few rows of one group at a time, from hidden channels and the span
(a matrix product whose result stays in cache), in the forward pass and again in the backward pass. The hidden
channels of a whole layer are computed here, too: one launch a pass.

``simd`` knows the processor's vectors, ``moves`` moves numbers by them; ``tiles``, ``taps`` and ``matmul`` are the
inner loops, ``slots`` and ``columns`` the layouts that they read, ``kernels`` and ``backward`` the loops around them,
``hidden`` and ``norm`` what a layer does before, ``problem`` the sizes of a call, ``jobs`` how its work is cut for
threads and caches, ``running`` how a kernel is compiled, cached and run, ``pages`` where large results lie.

Channels of a group that are neighbours in a vector are what makes this fast: a position's weight is one number for all
of them. So channels_last images are read and written where they lie; other layouts and 16-bit numbers are converted a
few rows at a time, on the way into and out of the second-level cache. Where a group's channels would fill a quarter of
a vector at most, neighbouring positions share one instead (``small_groups``).

Every sum is made in one order, whatever the number of threads. A tap outside the image is left out where its whole row
of the window is outside, else multiplied by zero. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import functools
import struct

import numba
import numpy as np
import torch
from torch import Tensor

from invbench.ops import fused, library
from invbench.ops.fused import Generator, Gradients, Kept, Reducer
from invbench.ops.layout import memory_format_of
from invbench.ops.library import Window, empty_grad_x, empty_gradients, empty_weight, empty_y, taps_are_last
from invbench.ops.numba_cpu.jobs import CACHES_BYTES, OWN_CACHE_BYTES, Job, backward_plan, forward_plan
from invbench.ops.numba_cpu.pages import in_huge_pages
from invbench.ops.numba_cpu.problem import Problem, matrix_width
from invbench.ops.numba_cpu.running import launch
from invbench.ops.numba_cpu.simd import VECTOR_BYTES
from invbench.ops.numba_cpu.tiles import AHEAD

_ZERO = np.zeros(1)  # for kernels that add something to nothing


def unavailable(device: str) -> str | None:
    """Numba's CPU target is the only one here."""
    if numba.config.DISABLE_JIT:
        return "Numba is told not to compile: got NUMBA_DISABLE_JIT=1; unset it"
    return None if device == "cpu" else f"it runs on cpu: got {device}; use backend triton"


class NumbaKernels:
    """The aggregate, the aggregate of a weight that is made on the way, and their gradients."""

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""
        y = in_huge_pages(empty_y(x, weight))
        if y.numel():
            problem = _problem(x, weight.shape[1], y.shape[2:], window)
            job = Job(forward_plan(problem, torch.get_num_threads()))
            _put_weight(job, weight)
            job.put(x=x, y=y)
            _run("forward", job, problem)
        return y

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""
        grad_x = in_huge_pages(empty_grad_x(grad_y, size, channels_last))
        problem = _problem(grad_x, weight.shape[1], grad_y.shape[2:], window)
        _clear_unless_covered(grad_x, problem)
        if grad_y.numel():
            job = Job(backward_plan(problem, taps_last=taps_are_last(weight)))
            _put_weight(job, weight)
            job.put(y=grad_y, grad_x=grad_x)
            _run("backward", job, problem)
        return grad_x

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""
        grad_weight = in_huge_pages(empty_weight(grad_y, G, window.K**2, taps_last))
        if grad_y.numel():
            problem = _problem(x, G, grad_y.shape[2:], window)
            job = Job(backward_plan(problem, wants_x=False, taps_last=taps_last))
            job.put(y=grad_y, x=x, grad_weight=grad_weight)
            _run("backward", job, problem)
        return grad_weight

    def gradients(self, grad_y: Tensor, x: Tensor, weight: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """grad_x and grad_weight, in the layouts of x and weight."""
        grad_x, grad_weight = map(in_huge_pages, empty_gradients(grad_y, x, weight))
        problem = _problem(x, weight.shape[1], grad_y.shape[2:], window)
        _clear_unless_covered(grad_x, problem)
        if grad_y.numel():
            job = Job(backward_plan(problem, taps_last=taps_are_last(weight)))
            _put_weight(job, weight)
            job.put(y=grad_y, x=x, grad_x=grad_x, grad_weight=grad_weight)
            _run("backward", job, problem)
        return grad_x, grad_weight

    def span_forward(self, x: Tensor, hidden: Tensor, generator: Generator, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W] and hidden [N, r, H_out, W_out]."""
        y = in_huge_pages(fused.empty_y(x, hidden))
        if y.numel():
            problem = _problem(x, generator.G, y.shape[2:], window)
            job = Job(forward_plan(problem, torch.get_num_threads()))
            kept = [_put_hidden(job, hidden, problem), *_put_generator(job, generator, problem)]
            job.put(x=x, y=y)
            _run("forward", job, problem)
            del kept
        return y

    def span_backward(
        self, grad_y: Tensor, x: Tensor, hidden: Tensor, generator: Generator, window: Window
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients for x, hidden, the span [G*K*K, r] and its bias, in float32 at least."""
        problem = _problem(x, generator.G, grad_y.shape[2:], window)
        exact = problem.exact
        grad_x = _grad_x_like(x, grad_y)
        grad_hidden, (grad_span, grad_bias) = self.empty_grad_hidden(hidden), _like_generator(generator, exact)
        if not grad_y.numel():
            return grad_x.zero_(), grad_hidden.zero_(), grad_span.zero_(), grad_bias.zero_()
        _clear_unless_covered(grad_x, problem)
        job = Job(backward_plan(problem, r=hidden.shape[1]))
        kept = [_put_hidden(job, hidden, problem), *_put_generator(job, generator, problem)]
        job.put(x=x, y=grad_y, grad_x=grad_x)
        job.put_values(
            grad_raw=grad_hidden.data_ptr(), total_span=grad_span.data_ptr(), total_bias=grad_bias.data_ptr()
        )
        _run("backward", job, problem)
        del kept
        return grad_x, grad_hidden, grad_span, grad_bias

    def empty_grad_hidden(self, hidden: Tensor) -> Tensor:
        """An uninitialised gradient of hidden [N, r, H_out, W_out]: contiguous, in float32 at least."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        return torch.empty_like(hidden, dtype=exact, memory_format=torch.contiguous_format)

    def layer_inference(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and pooled [N, C, H_out, W_out], from which hidden is made."""
        return self._layer(x, pooled, reducer, generator, window, None)

    def layer_forward(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window
    ) -> tuple[Tensor, Kept]:
        """As ``layer_inference``, with what a backward pass needs."""
        exact, (N, _, H, W), r = torch.promote_types(x.dtype, torch.float32), pooled.shape, reducer.weight.shape[0]
        kept = Kept(torch.empty((N, r, H, W), dtype=exact), torch.empty((2, r), dtype=exact))
        return self._layer(x, pooled, reducer, generator, window, kept), kept

    def _layer(
        self, x: Tensor, pooled: Tensor, reducer: Reducer, generator: Generator, window: Window, kept: Kept | None
    ) -> Tensor:
        y = in_huge_pages(torch.empty_like(pooled, dtype=x.dtype, memory_format=memory_format_of(x)))
        problem, r = _problem(x, generator.G, y.shape[2:], window), reducer.weight.shape[0]
        if y.numel():
            job = Job(forward_plan(problem, torch.get_num_threads(), r))
            alive = [*_put_generator(job, generator, problem), *_put_reducer(job, reducer, problem)]
            job.put(x=x, y=y, pooled=pooled)
            if kept:
                job.put_values(raw=kept.raw.data_ptr(), statistics=kept.statistics.data_ptr())
            _run("forward", job, problem)
            del alive
        return y

    def layer_backward(
        self, grad_y: Tensor, x: Tensor, pooled: Tensor | None, kept: Kept, reducer: Reducer, generator: Generator,
        window: Window,
    ) -> Gradients:  # fmt: skip
        """The gradients of a layer; without pooled, x was reduced, and grad_x is the whole gradient."""
        problem = _problem(x, generator.G, grad_y.shape[2:], window)
        exact = problem.exact
        r, C = reducer.weight.shape
        grad_x = _grad_x_like(x, grad_y)
        _clear_unless_covered(grad_x, problem)
        grad_pooled = torch.empty_like(pooled, memory_format=memory_format_of(pooled)) if pooled is not None else None
        grad_reduce, grad_norm = torch.empty((r, C), dtype=exact), torch.empty((3, r), dtype=exact)
        grad_span, grad_bias = _like_generator(generator, exact)
        gradients = Gradients(grad_x, grad_pooled, grad_reduce, grad_norm, grad_span, grad_bias)
        if not grad_y.numel():
            for gradient in gradients:
                if gradient is not None:
                    gradient.zero_()
            return gradients
        job = Job(backward_plan(problem, r=r, is_layer=True))
        reduced = x if pooled is None else pooled
        if reduced.stride(2) != reduced.shape[3] * reduced.stride(3):
            # A copy in any case: ``contiguous`` keeps the strides of dimensions of one.
            reduced = reduced.clone(memory_format=torch.contiguous_format)
        width = matrix_width(C, problem.size)
        matrix = reducer.weight.to(exact)
        matrix = matrix.contiguous() if width == C else torch.nn.functional.pad(matrix, (0, width - C))
        alive = [*_put_generator(job, generator, problem), *_put_reducer(job, reducer, problem)]
        job.put(x=x, y=grad_y, grad_x=grad_x, pooled=reduced, grad_pooled=grad_pooled)
        job.put_values(
            raw=kept.raw.data_ptr(), statistics=kept.statistics.data_ptr(), matrix=matrix.data_ptr(),
            grad_norm=grad_norm.data_ptr(), total_reduce=grad_reduce.data_ptr(), total_span=grad_span.data_ptr(),
            total_bias=grad_bias.data_ptr(),
        )  # fmt: skip
        _run("backward", job, problem)
        del alive, matrix, reduced
        return gradients


def _dense(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter itself, if that is dense and of the dtype; asked first, which costs less than a copy of nothing."""
    if parameter.dtype == dtype and parameter.is_contiguous():
        return parameter
    return parameter.to(dtype).contiguous()


@functools.cache
def _bits(number: float) -> int:
    """The bits of a float64, as an int64."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _problem(x: Tensor, G: int, size: torch.Size, window: Window) -> Problem:
    N, C, H, W = x.shape
    return Problem(N, C, G, H, W, size[0], size[1], window, 8 if x.dtype == torch.float64 else 4)


def _put_weight(job: Job, weight: Tensor) -> None:
    """Say where the weight lies that is given."""
    job.put(weight=weight)
    # With a dilation, tiles ask for each tap apart, which is worth less.
    cached = OWN_CACHE_BYTES if job["dilation"] == 1 else CACHES_BYTES
    if weight.dtype in (torch.float32, torch.float64) and weight.nbytes > cached:
        # Of positions that are neighbours, a few tiles share a cache line.
        job.put_values(ahead=2 * AHEAD if weight.stride(4) == 1 else AHEAD)


def _put_hidden(job: Job, hidden: Tensor, problem: Problem) -> Tensor:
    """Say where hidden [N, r, H_out, W_out] lies; returns what must live as long as the job: rows of positions, with
    room for the vector that begins with the last one."""
    exact = problem.exact
    N, r, H, W = hidden.shape
    rows = torch.empty((N, r, H * W + VECTOR_BYTES // problem.size), dtype=exact)
    rows[..., : H * W].unflatten(2, (H, W)).copy_(hidden)
    steps = [step * problem.size for step in rows.stride()]
    job.put_values(hidden=rows.data_ptr(), hidden_n=steps[0], hidden_step=steps[1])
    return rows


def _put_generator(job: Job, generator: Generator, problem: Problem) -> list[Tensor]:
    """Say how the weight is made; returns what must live as long as the job."""
    span, bias = _dense(generator.span, problem.exact), _dense(generator.bias, problem.exact)
    r = span.shape[1]
    job.put_values(
        span=span.data_ptr(), span_row=r * problem.size, bias=bias.data_ptr(), bias_step=problem.size, r=r,
        zeros=_ZERO.ctypes.data,
    )  # fmt: skip
    return [span, bias]


def _put_reducer(job: Job, reducer: Reducer, problem: Problem) -> list[Tensor]:
    """Say how hidden is made; returns what must live as long as the job."""
    exact = problem.exact
    parts = {"reduce": reducer.weight, "reduce_bias": reducer.bias}
    epsilon = 0.0
    if reducer.norm:
        mean, variance, scale, shift, epsilon = reducer.norm
        parts |= {"norm_mean": mean, "norm_variance": variance, "norm_scale": scale, "norm_shift": shift}
    job.put_values(norm_epsilon=_bits(epsilon), rectifies=int(reducer.rectifies))
    # A kernel can read what lies in 16 bits or in the type that is computed with.
    readable = (exact, torch.float16, torch.bfloat16)
    used = {
        name: part if part.dtype in readable else part.to(exact) for name, part in parts.items() if part is not None
    }
    job.put(**used)
    return [*used.values()]


def _grad_x_like(x: Tensor, grad_y: Tensor) -> Tensor:
    """An uninitialised gradient of x in its layout and in grad_y's dtype."""
    return in_huge_pages(empty_grad_x(grad_y, (x.shape[2], x.shape[3]), memory_format_of(x) == torch.channels_last))


def _like_generator(generator: Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of the span and of its bias."""
    return torch.empty(generator.span.shape, dtype=dtype), torch.empty(generator.bias.shape, dtype=dtype)


def _clear_unless_covered(grad_x: Tensor, problem: Problem) -> None:
    """Zeros in grad_x, unless every pixel lies between the first and the last tap of the windows, and none between two
    of them, so that a backward pass will write to all."""
    w = problem.window

    def reach(positions: int) -> int:
        return w.stride * (positions - 1) + w.dilation * (w.K - 1) + 1 - w.padding

    covers = w.stride <= w.dilation * (w.K - 1) + 1
    if not (covers and reach(problem.H_out) >= problem.H and reach(problem.W_out) >= problem.W):
        grad_x.zero_()


def _run(kernel: str, job: Job, problem: Problem) -> None:
    threads = job.threads()
    job.put_scratch(threads)
    launch(kernel, problem.size, job.fields, threads)


kernels = NumbaKernels()
aggregate = library.Aggregate("numba", kernels)
fused_layer = fused.Fused("numba", kernels, aggregate, whole=kernels)
