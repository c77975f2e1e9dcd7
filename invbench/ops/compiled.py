"""torch.compile of the plainest formulations: what an informed user would try today.

Two formulations are compiled for each new combination of shapes, dtype and layout, both are timed on the inputs at
hand, and the faster one is kept. That, and the compilation, is first-call time.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import sysconfig
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.ops.layout import memory_format_of, pad
from invbench.ops.library import has_tangents
from invbench.spec import LayerSpec

# x, weight, spec, and the zeros that are added on each side of x
Formulation = Callable[[Tensor, Tensor, LayerSpec, int], Tensor]

TRIALS = 3
HOPELESS = 3.0  # a formulation that is once so many times slower than the other needs no second trial
_chosen: dict[object, Formulation] = {}


def unavailable(device: str) -> str | None:
    """Why torch.compile cannot make code for this type of device here: it needs a C++ compiler, or Triton."""
    if device != "cpu":
        return None
    compiler = shlex.split(os.environ.get("CXX", ""))[:1] or ["cl" if sys.platform == "win32" else "g++"]
    if not (shutil.which(compiler[0]) or (sys.platform == "darwin" and shutil.which("clang++"))):
        return f"torch.compile needs a C++ compiler: {compiler[0]} was not found; install it, or set CXX to one"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "torch.compile needs Python's headers: Python.h was not found; install python3-dev"
    return None


def aggregate(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]."""
    if spec.padding_mode == "zeros":
        return _aggregate(x, weight, spec, spec.padding)
    # Before the compiled part: torch.compile (2.13) fails on the gradients of replicate and circular padding. In
    # float32 at least, since the border's gradient is folded back onto x.
    extended = pad(x.to(torch.promote_types(x.dtype, torch.float32)), spec)
    return _aggregate(extended, weight, spec, 0).to(x.dtype)


def _aggregate(x: Tensor, weight: Tensor, spec: LayerSpec, padding: int) -> Tensor:
    if torch.compiler.is_compiling():
        return tap_by_tap(x, weight, spec, padding)  # already inside the user's own torch.compile
    if has_tangents(x, weight):
        raise NotImplementedError(
            "backend 'compiled' has no forward-mode differentiation: got dual tensors; use backend 'naive'"
        )
    key = (spec, padding, _signature(x), _signature(weight), torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    if key not in _chosen:
        _chosen[key] = _fastest(x, weight, spec, padding)
    return _chosen[key](x, weight, spec, padding)


def im2col_and_sum(x: Tensor, weight: Tensor, spec: LayerSpec, padding: int) -> Tensor:
    """im2col, a product with the weight and a sum over the taps."""
    # F.unfold, not Tensor.unfold: the generated backward pass of the latter overran its buffer for a channels_last
    # x (torch 2.13, CPU).
    padded = F.pad(x, (padding,) * 4)
    patches = F.unfold(padded, spec.K, dilation=spec.dilation, stride=spec.stride)  # [N, C*K*K, H_out*W_out]
    patches = patches.view(len(x), spec.G, spec.group_channels, spec.taps, *weight.shape[3:])
    accumulator = torch.promote_types(x.dtype, torch.float32)
    y = (patches.to(accumulator) * weight.to(accumulator).unsqueeze(2)).sum(3).flatten(1, 2)
    return y.to(x.dtype).contiguous(memory_format=memory_format_of(x))


def tap_by_tap(x: Tensor, weight: Tensor, spec: LayerSpec, padding: int) -> Tensor:
    """A sum of K*K shifted images, each times one tap of the weight."""
    rows, columns = (spec.stride * (size - 1) + 1 for size in weight.shape[3:])
    accumulator = torch.promote_types(x.dtype, torch.float32)
    padded = F.pad(x, (padding,) * 4).to(accumulator).unflatten(1, (spec.G, spec.group_channels))
    y: Tensor | None = None
    for tap, tap_weight in enumerate(weight.to(accumulator).unsqueeze(3).unbind(2)):  # [N, G, 1, H_out, W_out]
        top, left = (spec.dilation * offset for offset in divmod(tap, spec.K))
        window = padded[..., top : top + rows : spec.stride, left : left + columns : spec.stride]
        y = window * tap_weight if y is None else y + window * tap_weight
    assert y is not None
    return y.flatten(1, 2).to(x.dtype).contiguous(memory_format=memory_format_of(x))


def _fastest(x: Tensor, weight: Tensor, spec: LayerSpec, padding: int) -> Formulation:
    best, least = None, math.inf
    for formulation in (tap_by_tap, im2col_and_sum):
        compiled = _compile(formulation)
        seconds = _seconds(compiled, x, weight, spec, padding, enough=HOPELESS * least)
        if best is None or seconds < least:
            best, least = compiled, seconds
    assert best is not None
    return best


def _compile(formulation: Formulation) -> Formulation:
    # A code object of its own for each combination: torch.compile gives up, silently, on one function that has
    # been recompiled for too many shapes.
    assert isinstance(formulation, types.FunctionType)
    copy = types.FunctionType(formulation.__code__.replace(), formulation.__globals__, formulation.__name__)
    return torch.compile(copy, fullgraph=True, dynamic=False)


def _seconds(
    formulation: Formulation, x: Tensor, weight: Tensor, spec: LayerSpec, padding: int, enough: float
) -> float:
    """The best of a few calls after the first, with the backward pass where gradients are wanted; of one call if that
    takes longer than ``enough``."""
    inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (x, weight)]
    wanted = [tensor for tensor in inputs if tensor.requires_grad] if torch.is_grad_enabled() else []

    def call() -> float:
        started = time.perf_counter()
        y = formulation(inputs[0], inputs[1], spec, padding)
        if wanted:
            torch.autograd.grad(y, wanted, torch.ones_like(y))
        if y.device.type != "cpu":
            torch.accelerator.synchronize(y.device)
        return time.perf_counter() - started

    call()
    seconds = call()
    return seconds if seconds > enough else min(seconds, *(call() for _ in range(TRIALS - 1)))


def _signature(tensor: Tensor) -> object:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
