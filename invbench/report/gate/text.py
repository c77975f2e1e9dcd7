"""Checks for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from invbench.report.columns import Grid, stacked
from invbench.report.gate.told import Group, Told, groups_of
from invbench.report.markdown import markdown_table
from invbench.report.table import MARKED, canvas, finished, fits, piece_of, print_grid, table_of, terminal_width
from invbench.results import ResultSet
from invbench.results.check import BASE, Verdict

# In Markdown, more rows than this that pass are folded away.
FOLDED = 12


def render_checks_table(results: ResultSet, width: int | None = None) -> str:
    """For a terminal: the tables, what they cannot hold, and the verdict last."""
    text, console = canvas(width or terminal_width())
    told = groups_of(results)
    for n, group in enumerate(told):
        for part in group.parts:
            if len(told) > 1 or group.is_self_test:
                console.print(Text(part.heading, style="underline"))
            _print_part(part, console)
            if group.is_self_test:
                console.print(Text(part.sentence), end="\n\n")
        console.print(Text(group.answer, style=f"bold {MARKED[group.mark]}"), end="\n\n" if n < len(told) - 1 else "\n")
    return finished(text)


def _print_part(part: Told, console: Console) -> None:
    for line in part.above:
        console.print(Text(line))
    if part.grid.lines:
        _print_latencies(part, console)
    if part.changes:
        print_grid(part.changes, console)
    for note in part.notes:
        console.print(Text(f"* {note}"))


def _print_latencies(part: Told, console: Console) -> None:
    """The most that has room: all, without ranges, without base, the axes in lines of their own; else in pieces."""
    brief = part.brief
    short = piece_of(brief, [n for n in range(brief.leading, len(brief.headings)) if brief.headings[n] != BASE])
    choices = (part.grid, brief, short, stacked(brief), stacked(short))
    shown = next((grid for grid in choices if fits(table_of(grid), console)), stacked(brief))
    print_grid(shown, console)
    if BASE not in shown.headings:
        console.print(Text("* no room for base and ranges: --format markdown, csv or html has them"))


def render_checks_markdown(results: ResultSet) -> str:
    """For the summary of a job, or a pull request: the verdict first."""
    told = groups_of(results)
    return "\n\n".join("\n".join(_markdown(group, len(told) > 1)).rstrip() for group in told)


def _markdown(group: Group, several: bool) -> Iterator[str]:
    yield from (f"**{group.answer}**", "")
    for part in group.parts:
        if several or group.is_self_test:
            yield from (f"### {part.heading}", "")
        if group.is_self_test:
            yield from (part.sentence, "")
        yield from _markdown_part(part)


def _markdown_part(part: Told) -> Iterator[str]:
    if part.above:
        yield from (*(f"{line}  " for line in part.above[:-1]), part.above[-1], "")
    passing = [finding.verdict is Verdict.PASS for finding in part.check.latencies]
    folds = sum(passing) > FOLDED
    shown = _chosen(part.grid, [not (each and folds) for each in passing])
    if shown.lines:
        yield from (*markdown_table(shown), "")
    if folds:
        folded = _chosen(part.grid, passing)
        yield from ("<details>", f"<summary>{len(folded.lines)} rows that pass</summary>", "")
        yield from (*markdown_table(folded), "", "</details>", "")
    if part.changes:
        yield from (*markdown_table(part.changes), "")
    if part.notes:
        yield from (*(f"* {note}" for note in part.notes), "")


def _chosen(grid: Grid, wanted: list[bool]) -> Grid:
    return replace(grid, lines=[line for line, is_wanted in zip(grid.lines, wanted, strict=True) if is_wanted])
