"""Documents of several classes of machines: nothing is of two of them, each has a part, and all stand side by side."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import A100, EPYC, H200, KEYS, MACHINES, NODES, THREE, TWO, TYPES, case_on, cluster, measured, of_rows
from expecttest import assert_expected_inline
from networks import imagenet
from sweeps import MACHINE, OTHER, sweep
from test_page import HOSTILE, Page, browser, choose, in_browser, opened, source, visible  # noqa: F401 -- a fixture
from test_report import no_terminal  # noqa: F401 -- a fixture
from test_results import document

from invbench.report import BINARY, FORMATS
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.report.headline import nodes_of, sentences, title
from invbench.report.machines import beside, parts_of
from invbench.report.notes import notes
from invbench.report.table import render_table
from invbench.results import ResultSet, machine_class
from invbench.results.journal import Entry, Header, Journal, read_document
from invbench.verdict.changes import compare
from invbench.verdict.points import classes, informative, machine_names, points_of, varying
from invbench.verdict.side_by_side import side_by_side

DOCUMENTS = {"two": TWO, "three": THREE, "types": TYPES}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS)
ALONE = {name: cluster({name: {1: 0.5, 2: 0.25}}, NODES) for name in MACHINES}


def means(results: ResultSet) -> list[tuple[int, int, dict[str, float]]]:
    """Of each kind of points over how many of how many, and the means by the machines' names."""
    found = side_by_side(results)
    assert found
    names = {key: name for name, key in KEYS.items()}
    return [
        (each.places, each.whole, {names[key]: pytest.approx(mean) for key, mean in each.means.items()})
        for each in found.means
    ]


# --- Never mixed ---


def test_every_sentence_is_of_one_class() -> None:
    assert_expected_inline(
        "\n".join(sentences(TWO)),
        """\
With machine NVIDIA H200, the fastest involution (triton) beats nn.Conv2d 7x7 at 2 of 2 points (geometric mean 2.83x faster, from 2.00x faster to 4.00x faster).
With machine NVIDIA A100-SXM4-80GB, the fastest involution (triton) beats nn.Conv2d 7x7 at 0 of 2 points (geometric mean 2.83x slower, from 4.00x slower to 2.00x slower; slower at 2).""",  # noqa: E501
    )


def test_a_point_that_failed_belongs_to_its_class() -> None:
    told = sentences(THREE)
    assert [sentence.partition(" the fastest")[0] for sentence in told] == [
        "With machine NVIDIA H200,", "With machine NVIDIA A100-SXM4-80GB,",
        "With machine AMD EPYC 9654 96-Core Processor, 64 cores,",
    ]  # fmt: skip
    assert "2 points without both" in told[1]


def test_means_are_over_the_points_that_all_have() -> None:
    assert means(TWO) == [(2, 2, {"H200": 0.125**0.5, "A100": 8**0.5})]
    assert means(THREE) == [(4, 8, {"H200": 0.15**0.5, "A100": 1.8**0.5, "EPYC": 0.005**0.5})]


def test_means_are_of_one_type_of_points() -> None:
    assert means(TYPES) == [(4, 4, {"H200": 0.2**0.5, "EPYC": 0.02**0.5})] * 2


def test_a_class_without_a_kind_of_points_takes_none_from_the_others() -> None:
    bfloat16 = cluster({"H200": {1: 0.5, 2: 0.25}, "A100": {1: 2.0, 2: 2.0}}, dtype=["bfloat16"])
    both = of_rows([*bfloat16.results, *ALONE["EPYC"].results])
    assert means(both) == [(2, 2, {"H200": 0.125**0.5, "A100": 2.0})]


def test_no_point_in_common_is_said() -> None:
    told = beside(cluster({"H200": {1: 0.5, 2: 0.5}, "EPYC": {4: 0.1}}))
    assert told
    assert told.grid.foot == []
    assert [line[-2:] for line in told.grid.rows][-1][0] == "-"
    (note,) = told.notes
    assert note.startswith("no point with ")
    assert note.endswith("was timed on all machines: there is no mean over 3 points")


def test_the_axes_that_explain_most_are_those_on_each_machine() -> None:
    # N differs between the machines only, and with it the ratio by far more than with K.
    rows = [
        each
        for name, N, level in (("H200", 1, 0.01), ("A100", 2, 100.0))
        for K, ratio in ((3, 1.0), (7, 2.0))
        for each in measured(name, case_on(name, N=N, K=K), 1e-3, level * ratio)
    ]
    assert informative(points_of(of_rows(rows))) == ["K", "N"]


