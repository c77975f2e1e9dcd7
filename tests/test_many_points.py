"""Documents of many points as text: title, answer, notes, tables."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from expecttest import assert_expected_inline
from sweeps import OTHER, at, failed, rounds, sweep
from test_report import no_terminal  # noqa: F401 -- a fixture
from test_results import document, row, samples

from invbench.report import BINARY, FORMATS
from invbench.report.headline import conclusion, machine, method, sentences, title
from invbench.report.machines import beside
from invbench.report.notes import notes
from invbench.report.table import render_table
from invbench.results import Result, ResultSet, Status

GRID = {"K": [3, 5, 7], "H": [14, 28], "N": [1, 8]}


def two_machines() -> ResultSet:
    return ResultSet.merged([sweep({"K": [3, 7]}), sweep({"K": [3, 7]}, environment=OTHER)], "report", "now")


DOCUMENTS = {
    "grid": sweep(GRID),
    "one axis": sweep({"H": [7, 14, 28]}),
    "four axes": sweep({"K": [3, 7], "H": [14, 28], "C": [64, 256], "layout": ["contiguous", "channels_last"]}),
    "modes and types": sweep({"mode": ["forward", "train"], "dtype": ["float32", "bfloat16"], "K": [3, 7]}),
    "two machines": two_machines(),
    "all failed": failed(sweep(GRID)),
    "no baseline": sweep({"K": [3, 7]}, baseline=None),
}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS.keys())


def test_title_has_what_is_fixed_and_the_axes() -> None:
    assert_expected_inline(
        title(sweep(GRID)),
        """12 points over N 1, 8; H=W 14, 28; K 3, 5, 7: C=256 G=16, reduction=4, float32 channels_last, forward of the layer, on cpu, 2 threads""",  # noqa: E501
    )
    assert_expected_inline(
        title(sweep({"mode": ["forward", "train"], "threads": [1, 2], "N": range(1, 11)})),
        """40 points over N 1 to 10 (10 values); mode forward, train; threads 1, 2: C=256 H=28 W=28 K=7 G=16, reduction=4, float32 channels_last, of the layer, on cpu""",  # noqa: E501
    )


def test_both_machines_are_told() -> None:
    assert_expected_inline(
        machine(two_machines()),
        """A CPU, 2 cores: A CPU, 2 cores, AVX512; torch 2.13.0; numba 0.68.1; peaks 150 GFLOP/s, 30.0 GB/s | Another CPU, 8 cores: Another CPU, 8 cores, AVX512; torch 2.13.0; numba 0.68.1; peaks 150 GFLOP/s, 30.0 GB/s""",  # noqa: E501
    )


def test_peaks_and_rounds_of_several_runs_are_ranges() -> None:
    one = sweep({"K": [3]}, peaks={"matmul_flop_per_s": 1.4e11, "copy_bytes_per_s": 3e10})
    more = sweep({"K": [5]})
    longer = replace(more, results=tuple(replace(r, latency=None) if r.backend == "naive" else r for r in more.results))
    text = machine(ResultSet.merged([one, longer], "report", "now"))
    assert "peaks 140 to 150 GFLOP/s, 30.0 GB/s" in text
    short = row("involution", "numba", 1.0, 1.0, case=at(N=2))
    assert method(document(row(case=at(N=1)), short)).startswith("2 to 6 rounds of")


def versus(*ratios: float, subject: str = "conv2d") -> list[Result]:
    """One point for each ratio of numba to a convolution."""
    found = []
    for N, ratio in enumerate(ratios, 1):
        found += [
            row("involution", "numba", *rounds(ratio), case=at(N=N)),
            row(subject, "torch", *[1.0] * 7, case=at(N=N)),
        ]
    return found


def test_conclusion_counts_points_and_means_over_them() -> None:
    assert_expected_inline(
        conclusion(document(*versus(0.5, 0.4, 2.0, 1.0))),
        """Here the fastest involution (numba) beats nn.Conv2d 7x7 at 2 of 4 points (geometric mean 1.26x faster, from 2.00x slower to 2.50x faster; slower at 1; not distinguishable at 1).""",  # noqa: E501
    )


def test_conclusion_names_both_convolutions_and_all_that_were_fastest() -> None:
    rows = [*versus(0.5, 0.25), *versus(2.0, 2.0, subject="conv2d-3x3")[1::2]]
    rows += [row("involution", "compiled", *rounds(0.2), case=at(N=2)), row("involution", "numba", case=at(N=3))]
    assert_expected_inline(
        conclusion(document(*rows)),
        """Here the fastest involution (numba at 2 and compiled at 1) beats nn.Conv2d 7x7 at 2 of 2 points (geometric mean 3.16x faster, from 2.00x faster to 5.00x faster), and nn.Conv2d 3x3 at 2 of 2 points (geometric mean 3.16x faster, from 2.00x faster to 5.00x faster); 1 point without both.""",  # noqa: E501
    )


def test_conclusion_says_where_too_few_rounds_tell_nothing_certain() -> None:
    rows = [
        row(subject, case=at(N=N), latency=samples(1.0, 1.0)) for N in (1, 2) for subject in ("involution", "conv2d")
    ]
    assert "fewer than 6 rounds or launches at 2" in conclusion(document(*rows))


@pytest.mark.parametrize("axis", ["mode", "dtype", "scope"])
def test_what_may_not_be_averaged_is_a_sentence_each(axis: str) -> None:
    values = {"mode": ["forward", "train"], "dtype": ["float32", "float64"], "scope": ["layer", "aggregate"]}[axis]
    found = sentences(sweep({axis: values, "K": [3, 7]}))
    assert [sentence.split(",")[0] for sentence in found] == [f"With {axis} {value}" for value in values]
    assert all("at 2 of 2 points" in sentence for sentence in found)


def test_machines_are_never_averaged() -> None:
    assert [sentence.split(" the fastest")[0] for sentence in sentences(two_machines())] == [
        "With machine A CPU, 2 cores,",
        "With machine Another CPU, 8 cores,",
    ]


def test_conclusion_where_nothing_was_timed() -> None:
    assert "no involution was timed at any of 12 points" in conclusion(DOCUMENTS["all failed"])
    assert "no convolution was timed beside it" in conclusion(document(*versus(1.0, 2.0)[::2]))


def test_a_note_that_holds_at_many_points_is_one_line() -> None:
    assert_expected_inline(
        "\n".join(notes(sweep(GRID))),
        """\
