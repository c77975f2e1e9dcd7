"""The frame of every page: the document around a body, and what stands above and below its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from invbench.report.notes import failures, remarks
from invbench.report.web.tables import answers, definitions, esc, items, script_data
from invbench.results import ResultSet
from invbench.verdict.points import machine_names

# The page may run what is in it and fetch nothing.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(body: str, data: Mapping[str, Any], with_plots: bool = False) -> str:
    """The document around a body; data: what the scripts need."""
    scripts = [f'<script type="application/json" id="data">{script_data(data)}</script>', _script("page.js")]
    if with_plots:
        from bokeh.resources import Resources

        scripts += [Resources(mode="inline", components=["bokeh"], log_level="error").render_js()]
        scripts += map(_script, ("scatter.js", "curves.js", "history.js", "plots.js"))
    joined = "\n".join(scripts)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>invbench</title>
<style>
{_file("style.css")}</style>
<body>
{body}
{joined}
</body>
</html>"""


def _file(name: str) -> str:
    from importlib import resources

    return resources.files("invbench.report.web").joinpath(name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    return f"<script>\n{_file(name)}</script>"


def section(heading: str, inner: str, level: int = 2) -> list[str]:
    """A part of a page under its heading, or nothing."""
    return [f"<h{level}>{esc(heading)}</h{level}>", inner] if inner else []


def above(lines: Iterable[str], told: Iterable[str]) -> list[str]:
    """The answer, and what was measured, where and how."""
    return ["<h1>invbench</h1>", answers(told), how(lines)]


def how(lines: Iterable[str]) -> str:
    """What was measured, where and how."""
    return f'<p class="how">{"<br>".join(map(esc, lines))}</p>'


def below(results: ResultSet) -> list[str]:
    """What failed, remarks, the environment and the command."""
    return [
        *section("Not measured", items(failures(results))), *section("Remarks", items(remarks(results))),
        *section("Environment", _environment(results)),
        f'<p class="how"><code>{esc(results.command)}</code>, {esc(results.created)}, '
        f"invbench {esc(results.tool_version)}</p>",
    ]  # fmt: skip


def _environment(results: ResultSet) -> str:
    machines, names = results.machines or {"": results.environment}, machine_names(results)
    told = "".join(
        f"<details><summary>{esc(f'Machine {names.get(key, key)}'.strip())}</summary>"
        f"<dl>{definitions(found)}</dl></details>"
        for key, found in machines.items()
    )
    return f"{told}<details><summary>Settings</summary><dl>{definitions(results.settings)}</dl></details>"
