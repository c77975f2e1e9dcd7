"""Pictures of whole networks: published accuracy against parameters and multiply-adds, latency against multiply-adds.

As all figures they come empty; ``scatter.js`` fills them with the rows that are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from invbench.report.columns import name_of, rows_of
from invbench.report.networks import where
from invbench.report.text import count, faster_or_slower, printable, seconds_with_interval, spoken, times
from invbench.report.web.parts import legend
from invbench.report.web.plots import COLOURS, MARKERS, Plot, marks, new_figure
from invbench.report.web.tables import esc
from invbench.results import Result
from invbench.spec import FREE
from invbench.verdict.networks import TOP1, counts_as_published, data_set_of, family_of, scores_of, with_accuracy
from invbench.verdict.points import Point

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

ACCURACY, LATENCY = "Accuracy as published", "Latency against multiply-adds"
# Two networks alone make a picture, but not one for each of several data sets.
FEWEST = 3
# More points than this share one picture, for the filters to part.
PANELS = 6
KNOWN = {
    "rednet": (0, 0), "resnet": (4, 0), "san_pairwise": (1, 0), "san_patchwise": (3, 1), "axial": (2, 2),
    "lrnet": (5, 3), "stand_alone": (6, 4),
}  # fmt: skip


def plots(points: Sequence[Point], rows: str | None) -> list[Plot]:
    """Every picture for which there are values; rows: which of the page's, None for those that are filtered.

    Raises ImportError where Bokeh is not installed.
    """
    import bokeh.plotting  # noqa: F401 -- before anything is drawn

    return [*_accuracies(points, rows), *_latencies(points, rows)]


def _accuracies(points: Sequence[Point], rows: str | None) -> Iterator[Plot]:
    for data_set, networks in _drawn(points).items():
        for score in dict.fromkeys(name for row in networks for name in scores_of(row)):
            scored = [row for row in networks if score in scores_of(row)]
            alike = [row for row in scored if counts_as_published(row)]
            for quantity, words in (("params", "parameters"), ("macs", "multiply-adds of one image")):
                found = [v for row in (alike if quantity == "macs" else scored) if (v := getattr(row, quantity))]
                if not found:
                    continue
                scale, unit = _unit(found)
                made = _figure(f"{words} ({unit})", f"{score} on {printable(data_set)}, as published (%)", "linear")
                spec = {"y": score, "x": quantity, "scale": scale, "dataSet": data_set}
                what = "Accuracy" if score == TOP1 else score[0].upper() + score[1:]
                heading = f"{what} against {words.split()[0]}"
                yield Plot(ACCURACY, heading, made, {"kind": "scatter", "rows": rows, **spec})


def _drawn(points: Sequence[Point]) -> dict[str, list[Result]]:
    """The networks of each data set of which there is a picture."""
    found = with_accuracy(row for _, row in rows_of(points))
    least = 2 if len(found) == 1 else FEWEST
    return {data_set: networks for data_set, networks in found.items() if len(networks) >= least}


def _latencies(points: Sequence[Point], rows: str | None) -> Iterator[Plot]:
    timed = [(point, row) for point, row in rows_of(points) if row.seconds and row.macs and row.backend != FREE]
    if not timed:
        return
    scale, unit = _unit([row.macs for _, row in timed if row.macs])
    panels = [n for n, point in enumerate(points) if any(point is other for other, _ in timed)]
    for panel in panels if len(panels) <= PANELS else [None]:
        place = where(points[panel], points) if panel is not None else ""
        made = _figure(f"multiply-adds of one image ({unit})", "latency (ms)", "log")
        spec = {"y": "t", "x": "macs", "scale": scale, "panel": panel}
        yield Plot(LATENCY, place or "Latency against multiply-adds", made, {"kind": "scatter", "rows": rows, **spec})


def _unit(values: Sequence[int]) -> tuple[float, str]:
    return (1e-9, "G") if statistics.median(values) >= 3e8 else (1e-6, "M")


def _figure(x_label: str, y_label: str, y_type: str) -> Figure:
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, Range1d

    made: Figure = new_figure(
        x_axis_type="log", y_axis_type=y_type, x_axis_label=x_label, y_axis_label=y_label, height=380,
        x_range=Range1d(start=1, end=10), y_range=Range1d(start=1, end=10),
    )  # fmt: skip
    lines = ColumnDataSource({"xs": [], "ys": [], "color": [], "dash": []}, name="lines")
    made.multi_line("xs", "ys", source=lines, line_color="color", line_dash="dash", line_alpha=0.6, line_width=1)
    marks(made, "x", "low", "x", "high", at="")
    names = ("x", "y", "text", "dx", "dy", "align", "baseline")
    labels = ColumnDataSource({name: [] for name in names}, name="labels")
    made.text(
        "x", "y", "text", source=labels, x_offset="dx", y_offset="dy", text_align="align", text_baseline="baseline",
        text_font=value("system-ui, sans-serif"), text_font_size="12px", name="label-text",
    )  # fmt: skip
    return made


def before(points: Sequence[Point]) -> dict[str, str]:
    """What stands above the pictures of a section: the legend, and why there are none of an accuracy."""
    families = {family: _style(number, family, rows) for number, (family, rows) in enumerate(_families(points).items())}
    shown = {family_of(row.subject) for rows in _drawn(points).values() for row in rows}
    hint = _hint("Published by others and measured by nobody here. Involutions filled, others hollow.")
    legends = {ACCURACY: hint + legend({name: style for name, style in families.items() if name in shown})}
    hint = _hint("Medians with 95 % intervals; a line joins the networks of a family that ran in the same way.")
    return {**legends, LATENCY: hint + legend(styles(points))}


def left_out(points: Sequence[Point]) -> str:
    """Why there is no picture of an accuracy."""
    found = with_accuracy(row for _, row in rows_of(points))
    gone = [printable(data_set) for data_set in found if data_set not in _drawn(points)]
    told = f"No picture of the accuracy on {spoken(gone)}: too few networks have a published one to compare."
    return _hint(told) if gone else ""


def _hint(text: str) -> str:
    return f'<p class="hint">{esc(text)}</p>'


def _families(points: Sequence[Point]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for _, row in rows_of(points):
        if row.backend != FREE:
            found.setdefault(family_of(row.subject), []).append(row)
    return found


def styles(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """For each way in which a family ran: a colour for family and backend, a marker for the regime."""
    families = list(_families(points))
    ways = list(dict.fromkeys((family_of(r.subject), r.backend) for _, r in rows_of(points) if r.backend != FREE))
    regimes = list(dict.fromkeys(str(row.regime or "") for _, row in rows_of(points)))
    found: dict[str, dict[str, Any]] = {}
    for _, row in rows_of(points):
        family = family_of(row.subject)
        if row.backend == FREE:
            continue
        style = _style(families.index(family), family, [row])
        involutions = [backend for other, backend in ways if other == family and backend != "torch"]
        nth = involutions.index(row.backend) if row.backend in involutions else 0
        if nth:  # of several backends of one family
            style["color"] = COLOURS[(COLOURS.index(style["color"]) + nth) % len(COLOURS)]
        marker = MARKERS.index(style["marker"]) + 3 * regimes.index(str(row.regime or ""))
        found.setdefault(_way(row), {**style, "marker": MARKERS[marker % len(MARKERS)]})
    return found


def _style(number: int, family: str, rows: Sequence[Result]) -> dict[str, Any]:
    colour, marker = KNOWN.get(family, (number, number // len(COLOURS)))
    filled = any(row.backend != "torch" for row in rows)
    return {"color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)], "filled": filled}


def _way(row: Result) -> str:
    name = name_of(row)
    return name.replace(row.subject, family_of(row.subject), 1)


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What ``scatter.js`` knows of each row."""
    families = {family: _style(number, family, rows) for number, (family, rows) in enumerate(_families(points).items())}
    ways = styles(points)
    return [_row(point, row, points, families, ways) for point, row in rows_of(points)]