def test_rows_of_two_nodes_are_never_paired() -> None:
    case = case_on("H200")
    one, other = measured("H200", case, 1e-3, 0.5, node="a"), measured("H200", case, 2e-3, 4.0, node="b")
    mixed = of_rows([*one[:2], *other])  # the convolution is of the other node only
    points = points_of(mixed)
    assert [len(point.rows) for point in points] == [2, 3]
    assert points[0].ratio("conv2d") is None
    assert varying(points) == ("node",)


def test_the_node_is_no_axis_where_each_point_is_measured_once() -> None:
    assert varying(points_of(THREE)) == ("N", "K", "machine")


def test_threads_and_device_are_the_machine_s() -> None:
    assert side_by_side(THREE).places[0].axes["threads"] is None
    several = replace(sweep({"threads": [1, 2]}), environment=MACHINE)
    both = ResultSet.merged([several, replace(several, environment=OTHER)], "report", "now")
    assert varying(points_of(both)) == ("threads", "machine")
    assert [place.axes["threads"] for place in side_by_side(both).places] == [1, 2]


def test_of_several_runs_the_last_one_counts() -> None:
    one, again = (cluster({"H200": {1: ratio, 2: ratio}}) for ratio in (0.5, 0.25))
    again = replace(again, created="later")
    told = beside(ResultSet.merged([one, again, cluster({"A100": {1: 2.0, 2: 2.0}})], "report", "now"))
    assert told
    assert [line[1].split(", ")[1] for line in told.grid.rows[:2]] == ["4.00x faster (triton)"] * 2
    assert told.notes[-1] == "at 2 points a machine has several runs: the last one is shown"
    assert [len(numbers) for numbers in told.points] == [2, 2]


# --- Apart, and side by side ---


def test_one_class_has_no_part_and_no_table_beside() -> None:
    for results in ALONE.values():
        assert results.by_machine() == {}
        assert (parts_of(results), beside(results)) == ([], None)


def test_parts_hold_all_rows_once() -> None:
    parts = parts_of(THREE)
    assert sorted(map(id, (row for part in parts for row in part.results.results))) == sorted(map(id, THREE.results))
    assert [part.heading for part in parts] == list(machine_names(THREE).values())
    assert all(len(classes(points_of(part.results))) == 1 for part in parts)


def test_what_all_share_is_said_once() -> None:
    assert_expected_inline(
        "\n".join([title(THREE), *("\n".join(["", part.heading, *part.above]) for part in parts_of(THREE))]),
        """\
20 points over N 1, 2, 4, 8; K 3, 7 on 3 classes of machines: C=256 H=28 W=28 G=16, reduction=4, float32 channels_last, forward of the layer

NVIDIA H200
8 points over N 1, 2, 4, 8; K 3, 7: on cuda
A host CPU, 16 cores, AVX512; NVIDIA H200; torch 2.13.0+cu130; triton 3.7.1; peaks 150 GFLOP/s, 30.0 GB/s
measured on 2 nodes: gpu-1 (3f2a) with cuda:0 and cuda:1; gpu-2 (77c0) with cuda:0 and cuda:1

NVIDIA A100-SXM4-80GB
8 points over N 1, 2, 4, 8; K 3, 7: on cuda
A host CPU, 16 cores, AVX512; NVIDIA A100-SXM4-80GB; torch 2.12.1+cu126; triton 3.7.1; peaks 150 GFLOP/s, 30.0 GB/s
measured on 1 node: gpu-7 (b001) with cuda:0 and cuda:1

AMD EPYC 9654 96-Core Processor, 64 cores
4 points over N 1, 4; K 3, 7: on cpu, 64 threads
AMD EPYC 9654 96-Core Processor, 64 cores, AVX512; torch 2.13.0+cpu; numba 0.68.1; peaks 150 GFLOP/s, 30.0 GB/s
measured on 1 node: cpu-1 (0d0d)""",  # noqa: E501
    )


def test_how_it_was_measured_is_said_of_each_where_it_differs() -> None:
    short = replace(TWO, results=tuple(_short(r) if r.machine == KEYS["A100"] else r for r in TWO.results))
    methods = [part.above[-1] for part in parts_of(short)]
    assert [text[:9] for text in methods] == ["7 rounds ", "6 rounds "]
    assert render_table(short, 160).count("rounds of interleaved blocks") == 2
    assert render_table(TWO, 160).count("rounds of interleaved blocks") == 1


