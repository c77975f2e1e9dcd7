"""How checks are told: the verdict on the whole, every format, the self-test, GitHub's summary and annotations."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from checks import (
    check,
    checked,
    counts,
    every_verdict,
    latency,
    named,
    passing,
    self_test,
    slower,
    with_series,
)
from expecttest import assert_expected_inline
from sweeps import OTHER, sweep
from test_page import HOSTILE, Page, complaints, in_browser, opened, requests, visible
from test_page import browser as browser  # a fixture
from test_report import no_terminal  # noqa: F401 -- a fixture
from test_results import document, row

from invbench.report import FORMATS
from invbench.report.actions import LARGEST, tell_actions
from invbench.report.data import render_parquet
from invbench.report.gate import overall, summary_sentence
from invbench.report.gate.grids import ratio_in_words
from invbench.report.gate.proof import self_test_sentence
from invbench.report.gate.text import render_checks_table
from invbench.results import ResultSet, Status
from invbench.results.check import Check, Side, Verdict
from invbench.results.quantities import Interval
from invbench.verdict import gate
from invbench.verdict.self_test import Outcome, groups
from invbench.verdict.self_test import self_test as proven

DOCUMENTS = {
    "passing": checked(passing()),
    "many": checked(passing(14)),
    "slower": checked(slower()),
    "every verdict": checked(with_series(every_verdict())),
    "nothing judged": checked(check()),
    "works": checked(*self_test()),
    "misbehaved": checked(*self_test("misbehaved")),
    "too noisy": checked(*self_test("too noisy")),
    "half a self-test": checked(self_test()[0], interrupted=True),
    "several": ResultSet.merged([checked(slower()), checked(*self_test())], "invbench report", "now"),
    "rows, too": ResultSet.merged(
        [checked(slower()), sweep({"K": [3, 7]}, environment=OTHER)], "invbench report", "now"
    ),
}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS.keys())


# --- The verdict on the whole ---

NUMBA = named("numba")
UNSURE = latency(NUMBA, verdict=Verdict.INCONCLUSIVE)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (check(), "ERROR: nothing was judged"),
        (
            check(latency(NUMBA)),
            "PASS: 1 of 1 row is not slower by more than 5 % (a slowdown of 6.1 % would have shown)",
        ),
        (
            passing(),
            "PASS: none of 4 rows is slower by more than 5 % (a slowdown of 6.1 % would have shown in the worst row)",
        ),
        (check(*counts(NUMBA)), "PASS: 1 of 1 row is unchanged; latency was not judged"),
        (slower(), "FAIL: 1 of 4 rows is slower by more than 5 %"),
        (check(latency(NUMBA, 1.2, Verdict.FAIL, change=None)), "FAIL: 1 of 1 row is slower"),
        (
            check(latency(NUMBA, 1.2, Verdict.FAIL), latency(named("naive"), 1.3, Verdict.FAIL, change=0.1)),
            "FAIL: 2 of 2 rows are slower by more than 5 % to 10 %",
        ),
        (check(latency(NUMBA), *counts(NUMBA, kept=2**21)), "FAIL: 1 of 1 row has more kept for the backward pass"),
        (check(latency(NUMBA, 0.8, Verdict.IMPROVED), latency(named("naive"))), "IMPROVED: 1 of 2 rows is faster"),
        (check(UNSURE), "INCONCLUSIVE: 1 of 1 row is inconclusive"),
        (check(UNSURE, inconclusive="fail"), "FAIL: 1 of 1 row is inconclusive, which counts as a failure"),
        (check(UNSURE, inconclusive="pass"), "PASS: 1 of 1 row is inconclusive, which counts as a pass"),
        (check(latency(NUMBA, None, Verdict.NEW)), "NEW: 1 of 1 row is new in head"),
        (
            replace(check(latency(NUMBA, None, Verdict.NEW)), kind="baseline"),
            "NEW: 1 row measured alone, to be compared with later",
        ),
        (
            check(latency(NUMBA), latency(named("naive"), None, Verdict.NEW)),
            "PASS: 1 of 2 rows is not slower by more than 5 % (a slowdown of 6.1 % would have shown); 1 is new in head",
        ),
        (
            every_verdict(),
            "ERROR: 1 of 9 rows could not be measured; 1 is slower by more than 5 %; 1 has a higher peak of memory; "
            "1 has more parameters; 1 has a worse backend; 1 is missing in head; 1 is not comparable; "
            "2 are inconclusive; 1 is faster; 1 has fewer FLOP; 1 is new in head",
        ),
    ],
)  # fmt: skip
def test_summary_sentence(found: Check, sentence: str) -> None:
    assert summary_sentence(found) == sentence
    assert sentence.startswith(f"{overall(found)}: ")


CODES = {Verdict.ERROR: 4, Verdict.FAIL: 1, Verdict.MISSING: 1, Verdict.NOT_COMPARABLE: 5, Verdict.INCONCLUSIVE: 3}


@pytest.mark.parametrize("inconclusive", [None, "pass", "fail"])
def test_the_overall_verdict_is_what_the_exit_code_says(inconclusive: str | None) -> None:
    for first in Verdict:
        for second in Verdict:
            both = check(
                latency(NUMBA, verdict=first), latency(named("naive"), verdict=second), inconclusive=inconclusive
            )
            assert CODES.get(overall(both), 0) == gate.exit_code([both]), (first, second)
    assert CODES[overall(check())] == gate.exit_code([check()])


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Interval(1.08, 1.06, 1.09, 3), "1.08x slower [1.06, 1.09]"),
        (Interval(0.8, 0.75, 1.0, 3), "1.25x faster [1.00, 1.33]"),
        (Interval(1.001, 0.99, 1.02, 3), "1.00x [0.990, 1.02]"),
    ],
)
def test_a_ratio_in_words_has_its_range_in_the_same_direction(ratio: Interval, words: str) -> None:
    assert ratio_in_words(ratio) == words


# --- The self-test ---


@pytest.mark.parametrize(
    ("outcome", "code", "sentence"),
    [
        (
            "works", 0,
            "The gate works here: identical code passed, +20 % was found; the smallest slowdown that this machine can "
            "see is 8.3 % (the worst row)",
        ),
        (
            "misbehaved", 4,
            "The gate misbehaved: +20 % was PASS in numba at K=3; do not trust its verdicts here",
        ),
        (
            "too noisy", 3,
            "Too noisy: identical code was INCONCLUSIVE in numba at K=7; the smallest slowdown that this machine can "
            "see is 31 % (the worst row); stop other programs, raise --budget, or take a machine of your own (invbench "
            "doctor)",
        ),
    ],
)  # fmt: skip
def test_outcome_of_a_self_test(outcome: str, code: int, sentence: str) -> None:
    found = self_test(outcome)
    assert proven(found).outcome is Outcome(outcome)
    assert proven(found).exit_code == code
    assert self_test_sentence(found) == sentence


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.PASS, Verdict.INCONCLUSIVE)])
def test_identical_code_must_pass(verdict: Verdict) -> None:
    same, injected = self_test()
    wrong = replace(same, findings=(*same.findings, latency(named("naive"), verdict=verdict)))
    assert proven((wrong, injected)).outcome is Outcome.MISBEHAVED
    assert f"identical code was {verdict} in naive" in self_test_sentence((wrong, injected))


@pytest.mark.parametrize("verdict", [v for v in Verdict if v not in (Verdict.FAIL, Verdict.INCONCLUSIVE)])
def test_a_slowdown_must_be_found(verdict: Verdict) -> None:
    same, injected = self_test()
    missed = replace(injected, findings=(*injected.findings, latency(named("naive"), verdict=verdict)))
    assert proven((same, missed)).outcome is Outcome.MISBEHAVED


def test_half_a_self_test_proves_nothing() -> None:
    same, injected = self_test()
    for half in ((same,), (injected,), (same, replace(injected, findings=())), (replace(same, findings=()), injected)):
        assert proven(half).exit_code == 4
        assert "the self-test is unfinished" in self_test_sentence(half)


def test_checks_of_several_documents_stay_apart() -> None:
    same, injected = self_test()
    assert list(groups([slower(), same, injected, same, slower()])) == [
        (slower(),), (same, injected), (same,), (slower(),)
    ]  # fmt: skip


# --- Formats ---


@documents
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_tells_checks(results: ResultSet, name: str) -> None:
    text = FORMATS[name](results)
    assert text or name == "csv"
    assert not text.endswith("\n")
    if name != "html":
        assert all(line.isprintable() for line in text.split("\n"))
    if name in ("table", "markdown"):
        assert "None" not in text
        words = " ".join(text.split())
        for each in results.checks:
            assert summary_sentence(each) in words or "self-test is unfinished" in words


@documents
def test_a_document_survives(results: ResultSet) -> None:
    assert ResultSet.from_json(FORMATS["json"](results)) == results


@documents
@pytest.mark.parametrize("width", [80, 100, 160])
def test_tables_are_as_wide_as_the_terminal(results: ResultSet, width: int) -> None:
    lines = render_checks_table(results, width).split("\n")
    assert max(map(len, lines)) <= width
    for finding in (f for each in results.checks for f in each.latencies):
        assert any(str(finding.verdict) == line.split()[-1] for line in lines if line.split()), finding.verdict


def test_the_table_is_coloured_by_verdict_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in render_checks_table(checked(slower()), 100)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    coloured = render_checks_table(checked(slower()), 100)
    assert re.search(r"\x1b\[1;31m *FAIL\x1b", coloured)
    assert re.search(r"\x1b\[32m *PASS\x1b", coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in render_checks_table(checked(slower()), 100)


def test_table_of_a_failure() -> None:
    assert (
        render_checks_table(checked(slower()), 100)
        == """\
