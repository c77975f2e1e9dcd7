"""Rows of whole networks as tables: against their counterparts, their ceiling, what they keep, where time goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from invbench.report.columns import Cell, Column, Grid, Section, axis_headings, axis_text, name_of, rows_of
from invbench.report.published import published_notes
from invbench.report.text import (
    MISSING,
    count,
    faster_or_slower,
    printable,
    seconds,
    seconds_with_interval,
    size,
    spoken,
    three_digits,
    times,
)
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Breakdown, Interval, Ratio
from invbench.spec import FREE, Mode, Regime
from invbench.verdict.networks import whole_points
from invbench.verdict.points import Point, varying

FREE_NOTE = (
    "(free): the same network with the identity for every involution, so that only the rest takes time; ceiling is the "
    "share of its speed that a row reaches"
)
KEPT_NOTE = "kept for backward: what the forward pass of a training step keeps, inputs and parameters left out"
REST = "the rest"
ACTIVATIONS_NOTE = (
    "activations: the numbers that convolutions, involutions, self-attention and linear layers put out for one image"
)


def whole_grid(points: Sequence[Point], columns: Sequence[Column]) -> Grid:
    """A line for each row, with the axes that vary in front."""
    axes = varying(points)
    lines = []
    for point, row in rows_of(points):
        place = [Cell(axis_text(point.axes[axis]), point.axes[axis]) for axis in axes]
        name = name_of(row)
        lines.append([*place, Cell(name, name), *(Cell(c.cell(row), c.value(row)) for c in columns)])
    return Grid([*axis_headings(points), "network", *(column.heading for column in columns)], len(axes) + 1, lines)


def network_columns(results: ResultSet) -> list[Column]:
    """The columns that say something, by what they are about: speed, memory, cost."""
    baselines = {results.baseline_of(row) for row in results.results}
    to = f"vs {next(iter(baselines))}" if len(baselines) == 1 else "vs counterpart"
    columns = [
        Column("latency [95 %]", "speed", _latency, lambda r: r.seconds),
        Column(to, "speed", latency_ratio, lambda r: _median(r.ratio.latency if r.ratio else None)),
        Column("ceiling", "speed", _ceiling, lambda r: _median(r.ceiling)),
        Column("images/s", "speed", lambda r: _plain(r.images_per_s), lambda r: r.images_per_s),
        Column("GFLOP/s", "speed", lambda r: _plain(r.flop_per_s, 1e-9), lambda r: r.flop_per_s),
        Column("peak memory", "memory", peak_memory, lambda r: r.memory.peak if r.memory else None),
        Column("kept for backward", "memory", _kept, lambda r: r.memory.kept if r.memory else None),
        Column("params", "cost", lambda r: counted(r.params, (r.ratio or Ratio()).params), lambda r: r.params),
        Column("trainable", "cost", lambda r: counted(r.params_trainable), lambda r: r.params_trainable),
        Column("macs", "cost", lambda r: counted(r.macs, (r.ratio or Ratio()).flop), lambda r: r.macs),
        Column("macs as mmcv", "cost", lambda r: counted(r.macs_mmcv), lambda r: r.macs_mmcv),
        Column("activations", "cost", lambda r: counted(r.activations), lambda r: r.activations),
    ]
    silent = ["trainable"] * all(row.params_trainable in (None, row.params) for row in results.results)
    silent += ["latency [95 %]"] * all(row.latency is None and row.status is Status.OK for row in results.results)
    return [
        column for column in columns
        if column.heading not in silent and any(column.cell(row) != MISSING for row in results.results)
    ]  # fmt: skip


def _latency(row: Result) -> str:
    if row.latency is None:
        return "not timed" if row.status is Status.OK else str(row.status)
    return seconds_with_interval(row.latency.interval)


def latency_ratio(row: Result) -> str:
    """How much faster or slower than its baseline."""
    return faster_or_slower(row.ratio.latency.median) if row.ratio and row.ratio.latency else MISSING


def _median(interval: Interval | None) -> float | None:
    return interval.median if interval else None


def _ceiling(row: Result) -> str:
    return f"{row.ceiling.median:.1%}" if row.ceiling else MISSING


def _plain(value: float | None, scale: float = 1.0) -> str:
    return MISSING if value is None else three_digits(value * scale)


def peak_memory(row: Result) -> str:
    """The peak, and over that of its baseline."""
    if row.memory is None or row.memory.peak is None:
        return MISSING
    return size(row.memory.peak) + times((row.ratio or Ratio()).memory)


def _kept(row: Result) -> str:
    return MISSING if row.memory is None or row.memory.kept is None else size(row.memory.kept)


def counted(value: int | None, ratio: float | None = None) -> str:
    """A count, and over that of the baseline."""
    return MISSING if value is None else count(value) + times(ratio)


def breakdowns(results: ResultSet) -> list[Section]:
    """Where the time of one call goes, by kind of layer and by place: a column for each row that was looked into."""
    rows = [row for row in results.results if row.breakdown]
    with_places = [row for row in rows if row.breakdown and row.breakdown.places]
    found = []
    if rows:
        found.append(_where_time_goes(results, rows, "Where the time of one call goes", "kind of layer", _by_kind))
    if with_places:
        found.append(_where_time_goes(results, with_places, "The same by place", "place", _by_place))
    return found


def _by_kind(breakdown: Breakdown) -> dict[str, float]:
    return {**breakdown.parts, REST: breakdown.rest}


def _by_place(breakdown: Breakdown) -> dict[str, float]:
    return {**(breakdown.places or {}), REST: breakdown.elsewhere}


def _where_time_goes(
    results: ResultSet, rows: Sequence[Result], heading: str, first: str, split: Callable[[Breakdown], dict[str, float]]
) -> Section:
    shares = [(row.breakdown.total, split(row.breakdown)) for row in rows if row.breakdown]
    names = [name for name in dict.fromkeys(name for _, share in shares for name in share) if name != REST]
    lines = [
        [Cell(name, name), *(_share(share.get(name, 0.0), total) for total, share in shares)] for name in (*names, REST)
    ]
    lines.append([Cell("whole call", "whole call"), *(_share(total, total) for total, _ in shares)])
    points = whole_points(results)
    at = {id(row): where(point, points) for point, row in rows_of(points)}
    headings = [" ".join(filter(None, (name_of(row), at[id(row)]))) for row in rows]
    return Section(heading, Grid([first, *headings], 1, lines), first.partition(" ")[0])


def _share(value: float, total: float) -> Cell:
    return Cell(f"{seconds(value)} ({value / total:.1%})", value) if value else Cell(MISSING, 0.0)


def where(point: Point, points: Sequence[Point]) -> str:
    """A point by its place on the axes that vary, empty where none does: ``N=1 H=W=224``."""
    names = zip(axis_headings(points), varying(points), strict=True)
    return " ".join(f"{heading}={axis_text(point.axes[axis])}" for heading, axis in names)


def network_notes(results: ResultSet) -> list[str]:
    """What the cells cannot hold: what is free, what columns mean, where published figures are from."""
    rows = results.results
    notes = [FREE_NOTE] if any(row.backend == FREE for row in rows) else []
    notes += [KEPT_NOTE] if any(row.memory and row.memory.kept is not None for row in rows) else []
    notes += [ACTIVATIONS_NOTE] if any(row.activations is not None for row in rows) else []
    if any(row.case.mode is Mode.TRAIN for row in rows) and any(row.latency for row in rows):
        notes.append("train: forward and backward of a step, without the optimiser's; macs are the forward pass's")
    notes += _as_built_only(rows)
    if any(row.breakdown and row.breakdown.places for row in rows):
        notes.append("by place: what belongs to no place, such as what heads make of their outputs, is the rest")
    methods = dict.fromkeys(row.breakdown.method for row in rows if row.breakdown)
    notes += [f"where the time goes, by {printable(method)}" for method in methods]
    return [*notes, *published_notes(results)]


def _as_built_only(rows: Sequence[Result]) -> list[str]:
    """Which networks' inference was measured in one regime, since they are not deployed in another."""
    run = [row for row in rows if row.regime and row.case.mode is Mode.FORWARD]
    deployed = {row.subject for row in run if row.regime is Regime.COMPILED}
    names = list(dict.fromkeys(row.subject for row in run if row.subject not in deployed))
    if not names:
        return []
    which = spoken(names) if deployed else "networks here"
    return [f"{printable(which)}: measured as built only, neither folded nor compiled"]