def _short(row: Any) -> Any:
    return replace(row, latency=replace(row.latency, blocks=row.latency.blocks[:6]))


def test_a_table_for_a_terminal() -> None:
    told = beside(THREE)
    assert told
    text = render_table(THREE, 120).replace("─", "-")
    assert_expected_inline(
        text[: text.index("\n* ")],
        """\
20 points over N 1, 2, 4, 8; K 3, 7 on 3 classes of machines: C=256 H=28 W=28 G=16, reduction=4, float32 channels_last,
forward of the layer
7 rounds of interleaved blocks, eager clock, hot cache; stopped on precision; seed 0

The fastest involution on each machine, and how it does against conv2d on the same machine:

                                                                                          AMD EPYC 9654 96-Core
 N           K                      NVIDIA H200           NVIDIA A100-SXM4-80GB             Processor, 64 cores
 --------------------------------------------------------------------------------------------------------------
 1           3    200 us, 2.00x faster (triton)   200 us, 1.50x slower (triton)    333 us, 10.0x faster (numba)
 1           7    200 us, 2.00x faster (triton)   200 us, 1.50x slower (triton)    333 us, 10.0x faster (numba)
 2           3    400 us, 2.50x faster (triton)   400 us, 1.40x slower (triton)                               -
 2           7    400 us, 2.50x faster (triton)   400 us, 1.40x slower (triton)                               -
 4           3    800 us, 3.33x faster (triton)   800 us, 1.20x slower (triton)   1.33 ms, 20.0x faster (numba)
 4           7    800 us, 3.33x faster (triton)   800 us, 1.20x slower (triton)   1.33 ms, 20.0x faster (numba)
 8           3   1.60 ms, 5.00x faster (triton)                             oom                               -
 8           7   1.60 ms, 5.00x faster (triton)                             oom                               -

 geometric                         2.58x faster                    1.34x slower                    14.1x faster
 mean of 4
""",
    )


@documents
@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_terminal_is_wide_enough(results: ResultSet, width: int) -> None:
    lines = render_table(results, width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)
    for name in machine_names(results).values():
        assert lines.count(name) == 1  # above its part
    assert sum("numba " in line or "triton " in line for line in lines) >= len(results.points())


@documents
def test_markdown_has_a_table_of_all_and_two_of_each(results: ResultSet) -> None:
    text = FORMATS["markdown"](results)
    headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert headings == ["Machines side by side", *machine_names(results).values()]
    assert text.count("| --- |") >= 1 + 2 * len(results.machines)
    assert "geometric mean of " in text


@documents
def test_page_has_a_table_of_all_and_two_of_each(results: ResultSet) -> None:
    page = Page(FORMATS["html"](results))
    assert page.open == []
    together, *others = page.tables
    names = list(machine_names(results).values())
    assert together[0][-len(names) :] == names
    assert len(others) == 2 * len(names)
    assert sum(len(table) - 1 for table in others[1::2]) == len(results.results)
    assert all(name in page.text for name in names)


def test_marks_of_classes_are_told_apart_by_the_scripts() -> None:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', FORMATS["html"](THREE), re.DOTALL)
    assert found
    rows = json.loads(found[1])["rows"]
    assert len({(row["class"], row["at"]["machine"]) for row in rows}) == len({row["class"] for row in rows}) == 3


def test_notes_are_of_one_class() -> None:
    assert_expected_inline(
        "\n".join(notes(THREE)),
        """\
NVIDIA A100-SXM4-80GB: triton: oom at N=8 K=3; N=8 K=7: needs about 9.1 GiB
NVIDIA A100-SXM4-80GB: compiled: oom at N=8 K=3; N=8 K=7: needs about 9.1 GiB
NVIDIA A100-SXM4-80GB: conv2d: oom at N=8 K=3; N=8 K=7: needs about 9.1 GiB
NVIDIA H200: the faster layout: conv2d channels_last
NVIDIA A100-SXM4-80GB: the faster layout: conv2d channels_last
AMD EPYC 9654 96-Core Processor, 64 cores: the faster layout: conv2d channels_last""",
    )


def test_an_interrupted_run_says_so_once() -> None:
    for name in ("table", "markdown", "html"):
        assert FORMATS[name](replace(THREE, interrupted=True)).count("interrupted: the rows hold") == 1