head work tree (1a2b3c4d5e6f) against base v0.3 (0f3c1d2e4b5a)
2 points over K 3, 7: N=8 C=256 H=28 W=28 G=16, reduction=4, float32 channels_last, forward of the
layer, on cpu, 2 threads
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1
4 rows, 3 launches of fresh processes, 15 quads of blocks in turns, eager clock, hot cache, a change
is more than 5 % and the floor
floor: how far identical code differed here; visible: the smallest slowdown that would have shown

 K   backend       base      head                 head / base   floor   visible   verdict
 ────────────────────────────────────────────────────────────────────────────────────────
 3   numba      2.49 ms   2.49 ms         1.00x [0.990, 1.01]    1.2%      6.1%      PASS
 3   compiled   3.11 ms   3.11 ms         1.00x [0.990, 1.01]    1.2%      6.1%      PASS
 7   numba      2.49 ms   2.49 ms         1.00x [0.990, 1.01]    1.2%      6.1%      PASS
 7   compiled   3.11 ms   3.36 ms   1.08x slower [1.07, 1.09]    1.2%      6.1%      FAIL

* FAIL: compiled at K=7: +8.2% over 15 quads in 3 launches, +7.9% again in 3 fresh launches: slower
by more than 5.0%; a slowdown of 6.1% would have shown
* to do: make it fast again, or raise the threshold of this case in the profile's [check] if it is a
trade
* the same in all rows: memory, kept, params, flop, backend
FAIL: 1 of 4 rows is slower by more than 5 %"""
    )


def test_table_of_every_verdict_at_80_columns() -> None:
    assert (
        render_checks_table(checked(every_verdict()), 80)
        == """\
