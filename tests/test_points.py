"""Many points: which axes vary, what may be averaged, and how they are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sweeps import OTHER, at, rounds, sweep
from test_results import document, row

from invbench.results import ResultSet
from invbench.verdict.points import (
    against,
    classes,
    follows,
    geometric_mean,
    informative,
    machine_names,
    points_of,
    values_of,
    varying,
)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"K": [7]}, ()),
        ({"K": [3, 7]}, ("K",)),
        ({"H": [7, 14]}, ("H",)),  # W follows
        ({"W": [7, 14]}, ("W",)),
        ({"H": [7, 14], "W": [7, 14]}, ("H", "W")),
        ({"dtype": ["float32", "float64"], "N": [1, 2]}, ("N", "dtype")),
    ],
)
def test_axes_that_vary_in_the_order_of_the_case(axes: dict[str, list[object]], expected: tuple[str, ...]) -> None:
    assert varying(points_of(sweep(axes))) == expected


def test_nothing_varies_without_points() -> None:
    assert varying(points_of(document())) == ()


def test_the_baseline_and_the_machine_are_axes() -> None:
    one, other = sweep({"K": [7]}), sweep({"K": [7]}, environment=OTHER, created="later", baseline="depthwise")
    points = points_of(ResultSet.merged([one, other], "report", "now"))
    assert varying(points) == ("machine", "baseline")
    assert values_of(points, "machine") == ["A CPU, 2 cores", "Another CPU, 8 cores"]


def test_a_point_measured_twice_is_two_points_told_apart_by_the_run() -> None:
    one = sweep({"K": [7]}, created="2026-01-01")
    other = replace(one, created="2026-01-02", settings={"seed": 1})
    merged = ResultSet.merged([one, other], "report", "now")
    points = points_of(merged)
    assert [len(point.rows) for point in points] == [9, 9]
    assert varying(points) == ("run",)
    assert ResultSet.from_json(merged.to_json()) == merged


def test_rows_of_two_runs_are_never_paired_even_where_nothing_tells_them_apart() -> None:
    once = sweep({"K": [7]})
    assert len(points_of(replace(once, results=once.results * 2))) == 2


def test_the_same_file_twice_is_one() -> None:
    one = sweep({"K": [7]})
    assert ResultSet.merged([one, one], "report", "now") is one


def test_what_differs_between_runs_on_a_machine_is_not_said_of_it() -> None:
    one = sweep({"K": [3]})
    newer = {**one.environment, "versions": {"torch": "2.14.0", "numba": "0.68.1"}}
    merged = ResultSet.merged([one, sweep({"K": [5]}, environment=newer)], "report", "now")
    assert merged.environment["versions"] == {"numba": "0.68.1"}
    assert merged.machines == {}


def test_machines_of_one_model_are_numbered() -> None:
    machines = {"a": {"cpu": {"model": "X", "usable": 2}}, "b": {"cpu": {"model": "X", "usable": 2}}, "c": {}}
    assert list(machine_names(document(machines=machines)).values()) == [
        "X, 2 cores #1",
        "X, 2 cores #2",
        "unknown CPU, ? cores",
    ]


def test_what_may_not_be_averaged_is_apart() -> None:
    points = points_of(sweep({"mode": ["forward", "train"], "dtype": ["float32", "bfloat16"], "K": [3, 5, 7]}))
    assert [len(part) for part in classes(points).values()] == [3, 3, 3, 3]


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0, 4.0]) == pytest.approx(4 ** (1 / 3))


def test_faster_slower_and_undecided_points_are_counted_apart() -> None:
    rows = []
    for N, ratio in enumerate((0.5, 2.0, 1.0, 0.25), 1):
        rows += [
            row("involution", "numba", *rounds(ratio), case=at(N=N)),
            row("conv2d", "torch", *[1.0] * 7, case=at(N=N)),
        ]
    rows.append(row("involution", "numba", case=at(N=9)))  # no convolution beside it
    found = against(points_of(document(*rows)), "conv2d")
    assert (found.faster, found.slower, found.even) == (2, 1, 1)
    assert found.mean == pytest.approx((0.5 * 2 * 1 * 0.25) ** 0.25)


def test_the_axis_that_moves_the_ratio_most_comes_first() -> None:
    points = points_of(sweep({"N": [1, 2], "K": [3, 5, 7], "dtype": ["float32", "float64"]}))
    assert informative(points) == ["K", "N"]  # dtypes are never averaged


def test_an_axis_that_another_decides() -> None:
    rows = [row(case=at(C=C, G=C // 16, N=N)) for C in (32, 64) for N in (1, 2)]
    points = points_of(document(*rows))
    assert follows(points, "C", "G")
    assert not follows(points, "C", "N")
