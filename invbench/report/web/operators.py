"""Single operators on a page: the answer, what can be filtered and plotted, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from invbench.report.columns import axis_name, axis_text, grid, name_of, rows_of, summary
from invbench.report.headline import machine, method, nodes_of, sentences, title
from invbench.report.machines import HEADING, Beside, MachinePart, beside, parts_of, shared_method
from invbench.report.text import seconds_with_interval, size, three_digits
from invbench.report.web import plots
from invbench.report.web.frame import above, how, section
from invbench.report.web.parts import Part, axes_of, legend, plot_sections
from invbench.report.web.tables import esc, filters, items, select, table
from invbench.results import Result, ResultSet, Status
from invbench.verdict.points import (
    ATTENTION,
    CLASS,
    CONVOLUTIONS,
    Point,
    class_names,
    classes,
    follows,
    informative,
    points_of,
    values_of,
    varying,
)

SORTS = "A click on a heading sorts. ~ marks what the interval cannot tell apart from the same."


def operators_part(results: ResultSet) -> Part:
    """What there is of operators: always what a page filters by."""
    points = points_of(results)
    units = _units(points)
    try:
        drawn: Sequence[plots.Plot] | None = plots.plots(results, points, units)
    except ImportError:
        drawn = None
    parts, together = parts_of(results), beside(results)
    what = (title(results), shared_method(results)) if parts else (title(results), *_where(results))
    body = [
        *above(filter(None, what), sentences(results)), filters(_choices(points)), *_beside(together),
        _plots(drawn, points, plots.roofs_of(results, points)),
        *(line for part in parts for line in _part(part, points)), *([] if parts else _tables(results, points)),
    ]  # fmt: skip
    told = {"axes": axes_of(points), "styles": plots.styles(points), "units": units, "linked": _linked(points)}
    return Part(body, _rows(points), drawn, told)


def _where(results: ResultSet) -> list[str]:
    return [machine(results), *nodes_of(results), method(results)]


def _beside(told: Beside | None) -> list[str]:
    """All machines in one table."""
    if told is None:
        return []
    keys = [" ".join(map(str, numbers)) for numbers in told.points]
    hint = f'<p class="hint">{esc(f"{told.hint}.")} {SORTS}</p>'
    return section(HEADING, f"{hint}{table(told.grid, 'place', keys)}{items(told.notes)}")


def _part(part: MachinePart, points: Sequence[Point]) -> list[str]:
    """What one class of machines measured; points: those of the page."""
    return [*section(part.heading, how(part.above)), *_tables(part.results, points, 3)]


def _tables(results: ResultSet, points: Sequence[Point], level: int = 2) -> list[str]:
    """The points and rows of a document; points: those of the page, by whose numbers the scripts know each."""
    numbers = {id(row): number for number, (_, row) in enumerate(rows_of(points))}
    own = points_of(results)
    rows = [row for _, row in rows_of(own)]
    whole = table(
        grid(results), "row", [numbers[id(row)] for row in rows], (row.status is not Status.OK for row in rows)
    )
    if len(points) <= 1:
        return section("Rows", whole)
    at = {id(point.rows[0]): number for number, point in enumerate(points)}
    short = table(summary(results), "point", [at[id(point.rows[0])] for point in own])
    hint = f'<p class="hint">{SORTS}</p>'
    return [
        *section("The fastest involution at each point", hint + short, level), *section("All rows", whole, level),
    ]  # fmt: skip


# --- Controls ---


def _choices(points: Sequence[Point]) -> dict[str, tuple[str, list[str]]]:
    rows = [row for _, row in rows_of(points)]
    own = {
        "subject": list(dict.fromkeys(row.subject for row in rows)),
        "backend": list(dict.fromkeys(row.backend for row in rows)),
        "status": list(dict.fromkeys(str(row.status) for row in rows)),
    }
    axes = {axis["name"]: (str(axis["label"]), list(axis["values"])) for axis in axes_of(points)}
    return {**axes, **{name: (name, values) for name, values in own.items()}}


def _map_choices(points: Sequence[Point]) -> str:
    axes = informative(points)
    if not axes:
        return ""
    across = next((axis for axis in axes[1:] if not follows(points, axes[0], axis)), "")
    words = {axis: axis_name(axis, points) for axis in axes}
    lists = [
        select("state", "map-x", "across", words, axes[0]),
        select("state", "map-y", "up", {"": "nothing", **words}, across),
    ]
    apart = classes(points)
    named = [CLASS.index(name) for name in class_names(apart)]
    kinds = {str(n): ", ".join(axis_text(kind[i]) for i in named) for n, kind in enumerate(apart)}
    lists += (
        [select("state", "map-class", "for", kinds, "0")]
        if named
        else ['<input type="hidden" data-state="map-class" value="0">']
    )
    return f'<div class="choices">{"".join(lists)}</div>'


# --- Plots ---


def _plots(drawn: Sequence[plots.Plot] | None, points: Sequence[Point], roofs: Sequence[plots.Roof]) -> str:
    before = {"Map": _map_hint() + _map_choices(points), "Latency": _legend(points) + _holds(points)}
    before["Roofline"] = _roof_hint(roofs)
    return plot_sections(drawn, before)


def _roof_hint(roofs: Sequence[plots.Roof]) -> str:
    told = [
        f"{roof.dash}: {f'{roof.name}, ' if roof.name else ''}{three_digits(roof.flop_per_s / 1e9)} GFLOP/s and "
        f"{three_digits(roof.bytes_per_s / 1e9)} GB/s"
        for roof in roofs
    ]
    hint = "Peaks measured beside the rows, the median where runs differ, as lines"
    return f'<p class="hint">{esc(hint)}: {esc("; ".join(told))}.</p>' if told else ""


def _map_hint() -> str:
    return (
        '<p class="hint">Time of the fastest involution shown over that of the convolution: below 1, blue, involution '
        "wins. A cell is the geometric mean of its points; ~ marks a single point whose interval does not tell.</p>"
    )


def _legend(points: Sequence[Point]) -> str:
    attention = " and attention" if any(row.subject in ATTENTION for _, row in rows_of(points)) else ""
    looks = f"Involutions filled, convolutions{attention} hollow and dashed."
    hint = f'<p class="hint">Medians with 95 % intervals. {looks}</p>'
    return hint + legend(plots.styles(points))


def _holds(points: Sequence[Point]) -> str:
    """In a plot against one axis the others are held at one value each, by default those of a usual point."""
    axes = [axis for axis in axes_of(points) if axis["name"] not in ("run", "node")]
    free = [axis for n, axis in enumerate(axes) if not any(_follow(points, axis, other) for other in axes[:n])]
    if len(free) < 2:
        return ""
    usual = _usual(points)
    lists = "".join(
        select("state", f"hold-{axis['name']}", f"{axis['label']} held at",
               {"": "all", **{value: value for value in axis["values"]}}, axis_text(usual.axes[axis["name"]]))
        for axis in free
    )  # fmt: skip
    hint = "Against one axis, the others are held at these values where that leaves two, unless a filter says another."
    return f'<p class="hint">{hint}</p><div class="choices">{lists}</div>'


def _usual(points: Sequence[Point]) -> Point:
    """The point whose values most others share; of several, the one in the middle."""
    axes = varying(points)
    counts = {axis: Counter(point.axes[axis] for point in points) for axis in axes}
    orders = {axis: values_of(points, axis) for axis in axes}

    def rank(point: Point) -> tuple[int, float]:
        shared = sum(counts[axis][point.axes[axis]] for axis in axes)
        return -shared, sum(abs(orders[axis].index(point.axes[axis]) - len(orders[axis]) / 2) for axis in axes)

    return min(points, key=rank)


def _linked(points: Sequence[Point]) -> dict[str, list[str]]:
    """For each axis those that change with it, as G does where the channels of a group are fixed."""
    axes = axes_of(points)
    return {a["name"]: [b["name"] for b in axes if a is not b and _follow(points, a, b)] for a in axes}


def _follow(points: Sequence[Point], axis: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return follows(points, axis["name"], other["name"])


# --- What the scripts know of each row ---


def _rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    axes = varying(points)
    kinds = {kind: number for number, kind in enumerate(classes(points))}
    return [
        {"point": number, "class": kinds[point.kind], **_row(point, row, axes)}
        for number, point in enumerate(points)
        for row in point.rows
    ]


def _row(point: Point, row: Result, axes: Sequence[str]) -> dict[str, Any]:
    interval = row.latency.interval if row.latency else None
    own = {"subject": row.subject, "backend": row.backend, "status": str(row.status)}
    ratios = {s: point.ratio(s, row) for s in CONVOLUTIONS} if row.subject == "involution" else {}
    peak = row.memory.peak if row.memory else None
    return {
        "name": name_of(row), "subject": row.subject,
        "at": {**{axis: axis_text(point.axes[axis]) for axis in axes}, **own},
        "t": interval and interval.median, "low": interval and interval.low, "high": interval and interval.high,
        "told": interval and seconds_with_interval(interval), "memory": peak, "toldMemory": peak and size(peak),
        "flop": row.flop, "rate": row.flop_per_s,
        "toldRate": None if row.flop_per_s is None else f"{three_digits(row.flop_per_s / 1e9)} GFLOP/s",
        "intensity": row.flop / row.bytes_min if row.flop and row.bytes_min else None,
        "ratios": {subject: [r.median, r.low, r.high] for subject, r in ratios.items() if r and r.median > 0},
    }  # fmt: skip


def _units(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Scales that suit the values: one unit for all figures of a quantity."""
    times = sorted(row.seconds for _, row in rows_of(points) if row.seconds)
    middle = times[len(times) // 2] if times else 1e-3
    scale, label = next(
        ((s, u) for least, s, u in ((1.0, 1.0, "s"), (1e-4, 1e3, "ms")) if middle >= least), (1e6, "us")
    )
    return {"latency": {"scale": scale, "label": label}, "memory": {"scale": 2.0**-20, "label": "MiB"}}
