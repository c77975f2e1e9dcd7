"""Limits of a check: thresholds by metric and case, the last exception first; shares as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invbench.spec import Case, InvbenchError, LayerSpec, Mode
from invbench.study.expression import Expression
from invbench.study.grid import FIELDS, GridPoint
from invbench.study.limits import METRICS, CaseLimits, Limits, parse_share, percent


def case_limits(where: str, **thresholds: float) -> CaseLimits:
    return CaseLimits(Expression(where, FIELDS), thresholds)


def fields(**other: Any) -> dict[str, Any]:
    layer = LayerSpec(C=other.pop("C", 64), K=7, G=4)
    case = Case(layer=layer, **{"N": 1, "H": 28, "W": 28, "mode": Mode.TRAIN, **other})
    return GridPoint(case, "conv2d-3x3").fields


def test_usual_thresholds() -> None:
    assert [Limits().threshold(metric, fields()) for metric in METRICS] == [0.05, 0, 0, 0, 0]
    assert Limits({"memory": 0.01}) == Limits({"latency": 0.05, "memory": 0.01})


TWO = Limits(
    {"memory": 0.01},
    exceptions=(
        case_limits("mode = train", latency=0.08, memory=0.02, kept=0.03),
        case_limits("C >= 128", latency=0.06),
        case_limits("group_channels = 16 and baseline = conv2d-3x3 and device = cuda", latency=0.07),
    ),
)


@pytest.mark.parametrize(
    ("other", "metric", "expected"),
    [
        ({}, "latency", 0.08),
        ({}, "memory", 0.02),
        ({}, "flop", 0.0),
        ({"mode": Mode.FORWARD}, "latency", 0.05),
        ({"mode": Mode.FORWARD}, "memory", 0.01),
        ({"mode": Mode.FORWARD, "C": 128}, "latency", 0.06),
        ({"C": 128}, "latency", 0.06),  # both hold: the last
        ({"C": 128}, "memory", 0.02),  # which says nothing of memory
        ({"C": 128}, "kept", 0.03),
        ({"device": "cuda"}, "latency", 0.07),
    ],
)
def test_the_last_exception_that_holds_and_names_the_metric_counts(
    other: dict[str, Any], metric: str, expected: float
) -> None:
    assert TWO.threshold(metric, fields(**other)) == expected


def test_one_threshold_of_latency_for_all() -> None:
    limits = TWO.with_latency(0.1)
    for other in ({}, {"C": 128}, {"device": "cuda"}, {"mode": Mode.FORWARD}):
        assert limits.threshold("latency", fields(**other)) == 0.1
    assert limits.exceptions == (case_limits("mode = train", memory=0.02, kept=0.03),)
    assert limits.threshold("kept", fields()) == 0.03
    assert (limits.launches, limits.quads) == (TWO.launches, TWO.quads)
    assert limits.visible == pytest.approx(0.25)  # as far above the threshold as before
    assert TWO.with_latency(0.02).visible == TWO.visible
    assert TWO.threshold("latency", fields()) == 0.08


def test_a_condition_without_a_value_is_told() -> None:
    limits = Limits(exceptions=(case_limits("C < train", latency=0.06),))
    with pytest.raises(InvbenchError, match="has no value here"):
        limits.threshold("latency", fields())
    assert limits.threshold("memory", fields()) == 0.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"launches": 2, "quads": 20}, "launches must be at least 3: got 2"),
        ({"quads": 4}, "got 3 x 4; try quads = 5"),
        ({"launches": 7, "quads": 2}, "got 7 x 2; try quads = 3"),
        ({"launches": 4, "quads": -4}, "try quads = 4"),
        ({"visible": 0.05}, "got visible 5% and latency 5%"),
        ({"visible": 0.0, "thresholds": {"latency": 0.0}}, "got visible 0% and latency 0%"),
        ({"exceptions": (case_limits("C = 3", latency=0.2),)}, "got visible 20% and latency 20%"),
        ({"visible": 10.0}, "visible must be a share from 0 to below 10"),
        ({"visible": math.nan}, "visible must be a share"),
        ({"thresholds": {"memory": -0.1}}, "memory must be a share"),
        ({"thresholds": {"macs": 0.1}}, "metric must be one of latency, memory"),
    ],
)
def test_limits_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvbenchError) as refused:
        Limits(**given)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("where", "thresholds", "words"),
    [
        ("C / 16", {"latency": 0.1}, "takes a condition"),
        ("mode", {"latency": 0.1}, "takes a condition"),
        ("C = 3", {}, "give one of latency"),
        ("C = 3", {"speed": 0.1}, "metric must be one of"),
        ("C = 3", {"flop": math.inf}, "flop must be a share"),
    ],
)
def test_case_limits_that_are_none(where: str, thresholds: dict[str, float], words: str) -> None:
    with pytest.raises(InvbenchError) as refused:
        case_limits(where, **thresholds)
    assert words in str(refused.value)


# --- Shares ---


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("5%", 0.05), ("5 %", 0.05), (" 0.5 %\t", 0.005), (".5%", 0.005), ("5.%", 0.05), ("0%", 0.0), ("100%", 1.0),
        ("999.9%", 9.999), ("007%", 0.07),
    ],
)  # fmt: skip
def test_share(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    "value",
    [
        "", "%", "5", "0.05", "-1%", "+5%", "5%%", "5,5%", "1e1%", "nan%", "inf%", "1000%", "9" * 400 + "%",
        "5 percent", "\N{ARABIC-INDIC DIGIT FIVE}%", ".%", "5 5%", "%5", 5, 0.05, True, None, ["5%"], {"a": 1},
    ],
)  # fmt: skip
def test_what_is_no_share_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(InvbenchError) as refused:
        parse_share(value)
    message = str(refused.value)
    assert message.startswith("it takes a percentage from 0% to below 1000%: got ")
    assert message.endswith('; write "5%"')
    assert len(message) < 200
    assert "\n" not in message


@given(st.integers(0, 9999))
def test_a_share_as_people_write_it(tenths: int) -> None:
    assert percent(parse_share(f"{tenths / 10}%")) == f"{tenths / 10:g}%"
