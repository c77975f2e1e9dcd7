"""Closed forms against what torch builds and counts, against counting by hand, and against each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from invbench.cost import ELEMENT_BYTES, cost_of, held_bytes, reference_bytes
from invbench.ops import Involution2d
from invbench.spec import Case, LayerSpec, Mode, Scope

# N, C, H, W, K, G, stride, dilation, reduction: odd sizes, strides that divide and do not, K = 1, one hidden channel.
POINTS = {
    "plain": (2, 16, 8, 6, 3, 4, 1, 1, 4),
    "odd, stride 2": (1, 8, 7, 5, 3, 2, 2, 1, 2),
    "stride 3": (3, 6, 10, 4, 5, 3, 3, 1, 3),
    "stride over image": (1, 4, 3, 3, 3, 1, 4, 1, 1),
    "dilated": (1, 12, 9, 9, 7, 12, 1, 2, 4),
    "K=1": (2, 8, 5, 5, 1, 8, 1, 1, 4),
    "one channel": (1, 1, 4, 4, 3, 1, 1, 1, 4),
    "one pixel": (1, 8, 1, 1, 3, 4, 2, 1, 16),
}
points = pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())


def case_of(point: tuple[int, ...], **fields: Any) -> Case:
    N, C, H, W, K, G, stride, dilation, reduction = point
    return Case(N, H, W, LayerSpec(C, K, G, stride, dilation, reduction), **fields)


def convolution(s: LayerSpec, K: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(s.C, s.C, K, s.stride, s.dilation * (K // 2), s.dilation, groups, bias=False)


# What each row is, built by hand from CLI.md's "What a row means".
MODULES: dict[str, Callable[[LayerSpec], nn.Module]] = {
    "involution": lambda s: Involution2d(
        s.C, s.K, s.stride, s.dilation, s.G, reduction=s.reduction, padding_mode=s.padding_mode, backend="naive"
    ),
    "conv2d": lambda s: convolution(s, s.K),
    "conv2d-3x3": lambda s: convolution(s, 3),
    "depthwise": lambda s: convolution(s, s.K, groups=s.C),
    "separable": lambda s: nn.Sequential(convolution(s, s.K, groups=s.C), nn.Conv2d(s.C, s.C, 1, bias=False)),
}
subjects = pytest.mark.parametrize("subject", MODULES)


@points
@subjects
def test_params_are_those_of_the_real_module(subject: str, point: tuple[int, ...]) -> None:
    case = case_of(point)
    module = MODULES[subject](case.layer)
    assert cost_of(subject, case).params == sum(parameter.numel() for parameter in module.parameters())


def macs_of_the_aggregate(case: Case) -> int:
    """One for each product of a weight and a pixel, the padded ones included, as papers count them."""
    s = case.layer
    rows, columns = range(0, case.H, s.stride), range(0, case.W, s.stride)
    window = list(itertools.product(range(s.K), repeat=2))
    return sum(1 for _ in itertools.product(range(case.N), range(s.C), rows, columns, window))


@points
@subjects
def test_macs_are_what_torch_counts(subject: str, point: tuple[int, ...]) -> None:
    case = case_of(point)
    module = MODULES[subject](case.layer).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(case.N, case.layer.C, case.H, case.W))
    macs = counter.get_total_flops() // 2
    if subject == "involution":
        macs += macs_of_the_aggregate(case)  # torch's counter sees reduce and span, and no addcmul
    assert cost_of(subject, case).macs == macs


@points
def test_macs_of_the_aggregate_are_counted_one_by_one(point: tuple[int, ...]) -> None:
    case = case_of(point, scope=Scope.AGGREGATE)
    cost = cost_of("involution", case)
    assert cost.macs == macs_of_the_aggregate(case)
    assert cost.params == 0


@points
@subjects
@pytest.mark.parametrize(("mode", "factor"), [("forward", 2), ("backward", 4), ("train", 6)])
def test_flop_is_that_of_the_timed_mode(subject: str, point: tuple[int, ...], mode: str, factor: int) -> None:
    timed = cost_of(subject, case_of(point, mode=Mode(mode)))
    forward = cost_of(subject, case_of(point))
    assert timed.flop == factor * forward.macs
    assert timed.macs == forward.macs
    assert timed.params == forward.params


def test_torchs_counter_agrees_that_backward_is_twice_the_forward_pass() -> None:
    case = case_of(POINTS["odd, stride 2"], mode=Mode.TRAIN)
    module = MODULES["conv2d"](case.layer)
    x = torch.randn(case.N, case.layer.C, case.H, case.W, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    assert counter.get_total_flops() == cost_of("conv2d", case).flop


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("subject", [name for name in MODULES if name != "involution"])
def test_convolutions_are_whole_in_either_scope(subject: str, scope: Scope) -> None:
    assert cost_of(subject, case_of(POINTS["plain"], scope=scope)) == cost_of(subject, case_of(POINTS["plain"]))


# N=2, C=4, H=5, W=3, K=3, G=2, stride 2, reduction 4: x has 2*4*5*3 = 120 elements, the output 2*4*3*2 = 48,
# the weight 2*(2*9)*3*2 = 216; the layer 4*1 + 2*1 + 1*18 + 18 = 42 parameters, conv2d 4*4*9 = 144, depthwise 36,
# separable 36 + 16 = 52. Backward reads inputs, parameters and grad_y, and writes the gradients of the first two.
@pytest.mark.parametrize(
    ("subject", "scope", "mode", "elements"),
    [
        ("involution", "aggregate", "forward", 120 + 216 + 48),
        ("involution", "aggregate", "backward", 2 * (120 + 216) + 48),
        ("involution", "aggregate", "train", 3 * (120 + 216) + 2 * 48),
        ("involution", "layer", "forward", 120 + 42 + 48),
        ("involution", "layer", "backward", 2 * (120 + 42) + 48),
        ("involution", "layer", "train", 3 * (120 + 42) + 2 * 48),
        ("conv2d", "layer", "forward", 120 + 144 + 48),
        ("conv2d", "aggregate", "backward", 2 * (120 + 144) + 48),
        ("conv2d-3x3", "layer", "train", 3 * (120 + 144) + 2 * 48),
        ("depthwise", "layer", "forward", 120 + 36 + 48),
        ("separable", "layer", "forward", 120 + 52 + 48),
    ],
)
@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
def test_least_bytes_by_hand(subject: str, scope: str, mode: str, elements: int, dtype: str) -> None:
    case = case_of((2, 4, 5, 3, 3, 2, 2, 1, 4), scope=Scope(scope), mode=Mode(mode), dtype=dtype)
    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    assert cost_of(subject, case).bytes_min == elements * size


def test_rednets_first_layer_by_hand() -> None:
    # FACTS.md: involution(256, 7, 1) with 16 channels a group and reduction 4, at 28 x 28.
    cost = cost_of("involution", Case(1, 28, 28, LayerSpec(256, 7, 16)))
    assert cost.params == 256 * 64 + 2 * 64 + 64 * 784 + 784
    assert cost.macs == 784 * (256 * 64 + 64 * 784 + 256 * 49)


@points
@pytest.mark.parametrize("mode", Mode)
def test_estimates_of_held_memory_are_lower_bounds_in_order(point: tuple[int, ...], mode: Mode) -> None:
    case = case_of(point, mode=mode)
    naive, unfold = (held_bytes("involution", backend, case) for backend in ("naive", "unfold"))
    conv = held_bytes("conv2d", "torch", case)
    images = 4 * (case.N * case.layer.C * case.H * case.W + case.positions * case.layer.C)
    assert images < naive < unfold
    assert images < conv
    assert reference_bytes(case) > 2 * images
