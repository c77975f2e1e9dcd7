"""A case made runnable: the same bits for everyone, and a check that lets right subjects pass and wrong ones not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invbench.harness.settings import describe_failure
from invbench.harness.subjects import (
    CONVOLUTIONS,
    INVOLUTION,
    Runnable,
    Subject,
    check,
    require_fitting,
)
from invbench.ops import naive, unfold
from invbench.spec import DTYPES, LAYOUTS, Case, InvbenchError, LayerSpec, Mode, Scope

LAYERS = {
    "plain": LayerSpec(16, 3, 2),
    "stride 2, odd": LayerSpec(8, 5, 4, stride=2),
    "dilated, replicate": LayerSpec(8, 3, 2, dilation=2, padding_mode="replicate"),
}
ALL = [Subject(INVOLUTION, "naive"), Subject(INVOLUTION, "unfold"), *map(Subject, CONVOLUTIONS)]
modes = pytest.mark.parametrize("mode", Mode)
scopes = pytest.mark.parametrize("scope", Scope)


def a_case(layer: LayerSpec = LAYERS["plain"], **fields: Any) -> Case:
    return Case(**{"N": 2, "H": 9, "W": 7, "layer": layer, **fields})


# --- Inputs ---


@modes
@scopes
def test_all_subjects_of_a_seed_have_the_same_bits(mode: Mode, scope: Scope) -> None:
    case = a_case(mode=mode, scope=scope)
    first, *others = [Runnable(subject, case, seed=3) for subject in ALL]
    for other in others:
        assert torch.equal(first.inputs[0], other.inputs[0])
        if mode is not Mode.FORWARD:
            assert torch.equal(first.grad_y, other.grad_y)
    naive_one, unfold_one = first, others[0]
    for tensors in zip(naive_one.inputs, unfold_one.inputs, strict=True):
        assert torch.equal(*tensors)
    if scope is Scope.LAYER:
        own, other_state = naive_one.module.state_dict(), unfold_one.module.state_dict()
        assert own.keys() == other_state.keys()
        assert all(torch.equal(own[name], other_state[name]) for name in own)


@pytest.mark.parametrize("subject", ALL, ids=lambda s: s.label)
def test_layouts_hold_the_same_bits(subject: Subject) -> None:
    one, two = (Runnable(subject, a_case(), seed=3, layout=layout) for layout in LAYOUTS)
    assert one.inputs[0].is_contiguous()
    assert two.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(one.inputs[0], two.inputs[0])
    for parameters in zip(one.module.parameters(), two.module.parameters(), strict=True):
        assert torch.equal(*parameters)


def test_seeds_differ_and_leave_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    one, two = (Runnable(ALL[0], a_case(), seed) for seed in (1, 2))
    assert not torch.equal(one.inputs[0], two.inputs[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_random_normal(dtype: str) -> None:
    # Constant data runs faster, and subnormals slower.
    case = a_case(LayerSpec(64, 3, 2), H=20, W=20, dtype=dtype, mode=Mode.TRAIN, scope=Scope.AGGREGATE)
    runnable = Runnable(ALL[0], case, seed=0)
    for tensor in (*runnable.inputs, runnable.grad_y):
        values = tensor.detach().double()
        assert tensor.dtype == getattr(torch, dtype)
        assert abs(values.mean().item()) < 0.1
        assert values.std().item() == pytest.approx(1, abs=0.1)
        assert values.abs().max() < 7
    x, weight = runnable.inputs
    assert not torch.equal(x.flatten()[:100], weight.flatten()[:100])  # not correlated by a shared seed


def test_running_statistics_are_not_the_identity() -> None:
    norms = [part for part in Runnable(ALL[0], a_case(), 0).module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean.std() > 0.1
        assert norm.running_var.min() > 0.4


@modes
@pytest.mark.parametrize("subject", ALL, ids=lambda s: s.label)
def test_modes(subject: Subject, mode: Mode) -> None:
    runnable = Runnable(subject, a_case(mode=mode), seed=0)
    outputs = runnable.call()
    assert runnable.module.training == (mode is not Mode.FORWARD)
    if mode is Mode.FORWARD:
        assert [output.shape for output in outputs] == [(2, 16, 9, 7)]
        assert outputs[0].is_inference()
        assert runnable.before() is None
    else:
        parameters = [parameter for _, parameter in sorted(runnable.module.named_parameters())]
        assert [output.shape for output in outputs] == [t.shape for t in (*runnable.inputs, *parameters)]
        assert (runnable.before() is None) == (mode is Mode.TRAIN)
        assert all(parameter.grad is None for parameter in parameters)  # nothing accumulates from call to call


class CountingClock:
    """Says how often each half of a call ran, and that every call takes two seconds."""

    def __init__(self) -> None:
        self.before, self.timed = 0, 0

    def sample(self, before: Callable[[], Any], timed: Callable[[Any], Any], calls: int) -> float:
        state = before()
        self.before += 1
        for _ in range(calls):
            timed(state)
            self.timed += 1
        return 2.0


@pytest.mark.parametrize(("mode", "before"), [("forward", 1), ("train", 1), ("backward", 3)])
def test_sampler_walks_each_graph_once(mode: str, before: int) -> None:
    clock = CountingClock()
    assert Runnable(ALL[0], a_case(mode=Mode(mode)), seed=0).sampler(clock)(3) == 2.0
    assert (clock.before, clock.timed) == (before, 3)


# --- Right subjects pass ---


@modes
@scopes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["naive", "numba"])
def test_right_backends_pass(backend: str, dtype: str, scope: Scope, mode: Mode) -> None:
    references: dict[str, list[Tensor]] = {}
    for layer, layout in itertools.product(LAYERS.values(), LAYOUTS):
        case = a_case(layer, mode=mode, scope=scope, dtype=dtype, layout=layout)
        error = check(Runnable(Subject(INVOLUTION, backend), case, seed=1), references)
        references.clear()
        assert error.is_close, (layer, layout)


@modes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_pass(name: str, dtype: str, mode: Mode) -> None:
    for layer, layout in itertools.product(LAYERS.values(), LAYOUTS):
        case = a_case(layer, mode=mode, dtype=dtype)
        error = check(Runnable(Subject(name), case, seed=1, layout=layout), {})
        assert error.is_close, (layer, layout)


@pytest.mark.parametrize(
    ("name", "kernel_size", "groups"), [("conv2d", 5, 1), ("conv2d-3x3", 3, 1), ("depthwise", 5, 8)]
)
def test_convolutions_are_what_they_are_called(name: str, kernel_size: int, groups: int) -> None:
    module = CONVOLUTIONS[name](LayerSpec(8, 5, 4, stride=2, dilation=3, padding_mode="reflect"))
    assert isinstance(module, nn.Conv2d)
    assert module.kernel_size == (kernel_size, kernel_size)
    assert (module.groups, module.stride, module.dilation) == (groups, (2, 2), (3, 3))
    assert module.padding == (3 * (kernel_size // 2),) * 2
    assert module.padding_mode == "reflect"
    assert module.bias is None


def test_separable_is_depthwise_and_then_pointwise() -> None:
    depthwise, pointwise = CONVOLUTIONS["separable"](LayerSpec(8, 5, 4, stride=2))
    assert (depthwise.groups, depthwise.kernel_size, depthwise.stride) == (8, (5, 5), (2, 2))
    assert (pointwise.groups, pointwise.kernel_size, pointwise.stride) == (1, (1, 1), (1, 1))


# --- Wrong subjects do not ---


class Distorted(torch.autograd.Function):
    """The identity, with something done to the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, distort: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.distort = distort
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.distort(grad.clone()), None


