"""What the cells of a table cannot hold: why rows have no latency, warnings, chosen layouts; each of them once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from invbench.report.columns import axis_name, axis_text, name_of, rows_of
from invbench.report.text import plural, printable, spoken
from invbench.results import Result, ResultSet, Status
from invbench.verdict.points import ATTENTION, Point, machine_names, points_of, varying

# What rows of attention have in common with those of involution, and what not.
SAME_SUM = (
    "attention: like involution, each output is a sum over the window with weights made on the spot (axial: over its "
    "column, then its row); involution makes them from the pixel in the middle, attention from others, too",
    "attention rows are whole layers, their 1x1 projections included, whatever the scope",
)
INTERRUPTED = "warning: interrupted: the rows hold what was measured until then"
# Up to so many points are named one by one.
NAMED = 3


def notes(results: ResultSet) -> list[str]:
    """Everything that a reader of the table has to be told besides."""
    return [*failures(results), *remarks(results)]


def failures(results: ResultSet) -> list[str]:
    """Rows without a latency, and why; a reason that holds at many points is one line. Of several classes of machines
    one after the other."""
    return _by_machine(results, _failures)


def remarks(results: ResultSet) -> list[str]:
    """What attention is, the layouts chosen, all warnings, and whether the run was interrupted."""
    return [*_attention(results), *_by_machine(results, of_one_machine), *_interrupted(results)]


def of_all_machines(results: ResultSet) -> list[str]:
    """Of these what holds on any machine: what attention is, and whether the run was interrupted."""
    return [*_attention(results), *_interrupted(results)]


def _attention(results: ResultSet) -> Sequence[str]:
    return SAME_SUM if any(row.subject in ATTENTION for row in results.results) else ()


def _interrupted(results: ResultSet) -> list[str]:
    return [INTERRUPTED] * results.interrupted


def of_one_machine(results: ResultSet) -> list[str]:
    """The layouts chosen and all warnings."""
    points = points_of(results)
    return _layouts(results, len(points)) + (_warnings(results) if len(points) <= 1 else _warnings_over(points))


def _by_machine(results: ResultSet, tell: Callable[[ResultSet], list[str]]) -> list[str]:
    apart, names = results.by_machine(), machine_names(results)
    told = [f"{printable(names[key])}: {note}" for key, own in apart.items() for note in tell(own)]
    return told if apart else tell(results)


def _failures(results: ResultSet) -> list[str]:
    points = points_of(results)
    if len(points) <= 1:
        bad = [r for r in results.results if r.status is not Status.OK]
        return [f"{name_of(r)}: {r.status}: {printable(r.reason or 'no reason')}" for r in bad]
    found: dict[tuple[str, str, str], _Held] = {}
    for point, row in rows_of(points):
        if row.status is not Status.OK:
            reason = printable(row.reason or "no reason")
            found.setdefault((name_of(row), str(row.status), _without_numbers(reason)), _Held()).add(point, row, reason)
    return [f"{name}: {status} {held.where(points)}: {held.text}" for (name, status, _), held in found.items()]


def _layouts(results: ResultSet, points: int) -> list[str]:
    chosen: dict[str, Counter[str]] = {}
    for row in results.results:
        if row.chosen_layout:
            chosen.setdefault(name_of(row), Counter())[row.chosen_layout] += 1
    told = []
    for name, layouts in chosen.items():
        each = [f"{layout} at {number}" for layout, number in layouts.most_common()]
        told.append(f"{name} {spoken(each) if len(each) > 1 else next(iter(layouts))}")
    return [f"the faster layout: {(', ' if points <= 1 else '; ').join(told)}"] if told else []


def _warnings(results: ResultSet) -> list[str]:
    rows_by_warning: dict[str, list[str]] = {}
    for result in results.results:
        for warning in result.warnings:
            rows_by_warning.setdefault(printable(warning), []).append(name_of(result))
    everyone = sum(result.latency is not None for result in results.results)
    return [
        f"warning: {warning}" if len(rows) == everyone else f"warning: {', '.join(rows)}: {warning}"
        for warning, rows in rows_by_warning.items()
    ]


def _warnings_over(points: Sequence[Point]) -> list[str]:
    found: dict[str, _Held] = {}
    for point, row in rows_of(points):
        for warning in map(printable, row.warnings):
            found.setdefault(_without_numbers(warning), _Held()).add(point, row, warning)
    timed = [row for _, row in rows_of(points) if row.latency]
    everyone, names = len(timed), {name_of(row) for row in timed}
    told = []
    for held in found.values():
        own = list(dict.fromkeys(name_of(row) for row in held.rows))
        who = f" of {', '.join(own)}" if set(own) < names else ""
        rows = "" if len(held.rows) == everyone else f"{plural(len(held.rows), 'row')}{who} "
        told.append(f"warning: {rows}{held.where(points)}: {held.text}")
    return told


@dataclass
class _Held:
    """The rows for which a text holds, and the text, which may have other numbers in each."""

    points: list[Point] = field(default_factory=list)
    rows: list[Result] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, point: Point, row: Result, text: str) -> None:
        self.rows.append(row)
        if not self.points or self.points[-1] is not point:
            self.points.append(point)
        if text not in self.texts:
            self.texts.append(text)

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else f"such as {self.texts[0]}"

    def where(self, points: Sequence[Point]) -> str:
        """At how many points, and what those have in common."""
        if len(self.points) == len(points):
            return f"at all {len(points)} points"
        axes = varying(points)
        if len(self.points) <= NAMED:
            return f"at {'; '.join(label(point, points) for point in self.points)}"
        shared = [
            f"{axis_name(axis, points)}={axis_text(self.points[0].axes[axis])}"
            for axis in axes if len({point.axes[axis] for point in self.points}) == 1
        ]  # fmt: skip
        return f"at {len(self.points)} of {len(points)} points{f', all with {spoken(shared)}' if shared else ''}"


def label(point: Point, points: Sequence[Point]) -> str:
    """A point by its place on the axes that vary: ``K=3 H=W=14``."""
    axes = varying(points)
    return " ".join(f"{axis_name(axis, points)}={axis_text(point.axes[axis])}" for axis in axes)


def _without_numbers(text: str) -> str:
    """By which reasons and warnings that differ only in what they measured are one."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
