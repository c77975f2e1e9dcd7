"""``--compare attention``: more rows, of self-attention over the same window, told apart wherever rows are told."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from test_results import document, row

from invbench.attention import ATTENTION
from invbench.harness.settings import COMPARISONS, CONVOLUTION_NAMES, INVOLUTION, Settings, Subject
from invbench.report import FORMATS
from invbench.report.columns import name_of
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.report.headline import conclusion
from invbench.report.table import render_table
from invbench.report.web import plots
from invbench.results import ResultSet, Status
from invbench.spec import Scope
from invbench.verdict import points, with_ratios
from invbench.verdict.changes import compare

ROWS = [(name, backend) for name, backends in ATTENTION.items() for backend in backends]
NAMES = [name if backend == "torch" else f"{name} ({backend})" for name, backend in ROWS]
NO_FLEX = "flex: FlexAttention runs on GPUs: got cpu; use --device cuda on a machine with a GPU"


# --- Which rows there are ---


def test_the_rows_come_between_involution_and_the_convolutions() -> None:
    settings = Settings(backends=("naive", "numba"), custom=(Subject("mine", "user", "m:f"),), compare="attention")
    plain = Settings(backends=("naive", "numba"), custom=settings.custom)
    found = [(subject.name, subject.backend) for subject in settings.subjects()]
    convolutions = [(name, "torch") for name in CONVOLUTION_NAMES]
    assert found == [(INVOLUTION, "naive"), (INVOLUTION, "numba"), ("mine", "user"), *ROWS, *convolutions]
    assert [subject for subject in settings.subjects() if (subject.name, subject.backend) not in ROWS] == (
        plain.subjects()
    )
    assert CONVOLUTION_NAMES == ("conv2d", "conv2d-3x3", "depthwise", "separable")


def test_no_two_subjects_of_a_point_have_the_same_label() -> None:
    subjects = Settings(custom=(Subject("mine", "user", "m:f"),), compare="attention").subjects()
    labels = [subject.label for subject in subjects]
    assert len(set(labels)) == len(labels)
    assert {"local-attention", "local-attention (flex)", "mine", "numba", "conv2d"} <= set(labels)


def test_telling_knows_the_same_names_as_doing() -> None:
    assert tuple(ATTENTION) == points.ATTENTION
    assert COMPARISONS == {"attention": ATTENTION}


# --- How they are told ---


def results(flex: bool = False, slower: float = 1.0, attention: bool = True, **fields: Any) -> ResultSet:
    """A document as ``op --compare attention`` makes it; flex: on a machine where it runs."""
    seconds = {name: slower * 1e-3 * (n + 2) for n, name in enumerate(NAMES)}
    rows = [row(INVOLUTION, "numba", *[1e-3] * 6), row(INVOLUTION, "unfold", *[0.4] * 6)]
    for (subject, backend), name in zip(ROWS, NAMES, strict=True):
        if backend == "flex" and not flex:
            rows.append(row(subject, backend, status=Status.UNAVAILABLE, reason=NO_FLEX, latency=None))
        else:
            rows.append(row(subject, backend, *[seconds[name]] * 6))
    rows = [each for each in rows if attention or each.subject == INVOLUTION]
    rows += [row("conv2d", "torch", *[2e-2] * 6, chosen_layout="contiguous"), row("conv2d-3x3", "torch", *[4e-3] * 6)]
    settings = {"seed": 0, "compare": "attention"} if attention else {"seed": 0}
    return document(*with_ratios(rows, "conv2d"), settings=settings, **fields)


@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits_and_no_name_is_cut(width: int, flex: bool) -> None:
    text = render_table(results(flex), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for name in NAMES:
        rows_of_it = [line for line in lines if line.startswith(f" {name}  ")]
        assert len(rows_of_it) == {80: 3, 100: 2, 160: 1}[width], (name, text)


def test_two_backends_of_one_operator_have_a_row_and_a_ratio_each() -> None:
    found = {name_of(each): each for each in results(flex=True).results}
    torch_row, flex_row = found["local-attention"], found["local-attention (flex)"]
    for each, backend in ((torch_row, "torch"), (flex_row, "flex")):
        assert (each.subject, each.backend) == ("local-attention", backend)
        assert each.ratio.latency.median == pytest.approx(each.seconds / 2e-2)
    assert torch_row.seconds != flex_row.seconds


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "github"])  # which tells of failures only
def test_every_format_tells_the_two_apart(name: str) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    text = FORMATS[name](results(flex=True))
    text = text if isinstance(text, str) else text.decode(errors="replace")
    assert "local-attention" in text
    assert "flex" in text


def test_csv_has_the_backend_beside_the_subject() -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](results(flex=True)))))
    assert [(line["subject"], line["backend"]) for line in lines if line["subject"] in ATTENTION] == ROWS


def test_documents_survive_and_old_ones_load() -> None:
    for each in (results(flex=True), results(attention=False)):
        again = ResultSet.from_json(each.to_json())
        assert [r.name for r in again.results] == [r.name for r in each.results]
    assert json.loads(results().to_json())["settings"]["compare"] == "attention"


@pytest.mark.parametrize("name", ["table", "markdown", "html"])
def test_what_the_rows_are_stands_below_them_and_only_where_they_are(name: str) -> None:
    words = "a sum over the window"
    assert FORMATS[name](results()).count(words) == 1
    assert words not in FORMATS[name](results(attention=False))


def test_the_answer_compares_with_the_fastest_attention() -> None:
    assert "involution (numba) is 2.00x faster than the fastest attention (local-attention)." in conclusion(results())
    slow = conclusion(results(flex=True, slower=0.25))
    assert "involution (numba) is 2.00x slower than the fastest attention (local-attention)." in slow
    assert "attention" not in conclusion(results(attention=False))


def test_the_answer_says_what_is_not_alike_where_the_weight_is_given() -> None:
    found = results()
    rows = [replace(each, case=replace(each.case, scope=Scope.AGGREGATE)) for each in found.results]
    words = "which is timed with its projections, involution with its weight given."
    assert words in conclusion(replace(found, results=tuple(rows)))
    assert words not in conclusion(found)


def test_an_unavailable_row_says_why_and_shows_no_counts() -> None:
    text = FORMATS["markdown"](results())
    assert "| local-attention (flex) | unavailable | - | - |" in text
    assert f"local-attention (flex): unavailable: {NO_FLEX}" in text


def test_marks_of_a_page_differ_and_only_involutions_are_filled() -> None:
    styles = plots.styles(points.points_of(results(flex=True)))
    looks = {name: (style["color"], style["marker"]) for name, style in styles.items()}
    assert len(set(looks.values())) == len(looks)
    assert [name for name, style in styles.items() if style["filled"]] == ["numba", "unfold"]


def test_known_marks_are_all_different() -> None:
    assert set(NAMES) <= set(plots.KNOWN)
    assert len(set(plots.KNOWN.values())) == len(plots.KNOWN)


# --- Two documents ---


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
def test_compare_matches_each_row_with_its_own_backend(name: str) -> None:
    comparison = compare(results(flex=True), results(flex=True, slower=2.0))
    ratios = {(c.subject, c.backend): c.ratio.median for c in comparison.of("latency") if c.ratio}
    for key in ROWS:
        assert ratios[key] == pytest.approx(2.0)
    assert "flex" in COMPARISON_FORMATS[name](comparison)


def test_compare_with_a_document_from_before_there_were_such_rows() -> None:
    comparison = compare(results(attention=False), results())
    alone = [c for c in comparison.changes if c.subject in ATTENTION]
    assert {str(c.verdict) for c in alone if c.metric == "latency"} <= {"only in B", "not comparable"}
    for render in COMPARISON_FORMATS.values():
        assert render(comparison)
