"""Rows of attention, measured: built and proved right, refused with a reason, and from the command line to JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_cli import TINY as OP
from test_cli import run
from test_point import FakeClock, clock, threads  # noqa: F401 -- fixtures
from test_subjects import Distorted
from torch import Tensor, nn

from invbench.attention import ATTENTION
from invbench.attention.operators import OPERATORS
from invbench.cli.op import BUDGET, BUDGET_TO_COMPARE
from invbench.cost import cost_of, held_bytes
from invbench.harness import arms, machine, point, subjects
from invbench.harness.blocks import Budget
from invbench.harness.memory import OperatorJob
from invbench.harness.point import measure_point
from invbench.harness.settings import CONVOLUTION_NAMES, Settings, Subject, blank_row
from invbench.harness.subjects import Runnable, check, require_fitting
from invbench.models.counting import count
from invbench.results import Result, Status
from invbench.spec import DTYPES, LAYOUTS, PADDING_MODES, Case, InvbenchError, LayerSpec, Mode, Scope

TORCH = [Subject(name) for name in ATTENTION]
FLEX = Subject("local-attention", "flex")
# What every operator takes: C is a multiple of 16 and of G, and there is no dilation.
SPECS = {
    "plain": (2, 9, 7, LayerSpec(16, 3, 2)),
    "K=7": (1, 8, 8, LayerSpec(64, 7, 4)),
    "stride 2, odd": (2, 9, 7, LayerSpec(32, 5, 4, stride=2)),
    "stride 3, a group a channel": (1, 7, 10, LayerSpec(16, 3, 16, stride=3)),
    "K=1": (2, 5, 4, LayerSpec(32, 1, 1)),
    "window over image": (2, 4, 3, LayerSpec(16, 7, 1)),
}
specs = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
operators = pytest.mark.parametrize("name", ATTENTION)
modes = pytest.mark.parametrize("mode", Mode)


def a_case(spec: tuple[int, int, int, LayerSpec] = SPECS["plain"], **fields: Any) -> Case:
    N, H, W, layer = spec
    return Case(N, H, W, layer, **fields)


def runs(name: str, case: Case) -> bool:
    return OPERATORS[name].refusal(case.layer, case.H, case.W) is None


# --- What they cost on paper ---


# What a batch needs once, whatever its size: positions of pixels, and of taps.
ONCE: dict[str, Callable[[Case], int]] = {
    "san-pairwise": lambda case: 4 * case.H * case.W,
    "local-relation": lambda case: case.layer.taps * (2 + case.layer.G) * max(1, case.layer.G // 2),
}


@specs
@operators
def test_closed_forms_are_those_of_the_real_module(name: str, spec: Any) -> None:
    case = a_case(spec)
    if not runs(name, case):
        pytest.skip("refused")
    module = OPERATORS[name].backends["torch"](case.layer)
    counted, cost = count(module, case.H, case.W, channels=case.layer.C), cost_of(name, case)
    assert cost.params == counted.params == sum(parameter.numel() for parameter in module.parameters())
    once = ONCE.get(name, lambda case: 0)(case)
    assert cost.macs == case.N * (counted.macs - once) + once
    assert cost_of(name, replace(case, scope=Scope.AGGREGATE)) == cost


@operators
def test_flop_and_least_bytes_are_those_of_the_timed_mode(name: str) -> None:
    case = a_case()
    forward, backward, train = (cost_of(name, replace(case, mode=mode)) for mode in Mode)
    assert (forward.flop, backward.flop, train.flop) == tuple(factor * forward.macs for factor in (2, 4, 6))
    x = y = case.N * case.layer.C * case.H * case.W
    assert forward.bytes_min == 4 * (x + forward.params + y)
    assert backward.bytes_min == 4 * (2 * (x + forward.params) + y)
    assert train.bytes_min == forward.bytes_min + backward.bytes_min


@operators
@specs
def test_an_estimate_of_held_memory_is_more_than_the_images(name: str, spec: Any) -> None:
    case = a_case(spec)
    images = 4 * (case.N * case.layer.C * case.H * case.W + case.positions * case.layer.C)
    for backend in ATTENTION[name]:
        assert images < held_bytes(name, backend, case)


# --- Made runnable ---


@modes
@operators
def test_a_runnable_is_the_whole_layer_in_either_scope_and_any_mode(name: str, mode: Mode) -> None:
    shapes = []
    for scope in Scope:
        runnable = Runnable(Subject(name), a_case(mode=mode, scope=scope), seed=0)
        assert isinstance(runnable.module, nn.Module)
        assert runnable.module.training == (mode is not Mode.FORWARD)
        outputs = runnable.call()
        shapes.append([output.shape for output in outputs])
        if mode is not Mode.FORWARD:
            assert len(outputs) == 1 + len(list(runnable.module.parameters()))
    assert shapes[0] == shapes[1]
    assert shapes[0][0] == (2, 16, 9, 7)


@pytest.mark.parametrize("layout", LAYOUTS)
@operators
def test_inputs_are_those_of_every_subject_in_the_layout_of_the_point(name: str, layout: str) -> None:
    case = a_case(layout=layout)
    own, other = Runnable(Subject(name), case, seed=3), Runnable(Subject("conv2d"), case, seed=3)
    assert torch.equal(own.inputs[0], other.inputs[0])
    assert own.inputs[0].stride() == other.inputs[0].stride()


@operators
def test_the_same_seed_makes_the_same_numbers(name: str) -> None:
    one, two = (Runnable(Subject(name), a_case(), seed=1).module.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_statistics_of_all_norms_are_not_the_identity() -> None:
    norms = [
        part for subject in TORCH for part in Runnable(subject, a_case(), 0).module.modules()
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)
    ]  # fmt: skip
    assert norms
    for norm in norms:
        assert norm.running_mean.abs().max() > 0
        assert norm.running_var.min() > 0.4
        assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))


def test_flex_has_the_numbers_of_torch() -> None:
    one, two = (Runnable(Subject("local-attention", backend), a_case(), 0).module for backend in ("torch", "flex"))
    own, other = one.state_dict(), two.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_memory_is_measured_of_the_same_subject() -> None:
    for subject in TORCH:
        step = OperatorJob(subject, a_case(), seed=0, layout="contiguous").step()
        assert [tuple(y.shape) for y in step.call()] == [(2, 16, 9, 7)]


# --- Proved right ---


@modes
@pytest.mark.parametrize("dtype", DTYPES)
@operators
def test_right_operators_pass(name: str, dtype: str, mode: Mode) -> None:
    for spec, layout in itertools.product(SPECS.values(), LAYOUTS):
        case = a_case(spec, mode=mode, dtype=dtype, layout=layout)
        if runs(name, case) and not (mode is not Mode.FORWARD and case.positions == 1):
            error = check(Runnable(Subject(name), case, seed=1), {})
            assert error.is_close, (spec, layout, error)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@operators
def test_right_operators_pass_with_any_padding(name: str, dtype: str, padding_mode: str) -> None:
    """Some gradients are zero but for rounding: of biases before a softmax or a norm, where nothing is cut off."""
    for seed, mode in itertools.product(range(3), Mode):
        case = a_case((2, 12, 9, LayerSpec(32, 5, 4, padding_mode=padding_mode)), mode=mode, dtype=dtype)
        if runs(name, case):
            error = check(Runnable(Subject(name), case, seed=seed), {})
            assert error.is_close, (seed, mode, error)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@operators
def test_right_operators_pass_at_the_size_that_is_measured(name: str, dtype: str) -> None:
    """Where a norm sees a third of a million numbers a channel, its rounding is largest, and ReLUs flip."""
    case = a_case((8, 28, 28, LayerSpec(256, 7, 16)), mode=Mode.TRAIN, dtype=dtype)
    error = check(Runnable(Subject(name), case, seed=0), {})
    assert error.is_close, error


@pytest.mark.parametrize("left_out", ["bias", "weight"])
@operators
def test_gradients_that_are_left_out_are_caught(name: str, left_out: str) -> None:
    """One parameter's gradient, in float32: of those that are zero but for rounding nobody could tell."""
    runnable = Runnable(Subject(name), a_case(SPECS["stride 2, odd"], mode=Mode.TRAIN), seed=1)
    references: dict[str, list[Tensor]] = {}
    right = runnable.results()
    assert check(runnable, references, right).is_close
    names = [name for name, _ in sorted(runnable.module.named_parameters())]
    largest = max(gradient.std() for gradient in right[2:] if gradient.numel() > 1)
    for index, parameter in enumerate(names, start=2):
        if left_out in parameter and right[index].norm() > 0.01 * largest:
            wrong = [*right[:index], torch.zeros_like(right[index]), *right[index + 1 :]]
            assert not check(runnable, references, wrong).is_close, parameter


