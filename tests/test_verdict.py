"""Judging: paired ratios, the roofline, exit codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_results import row, samples

from invbench.results import Result, Status
from invbench.results.quantities import Interval, Memory, quotient
from invbench.verdict import exit_code, fastest_involution, paired_ratio, with_ratios

PEAKS = {"matmul_flop_per_s": 1e12, "copy_bytes_per_s": 1e10}
NOT_OK = {"latency": None, "memory": None, "error": None}


def test_ratios_are_paired_round_by_round() -> None:
    # The machine slows down threefold half-way; pairs of one round do not notice, ratios of medians would.
    base = row("conv2d", "torch", 1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0)
    found = paired_ratio(row("involution", "numba", 2.0, 2.0, 2.2, 6.0, 6.3, 6.0, 5.4), base)
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((2.0, 1.8, 2.2))
    assert found.count == 7


def test_blocks_are_compared_by_their_medians() -> None:
    wild = row(latency=samples(2.0, 2.0))
    assert paired_ratio(wild, row("conv2d", "torch", 1.0, 1.0)) == Interval(2.0, 2.0, 2.0, 2)


def test_the_baselines_own_ratio_is_exactly_one() -> None:
    rows = with_ratios([row(), row("conv2d", "torch", 0.1, 0.3, 0.7, 1e-9, 3e-5, 0.123456789)], "conv2d")
    ratio = rows[1].ratio
    assert ratio is not None
    assert ratio.latency == Interval(1.0, 1.0, 1.0, 6)
    assert (ratio.memory, ratio.params, ratio.flop) == (1.0, 1.0, 1.0)


def test_ratios_of_counts_and_memory() -> None:
    base = row("conv2d", "torch", memory=Memory(400, "vmhwm"), params=1000, flop=50)
    ratio = with_ratios([row(memory=Memory(100, "vmhwm"), params=10, flop=100), base], "conv2d")[0].ratio
    assert ratio is not None
    assert (ratio.memory, ratio.params, ratio.flop) == (0.25, 0.01, 2.0)


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [(1, 0, None), (0, 0, None), (None, 2, None), (2, None, None), (None, None, None), (0, 4, 0.0), (3, 4, 0.75)],
)
def test_quotient(value: float | None, base: float | None, expected: float | None) -> None:
    assert quotient(value, base) == expected


def test_zero_denominators_give_null() -> None:
    base = row("conv2d", "torch", 0.0, 0.0, memory=Memory(0, "vmhwm"), params=0, flop=0)
    for result in with_ratios([row("involution", "numba", 1.0, 1.0), base], "conv2d"):
        assert result.ratio is not None
        assert result.ratio.to_dict() == {"latency": None, "memory": None, "params": None, "flop": None}


def test_unknown_memory_has_no_ratio() -> None:
    rows = with_ratios([row(memory=Memory(None, None)), row("conv2d", "torch")], "conv2d")
    assert rows[0].ratio is not None
    assert rows[0].ratio.memory is None


@pytest.mark.parametrize("failed", ["subject", "baseline"])
def test_a_row_without_latency_has_no_latency_ratio(failed: str) -> None:
    rows = [row(), row("conv2d", "torch")]
    index = 0 if failed == "subject" else 1
    rows[index] = row(rows[index].subject, rows[index].backend, status=Status.ERROR, reason="broke", **NOT_OK)
    ratio = with_ratios(rows, "conv2d")[0].ratio
    assert ratio is not None
    assert ratio.latency is None
    assert ratio.params == 1.0  # closed forms need no measurement


@pytest.mark.parametrize("baseline", [None, "depthwise"], ids=["none", "not measured"])
def test_without_a_baseline_there_are_no_ratios(baseline: str | None) -> None:
    assert [result.ratio for result in with_ratios([row(), row("conv2d", "torch")], baseline)] == [None, None]


@pytest.mark.parametrize(
    ("flop", "bytes_min", "seconds", "expected"),
    [
        (4e9, 1e6, 0.008, 0.5),  # bound by arithmetic: 4 ms at least
        (1e6, 2e7, 0.008, 0.25),  # bound by the copy: 2 ms at least
        (4e9, 4e7, 0.004, 1.0),
        (1e6, 2e8, 0.010, 2.0),  # from cache: more than the memory's bandwidth
        (0, 0, 0.010, 0.0),
    ],
    ids=["flop", "bytes", "both", "cached", "nothing to do"],
)
def test_roofline(flop: float, bytes_min: float, seconds: float, expected: float) -> None:
    result = row(flop=int(flop), bytes_min=int(bytes_min), latency=samples(seconds))
    assert result.share_of_roofline(PEAKS) == pytest.approx(expected)


@pytest.mark.parametrize(
    "result",
    [row(status=Status.OOM, reason="too large"), row(flop=None), row(bytes_min=None), row(latency=samples(0.0))],
    ids=["no latency", "no flop", "no bytes", "latency of zero"],
)
def test_no_roofline_without_its_numbers(result: Result) -> None:
    assert result.share_of_roofline(PEAKS) is None


def test_fastest_involution_is_the_lowest_median_among_ok_rows() -> None:
    rows = [
        row("involution", "naive", 3.0),
        row("involution", "numba", 2.0),
        row("involution", "triton", status=Status.MISMATCH, reason="wrong"),
        row("conv2d", "torch", 1.0),
    ]
    assert fastest_involution(rows) is rows[1]
    assert fastest_involution(rows[2:]) is None


@pytest.mark.parametrize(
    ("statuses", "asked_for", "code"),
    [
        ([], [], 0),
        (["ok", "ok"], [], 0),
        (["ok", "ok"], ["a", "b"], 0),
        (["ok", "unavailable"], [], 0),
        (["unavailable", "unavailable"], [], 0),
        (["ok", "unavailable"], ["a"], 0),
        (["ok", "unavailable"], ["b"], 2),
        (["ok", "mismatch"], [], 4),
        (["ok", "oom"], [], 4),
        (["ok", "timeout"], [], 4),
        (["ok", "error"], [], 4),
        (["mismatch", "unavailable"], [], 4),
        (["mismatch", "unavailable"], ["b"], 2),  # where several apply: 130, 2, 4, 1, 5, 3, 0
        (["error", "ok"], ["a"], 4),
    ],
    ids=lambda part: "+".join(part) or "none" if isinstance(part, list) else str(part),
)
def test_exit_code(statuses: list[str], asked_for: list[str], code: int) -> None:
    rows = []
    for backend, status in zip("ab", statuses, strict=False):
        ok = status == "ok"
        rows.append(row("involution", backend) if ok else row("x", backend, status=Status(status), reason="why"))
    assert exit_code(rows, asked_for) == code


# --- Power caps ---


def capped(*flags: bool | None) -> Result:
    told = None if None in flags else flags
    return row("conv2d", "torch", latency=replace(samples(*[1.0] * len(flags)), power_capped=told))


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ((False, False), (False, False), None),
        ((True, True), (True, True), None),
        ((True, False), (True, True), "1 of 2 rounds"),
        ((True, True), (False, False), "2 of 2 rounds"),
        ((True, None), (False, False), None),  # not told
    ],
)
def test_a_ratio_of_unlike_clocks_carries_a_warning(
    here: tuple[bool | None, ...], there: tuple[bool | None, ...], words: str | None
) -> None:
    one = replace(capped(*here), subject="involution", warnings=("another",))
    judged, base = with_ratios([one, capped(*there)], "conv2d")
    assert judged.ratio is not None
    assert judged.warnings[0] == "another"
    assert len(judged.warnings) == (1 if words is None else 2)
    if words is not None:
        assert words in judged.warnings[1]
        assert "conv2d" in judged.warnings[1]
        assert "nvidia-smi -lgc" in judged.warnings[1]
    assert base.warnings == ()
