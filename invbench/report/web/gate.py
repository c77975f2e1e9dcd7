"""Checks on a page: the verdict, what launches found against what counts as a change, tables, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invbench.report.columns import axis_text
from invbench.report.gate.answer import MARKS
from invbench.report.gate.grids import label, place_of, places_of
from invbench.report.gate.told import Group, Told, groups_of
from invbench.report.text import three_digits
from invbench.report.web.frame import how, section
from invbench.report.web.parts import Part, axes_of, plot_sections
from invbench.report.web.plots import COLOURS, SOFT, Plot, new_figure
from invbench.report.web.tables import answers, esc, filters, items, table
from invbench.results import ResultSet
from invbench.results.check import Check, Finding
from invbench.verdict.points import Point

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

PREFIX = "check-"
LAUNCHES = "What each launch found"
HINT = (
    '<p class="hint">A dot is the median of one launch, head over base; the band is what is no change: the threshold, '
    "or how far launches of identical code differed where that is more.</p>"
)


def checks_part(results: ResultSet, alone: bool) -> Part:
    """What there is of checks. alone: they are what the page filters by; else they follow what is."""
    groups = groups_of(results)
    parts = [part for group in groups for part in group.parts]
    rows = _rows(parts)
    try:
        drawn: Sequence[Plot] | None = list(_plots(parts, None if alone else "check"))
    except ImportError:
        drawn = None
    body = [
        "<h1>invbench check</h1>" if alone else "<h2>Checks</h2>",
        *(answers([group.answer], group.mark) for group in groups),
        *([how(parts[0].above)] if len(parts) == 1 else []),
        *([filters(_choices(parts, rows))] if alone else []),
        *(line for group in groups for line in _group(group, "row" if alone else "check", len(parts) > 1, parts)),
        plot_sections(drawn, {LAUNCHES: HINT}, PREFIX),
    ]
    return Part(body, rows, drawn, {"axes": axes_of(_points(parts))} if alone else {}, PREFIX)


def _group(group: Group, kind: str, several: bool, parts: Sequence[Told]) -> Iterator[str]:
    for part in group.parts:
        first = sum(len(before.grid.lines) for before in parts[: _index(parts, part)])
        if several:
            yield f"<h2>{esc(part.heading)}</h2>"
            yield f"<p>{esc(part.sentence)}</p>" if group.is_self_test else ""
            yield how(part.above) if part.above else ""
        if part.grid.lines:
            yield table(part.grid, kind, range(first, first + len(part.grid.lines)))
        if part.changes:
            yield from section("Besides latency", table(part.changes, "change", range(len(part.changes.lines))))
        yield items(part.notes)


def _index(parts: Sequence[Told], part: Told) -> int:
    return next(n for n, other in enumerate(parts) if other is part)


def _points(parts: Sequence[Told]) -> list[Point]:
    return [place_of(finding.row) for part in parts for finding in part.check.latencies]


def _rows(parts: Sequence[Told]) -> list[dict[str, Any]]:
    """What the scripts know of each line of latencies."""
    axes = [axis["name"] for axis in axes_of(_points(parts))]
    found: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        places = places_of(part.check)
        for finding in part.check.latencies:
            place, row = place_of(finding.row).axes, finding.row
            own = {"subject": row.subject, "backend": row.backend, "verdict": str(finding.verdict)}
            at = {**{axis: axis_text(place[axis]) for axis in axes}, **own, "check": part.heading}
            drawn = bool(finding.launches)
            found.append({
                "point": len(found), "at": at, "check": number, "label": label(row, places) if drawn else None,
            })  # fmt: skip
    return found


def _choices(parts: Sequence[Told], rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    axes = {axis["name"]: (str(axis["label"]), list(axis["values"])) for axis in axes_of(_points(parts))}
    own = ("check", "subject", "backend", "verdict")
    return {**axes, **{name: (name, list(dict.fromkeys(row["at"][name] for row in rows))) for name in own}}


# --- The plot ---


def _plots(parts: Sequence[Told], rows: str | None) -> Iterator[Plot]:
    import bokeh.plotting  # noqa: F401 -- before anything is drawn

    for number, part in enumerate(parts):
        found = [finding for finding in part.check.latencies if finding.launches]
        if found:
            heading = part.heading if len(parts) > 1 else "Head over base"
            yield Plot(
                LAUNCHES, heading, _figure(part.check, found), {"kind": "launches", "rows": rows, "check": number}
            )


def _figure(check: Check, found: Sequence[Finding]) -> Figure:
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter

    places = places_of(check)
    names = [label(finding.row, places) for finding in found]
    limits = [1 + max(finding.change or 0.0, finding.floor or 0.0) for finding in found]
    values = [(name, f, value) for name, f in zip(names, found, strict=True) for value in f.launches]
    made = new_figure(
        x_axis_type="log", y_range=list(reversed(dict.fromkeys(names))), x_axis_label="head over base (launches)",
        height=90 + 26 * len(names),
    )  # fmt: skip
    band = ColumnDataSource({"y": names, "left": [1 / limit for limit in limits], "right": limits})
    made.hbar(
        "y", left="left", right="right", height=0.7, source=band, fill_color=SOFT, fill_alpha=0.25, line_color=None
    )
    source = ColumnDataSource({
        "x": [value for *_, value in values], "y": [name for name, *_ in values],
        "color": [_colour(f) for _, f, _ in values], "told": [f"{three_digits(value)}x" for *_, value in values],
        "verdict": [str(f.verdict) for _, f, _ in values],
    })  # fmt: skip
    dots = made.scatter("x", "y", source=source, size=8, line_color="color", fill_color="color", fill_alpha=0.85)
    made.add_tools(HoverTool(renderers=[dots], tooltips=[("", "@y"), ("", "@told"), ("", "@verdict")]))
    ends = [*limits, *(1 / limit for limit in limits), *(value for *_, value in values)]
    made.xaxis.ticker = FixedTicker(ticks=_ticks(min(ends), max(ends)))
    made.xaxis.formatter = NumeralTickFormatter(format="0.[00]")
    made.ygrid.visible = False
    return made


def _colour(finding: Finding) -> str:
    """Blue for what is well, orange for a failure, grey for what is not known; dots' places tell it, too."""
    return {"good": COLOURS[0], "bad": COLOURS[4]}.get(MARKS[finding.verdict], COLOURS[6])


def _ticks(low: float, high: float) -> list[float]:
    """At most about eight round ratios, 1 among them."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 8), (high - low) / 8)
    first, last = int((low - 1) / step) - 1, int((high - 1) / step) + 1
    return [tick for n in range(first, last + 1) if (tick := round(1 + n * step, 6)) > 0]
