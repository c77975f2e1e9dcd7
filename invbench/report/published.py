"""What others say of networks, beside what is counted here: a table of its own, its sources as remarks."""

from __future__ import annotations

from collections.abc import Iterable

from invbench.report.columns import Cell, Grid, Section, rows_of
from invbench.report.counts import Sizes, size_of
from invbench.report.text import MISSING, four_digits, printable, spoken
from invbench.results import Result, ResultSet
from invbench.spec import FREE
from invbench.verdict.networks import (
    IMAGENET,
    PUBLISHED_SIDE,
    PUBLISHED_STEM,
    counts_as_published,
    data_set_of,
    whole_points,
)

HEADING = "As published, beside what is counted here"


def published(results: ResultSet) -> Section | None:
    """A line for each network of which something is published, and for each size and stem that it was counted at."""
    rows = _rows(results)
    if not rows:
        return None
    place = Sizes(rows)
    headings = [*place.headings, "top-1", "params", "counted", "macs as mmcv", "counted"]
    lines = []
    for row in rows:
        said = row.published or {}
        line = [*place.cells(row), Cell(accuracy_as_published(row), said.get("top1"))]
        for name, counted in (("params", row.params), ("macs_mmcv", row.macs_mmcv)):
            line += [_said(said.get(name)), _count(counted)]
        lines.append(line)
    silent = [n for n in range(place.leading, len(headings)) if all(line[n].text == MISSING for line in lines)]
    kept = [n for n in range(len(headings)) if n not in silent]
    shown = Grid([headings[n] for n in kept], place.leading, [[line[n] for n in kept] for line in lines])
    return Section(HEADING, shown, "published")


def _rows(results: ResultSet) -> list[Result]:
    """One row for each network and its counts; those at the size that the figures are for, where there are some."""
    said = [row for _, row in rows_of(whole_points(results)) if row.published and row.backend != FREE]
    alike = {row.subject for row in said if counts_as_published(row)}
    found: dict[tuple[object, ...], Result] = {}
    for row in said:
        if counts_as_published(row) or row.subject not in alike:
            found.setdefault((row.subject, *size_of(row), row.params, row.macs_mmcv), row)
    return list(found.values())


def accuracy_as_published(row: Result) -> str:
    """``78.35 %``, and on what where that is not ImageNet."""
    data_set = data_set_of(row)
    if not row.published or data_set is None:
        return MISSING
    on = "" if data_set == IMAGENET else f" on {printable(data_set)}"
    return f"{row.published['top1']:.2f} %{on}"


def _said(value: int | None) -> Cell:
    """A published figure, with no more digits than it has."""
    if value is None:
        return Cell(MISSING)
    digits, _, unit = four_digits(value).partition(" ")
    return Cell(f"{digits.rstrip('0').rstrip('.')} {unit}" if unit else digits, value)


def _count(value: int | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(four_digits(value), value)


def published_notes(results: ResultSet) -> list[str]:
    """That nobody measured it here, what published multiply-adds are of, and the sources."""
    rows = _rows(results)
    if not rows:
        return []
    on = {data_set_of(row) for row in rows} - {None}
    where = f", on ImageNet{' where no other data set is named' if on != {IMAGENET} else ''}" if IMAGENET in on else ""
    why = ", since the weights are not distributed any more" if IMAGENET in on else ""
    told = [f"top-1 is as published{where}, by the sources below: nobody measured it here{why}"] if on else []
    if any(row.published and row.published.get("macs_mmcv") and _counted_otherwise(row) for row in rows):
        told.append(
            f"published macs are of {PUBLISHED_SIDE}x{PUBLISHED_SIDE} images and a {PUBLISHED_STEM}x{PUBLISHED_STEM} "
            "stem: they differ from those counted at another size"
        )
    return [*told, *sources(rows)]


def _counted_otherwise(row: Result) -> bool:
    return size_of(row) != (PUBLISHED_SIDE, PUBLISHED_SIDE, PUBLISHED_STEM)


def sources(rows: Iterable[Result]) -> list[str]:
    """Where published figures are from; a source of several networks is one line."""
    names: dict[str, list[str]] = {}
    for row in rows:
        if row.published:
            found = names.setdefault(printable(str(row.published["source"])), [])
            found += [row.subject] if row.subject not in found else []
    return [f"published, of {spoken(found)}: {source}" for source, found in names.items()]
