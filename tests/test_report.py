"""Numbers as text: snapshots of the formats, number formatting in a table, and the sentence that answers."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from test_results import CASE, document, row

from invbench.report import FORMATS, SUFFIXES, format_for
from invbench.report.headline import conclusion
from invbench.report.listing import render_backends
from invbench.report.table import render_table
from invbench.report.text import count, faster_or_slower, seconds, seconds_with_interval, size, three_digits
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Interval, Memory
from invbench.spec import BASELINES, InvbenchError, LayerSpec, Mode, Scope
from invbench.verdict import with_ratios


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own terminal decides nothing."""
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def judged(*rows: Result, baseline: str | None = "conv2d", **fields: Any) -> ResultSet:
    """A document as ``op`` makes it: with roofline shares and ratios."""
    peaks = {"matmul_flop_per_s": 4e12, "copy_bytes_per_s": 1e11}
    shared = [replace(r, roofline_fraction=r.share_of_roofline(peaks)) for r in rows]
    return document(*with_ratios(shared, baseline), baseline=baseline, peaks=peaks, **fields)


def spread(median: float) -> list[float]:
    """Six rounds around a median, 2 % apart."""
    return [median * (1 + 0.01 * step) for step in (-2, -1, 0, 0, 1, 2)]


CONV = {"params": 3_211_264, "macs": 20_141_047_808, "flop": 40_282_095_616, "bytes_min": 77_070_336}
THREE = {"params": 160_563, "macs": 1_007_052_390, "flop": 2_014_104_780, "bytes_min": 15_204_352}
INVOLUTION = {"params": 67_472, "macs": 498_548_736, "flop": 997_097_472, "bytes_min": 13_114_944}


def told(name: str, results: ResultSet) -> str:
    """What a format says to a reader: of a page without its scripts, of which one is a library's."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", FORMATS[name](results), flags=re.DOTALL)


def everything() -> ResultSet:
    """One row of each status, and warnings of one row and of all."""
    load = "load average 3.5 on 2 cores: stop other programs, or trust only the ratios"
    noisy = "noisy: the interval is +-7% of the median; stop other programs or raise --budget"
    return judged(
        row("involution", "numba", *spread(0.00145), **INVOLUTION, warnings=(noisy, load)),
        row("involution", "naive", *spread(0.00998), **INVOLUTION, warnings=(load,)),
        row("involution", "triton", status=Status.UNAVAILABLE, reason="it runs on GPUs: got cpu", **INVOLUTION),
        row("involution", "unfold", status=Status.OOM, reason="needs about 9.1 GiB: 2.0 GiB are free", **INVOLUTION),
        row("involution", "compiled", status=Status.MISMATCH, reason="differs by 3.0e-01 | too much", **INVOLUTION),
        row("involution", "slow", status=Status.TIMEOUT, reason="no answer in 60 s", **INVOLUTION),
        row("involution", "broken", status=Status.ERROR, reason="RuntimeError: [red]<script>&\"'", **INVOLUTION),
        row("conv2d", "torch", *spread(0.03), **CONV, chosen_layout="channels_last", warnings=(load,)),
        row(
            "conv2d-3x3",
            "torch",
            *spread(0.00311),
            **THREE,
            memory=Memory(None, None),
            chosen_layout="contiguous",
            warnings=(load,),
        ),
    )


AT_80 = """\
N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the
layer, on cpu, 2 threads
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1; peaks 4000 GFLOP/s, 100 GB/s
6 rounds of interleaved blocks, eager clock, hot cache; stopped on precision;
seed 0

 backend            latency [95 %]      vs conv2d   GFLOP/s   GB/s   roofline
 ────────────────────────────────────────────────────────────────────────────
 numba        1.45 ms [1.42, 1.48]   20.7x faster       688   9.04      17.2%
 naive        9.98 ms [9.78, 10.2]   3.01x faster      99.9   1.31       2.5%
 triton                unavailable              -         -      -          -
 unfold                        oom              -         -      -          -
 compiled                 mismatch              -         -      -          -
 slow                      timeout              -         -      -          -
 broken                      error              -         -      -          -
 conv2d       30.0 ms [29.4, 30.6]          1.00x      1343   2.57      33.6%
 conv2d-3x3   3.11 ms [3.05, 3.17]   9.65x faster       648   4.89      16.2%


 backend           peak memory             params               FLOP
 ───────────────────────────────────────────────────────────────────
 numba        3.00 MiB (1.00x)   67.5 k (0.0210x)    997 M (0.0248x)
 naive        3.00 MiB (1.00x)   67.5 k (0.0210x)    997 M (0.0248x)
 triton                      -                  -                  -
 unfold                      -   67.5 k (0.0210x)    997 M (0.0248x)
 compiled                    -   67.5 k (0.0210x)    997 M (0.0248x)
 slow                        -   67.5 k (0.0210x)    997 M (0.0248x)
 broken                      -   67.5 k (0.0210x)    997 M (0.0248x)
 conv2d       3.00 MiB (1.00x)     3.21 M (1.00x)     40.3 G (1.00x)
 conv2d-3x3                  -    161 k (0.0500x)   2.01 G (0.0500x)

