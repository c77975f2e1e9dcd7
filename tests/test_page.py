"""The HTML page: self-contained, everything escaped, and in a real browser it draws, sorts and filters."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from histories import runs
from sweeps import OTHER, at, failed, rows_at, sweep
from test_report import NAMES, everything
from test_results import CASE, document, row

from invbench.report import FORMATS
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.report.headline import sentences
from invbench.report.history_formats import HISTORY_FORMATS
from invbench.results import ResultSet, Status
from invbench.results.history import History
from invbench.results.quantities import Memory
from invbench.verdict.changes import compare

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'|\u2028"


def hostile() -> ResultSet:
    """Everything that comes from outside is an attack."""
    rows = tuple(
        replace(r, reason=HOSTILE if r.reason else None, warnings=(HOSTILE,), baseline=HOSTILE) for r in rows_at(CASE)
    )
    more = (
        row("involution", HOSTILE, status=Status.ERROR, reason=HOSTILE),
        row(HOSTILE, HOSTILE, *[1e-3] * 7),
        *rows_at(replace(CASE, N=1)),
    )
    environment = {"cpu": {"model": HOSTILE, "usable": 2, "capability": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    return document(
        *rows, *more, command=HOSTILE, created=HOSTILE, tool_version=HOSTILE, environment=environment,
        settings={HOSTILE: HOSTILE}, baseline=HOSTILE, machines={HOSTILE: environment, "other": environment},
    )  # fmt: skip


def without_memory(results: ResultSet) -> ResultSet:
    return replace(results, results=tuple(replace(r, memory=Memory(None, None)) for r in results.results))


DOCUMENTS = {
    "one point": everything(),
    "grid": sweep({"K": [3, 5, 7], "H": [14, 28], "N": [1, 8]}),
    "one axis": sweep({"K": [3, 5, 7]}),
    "one axis of words": sweep({"dtype": ["float32", "bfloat16"]}),
    "four axes": sweep({"K": [3, 7], "H": [14, 28], "C": [64, 256], "layout": ["contiguous", "channels_last"]}),
    "two machines": ResultSet.merged([sweep({"K": [3, 7]}), sweep({"K": [3, 7]}, environment=OTHER)], "report", "now"),
    "no memory": without_memory(sweep({"K": [3, 7]})),
    "no peaks": sweep({"K": [3, 7]}, peaks=None),
    "all failed": failed(sweep({"K": [3, 7]}), reason=HOSTILE),
    "empty": document(),
    "hostile": hostile(),
}
documents = pytest.mark.parametrize("results", DOCUMENTS.values(), ids=DOCUMENTS.keys())


# --- As text ---


class Page(HTMLParser):
    """The tags that are open, the text outside scripts, and the cells of the last table."""

    VOID = ("meta", "br", "input", "img")

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


@documents
def test_page_is_whole_and_fetches_nothing(results: ResultSet) -> None:
    text = FORMATS["html"](results)
    page = Page(text)
    assert page.open == []
    assert not {"src", "href", "onclick", "onerror"} & page.attributes
    assert "img" not in page.tags
    assert all(sentence.replace("\u2028", " ") in page.text for sentence in sentences(results))
    for table in page.tables:
        assert {len(cells) for cells in table} == {len(table[0])}
    of_rows = [table for table in page.tables if "backend" in table[0]]  # one for each class of machines
    assert sum(len(table) - 1 for table in of_rows) == len(results.results)
    assert len(text) < 2_500_000


def test_rows_of_one_point_are_the_table() -> None:
    (table,) = Page(FORMATS["html"](everything())).tables
    assert [cells[0] for cells in table[1:]] == NAMES


def test_everything_from_outside_is_text() -> None:
    page = Page(FORMATS["html"](hostile()))
    told = HOSTILE.replace("\u2028", " ")
    assert page.text.count(told) >= 12
    assert page.tags.count("script") == len(re.findall("<script", FORMATS["html"](sweep({"K": [3, 5]}))))


def test_data_of_the_scripts_cannot_end_them() -> None:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', FORMATS["html"](hostile()), re.DOTALL
    )
    assert found
    assert "<" not in found[1]
    assert HOSTILE in {entry["name"] for entry in json.loads(found[1])["rows"]}


def test_without_bokeh_the_page_says_so_and_has_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bokeh"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    text = FORMATS["html"](DOCUMENTS["grid"])
    page = Page(text)
    assert "pip install 'invbench[report]'" in page.text
    assert len(page.tables[-1]) == 1 + len(DOCUMENTS["grid"].results)
    assert len(text) < 400_000


# --- In a browser ---

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, which CI has")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def opened(browser: Any, text: str, folder: Path, fragment: str = "") -> Any:
    """The page in the browser, its plots drawn; requests and messages of earlier pages are forgotten."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    browser.get("about:blank")
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"{path.as_uri()}{fragment}")
    until(browser, "!document.querySelector('[id^=plot-]') || document.documentElement.dataset.drawn === 'yes'")
    return browser


