"""Pictures of training: validation accuracy and training loss after each epoch; ``curves.js`` fills them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from invbench.report.columns import name_of, rows_of
from invbench.report.text import three_digits
from invbench.report.training import label
from invbench.report.web.parts import legend
from invbench.report.web.plots import COLOURS, MARKERS, Plot, marks, new_figure
from invbench.results import Result
from invbench.verdict.points import Point
from invbench.verdict.training import Epoch, over_seeds

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

SECTION = "Training, epoch by epoch"
QUANTITIES = {"accuracy": "validation accuracy (%)", "loss": "training loss"}


def plots(points: Sequence[Point], rows: str | None) -> list[Plot]:
    """Both curves of each point that has any; rows: which of the page's, None for those that are filtered.

    Raises ImportError where Bokeh is not installed.
    """
    import bokeh.plotting  # noqa: F401 -- before anything is drawn

    return list(_curves(points, rows))


def _curves(points: Sequence[Point], rows: str | None) -> Iterator[Plot]:
    for number, point in enumerate(points):
        place = f" on {label(point, points)}"
        for quantity, words in QUANTITIES.items():
            if any(_epochs(row, quantity) for row in point.rows):
                heading = f"{words.partition(' (')[0].capitalize()}{place}"
                spec = {"kind": "curves", "rows": rows, "panel": number, "quantity": quantity}
                yield Plot(SECTION, heading, _figure(words, quantity), spec)


def _figure(y_label: str, quantity: str) -> Figure:
    from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d

    made: Figure = new_figure(
        x_axis_label="epoch", y_axis_label=y_label, y_axis_type="log" if quantity == "loss" else "linear", height=380,
        x_range=DataRange1d(only_visible=True, range_padding=0.04), y_range=DataRange1d(only_visible=True),
    )  # fmt: skip
    made.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    bands = ColumnDataSource({"xs": [], "ys": [], "color": []}, name="bands")
    made.patches("xs", "ys", source=bands, fill_color="color", fill_alpha=0.18, line_color=None)
    lines = ColumnDataSource({"xs": [], "ys": [], "color": [], "dash": []}, name="lines")
    made.multi_line("xs", "ys", source=lines, line_color="color", line_dash="dash", line_width=1.5)
    marks(made, "x", "low", "x", "high", size=6, at="")
    return made


def before(points: Sequence[Point]) -> dict[str, str]:
    """What stands above the pictures."""
    hint = '<p class="hint">The mean over seeds; the band reaches from the lowest to the highest seed.</p>'
    return {SECTION: hint + legend(styles(points))}


def left_out(_: Sequence[Point]) -> str:
    """Why there is no picture of something: there is of everything."""
    return ""


def styles(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each network."""
    found: dict[str, dict[str, Any]] = {}
    for point in points:
        place = {True: 0, False: 0}  # the same place in its data set looks the same in each
        for row in point.rows:
            filled = row.backend != "torch"
            colours = (0, 1, 2, 3, 6) if filled else (4, 5)
            colour, marker = colours[place[filled] % len(colours)], MARKERS[place[filled] % len(MARKERS)]
            place[filled] += 1
            found.setdefault(name_of(row), {"color": COLOURS[colour], "marker": marker, "filled": filled})
    return found


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What ``curves.js`` knows of each row."""
    looks = styles(points)
    return [
        {
            "name": name_of(row), "subject": row.subject, "style": looks[name_of(row)], "place": label(point, points),
            **{quantity: [_told(epoch, quantity) for epoch in _epochs(row, quantity)] for quantity in QUANTITIES},
        }
        for point, row in rows_of(points)
    ]  # fmt: skip


def _epochs(row: Result, quantity: str) -> list[Epoch]:
    return over_seeds(getattr(row.training, quantity)) if row.training else []


def _told(epoch: Epoch, quantity: str) -> dict[str, Any]:
    percent = quantity == "accuracy"
    mean, low, high = (f"{v:.1f} %" if percent else three_digits(v) for v in (epoch.mean, epoch.low, epoch.high))
    spread = f", {low} to {high} over {epoch.count} seeds" if epoch.count > 1 else ""
    return {"mean": epoch.mean, "low": epoch.low, "high": epoch.high, "told": mean + spread}
