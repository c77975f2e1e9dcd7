"""Two documents side by side: verdicts, what is not comparable, and how it is told."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from sweeps import MACHINE, OTHER, at, failed, rounds, sweep
from test_report import no_terminal  # noqa: F401 -- a fixture
from test_results import document, row, samples

from invbench.report import FORMATS
from invbench.report.comparison import COMPARISON_FORMATS, ONE_PROCESS, verdict_sentence
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Memory, Samples
from invbench.verdict.changes import Change, Verdict, compare


def one(*rows: Result, **fields: Any) -> ResultSet:
    return document(*rows, **{"environment": MACHINE, **fields})


def latency(a: Result, b: Result, **of_b: Any) -> Change:
    (change,) = compare(one(a), one(b, **of_b)).of("latency")
    return change


def timed(*medians: float, **fields: Any) -> Result:
    return row("involution", "numba", *medians, **fields)


def launched(count: int) -> Samples:
    return Samples.together([samples(*[1.0] * 7)] * count)


OOM = {"status": Status.OOM, "reason": "needs 9 GiB", "latency": None}


@pytest.mark.parametrize(
    ("a", "b", "verdict", "reason"),
    [
        (timed(*rounds(1.0)), timed(*rounds(1.0)), Verdict.SAME, None),
        (timed(*rounds(1.0)), timed(*rounds(1.03)), Verdict.SAME, None),  # they overlap
        (timed(*rounds(1.0)), timed(*rounds(1.06)), Verdict.SLOWER, None),
        (timed(*rounds(1.0)), timed(*rounds(0.94)), Verdict.FASTER, None),
        (timed(1.0, 1.0), timed(2.0, 2.0), Verdict.INCONCLUSIVE, "2 rounds give no 95 % interval: raise --budget"),
        (timed(*rounds(1.0)), timed(latency=launched(3)), Verdict.INCONCLUSIVE, "3 launches give no 95 % interval"),
        (timed(latency=launched(6)), timed(latency=launched(6)), Verdict.SAME, None),
        (timed(), timed(**OOM), Verdict.NOT_COMPARABLE, "B: oom: needs 9 GiB"),
        (timed(**OOM), timed(), Verdict.NOT_COMPARABLE, "A: oom: needs 9 GiB"),
        (timed(), timed(latency=replace(samples(*[1.0] * 7), cache="cold")), Verdict.NOT_COMPARABLE, "another cache"),
        (timed(), timed(latency=replace(samples(*[1.0] * 7), clock="device")), Verdict.NOT_COMPARABLE, "another clock"),
    ],
)  # fmt: skip
def test_verdict_on_latency(a: Result, b: Result, verdict: Verdict, reason: str | None) -> None:
    change = latency(a, b)
    assert change.verdict is verdict
    assert (reason or "") in (change.reason or "")
    assert (change.reason is None) == (reason is None)


def test_what_one_process_each_says_comes_with_a_caution() -> None:
    many, single = launched(6), Samples.together([samples(*[1.0] * 7)])
    slower = replace(many, blocks=tuple((2.0,) for _ in many.blocks))
    for before, after, is_told in (
        (many, slower, False),
        (single, slower, True),
        (samples(*[1.0] * 7), slower, True),
        (many, samples(*[2.0] * 7), True),
        (samples(*[1.0] * 7), samples(*[1.0] * 7), False),  # no difference is told
    ):
        text = COMPARISON_FORMATS["markdown"](compare(one(timed(latency=before)), one(timed(latency=after))))
        assert (ONE_PROCESS in text) == is_told


def test_of_one_launch_with_few_rounds_more_rounds_are_wanted() -> None:
    few = Samples.together([samples(1.0, 1.0)])
    assert latency(timed(latency=few), timed(latency=launched(6))).reason.startswith("2 rounds give no 95 % interval")


def test_ratio_is_b_over_a_and_as_wide_as_both_intervals_allow() -> None:
    change = latency(timed(*rounds(1.0)), timed(*rounds(2.0)))
    assert change.ratio is not None
    assert (change.ratio.median, change.ratio.low, change.ratio.high) == pytest.approx((2.0, 1.96 / 1.02, 2.04 / 0.98))
    assert change.smallest_effect == pytest.approx(1.02 / 0.98)
    assert (change.a, change.b) == (1.0, 2.0)


def test_another_machine_is_not_comparable_but_counts_are() -> None:
    found = compare(one(timed()), one(timed(params=70_000), environment=OTHER))
    assert [c.verdict for c in found.changes] == [
        Verdict.NOT_COMPARABLE, Verdict.SAME, Verdict.MORE, Verdict.SAME, Verdict.SAME,
    ]  # fmt: skip
    assert [c.metric for c in found.changes] == ["latency", "memory", "params", "macs", "flop"]
    assert found.exit_code == 5


def test_slower_rows_are_no_failure() -> None:
    assert compare(one(timed(*rounds(1.0))), one(timed(*rounds(9.0)))).exit_code == 0


def test_rows_of_one_side_only() -> None:
    found = compare(one(timed(), row("conv2d", "torch")), one(timed(), timed(case=at(N=1))))
    assert [(c.subject, c.verdict) for c in found.of("latency")] == [
        ("involution", Verdict.SAME),
        ("conv2d", Verdict.ONLY_A),
        ("involution", Verdict.ONLY_B),
    ]
    assert found.exit_code == 0


@pytest.mark.parametrize("added", [True, False])
def test_a_backend_that_could_run_on_one_side_only_is_no_failure(added: bool) -> None:
    gone = timed(status=Status.UNAVAILABLE, reason="it runs on GPUs", latency=None)
    a, b = (gone, timed()) if added else (timed(), gone)
    found = compare(one(a), one(b))
    assert [change.verdict for change in found.of("latency")] == [Verdict.ONLY_B if added else Verdict.ONLY_A]
    assert found.exit_code == 0


def test_rows_that_neither_side_timed_have_no_verdict_on_latency() -> None:
    found = compare(one(timed(**OOM)), one(timed(**OOM)))
    assert found.of("latency") == []
    assert found.exit_code == 0


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (Memory(10 * 2**20, "vmhwm"), Memory(10 * 2**20 + 5000, "vmhwm"), Verdict.SAME),  # pages
        (Memory(10 * 2**20, "vmhwm"), Memory(12 * 2**20, "vmhwm"), Verdict.MORE),
        (Memory(1000, "cuda-allocator"), Memory(999, "cuda-allocator"), Verdict.LESS),
        (Memory(1000, "cuda-allocator"), Memory(1000, "vmhwm"), Verdict.NOT_COMPARABLE),
        (Memory(1000, "vmhwm"), Memory(None, None), Verdict.INCONCLUSIVE),
    ],
)
def test_memory(a: Memory, b: Memory, verdict: Verdict) -> None:
    (change,) = compare(one(timed(memory=a)), one(timed(memory=b))).of("memory")
    assert change.verdict is verdict


def test_rows_are_matched_on_the_machine_they_were_measured_on() -> None:
    here, there = sweep({"K": [3]}), sweep({"K": [3]}, environment=OTHER)
    both = ResultSet.merged([here, there], "report", "now")
    assert set(compare(both, both).counts) == {Verdict.SAME}
    found = compare(here, both)
    assert found.counts == {Verdict.SAME: 8, Verdict.ONLY_B: 9}  # triton, too, is on the other machine only


def test_versions_and_settings_that_differ_are_listed() -> None:
    environment = {
        **MACHINE,
        "versions": {"torch": "2.12.0", "numba": "0.68.1"},
        "cpu": {**MACHINE["cpu"], "load": 3.5},
    }
    found = compare(one(timed()), one(timed(), environment=environment, settings={"seed": 1}, tool_version="0.2"))
    assert found.differences == {
        "invbench": ("0.1.0", "0.2"), "versions.torch": ("2.13.0", "2.12.0"), "settings.seed": (0, 1),
    }  # fmt: skip
    for name in ("table", "markdown", "html"):
        assert "versions.torch" in COMPARISON_FORMATS[name](found)


PAIRS = {
    "sweep": (sweep({"K": [3, 7], "H": [7, 14]}), sweep({"K": [3, 5], "H": [7, 14]})),
    "machines": (sweep({"K": [3]}), sweep({"K": [3]}, environment=OTHER)),
    "failed": (sweep({"K": [3]}), failed(sweep({"K": [3]}), reason="<script>alert(1)</script> | \x1b[31m")),
    "empty": (one(), one()),
}


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_every_format_renders(pair: tuple[ResultSet, ResultSet], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = COMPARISON_FORMATS[name](compare(*pair))
    assert all(line.isprintable() for line in text.split("\n"))
    if name == "table":
        assert max(map(len, text.split("\n"))) <= 100
    if name in ("table", "markdown", "html"):
        assert "None" not in text
        assert "not in turns" in " ".join(text.split())
    if name == "html":
        assert "<script>alert" not in text


def test_there_is_a_comparison_in_every_format_of_text() -> None:
    assert set(COMPARISON_FORMATS) == set(FORMATS) - {"junit", "github"}  # in which rows pass or fail


def test_json_has_everything() -> None:
    found = compare(*PAIRS["sweep"])
    read = json.loads(COMPARISON_FORMATS["json"](found))
    assert read["kind"] == "comparison"
    assert len(read["changes"]) == len(found.changes)
    assert read["counts"] == {"no difference": 16, "only in A": 18, "only in B": 18}
    assert "not in turns" in read["method"]
    assert read["changes"][0]["case"]["K"] == 3


def test_csv_has_a_line_a_change() -> None:
    found = compare(*PAIRS["sweep"])
    lines = list(csv.DictReader(io.StringIO(COMPARISON_FORMATS["csv"](found)), strict=True))
    assert [line["verdict"] for line in lines] == [str(change.verdict) for change in found.changes]


def test_means_never_mix_modes_types_or_kinds() -> None:
    axes = {"mode": ["forward", "train"], "K": [3, 7]}
    text = verdict_sentence(compare(sweep(axes), sweep(axes)))
    assert text.count("geometric mean of") == 4
    assert "the involution rows (forward) are as fast as in A, geometric mean of 8." in text
