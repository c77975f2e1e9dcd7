"""Rows of whole networks: their case, their document, ratios and ceiling, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from networks import NAMES, attention, detection, folded, imagenet, small
from test_page import (  # noqa: F401 -- browser is a fixture
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
from test_results import document, row, samples

from invbench.report import FORMATS
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.report.data import render_parquet
from invbench.report.headline import title_of
from invbench.report.network_answer import network_sentences
from invbench.report.table import render_table
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Breakdown
from invbench.spec import FREE, InvbenchError, Mode, NetworkCase, Regime, case_from_dict
from invbench.verdict import exit_code
from invbench.verdict.changes import Verdict, compare
from invbench.verdict.networks import (
    best_regimes,
    counts_as_published,
    family_of,
    scores_of,
    whole_points,
    with_accuracy,
    with_network_ratios,
)

ALL_ROWS = [name for name in FORMATS if name != "github"]  # which has only those that failed
CASE = NetworkCase(2, 64, 64, threads=2)
COUNTS = {"params": 15_500_000, "macs": 2_700_000_000, "flop": 5_400_000_000, "macs_mmcv": 2_720_000_000}


def network(subject: str, backend: str, median: float, regime: Regime = Regime.EAGER, **fields: Any) -> Result:
    latency = samples(*(median * (1 + 0.01 * step) for step in (-2, -1, 0, 0, 1, 2)))
    defaults = {"case": CASE, "baseline": "resnet50", "latency": latency, **COUNTS, "params_trainable": 15_500_000}
    return Result(subject, backend, regime=regime, **{**defaults, **fields})


def pair(**fields: Any) -> ResultSet:
    """A network, its ceiling and its counterpart in both regimes."""
    published = {"source": "a README", "top1": 78.35, "params": 15_540_000, "macs_mmcv": 2_710_000_000}
    parts = {"1x1 convolutions": 0.05, "involution": 0.04}
    rows = [
        network("rednet50", "numba", 0.100, published=published, breakdown=Breakdown(0.11, parts, "a profiler")),
        network("rednet50", FREE, 0.080, params=14_000_000, macs=2_400_000_000, flop=4_800_000_000),
        network("resnet50", "torch", 0.120, params=25_500_000),
        network("rednet50", "numba", 0.095, Regime.COMPILED),
        network("rednet50", FREE, 0.076, Regime.COMPILED),
        network("resnet50", "torch", 0.090, Regime.COMPILED),
    ]
    return document(
        *with_network_ratios(rows), command="invbench compare-models", baseline=None, **{"peaks": None, **fields}
    )


def told(name: str, results: ResultSet) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", FORMATS[name](results), flags=re.DOTALL)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


# --- Case and document ---


def test_a_case_survives_and_is_told_from_an_operators() -> None:
    flat = CASE.to_dict()
    assert flat["scope"] == "network"
    assert json.loads(json.dumps(flat)) == flat
    assert case_from_dict(flat) == CASE
    assert case_from_dict(row().case.to_dict()) == row().case


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"N": 0}, "N must be a whole number"),
        ({"stem_kernel_size": 4}, "stem_kernel_size must be odd.*got 4"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"mode": "sideways"}, "mode must be one of"),
    ],
)
def test_bad_cases_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvbenchError, match=message):
        replace(CASE, **fields)
    with pytest.raises(InvbenchError, match="got none for N"):
        NetworkCase.from_dict({k: v for k, v in CASE.to_dict().items() if k != "N"})


def test_a_document_survives() -> None:
    results = pair()
    assert ResultSet.from_json(results.to_json()) == results
    first = json.loads(results.to_json())["results"][0]
    assert (first["subject"], first["backend"], first["regime"]) == ("rednet50", "numba", "eager")
    assert (first["baseline"], first["macs_mmcv"], first["params_trainable"]) == ("resnet50", 2_720_000_000, 15_500_000)
    assert first["published"]["top1"] == 78.35
    assert first["memory"] is None
    assert first["images_per_s"] == pytest.approx(20)
    assert first["flop_per_s"] == pytest.approx(2 * 5.4e9 / 0.1)  # counts are those of one image
    assert sum(first["breakdown"]["parts"].values()) == pytest.approx(first["breakdown"]["total"])
    assert first["breakdown"]["parts"]["rest"] == pytest.approx(0.02)


def test_an_operators_row_has_none_of_the_new_fields() -> None:
    assert not {"regime", "published", "macs_mmcv", "ceiling", "breakdown", "images_per_s"} & set(row().to_dict())


def test_rows_of_both_regimes_are_one_point() -> None:
    results = pair()
    assert [len(point) for point in results.points()] == [6]
    mixed = replace(results, results=(*results.results, row()))
    assert len(mixed.networks().results) == 6
    assert mixed.operators().results == (row(),)


# --- Judging ---


def test_ratios_are_within_a_regime() -> None:
    rows = {r.name: r for r in pair().results}
    eager, compiled = rows["rednet50", "numba", "eager"], rows["rednet50", "numba", "folded and compiled"]
    assert eager.ratio.latency.median == pytest.approx(100 / 120)
    assert compiled.ratio.latency.median == pytest.approx(95 / 90)
    assert rows["resnet50", "torch", "eager"].ratio.latency.median == 1
    assert eager.ratio.params == pytest.approx(15.5 / 25.5)


def test_the_ceilings_share_is_its_time_over_the_rows() -> None:
    rows = {r.name: r for r in pair().results}
    assert rows["rednet50", "numba", "eager"].ceiling.median == pytest.approx(0.8)
    assert rows["rednet50", FREE, "eager"].ceiling is None
    assert rows["resnet50", "torch", "eager"].ceiling is None


def test_each_side_counts_in_its_faster_regime() -> None:
    (best,) = best_regimes(pair().results)
    assert (best.row.seconds, best.base.seconds) == (0.095, 0.090)
    assert best.ratio.median == pytest.approx(95 / 90)
    assert best.ceiling.median == pytest.approx(76 / 90)


def test_a_baseline_that_was_not_measured_gives_no_ratio() -> None:
    (alone,) = with_network_ratios([network("rednet50", "numba", 0.1)])
    assert alone.ratio is None
    assert best_regimes([alone]) == []
    assert exit_code([alone]) == 0


# --- Formats ---


def test_the_answer_is_a_sentence() -> None:
    (sentence,) = network_sentences(pair())
    assert sentence == (
        "rednet50 (numba) is 1.06x slower than resnet50 (folded and compiled); "
        "with involution free it would be 1.18x faster."
    )
    assert "nothing to conclude" in network_sentences(replace(pair(), results=pair().results[2:3]))[0]


@pytest.mark.parametrize("name", ["table", "markdown", "html"])
def test_every_format_for_people_says_what_there_is(name: str) -> None:
    text = told(name, pair())
    for words in (
        "N=2 H=64 W=64", "stem 7x7", "forward of the network", "rednet50 (numba), eager", "rednet50 (free), folded",
        "1.20x faster", "80.0%", "78.35 %", "a README", "ceiling", "1x1 convolutions", "50.0 ms (45.5%)", "the rest",
        "whole call", "rednet50 (numba) is 1.06x slower than resnet50",
    ):  # fmt: skip
        assert words in text, words
    assert "None" not in text


def test_a_narrow_table_is_folded_in_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    text = told("table", pair())
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("rednet50 (numba), folded and compiled") == 2  # speed, and cost below it


def test_csv_and_parquet_have_the_new_columns(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](pair()))))
    assert rows[0]["regime"] == "eager"
    assert rows[0]["case.scope"] == "network"
    assert float(rows[0]["ceiling.median"]) == pytest.approx(0.8)
    assert float(rows[0]["breakdown.parts.involution"]) == 0.04
    assert render_parquet(pair())[:4] == b"PAR1"


@pytest.mark.parametrize("name", ALL_ROWS)
def test_a_document_of_both_kinds_has_both(name: str) -> None:
    results = pair()
    both = replace(results, results=(*results.results, row(), row("conv2d", "torch", 0.01)))
    text = FORMATS[name](both)
    assert "rednet50" in text
    assert "conv2d" in text


@pytest.mark.parametrize("name", FORMATS)
def test_several_points_and_failures_render(name: str) -> None:
    bad = network("rednet26", "numba", 1, status=Status.ERROR, reason="RuntimeError: <b>", latency=None, case=CASE)
    train = [replace(r, case=replace(CASE, mode=Mode.TRAIN, N=4)) for r in pair().results]
    text = FORMATS[name](document(*pair().results, bad, *train, baseline=None))
    assert "rednet26" in text


@pytest.mark.parametrize("name", ALL_ROWS)
def test_counts_alone_render(name: str) -> None:
    rows = with_network_ratios([network("rednet50", "numba", 1, latency=None)])
    text = told(name, document(*rows, baseline=None, peaks=None))
    assert "rednet50" in text
    if name in ("table", "markdown", "html"):
        assert "nothing was timed" in text


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
def test_two_documents_are_compared_regime_by_regime(name: str) -> None:
    before = pair()
    faster = replace(before.results[3], latency=samples(*[0.05] * 6))
    after = replace(before, results=(*before.results[:3], faster, *before.results[4:]))
    comparison = compare(before, after)
    (changed,) = [c for c in comparison.of("latency") if c.verdict is Verdict.FASTER]
    assert changed.regime is Regime.COMPILED
    text = COMPARISON_FORMATS[name](comparison)
    assert "rednet50" in text
    assert "folded and compiled" in text


# --- Memory, counts and what is published ---


def test_memory_and_counts_are_columns_where_somebody_measured_them() -> None:
    text = told("markdown", imagenet(modes=(Mode.TRAIN,), depths=(50,)))
    for words in ("peak memory", "410 MiB (1.00x)", "kept for backward", "308 MiB", "activations", "77.8 M"):
        assert words in text, words
    assert not {"kept for backward", "activations", "trainable"} & set(
        re.findall(r"[a-z ]+[a-z]", told("table", pair()))
    )
    frozen = replace(pair().results[0], params_trainable=15_200_000)
    assert "| trainable |" in told("markdown", document(frozen, baseline=None))


def test_counts_are_told_once_for_each_network_and_size() -> None:
    text = told("markdown", imagenet(N=(1, 8), sides=(128, 224), modes=tuple(Mode)[::2], depths=(50,)))
    counted = text.partition("Counted, of one image")[2].partition("As published")[0]
    lines = [line.split("|")[1:3] for line in counted.splitlines()[4:] if line]
    names = ("rednet50", "rednet50 (free)", "resnet50")
    assert [[n.strip(), s.strip()] for n, s in lines] == [[n, f"{s}x{s}"] for s in (128, 224) for n in names]


def test_what_is_published_stands_beside_what_is_counted() -> None:
    text = told("markdown", imagenet(sides=(128, 224), depths=(50,)))
    assert "| network | top-1 | params | counted | macs as mmcv | counted |" in text
    assert "| rednet50 | 78.35 % | 15.54 M | 15.54 M | 2.69 G | 2.717 G |" in text  # at the size that it is for only
    assert "| resnet50 | 76.80 % | - | 25.56 M | - | 4.161 G |" in text
    assert "top-1 is as published, on ImageNet, by the sources below: nobody measured it here" in text
    assert "published macs are of 224x224 images" not in text
    assert "published macs are of 224x224 images" in told("table", imagenet(sides=(128,), depths=(50,))).replace(
        "\n", " "
    )


def test_an_accuracy_on_another_data_set_says_so() -> None:
    text = told("table", small())
    assert "98.97 % on MNIST" in text
    assert "88.82 % on CIFAR-10" in text
    assert "on ImageNet" not in text
    assert list(with_accuracy(small().results)) == list(NAMES.values())
    mixed = replace(small(), results=(*small().results, *imagenet(depths=(50,)).results))
    assert "on ImageNet where no other data set is named" in told("markdown", mixed)


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]


def test_scores_and_what_figures_are_of_stand_beside_the_counts() -> None:
    text = told("markdown", detection(static=True))
    assert "| network | box AP | mask AP | macs as mmcv | counted |" in text
    assert "| mask_rcnn_rednet50 | 39.5 % | 35.1 % | 231 G | 231.4 G |" in text
    assert "| faster_rcnn_resnet50 | 37.7 % | - | 207 G | 207.4 G |" in text
    for words in (
        "box AP and mask AP on COCO are as published, by the sources below: nobody measured them here",
        "published macs of faster_rcnn_rednet50 and mask_rcnn_rednet50 are of a 3x3 stem: they differ from those "
        "counted with another",
        "faster_rcnn_rednet50 and mask_rcnn_rednet50: the table counts this row with another stem",
        "mask_rcnn_rednet50 and mask_rcnn_resnet50: the macs leave out the mask head's logits",
        "faster_rcnn_rednet50 has 0.760x the parameters and 0.860x the multiply-adds of faster_rcnn_resnet50",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("with another stem") == 1
    assert "top-1" not in text
    same = told("markdown", detection(static=True, stem=3))
    assert "differ from those counted" not in same
    smaller = told("markdown", detection(static=True, size=(128, 192)))
    assert "published macs are of 800x1280 images: they differ from those counted at another size" in smaller
    assert "are of a 3x3 stem: they differ" in smaller


def test_plain_macs_as_published_are_a_column_where_somebody_tells_them() -> None:
    text = told("markdown", attention())
    assert "| network | top-1 | macs | counted |" in text
    assert "| axial50s | 77.50 % | 2.8 G | 6.000 G |" in text
    assert "somebody gives another top-1: 74.9 % (san10_pairwise), 76.9 % (san19_pairwise)" in text


def test_documents_from_before_are_of_imagenets_size_and_stem() -> None:
    (found,) = [row for row in imagenet(depths=(50,), regimes=(Regime.EAGER,)).results if row.backend == "numba"]
    assert "size" not in found.published
    assert scores_of(found) == {"top-1": 78.35}
    assert counts_as_published(found)
    assert not counts_as_published(replace(found, case=replace(found.case, H=160, W=160)))
    assert all(map(counts_as_published, small().results))
    nothing = replace(found, published=None)
    assert scores_of(nothing) == {}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("rednet50", "rednet"), ("san10_pairwise", "san_pairwise"), ("stand_alone38", "stand_alone"),
        ("lrnet101", "lrnet"),
        ("axial50s", "axial"), ("mask_rcnn_rednet50_inv_neck_head", "mask_rcnn"), ("fpn_resnet50", "fpn"),
        ("cifar10-inv", "cifar10-inv"), ("mnist-conv", "mnist-conv"),
    ],
)  # fmt: skip
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family


# --- Where time goes, and what was measured in one regime only ---


def test_places_are_a_table_of_their_own_and_survive() -> None:
    results = detection()
    assert ResultSet.from_json(results.to_json()) == results
    stored = json.loads(results.to_json())["results"][0]["breakdown"]
    assert sum(stored["places"].values()) == pytest.approx(stored["total"])
    assert set(stored["places"]) == {"backbone", "neck", "RPN head", "rest"}
    assert "places" not in json.loads(pair().to_json())["results"][0]["breakdown"]
    for name in ("table", "markdown", "html"):
        text = told(name, results)
        for words in ("Where the time of one call goes", "The same by place", "RPN head", "belongs to no place"):
            assert words in text, (name, words)
        assert "The same by place" not in told(name, pair())
    (first, *_) = csv.DictReader(io.StringIO(FORMATS["csv"](results)))
    assert float(first["breakdown.places.neck"]) > 0


def test_what_was_measured_as_built_only_is_said() -> None:
    assert "networks here: measured as built only" in told("markdown", detection())
    both = replace(detection(), results=(*detection().results, *pair().results))
    text = told("markdown", both)
    assert (
        "faster_rcnn_rednet50, faster_rcnn_resnet50, mask_rcnn_rednet50 and mask_rcnn_resnet50: measured as built"
        in text
    )
    for results in (pair(), imagenet(modes=(Mode.TRAIN,), regimes=(Regime.EAGER,)), detection(static=True)):
        assert "as built only" not in told("markdown", results)


def test_involution_is_told_against_each_attention_of_its_size() -> None:
    told_here = network_sentences(attention())
    assert len(told_here) == 4
    assert told_here[0].startswith("rednet26 (numba) is 1.25x slower than resnet26")
    assert told_here[1] == "rednet26 (numba) is 8.00x faster than san10_pairwise and 1.80x faster than axial26s."
    alone = replace(attention(), results=tuple(r for r in attention().results if "red" not in r.subject))
    assert network_sentences(alone)[0].startswith("san10_pairwise is 10.0x slower than resnet26")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "results", [detection(), detection(static=True), attention()], ids=["built", "static", "attention"]
)
def test_every_format_has_the_new_suites(name: str, results: ResultSet) -> None:
    text = FORMATS[name](results)
    assert text or name == "github"
    assert "None" not in (told(name, results) if name in ("table", "markdown", "html") else "")


@pytest.mark.parametrize("name", COMPARISON_FORMATS)
def test_two_documents_of_detectors_are_compared(name: str) -> None:
    before = detection()
    slower = replace(before.results[0], latency=samples(*[9.0] * 6))
    comparison = compare(before, replace(before, results=(slower, *before.results[1:])))
    assert [change.subject for change in comparison.of("latency") if change.verdict is Verdict.SLOWER]
    assert "faster_rcnn_rednet50" in COMPARISON_FORMATS[name](comparison)


# --- Many points ---


def test_networks_with_several_baselines_are_one_point() -> None:
    results = imagenet()
    assert (len(results.points()), len(whole_points(results))) == (3, 1)
    assert title_of(whole_points(results)).startswith("N=1 H=224 W=224, stem 7x7")
    twice = replace(results, results=results.results * 2)  # a subject that comes again is a point of its own
    assert len(whole_points(twice)) == 2


def test_each_point_has_its_sentences_until_there_are_too_many() -> None:
    few = network_sentences(imagenet(N=(1, 8), modes=(Mode.FORWARD, Mode.TRAIN), depths=(26, 50)))
    assert len(few) == 8
    assert few[0].startswith("N=1 mode=forward: rednet26 (numba) is 1.04x faster than resnet26")
    many = network_sentences(imagenet(N=(1, 8), modes=(Mode.FORWARD, Mode.TRAIN)))
    assert len(many) == 6
    assert many[-1].startswith(
        "With mode train, rednet101 (numba) beats resnet101 at 2 of 2 points (geometric mean 1.25x"
    )


def test_what_counts_say_is_said_once_where_it_holds_at_every_size() -> None:
    results = imagenet(sides=(128, 224), depths=(26, 50), static=True)
    first = "rednet26 has 0.674x the parameters and 0.725x the multiply-adds of resnet26; nothing was timed."
    assert network_sentences(results)[0] == first
    assert len(network_sentences(results)) == 2
    assert "not timed" not in told("table", results)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize(
    "results",
    [imagenet(), imagenet((1, 8), modes=(Mode.FORWARD, Mode.TRAIN)), small(), detection(), attention()],
    ids=["imagenet", "points", "small", "detection", "attention"],
)
def test_no_cell_is_folded_on_narrow_terminals(results: ResultSet, width: int) -> None:
    text = render_table(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert not folded(text)
    if len(whole_points(results)) > 1:
        assert text.count("\n N=8 mode=train:" if "N=8" in text else "\n H=W=32:") >= 1


# --- On a page ---


@in_browser
def test_the_pictures_have_a_mark_for_each_network(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](imagenet()), tmp_path)
    assert complaints(browser) == []
    assert [len(xs) for xs in source(browser, "marks", "x")] == [6, 6, 12]  # no involution is free there
    params, macs, latency = source(browser, "labels", "text")
    networks = sorted(f"{family}{depth}" for family in ("rednet", "resnet") for depth in (26, 50, 101))
    assert sorted(params) == sorted(macs) == sorted(latency) == networks
    assert source(browser, "lines", "dash")[0] == ["solid", "dashed"]
    assert "1.15x faster than resnet50" in " ".join(source(browser, "marks", "told")[2])
    choose(browser, "[data-filter=regime]", "eager")
    assert [len(xs) for xs in source(browser, "marks", "x")] == [6, 6, 6]
    choose(browser, "[data-filter=subject]", "rednet50")
    assert source(browser, "marks", "name") == [["rednet50"], ["rednet50"], ["rednet50 (numba), eager"]]
    choose(browser, "[data-filter=backend]", "free")
    assert browser.execute_script("return document.querySelectorAll('.plots > div:not([hidden])').length") == 0
    assert complaints(browser) == []


@in_browser
def test_each_point_has_its_picture_of_latency(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    results = imagenet(N=(1, 8), sides=(128, 224), depths=(26, 50))
    opened(browser, FORMATS["html"](results), tmp_path)
    assert [len(xs) for xs in source(browser, "marks", "x")] == [4, 4, 8, 8, 8, 8]
    assert max(source(browser, "marks", "x")[1]) == pytest.approx(4.12)  # accuracy is for 224 x 224 only
    choose(browser, "[data-filter=N]", "8")
    assert len(visible(browser)) == 24
    assert [len(xs) for xs in source(browser, "marks", "x")] == [4, 4, 0, 0, 8, 8]
    assert complaints(browser) == []


@in_browser
def test_two_networks_a_data_set_make_no_picture_of_accuracy(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](small()), tmp_path)
    assert [len(xs) for xs in source(browser, "marks", "x")] == [8, 4]
    assert "No picture of the accuracy on MNIST, Fashion-MNIST and CIFAR-10" in Page(FORMATS["html"](small())).text
    assert complaints(browser) == []


@in_browser
def test_pictures_of_detectors_are_of_each_score(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](detection()), tmp_path)
    assert complaints(browser) == []
    assert [len(xs) for xs in source(browser, "marks", "x")] == [4, 4, 2, 2, 4]
    assert sorted(source(browser, "marks", "y")[0]) == [37.7, 37.7, 39.5, 39.5]
    assert source(browser, "marks", "told")[2] == ["35.10 %, as published"] * 2
    choose(browser, "[data-filter=subject]", "mask_rcnn_rednet50")
    assert [len(xs) for xs in source(browser, "marks", "x")] == [1, 1, 1, 1, 1]
    assert complaints(browser) == []


def test_counts_alone_make_pictures_of_accuracy_only() -> None:
    page = Page(FORMATS["html"](imagenet(static=True)))
    assert "Accuracy against parameters" in page.text
    assert "Latency against" not in page.text


@in_browser
def test_the_page_of_networks_filters_without_complaints(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](pair()), tmp_path)
    assert complaints(browser) == []
    assert requests(browser) <= {"file", "data"}
    assert len(visible(browser)) == 6
    choose(browser, "[data-filter=regime]", "eager")
    assert len(visible(browser)) == 3
    choose(browser, "[data-filter=backend]", "numba")
    assert [cells[0] for cells in visible(browser)] == ["rednet50 (numba), eager"]
    assert len(visible(browser, "kind")) == 4  # the table of where time goes stays whole
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@in_browser
def test_a_page_of_both_kinds_draws_without_complaints(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    both = replace(pair(), results=(*pair().results, row(), row("conv2d", "torch", 0.01)))
    opened(browser, FORMATS["html"](both), tmp_path)
    assert complaints(browser) == []
    assert (len(visible(browser)), len(visible(browser, "network"))) == (2, 6)
