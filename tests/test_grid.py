"""Which points a sweep has: products, listed cases, what follows from what, and what the command line replaces."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invbench.spec import InvbenchError
from invbench.study import grid
from invbench.study.expression import Expression
from invbench.study.grid import AXES, DEFAULTS, FIELDS, Grid, GridPoint, Values, parse_axis

CPU = ("cpu",)


def conditions(*texts: str) -> tuple[Expression, ...]:
    return tuple(Expression(text, FIELDS) for text in texts)


def points(of: Grid, *devices: str, threads: int = 2) -> list[dict[str, Any]]:
    return [point.fields for point in of.points(devices or CPU, threads)[0]]


def shown(of: Grid, *names: str) -> list[tuple[Any, ...]]:
    """The named fields of each point."""
    return [tuple(point[name] for name in names) for point in points(of)]


# --- Axes from text ---


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("C", "64", (64,)),
        ("H", "14,28,56", (14, 28, 56)),
        ("H", " 14 , 28 ", (14, 28)),
        ("H", "7:56:7", (7, 14, 21, 28, 35, 42, 49, 56)),
        ("H", "7:10", (7, 8, 9, 10)),
        ("H", "7:7", (7,)),
        ("H", "7:13:4", (7, 11)),  # the end is included where a step falls on it
        ("K", "3:7:2,11", (3, 5, 7, 11)),
        ("N", "1,1,2,1", (1, 2)),
        ("mode", "train,forward", ("train", "forward")),
        ("layout", "contiguous", ("contiguous",)),
        ("baseline", "conv2d-3x3,none", ("conv2d-3x3", "none")),
    ],
)
def test_parse_axis(name: str, text: str, expected: Values) -> None:
    assert parse_axis(name, text) == expected


BAD_AXES: dict[str, tuple[str, str, str]] = {
    # what: the axis, its text, and words of the message
    "nothing": ("N", "", "got ''"),
    "a comma too many": ("N", "1,,2", "got ''"),
    "a word": ("N", "many", "got 'many'"),
    "half": ("N", "1.5", "got '1.5'"),
    "zero": ("N", "0", "at least 1"),
    "negative": ("N", "-3", "at least 1"),
    "a range from zero": ("N", "0:3", "at least 1"),
    "backwards": ("N", "9:1", "got '9:1'; swap"),
    "backwards with a step": ("N", "9:1:2", "swap"),
    "a step of zero": ("N", "1:9:0", "got '1:9:0'"),
    "a step back": ("N", "9:1:-2", "got '9:1:-2'"),
    "no end": ("N", "1:", "got '1:'"),
    "too many colons": ("N", "1:2:3:4", "got '1:2:3:4'"),
    "too many values": ("N", "1:200000", "at most 100000 values"),
    "more values than can be counted": ("N", "1:99999999999999999999", "at most 100000 values"),
    "too large": ("N", "99999999999999999999", "below 2"),
    "too many digits": ("N", "9" * 5000, "whole numbers"),
    "even window": ("K", "3,4", "odd"),
    "unknown word": ("mode", "forward,back", "got 'back'"),
    "no word": ("mode", "", "got ''"),
    "unknown baseline": ("baseline", "conv", "conv2d-3x3"),
}


@pytest.mark.parametrize(("name", "text", "words"), BAD_AXES.values(), ids=BAD_AXES.keys())
def test_a_bad_axis_is_refused_by_its_name(name: str, text: str, words: str) -> None:
    with pytest.raises(InvbenchError, match=words) as refused:
        parse_axis(name, text)
    assert str(refused.value).startswith(f"{name} ")


# --- Points ---


def test_no_axis_is_the_usual_point() -> None:
    (point,) = points(Grid(), threads=3)
    expected = {**DEFAULTS, "H": 28, "W": 28, "G": 16, "group_channels": 16, "device": "cpu", "threads": 3}
    assert point == expected


def test_axes_are_a_product_and_cases_go_together() -> None:
    of = Grid({"N": (1, 2), "K": (3,)}, ({"C": (16,), "H": (7, 9)}, {"C": (32,), "H": (5,)}))
    expected = [(1, 16, 7), (1, 16, 9), (2, 16, 7), (2, 16, 9), (1, 32, 5), (2, 32, 5)]
    assert sorted(shown(of, "N", "C", "H")) == sorted(expected)


def test_no_point_comes_twice() -> None:
    of = Grid({"C": (16,)}, ({"G": (1, 4)}, {"group_channels": (4, 8, 16)}))
    assert sorted(shown(of, "G")) == [(1,), (2,), (4,)]


@pytest.mark.parametrize(
    ("axes", "H", "W"),
    [({}, 28, 28), ({"H": (7,)}, 7, 7), ({"W": (7,)}, 7, 7), ({"H": (7,), "W": (9,)}, 7, 9)],
    ids=["neither", "H", "W", "both"],
)
def test_one_side_is_the_other(axes: dict[str, Values], H: int, W: int) -> None:
    assert shown(Grid(axes), "H", "W") == [(H, W)]


@pytest.mark.parametrize(
    ("axes", "G"),
    [
        ({"C": (256,)}, 16),
        ({"C": (8,)}, 1),
        ({"C": (64,), "G": (2,)}, 2),
        ({"C": (64,), "group_channels": (4,)}, 16),
        ({"C": (64,), "group_channels": (64,)}, 1),
    ],
    ids=["usual", "few channels", "G", "channels a group", "one group"],
)
def test_groups(axes: dict[str, Values], G: int) -> None:
    assert shown(Grid(axes), "G") == [(G,)]


def test_the_later_name_of_the_groups_counts() -> None:
    # Axes, then what a device has, then a case: whichever name it takes.
    of = Grid({"C": (64,), "G": (2,)}, ({}, {"G": (8,)}), {"cuda": {"group_channels": (16,)}})
    assert [(point["device"], point["G"]) for point in points(of, "cpu", "cuda")] == [
        ("cpu", 2), ("cpu", 8), ("cuda", 4), ("cuda", 8),
    ]  # fmt: skip


def test_a_device_has_axes_of_its_own() -> None:
    of = Grid({"N": (1,), "C": (16, 32)}, by_device={"cuda": {"N": (64, 256)}})
    found = [(point["device"], point["N"], point["C"]) for point in points(of, "cpu", "cuda")]
    assert found == [
        ("cpu", 1, 16),
        ("cpu", 1, 32),
        *(("cuda", *both) for both in itertools.product((64, 256), (16, 32))),
    ]


def test_baseline_none_is_no_ratio() -> None:
    found, _ = Grid({"baseline": ("none", "depthwise")}).points(CPU, 1)
    assert [point.baseline for point in found] == [None, "depthwise"]
    assert [point.fields["baseline"] for point in found] == ["none", "depthwise"]


@pytest.mark.parametrize(
    ("axes", "texts", "names", "expected"),
    [
        ({"H": (7, 9)}, ["H = W"], "HW", [(7, 7), (9, 9)]),
        ({"W": (7, 9)}, ["H = W"], "HW", [(7, 7), (9, 9)]),
        ({}, ["H = W"], "HW", [(28, 28)]),
        ({"H": (7, 9), "W": (7, 9)}, ["H = W"], "HW", [(7, 7), (9, 9)]),
        ({"H": (8,)}, ["W = 2 * H"], "HW", [(8, 16)]),
        ({"C": (32, 64)}, ["G = C / 16"], "CG", [(32, 2), (64, 4)]),
        ({"C": (32, 64), "G": (2,)}, ["G = C / 16"], "CG", [(32, 2)]),
        ({"C": (32, 64), "group_channels": (32,)}, ["G = C / 16"], "CG", []),
        ({"C": (64,)}, ["G = C // 10"], "CG", []),  # 6 does not divide 64: it is refused
        ({"G": (2, 4)}, ["C = 16 * G"], "CG", [(32, 2), (64, 4)]),
        ({}, ["N = 3", "H = 2 * N"], "NH", [(3, 6)]),  # in their order
        ({"C": (16, 32, 64)}, ["C > 16", "C < 64"], "C", [(32,)]),
        ({"K": (3, 7)}, ["K = 3 or H > 7"], "K", [(3,), (7,)]),
        ({"C": (16,)}, ["threads = 2"], "C", [(16,)]),
    ],
)
def test_constraints(axes: dict[str, Values], texts: list[str], names: str, expected: list[tuple[int, ...]]) -> None:
    assert shown(Grid(axes, constraints=conditions(*texts)), *names) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("G = C / (H - 28)", "division by zero"),
        ("G = C / 100", "G must be a whole number: got 2.56"),
        ("G = 1e999", "whole number"),
        ("G = cpu", "got G='cpu'"),
        ("G = [1, 2]", "got G="),
        ("G = (C > 3)", "got G=True"),
        ("N = 0", "at least 1"),
        ("K = 4", "odd"),
        ("mode = 3", "mode must be one of"),
        ("mode = train + 1", "no value here"),
        ("layout = cpu", "layout must be one of"),
        ("baseline = 'conv'", "baseline must be one of"),
        ("padding_mode = [1]", "padding_mode must be one of"),
        ("G = 7", "G must divide C"),
        ("group_channels = 7", "group_channels must divide C"),
        ("C > mode", "no value here"),
    ],
)
def test_a_combination_that_is_no_point_is_refused_with_the_reason(text: str, words: str) -> None:
    found, refused = Grid(constraints=conditions(text)).points(CPU, 1)
    assert found == []
    assert [words in each.reason for each in refused] == [True], refused
    assert refused[0].fields == {"device": "cpu"}


def test_refused_combinations_do_not_cost_the_others() -> None:
    found, refused = Grid({"C": (10, 16), "G": (4,)}).points(CPU, 1)
    assert [point.case.layer.C for point in found] == [16]
    assert [(each.fields["C"], "try G=" in each.reason) for each in refused] == [(10, True)]


def test_a_filter_without_a_value_is_an_error() -> None:
    with pytest.raises(InvbenchError, match="division by zero"):
        Grid(filters=conditions("C / (H - 28) > 1")).points(CPU, 1)


def test_too_many_combinations_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple(range(1, 1001))
    with pytest.raises(InvbenchError, match="1000000 combinations: at most 100000"):
        Grid({"N": many, "C": many}).points(CPU, 1)
    monkeypatch.setattr(grid, "MOST_POINTS", 3)
    with pytest.raises(InvbenchError, match="4 combinations"):
        Grid({"N": (1, 2)}, ({}, {"C": (16,)})).points(CPU, 1)


# --- The command line over a profile ---


@pytest.mark.parametrize(
    ("axes", "names", "expected"),
    [
        ({"N": (5,)}, "NC", [(5, 16), (5, 32)]),
        ({"C": (64,)}, "CHG", [(64, 7, 4), (64, 9, 4)]),  # the constraint holds for the new C
        ({"G": (2,)}, "CG", [(16, 2), (32, 2)]),  # instead of the constraint
        ({"group_channels": (8,)}, "CG", [(16, 2), (32, 4)]),
        ({"H": (5,)}, "CHW", [(16, 5, 5), (32, 5, 5)]),
        ({"W": (5,)}, "CHW", [(16, 5, 5), (32, 5, 5)]),
        ({"H": (5, 6), "W": (6,)}, "HW", [(5, 6), (6, 6), (5, 6), (6, 6)]),  # both: H = W holds no more
        ({"C": (16,), "H": (7,)}, "CH", [(16, 7)]),  # the two cases are one now
    ],
)
def test_with_axes(axes: dict[str, Values], names: str, expected: list[tuple[int, ...]]) -> None:
    profile = Grid(
        {"N": (1,)}, ({"C": (16,), "H": (7,)}, {"C": (32,), "H": (9,)}), {"cpu": {"N": (2,)}},
        conditions("W = H", "G = C / 16"),
    )  # fmt: skip
    assert shown(profile.with_axes(axes), *names) == expected


def test_with_axes_adds_filters() -> None:
    of = Grid({"C": (16, 32, 64)}, filters=conditions("C > 16"))
    assert shown(of.with_axes({}, conditions("C < 64")), "C") == [(32,)]


NUMBER_AXES: dict[str, list[int]] = {
    "N": [1, 2, 3], "C": [6, 16, 32], "H": [5, 7], "W": [5, 9], "K": [1, 3, 5], "stride": [1, 2], "G": [1, 2, 4],
    "group_channels": [1, 3, 16], "reduction": [1, 4],
}  # fmt: skip
CONDITIONS = ["H = W", "W = H", "G = C / 16", "C >= 16", "K = 3 or N = 1", "group_channels = 2", "N * C < 60", "K <= H"]


@st.composite
def some_axes(draw: st.DrawFn) -> dict[str, Values]:
    names = draw(st.lists(st.sampled_from(sorted(NUMBER_AXES)), unique=True, max_size=4))
    if "G" in names and "group_channels" in names:
        names.remove("G")
    sample = {name: st.lists(st.sampled_from(NUMBER_AXES[name]), min_size=1, max_size=3, unique=True) for name in names}
    return {name: tuple(draw(values)) for name, values in sample.items()}


some_conditions = st.lists(st.sampled_from(CONDITIONS), max_size=3, unique=True).map(lambda texts: conditions(*texts))
some_grids = st.builds(
    Grid, some_axes(), st.lists(some_axes(), min_size=1, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["cpu", "cuda"]), some_axes()), some_conditions, some_conditions,
)  # fmt: skip


@settings(deadline=None)
@given(some_grids)
def test_points_are_different_and_fulfil_every_condition(of: Grid) -> None:
    found, refused = of.points(("cpu", "cuda"), 2)
    assert len(set(found)) == len(found)
    for point in found:
        assert all(condition(point.fields) for condition in (*of.constraints, *of.filters)), point
    assert all(each.reason for each in refused)


@settings(deadline=None)
@given(some_grids, some_axes())
def test_with_axes_replaces(of: Grid, axes: dict[str, Values]) -> None:
    for point in points(of.with_axes(axes), "cpu", "cuda"):
        assert all(point[name] in values for name, values in axes.items())


@settings(deadline=None)
@given(some_grids)
def test_with_no_axes_changes_nothing(of: Grid) -> None:
    def all_points(some: Grid) -> list[GridPoint]:
        return some.points(("cpu", "cuda"), 2)[0]

    assert all_points(of.with_axes({})) == all_points(of)


def test_every_axis_of_a_case_is_an_axis() -> None:
    assert set(FIELDS) == {*AXES, "device"}