def test_other_formats_name_the_class() -> None:
    assert 'on cuda, machine NVIDIA H200"' in FORMATS["junit"](THREE)
    lines = FORMATS["github"](THREE).splitlines()
    assert len(lines) == 6
    assert all("machine=NVIDIA A100-SXM4-80GB" in line for line in lines)


# --- Networks ---


def test_networks_are_grouped_by_class() -> None:
    one = imagenet()
    both = ResultSet.merged([one, replace(one, environment=OTHER, created="later")], "report", "now")
    names = list(machine_names(both).values())
    text = render_table(both, 120)
    assert [line for line in text.splitlines() if line in names] == names
    assert text.count("Counted, of one image") == 2
    assert re.findall(r"^### (.*)$", FORMATS["markdown"](both), re.MULTILINE) == names
    assert FORMATS["html"](both)


# --- Data ---


def test_csv_says_where_each_row_was_measured() -> None:
    read = list(csv.DictReader(io.StringIO(FORMATS["csv"](THREE)), strict=True))
    names = machine_names(THREE)
    assert [(r["machine"], r["machine_name"], r["node"], r["device"]) for r in read] == [
        (row.machine, names[row.machine or ""], row.node or "", row.device or "") for row in THREE.results
    ]
    assert {line["node"] for line in read} == {node for nodes in NODES.values() for node in nodes}


def test_csv_of_rows_without_a_node_has_no_such_columns() -> None:
    header = FORMATS["csv"](sweep({"K": [3]})).splitlines()[0].split(",")
    assert {"node", "device", "machine", "machine_name"}.isdisjoint(header)


def test_parquet_says_where_each_row_was_measured(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "x.parquet").write_bytes(BINARY["parquet"](THREE))
    read = pd.read_parquet(tmp_path / "x.parquet")
    assert list(read["node"]) == [row.node for row in THREE.results]
    assert [None if pd.isna(v) else v for v in read["device"]] == [row.device for row in THREE.results]
    assert set(read["machine"]) == set(KEYS.values())


def test_json_comes_back_as_it_was() -> None:
    assert ResultSet.from_json(FORMATS["json"](THREE)) == THREE


# --- Nodes and names ---


def test_nodes_are_told_of_one_class_too() -> None:
    assert nodes_of(ALONE["H200"]) == ["measured on 1 node: gpu-1 (3f2a) with cuda:0 and cuda:1"]
    assert nodes_of(sweep({"K": [3]})) == []
    for name in ("table", "markdown", "html"):
        assert FORMATS[name](ALONE["EPYC"]).count("measured on 1 node: cpu-1 (0d0d)") == 1
        assert "measured on" not in FORMATS[name](sweep({"K": [3]}))


def test_names_of_nodes_and_machines_are_text() -> None:
    hostile = {**H200, "gpu": {**H200["gpu"], "name": f"[bold]\x1b[31m{HOSTILE}"}}
    key = machine_class(hostile)
    rows = [
        replace(row, node=f"\x1b]0;{HOSTILE}", machine=key if row.machine == KEYS["H200"] else row.machine)
        for row in TWO.results
    ]
    results = document(*rows, machines={key: hostile, KEYS["A100"]: A100})
    page = Page(FORMATS["html"](results))
    assert page.tags.count("script") == Page(FORMATS["html"](TWO)).tags.count("script")
    assert "img" not in page.tags
    for name in ("table", "markdown", "csv", "github", "junit"):
        assert "\x1b" not in FORMATS[name](results)
    assert "[bold]" in render_table(results, 400)


def test_classes_of_one_name_are_told_apart_by_what_differs() -> None:
    host = {**H200, "cpu": {**H200["cpu"], "model": "Another host"}}
    capped = {**H200, "gpu": {**H200["gpu"], "power_limit_w": 500}}
    other = {"cpu": {"model": "A CPU", "usable": 2}}
    names = machine_names(document(machines={"a": H200, "b": host, "c": other}))
    assert list(names.values()) == ["NVIDIA H200, in A host CPU", "NVIDIA H200, in Another host", "A CPU, 2 cores"]
    assert list(machine_names(document(machines={"a": H200, "b": capped})).values()) == [
        "NVIDIA H200, 700 W", "NVIDIA H200, 500 W",
    ]  # fmt: skip
    assert list(machine_names(document(machines={"a": H200, "b": H200})).values()) == [
        "NVIDIA H200 #1", "NVIDIA H200 #2",
    ]  # fmt: skip


# --- Several files ---


