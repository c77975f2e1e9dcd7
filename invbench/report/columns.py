"""The table of a document: its columns, and a line for each result with the axes that vary in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from invbench.report.text import (
    MISSING,
    count,
    faster_or_slower,
    printable,
    seconds_with_interval,
    size,
    three_digits,
    times,
)
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Interval, Ratio
from invbench.spec import AnyCase, Regime, TrainingCase
from invbench.verdict.points import ATTENTION, CONVOLUTIONS, Point, points_of, square, varying


def name_of(result: Result) -> str:
    """What a row is called: involution by its backend, another operator by its kind, a network by all it has."""
    return row_name(result.subject, result.backend, result.case, result.regime)


def row_name(subject: str, backend: str, case: AnyCase, regime: Regime | None = None) -> str:
    """The name of a row: see ``name_of``."""
    whole = subject if backend == "torch" else f"{subject} ({backend})"
    if isinstance(case, TrainingCase):
        return whole
    if subject in ATTENTION:
        return whole
    if regime is None:
        return backend if subject == "involution" else subject
    return f"{whole}, {regime}"


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, the part of a narrow page that it stands in (such as ``speed``), its cell and its number in a row.

    keep: where there is no room for all, the columns with the lowest go first.
    """

    heading: str
    part: str
    cell: Callable[[Result], str]
    value: Callable[[Result], float | None]
    keep: int = 0


def columns(results: ResultSet) -> list[Column]:
    """The columns after the backend's; no ratio where there is no baseline."""
    baselines = {results.baseline_of(result) for result in results.results} or {results.baseline}
    to = f"vs {next(iter(baselines))}" if len(baselines) == 1 else "vs baseline"
    found = [
        Column("latency [95 %]", "speed", _latency, lambda r: r.seconds, 9),
        Column(to, "speed", _ratio, _median_ratio, 8),
        Column("GFLOP/s", "speed", lambda r: _giga(r.flop_per_s), lambda r: r.flop_per_s, 5),
        Column("GB/s", "speed", lambda r: _giga(r.bytes_per_s), lambda r: r.bytes_per_s, 2),
        Column("roofline", "speed", _roofline, lambda r: r.roofline_fraction, 6),
        Column("peak memory", "cost", _peak, _bytes, 7),
        Column("params", "cost", lambda r: _count(r, r.params, (r.ratio or Ratio()).params), lambda r: r.params, 3),
        Column("FLOP", "cost", lambda r: _count(r, r.flop, (r.ratio or Ratio()).flop), lambda r: r.flop, 4),
    ]
    return [column for column in found if baselines != {None} or column.cell is not _ratio]


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a table, and what it is sorted by; None goes last. mark: good, doubt or bad, which colours it."""

    text: str
    value: float | str | None = None
    mark: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table: headings, how many columns lead (the axes and the name), and its lines; foot: lines over all of them."""

    headings: list[str]
    leading: int
    lines: list[list[Cell]]
    foot: list[list[Cell]] = field(default_factory=list)

    @property
    def rows(self) -> list[list[str]]:
        """The text of each line's cells, those of the foot last."""
        return [[cell.text for cell in line] for line in (*self.lines, *self.foot)]


@dataclass(frozen=True, slots=True)
class Section:
    """A table that stands below the main one, under its heading; kind: a word for what its lines are."""

    heading: str
    grid: Grid
    kind: str


def stacked(table: Grid) -> Grid:
    """The same with the axes in lines of their own above their rows, which leaves the width to the numbers."""
    axes = table.leading - 1
    if not axes:
        return table
    blank = [Cell("")] * (len(table.headings) - table.leading)
    lines: list[list[Cell]] = []
    place: list[str] = []
    for line in table.lines:
        here = [cell.text for cell in line[:axes]]
        if here != place:
            place = here
            told = " ".join(f"{name}={value}" for name, value in zip(table.headings, here, strict=False))
            lines += [[Cell(""), *blank]] * bool(lines)
            lines.append([Cell(f"{told}:"), *blank])
        lines.append(line[axes:])
    return Grid(table.headings[axes:], 1, lines)