* triton: unavailable: it runs on GPUs: got cpu
* unfold: oom: needs about 9.1 GiB: 2.0 GiB are free
* compiled: mismatch: differs by 3.0e-01 | too much
* slow: timeout: no answer in 60 s
* broken: error: RuntimeError: [red]<script>&"'
* the faster layout: conv2d channels_last, conv2d-3x3 contiguous
* warning: numba: noisy: the interval is +-7% of the median; stop other programs
or raise --budget
* warning: load average 3.5 on 2 cores: stop other programs, or trust only the
ratios
Here involution (numba) is 20.7x faster than nn.Conv2d 7x7 and 2.14x faster than
nn.Conv2d 3x3, at 0.0248x the FLOP and 1.00x the peak memory of conv2d."""


NAMES = ["numba", "naive", "triton", "unfold", "compiled", "slow", "broken", "conv2d", "conv2d-3x3"]


def test_table_at_80_columns() -> None:
    assert render_table(everything(), 80) == AT_80


AT_160 = """\
N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1; peaks 4000 GFLOP/s, 100 GB/s
6 rounds of interleaved blocks, eager clock, hot cache; stopped on precision; seed 0

 backend            latency [95 %]      vs conv2d   GFLOP/s   GB/s   roofline        peak memory             params               FLOP
 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 numba        1.45 ms [1.42, 1.48]   20.7x faster       688   9.04      17.2%   3.00 MiB (1.00x)   67.5 k (0.0210x)    997 M (0.0248x)
 naive        9.98 ms [9.78, 10.2]   3.01x faster      99.9   1.31       2.5%   3.00 MiB (1.00x)   67.5 k (0.0210x)    997 M (0.0248x)
 triton                unavailable              -         -      -          -                  -                  -                  -
 unfold                        oom              -         -      -          -                  -   67.5 k (0.0210x)    997 M (0.0248x)
 compiled                 mismatch              -         -      -          -                  -   67.5 k (0.0210x)    997 M (0.0248x)
 slow                      timeout              -         -      -          -                  -   67.5 k (0.0210x)    997 M (0.0248x)
 broken                      error              -         -      -          -                  -   67.5 k (0.0210x)    997 M (0.0248x)
 conv2d       30.0 ms [29.4, 30.6]          1.00x      1343   2.57      33.6%   3.00 MiB (1.00x)     3.21 M (1.00x)     40.3 G (1.00x)
 conv2d-3x3   3.11 ms [3.05, 3.17]   9.65x faster       648   4.89      16.2%                  -    161 k (0.0500x)   2.01 G (0.0500x)

* triton: unavailable: it runs on GPUs: got cpu
* unfold: oom: needs about 9.1 GiB: 2.0 GiB are free
* compiled: mismatch: differs by 3.0e-01 | too much
* slow: timeout: no answer in 60 s
* broken: error: RuntimeError: [red]<script>&"'
* the faster layout: conv2d channels_last, conv2d-3x3 contiguous
* warning: numba: noisy: the interval is +-7% of the median; stop other programs or raise --budget
* warning: load average 3.5 on 2 cores: stop other programs, or trust only the ratios
Here involution (numba) is 20.7x faster than nn.Conv2d 7x7 and 2.14x faster than nn.Conv2d 3x3, at 0.0248x the FLOP and 1.00x the peak memory of conv2d."""  # noqa: E501


def test_table_at_160_columns() -> None:
    assert render_table(everything(), 160) == AT_160


@pytest.mark.parametrize("name", ["table", "markdown", "html"])
def test_without_a_baseline_nothing_is_compared(name: str) -> None:
    results = judged(row("involution", "numba", *spread(0.002), **INVOLUTION), baseline=None)
    text = told(name, results)
    assert "vs none" not in text
    assert "faster" not in text.replace("The fastest", "")


def test_markdown() -> None:
    assert_expected_inline(
        FORMATS["markdown"](everything()),
        """\