head work tree (1a2b3c4d5e6f) against base v0.3 (0f3c1d2e4b5a)
3 points over H=W 14, 28; K 3, 7: N=8 C=256 G=16, reduction=4, float32
channels_last, forward of the layer, on cpu, 2 threads
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1
9 rows, 3 launches of fresh processes, 15 quads of blocks in turns, eager clock,
hot cache, a change is more than 5 % and the floor, 81 s
floor: how far identical code differed here; visible: the smallest slowdown that
would have shown

 backend          head    head / base   floor   visible          verdict
 ───────────────────────────────────────────────────────────────────────
 H=W=14 K=3:
 numba         2.49 ms          1.00x    1.2%      6.1%             PASS

 H=W=14 K=7:
 numba         3.01 ms   1.21x slower    1.2%      6.1%             FAIL

 H=W=14 K=3:
 compiled      2.73 ms   1.14x faster    1.2%      6.1%         IMPROVED

 H=W=14 K=7:
 compiled      3.14 ms   1.01x slower    9.0%     14.2%     INCONCLUSIVE

 H=W=28 K=3:
 naive               -              -       -         -          MISSING
 unfold              -              -       -         -              NEW
 triton              -              -       -         -            ERROR
 conv2d              -              -       -         -   NOT-COMPARABLE
 conv2d-3x3    2.51 ms   1.01x slower    9.0%     14.2%     INCONCLUSIVE

