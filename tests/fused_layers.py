"""What the tests of layers that make the weight where it is used share: layers, their results, and how these are
judged."""

from __future__ import annotations

import copy
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import torch
from cases import X_LAYOUTS
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from invbench import Involution2d

LAYOUTS = {**X_LAYOUTS, "expanded": lambda values: values[:1].expand(values.shape)}  # channels stay different


def make(*arguments: Any, **options: Any) -> Involution2d:
    layer = Involution2d(*arguments, **{"backend": "numba", **options})
    generator = torch.Generator().manual_seed(zlib.crc32(repr((arguments, options)).encode()))
    with torch.no_grad():
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if name in ("norm.weight", "norm.running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return layer


def naive(layer: Involution2d, dtype: torch.dtype | None = None) -> Involution2d:
    """A copy that goes part by part, in another dtype if asked for."""
    twin = copy.deepcopy(layer).to(dtype)
    twin.backend = "naive"
    return twin


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(layer: Involution2d, x: Tensor, mode: str = "eval") -> dict[str, Tensor]:
    """y, and in modes with gradients those of x and of every parameter; and the statistics afterwards."""
    layer.train(mode.startswith("train"))
    if mode.endswith(("no_grad", "inference")):
        with torch.inference_mode() if mode.endswith("inference") else torch.no_grad():
            found = {"y": layer(x)}
    else:
        inputs = {"x": x.detach().requires_grad_(), **dict(layer.named_parameters())}
        inputs = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
        y = layer(inputs["x"])
        grad_y = randn(*y.shape, dtype=y.dtype, seed=2)
        found = {"y": y.detach(), **dict(zip(inputs, torch.autograd.grad(y, inputs.values(), grad_y), strict=True))}
    return {**found, **{name: buffer.double() for name, buffer in layer.named_buffers()}}


def error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach(), expected.detach()
    return float((actual.double() - expected).abs().max() / (expected.abs().max() or 1)) if expected.numel() else 0.0


def check(layer: Involution2d, x: Tensor, mode: str = "eval", autocast: bool = False, roundings: int = 64) -> None:
    """Errors are at most a few times those of the parts one by one in the same dtype, and so many roundings; dtypes and
    sizes are theirs."""
    expected = results(naive(layer, torch.float64), x.double(), mode)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        parts, actual = results(naive(layer), x, mode), results(copy.deepcopy(layer), x, mode)
    eps = torch.finfo(parts["y"].dtype).eps
    for name, wanted in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (wanted.shape, parts[name].dtype), name
        if mode == "train" and name.startswith("reduce") and (name == "reduce.bias" or layer.spec.C == 1):
            continue  # a gradient of zero: batch norm undoes what these change
        limit = 1e-10 if eps < 1e-9 else 8 * error(parts[name], wanted) + roundings * eps
        assert error(actual[name], wanted) <= limit, name


class Adapted(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


# Each returns what to put into a part's place, or changes it.
CHANGES: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    *itertools.product(("reduce", "span"), (
        lambda part: setattr(part, "__class__", Adapted), lambda part: prune.l1_unstructured(part, "weight", 0.5),
        parametrizations.weight_norm,
    )),
    *itertools.product(("reduce", "norm", "span", "pool"), (
        lambda part: [part.register_forward_hook(lambda module, x, y: 2 * y)],
        lambda part: [part.register_forward_pre_hook(lambda module, x: 2 * x[0])],
        lambda part: setattr(part, "forward", lambda x: 2 * type(part).forward(part, x)),  # as offloading does
    )),
    ("norm", lambda part: [setattr(part, name, None) for name in ("running_mean", "running_var")]),
    ("norm", lambda part: setattr(part, "bias", None)),
    ("norm", lambda part: part.train()), ("norm", lambda _: nn.Identity()), ("norm", lambda _: nn.GroupNorm(2, 4)),
    ("norm", lambda _: nn.BatchNorm2d(4, track_running_stats=False)),
    ("norm", lambda _: nn.BatchNorm2d(4, affine=False)),
    ("activation", lambda _: nn.GELU()), ("activation", lambda _: nn.ReLU(inplace=True)),
    ("span", lambda _: nn.Conv2d(4, 9, 1, bias=False)), ("span", lambda _: nn.Conv2d(4, 9, 3, padding=1)),
    ("span", lambda part: nn.Sequential(part, nn.Tanh())), ("reduce", lambda _: nn.Conv2d(16, 4, 3, padding="same")),
)  # fmt: skip


class Calls(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "invbench":
            self.made = {**getattr(self, "made", {}), func: [a.clone() if isinstance(a, Tensor) else a for a in args]}
        return func(*args, **kwargs or {})