**Here involution (numba) is 20.7x faster than nn.Conv2d 7x7 and 2.14x faster than nn.Conv2d 3x3, at 0.0248x the FLOP and 1.00x the peak memory of conv2d.**

N=8 C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads  
A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1; peaks 4000 GFLOP/s, 100 GB/s  
6 rounds of interleaved blocks, eager clock, hot cache; stopped on precision; seed 0

| backend | latency [95 %] | vs conv2d | GFLOP/s | GB/s | roofline | peak memory | params | FLOP |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| numba | 1.45 ms [1.42, 1.48] | 20.7x faster | 688 | 9.04 | 17.2% | 3.00 MiB (1.00x) | 67.5 k (0.0210x) | 997 M (0.0248x) |
| naive | 9.98 ms [9.78, 10.2] | 3.01x faster | 99.9 | 1.31 | 2.5% | 3.00 MiB (1.00x) | 67.5 k (0.0210x) | 997 M (0.0248x) |
| triton | unavailable | - | - | - | - | - | - | - |
| unfold | oom | - | - | - | - | - | 67.5 k (0.0210x) | 997 M (0.0248x) |
| compiled | mismatch | - | - | - | - | - | 67.5 k (0.0210x) | 997 M (0.0248x) |
| slow | timeout | - | - | - | - | - | 67.5 k (0.0210x) | 997 M (0.0248x) |
| broken | error | - | - | - | - | - | 67.5 k (0.0210x) | 997 M (0.0248x) |
| conv2d | 30.0 ms [29.4, 30.6] | 1.00x | 1343 | 2.57 | 33.6% | 3.00 MiB (1.00x) | 3.21 M (1.00x) | 40.3 G (1.00x) |
| conv2d-3x3 | 3.11 ms [3.05, 3.17] | 9.65x faster | 648 | 4.89 | 16.2% | - | 161 k (0.0500x) | 2.01 G (0.0500x) |

