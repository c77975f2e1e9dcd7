"""The tables of a check: a line for each row's latency, and one for each other metric that is not as it was."""

from __future__ import annotations

from collections.abc import Sequence

from invbench.report.columns import Cell, Grid, axis_headings, axis_name, axis_text, row_name
from invbench.report.gate.answer import MARKS
from invbench.report.text import MISSING, SAME, faster_or_slower, printable, seconds, size, three_digits
from invbench.results.check import LATENCY, Check, Finding, Row, Verdict
from invbench.results.quantities import Interval
from invbench.spec import Case
from invbench.verdict.points import AXES, Point, varying

# A smaller change, in percent, is told as a difference.
LEAST = 0.01


def place_of(row: Row) -> Point:
    """Where a row lies on the axes."""
    return _place(row.case)


def places_of(check: Check) -> list[Point]:
    """The different places of all rows of a check."""
    return [_place(case) for case in dict.fromkeys(finding.row.case for finding in check.findings)]


def name_of(row: Row) -> str:
    """What a row is called, as in other tables."""
    return row_name(row.subject, row.backend, row.case)


def label(row: Row, places: Sequence[Point]) -> str:
    """A row's name and its place on the axes that vary: ``numba at K=7 H=W=14``."""
    axes = place_of(row).axes
    told = " ".join(f"{axis_name(axis, places)}={axis_text(axes[axis])}" for axis in varying(places))
    return printable(f"{name_of(row)} at {told}" if told else name_of(row))


def latency_grid(check: Check, brief: bool = False) -> Grid:
    """A line for each row: both latencies, head over base, the noise, what would have shown, the verdict.

    brief: ratios without how far launches were apart.
    """
    places = places_of(check)
    axes, leading = varying(places), _leading(places)
    lines = [[*_lead(finding, axes), *_latency_cells(finding, brief)] for finding in check.latencies]
    return Grid([*leading, "base", "head", "head / base", "floor", "visible", "verdict"], len(leading), lines)


def changes(check: Check) -> list[Finding]:
    """What is not PASS but latency."""
    return [f for f in check.findings if f.metric != LATENCY and f.verdict is not Verdict.PASS]


def changes_grid(check: Check) -> Grid:
    """A line for each of ``changes``."""
    places = places_of(check)
    axes, leading = varying(places), [*_leading(places), "metric"]
    lines = [
        [*_lead(f, axes), Cell(f.metric, f.metric), *_values(f), _change(f), _verdict(f)] for f in changes(check)
    ]  # fmt: skip
    return Grid([*leading, "base", "head", "change", "verdict"], len(leading), lines)


def ratio_in_words(ratio: Interval, brief: bool = False) -> str:
    """``1.08x slower [1.06, 1.09]``: the range of launches, in the same direction as the median."""
    words = faster_or_slower(ratio.median)
    if brief:
        return words
    faster = ratio.median < 1 - SAME
    low, high = (1 / ratio.high, 1 / ratio.low) if faster else (ratio.low, ratio.high)
    return f"{words} [{three_digits(low)}, {three_digits(high)}]"


def _leading(places: Sequence[Point]) -> list[str]:
    return [*axis_headings(places), "backend"]


def _lead(finding: Finding, axes: Sequence[str]) -> list[Cell]:
    place, name = place_of(finding.row).axes, printable(name_of(finding.row))
    return [*(Cell(axis_text(place[axis]), place[axis]) for axis in axes), Cell(name, name)]


def _latency_cells(finding: Finding, brief: bool) -> list[Cell]:
    ratio = finding.ratio
    return [
        *(_seconds(value) for value in (finding.base, finding.head)),
        Cell(ratio_in_words(ratio, brief), ratio.median) if ratio else Cell(MISSING),
        *(Cell(MISSING) if share is None else Cell(f"{share:.1%}", share)
          for share in (finding.floor, finding.smallest_effect)),
        _verdict(finding),
    ]  # fmt: skip


def _seconds(value: float | str | None) -> Cell:
    return Cell(seconds(value), value) if isinstance(value, int | float) and value > 0 else Cell(MISSING)


def _verdict(finding: Finding) -> Cell:
    return Cell(str(finding.verdict), str(finding.verdict), MARKS[finding.verdict])


def _values(finding: Finding) -> list[Cell]:
    """Both values, exact where their short forms would be alike."""
    values = (finding.base, finding.head)
    short, exact = ([_text(finding, value, exact) for value in values] for exact in (False, True))
    texts = exact if short[0] == short[1] else short
    return [Cell(text, _sortable(value)) for text, value in zip(texts, values, strict=True)]


def _text(finding: Finding, value: float | str | None, exact: bool) -> str:
    if value is None or isinstance(value, str):
        return MISSING if value is None else printable(value)
    if finding.metric in ("memory", "kept"):
        return f"{value:,.0f} B" if exact else size(value)
    return f"{value:,.0f}"


def _sortable(value: float | str | None) -> float | str | None:
    return printable(value) if isinstance(value, str) else value


def _change(finding: Finding) -> Cell:
    base, head = finding.base, finding.head
    if base is None or head is None or isinstance(base, str) or isinstance(head, str) or not base:
        return Cell(MISSING)
    change = 100 * (head / base - 1)
    if abs(change) < LEAST:
        return Cell(f"{head - base:+,.0f}", change)
    return Cell(f"{change:+.0f}%" if abs(change) >= 10 else f"{change:+.2g}%", change)


def _place(case: Case) -> Point:
    return Point((), {**dict.fromkeys(AXES), **case.to_dict()})
