"""The one table of cases, shared by all backends, and what is done with a row: inputs, reference, comparison."""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from invbench.ops import BACKENDS, involution2d
from invbench.spec import LayerSpec

# Largest error, relative to the largest magnitude of the reference. A result is rounded once, to half a unit in the
# last place. Before that, a sum of T terms is off by about sqrt(T) rounding errors of the accumulator, and T is at
# most 225 here (a 15 x 15 window): 15 eps. The 16-bit types, whose accumulator is float32, have a second rounding
# where autograd or an extended border adds two rounded numbers, or a product is rounded before it is summed: one eps.
TOLERANCE = {
    torch.float64: 16 * torch.finfo(torch.float64).eps,
    torch.float32: 16 * torch.finfo(torch.float32).eps,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}
DTYPES = tuple(TOLERANCE)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the table: an image and a window on it."""

    name: str
    N: int
    C: int
    H: int
    W: int
    K: int
    G: int
    stride: int = 1
    dilation: int = 1
    padding_mode: str = "zeros"

    @property
    def spec(self) -> LayerSpec:
        return LayerSpec(self.C, self.K, self.G, self.stride, self.dilation, padding_mode=self.padding_mode)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``involution2d``."""
        return {"stride": self.stride, "dilation": self.dilation, "padding_mode": self.padding_mode}

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.N, self.C, self.H, self.W

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.N, self.C, self.spec.out_size(self.H), self.spec.out_size(self.W)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.N, self.G, self.K * self.K, *self.y_shape[2:]

    @property
    def macs(self) -> int:
        return math.prod(self.y_shape) * self.K * self.K


# fmt: off
PROBLEMS = tuple(
    Problem(*row) for row in (
        # name                    N   C    H    W   K   G  stride dilation padding_mode
        # windows
        ("one_pixel",             1,  1,   1,   1,  1,  1),
        ("k1",                    2,  6,   5,   4,  1,  3),
        ("k1_stride2",            2,  4,   5,   6,  1,  2, 2),
        ("k3",                    2,  4,   6,   5,  3,  2),
        ("k5",                    1,  4,   7,   9,  5,  4),
        ("k7",                    2,  8,   9,   8,  7,  2),
        ("k9",                    1,  2,  10,  11,  9,  1),
        ("k11",                   1,  4,  12,  13, 11,  2),
        ("k13",                   1,  2,   9,   9, 13,  2),
        ("k15_in_k_minus_1",      1,  2,  14,  14, 15,  1),
        # groups: 1, C, and group sizes around the widths of vectors and blocks
        ("one_group",             2,  6,   5,   5,  3,  1),
        ("one_channel_a_group",   2,  5,   5,   6,  3,  5),
        ("three_a_group",         1,  9,   4,   5,  3,  3),
        ("seven_a_group",         1, 14,   5,   4,  3,  2),
        ("eight_a_group",         1, 16,   5,   4,  3,  2),
        ("sixteen_a_group",       2, 32,   6,   7,  3,  2),
        ("seventeen_a_group",     1, 34,   5,   6,  3,  2),
        ("forty_a_group",         1, 80,   4,   4,  3,  2),
        ("official_block",        2, 64,  14,  14,  7,  4),
        # strides: odd and even sizes, where other implementations read out of bounds or shift by a pixel
        ("7x7_stride2",           2,  4,   7,   7,  7,  2, 2),
        ("13x13_stride2",         2, 16,  13,  13,  7,  1, 2),
        ("13x13_k3_stride2",      1,  4,  13,  13,  3,  2, 2),
        ("14x14_stride2",         1,  4,  14,  14,  5,  2, 2),
        ("225x223_stride2",       1,  2, 225, 223,  7,  1, 2),
        ("8x5_stride2",           2,  4,   8,   5,  3,  2, 2),
        ("stride3",               2,  4,  11,   7,  5,  2, 3),
        ("stride4_over_k",        1,  4,  10,   9,  3,  2, 4),
        ("stride_over_size",      2,  4,   3,   2,  5,  2, 7),
        # dilations
        ("dilation2",             2,  4,   9,   7,  3,  2, 1, 2),
        ("dilation3_k5",          1,  4,   8,  15,  5,  2, 1, 3),
        ("dilation2_stride2",     2,  4,  11,   8,  3,  2, 2, 2),
        ("dilation3_stride2",     1,  4,   9,  12,  5,  1, 2, 3),
        ("dilation2_stride3",     1,  4,  13,  10,  5,  2, 3, 2),
        ("dilation_over_size",    1,  4,   3,   4,  3,  2, 1, 9),
        # images: not square, smaller than the window, wider than a tile
        ("tall",                  2,  4,  17,   3,  5,  2),
        ("wide",                  2,  4,   2,  19,  5,  2),
        ("smaller_than_k",        2,  4,   3,   2,  7,  2),
        ("one_row",               1,  4,   1,   9,  5,  2),
        ("one_column",            1,  4,   9,   1,  5,  2),
        ("pixel_under_k7",        2,  4,   1,   1,  7,  2),
        ("wide_tiles",            1, 16,   3, 131,  3,  1),
        ("wide_tiles_stride2",    1, 10,   5, 263,  5,  1, 2),
        # batches
        ("empty_batch",           0,  4,   5,   6,  3,  2),
        ("empty_batch_stride2",   0,  4,   7,   7,  7,  2, 2),
        ("batch5",                5,  4,   4,   3,  3,  2),
        # padding modes
        ("reflect",               2,  4,   6,   5,  3,  2, 1, 1, "reflect"),
        ("reflect_to_the_limit",  1,  4,   4,   5,  7,  2, 1, 1, "reflect"),
        ("reflect_stride2",       2,  4,   7,   9,  5,  2, 2, 1, "reflect"),
        ("reflect_dilation2",     1,  4,   8,   7,  3,  2, 1, 2, "reflect"),
        ("replicate",             2,  4,   5,   6,  3,  2, 1, 1, "replicate"),
        ("replicate_pixel",       2,  4,   1,   1,  5,  2, 1, 1, "replicate"),
        ("replicate_all_at_once", 1,  4,   7,   6,  5,  2, 2, 3, "replicate"),
        ("circular",              2,  4,   6,   5,  3,  2, 1, 1, "circular"),
        ("circular_to_the_limit", 1,  4,   3,   3,  7,  2, 1, 1, "circular"),
        ("circular_stride2",      2,  4,   9,   7,  5,  2, 2, 1, "circular"),
        ("circular_dilation2",    1, 16,   8,   9,  3,  2, 1, 2, "circular"),
    )
)
# fmt: on