* triton: unavailable: it runs on GPUs: got cpu
* unfold: oom: needs about 9.1 GiB: 2.0 GiB are free
* compiled: mismatch: differs by 3.0e-01 | too much
* slow: timeout: no answer in 60 s
* broken: error: RuntimeError: [red]<script>&"'
* the faster layout: conv2d channels_last, conv2d-3x3 contiguous
* warning: numba: noisy: the interval is +-7% of the median; stop other programs or raise --budget
* warning: load average 3.5 on 2 cores: stop other programs, or trust only the ratios""",  # noqa: E501, W291
    )


# --- What holds for any results ---


def widest() -> ResultSet:
    """The widest cells that a measurement can have: long names, slow and costly subjects, every part of the title."""
    layer = LayerSpec(2048, 11, 128, 2, 3, 16, "replicate")
    case = replace(CASE, N=1024, H=1280, W=1280, layer=layer, dtype="bfloat16", mode=Mode.BACKWARD, threads=128)
    counts = {"case": case, "params": 987_654_321, "macs": 10**12, "flop": 4 * 10**12, "bytes_min": 9 * 10**11}
    slow, peak = [123.456, 124.567, 125.678, 126.789, 127.89, 128.9], Memory(123_456_789_012, "vmhwm")
    small = {**counts, "params": 98_765, "flop": 4 * 10**12, "bytes_min": 10**11, "memory": Memory(2**30, "vmhwm")}
    warning = "noisy: the interval is +-12% of the median; stop other programs or raise --budget"
    return judged(
        row("involution", "compiled", *slow, **counts, memory=peak, warnings=(warning,)),
        row("conv2d-3x3", "torch", *(0.00123 * s for s in slow), **small),
        row("separable", "torch", *(0.01 * s for s in slow), **counts, memory=peak, chosen_layout="channels_last"),
        baseline="conv2d-3x3",
    )


def interrupted() -> ResultSet:
    """A run that Ctrl-C ended before anything was timed."""
    return judged(row(status=Status.ERROR, reason="interrupted before its first block was done"), interrupted=True)


DOCUMENTS = {
    "everything": everything(),
    "widest": widest(),
    "interrupted": interrupted(),
    "no baseline": judged(row(), row("conv2d", "torch"), baseline=None),
    "no peaks, unknown machine": document(row(), peaks=None, environment={}),
}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS.keys())


@documents
@pytest.mark.parametrize("width", [80, 100, 131, 132, 160])
def test_table_fits_and_is_whole(results: ResultSet, width: int) -> None:
    lines = render_table(results, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    assert "…" not in "".join(lines)
    words = " ".join(lines).split()
    for result in results.results:
        assert (result.backend if result.subject == "involution" else result.subject) in words


@documents
@pytest.mark.parametrize("name", FORMATS)
def test_no_format_writes_control_characters_or_python(results: ResultSet, name: str) -> None:
    text = told(name, results)
    assert all(line.isprintable() for line in text.split("\n"))
    assert not text.endswith("\n")  # whoever writes it ends the line
    if name != "json":
        assert "None" not in text
        assert "nan" not in text.split()


@pytest.mark.parametrize("name", FORMATS)
def test_control_characters_of_a_library_are_not_passed_on(name: str) -> None:
    # Compilers colour what they say, and the first line of it becomes a reason.
    results = judged(row(status=Status.ERROR, reason="RuntimeError: \x1b[31merror\x1b[0m: \x07bell\ttab\x08"))
    text = told(name, results)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "error" in text


@pytest.mark.parametrize("baseline", [name for name in BASELINES if name != "none"])
def test_heading_names_the_baseline(baseline: str) -> None:
    results = judged(row(), row(baseline, "torch"), baseline=baseline)
    for name in ("table", "markdown", "html"):
        assert f"vs {baseline}" in FORMATS[name](results)


def test_interrupted_results_say_so() -> None:
    for name in ("table", "markdown", "html"):
        text = " ".join(FORMATS[name](interrupted()).split())
        assert "interrupted: the rows hold what was measured until then" in text
    assert json.loads(FORMATS["json"](interrupted()))["interrupted"] is True


@pytest.mark.parametrize("name", ["table", "markdown", "html"])
def test_every_reason_and_warning_is_told_once(name: str) -> None:
    text = " ".join(told(name, everything()).replace("\\|", "|").split())
    for words in ("it runs on GPUs: got cpu", "2.0 GiB are free", "too much", "no answer in 60 s", "noisy: "):
        assert text.count(words) == 1, words
    assert text.count("load average 3.5") == 1


# --- Formats for programs ---


def test_json_is_the_document() -> None:
    assert ResultSet.from_json(FORMATS["json"](everything())) == everything()


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """A nested row as dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for part, v in value.items() for key, leaf in flat(v, f"{name}.{part}" if name else part).items()}


def test_csv_has_a_line_a_row_and_parses_back() -> None:
    results = everything()
    text = FORMATS["csv"](results)
    assert len(text.split("\n")) == 1 + len(results.results)
    read = list(csv.DictReader(io.StringIO(text), strict=True))
    for line, result in zip(read, results.results, strict=True):
        stored = flat(result.to_dict())
        stored["warnings"] = "; ".join(stored["warnings"])
        del stored["latency.blocks" if result.latency else "latency"]
        for name, value in stored.items():
            if value is None:
                assert line.get(name, "") == "", name
            elif isinstance(value, float):
                assert float(line[name]) == value, name
            else:
                assert line[name] == str(value), name


def test_csv_has_one_column_for_one_thing() -> None:
    # Rows without a latency must not add a column "latency" beside "latency.median".
    header = FORMATS["csv"](everything()).split("\n", 1)[0].split(",")
    assert [name for name in header if any(other.startswith(f"{name}.") for other in header)] == []
    assert len(set(header)) == len(header)