def until(browser: Any, condition: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not browser.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, (condition, browser.get_log("browser"))
        time.sleep(0.05)


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def requests(browser: Any) -> set[str]:
    """The schemes of everything that was asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {url.partition(":")[0] for url in sent}


def visible(browser: Any, kind: str = "row") -> list[list[str]]:
    script = f"""return [...document.querySelectorAll('tr[data-{kind}]')].filter((line) => !line.hidden)
        .map((line) => [...line.cells].map((cell) => cell.textContent))"""
    return [list(cells) for cells in browser.execute_script(script)]


def choose(browser: Any, control: str, value: str) -> None:
    browser.execute_script(
        "const c = document.querySelector(arguments[0]); c.value = arguments[1]; c.dispatchEvent(new Event('input'));",
        control, value,
    )  # fmt: skip


def source(browser: Any, name: str, column: str) -> list[list[Any]]:
    """A column of the data that each figure with such a source shows."""
    return list(browser.execute_script(
        """return Bokeh.documents.map((d) => d.get_model_by_name(arguments[0])).filter((s) => s)
            .map((s) => [...s.data[arguments[1]]])""",
        name, column,
    ))  # fmt: skip


@in_browser
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in ("grid", "one axis", "no peaks")])
def test_page_draws_without_complaints_or_requests(browser: Any, name: str, tmp_path: Path) -> None:
    results = DOCUMENTS[name]
    opened(browser, FORMATS["html"](results), tmp_path)
    assert complaints(browser) == []
    assert requests(browser) <= {"file", "data"}
    assert len(visible(browser)) == len(results.results)
    timed = sum(r.latency is not None for r in results.results)
    if timed:
        assert max(map(len, source(browser, "marks", "x"))) > 0
        canvases = browser.execute_script("return document.querySelectorAll('[id^=plot-] > *').length")
        assert canvases == browser.execute_script("return document.querySelectorAll('[id^=plot-]').length") > 0
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@in_browser
def test_a_click_on_a_heading_sorts_and_a_second_one_the_other_way(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS["grid"]), tmp_path)
    latencies = "return [...document.querySelectorAll('tr[data-row]')].map((l) => l.cells[4].dataset.v ?? null)"
    click = """const heads = document.querySelectorAll('table')[1].tHead.rows[0].cells;
        heads[arguments[0]].querySelector('button').click(); return heads[arguments[0]].getAttribute('aria-sort')"""
    for order, factor in (("ascending", 1), ("descending", -1)):
        assert browser.execute_script(click, 4) == order
        found = browser.execute_script(latencies)
        timed = [float(value) for value in found if value is not None]
        assert timed == sorted(timed, key=lambda value, sign=factor: sign * value)
        assert found[len(timed) :] == [None] * 12  # triton, which was not timed, stays last
    assert browser.execute_script(click, 3) == "ascending"
    names = [cells[3] for cells in visible(browser)]
    assert names == sorted(names)
    assert complaints(browser) == []


@in_browser
def test_filters_hide_lines_and_marks_and_go_into_the_address(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS["grid"]), tmp_path)
    choose(browser, "[data-filter=K]", "7")
    choose(browser, "[data-filter=backend]", "numba")
    assert {(cells[2], cells[3]) for cells in visible(browser)} == {("7", "numba")}
    assert len(visible(browser)) == 4
    assert len(visible(browser, "point")) == 4
    assert {name for names in source(browser, "marks", "name") for name in names} == {"numba"}
    assert set(browser.execute_script("return location.hash").lstrip("#").split("&")) == {"K=7", "backend=numba"}
    assert browser.execute_script("return document.getElementById('shown').textContent") == "4 of 108 rows"
    choose(browser, "[data-filter=text]", "no such thing")
    assert visible(browser) == []
    browser.execute_script("document.getElementById('reset').click()")
    assert len(visible(browser)) == 108
    assert complaints(browser) == []


@in_browser
def test_the_address_is_a_view_to_share(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS["grid"]), tmp_path, "#backend=naive&K=3&H=none&nonsense=1")
    assert {(cells[2], cells[3]) for cells in visible(browser)} == {("3", "naive")}
    assert browser.execute_script("return document.querySelector('[data-filter=H]').value") == ""
    browser.execute_script("location.hash = '#K=5'")
    until(browser, "document.getElementById('shown').textContent === '36 of 108 rows'")
    assert complaints(browser) == []


@in_browser
def test_the_map_shows_geometric_means_of_the_points_that_pass(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS["grid"]), tmp_path)
    assert [len(counts) for counts in source(browser, "cells", "count")] == [6, 6]
    assert {count for counts in source(browser, "cells", "count") for count in counts} == {2}
    choose(browser, "[data-state=map-y]", "")
    assert [set(counts) for counts in source(browser, "cells", "count")] == [{4}, {4}]
    choose(browser, "[data-filter=N]", "1")
    assert [set(counts) for counts in source(browser, "cells", "count")] == [{2}, {2}]
    choose(browser, "[data-filter=subject]", "conv2d")  # no involution is left
    assert source(browser, "cells", "count") == [[], []]
    assert complaints(browser) == []


@in_browser
def test_an_axis_that_changes_with_another_does_not_cut_the_lines(browser: Any, tmp_path: Path) -> None:
    rows = [r for C in (32, 64, 128) for H in (7, 14) for r in rows_at(at(C=C, G=C // 16, H=H))]
    opened(browser, FORMATS["html"](document(*rows)), tmp_path)
    assert browser.execute_script("return document.querySelector('[data-state=hold-G]')") is None
    lengths = [{len(xs) for xs in lines} for lines in source(browser, "lines", "xs")]
    assert sorted(map(tuple, lengths)) == [(2,), (2,), (3,), (3,)]  # latency and memory against H; C; G
    choose(browser, "[data-state=hold-C]", "32")
    assert {len(xs) for lines in source(browser, "lines", "xs") for xs in lines} == {2, 3}


@in_browser
def test_a_map_never_mixes_machines(browser: Any, tmp_path: Path) -> None:
    opened(browser, FORMATS["html"](DOCUMENTS["two machines"]), tmp_path)
    assert {count for counts in source(browser, "cells", "count") for count in counts} == {1}
    before = source(browser, "cells", "log2")
    choose(browser, "[data-state=map-class]", "1")
    assert len(source(browser, "cells", "log2")[0]) == len(before[0]) == 2


@in_browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 500), ("dark", 1200)])
def test_page_fits_its_width_in_both_colour_schemes(browser: Any, scheme: str, width: int, tmp_path: Path) -> None:
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, FORMATS["html"](DOCUMENTS["four axes"]), tmp_path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        colours = browser.execute_script(
            "return Bokeh.documents.map((d) => d.roots()[0].left[0].axis_label_text_color)"
        )
        assert {str(colour) for colour in colours} == {"#e6edf3" if scheme == "dark" else "#1b1f24"}
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_browser
def test_hundreds_of_points_stay_responsive(browser: Any, tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"K": [3, 5, 7, 9], "H": [7, 14, 28, 56], "N": [1, 2, 4, 8], "C": [64, 128, 256]}
    opened(browser, FORMATS["html"](sweep(axes)), tmp_path)
    started = time.monotonic()
    choose(browser, "[data-filter=backend]", "numba")
    browser.execute_script("document.querySelectorAll('th button')[5].click()")
    assert len(visible(browser)) == 192
    assert time.monotonic() - started < 5
    assert complaints(browser) == []


@in_browser
def test_a_comparison_filters_too(browser: Any, tmp_path: Path) -> None:
    found = compare(sweep({"K": [3, 5]}), sweep({"K": [3, 7]}))
    opened(browser, COMPARISON_FORMATS["html"](found), tmp_path, "#verdict=only in A")
    assert complaints(browser) == []
    assert {cells[4] for cells in visible(browser)} == {"-"}
    assert len(visible(browser)) == 9


def plotted(browser: Any) -> list[str]:
    """The headings of the pictures that are shown."""
    script = "return [...document.querySelectorAll('.plots > div')].filter((d) => !d.hidden).map((d) => d.innerText)"
    return [text.split("\n")[0] for text in browser.execute_script(script)]


@in_browser
def test_a_history_draws_filters_and_changes_its_unit(browser: Any, tmp_path: Path) -> None:
    step = History.of(runs(60, {"numba": (40, 1.12)}, noise=0.002))
    opened(browser, str(HISTORY_FORMATS["html"](step)), tmp_path)
    assert complaints(browser) == []
    assert requests(browser) <= {"file", "data"}
    assert plotted(browser) == ["conv2d", "numba", "compiled", "naive"]
    assert [len(xs) for xs in source(browser, "marks", "x")] == [60] * 4
    assert source(browser, "changes", "x") == [[], [40.5], [], []]
    assert [len(levels) for levels in source(browser, "levels", "ys")] == [1, 2, 1, 1]
    in_ms = source(browser, "levels", "ys")[1]
    choose(browser, "[data-state=value]", "relative")
    over = source(browser, "levels", "ys")[1]
    assert over[0][0] == pytest.approx(in_ms[0][0] / 2, rel=0.02)
    assert over[1][0] / over[0][0] == pytest.approx(1.12, rel=0.01)
    choose(browser, "[data-filter=change]", "yes")
    assert plotted(browser) == ["numba"]
    assert [cells[0] for cells in visible(browser, "point")] == ["numba"]
    browser.execute_script("document.getElementById('reset').click()")
    assert len(plotted(browser)) == 4
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert complaints(browser) == []