# What takes seconds a row sees these: Triton's interpreter some with every layout, the compiler few, of few taps.
FEW = {
    "triton": ("7x7_stride2", "dilation2_stride2", "reflect", "empty_batch", "one_channel_a_group", "smaller_than_k"),
    "compiled": ("dilation2_stride2", "reflect", "empty_batch", "one_channel_a_group"),
}
SMALL = tuple(problem for problem in PROBLEMS if problem.macs <= 20_000)


def _dense(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)


def _channels_last(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.channels_last)


def _sliced(values: Tensor) -> Tensor:
    """The middle of a buffer that is NaN elsewhere."""
    return _middle_of(values.new_full([size + 3 for size in values.shape], torch.nan), values)


def _channels_last_sliced(values: Tensor) -> Tensor:
    buffer = values.new_full([size + 3 for size in values.shape], torch.nan)
    return _middle_of(_channels_last(buffer), values)


def _middle_of(buffer: Tensor, values: Tensor) -> Tensor:
    return buffer[tuple(slice(1, 1 + size) for size in values.shape)].copy_(values)


def _stepped(values: Tensor) -> Tensor:
    """Every second column of a buffer that is NaN elsewhere."""
    buffer = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), torch.nan)
    return buffer[..., ::2].copy_(values)


def _transposed(values: Tensor) -> Tensor:
    return _dense(values.transpose(-1, -2)).transpose(-1, -2)


def _taps_last(values: Tensor) -> Tensor:
    """What a channels_last 1x1 convolution writes, seen as [N, G, K*K, H_out, W_out]."""
    return _dense(values.permute(0, 3, 4, 1, 2)).permute(0, 3, 4, 1, 2)