def test_markdown_has_as_many_cells_in_each_row() -> None:
    lines = [line for line in FORMATS["markdown"](everything()).split("\n") if line.startswith("|")]
    assert len(lines) == 2 + len(everything().results)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_every_suffix_has_a_format() -> None:
    assert set(SUFFIXES.values()) == set(FORMATS) - {"github"}  # which is for a job's log
    for suffix, name in SUFFIXES.items():
        assert format_for(Path(f"results{suffix.upper()}")) == name


@pytest.mark.parametrize("path", ["results", "results.xlsx", ".json", "a.json/b"])
def test_unknown_suffix_is_refused(path: str) -> None:
    with pytest.raises(InvbenchError, match=r"--output.*\.json.*--format"):
        format_for(Path(path))


# --- Numbers ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12345"),
        (100, "100"),
        (99.96, "100"),
        (99.94, "99.9"),
        (10, "10.0"),
        (9.996, "10.0"),
        (9.994, "9.99"),
        (1, "1.00"),
        (0.999, "0.999"),
        (0.1234, "0.123"),
        (0.0996, "0.0996"),
        (0.0123, "0.0123"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@given(st.floats(1e-5, 1e9))
def test_three_digits_are_what_the_name_says(value: float) -> None:
    text = three_digits(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3600.0, "3600 s"),
        (1.0, "1.00 s"),
        (0.9999, "1.00 s"),  # 999.9 ms is 1000 ms in three digits, which is 1.00 s
        (0.9994, "999 ms"),
        (1.0e-3, "1.00 ms"),
        (0.9996e-3, "1.00 ms"),
        (0.9994e-3, "999 us"),
        (12.34e-6, "12.3 us"),
        (1.0e-6, "1.00 us"),
        (12.3e-9, "0.0123 us"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize("value", [0.0, 1e-15])
def test_nearly_no_time_is_still_a_time(value: float) -> None:
    number, unit = seconds(value).split()
    assert float(number) == pytest.approx(value * 1e6, abs=1e-4)
    assert unit == "us"


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(1.234e-3, 1.2e-3, 1.271e-3, 6), "1.23 ms [1.20, 1.27]"),
        (Interval(1.01e-3, 0.95e-3, 1.1e-3, 6), "1.01 ms [0.950, 1.10]"),
        (Interval(0.98, 0.9, 1.02, 6), "980 ms [900, 1020]"),
    ],
)
def test_seconds_with_interval_has_one_unit(interval: Interval, text: str) -> None:
    assert seconds_with_interval(interval) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (5184, "5.06 KiB"),
        (2**20 - 1, "1.00 MiB"),  # not 1024 KiB
        (2**20, "1.00 MiB"),
        (6.5 * 2**20, "6.50 MiB"),
        (2**30 - 1, "1.00 GiB"),
        (2**30, "1.00 GiB"),
        (3 * 2**40, "3072 GiB"),
    ],
)
def test_size(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (117, "117"),
        (9999, "9999"),
        (10_000, "10.0 k"),
        (39_488, "39.5 k"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),  # not 1000 k
        (1_000_000, "1.00 M"),
        (999_960_000, "1.00 G"),
        (1_000_000_000, "1.00 G"),
        (40_282_095_616, "40.3 G"),
        (16 * 10**14, "1600000 G"),
    ],
)
def test_count(value: float, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "1.00x"),
        (0.9951, "1.00x"),
        (1.0049, "1.00x"),
        (0.5, "2.00x faster"),
        (2.4, "2.40x slower"),
        (0.99, "1.01x faster"),
        (0.01, "100x faster"),
        (123.4, "123x slower"),
    ],
)
def test_faster_or_slower(ratio: float, text: str) -> None:
    assert faster_or_slower(ratio) == text


# --- The answer ---


def answer(involution: float, conv: float | None = 1.0, three: float | None = 1.0, K: int = 7, **fields: Any) -> str:
    case = replace(CASE, layer=LayerSpec(256, K, 16))
    rows = [row("involution", "numba", *spread(involution), case=case, flop=50, memory=Memory(400, "vmhwm"))]
    for subject, median in (("conv2d", conv), ("conv2d-3x3", three)):
        if median is not None:
            rows.append(row(subject, "torch", *[median] * 6, case=case, flop=1000, memory=Memory(200, "vmhwm")))
    return conclusion(judged(*rows, **fields))


