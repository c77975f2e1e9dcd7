"""Rows of whole networks as tables and sentences: against their counterparts, their ceiling, and where time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from invbench.report.columns import Cell, Column, Grid, axis_headings, axis_text, name_of, rows_of
from invbench.report.headline import than
from invbench.report.text import (
    MISSING,
    count,
    faster_or_slower,
    printable,
    seconds,
    seconds_with_interval,
    three_digits,
    times,
)
from invbench.results import Result, ResultSet
from invbench.results.quantities import Interval, Ratio
from invbench.spec import FREE
from invbench.verdict.networks import best_regimes
from invbench.verdict.points import Point, points_of, varying

FREE_NOTE = (
    "(free): the same network with the identity for every involution, so that only the rest takes time; ceiling is the "
    "share of its speed that a row reaches"
)


def network_grid(results: ResultSet, parts: Sequence[str] = ("speed", "cost")) -> Grid:
    """A line for each row, with the axes that vary in front; parts: of the columns, where there is no room for all."""
    points = points_of(results)
    axes = [axis for axis in varying(points) if axis != "baseline"]
    shown = [column for column in _columns(results) if column.part in parts and _says_something(column, results)]
    lines = []
    for point, row in rows_of(points):
        place = [Cell(axis_text(point.axes[axis]), point.axes[axis]) for axis in axes]
        name = name_of(row)
        lines.append([*place, Cell(name, name), *(Cell(c.cell(row), c.value(row)) for c in shown)])
    headings = [h for h, axis in zip(axis_headings(points), varying(points), strict=True) if axis in axes]
    return Grid([*headings, "network", *(column.heading for column in shown)], len(axes) + 1, lines)


def _columns(results: ResultSet) -> list[Column]:
    baselines = {results.baseline_of(row) for row in results.results}
    to = f"vs {next(iter(baselines))}" if len(baselines) == 1 else "vs counterpart"
    return [
        Column("latency [95 %]", "speed", _latency, lambda r: r.seconds),
        Column(to, "speed", _ratio, lambda r: _median(_latency_ratio(r))),
        Column("ceiling", "speed", _ceiling, lambda r: _median(r.ceiling)),
        Column("images/s", "speed", lambda r: _plain(r.images_per_s), lambda r: r.images_per_s),
        Column("GFLOP/s", "speed", lambda r: _plain(r.flop_per_s, 1e-9), lambda r: r.flop_per_s),
        Column("params", "cost", lambda r: _count(r.params, (r.ratio or Ratio()).params), lambda r: r.params),
        Column("macs", "cost", lambda r: _count(r.macs, (r.ratio or Ratio()).flop), lambda r: r.macs),
        Column("macs as mmcv", "cost", lambda r: _count(r.macs_mmcv), lambda r: r.macs_mmcv),
        Column("published", "cost", _published, _top1),
    ]


def _says_something(column: Column, results: ResultSet) -> bool:
    return any(column.cell(row) != MISSING for row in results.results)


def _latency(row: Result) -> str:
    if row.latency is None:
        return "not timed" if row.reason is None else str(row.status)
    return seconds_with_interval(row.latency.interval)


def _latency_ratio(row: Result) -> Interval | None:
    return row.ratio.latency if row.ratio else None


def _ratio(row: Result) -> str:
    ratio = _latency_ratio(row)
    return faster_or_slower(ratio.median) if ratio else MISSING


def _median(interval: Interval | None) -> float | None:
    return interval.median if interval else None


def _ceiling(row: Result) -> str:
    return f"{row.ceiling.median:.1%}" if row.ceiling else MISSING


def _plain(value: float | None, scale: float = 1.0) -> str:
    return MISSING if value is None else three_digits(value * scale)


def _count(value: int | None, ratio: float | None = None) -> str:
    return MISSING if value is None else count(value) + times(ratio)


def _published(row: Result) -> str:
    if not row.published:
        return MISSING
    told = [f"{row.published[name]:.2f} % top-1" for name in ("top1",) if row.published.get(name)]
    told += [f"{count(row.published[n])} {n}" for n in ("params", "macs_mmcv") if row.published.get(n)]
    return ", ".join(told)


def _top1(row: Result) -> float | None:
    return row.published.get("top1") if row.published else None


@dataclass(frozen=True, slots=True)
class Section:
    """A table that stands below the main one, under its heading."""

    heading: str
    grid: Grid


def breakdown(results: ResultSet) -> Section | None:
    """Where the time of one call goes: a line for each kind of layer, a column for each row that was looked into."""
    rows = [row for row in results.results if row.breakdown]
    if not rows:
        return None
    kinds = dict.fromkeys(kind for row in rows if row.breakdown for kind in row.breakdown.parts)

    def line(name: str, value: Callable[[Result], float]) -> list[Cell]:
        return [Cell(name, name), *(_share(row, value(row)) for row in rows)]

    lines = [line(kind, lambda row, kind=kind: _part(row, kind)) for kind in kinds]  # type: ignore[misc]
    lines.append(line("the rest", lambda row: row.breakdown.rest if row.breakdown else 0.0))
    lines.append(line("whole call", lambda row: row.breakdown.total if row.breakdown else 0.0))
    points = points_of(results)
    many = len(points) > 1
    headings = [f"{name_of(row)}{_where(row, points) if many else ''}" for row in rows]
    return Section("Where the time of one call goes", Grid(["kind of layer", *headings], 1, lines))


def _part(row: Result, kind: str) -> float:
    return row.breakdown.parts.get(kind, 0.0) if row.breakdown else 0.0


def _share(row: Result, value: float) -> Cell:
    assert row.breakdown
    if not value:
        return Cell(MISSING, 0.0)
    return Cell(f"{seconds(value)} ({value / row.breakdown.total:.1%})", value)


def _where(row: Result, points: Sequence[Point]) -> str:
    case = row.case.to_dict()
    told = [f"{axis}={case[axis]}" for axis in varying(points) if axis in case]
    return f" {' '.join(told)}" if told else ""


def network_notes(results: ResultSet) -> list[str]:
    """What the cells cannot hold: what is free, where published figures are from, how the breakdown is known."""
    notes = [FREE_NOTE] if any(row.backend == FREE for row in results.results) else []
    sources: dict[str, list[str]] = {}
    for row in results.results:
        if row.published:
            names = sources.setdefault(printable(str(row.published["source"])), [])
            names += [row.subject] if row.subject not in names else []
    notes += [f"published, of {', '.join(names)}: {source}" for source, names in sources.items()]
    methods = dict.fromkeys(row.breakdown.method for row in results.results if row.breakdown)
    return [*notes, *(f"where the time goes, by {printable(method)}" for method in methods)]


def network_sentences(results: ResultSet) -> list[str]:
    """The answer: each network with involution against its counterpart, both in the regime that is faster for them."""
    told = []
    points = points_of(results)
    for point in points:
        where = _where(point.rows[0], points).strip() if len(points) > 1 else ""
        for best in best_regimes(point.rows):
            answer = f"{than(best.ratio)} {best.base.subject}"
            at = f"{where}: " if where else ""
            regimes = str(best.row.regime) if best.row.regime == best.base.regime else "each in its faster regime"
            free = ""
            if best.ceiling:
                free = f"; with involution free it would be {faster_or_slower(best.ceiling.median)}"
            told.append(f"{at}{best.row.subject} ({best.row.backend}) is {answer} ({regimes}){free}.")
    return told or _counted(results)


def _counted(results: ResultSet) -> list[str]:
    """What counts alone say."""
    told = []
    for row in results.results:
        ratio = row.ratio
        if ratio and ratio.params is not None and ratio.flop is not None and row.subject != row.baseline:
            told.append(
                f"{row.subject} has {three_digits(ratio.params)}x the parameters and {three_digits(ratio.flop)}x the "
                f"multiply-adds of {row.baseline}; nothing was timed."
            )
    timed = any(row.latency for row in results.results)
    nothing = "No network with involution was timed beside its counterpart, so there is nothing to conclude."
    return [nothing] if timed or not told else told