WRONG: dict[str, Callable[[Callable[..., Tensor], Tensor], Tensor]] = {
    "last column": lambda f, x: torch.cat([f(x)[..., :-1], 0 * f(x)[..., -1:]], -1),
    "rows for columns": lambda f, x: f(x).flip(-1),
    "not a number": lambda f, x: f(x) * torch.nan,
    "gradient of x, columns for rows": lambda f, x: f(Distorted.apply(x, lambda g: g.roll(1, 3))),
    "gradient of x, 50 % off": lambda f, x: f(Distorted.apply(x, lambda g: 1.5 * g)),
    "gradient of all parameters, 50 % off": lambda f, x: Distorted.apply(f(x), lambda g: 1.5 * g),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@operators
def test_a_wrong_operator_is_caught(name: str, wrong: Callable[..., Tensor]) -> None:
    runnable = Runnable(Subject(name), a_case(mode=Mode.TRAIN), seed=1)
    references: dict[str, list[Tensor]] = {}
    assert check(runnable, references).is_close
    right = runnable.function
    runnable.function = lambda x: wrong(right, x)
    assert not check(runnable, references).is_close


# --- A point ---

POINT = Case(1, 9, 9, LayerSpec(16, 3, 4), threads=1)
SETTINGS = Settings(backends=("naive",), budget=Budget(seconds=0.5), compare="attention")


def by_label(results: tuple[Result, ...]) -> dict[str, Result]:
    return {Subject(r.subject, r.backend).label: r for r in results}


@modes
@pytest.mark.parametrize("scope", Scope)
def test_a_point_has_a_row_for_each(clock: FakeClock, mode: Mode, scope: Scope) -> None:  # noqa: F811
    found = by_label(measure_point(replace(POINT, mode=mode, scope=scope), SETTINGS).results)
    assert list(found) == [subject.label for subject in SETTINGS.subjects()]
    for subject in TORCH:
        row = found[subject.label]
        assert (row.status, row.reason) == (Status.OK, None), row
        assert (row.backend, row.chosen_layout, row.memory.peak) == ("torch", None, 7)
        assert row.ratio.latency.median == 1.0
        assert row.error["relative"] <= row.error["tolerance"]
    flex = found["local-attention (flex)"]
    assert (flex.status, flex.latency) == (Status.UNAVAILABLE, None)
    assert "flex" in flex.reason.lower()
    assert all(found[name].status is Status.OK for name in ("naive", *CONVOLUTION_NAMES))


REFUSED = {
    "one pixel": (LayerSpec(16, 1, 4), "axial-attention", "K=1"),
    "dilation": (LayerSpec(16, 3, 4, dilation=2), "axial-attention", "dilation"),
    "channels": (LayerSpec(12, 3, 4), "san-pairwise", "C=12"),
    "channels, too": (LayerSpec(12, 3, 4), "san-patchwise", "C=12"),
}


@pytest.mark.parametrize(("layer", "name", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_meaning_is_a_row_with_the_reason(
    clock: FakeClock, layer: LayerSpec, name: str, words: str  # noqa: F811
) -> None:  # fmt: skip
    found = by_label(measure_point(replace(POINT, layer=layer), SETTINGS).results)
    row = found[name]
    assert (row.status, row.latency) == (Status.UNAVAILABLE, None)
    assert words in row.reason
    assert (row.params, row.macs, row.flop, row.bytes_min) == (None,) * 4
    assert {r.status for r in found.values()} <= {Status.OK, Status.UNAVAILABLE}


@pytest.mark.parametrize("mode", [Mode.BACKWARD, Mode.TRAIN])
def test_one_position_cannot_be_normalised(mode: Mode) -> None:
    """In scope aggregate either, where the rest of the point has nothing to normalise."""
    case = Case(1, 1, 1, LayerSpec(16, 3, 4), mode=mode, scope=Scope.AGGREGATE, threads=1)
    with pytest.raises(InvbenchError, match=r"larger --N, --H or --W, or --scope aggregate without --compare"):
        measure_point(case, SETTINGS)
    require_fitting(case)
    require_fitting(replace(case, mode=Mode.FORWARD), "attention")


def test_a_failing_operator_costs_its_row_only(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("it broke")

    broken = replace(OPERATORS["local-relation"], backends={"torch": lambda layer: Broken()})
    monkeypatch.setitem(subjects.OPERATORS, "local-relation", broken)
    found = by_label(measure_point(POINT, SETTINGS).results)
    assert (found["local-relation"].status, found["local-relation"].reason) == (Status.ERROR, "RuntimeError: it broke")
    assert found["local-attention"].status is Status.OK


def test_an_operator_that_does_not_fit_is_oom_and_the_others_go_on(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    case = replace(POINT, H=40, W=40, layer=LayerSpec(16, 9, 4))
    monkeypatch.setattr(arms, "held_bytes", lambda name, backend, case: 2**40 if name == "san-pairwise" else 1)
    monkeypatch.setattr(machine, "free_bytes", lambda device: 2**30)
    found = by_label(measure_point(case, SETTINGS).results)
    assert found["san-pairwise"].status is Status.OOM
    assert "GiB are free" in found["san-pairwise"].reason
    assert found["san-patchwise"].status is Status.OK


def test_a_blank_row_never_raises() -> None:
    """Also of what is refused later: it is made before anybody looks."""
    layers = (LayerSpec(1), LayerSpec(12, 3, 4, dilation=2), LayerSpec(17, 1, 17, stride=5))
    for layer, scope, subject in itertools.product(layers, Scope, [*TORCH, FLEX]):
        blank_row(subject, Case(1, 3, 3, layer, scope=scope))


@pytest.mark.gpu
@pytest.mark.parametrize("clock_name", ["eager", "device"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@modes
def test_a_real_point_on_a_gpu_has_flex_too(mode: Mode, dtype: str, clock_name: str) -> None:
    case = Case(2, 28, 28, LayerSpec(64, 7, 4), device="cuda", dtype=dtype, mode=mode, threads=1)
    settings = replace(SETTINGS, clock=clock_name, budget=Budget(seconds=2.0))
    for row in measure_point(case, settings).results:
        assert row.status is Status.OK, (row.subject, row.backend, row.reason)


# --- The command ---

ARGUMENTS = [*OP, "--backend=naive", "--compare=attention", "--quiet", "--format=json"]


def test_the_command_makes_rows_of_json(clock: FakeClock, capsys: Any) -> None:  # noqa: F811
    assert run(*ARGUMENTS) == 0  # although FlexAttention cannot run here
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["compare"] == "attention"
    rows = [(row["subject"], row["backend"]) for row in document["results"]]
    attention = [(name, backend) for name, backends in ATTENTION.items() for backend in backends]
    assert rows == [("involution", "naive"), *attention, *((name, "torch") for name in CONVOLUTION_NAMES)]


def test_without_the_option_nothing_is_added(clock: FakeClock, capsys: Any) -> None:  # noqa: F811
    assert run(*OP, "--backend=naive", "--quiet", "--format=json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["settings"]["compare"] is None
    assert not {row["subject"] for row in document["results"]} & set(ATTENTION)


def test_report_and_compare_take_such_a_document(clock: FakeClock, tmp_path: Any, capsys: Any) -> None:  # noqa: F811
    file = tmp_path / "rows.json"
    assert run(*ARGUMENTS, f"--output={file}") == 0
    capsys.readouterr()
    assert run("report", str(file)) == 0
    assert "local-attention (flex)" in capsys.readouterr().out
    assert run("compare", str(file), str(file)) in (0, 5)
    assert "san-pairwise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [([], BUDGET), (["--compare=attention"], BUDGET_TO_COMPARE), (["--compare=attention", "--budget=3"], 3)],
    ids=["alone", "compared", "given"],
)  # fmt: skip
def test_more_rows_get_more_time_unless_it_is_given(
    arguments: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Settings] = []

    def stop(case: Any, settings: Settings, tell: Any) -> Any:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(point, "measure_point", stop)
    assert run(*OP, "--quiet", *arguments) == 130
    assert seen[0].budget.seconds == seconds


def test_ctrl_c_keeps_rows(clock: FakeClock, capsys: Any) -> None:  # noqa: F811
    def interrupt(_: int) -> None:
        if clock.time > 8:
            raise KeyboardInterrupt

    clock.on_sample = interrupt
    assert run(*ARGUMENTS, "--budget=100", "--precision=1e-9") == 130
    document = json.loads(capsys.readouterr().out)
    assert document["interrupted"]
    timed = {row["subject"] for row in document["results"] if row["latency"]}
    assert set(ATTENTION) <= timed