# Each makes a tensor of that layout from dense values; only "expanded" changes the values.
Layouts = dict[str, Callable[[Tensor], Tensor]]
X_LAYOUTS: Layouts = {
    "contiguous": _dense,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "channels_last_sliced": _channels_last_sliced,
    "stepped": _stepped,
    "transposed": _transposed,
    "expanded": lambda values: values[:1, :1].expand(values.shape),
}
WEIGHT_LAYOUTS: Layouts = {
    "contiguous": _dense,
    "taps_last": _taps_last,
    "sliced": _sliced,
    "expanded": lambda values: values[..., :1, :1].expand(values.shape),
}
GRAD_LAYOUTS: Layouts = {
    "contiguous": _dense,
    "channels_last": _channels_last,
    "sliced": _sliced,
    # what y.sum() hands back
    "expanded": lambda values: values[:1, :1, :1, :1].expand(values.shape),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A problem in a dtype and in layouts."""

    problem: Problem
    dtype: torch.dtype = torch.float64
    x_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    grad_layout: str = "contiguous"

    @property
    def id(self) -> str:
        layouts = (self.x_layout, self.weight_layout, self.grad_layout)
        return "-".join((self.problem.name, str(self.dtype).removeprefix("torch."), *layouts))


FACTORS = (PROBLEMS, DTYPES, tuple(X_LAYOUTS), tuple(WEIGHT_LAYOUTS), tuple(GRAD_LAYOUTS))


def pairwise(*factors: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Rows in which any two values of any two factors meet at least once; greedy, so nearly as few as possible."""
    columns = list(enumerate(factors))
    # A dict, because a set of strings has another order in each process.
    uncovered = dict.fromkeys(
        ((i, a), (j, b)) for (i, A), (j, B) in itertools.combinations(columns, 2) for a in A for b in B
    )
    rng = random.Random(0)  # breaks ties, so that they do not always meet in the same threes and fours
    while uncovered:
        row = dict(next(iter(uncovered)))
        for i, values in columns:
            if i not in row:
                row[i] = max(rng.sample(values, len(values)), key=lambda a, i=i: _gain(row, i, a, uncovered))
        for pair in itertools.combinations(sorted(row.items(), key=lambda item: item[0]), 2):
            uncovered.pop(pair, None)
        yield tuple(row[i] for i, _ in columns)


def _gain(row: dict[int, Any], i: int, a: Any, uncovered: dict[Any, None]) -> int:
    """How many uncovered pairs the value a of factor i would cover."""
    return sum((((i, a), old) if i < old[0] else (old, (i, a))) in uncovered for old in row.items())


PAIRWISE = tuple(Variant(*row) for row in pairwise(*FACTORS))


def few_variants(backend: str) -> Iterator[Variant]:
    """A few problems, in turn, for each layout of x (for the compiler, for each dtype), with all the rest in turn."""
    by_name = {problem.name: problem for problem in PROBLEMS}
    cycles = [itertools.cycle(values) for values in ([by_name[name] for name in FEW[backend]], *FACTORS[1:])]
    for _ in DTYPES if backend == "compiled" else X_LAYOUTS:
        yield Variant(*(next(cycle) for cycle in cycles))


def is_slow(backend: str, device: str) -> bool:
    """Whether a backend takes seconds for each new problem."""
    return backend == "compiled" or (backend, device) == ("triton", "cpu")


def targets(*, slow: bool = True) -> Iterator[tuple[str, str]]:
    """Every backend and device here that can ever meet, the slow ones on request."""
    for backend, device in itertools.product(BACKENDS.values(), DEVICES):
        can_meet = device in backend.devices or (backend.name, device) == ("triton", "cpu")
        if can_meet and (slow or not is_slow(backend.name, device)):
            yield backend.name, device


def require(backend: str, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Skip, with the backend's own reason, where it cannot run."""
    if reason := BACKENDS[backend].refusal(device, str(dtype).removeprefix("torch.")):
        pytest.skip(reason)


class Inputs(NamedTuple):
    """x [N, C, H, W], weight [N, G, K*K, H_out, W_out], grad_y [N, C, H_out, W_out]."""

    x: Tensor
    weight: Tensor
    grad_y: Tensor


class Results(NamedTuple):
    """What a backend computes from ``Inputs``."""

    y: Tensor
    grad_x: Tensor
    grad_weight: Tensor


def make_inputs(variant: Variant, device: str = "cpu") -> Inputs:
    """Normally distributed values with all the digits of the dtype; the same in every process."""
    problem = variant.problem
    generator = torch.Generator().manual_seed(zlib.crc32(variant.id.encode()))

    def make(shape: tuple[int, ...], layout: Callable[[Tensor], Tensor]) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return layout(values.to(device, variant.dtype))

    return Inputs(
        make(problem.x_shape, X_LAYOUTS[variant.x_layout]),
        make(problem.weight_shape, WEIGHT_LAYOUTS[variant.weight_layout]),
        make(problem.y_shape, GRAD_LAYOUTS[variant.grad_layout]),
    )


def run(inputs: Inputs, problem: Problem, backend: str) -> Results:
    """y and both gradients."""
    x, weight = (tensor.detach().requires_grad_() for tensor in inputs[:2])
    y = involution2d(x, weight, **problem.options, backend=backend)
    return Results(y.detach(), *torch.autograd.grad(y, (x, weight), inputs.grad_y))


@lru_cache(maxsize=512)
def reference(variant: Variant) -> Results:
    """The results of the naive backend in float64 on dense copies of the variant's inputs."""
    inputs = Inputs(*(_dense(tensor.double()) for tensor in make_inputs(variant)))
    return run(inputs, variant.problem, "naive")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest magnitude that was expected; NaN if anything is NaN."""
    if not expected.numel():
        return 0.0
    difference = (actual.detach().cpu().double() - expected).abs().max()
    return float(difference / (expected.abs().max() or 1))


def assert_close(actual: Results, expected: Results, dtype: torch.dtype) -> None:
    """Each result has its shape, its dtype and an error within the tolerance."""
    for name, result, wanted in zip(Results._fields, actual, expected, strict=True):
        assert result.shape == wanted.shape, name
        assert result.dtype == dtype, name
        error = relative_error(result, wanted)
        assert error <= TOLERANCE[dtype], f"{name} is off by {error:.2g}, over {TOLERANCE[dtype]:.2g}"