def test_files_of_one_class_each_make_the_same_report() -> None:
    apart = [of_rows([r for r in TWO.results if r.machine == KEYS[name]]) for name in ("H200", "A100")]
    merged = ResultSet.merged(apart, TWO.command, TWO.created)
    assert render_table(merged, 100) == render_table(TWO, 100)
    assert means(merged) == means(TWO)


def test_a_journal_of_several_runs_makes_the_same_report(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    header = Header("invbench sweep", TWO.created, TWO.tool_version, TWO.settings, TWO.machines)
    with path.open("ab+", buffering=0) as file:
        journal = Journal(path, file, {}, 0)
        for number, rows in enumerate(reversed(TWO.points())):
            if number % 2 == 0:  # stopped, and resumed
                journal.add_header(header)
            journal.add(Entry(str(number), rows))
    found = read_document(path)
    assert set(found.machines) == {KEYS["H200"], KEYS["A100"]}
    assert means(found) == means(TWO)
    told = beside(found)
    assert told
    assert [line[0] for line in told.grid.rows[:-1]] == ["1", "2"]  # in order, and not as they were done


def test_two_documents_are_compared_class_by_class() -> None:
    newer = {
        key: {**found, "versions": {**found["versions"], "torch": "2.14.0"}} for key, found in TWO.machines.items()
    }
    slower = cluster({"H200": {1: 0.5, 2: 0.25}, "A100": {1: 2.0, 2: 4.0}, "EPYC": {1: 0.5}}, NODES)
    found = compare(TWO, replace(slower, machines={**slower.machines, **newer}))
    assert found.differences == {
        "NVIDIA H200: versions.torch": ("2.13.0+cu130", "2.14.0"),
        "NVIDIA A100-SXM4-80GB: versions.torch": ("2.12.1+cu126", "2.14.0"),
    }
    assert found.counts == {"no difference": 12, "only in B": 3}
    text = COMPARISON_FORMATS["table"](found)
    assert [text.splitlines().count(name) for name in machine_names(slower).values()] == [1, 1, 1]
    assert "involution rows (NVIDIA H200) are as fast as in A, geometric mean of 4" in " ".join(text.split())
    assert all(render(found) for render in COMPARISON_FORMATS.values())


def test_one_class_of_several_is_compared_with_its_own_file() -> None:
    alone = of_rows([r for r in TWO.results if r.machine == KEYS["A100"]])
    found = compare(alone, TWO)
    assert found.differences == {}
    assert found.counts == {"no difference": 6, "only in B": 6}
    assert {c.machine for c in found.changes if c.verdict == "no difference"} == {KEYS["A100"]}


def test_another_class_is_not_comparable() -> None:
    assert {change.verdict for change in compare(ALONE["H200"], ALONE["A100"]).of("latency")} == {"not comparable"}
    assert machine_class(EPYC) == KEYS["EPYC"]


# --- In a browser ---


@in_browser
def test_filters_and_sorting_reach_the_table_of_all(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, FORMATS["html"](THREE), tmp_path)
    assert [cells[:2] for cells in visible(browser, "place")] == [
        [str(N), str(K)] for N in (1, 2, 4, 8) for K in (3, 7)
    ]
    heading = "[...document.querySelectorAll('th button')].find((b) => b.textContent.startsWith('NVIDIA H200'))"
    browser.execute_script(f"{heading}.click()")
    assert [cells[0] for cells in visible(browser, "place")] == ["8", "8", "4", "4", "2", "2", "1", "1"]
    foot = "getComputedStyle(document.querySelector('tfoot')).display"
    assert browser.execute_script(f"return {foot}") == "table-footer-group"
    choose(browser, "[data-filter=K]", "3")
    assert {cells[1] for cells in visible(browser, "place")} == {"3"}
    assert browser.execute_script(f"return {foot}") == "none"
    choose(browser, "[data-filter=machine]", "AMD EPYC 9654 96-Core Processor, 64 cores")
    assert [cells[0] for cells in visible(browser, "place")] == ["4", "1"]


@in_browser
def test_a_line_joins_points_of_one_class_only(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    # Each machine has sizes of its own, so that one line through all of them would be possible.
    results = cluster({"H200": {1: 0.5, 2: 0.4}, "A100": {4: 1.5, 8: 1.2}})
    opened(browser, FORMATS["html"](results), tmp_path, "#hold-machine=")
    lines = [xs for figure in source(browser, "lines", "xs") for xs in figure]
    assert {tuple(xs) for xs in lines} == {(1, 2), (4, 8)}
