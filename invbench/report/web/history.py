"""A history of checks on a page: a picture of each row over the runs, and tables; ``history.js`` fills the pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invbench.report.columns import axis_text
from invbench.report.history import (
    Line,
    Story,
    above,
    changes_grid,
    commit_of,
    date_of,
    latest_grid,
    notes,
    place_of,
    sentences,
    story,
)
from invbench.report.history import change_words as words_of
from invbench.report.text import faster_or_slower, seconds
from invbench.report.web import frame
from invbench.report.web.parts import Part, axes_of, legend, plot_sections
from invbench.report.web.plots import Plot, marks, new_figure
from invbench.report.web.tables import esc, filters, items, select, table
from invbench.results.check import Verdict
from invbench.results.history import History
from invbench.verdict.history import Reading, medians
from invbench.verdict.points import varying

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

SECTION = "Latency over the runs"
MOST = 60  # pictures, beyond which a page is slow
# Of one hue and one shape each, told apart also by colour-blind readers and on both grounds (Okabe and Ito).
LOOKS: Mapping[Verdict, dict[str, Any]] = {
    Verdict.PASS: {"color": "#0072b2", "marker": "circle", "filled": True},
    Verdict.IMPROVED: {"color": "#009e73", "marker": "triangle", "filled": True},
    Verdict.FAIL: {"color": "#d55e00", "marker": "inverted_triangle", "filled": True},
    Verdict.INCONCLUSIVE: {"color": "#e69f00", "marker": "square", "filled": False},
    Verdict.NOT_COMPARABLE: {"color": "#8a8a8a", "marker": "hex", "filled": False},
    Verdict.NEW: {"color": "#56b4e9", "marker": "star", "filled": True},
    Verdict.MISSING: {"color": "#8a8a8a", "marker": "circle", "filled": False},
    Verdict.ERROR: {"color": "#cc79a7", "marker": "diamond", "filled": True},
}
CHANGE = "#cc79a7"


def render_history_html(history: History) -> str:
    """The page of a history."""
    told = story(history)
    rows = _rows(told)
    try:
        drawn: list[Plot] | None = list(_plots(told, rows))
    except ImportError:
        drawn = None
    changes, keys = changes_grid(told)
    hint = '<p class="hint">A click on a heading sorts.</p>'
    body = [
        *frame.above(above(told), sentences(told)), filters(_choices(told, rows)),
        plot_sections(drawn, {SECTION: _before(told, rows)}),
        *frame.section("The latest run", hint + table(latest_grid(told), "row", range(len(rows)))),
        *(frame.section("Change points", table(changes, "point", keys)) if keys else []),
        *frame.section("Remarks", items(notes(told))), *frame.below(told.machines),
    ]  # fmt: skip
    part = Part(body, rows, drawn)
    data = {
        "axes": axes_of(told.points), "styles": {}, "units": {}, "linked": {}, "others": {}, "rows": rows,
        "figures": part.items(), "dates": [date_of(run.created) for run in history.runs],
    }  # fmt: skip
    return frame.page("\n".join(body), data, with_plots=bool(drawn))


def _choices(told: Story, rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    axes = {axis["name"]: (str(axis["label"]), list(axis["values"])) for axis in axes_of(told.points)}
    own = {"subject": "subject", "backend": "backend", "verdict": "last verdict", "change": "change point"}
    return {
        **axes,
        **{name: (label, list(dict.fromkeys(str(r["at"][name]) for r in rows))) for name, label in own.items()},
    }


def _before(told: Story, rows: Sequence[Mapping[str, Any]]) -> str:
    seen = {reading["verdict"] for row in rows for reading in row["readings"]}
    hint = (
        "Each mark is the head of a run, coloured by its verdict against its base. Thick lines are levels, and "
        "dashed lines where they change. The scale is logarithmic and each picture has its own."
    )
    if len(rows) > MOST:
        hint += f" {MOST} of {len(rows)} rows have a picture, those that changed first."
    values = {"latency": "latency", "relative": f"latency over that of {told.control}"}
    choice = select("state", "value", "shown", values, "latency")
    has_control = any(line.track.control for line in told.lines)
    return (
        f'<p class="hint">{esc(hint)}</p>{f"""<div class="choices">{choice}</div>""" if has_control else ""}'
        + legend({str(verdict): look for verdict, look in LOOKS.items() if str(verdict) in seen})
    )


# --- Pictures ---


def _plots(told: Story, rows: Sequence[Mapping[str, Any]]) -> Iterator[Plot]:
    """Raises ImportError where Bokeh is not installed."""
    import bokeh.plotting  # noqa: F401 -- before anything is drawn

    timed = [index for index, row in enumerate(rows) if row["readings"]]
    chosen = sorted(sorted(timed, key=lambda index: not told.lines[index].changes)[:MOST])
    for index in chosen:
        made = _figure(len(told.history.runs), rows[index]["unit"])
        yield Plot(SECTION, place_of(index, told), made, {"kind": "history", "row": index})


def _figure(runs: int, unit: str) -> Figure:
    from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d, HoverTool, Range1d

    made: Figure = new_figure(
        x_axis_label="run", y_axis_label=f"latency ({unit})", y_axis_type="log", height=300,
        x_range=Range1d(start=0.5 - 0.02 * runs, end=runs + 0.5 + 0.02 * runs),
        y_range=DataRange1d(range_padding=0.15),
    )  # fmt: skip
    made.xaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=4, num_minor_ticks=0)
    # Runs of one row differ by percents, between which the powers of a logarithmic axis have no ticks.
    made.yaxis.ticker = BasicTicker(desired_num_ticks=5, num_minor_ticks=0)
    made.xgrid.visible = False
    changes = ColumnDataSource({"x": [], "told": []}, name="changes")
    drawn = made.vspan("x", source=changes, line_color=CHANGE, line_dash="dashed", line_width=2)
    made.add_tools(HoverTool(renderers=[drawn], tooltips=[("", "@told")]))
    for name, width in (("lines", 1), ("levels", 3)):
        source = ColumnDataSource({"xs": [], "ys": []}, name=name)
        made.multi_line("xs", "ys", source=source, line_width=width, line_alpha=0.4 * width / 3 + 0.3, name="roof")
    marks(made, "x", "low", "x", "high", size=7, at="")
    return made


# --- What the scripts know ---


def _rows(told: Story) -> list[dict[str, Any]]:
    axes = varying(told.points)
    return [
        {
            "point": index,
            "at": {
                **{axis: axis_text(point.axes[axis]) for axis in axes}, "subject": line.track.row.subject,
                "backend": line.track.row.backend, "verdict": str(line.track.latest.verdict),
                "change": "yes" if line.changes else "no",
            },
            **_series(line),
        }
        for index, (line, point) in enumerate(zip(told.lines, told.points, strict=True))
    ]  # fmt: skip


def _series(line: Line) -> dict[str, Any]:
    timed = line.track.timed
    scale, unit = _unit(timed)
    control = line.track.control.subject if line.track.control else None
    return {
        "unit": unit, "control": control,
        "readings": [
            {
                "x": r.number, "latency": r.head and r.head * scale, "relative": r.relative,
                "name": f"{date_of(r.created)}, {commit_of(r)}", "verdict": str(r.verdict), "told": _told(r, control),
                **{"marker": (look := LOOKS[r.verdict])["marker"], "color": look["color"], "filled": look["filled"]},
            }
            for r in timed
        ],
        "levels": _levels(line, scale),
        "changes": [{"x": change.first.number - 0.5, "told": words_of(change)} for change in line.changes],
    }  # fmt: skip


def _levels(line: Line, scale: float) -> list[dict[str, float]]:
    found = []
    for readings in line.levels or []:
        relatives = [reading.relative for reading in readings if reading.relative]
        _, latency = medians(line.track, readings)
        found.append({
            "x0": readings[0].number, "x1": readings[-1].number, "latency": latency * scale,
            **({"relative": statistics.median(relatives)} if relatives else {}),
        })  # fmt: skip
    return found


def _unit(timed: Sequence[Reading]) -> tuple[float, str]:
    unit = seconds(statistics.median(r.head for r in timed if r.head)).split()[1] if timed else "s"
    return {"s": 1.0, "ms": 1e3, "us": 1e6}[unit], unit


def _told(reading: Reading, control: str | None) -> str:
    told = [seconds(reading.head)] if reading.head else []
    told += [_than(reading.relative, control)] if reading.relative and control else []
    compared = f", {_than(reading.ratio, 'its base')}" if reading.ratio else ""
    told.append(f"{reading.verdict}{compared}")
    return "; ".join(told)


def _than(ratio: float, what: str) -> str:
    words = faster_or_slower(ratio)
    return f"as fast as {what}" if words == "1.00x" else f"{words} than {what}"
