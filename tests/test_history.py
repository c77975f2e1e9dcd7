"""The history of checks: no run that is lost or counted twice, change points that are rarely chance, every format."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import CONTROL, commit, finding, noisy, row_of, run, runs
from sweeps import MACHINE, OTHER, at, sweep
from test_page import HOSTILE, Page

from invbench import cli
from invbench.report.history_formats import HISTORY_FORMATS, render_history_table
from invbench.results import ResultSet
from invbench.results.check import Row, Side, Verdict
from invbench.results.files import load, load_all
from invbench.results.history import History, append, check_appendable, read
from invbench.results.journal import Header, open_journal
from invbench.spec import InvbenchError
from invbench.verdict.history import FEWEST, change_points, level_starts, levels, tracks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def without_series(results: ResultSet) -> ResultSet:
    return replace(results, checks=tuple(check.without_series() for check in results.checks))


def fill(path: Path, found: Sequence[ResultSet]) -> None:
    for each in found:
        append(path, each)


# --- Writing and reading ---


def test_what_is_appended_is_read_without_its_raw_blocks(path: Path) -> None:
    found = runs(3)
    fill(path, found)
    assert read(path) == tuple(map(without_series, found))
    lines = path.read_text(encoding="ascii").splitlines()
    assert [json.loads(line)["history"] for line in lines] == [1, 1, 1]
    assert json.loads(lines[0])["checks"][0]["series"] == []


def test_runs_are_told_by_their_dates_and_once(path: Path) -> None:
    found = runs(4)
    fill(path, [found[2], found[0], found[3], found[0], found[1]])
    assert [each.created for each in read(path)] == [each.created for each in found]


def test_a_line_is_on_disk_when_it_was_appended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(os, "fsync", seen)
    append(path, runs(1)[0])
    assert sizes[0] == path.stat().st_size > 0


@pytest.mark.parametrize("cut", [1, 2, 12, 13, 30, 500, -2, -1])
@pytest.mark.parametrize("before", [0, 2])
def test_a_torn_last_line_is_repaired(path: Path, cut: int, before: int) -> None:
    found = runs(4)
    fill(path, found[:before])
    whole = path.read_bytes() if before else b""
    fill(path, [found[2]])
    line = path.read_bytes()[len(whole) :]
    path.write_bytes(whole + line[:cut])
    kept = found[:before] + ([found[2]] if cut == -1 else [])  # of the last one, only the end of its line was gone
    check_appendable(path)
    if kept:
        assert read(path) == tuple(map(without_series, kept))
    append(path, found[3])
    assert read(path) == tuple(map(without_series, [*kept, found[3]]))


def test_a_full_disk_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = runs(2)
    append(path, found[0])
    before, write = path.read_bytes(), os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) - 900])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(InvbenchError, match=r"--history .* cannot be written \(No space left on device\)"):
        append(path, found[1])
    assert path.read_bytes() == before


def test_processes_append_one_at_a_time(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from histories import runs\n"
        "from invbench.results.history import append; first = int(sys.argv[2])\n"
        "for each in runs(40)[first : first + 10]: append(Path(sys.argv[1]), each)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(first)], env=environment)
        for first in (0, 10, 20, 30)
    ]
    assert [each.wait(timeout=120) for each in started] == [0] * 4
    assert read(path) == tuple(map(without_series, runs(40)))
    assert path.read_bytes().count(b"\n") == 40


# --- Refusals ---


def write_journal(path: Path) -> None:
    with open_journal(path, resume=False) as kept:
        kept.add_header(Header("invbench sweep", "2026-01-02", "0.1.0", {}, {}))


REFUSED = {
    "a sweep's journal": (write_journal, "got a sweep's journal"),
    "a document": (lambda path: path.write_text(sweep({"K": [3]}).to_json()), "got a result document"),
    "text": (lambda path: path.write_text("my notes\n"), "got b'my notes'"),
    "text without an end": (lambda path: path.write_text("my notes"), "got b'my notes'"),
    "other JSON without an end": (lambda path: path.write_text('{"a": 1}'), "choose another file"),
    "a later version": (lambda path: path.write_text('{"history": 2, "a": 1}\n'), "of version 1: got 2"),
    "a folder": (lambda path: path.mkdir(), "got the folder"),
    "no folder": (lambda path: path.parent.rmdir(), "does not exist"),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_history_is_refused_and_kept(make: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.jsonl"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for refusing in (lambda: check_appendable(path), lambda: append(path, runs(1)[0])):
        with pytest.raises(InvbenchError, match=told) as raised:
            refusing()
        assert "\n" not in str(raised.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_asking_leaves_nothing_behind(path: Path) -> None:
    check_appendable(path)
    assert list(path.parent.iterdir()) == []


def test_only_checks_with_a_date_have_a_place() -> None:
    with pytest.raises(InvbenchError, match="takes documents of invbench check: got one of"):
        History.of([sweep({"K": [3]})])
    with pytest.raises(InvbenchError, match="must be an ISO 8601 date: got 'yesterday'"):
        History.of([replace(runs(1)[0], created="yesterday")])


@pytest.mark.parametrize("line", ['{"history":1,"tool":{}}', '{"history":1,', '{"history":1,"created":7}'])
def test_a_broken_line_is_named(path: Path, line: str) -> None:
    append(path, runs(1)[0])
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    with pytest.raises(InvbenchError, match=r"history\.jsonl:2 is not a line of a history") as raised:
        load_all([path], "", "")
    assert str(raised.value).count("history.jsonl") == 1


# --- Files for report ---


def test_files_of_checks_merge_and_a_run_counts_once(tmp_path: Path) -> None:
    found = runs(5)
    one, other, document = (tmp_path / name for name in ("one.jsonl", "other.data", "check.json"))
    fill(one, found[:3])
    fill(other, found[2:4])
    document.write_text(found[4].to_json())
    more = tmp_path / "more.json"
    more.write_text(found[0].to_json())
    merged = load_all([other, document, one, more], "invbench report", "now")
    assert isinstance(merged, History)
    assert [each.created for each in merged.runs] == [each.created for each in found]
    both = load_all([document, more], "", "")
    assert isinstance(both, History)
    assert len(both.runs) == 2
    alone = load_all([document], "", "")
    assert isinstance(alone, ResultSet)
    assert alone == found[4]


def test_a_sweep_has_no_place_in_a_history(path: Path, tmp_path: Path) -> None:
    append(path, runs(1)[0])
    (tmp_path / "sweep.json").write_text(sweep({"K": [3]}).to_json())
    with pytest.raises(InvbenchError, match=r"sweep\.json holds no check"):
        load_all([path, tmp_path / "sweep.json"], "", "")
    with pytest.raises(InvbenchError, match="got a history of checks; invbench report draws it"):
        load(path)


# --- Change points ---


@pytest.mark.parametrize("outliers", [False, True], ids=["normal", "outliers"])
@pytest.mark.parametrize(("count", "series"), [(8, 300), (30, 300), (100, 200), (300, 100)])
def test_noise_rarely_has_a_change_point(count: int, series: int, outliers: bool) -> None:
    import numpy as np

    rng = np.random.default_rng(1)
    found = sum(bool(level_starts([0.02 * v for v in noisy(rng, count, outliers)])) for _ in range(series))
    assert found <= 0.05 * series


@pytest.mark.parametrize(("step", "share"), [(5.0, 0.95), (3.0, 0.85)])
@pytest.mark.parametrize("count", [30, 100])
def test_a_step_is_found_where_it_is(count: int, step: float, share: float) -> None:
    import numpy as np

    rng, found = np.random.default_rng(2), 0
    for _ in range(200):
        start = int(rng.integers(count // 6, count - count // 6))
        values = [0.02 * (v + step * (n >= start)) for n, v in enumerate(noisy(rng, count, outliers=False))]
        found += any(abs(each - start) <= 1 for each in level_starts(values))
    assert found >= share * 200


def test_values_that_agree_have_one_level() -> None:
    assert level_starts([1.0] * 50) == []
    assert level_starts([1.0] * 25 + [1.1] * 25) == [25]
    assert level_starts([1.0] * 25 + [1.0004] * 25) == []
    assert level_starts([0.0, 9.0] * 3) == []  # too few


def test_levels_that_hardly_differ_are_one() -> None:
    row = row_of("numba")
    found = [run(n, {row: 1e-3 * (1 + 1e-4 * (n % 3)) * (1.004 if n >= 30 else 1)}) for n in range(60)]
    (track,) = tracks(History.of(found))
    assert level_starts([math.log(r.head or 1) for r in track.timed]) == [30]
    assert len(levels(track)) == 1


def test_a_change_point_says_where_and_how_much() -> None:
    (track,) = (t for t in tracks(History.of(runs(60, {"numba": (40, 1.12)}))) if t.row.backend == "numba")
    (change,) = change_points(track, levels(track))
    assert (change.first.number, change.last.number) == (41, 40)
    assert (change.first.commit, change.last.commit) == (commit(40), commit(39))
    assert change.against == CONTROL
    assert change.before == pytest.approx(0.6, rel=0.01)
    assert change.ratio == pytest.approx(1.12, rel=0.01)
    assert change.latency == pytest.approx(1.12, rel=0.03)


def test_what_moves_with_the_machine_is_no_change() -> None:
    slower = [
        replace(each, checks=(replace(each.checks[0], findings=tuple(
            replace(f, head=float(f.head) * 1.3) if f.metric == "latency" and f.head else f
            for f in each.checks[0].findings
        )),))
        for each in runs(60)[30:]
    ]  # fmt: skip
    found = {t.row.backend: len(levels(t)) for t in tracks(History.of([*runs(60)[:30], *slower]))}
    assert found == {"torch": 2, "numba": 1, "compiled": 1, "naive": 1}


def test_machines_clocks_and_injected_slowdowns_are_never_mixed() -> None:
    found = runs(4)
    found[1] = replace(found[1], environment=OTHER)
    found[2] = replace(found[2], settings={**found[2].settings, "clock": "device"})
    found[3] = run(3, {CONTROL: 1.0, row_of("numba"): 9.0}, injected=0.2)
    own = [t for t in tracks(History.of(found)) if t.row.backend == "numba"]
    assert len({(t.machine, t.clock) for t in own}) == len(own) == 3
    assert all(len(t.readings) == 1 and t.is_current for t in own)


def test_a_row_without_a_control_or_a_latency() -> None:
    row = Row(at(K=3), "involution", "numba")
    found = [run(n, {row: None if n == 5 else 1e-3 * (1 + 0.01 * (n % 3)) * (1 + (n >= 12))}) for n in range(24)]
    (track,) = tracks(History.of(found))
    assert track.against is None
    assert [len(track.readings), len(track.timed)] == [24, 23]
    (change,) = change_points(track, levels(track))
    assert (change.first.number, change.against) == (13, None)
    assert change.ratio == pytest.approx(2, rel=0.02)
    assert change.before == pytest.approx(1.01e-3)


def test_a_row_that_is_gone_is_not_in_the_latest_run() -> None:
    found = [*runs(2), run(9, {CONTROL: 2e-3, row_of("numba"): 1e-3})]
    own = {t.row.backend: t.is_current for t in tracks(History.of(found))}
    assert own == {"torch": True, "numba": True, "compiled": False, "naive": False}
    assert "2 rows of earlier runs not in the latest run" in render_history_table(History.of(found), 200)


# --- Formats ---

STEP = History.of(runs(60, {"numba": (40, 1.12)}, noise=0.002))
HISTORIES = {
    "a step": STEP,
    "one run": History.of(runs(1)),
    "few runs": History.of(runs(3)),
    "two machines": History.of([*runs(9), *(replace(r, environment=OTHER) for r in runs(7, seed=1))]),
    "two sizes": History.of(
        [run(n, {row_of("numba", H=h): 1e-3 + 1e-5 * (n % 2) for h in (14, 28)}) for n in range(9)]
    ),
    "no latency": History.of([run(0, {row_of("numba"): None}, verdicts={row_of("numba"): Verdict.ERROR})]),
    "hostile": History.of([
        replace(
            each, command=HOSTILE, tool_version=HOSTILE, environment={"cpu": {"model": HOSTILE}},
            settings={HOSTILE: HOSTILE},
            checks=(replace(
                each.checks[0], head=Side(HOSTILE, None if n % 2 else HOSTILE), base=Side(HOSTILE),
                findings=(finding(Row(at(), HOSTILE, HOSTILE), 1e-3, 1e-3),),
            ),),
        )
        for n, each in enumerate(runs(3))
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("format_name", HISTORY_FORMATS)
def test_every_history_has_every_format(name: str, format_name: str) -> None:
    text = HISTORY_FORMATS[format_name](HISTORIES[name])
    assert text
    if isinstance(text, str) and format_name in ("table", "markdown"):
        assert "\u2028" not in text


def test_table_tells_the_change_and_how_to_find_it() -> None:
    text = render_history_table(STEP, 160)
    (line,) = (line for line in text.splitlines() if line.strip().startswith("numba"))
    assert f"1.12x slower since 2026-10-15 ({commit(40)[:7]})" in line
    assert line.split()[-1] == "PASS"
    assert f"to find the change of numba: git bisect start {commit(40)[:12]} {commit(39)[:12]}" in text
    assert "1 of 4 rows changed over 60 runs, last: numba 1.12x slower against conv2d since 2026-10-15" in text
    assert "Latest run (2026-11-03): 4 PASS." in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table_fits(width: int) -> None:
    text = render_history_table(STEP, width)
    assert max(map(len, text.splitlines())) <= width
    assert commit(40)[:7] in text
    assert "2026-10-15" in text


def test_markdown_begins_with_the_answer() -> None:
    text = str(HISTORY_FORMATS["markdown"](STEP))
    assert text.startswith("**Latest run (2026-11-03): 4 PASS.**")
    assert text.count("\n| ") == 6


def test_csv_has_a_line_a_run_and_row() -> None:
    rows = list(csv.DictReader(str(HISTORY_FORMATS["csv"](STEP)).splitlines()))
    assert len(rows) == 240
    (change,) = (row for row in rows if row["is_change_point"] == "True")
    assert (change["backend"], change["run"], change["verdict"], change["commit"]) == (
        "numba",
        "41",
        "FAIL",
        commit(40),
    )
    assert float(change["relative"]) == pytest.approx(float(change["head"]) / float(change["control"]))


def test_json_is_a_document_with_all_checks() -> None:
    text = str(HISTORY_FORMATS["json"](STEP))
    assert len(ResultSet.from_json(text).checks) == 60
    document = json.loads(text)
    assert [each["created"] for each in document["runs"]] == [each.created for each in STEP.runs]
    changed = {t["backend"]: [c["first"]["run"] for c in t["change_points"]] for t in document["tracks"]}
    assert changed == {"torch": [], "numba": [41], "compiled": [], "naive": []}


def test_json_is_read_as_the_history_that_it_tells(tmp_path: Path) -> None:
    for name, told in HISTORIES.items():
        path = tmp_path / f"{name}.json"
        path.write_text(str(HISTORY_FORMATS["json"](told)))
        found = load_all([path], "", "")
        assert isinstance(found, History)
        assert found.runs == tuple(map(without_series, told.runs))
    path.write_text(path.read_text().replace('"runs"', '"runs": 7, "other"'))
    with pytest.raises(InvbenchError, match=r"hostile\.json: incomplete history"):
        load_all([path], "", "")


def test_a_control_that_changes_is_told() -> None:
    found = [
        run(n, {CONTROL: 2e-3 * (1 + 0.005 * (n % 3)) * (0.5 if n >= 20 else 1), row_of("numba"): 1e-3})
        for n in range(40)
    ]
    text = render_history_table(History.of(found), 200)
    assert "slower against conv2d since 2026-09-25" in text
    assert "but 1.00x by itself: what conv2d takes changed then" in text


def test_few_runs_are_told() -> None:
    assert f"change points need {FEWEST} runs: 4 rows of 4 have 3" in render_history_table(HISTORIES["few runs"], 120)


def test_without_the_library_there_is_a_line_and_no_change_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    for format_name in ("table", "markdown", "html"):
        text = str(HISTORY_FORMATS[format_name](STEP))
        assert "pip install &#x27;invbench[report]&#x27;" in text or "pip install 'invbench[report]'" in text
        assert "1.12x slower" not in text
    assert json.loads(str(HISTORY_FORMATS["json"](STEP)))["tracks"][0]["change_points"] is None
    assert len(str(HISTORY_FORMATS["csv"](STEP)).splitlines()) == 241


# --- The page ---


@pytest.mark.parametrize("name", HISTORIES)
def test_page_is_whole_and_fetches_nothing(name: str) -> None:
    text = str(HISTORY_FORMATS["html"](HISTORIES[name]))
    page = Page(text)
    assert page.open == []
    assert not {"src", "href", "onclick", "onerror"} & page.attributes
    assert "img" not in page.tags
    assert len(text) < 2_500_000


def test_page_has_a_line_a_row_and_a_line_a_change() -> None:
    latest, changes = Page(str(HISTORY_FORMATS["html"](STEP))).tables
    assert [cells[0] for cells in latest[1:]] == ["conv2d", "numba", "compiled", "naive"]
    assert [cells[:4] for cells in changes[1:]] == [["numba", "2026-10-15", commit(40)[:7], commit(39)[:7]]]


def test_page_without_bokeh_has_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    page = Page(str(HISTORY_FORMATS["html"](STEP)))
    assert "No plots: this page was made where Bokeh is not installed." in page.text
    assert len(page.tables) == 2


# --- The command ---


def called(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cli.gc, "freeze", lambda: None)
    monkeypatch.setattr(sys, "argv", ["invbench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_report_draws_a_history(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, STEP.runs)
    assert called(["report", str(path)], monkeypatch) == 0
    assert "git bisect start" in capsys.readouterr().out
    page, table = path.with_suffix(".html"), path.with_suffix(".parquet")
    for file in (page, table):
        assert called(["report", str(path), "--output", str(file)], monkeypatch) == 0
    assert Page(page.read_text()).open == []
    assert table.read_bytes().startswith(b"PAR1")
    assert called(["compare", str(path), str(path)], monkeypatch) == 2
    assert "invbench report draws it" in capsys.readouterr().err


def test_a_format_that_tells_one_check_only_is_refused(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path, runs(1))
    monkeypatch.setitem(sys.modules["invbench.cli.report"].ALL_FORMATS, "junit", str)
    assert called(["report", str(path), "--format", "junit"], monkeypatch) == 2
    assert "got 'junit'; name the document of one check" in capsys.readouterr().err


def test_versions_are_no_other_machine() -> None:
    found = runs(2)
    found[1] = replace(found[1], environment={**MACHINE, "versions": {"torch": "2.14.0"}})
    assert len(tracks(History.of(found))) == 4
