"""Rows of networks that were trained: judged over seeds, told in every format, alone and beside other rows."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import TITLE, folded, imagenet, trained
from sweeps import sweep
from test_page import (  # noqa: F401 -- browser is a fixture
    HOSTILE,
    Page,
    browser,
    choose,
    complaints,
    in_browser,
    opened,
    requests,
    source,
    visible,
)

from invbench.report import FORMATS
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.report.data import render_parquet
from invbench.report.table import render_table
from invbench.report.training import accuracy
from invbench.report.training_answer import training_sentences
from invbench.results import ResultSet, Status
from invbench.verdict.changes import compare
from invbench.verdict.training import Spread, over_seeds, trained_pairs

ALL_ROWS = [name for name in FORMATS if name != "github"]  # which has only those that failed
PEOPLE = ("table", "markdown", "html")
DOCUMENTS = {
    "five seeds": trained(),
    "one seed": trained(seeds=1),
    "stopped in the second seed": trained(seeds=2, done=3),
    "stopped in the first seed": trained(seeds=1, done=3),
    "stopped before the first epoch": trained(seeds=1, done=0),
    "two data sets": ResultSet.merged([trained(), trained("fashion-mnist", "fashion-mnist")], "report", "now"),
}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS.keys())


def mixed() -> ResultSet:
    return ResultSet.merged([sweep({"K": [3, 7]}), imagenet(depths=(50,)), trained()], "report", "now")


def failed(results: ResultSet, reason: str = "OutOfMemoryError") -> ResultSet:
    """The same, the last network not trained."""
    gone = {"latency": None, "memory": None, "training": None, "ratio": None, "reason": reason}
    return replace(results, results=(*results.results[:-1], replace(results.results[-1], status=Status.ERROR, **gone)))


def told(name: str, results: ResultSet) -> str:
    text = FORMATS[name](results)
    return Page(text).text if name == "html" else text


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


# --- Judging ---


def test_one_value_has_no_standard_deviation() -> None:
    assert Spread.of([]) is None
    assert Spread.of([90.0]) == Spread(90.0, None, 1)
    assert Spread.of([90.0, 92.0]) == Spread(91.0, pytest.approx(2**0.5), 2)


def test_curves_are_summarised_over_the_seeds_that_came_so_far() -> None:
    first, second, third = over_seeds([(10.0, 20.0, 30.0), (14.0, 26.0), ()])
    assert (first.mean, first.low, first.high, first.count) == (12, 10, 14, 2)
    assert (second.mean, second.count) == (23, 2)
    assert (third.mean, third.low, third.high, third.count) == (30, 30, 30, 1)
    assert over_seeds([]) == []


def test_each_network_is_beside_the_one_it_shares_something_with() -> None:
    pairs = trained_pairs(trained().results)
    assert [(each.row.subject, each.base.subject, each.pair) for each in pairs] == [
        ("mnist-inv", "mnist-conv", "report"),
        ("mnist-inv-params", "mnist-conv", "params"),
        ("mnist-inv-macs", "mnist-conv", "macs"),
    ]
    assert pairs[0].params == pytest.approx(544 / 34_826)
    assert pairs[1].macs == pytest.approx(9.1 / 4.5)
    assert pairs[0].step
    assert pairs[0].step.median == pytest.approx(3.9 / 20)


# --- Formats ---


def test_the_answer_is_a_sentence_for_each_network() -> None:
    assert training_sentences(trained()) == [
        "On digits, mnist-inv reaches 87.0 % (+-0.6, 5 seeds) where mnist-conv reaches 96.8 % (+-0.6), with 0.0156x "
        "the parameters, and trains 5.13x faster a step.",
        "On digits, at equal parameters, mnist-inv-params reaches 95.9 % (+-0.6, 5 seeds) where mnist-conv reaches "
        "96.8 % (+-0.6), with 2.02x the multiply-adds, and trains 1.55x slower a step.",
        "On digits, at equal multiply-adds, mnist-inv-macs reaches 95.5 % (+-0.6, 5 seeds) where mnist-conv reaches "
        "96.8 % (+-0.6), with 0.603x the parameters, and trains as fast.",
    ]
    alone = replace(trained(), results=trained().results[1:2])
    assert "nothing to conclude" in training_sentences(alone)[0]


def test_the_answer_of_an_interrupted_training_says_how_far_it_came() -> None:
    first = training_sentences(DOCUMENTS["stopped in the first seed"])[0]
    assert "mnist-inv reached 70.1 % after 3 of 15 epochs where mnist-conv reached 77.1 % after 3 of 15" in first
    assert "mnist-inv was not trained" in training_sentences(DOCUMENTS["stopped before the first epoch"])[0]
    assert "mnist-inv-macs was not trained where mnist-conv reaches" in training_sentences(failed(trained()))[-1]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("five seeds", "87.0 % +- 0.6 (5)"),
        ("one seed", "86.6 % (1)"),
        ("stopped in the second seed", "86.6 % (1 of 2)"),
        ("stopped in the first seed", "70.1 % after 3 of 15 epochs"),
        ("stopped before the first epoch", "-"),
    ],
)
def test_an_accuracy_says_of_how_many_seeds_it_is(name: str, cell: str) -> None:
    assert accuracy(DOCUMENTS[name].results[1]) == cell


@pytest.mark.parametrize("name", PEOPLE)
def test_every_format_for_people_says_what_there_is(name: str) -> None:
    text = " ".join(told(name, trained()).split())
    for words in (
        TITLE, "trained on digits", "15 epochs", "5 seeds", "2 threads", "mnist-inv-params (numba)", "equal in",
        "87.0 % +- 0.6 (5)", "544 (0.0156x)", "9.10 M (2.02x)", "702 ms", "3.90 ms [3.82, 3.98]", "5.13x faster",
        "29.1 MiB (0.497x)", "98.97 % on MNIST", "96.82 %", "34,826", "65.26 s", "502.75 s", "Table 1 of Salem et al.",
        "published on MNIST, trained here on digits: the two accuracies cannot be compared", "blocks of an epoch",
    ):  # fmt: skip
        assert words in text, words
    assert "None" not in text


def test_what_the_data_set_is_comes_first() -> None:
    assert told("table", trained()).splitlines()[0] == f"Data set: {TITLE}"
    assert told("markdown", trained()).splitlines()[0] == f"**Data set: {TITLE}**  "
    untitled = replace(trained(), settings={})  # as in a document of several
    assert told("table", untitled).startswith("Data set digits: scikit-learn's handwritten digits: not MNIST")
    assert "cannot be compared" not in told("table", trained("mnist"))


@documents
@pytest.mark.parametrize("name", ALL_ROWS)
def test_every_document_renders(name: str, results: ResultSet) -> None:
    assert ResultSet.from_json(results.to_json()) == results
    for each in (results, failed(results)):
        assert "mnist-inv-params" in told(name, each)


@documents
@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_cell_is_folded_on_narrow_terminals(results: ResultSet, width: int) -> None:
    text = render_table(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert not folded(text)


def test_curves_stay_in_the_json(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](trained()))))
    assert not [name for name in rows[0] if "curves" in name or "losses" in name or "blocks" in name]
    assert float(rows[1]["accuracy.mean"]) == pytest.approx(87.0, abs=0.1)
    assert json.loads(rows[1]["accuracy.values"])[0] == pytest.approx(86.55, abs=0.01)
    assert float(rows[0]["published.train_seconds.gpu"]) == 65.26
    assert rows[0]["case.data_set"] == "digits"
    assert render_parquet(trained())[:4] == b"PAR1"


@pytest.mark.parametrize("name", ALL_ROWS)
def test_a_document_of_all_kinds_has_all(name: str) -> None:
    text = told(name, mixed())
    for words in ("conv2d-3x3", "resnet50", "mnist-inv-macs"):
        assert words in text
    if name in PEOPLE:
        for words in (
            "nn.Conv2d",
            "rednet50 (numba) is 1.15x faster",
            "On digits, mnist-inv reaches",
            "98.97 % on MNIST",
        ):
            assert words in " ".join(text.split())


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
def test_two_documents_are_compared(name: str) -> None:
    assert "mnist-inv (numba)" in COMPARISON_FORMATS[name](compare(trained(), trained())) or name in ("json", "csv")


def test_everything_from_outside_is_text() -> None:
    first = replace(trained().results[1], pair=HOSTILE, published={"source": HOSTILE, "top1": 1.0, "data_set": HOSTILE})
    hostile = replace(
        failed(trained(), HOSTILE), results=(trained().results[0], first), settings={"data_set_title": HOSTILE}
    )
    page = Page(FORMATS["html"](hostile))
    assert page.tags.count("script") == Page(FORMATS["html"](trained())).tags.count("script")
    assert page.text.count(HOSTILE.replace("\u2028", " ")) >= 3


# --- On a page ---


@in_browser
def test_the_page_draws_a_curve_for_each_network(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](trained()), tmp_path)
    assert complaints(browser) == []
    assert requests(browser) <= {"file", "data"}
    assert [len(lines) for lines in source(browser, "lines", "xs")] == [4, 4]
    assert [len(xs) for xs in source(browser, "bands", "xs")[0]] == [30] * 4
    assert source(browser, "marks", "told")[0][14].startswith("96.8 %, 96.0 % to 97.6 % over 5 seeds")
    choose(browser, "[data-filter=subject]", "mnist-inv")
    assert [len(lines) for lines in source(browser, "lines", "xs")] == [1, 1]
    assert [cells[0] for cells in visible(browser)] == ["mnist-inv (numba)"]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@in_browser
@pytest.mark.parametrize("name", ["stopped before the first epoch", "stopped in the first seed", "two data sets"])
def test_pages_draw_without_complaints(browser: Any, name: str, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](DOCUMENTS[name]), tmp_path)
    assert complaints(browser) == []
    assert len(visible(browser)) == len(DOCUMENTS[name].results)


@in_browser
def test_a_page_of_all_kinds_draws_all_and_filters_its_operators(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](mixed()), tmp_path)
    assert complaints(browser) == []
    counts = [len(visible(browser, kind)) for kind in ("row", "network", "training")]
    assert counts == [18, 6, 4]
    choose(browser, "[data-filter=backend]", "numba")
    assert [len(visible(browser, kind)) for kind in ("row", "network", "training")] == [2, 6, 4]
    assert [len(texts) for texts in source(browser, "labels", "text")] == [2, 2, 2]
    assert [len(xs) for xs in source(browser, "bands", "xs")] == [4, 4]
    assert complaints(browser) == []