def test_conclusion_faster_and_slower() -> None:
    assert_expected_inline(
        answer(0.5, 1.25, 0.25),
        """Here involution (numba) is 2.50x faster than nn.Conv2d 7x7 and 2.00x slower than nn.Conv2d 3x3, at 0.0500x the FLOP and 2.00x the peak memory of conv2d.""",  # noqa: E501
    )


def test_conclusion_not_distinguishable() -> None:
    text = answer(1.0)
    for kind in ("7x7", "3x3"):
        assert f"to 1.02x the time) from nn.Conv2d {kind}" in text
    assert "faster" not in text
    assert "slower" not in text


def test_conclusion_without_a_baseline() -> None:
    assert_expected_inline(
        answer(0.5, baseline=None),
        """Here involution (numba) is 2.00x faster than nn.Conv2d 7x7 and 2.00x faster than nn.Conv2d 3x3.""",
    )


def test_conclusion_with_one_convolution() -> None:
    assert_expected_inline(
        answer(0.5, three=None),
        """Here involution (numba) is 2.00x faster than nn.Conv2d 7x7, at 0.0500x the FLOP and 2.00x the peak memory of conv2d.""",  # noqa: E501
    )


def test_conclusion_without_convolutions() -> None:
    assert_expected_inline(
        answer(0.5, None, None), """The fastest involution here is numba; no convolution was timed beside it."""
    )


@pytest.mark.parametrize(
    "results", [interrupted(), document(row("conv2d", "torch"))], ids=["failed", "only a convolution"]
)
def test_conclusion_when_no_involution_was_timed(results: ResultSet) -> None:
    assert conclusion(results) == "No involution was timed, so there is nothing to conclude."


def test_conclusion_names_each_convolution_once() -> None:
    # With K=3 the two rows are the same convolution.
    assert answer(0.5, K=3).count("nn.Conv2d 3x3") == 1


@pytest.mark.parametrize("ratio", [0.996, 1.004])
def test_conclusion_of_a_small_but_certain_difference_reads_as_a_sentence(ratio: float) -> None:
    rows = [row("involution", "numba", *[ratio] * 6), row("conv2d", "torch", *[1.0] * 6)]
    text = conclusion(judged(*rows))
    assert "x than" not in text
    assert "is as fast as nn.Conv2d 7x7" in text


def test_conclusion_takes_the_fastest_involution() -> None:
    rows = [row("involution", name, *spread(t)) for name, t in (("naive", 3.0), ("numba", 2.0), ("unfold", 2.5))]
    assert "involution (numba) is 2.00x slower" in conclusion(judged(*rows, row("conv2d", "torch", *[1.0] * 6)))


def test_conclusion_does_not_credit_unknown_memory() -> None:
    rows = [row(memory=Memory(None, None)), row("conv2d", "torch")]
    assert "memory" not in conclusion(judged(*rows))


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("mode", Mode)
def test_title_says_what_was_timed(mode: Mode, scope: Scope) -> None:
    case = replace(CASE, mode=mode, scope=scope, layer=LayerSpec(64, 5, 4, 2, 3, 8, "circular"))
    text = render_table(judged(row(case=case)), 160).split("\n")[0]
    for words in ("N=8 C=64 H=28 W=28 K=5 G=4", "stride=2", "dilation=3", "circular", f"{mode} of the {scope}", "cpu"):
        assert words in text
    assert ("reduction=8" in text) == (scope is Scope.LAYER)  # the bare operator ignores it


# --- Lists ---

BACKENDS_HERE = [
    {"name": "fast", "summary": "quick", "available": ["cpu", "cuda"], "unavailable": {}},
    {"name": "none", "summary": "absent", "available": [], "unavailable": {"cpu": "why not " * 20, "cuda": "no GPU"}},
]


def test_list_of_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert_expected_inline(
        render_backends(BACKENDS_HERE, as_json=False),
        """\
fast  runs on cpu, cuda: quick
none  unavailable here: absent
      not on cpu: why not why not why not why not why not why not why not why
        not why not why not why not why not why not why not why not why not why
        not why not why not why not
      not on cuda: no GPU""",
    )


def test_list_of_backends_as_json() -> None:
    assert json.loads(render_backends(BACKENDS_HERE, as_json=True)) == BACKENDS_HERE