triton: unavailable at all 12 points: it runs on GPUs: got cpu
the faster layout: conv2d contiguous; conv2d-3x3 contiguous; depthwise contiguous; separable contiguous
warning: 12 rows of naive at all 12 points: load average 3.5 on 2 cores: stop other programs, or trust only the ratios""",  # noqa: E501
    )


def test_notes_that_differ_by_a_number_are_one_and_say_where() -> None:
    rows = []
    for index, case in enumerate(at(K=K, N=N) for K in (3, 7) for N in (1, 2, 4, 8)):
        noisy = (f"noisy: the interval is +-{index}.5% of the median",) if case.layer.K == 7 or case.N == 1 else ()
        rows.append(row(case=case, warnings=noisy))
        gone = {"status": Status.OOM, "reason": f"needs {index} GiB"} if case.layer.K == 7 else {}
        rows.append(row("involution", "unfold", case=case, **gone, chosen_layout=("a", "b")[case.N > 4]))
    assert_expected_inline(
        "\n".join(notes(document(*rows))),
        """\
unfold: oom at 4 of 8 points, all with K=7: such as needs 4 GiB
the faster layout: unfold a at 6 and b at 2
warning: 5 rows of numba at 5 of 8 points: such as noisy: the interval is +-0.5% of the median""",
    )


def test_few_points_are_named() -> None:
    rows = [row(case=at(N=N, K=K), warnings=("hot",) if N == K == 3 else ()) for N in (1, 3) for K in (3, 7)]
    assert notes(document(*rows)) == ["warning: 1 row at N=3 K=3: hot"]


@documents
@pytest.mark.parametrize("width", [80, 100, 132, 200])
def test_table_fits_and_says_what_had_no_room(results: ResultSet, width: int) -> None:
    text = render_table(results, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    headings = next(line for line in lines if " backend " in line)
    told = " ".join(text.split()).partition("no room for")[2].partition(":")[0]
    assert all((heading in headings) != (heading in told) for heading in ("latency", "GFLOP/s", "GB/s", "peak memory"))
    assert sum("numba " in line for line in lines) >= len(results.points())


def test_a_point_is_named_on_its_first_line_only() -> None:
    lines = render_table(sweep({"K": [3, 7]}), 200).splitlines()
    named = [line for line in lines if line.startswith((" 3 ", " 7 "))]
    assert [line.split()[1] for line in named] == ["triton", "triton", "numba", "numba"]  # and the line for each point


@documents
def test_markdown_has_a_line_a_point_and_a_line_a_row(results: ResultSet) -> None:
    lines = [line for line in FORMATS["markdown"](results).split("\n") if line.startswith("|")]
    told, parts = beside(results), results.by_machine()
    side_by_side = 2 + len(told.grid.rows) if told else 0
    assert len(lines) == len(results.points()) + len(results.results) + 4 * max(1, len(parts)) + side_by_side
    assert len({line.replace("\\|", "").count("|") for line in lines}) <= 2 + bool(parts)


@documents
def test_csv_is_flat(results: ResultSet) -> None:
    read = list(csv.DictReader(io.StringIO(FORMATS["csv"](results)), strict=True))
    assert [line["case.K"] for line in read] == [str(result.case.layer.K) for result in results.results]


@documents
def test_parquet_is_the_csv_with_types(results: ResultSet, tmp_path: Path) -> None:
    import pandas as pd

    huge = replace(results.results[-1], macs=2**62 + 1)
    data = BINARY["parquet"](replace(results, results=(*results.results, huge)))
    (tmp_path / "x.parquet").write_bytes(data)
    read = pd.read_parquet(tmp_path / "x.parquet")
    assert len(read) == len(results.results) + 1
    assert list(read["macs"])[-1] == 2**62 + 1
    assert str(read["case.K"].dtype) == "Int64"
    assert list(read["subject"])[:1] == ["involution"]
    if "latency.median" in read:
        assert [None if pd.isna(v) else v for v in read["latency.median"]][: len(results.results)] == [
            r.seconds for r in results.results
        ]


def test_an_empty_document_is_told_in_every_format() -> None:
    for name, render in FORMATS.items():
        assert render(document()) or name == "csv"