* no room for base and ranges: --format markdown, csv or html has them

 H=W   K   backend    metric           base          head   change    verdict
 ────────────────────────────────────────────────────────────────────────────
 14    7   numba      memory       3.00 MiB      3.50 MiB     +17%       FAIL
 14    7   numba      params         67,472        67,473       +1       FAIL
 14    3   compiled   flop      997,097,472   997,097,471       -1   IMPROVED
 14    7   compiled   backend      compiled         naive        -       FAIL

* FAIL: numba at H=W=14 K=7: +21.0% over 15 quads in 3 launches, +20.4% again in
3 fresh launches: slower by more than 5.0%; a slowdown of 6.1% would have shown
* IMPROVED: compiled at H=W=14 K=3: -12.1% over 15 quads in 3 launches, -11.9%
again in 3 fresh launches; a slowdown of 6.1% would have shown
* INCONCLUSIVE: compiled at H=W=14 K=7 and conv2d-3x3 at H=W=28 K=3: +1.0% over
15 quads in 3 launches; identical code differed by 9.0%, so that less than 14.2%
would not have shown
* MISSING: naive at H=W=28 K=3: head has no naive
* NEW: unfold at H=W=28 K=3: base has no backend unfold
* ERROR: triton at H=W=28 K=3: RuntimeError:  [31mno kernel [0m <image> & | 100
% for this: card, and so on
* NOT-COMPARABLE: conv2d at H=W=28 K=3: another torch
* FAIL: numba at H=W=14 K=7, memory: memory changed
* FAIL: numba at H=W=14 K=7, params: params changed
* IMPROVED: compiled at H=W=14 K=3, flop: flop changed
* FAIL: compiled at H=W=14 K=7, backend: backend changed
* to do about FAIL (latency): make it fast again, or raise the threshold of this
case in the profile's [check] if it is a trade
* to do about INCONCLUSIVE (latency): stop other programs, raise --budget, or
take a machine of your own (invbench doctor)
* to do about MISSING (latency): or take it out of the profile
* to do about ERROR (latency): see the log
* to do about NOT-COMPARABLE (latency): measure both with the same one
* to do about FAIL (memory), FAIL (params) and FAIL (backend): accept it with
--update if it is meant
* the same in all rows: kept
* conv2d and conv2d-3x3: PyTorch's code alone, so that a change of it is the
machine's, or that of what is imported
* differs: versions.torch: "2.12.0" in base, "2.13.0" in head
ERROR: 1 of 9 rows could not be measured; 1 is slower by more than 5 %; 1 has a
higher peak of memory; 1 has more parameters; 1 has a worse backend; 1 is
missing in head; 1 is not comparable; 2 are inconclusive; 1 is faster; 1 has
fewer FLOP; 1 is new in head"""
    )


def test_table_of_a_self_test() -> None:
    assert (
        render_checks_table(checked(*self_test()), 120)
        == """\
Self-test: identical code, so that PASS is right
work tree (1a2b3c4d5e6f) against itself
2 points over K 3, 7: N=8 C=256 H=28 W=28 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2
threads
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1
2 rows, 3 launches of fresh processes, 15 quads of blocks in turns, eager clock, hot cache, a change is more than 5 %
and the floor
floor: how far identical code differed here; visible: the smallest slowdown that would have shown

 K   backend      base      head           head / base   floor   visible   verdict
 ─────────────────────────────────────────────────────────────────────────────────
 3   numba     2.49 ms   2.49 ms   1.00x [0.990, 1.01]    1.2%      6.1%      PASS
 7   numba     2.49 ms   2.49 ms   1.00x [0.990, 1.01]    1.2%      8.3%      PASS

PASS: none of 2 rows is slower by more than 5 % (a slowdown of 8.3 % would have shown in the worst row)

Self-test: head slowed down by 20 % on purpose, so that FAIL is right

 K   backend      base      head                 head / base   floor   visible   verdict
 ───────────────────────────────────────────────────────────────────────────────────────
 3   numba     2.49 ms   2.98 ms   1.20x slower [1.19, 1.21]    1.2%      6.1%      FAIL
 7   numba     2.49 ms   2.98 ms   1.20x slower [1.19, 1.21]    1.2%      6.1%      FAIL

* FAIL: numba at K=3 and numba at K=7: +20.0%, +20.0% again; a slowdown of 6.1% would have shown
FAIL: 2 of 2 rows are slower by more than 5 %

The gate works here: identical code passed, +20 % was found; the smallest slowdown that this machine can see is 8.3 %
(the worst row)"""
    )


def test_markdown_of_a_failure() -> None:
    assert_expected_inline(
        FORMATS["markdown"](checked(slower())),
        """\
**FAIL: 1 of 4 rows is slower by more than 5 %**

head work tree (1a2b3c4d5e6f) against base v0.3 (0f3c1d2e4b5a)  
2 points over K 3, 7: N=8 C=256 H=28 W=28 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads  
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1  
4 rows, 3 launches of fresh processes, 15 quads of blocks in turns, eager clock, hot cache, a change is more than 5 % and the floor  
floor: how far identical code differed here; visible: the smallest slowdown that would have shown

| K | backend | base | head | head / base | floor | visible | verdict |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| 3 | numba | 2.49 ms | 2.49 ms | 1.00x [0.990, 1.01] | 1.2% | 6.1% | PASS |
| 3 | compiled | 3.11 ms | 3.11 ms | 1.00x [0.990, 1.01] | 1.2% | 6.1% | PASS |
| 7 | numba | 2.49 ms | 2.49 ms | 1.00x [0.990, 1.01] | 1.2% | 6.1% | PASS |
| 7 | compiled | 3.11 ms | 3.36 ms | 1.08x slower [1.07, 1.09] | 1.2% | 6.1% | FAIL |

* FAIL: compiled at K=7: +8.2% over 15 quads in 3 launches, +7.9% again in 3 fresh launches: slower by more than 5.0%; a slowdown of 6.1% would have shown
* to do: make it fast again, or raise the threshold of this case in the profile's [check] if it is a trade
* the same in all rows: memory, kept, params, flop, backend""",  # noqa: E501, W291
    )


def test_markdown_folds_many_rows_that_pass() -> None:
    text = FORMATS["markdown"](checked(passing(14)))
    assert text.startswith("**PASS: none of 14 rows")
    assert "<details>\n<summary>14 rows that pass</summary>\n\n| K |" in text
    assert "<details>" not in FORMATS["markdown"](checked(passing(12)))
    mixed = check(*passing(14).findings, *slower().findings)
    shown, folded = FORMATS["markdown"](checked(mixed)).split("<details>")
    assert (shown.count("| FAIL |"), shown.count("| PASS |"), folded.count("| PASS |")) == (1, 0, 17)


def test_markdown_of_a_self_test_begins_with_its_outcome() -> None:
    text = FORMATS["markdown"](checked(*self_test()))
    assert text.startswith("**The gate works here")
    assert "### Self-test: head slowed down by 20 % on purpose, so that FAIL is right\n\nFAIL: 2 of 2 rows" in text


def test_github_of_every_verdict() -> None:
    assert_expected_inline(
        FORMATS["github"](checked(every_verdict())),
        """\
::error title=FAIL%3A numba at H=W=14 K=7%2C latency::+21.0%25 over 15 quads in 3 launches, +20.4%25 again in 3 fresh launches: slower by more than 5.0%25; a slowdown of 6.1%25 would have shown%0Amake it fast again, or raise the threshold of this case in the profile's [check] if it is a trade
::notice title=IMPROVED%3A compiled at H=W=14 K=3%2C latency::-12.1%25 over 15 quads in 3 launches, -11.9%25 again in 3 fresh launches; a slowdown of 6.1%25 would have shown
::warning title=INCONCLUSIVE%3A compiled at H=W=14 K=7%2C latency::+1.0%25 over 15 quads in 3 launches; identical code differed by 9.0%25, so that less than 14.2%25 would not have shown%0Astop other programs, raise --budget, or take a machine of your own (invbench doctor)
::error title=MISSING%3A naive at H=W=28 K=3%2C latency::head has no naive%0Aor take it out of the profile
::notice title=NEW%3A unfold at H=W=28 K=3%2C latency::base has no backend unfold
::error title=ERROR%3A triton at H=W=28 K=3%2C latency::RuntimeError:  [31mno kernel [0m <image> & | 100 %25 for this: card, and so on%0Asee the log
::warning title=NOT-COMPARABLE%3A conv2d at H=W=28 K=3%2C latency::another torch%0Ameasure both with the same one
::warning title=INCONCLUSIVE%3A conv2d-3x3 at H=W=28 K=3%2C latency::+1.0%25 over 15 quads in 3 launches; identical code differed by 9.0%25, so that less than 14.2%25 would not have shown%0Astop other programs, raise --budget, or take a machine of your own (invbench doctor)
::error title=FAIL%3A numba at H=W=14 K=7%2C memory::memory changed%0Aaccept it with --update if it is meant
::error title=FAIL%3A numba at H=W=14 K=7%2C params::params changed%0Aaccept it with --update if it is meant
::notice title=IMPROVED%3A compiled at H=W=14 K=3%2C flop::flop changed
::error title=FAIL%3A compiled at H=W=14 K=7%2C backend::backend changed%0Aaccept it with --update if it is meant""",  # noqa: E501
    )


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("passing", "::notice title=invbench check::PASS: none of 4 rows is slower by more than 5 %25"),
        ("nothing judged", "::error title=invbench check::ERROR: nothing was judged"),
        ("works", "::notice title=invbench check --self-test::The gate works here"),
        ("misbehaved", "::error title=invbench check --self-test::The gate misbehaved"),
        ("too noisy", "::warning title=invbench check --self-test::Too noisy"),
    ],
)
def test_github_has_one_line_where_no_row_is_to_be_shown(name: str, begins: str) -> None:
    (line,) = FORMATS["github"](DOCUMENTS[name]).split("\n")
    assert line.startswith(begins)


def test_github_of_rows() -> None:
    bad = {"latency": None, "reason": "50 %\r\n::error::x: y, z"}
    rows = [row("involution", name, status=Status(name), **bad) for name in ("mismatch", "oom", "timeout", "error")]
    fine = [row(), row("involution", "triton", status=Status.UNAVAILABLE, **bad)]
    lines = FORMATS["github"](document(*fine, *rows)).split("\n")
    assert [line.split("::")[1] for line in lines] == [
        f"error title=invbench%3A {name}%3A {name}" for name in ("mismatch", "oom", "timeout", "error")
    ]
    assert all(line.endswith("::50 %25%0D%0A::error::x: y, z") for line in lines)
    assert FORMATS["github"](document(*fine)) == "::notice title=invbench::2 rows, none of which failed"


@pytest.mark.parametrize(("inconclusive", "level"), [(None, "warning"), ("pass", "warning"), ("fail", "error")])
def test_inconclusive_rows_by_how_they_count(inconclusive: str | None, level: str) -> None:
    found = checked(check(UNSURE, inconclusive=inconclusive))
    assert FORMATS["github"](found).startswith(f"::{level} title=INCONCLUSIVE")
    (case,) = ElementTree.fromstring(FORMATS["junit"](found).encode()).iter("testcase")
    assert [child.tag for child in case] == ["failure" if inconclusive == "fail" else "skipped"]


def test_junit_of_a_failure() -> None:
    one = check(*(f for f in slower().findings if f.row.case.layer.K == 7 and f.metric in ("latency", "params")))
    assert_expected_inline(
        FORMATS["junit"](checked(one)),
        """\
<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="invbench">
  <testsuite name="invbench check: work tree against v0.3" timestamp="2026-01-02T03:04:05+00:00" tests="4" failures="1" errors="0" skipped="0">
    <testcase classname="involution/numba" name="N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads: latency" time="0.002485714" />
    <testcase classname="involution/compiled" name="N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads: latency" time="0.003361929">
      <failure message="FAIL: +8.2% over 15 quads in 3 launches, +7.9% again in 3 fresh launches: slower by more than 5.0%; a slowdown of 6.1% would have shown; make it fast again, or raise the threshold of this case in the profile's [check] if it is a trade" type="FAIL">FAIL: +8.2% over 15 quads in 3 launches, +7.9% again in 3 fresh launches: slower by more than 5.0%; a slowdown of 6.1% would have shown; make it fast again, or raise the threshold of this case in the profile's [check] if it is a trade</failure>
    </testcase>
    <testcase classname="involution/numba" name="N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads: params" />
    <testcase classname="involution/compiled" name="N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads: params" />
  </testsuite>
</testsuites>""",  # noqa: E501
    )


def suites(results: ResultSet) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(FORMATS["junit"](results).encode()))


@documents
def test_junit_counts_what_it_has(results: ResultSet) -> None:
    found = suites(results)
    assert len(found) == len(results.checks) + bool(results.results)
    for suite in found:
        outcomes = [[child.tag for child in case] for case in suite]
        assert suite.get("tests") == str(len(outcomes))
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert suite.get(name) == str(outcomes.count([tag]))
        names = [(case.get("classname"), case.get("name")) for case in suite]
        assert len(set(names)) == len(names)
    findings = sum(max(1, len(each.findings)) for each in results.checks)
    assert sum(map(len, found)) == findings + len(results.results)


def test_junit_outcomes_of_verdicts_and_statuses() -> None:
    (suite,) = suites(checked(every_verdict()))
    found = {
        case.get("classname"): [child.tag for child in case] for case in suite if "latency" in str(case.get("name"))
    }
    assert found["involution/naive"] == ["failure"]  # MISSING
    assert found["involution/triton"] == ["error"]
    assert found["involution/unfold"] == found["conv2d/torch"] == found["conv2d-3x3/torch"] == ["skipped"]
    rows = [row("involution", name, status=Status(name), reason="x", latency=None) for name in Status if name != "ok"]
    (suite,) = suites(document(row(), *rows))
    assert [[child.tag for child in case] for case in suite] == [
        [], ["skipped"], ["failure"], ["error"], ["error"], ["error"]
    ]  # fmt: skip
    assert suite[0].get("time") == "0.001000000"


def test_junit_of_a_self_test_expects_the_injected_failures() -> None:
    assert [suite.get("failures") for suite in suites(DOCUMENTS["works"])] == ["0", "0"]
    assert [suite.get("failures") for suite in suites(DOCUMENTS["misbehaved"])] == ["0", "1"]
    assert [suite.get("skipped") for suite in suites(DOCUMENTS["too noisy"])] == ["1", "0"]


def test_junit_is_xml_whatever_is_in_it() -> None:
    evil = f"{HOSTILE}]]>\x00\x08\x1b\ufffe\ud800"
    rows = document(row("involution", evil, status=Status.ERROR, reason=evil), command=evil, created=evil)
    found = checked(check(latency(named(evil), None, Verdict.ERROR, reason=evil, remedy=evil), base=Side(evil)))
    for suite in (*suites(rows), *suites(found)):
        (problem,) = suite.iter("error")
        assert "</script><script>alert(1)" in str(problem.get("message"))


# --- For programs ---


def test_csv_has_a_line_a_finding() -> None:
    found = every_verdict()
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](checked(found))), strict=True))
    assert [(line["metric"], line["verdict"]) for line in lines] == [(f.metric, str(f.verdict)) for f in found.findings]
    assert lines[0]["case.K"] == "3"
    assert lines[0]["check.head.name"] == "work tree"
    assert float(lines[1]["ratio.median"]) == 1.21
    assert json.loads(lines[1]["launches"])[1] == 1.21
    backend = next(line for line in lines if line["metric"] == "backend")
    assert (backend["base"], backend["base_name"]) == ("", "numba")


def test_csv_has_rows_and_findings() -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](DOCUMENTS["rows, too"])), strict=True))
    assert sum(bool(line["status"]) for line in lines) == 18
    assert sum(bool(line["verdict"]) for line in lines) == len(slower().findings)


@documents
def test_parquet_is_the_csv(results: ResultSet, tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "x.parquet").write_bytes(render_parquet(results))
    read = pd.read_parquet(tmp_path / "x.parquet")
    assert len(read) == len(results.results) + sum(len(each.findings) for each in results.checks)


# --- The page ---


@documents
def test_page_is_whole(results: ResultSet) -> None:
    page = Page(FORMATS["html"](results))
    assert page.open == []
    assert not {"src", "href", "onclick", "onerror"} & page.attributes
    for each in results.checks:
        assert summary_sentence(each) in page.text or len(results.checks) == 1


def test_everything_from_outside_is_text() -> None:
    side = Side(HOSTILE, HOSTILE, {"cpu": {"model": HOSTILE}})
    row_ = named(HOSTILE)
    found = check(
        latency(row_, 1.2, Verdict.FAIL, reason=HOSTILE, remedy=HOSTILE), *counts(row_, backend=HOSTILE),
        base=side, head=side, kind=HOSTILE, differences={HOSTILE: (HOSTILE, HOSTILE)}, seconds={HOSTILE: 1.0},
    )  # fmt: skip
    page = Page(FORMATS["html"](checked(found, command=HOSTILE)))
    assert page.tags.count("script") == Page(FORMATS["html"](checked(slower()))).tags.count("script")
    assert "img" not in page.tags


def test_a_page_without_bokeh_has_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    page = Page(FORMATS["html"](checked(every_verdict())))
    assert [len(table) for table in page.tables] == [10, 5]
    assert "pip install 'invbench[report]'" in page.text


@in_browser
@pytest.mark.parametrize("name", ["every verdict", "works", "rows, too", "nothing judged"])
def test_page_draws_without_complaints_or_requests(browser: Any, name: str, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS[name]), tmp_path)
    assert complaints(browser) == []
    assert requests(browser) <= {"file", "data", "blob"}


@in_browser
def test_filters_apply_to_table_and_plot(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](checked(every_verdict())), tmp_path, "#verdict=FAIL")
    assert [cells[-1] for cells in visible(browser)] == ["FAIL"]
    assert browser.execute_script("return figures[0].model.y_range.factors") == ["numba at H=W=14 K=7"]


# --- GitHub Actions ---


def test_elsewhere_nothing_is_told(tmp_path: Path) -> None:
    assert tell_actions(checked(slower()), {}) == []
    assert tell_actions(checked(slower()), {"GITHUB_ACTIONS": "false", "GITHUB_STEP_SUMMARY": ""}) == []


def test_on_actions_the_summary_grows_and_rows_are_annotated(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("# Before\n")
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(path)}
    (line,) = tell_actions(checked(slower()), environ)
    assert line.startswith("::error title=FAIL%3A compiled at K=7%2C latency::+8.2%25 over")
    assert path.read_text(encoding="utf-8") == f"# Before\n{FORMATS['markdown'](checked(slower()))}\n\n"


@pytest.mark.parametrize(
    ("environ", "begins"),
    [({}, "invbench: warning: "), ({"GITHUB_ACTIONS": "true"}, "::warning title=invbench::")],
    ids=["elsewhere", "on Actions"],
)
def test_a_summary_that_cannot_be_written_is_a_warning(environ: dict[str, str], begins: str, tmp_path: Path) -> None:
    path = tmp_path / "no" / "summary.md"
    *_, warning = tell_actions(checked(passing()), {**environ, "GITHUB_STEP_SUMMARY": str(path)})
    assert warning.startswith(f"{begins}GITHUB_STEP_SUMMARY")
    assert "cannot be written (No such file or directory)" in warning


def test_a_summary_that_would_be_too_large_has_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("x" * (LARGEST - 1000))
    tell_actions(checked(slower()), {"GITHUB_STEP_SUMMARY": str(path)})
    assert "**FAIL: 1 of 4 rows is slower by more than 5 %**\n\nThe tables are too large" in path.read_text()
    assert path.stat().st_size < LARGEST