def _row(
    point: Point, row: Result, points: Sequence[Point], families: Mapping[str, Any], ways: Mapping[str, Any]
) -> dict[str, Any]:
    interval = row.latency.interval if row.latency else None
    latency = row.ratio.latency if row.ratio else None
    compared = row.baseline and row.baseline != row.subject
    against = f", {faster_or_slower(latency.median)} than {row.baseline}" if compared and latency else ""
    of = f" of {row.baseline}" if compared and row.ratio else ""
    scores = scores_of(row) if row.backend != FREE else {}
    over = (row.ratio.params, row.ratio.flop) if row.ratio and compared else (None, None)
    told = [f"{count(n)}{times(ratio)}" if n else "-" for n, ratio in zip((row.params, row.macs), over, strict=True)]
    return {
        "name": name_of(row), "subject": row.subject, "family": family_of(row.subject), "way": _way(row),
        "style": ways.get(_way(row)), "free": row.backend == FREE,
        "familyStyle": {**families.get(family_of(row.subject), {}), "filled": row.backend != "torch"},
        "place": where(point, points), "macs": row.macs, "params": row.params,
        "t": interval and interval.median * 1e3, "low": interval and interval.low * 1e3,
        "high": interval and interval.high * 1e3,
        "told": interval and f"{seconds_with_interval(interval)}{against}", "dataSet": data_set_of(row),
        "scores": scores, "alike": counts_as_published(row),
        "toldScores": {name: f"{value:.2f} %, as published" for name, value in scores.items()},
        "toldParams": f"{told[0]} parameters{of}", "toldMacs": f"{told[1]} multiply-adds{of}",
    }  # fmt: skip
