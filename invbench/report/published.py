"""What others say of networks, beside what is counted here: a table of its own, its sources as remarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from invbench.report.columns import Cell, Grid, Section, rows_of
from invbench.report.counts import Sizes, size_of
from invbench.report.text import MISSING, four_digits, printable, spoken
from invbench.results import Result, ResultSet
from invbench.spec import FREE
from invbench.verdict.networks import (
    IMAGENET,
    TOP1,
    counts_as_published,
    data_set_of,
    published_size,
    published_stem,
    scores_of,
    whole_points,
)

# What is counted beside what is published, by heading.
COUNTS = {"params": "params", "macs": "macs", "macs as mmcv": "macs_mmcv"}
HEADING = "As published, beside what is counted here"


def published(results: ResultSet) -> Section | None:
    """A line for each network of which something is published, and for each size and stem that it was counted at."""
    rows = _rows(results)
    if not rows:
        return None
    place = Sizes(rows)
    names = dict.fromkeys(name for row in rows for name in scores_of(row))
    counts = [
        (heading, name) for heading, name in COUNTS.items() if any((row.published or {}).get(name) for row in rows)
    ]
    headings = [*place.headings, *names, *(heading for each, _ in counts for heading in (each, "counted"))]
    lines = []
    for row in rows:
        said = row.published or {}
        line = [*place.cells(row), *(_score(row, name) for name in names)]
        for _, name in counts:
            line += [_said(said.get(name)), _count(getattr(row, name))]
        lines.append(line)
    return Section(HEADING, Grid(headings, place.leading, lines), "published")


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
    return _score(row, TOP1).text


def _score(row: Result, name: str) -> Cell:
    """A published accuracy; top-1 with what it is on where that is not ImageNet, others have one data set each."""
    value = scores_of(row).get(name)
    if value is None:
        return Cell(MISSING)
    if name != TOP1:
        return Cell(f"{value:.1f} %", value)
    data_set = data_set_of(row)
    return Cell(f"{value:.2f} %{'' if data_set == IMAGENET else f' on {printable(str(data_set))}'}", value)


def _said(value: int | None) -> Cell:
    """A published figure, with no more digits than it has."""
    if value is None:
        return Cell(MISSING)
    digits, _, unit = four_digits(value).partition(" ")
    return Cell(f"{digits.rstrip('0').rstrip('.')} {unit}" if unit else digits, value)


def _count(value: int | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(four_digits(value), value)


def published_notes(results: ResultSet) -> list[str]:
    """That nobody measured it here, what published multiply-adds are of, what they are not, and the sources."""
    rows = _rows(results)
    if not rows:
        return []
    return [
        *_accuracies(rows),
        *_counted_otherwise(rows),
        *_by_network(rows, _notes),
        *_elsewhere(rows),
        *sources(rows),
    ]


def _accuracies(rows: Sequence[Result]) -> Iterator[str]:
    """Which accuracies stand there, on what, and that nobody measured them here."""
    why = ", since the weights are not distributed any more"
    on = {data_set_of(row) for row in rows if TOP1 in scores_of(row)}
    if on:
        others = " where no other data set is named" if on != {IMAGENET} else ""
        where = f", on ImageNet{others}" if IMAGENET in on else ""
        known = why if IMAGENET in on else ""
        yield f"{TOP1} is as published{where}, by the sources below: nobody measured it here{known}"
    scores: dict[str, list[str]] = {}
    for row in rows:
        for name in scores_of(row):
            found = scores.setdefault(printable(str(data_set_of(row))), [])
            found += [name] if name != TOP1 and name not in found else []
    told = [f"{spoken(names)} on {data_set}" for data_set, names in scores.items() if names]
    if told:
        is_one = sum(map(len, scores.values())) == 1
        them, are = ("it", "is") if is_one else ("them", "are")
        yield f"{spoken(told)} {are} as published, by the sources below: nobody measured {them} here{why}"


def _counted_otherwise(rows: Sequence[Result]) -> Iterator[str]:
    """Which published multiply-adds are of other images, or of another stem, than those that were counted."""
    said = [row for row in rows if any((row.published or {}).get(name) for name in ("macs", "macs_mmcv"))]
    groups: dict[str, list[str]] = {}
    for row in said:
        size, stem = published_size(row), published_stem(row)
        if size and not counts_as_published(row):
            groups.setdefault(f"{size[0]}x{size[1]} images: they differ from those counted at another size", []).append(
                row.subject
            )
        if stem not in (None, size_of(row)[2]):
            groups.setdefault(f"a {stem}x{stem} stem: they differ from those counted with another", []).append(
                row.subject
            )
    for told, found in groups.items():
        yield f"published macs{_whose(found, said)} are of {told}"


def _whose(names: Sequence[str], rows: Sequence[Result]) -> str:
    """Of which networks, where it is not all of them."""
    each = list(dict.fromkeys(names))
    return "" if len(each) == len({row.subject for row in rows}) else f" of {spoken(each)}"


def _notes(row: Result) -> Sequence[str]:
    return (row.published or {}).get("notes") or ()


def _by_network(rows: Sequence[Result], notes: Callable[[Result], Sequence[str]]) -> list[str]:
    """Each note once, with the networks that it is about."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for note in notes(row):
            found.setdefault(printable(note), []).append(row.subject)
    return [f"{spoken(list(dict.fromkeys(names)))}: {note}" for note, names in found.items()]


def _elsewhere(rows: Sequence[Result]) -> list[str]:
    """Other accuracies, by who gives them."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        for who, top1 in ((row.published or {}).get("elsewhere") or {}).items():
            found.setdefault(printable(who), {})[row.subject] = top1
    return [
        f"{who} gives another {TOP1}: {', '.join(f'{value:.1f} % ({name})' for name, value in values.items())}"
        for who, values in found.items()
    ]


def sources(rows: Iterable[Result]) -> list[str]:
    """Where published figures are from; a source of several networks is one line."""
    names: dict[str, list[str]] = {}
    said = [row for row in rows if row.published]
    for row in said:
        names.setdefault(printable(str((row.published or {})["source"])), []).append(row.subject)
    return [f"published{_of(_whose(found, said))}: {source}" for source, found in names.items()]


def _of(whose: str) -> str:
    return f",{whose}" if whose else ""
