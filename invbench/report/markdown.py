"""Markdown for pull requests and READMEs."""

from __future__ import annotations

from collections.abc import Iterable

from invbench.report.columns import Grid, grid, summary
from invbench.report.headline import machine, method, sentences, title
from invbench.report.notes import notes
from invbench.report.whole import Whole, whole_parts
from invbench.results import ResultSet
from invbench.verdict.points import points_of


def render_markdown(results: ResultSet) -> str:
    """The answer, a table, and how it was measured; of many points a line each, and all rows below."""
    whole = whole_parts(results)
    operators = results.operators()
    parts = [_operators(operators)] if operators.results or not whole else []
    return "\n\n".join([*parts, *map(_whole, whole)])


def _operators(results: ResultSet) -> str:
    lines = _above(sentences(results), title(results), results, method(results))
    if len(points_of(results)) > 1:
        lines += [*markdown_table(summary(results)), "", f"All {len(results.results)} rows:", ""]
    lines += [*markdown_table(grid(results)), "", *(f"* {note}" for note in notes(results))]
    return "\n".join(lines).rstrip()


def _whole(part: Whole) -> str:
    lines = _above([*part.warnings, *part.sentences], part.title, part.results, part.method)
    lines += [*markdown_table(part.grid), ""]
    for section in part.sections:
        lines += [f"{section.heading}:", "", *markdown_table(section.grid), ""]
    lines += [f"* {note}" for note in part.notes]
    return "\n".join(lines).rstrip()


def _above(told: Iterable[str], what: str, results: ResultSet, how: str) -> list[str]:
    answer = "  \n".join(f"**{sentence}**" for sentence in told)
    return [answer, "", f"{what}  ", f"{machine(results)}  ", how, ""]


def markdown_table(table: Grid) -> Iterable[str]:
    """The lines of a table; the columns that lead are aligned left."""
    right = len(table.headings) - table.leading
    yield _row(table.headings)
    yield _row([*["---"] * table.leading, *["---:"] * right])
    yield from map(_row, table.rows)


def _row(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"