def grid(results: ResultSet) -> Grid:
    """The whole table."""
    points, shown = points_of(results), columns(results)
    axes = varying(points)
    lines = [
        [*_axis_cells(point, axes), Cell(name_of(row), name_of(row)), *(Cell(c.cell(row), c.value(row)) for c in shown)]
        for point, row in rows_of(points)
    ]
    return Grid([*axis_headings(points), "backend", *(column.heading for column in shown)], len(axes) + 1, lines)


def rows_of(points: Iterable[Point]) -> Iterator[tuple[Point, Result]]:
    """Each row with its point."""
    return ((point, row) for point in points for row in point.rows)


def summary(results: ResultSet) -> Grid:
    """A line for each point: its fastest involution, and that against the convolutions."""
    points = points_of(results)
    axes = varying(points)
    subjects = [name for name in CONVOLUTIONS if any(row.subject == name for _, row in rows_of(points))]
    lines = []
    for point in points:
        best = point.best
        line = [*_axis_cells(point, axes), Cell(best.backend, best.backend) if best else Cell(MISSING)]
        line.append(Cell(_latency(best), best.seconds) if best else Cell(MISSING))
        for subject in subjects:
            ratio = point.ratio(subject)
            line.append(Cell(told_apart(ratio), ratio.median) if ratio else Cell(MISSING))
        lines.append(line)
    headings = [*axis_headings(points), "fastest", "latency [95 %]", *(f"vs {subject}" for subject in subjects)]
    return Grid(headings, len(axes) + 1, lines)


def axis_headings(points: Sequence[Point]) -> list[str]:
    """The names of the varying axes as headings: ``H=W`` where all images are square."""
    return [axis_name(axis, points) for axis in varying(points)]


def axis_name(axis: str, points: Iterable[Point]) -> str:
    """How an axis is called: ``H=W`` where both vary and all images are square."""
    return "H=W" if axis == "H" and square(points) else axis.replace("_", " ")


def axis_text(value: object) -> str:
    """A value of an axis."""
    return MISSING if value is None else printable(str(value))


def _axis_cells(point: Point, axes: tuple[str, ...]) -> list[Cell]:
    return [Cell(axis_text(point.axes[axis]), point.axes[axis]) for axis in axes]


def told_apart(ratio: Interval) -> str:
    """How much faster or slower; ~ marks what the interval cannot tell apart from the same."""
    undecided = ratio.low <= 1 <= ratio.high
    return f"{'~ ' * undecided}{faster_or_slower(ratio.median)}"


def _latency(result: Result) -> str:
    return seconds_with_interval(result.latency.interval) if result.latency else str(result.status)


def _latency_ratio(result: Result) -> Interval | None:
    return result.ratio.latency if result.ratio else None


def _median_ratio(result: Result) -> float | None:
    ratio = _latency_ratio(result)
    return ratio.median if ratio else None


def _ratio(result: Result) -> str:
    ratio = _latency_ratio(result)
    return faster_or_slower(ratio.median) if ratio else MISSING


def _giga(value: float | None) -> str:
    return MISSING if value is None else three_digits(value / 1e9)


def _roofline(result: Result) -> str:
    return MISSING if result.roofline_fraction is None else f"{result.roofline_fraction:.1%}"


def _bytes(result: Result) -> float | None:
    return result.memory.peak if result.memory else None


def _peak(result: Result) -> str:
    if result.memory is None or result.memory.peak is None:
        return MISSING
    return size(result.memory.peak) + times((result.ratio or Ratio()).memory)


def _count(result: Result, value: int | None, ratio: float | None) -> str:
    return MISSING if value is None or result.status is Status.UNAVAILABLE else count(value) + times(ratio)