def put(tensor: Tensor, where: Any, value: float) -> Tensor:
    """A copy with one value changed."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    mask[where] = True
    return tensor.masked_fill(mask, value)


BORDER = (-1, -1, 0, -1)  # one channel of one image at the upper right corner
right = naive.aggregate
WRONG: dict[str, Callable[[Tensor, Tensor, LayerSpec], Tensor]] = {
    "one pixel at the border": lambda x, w, s: put(right(x, w, s), BORDER, 0.0),
    "last column": lambda x, w, s: put(right(x, w, s), (..., -1), 0.0),
    "one tap": lambda x, w, s: right(x, put(w, (slice(None), slice(None), 0), 0.0), s),
    "taps transposed": lambda x, w, s: right(x, w.unflatten(2, (s.K, s.K)).transpose(2, 3).flatten(2, 3), s),
    "taps mirrored": lambda x, w, s: right(x, w.flip(2), s),
    "groups swapped": lambda x, w, s: right(x, w.flip(1), s),
    "groups interleaved": lambda x, w, s: right(
        x.unflatten(1, (s.group_channels, s.G)).transpose(1, 2).flatten(1, 2), w, s
    ),
    "images swapped": lambda x, w, s: right(x, w.flip(0), s),
    "not a number": lambda x, w, s: put(right(x, w, s), BORDER, math.nan),
    "infinite": lambda x, w, s: put(right(x, w, s), BORDER, math.inf),
}
WRONG_GRADIENT: dict[str, Callable[[Tensor, Tensor, LayerSpec], Tensor]] = {
    "gradient of x at the border": lambda x, w, s: right(Distorted.apply(x, lambda g: put(g, BORDER, 0.0)), w, s),
    "gradient of x, columns for rows": lambda x, w, s: right(Distorted.apply(x, lambda g: g.roll(1, 3)), w, s),
    "gradient of one tap": lambda x, w, s: right(
        x, Distorted.apply(w, lambda g: put(g, (slice(None), slice(None), -1), 0.0)), s
    ),
    "gradient of the weight, 10 % off": lambda x, w, s: right(x, Distorted.apply(w, lambda g: 1.1 * g), s),
    "gradient of x not a number": lambda x, w, s: right(Distorted.apply(x, lambda g: put(g, BORDER, math.nan)), w, s),
    "gradient of the weight not a number": lambda x, w, s: right(
        x, Distorted.apply(w, lambda g: put(g, (0, 0, 0, 0, 0), math.nan)), s
    ),
}


def is_caught(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor], case: Case) -> bool:
    monkeypatch.setattr(unfold, "aggregate", wrong)
    error = check(Runnable(Subject(INVOLUTION, "unfold"), case, seed=1), {})
    return not error.is_close


@modes
@scopes
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backend_is_caught(name: str, scope: Scope, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    # In every mode: the result of the forward pass is part of being right, also where gradients alone are timed.
    assert is_caught(monkeypatch, WRONG[name], a_case(mode=mode, scope=scope))


@pytest.mark.parametrize("mode", [Mode.BACKWARD, Mode.TRAIN])
@scopes
@pytest.mark.parametrize("name", WRONG_GRADIENT)
def test_a_wrong_gradient_is_caught(name: str, scope: Scope, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_caught(monkeypatch, WRONG_GRADIENT[name], a_case(mode=mode, scope=scope))


@scopes
def test_a_wrong_result_of_the_forward_pass_is_caught_in_training(
    scope: Scope, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mode train times the forward pass, too; kernels that are right only backwards are not right.
    def off_by_one(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        return right(x, weight, spec) + 1

    assert is_caught(monkeypatch, off_by_one, a_case(mode=Mode.TRAIN, scope=scope))


@pytest.mark.parametrize("image", [0, 7, 15])
def test_a_wrong_image_among_many_is_caught(image: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to 8 images stand for the batch: the first and the last one always do.
    def wrong(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        return put(right(x, weight, spec), (slice(image // 2 if image == 7 else image, image + 1),), 0.0)

    assert is_caught(monkeypatch, wrong, a_case(N=16))


def test_backends_share_one_reference() -> None:
    references: dict[str, list[Tensor]] = {}
    for subject in ALL:
        check(Runnable(subject, a_case(), seed=1), references)
    assert references.keys() == {INVOLUTION, *CONVOLUTIONS}
    assert all(tensor.dtype == torch.float64 for tensors in references.values() for tensor in tensors)


# --- Odds and ends ---


@pytest.mark.parametrize(("padding_mode", "refused"), [("zeros", False), ("reflect", True), ("replicate", False)])
def test_a_point_must_fit_its_3x3_convolution(padding_mode: str, refused: bool) -> None:
    case = Case(1, 1, 1, LayerSpec(4, 1, padding_mode=padding_mode))
    if refused:
        with pytest.raises(InvbenchError, match="reflect"):
            require_fitting(case)
    else:
        require_fitting(case)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (RuntimeError("\n\n  late  \nmore"), "RuntimeError: late"),
        (MemoryError(), "MemoryError: no message"),
        (InvbenchError("G must divide C"), "G must divide C"),
    ],
)
def test_describe_failure_is_one_line(error: Exception, text: str) -> None:
    assert describe_failure(error) == text
