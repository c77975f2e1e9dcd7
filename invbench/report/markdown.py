"""Markdown for pull requests and READMEs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from invbench.report.columns import Grid, grid, summary
from invbench.report.headline import machine, method, nodes_of, sentences, title
from invbench.report.machines import HEADING, MachinePart, beside, parts_of, shared_method
from invbench.report.notes import failures, notes, of_all_machines, of_one_machine
from invbench.report.whole import Whole, whole_by_machine, whole_parts
from invbench.results import ResultSet
from invbench.verdict.points import points_of


def render_markdown(results: ResultSet) -> str:
    """The answer, a table, and how it was measured; of many points a line each, and all rows below."""
    whole = whole_parts(results)
    operators = results.operators()
    parts = [_operators(operators)] if operators.results or not whole else []
    return "\n\n".join([*parts, *map(_whole, whole_by_machine(whole))])


def _operators(results: ResultSet) -> str:
    parts = parts_of(results)
    if parts:
        return _machines(results, parts)
    lines = _above(sentences(results), title(results), results, method(results))
    return "\n".join([*lines, *_rows(results, notes(results))]).rstrip()


def _machines(results: ResultSet, parts: Sequence[MachinePart]) -> str:
    """All machines side by side, and then a part for each."""
    lines = [_answer(sentences(results)), "", *_lines(filter(None, (title(results), shared_method(results))))]
    if told := beside(results):
        lines += [f"### {HEADING}", "", f"{told.hint}:", "", *markdown_table(told.grid), ""]
        lines += [*(f"* {note}" for note in told.notes), ""] if told.notes else []
    for part in parts:
        remarks = [*failures(part.results), *of_one_machine(part.results)]
        lines += [f"### {part.heading}", "", *_lines(part.above), *_rows(part.results, remarks), ""]
    return "\n".join([*lines, *(f"* {note}" for note in of_all_machines(results))]).rstrip()


def _rows(results: ResultSet, remarks: Iterable[str]) -> Iterator[str]:
    if len(points_of(results)) > 1:
        yield from (*markdown_table(summary(results)), "", f"All {len(results.results)} rows:", "")
    yield from (*markdown_table(grid(results)), "", *(f"* {remark}" for remark in remarks))


def _whole(part: Whole) -> str:
    lines = [f"### {part.machine}", ""] if part.machine else []
    lines += _above([*part.warnings, *part.sentences], part.title, part.results, part.method)
    lines += [*markdown_table(part.grid), ""]
    for section in part.sections:
        lines += [f"{section.heading}:", "", *markdown_table(section.grid), ""]
    lines += [f"* {note}" for note in part.notes]
    return "\n".join(lines).rstrip()


def _above(told: Iterable[str], what: str, results: ResultSet, how: str) -> list[str]:
    return [_answer(told), "", *_lines([what, machine(results), *nodes_of(results), how])]


def _answer(told: Iterable[str]) -> str:
    return "  \n".join(f"**{sentence}**" for sentence in told)


def _lines(texts: Iterable[str]) -> list[str]:
    return ["  \n".join(texts), ""]


def markdown_table(table: Grid) -> Iterable[str]:
    """The lines of a table; the columns that lead are aligned left."""
    right = len(table.headings) - table.leading
    yield _row(table.headings)
    yield _row([*["---"] * table.leading, *["---:"] * right])
    yield from map(_row, table.rows)


def _row(texts: list[str]) -> str:
    escaped = [text.replace("|", "\\|") for text in texts]
    return f"| {' | '.join(escaped)} |"
