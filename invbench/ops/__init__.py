"""Involution (Li et al., CVPR 2021, arXiv 2103.06255): a K x K kernel per pixel, shared by groups of channels.

    y[n, c, i, j] = sum over (u, v) in the K x K window of
                    weight[n, g(c), (u, v), i, j] * x[n, c, s*i + d*(u - K//2), s*j + d*(v - K//2)]
    g(c) = c // (C // G)            groups are contiguous runs of channels; outside the image x is padded

``BACKENDS`` is the one place that knows the implementations. This module imports none of them and no torch: a
backend's module is loaded when it is first asked for, and one whose optional library is missing or broken is
unavailable with a reason.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, cast

from invbench.spec import DTYPES, PADDING_MODES, LayerSpec

if TYPE_CHECKING:
    from torch import Tensor

    from invbench.ops.functional import involution2d as involution2d
    from invbench.ops.layer import Involution2d as Involution2d


class Implementation(Protocol):
    """What a backend's module offers; that of one that is ``fused`` has ``fused_layer``, a ``fused.Fused``, besides."""

    def unavailable(self, device: str) -> str | None:
        """Why nothing can run on this type of device here, and the remedy; None if it can."""

    def aggregate(self, x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W] and weight [N, G, K*K, H_out, W_out], already validated."""


@dataclass(frozen=True, slots=True)
class Fusing:
    """For which layers a backend makes the weight where it is used, so that it never reaches memory.

    K, stride, hidden_channels, numbers (of an image [C, H, W], or of its hidden channels): the most; group_channels:
    the least. dilates_strides: whether a stride may come with a dilation; skips_pixels: whether it may exceed K.
    """

    dtypes: tuple[str, ...] = DTYPES
    padding_modes: tuple[str, ...] = PADDING_MODES
    K: float = inf
    stride: float = inf
    dilates_strides: bool = True
    skips_pixels: bool = True
    group_channels: int = 1
    hidden_channels: float = inf
    numbers: float = inf

    def refusal(self, spec: LayerSpec, dtype: str, hidden_channels: int, H: int, W: int) -> str | None:
        """Why the weight of a layer on [N, C, H, W] is made in memory, or None if it is not."""
        for name, value, most in (
            ("K", spec.K, self.K),
            ("stride", spec.stride, self.stride if self.skips_pixels else min(self.stride, spec.K)),
            ("hidden channels", hidden_channels, self.hidden_channels),
            ("numbers an image", max(spec.C, hidden_channels) * H * W, self.numbers),
        ):
            if value > most:
                return f"the fused kernels take {name} up to {most:.0f}: got {value}"
        if self.group_channels > spec.C // spec.G:
            return f"the fused kernels take {self.group_channels} channels a group at least: got {spec.C // spec.G}"
        if spec.stride > 1 and spec.dilation > 1 and not self.dilates_strides:
            return f"the fused kernels take a stride or a dilation: got {spec.stride} and {spec.dilation}"
        for name, given, taken in (("", dtype, self.dtypes), ("padding with ", spec.padding_mode, self.padding_modes)):
            if given not in taken:
                return f"the fused kernels take {name}{', '.join(taken)}: got {given}"
        return None


@dataclass(frozen=True, slots=True, eq=False)  # a key by identity, which costs less than a hash of all fields
class Backend:
    """One implementation of the operator.

    ``devices`` and ``dtypes`` are what it can ever run on; ``fused`` says for which layers the generated weight never
    reaches memory, if for any; ``automatic`` that ``backend="auto"`` may choose it; ``named_only`` that it is measured
    only where it is asked for by name. ``summary`` is one line for people.
    """

    name: str
    module: str
    summary: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...] = DTYPES
    differentiable: bool = True
    fused: Fusing | None = None
    automatic: bool = True
    named_only: bool = False

    def load(self) -> Implementation:
        """Import the module; raises whatever its optional library raises."""
        return cast(Implementation, importlib.import_module(self.module))

    def unavailable(self, device: str) -> str | None:
        """Why this backend cannot run on this type of device here, with the remedy; None if it can."""
        return _unavailable(self, device)

    def refusal(self, device: str, dtype: str) -> str | None:
        """Why this backend cannot compute this dtype on this type of device, or None if it can."""
        if dtype not in self.dtypes:
            return f"it computes {', '.join(self.dtypes)}: got {dtype}; convert x and weight to one of these"
        return self.unavailable(device)


@cache
def _unavailable(backend: Backend, device: str) -> str | None:
    try:
        implementation = backend.load()
    except Exception as error:  # noqa: BLE001 -- a broken optional library can raise anything, and costs only itself
        first_line = next(iter(str(error).splitlines()), "")
        return f"its library cannot be imported ({type(error).__name__}: {first_line}); reinstall invbench"
    return implementation.unavailable(device)


TRITON_FUSING = Fusing(
    dtypes=("float16", "bfloat16"),
    padding_modes=("zeros",),
    K=15,
    stride=2,
    dilates_strides=False,
    skips_pixels=False,
    group_channels=4,
    hidden_channels=128,
    numbers=2**27 - 1,
)

# Fastest first: "auto" takes the first that does not refuse.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            "invbench.ops.triton_gpu",
            "GPU kernels written in Triton",
            devices=("cuda", "xpu"),
            fused=TRITON_FUSING,
        ),
        Backend(
            "triton-atomic",
            "invbench.ops.triton_gpu.atomic",
            "triton, but gradients of parameters are added up by atomics: faster, and no two runs alike",
            devices=("cuda", "xpu"),
            fused=TRITON_FUSING,
            automatic=False,
            named_only=True,
        ),
        Backend(
            "triton-unfused",
            "invbench.ops.triton_gpu",
            "triton, but the weight is always made in memory: what fusing is worth",
            devices=("cuda", "xpu"),
            automatic=False,
            named_only=True,
        ),
        Backend(
            "numba",
            "invbench.ops.numba_cpu",
            "parallel CPU kernels in explicit SIMD, written in Numba",
            devices=("cpu",),
            fused=Fusing(),
        ),
        Backend(
            "compiled",
            "invbench.ops.compiled",
            "torch.compile of the plain formulations, the faster of the two",
            devices=("cpu", "cuda", "xpu"),
            # Compiling takes seconds for each new shape, which nobody should meet unasked.
            automatic=False,
        ),
        Backend(
            "naive",
            "invbench.ops.naive",
            "tap by tap in plain PyTorch; in float64 the reference",
            devices=("cpu", "cuda", "mps", "xpu", "meta"),
        ),
        Backend(
            "unfold",
            "invbench.ops.unfold",
            "im2col and a weighted sum: what people use today",
            devices=("cpu", "cuda", "mps", "xpu", "meta"),
        ),
    )
}

# What is measured where nobody asks for backends by name.
DEFAULT_BACKENDS = tuple(name for name, backend in BACKENDS.items() if not backend.named_only)


def __getattr__(name: str) -> Any:
    # involution2d and Involution2d need torch, which the table above must not import.
    homes = {"involution2d": "invbench.ops.functional", "Involution2d": "invbench.ops.layer"}
    if name in homes:
        return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
