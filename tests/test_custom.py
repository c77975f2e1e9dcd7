"""Operators that users bring: where they are found, what they may claim, and one line for those that cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from invbench import Involution2d, involution2d
from invbench.harness import custom, subjects
from invbench.harness.settings import INVOLUTION, USER, Subject
from invbench.harness.subjects import Runnable, check
from invbench.spec import Case, InvbenchError, LayerSpec, Mode, Scope

TEXT = """
def own(case):
    return abs

def claims(case):
    return abs

class Nested:
    @staticmethod
    def make(case):
        return abs

claims.is_involution = True
number = 3
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module beside the user, and two entry points."""
    (tmp_path / "mine_of_tests.py").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    points = EntryPoints(
        EntryPoint(name, value, custom.GROUP)
        for name, value in (("good", "mine_of_tests:claims"), ("naive", "mine_of_tests:own"), ("odd", "mine_of_tests"))
    )
    monkeypatch.setattr(custom, "entry_points", lambda **wanted: points.select(**wanted))
    yield
    sys.modules.pop("mine_of_tests", None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine_of_tests:own", Subject("mine_of_tests:own", USER, "mine_of_tests:own")),
        ("mine_of_tests:claims", Subject(INVOLUTION, "mine_of_tests:claims", "mine_of_tests:claims")),
        ("mine_of_tests:Nested.make", Subject("mine_of_tests:Nested.make", USER, "mine_of_tests:Nested.make")),
        ("good", Subject(INVOLUTION, "good", "good")),
    ],
)
def test_a_factory_is_found(name: str, expected: Subject) -> None:
    assert custom.subject(name) == expected
    assert expected.label == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "package.module:factory or a name of the entry-point group 'invbench.subjects' (good, naive, odd)"),
        ("", "got ''"),
        ("mine_of_tests:", "got 'mine_of_tests:'"),
        (":own", "got ':own'"),
        ("odd", "got 'odd'"),
        ("nosuch:make", "No module named 'nosuch'"),
        ("mine_of_tests:other", "has no attribute 'other'"),
        (".relative:make", "cannot be imported"),
        ("mine_of_tests:number", "a factory is something to call: got int"),
        ("naive", "this is the name of a row of ours"),
        ("conv2d", "this is the name of a row of ours"),
        ("involution", "this is the name of a row of ours"),
    ],
)
def test_a_factory_that_cannot_be_had_is_refused(name: str, words: str) -> None:
    with pytest.raises(InvbenchError) as refused:
        custom.subject(name)
    assert str(refused.value).startswith("--subject ")
    assert words in str(refused.value)


# --- What factories return ---

CASE = Case(2, 6, 6, LayerSpec(8, 3, 2), scope=Scope.AGGREGATE)


def verdict(make: Any, case: Case, monkeypatch: pytest.MonkeyPatch, claims: bool) -> bool | None:
    """Whether the operator that a factory makes agrees with its reference; None if nothing says so."""
    monkeypatch.setattr(subjects, "resolve", lambda name: make)
    subject = Subject(INVOLUTION, "mine", "mine") if claims else Subject("mine", USER, "mine")
    agreement = check(Runnable(subject, case, seed=0), {})
    return agreement and agreement.is_close


def right(case: Case) -> Any:
    s = case.layer
    if case.scope is Scope.AGGREGATE:
        return lambda x, weight: involution2d(x, weight, backend="naive")
    return Involution2d(s.C, s.K, s.stride, s.dilation, s.G, reduction=s.reduction, backend="unfold")


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("scope", Scope)
def test_involution_of_a_users_own_is_judged_by_our_reference(
    scope: Scope, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(2, 6, 6, LayerSpec(8, 3, 2), scope=scope, mode=mode)
    assert verdict(right, case, monkeypatch, claims=True) is True


def test_parts_in_another_order_are_no_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reordered(Involution2d):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, backend="unfold")
            self._modules = dict(reversed(self._modules.items()))

    def make(case: Case) -> nn.Module:
        return Reordered(case.layer.C, case.layer.K, case.layer.stride, case.layer.dilation, case.layer.G)

    case = Case(2, 6, 6, LayerSpec(8, 3, 2), scope=Scope.LAYER, mode=Mode.TRAIN)
    assert verdict(make, case, monkeypatch, claims=True) is True


@pytest.mark.parametrize(
    "make",
    [
        lambda case: lambda x, weight: x * 0,
        lambda case: lambda x, weight: involution2d(x, weight.flip(2), backend="naive"),
        lambda case: lambda x, weight: involution2d(x, weight, backend="naive") * torch.nan,
    ],
    ids=["zero", "flipped", "NaN"],
)
def test_what_only_claims_to_be_involution_is_a_mismatch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(make, CASE, monkeypatch, claims=True) is False


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda case: None, "got NoneType"),
        (lambda case: 3, "got int"),
        (lambda case: lambda x, weight: (x, x), "one tensor: got tuple"),
        (lambda case: lambda x, weight: "y", "one tensor: got str"),
        (lambda case: lambda x, weight: involution2d(x, weight)[None], "wrong shape: got"),
        (lambda case: lambda x, weight: involution2d(x, weight)[..., :1], "wrong shape: got"),
    ],
    ids=["nothing", "a number", "two tensors", "text", "a dimension more", "a column"],
)
def test_what_is_no_operator_is_refused(make: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvbenchError, match=words):
        verdict(make, CASE, monkeypatch, claims=True)


def test_a_layer_that_claims_to_be_involution_is_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvbenchError, match=r"nn.Module with the parameters of Involution2d: got function"):
        verdict(lambda case: lambda x: x, Case(2, 6, 6, LayerSpec(8, 3, 2)), monkeypatch, claims=True)


@pytest.mark.parametrize("mode", Mode)
def test_an_operator_of_its_own_is_checked_against_itself(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(2, 6, 6, LayerSpec(8, 3, 2), mode=mode)
    assert verdict(lambda case: nn.Conv2d(8, 4, 1, stride=2), case, monkeypatch, claims=False) is True
    assert verdict(lambda case: lambda x: x.relu(), case, monkeypatch, claims=False) is True
    assert verdict(lambda case: lambda x: x * torch.nan, case, monkeypatch, claims=False) is False


def test_what_does_not_run_in_float64_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def single(x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float64:
            raise TypeError("float32 only")
        return x

    assert verdict(lambda case: single, CASE, monkeypatch, claims=False) is None
