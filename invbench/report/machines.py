"""Several classes of machines in one document: a part for each, and all of them side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from invbench.report.columns import Cell, Grid, axis_headings, axis_text, told_apart
from invbench.report.headline import fixed, machine, method, nodes_of, title_of
from invbench.report.text import MISSING, faster_or_slower, plural, printable, seconds
from invbench.results import ResultSet, Status
from invbench.results.quantities import Interval
from invbench.verdict.points import CLASS, Point, machine_names, points_of, varying
from invbench.verdict.side_by_side import Means, SideBySide, side_by_side

HEADING = "Machines side by side"


@dataclass(frozen=True)
class MachinePart:
    """What one class of machines measured. above: what is told of it besides what all share."""

    heading: str
    results: ResultSet
    above: tuple[str, ...]


def parts_of(results: ResultSet) -> list[MachinePart]:
    """A part for each class of machines; empty where there is one only."""
    names, said = machine_names(results), fixed(points_of(results))
    alike = shared_method(results)
    found = []
    for key, own in results.by_machine().items():
        name = printable(names[key])
        told = [title_of(points_of(own), said), machine(own), *nodes_of(own), "" if alike else method(own)]
        found.append(MachinePart(name, own, tuple(filter(None, told))))
    return found


def shared_method(results: ResultSet) -> str:
    """How the latencies were taken where that is the same on all machines, else empty."""
    each = {method(own) for own in results.by_machine().values()}
    return each.pop() if len(each) == 1 else ""


@dataclass(frozen=True)
class Beside:
    """The table of all machines. points: for each line, those of the document that it is about, by their numbers."""

    hint: str
    grid: Grid
    points: list[list[int]]
    notes: list[str]


def beside(results: ResultSet) -> Beside | None:
    """A line for each point and a column for each class of machines; None where there is one class only."""
    found = side_by_side(results)
    if found is None:
        return None
    names = machine_names(results)
    places = [Point((), place.axes) for place in found.places]
    axes = varying(places)
    lines = [
        [*(Cell(axis_text(place.axes[axis]), place.axes[axis]) for axis in axes),
         *(_cell(place.points.get(key), place.ratio(key)) for key in found.machines)]
        for place in found.places
    ]  # fmt: skip
    headings = [*axis_headings(places), *(printable(names[key]) for key in found.machines)]
    foot = [_foot(means, axes, found) for means in found.means if means.places]
    numbers = {id(point.rows[0]): number for number, point in enumerate(points_of(results))}
    points = [[numbers[id(point.rows[0])] for point in place.points.values()] for place in found.places]
    return Beside(_hint(found), Grid(headings, len(axes), lines, foot), points, list(_notes(found)))


def _hint(found: SideBySide) -> str:
    baselines = {place.axes["baseline"] for place in found.places}
    to = f" and how it does against {printable(str(baselines.pop()))}" if len(baselines) == 1 else ""
    return f"The fastest involution on each machine,{to} on the same machine"


def _cell(point: Point | None, ratio: Interval | None) -> Cell:
    """``7.77 ms, 22.1x faster (numba)``, or why there is no time; sorted by the ratio, which is what is compared."""
    if point is None:
        return Cell(MISSING)
    best = point.best
    if best is None or best.seconds is None:
        statuses = {str(row.status) for row in point.rows if row.subject == "involution"} - {str(Status.OK)}
        failed = sorted(statuses - {str(Status.UNAVAILABLE)}) or sorted(statuses)
        return Cell(", ".join(failed) or MISSING)
    told = [seconds(best.seconds), *([told_apart(ratio)] if ratio else [])]
    compared = point.axes["baseline"] is not None
    return Cell(f"{', '.join(told)} ({printable(best.backend)})", _median(ratio) if compared else best.seconds)


def _median(ratio: Interval | None) -> float | None:
    return ratio.median if ratio else None


def _foot(means: Means, axes: Sequence[str], found: SideBySide) -> list[Cell]:
    """The line of means; what it is called stands on an axis along which it is a mean."""
    own = (*CLASS, "baseline")
    place = next(index for index, axis in enumerate(axes) if axis not in own)
    line = [Cell(axis_text(means.axes[axis])) if axis in own else Cell("") for axis in axes]
    line[place] = Cell(f"geometric mean of {means.places}")
    for key in found.machines:
        mean = means.means.get(key)
        line.append(Cell(MISSING) if mean is None else Cell(faster_or_slower(mean), mean))
    return line


def _notes(found: SideBySide) -> Iterator[str]:
    means = found.means
    if any(each.places for each in means):
        yield "geometric means are over the points that all machines of the line have timed, and no other"
    for each in means:
        if not each.places:
            kind = ", ".join(f"{name} {value}" for name in CLASS if (value := each.axes[name]) is not None)
            yield f"no point with {kind} was timed on all machines: there is no mean over {plural(each.whole, 'point')}"
    if found.repeated:
        yield f"at {plural(found.repeated, 'point')} a machine has several runs: the last one is shown"
