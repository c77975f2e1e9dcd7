"""Markdown for pull requests and READMEs."""

from __future__ import annotations

from collections.abc import Iterable

from invbench.report.columns import Grid, grid, summary
from invbench.report.headline import machine, method, sentences, title
from invbench.report.networks import breakdown, network_grid, network_notes, network_sentences
from invbench.report.notes import notes
from invbench.results import ResultSet
from invbench.verdict.points import points_of


def render_markdown(results: ResultSet) -> str:
    """The answer, a table, and how it was measured; of many points a line each, and all rows below."""
    networks = results.networks()
    parts = [_networks(networks)] if networks.results else []
    if len(networks.results) < len(results.results) or not parts:
        parts.insert(0, _operators(results.operators()))
    return "\n\n".join(parts)


def _operators(results: ResultSet) -> str:
    lines = _above(results, sentences(results))
    if len(points_of(results)) > 1:
        lines += [*markdown_table(summary(results)), "", f"All {len(results.results)} rows:", ""]
    lines += [*markdown_table(grid(results)), "", *(f"* {note}" for note in notes(results))]
    return "\n".join(lines).rstrip()


def _networks(results: ResultSet) -> str:
    lines = [*_above(results, network_sentences(results)), *markdown_table(network_grid(results)), ""]
    section = breakdown(results)
    if section:
        lines += [f"{section.heading}:", "", *markdown_table(section.grid), ""]
    lines += [f"* {note}" for note in (*notes(results), *network_notes(results))]
    return "\n".join(lines).rstrip()


def _above(results: ResultSet, told: Iterable[str]) -> list[str]:
    answer = "  \n".join(f"**{sentence}**" for sentence in told)
    return [answer, "", f"{title(results)}  ", f"{machine(results)}  ", method(results), ""]


def markdown_table(table: Grid) -> Iterable[str]:
    """The lines of a table; the columns that lead are aligned left."""
    right = len(table.headings) - table.leading
    yield _row(table.headings)
    yield _row([*["---"] * table.leading, *["---:"] * right])
    yield from map(_row, table.rows)


def _row(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"
