"""The figures of a page, made with Bokeh, their sources empty: ``plots.js`` fills them with the rows that are shown.

Bokeh is imported late: it belongs to the extra ``report``.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from invbench.report.columns import axis_name, axis_text, name_of, rows_of
from invbench.results import ResultSet
from invbench.spec import CASE_FIELDS
from invbench.verdict.points import CONVOLUTIONS, Point, informative, values_of, varying

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

AXIS_WORDS = {
    "N": "N (images)", "C": "C (channels)", "H": "H (pixels)", "H=W": "H = W (pixels)", "W": "W (pixels)",
    "K": "K (side of the window)", "G": "G (groups)", "threads": "threads",
}  # fmt: skip
MAX_AXES = 6
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")
SOFT = "#57606a"
FONT = "system-ui, sans-serif"
# Of one hue each, told apart also by colour-blind readers (Okabe and Ito); involutions are filled, others hollow.
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#e69f00", "#8a8a8a")
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star")
KNOWN = {
    "numba": (0, 0), "triton": (1, 1), "compiled": (6, 2), "naive": (2, 3), "unfold": (3, 4),
    "conv2d": (4, 1), "conv2d-3x3": (5, 3), "depthwise": (3, 2), "separable": (2, 0),
    "local-attention": (0, 5), "local-attention (flex)": (0, 6), "san-pairwise": (1, 4), "san-patchwise": (1, 5),
    "axial-attention": (6, 4), "local-relation": (4, 6),
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A figure and where it stands; ``spec`` tells plots.js how to fill it."""

    section: str
    heading: str
    figure: Figure
    spec: Mapping[str, Any] = field(default_factory=dict)


def styles(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Colour, marker and whether it is filled, for each name; the same name looks the same in every document."""
    found: dict[str, dict[str, Any]] = {}
    for _, row in rows_of(points):
        name = name_of(row)
        colour, marker = KNOWN.get(name, (len(found), len(found) // 2))
        found.setdefault(name, {
            "color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)],
            "filled": row.subject == "involution",
        })  # fmt: skip
    return found


def plots(results: ResultSet, points: Sequence[Point], units: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    """Every figure for which there are values. Raises ImportError where Bokeh is not installed."""
    import bokeh.plotting  # noqa: F401 -- before anything is drawn

    rows = [row for _, row in rows_of(points)]
    found: list[Plot] = []
    if any(row.latency for row in rows):
        found += _maps(points)
        found += _against(points, "latency", "Latency", units["latency"]["label"], plot_axes(points))
        found += _roofline(results, points)
    if any(row.memory and row.memory.peak for row in rows):
        found += _against(points, "memory", "Peak memory", units["memory"]["label"], plot_axes(points)[:1])
    return found


def plot_axes(points: Sequence[Point]) -> list[str]:
    """The varying axes in the order in which they tell most about the ratio."""
    first = informative(points)
    return [*first, *(axis for axis in varying(points) if axis not in (*first, "baseline"))][:MAX_AXES]


def is_numeric(axis: str) -> bool:
    """Whether an axis has whole numbers."""
    return axis in CASE_FIELDS and axis not in ("padding_mode", "device", "dtype", "layout", "mode", "scope")


def _against(points: Sequence[Point], quantity: str, noun: str, unit: str, axes: Sequence[str]) -> Iterator[Plot]:
    label = f"{noun.lower()} ({unit})"
    if not axes:
        spec = {"kind": "names", "quantity": quantity}
        yield Plot(noun, f"{noun} of each subject", _by_name(list(styles(points)), label), spec)
    for axis in axes:
        name = axis_name(axis, points)
        values = values_of([p for p in points if p.axes[axis] is not None], axis)
        numbers = [value for value in values if isinstance(value, int)] if is_numeric(axis) else []
        made = _by_axis(numbers, [axis_text(value) for value in values], AXIS_WORDS.get(name, name), label)
        place: dict[str, Any] = {"axis": axis, "numeric": bool(numbers)}
        yield Plot(noun, f"{noun} against {name}", made, {"kind": "axis", "quantity": quantity, **place})


def _by_axis(numbers: Sequence[int], texts: Sequence[str], x_label: str, y_label: str) -> Figure:
    from bokeh.models import ColumnDataSource, FixedTicker

    if numbers:
        made = new_figure(x_axis_type="log", y_axis_type="log", x_axis_label=x_label, y_axis_label=y_label)
        made.x_range.update(range_padding=0.08)
        if _apart(numbers):
            made.xaxis.ticker = FixedTicker(ticks=list(numbers))
        lines = ColumnDataSource({"xs": [], "ys": [], "color": [], "dash": []}, name="lines")
        made.multi_line("xs", "ys", source=lines, line_color="color", line_dash="dash", line_alpha=0.5, line_width=1.5)
    else:
        made = new_figure(x_range=list(texts), y_axis_type="log", x_axis_label=x_label, y_axis_label=y_label)
        made.xaxis.major_label_orientation = 0.5 if sum(map(len, texts)) > 40 else "horizontal"
        made.xgrid.visible = False
    marks(made, "x", "low", "x", "high")
    return made


def _apart(numbers: Sequence[int]) -> bool:
    """Whether labels at all values of a logarithmic axis have room beside one another."""
    ordered = sorted(numbers)
    whole = ordered[-1] / ordered[0]
    return len(ordered) <= 8 and all(b / a > whole**0.09 for a, b in itertools.pairwise(ordered))


def _by_name(names: Sequence[str], label: str) -> Figure:
    height = 90 + 30 * len(names)
    made = new_figure(x_axis_type="log", y_range=list(reversed(names)), x_axis_label=label, height=height)
    marks(made, "low", "y", "high", "y")
    return made


def marks(made: Figure, x0: str, y0: str, x1: str, y1: str, size: int = 9, at: str = "at") -> None:
    """A mark and a whisker for each row, which the mouse explains; at: the word before the row's place."""
    from bokeh.models import ColumnDataSource, HoverTool

    names = ("x", "y", "low", "high", "told", "name", "place", "marker", "color", "fill")
    source = ColumnDataSource({name: [] for name in names}, name="marks")
    made.segment(x0, y0, x1, y1, source=source, line_color="color", line_width=1.5)
    drawn = made.scatter(
        "x", "y", source=source, marker="marker", size=size, line_color="color", fill_color="color", fill_alpha="fill",
        line_width=1.5,
    )  # fmt: skip
    tips = [("", "@name"), (at, "@place"), ("", "@told")]
    made.add_tools(HoverTool(renderers=[drawn], tooltips=tips))


def _roofline(results: ResultSet, points: Sequence[Point]) -> Iterator[Plot]:
    rows = [row for _, row in rows_of(points) if row.flop and row.bytes_min and row.seconds]
    intensities = [row.flop / row.bytes_min for row in rows if row.flop and row.bytes_min]
    if not intensities:
        return
    made = new_figure(
        x_axis_type="log", y_axis_type="log", x_axis_label="FLOP per byte", y_axis_label="GFLOP/s", height=380
    )
    roofs = roofs_of(results, points)
    left = min(intensities) / 2
    right = max([2 * max(intensities), *(2 * roof.ridge for roof in roofs)])
    for roof in roofs:
        start = min(left, roof.ridge / 3)
        heights = [start * roof.bytes_per_s / 1e9, roof.flop_per_s / 1e9, roof.flop_per_s / 1e9]
        made.line([start, roof.ridge, right], heights, line_width=2, line_dash=roof.dash, line_color=SOFT, name="roof")
    made.y_range.update(range_padding=0.15)
    marks(made, "x", "low", "x", "high")
    yield Plot("Roofline", "Speed against the peaks of the machine", made, {"kind": "roofline"})


@dataclass(frozen=True, slots=True)
class Roof:
    """The peaks of a machine, device and type, and how their line is drawn."""

    name: str
    flop_per_s: float
    bytes_per_s: float
    dash: str

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on the matrix product is the limit."""
        return self.flop_per_s / self.bytes_per_s


def roofs_of(results: ResultSet, points: Sequence[Point]) -> list[Roof]:
    """For each machine, device, type and number of threads the medians of its runs' peaks."""
    found: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
    apart = [axis for axis in ("machine", "device", "dtype", "threads") if axis in varying(points)]
    for point, row in rows_of(points):
        peaks = results.peaks_of(row)
        if peaks and row.latency:
            found.setdefault(tuple(axis_text(point.axes[axis]) for axis in apart), []).append(peaks)
    medians = [
        [statistics.median(peaks[name] for peaks in runs) for name in ("matmul_flop_per_s", "copy_bytes_per_s")]
        for runs in found.values()
    ]
    return [
        Roof(", ".join(key), flop, copied, DASHES[n % len(DASHES)])
        for n, (key, (flop, copied)) in enumerate(zip(found, medians, strict=True))
    ]


def _maps(points: Sequence[Point]) -> Iterator[Plot]:
    if not informative(points):
        return
    for subject in CONVOLUTIONS:
        if any(point.ratio(subject) for point in points):
            yield Plot("Map", f"Involution over {subject}", _map(), {"kind": "map", "subject": subject})


def _map() -> Figure:
    from bokeh.core.properties import value
    from bokeh.models import ColumnDataSource, FactorRange, FixedTicker, HoverTool, LinearColorMapper
    from bokeh.models.annotations import ColorBar
    from bokeh.palettes import RdBu11

    made = new_figure(x_range=FactorRange(), y_range=FactorRange(), x_axis_label=" ", y_axis_label=" ", height=340)
    made.grid.visible = False
    names = ("x", "y", "log2", "text", "told", "count", "ink")
    source = ColumnDataSource({name: [] for name in names}, name="cells")
    mapper = LinearColorMapper(palette=list(RdBu11), low=-3, high=3)
    drawn = made.rect(
        "x", "y", 0.98, 0.98, source=source, fill_color={"field": "log2", "transform": mapper}, line_color=None
    )
    made.text(
        "x", "y", "text", source=source, text_align="center", text_baseline="middle", text_color="ink",
        text_font=value(FONT), name="numbers",
    )  # fmt: skip
    labels: dict[float | str, Any] = {-3: "1/8", -2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4", 3: "8"}
    bar = ColorBar(
        color_mapper=mapper, ticker=FixedTicker(ticks=list(range(-3, 4))), major_label_overrides=labels, width=12,
        background_fill_alpha=0, major_label_text_font=FONT, major_label_text_font_size="12px", padding=4,
    )  # fmt: skip
    made.add_layout(bar, "right")
    tips = [("", "@told"), ("points", "@count")]
    made.add_tools(HoverTool(renderers=[drawn], tooltips=tips))
    return made


def new_figure(**fields: Any) -> Figure:
    """A figure as all of them are."""
    from bokeh.models import FixedTicker, NumeralTickFormatter
    from bokeh.plotting import figure

    made = figure(**{
        "height": 340, "sizing_mode": "stretch_width", "tools": "pan,box_zoom,wheel_zoom,reset,save",
        "active_drag": None, "active_scroll": None, **fields,
    })  # fmt: skip
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.background_fill_alpha = 0
    made.border_fill_alpha = 0
    made.outline_line_color = None
    for axis, kind in ((made.xaxis[0], fields.get("x_axis_type")), (made.yaxis[0], fields.get("y_axis_type"))):
        if kind == "log":
            axis.ticker = FixedTicker(ticks=[], name="by-data")
            axis.formatter = NumeralTickFormatter(format="0.[00000]")
        axis.axis_label_text_font = axis.major_label_text_font = FONT
        axis.axis_label_text_font_size, axis.major_label_text_font_size = "13px", "12px"
        axis.axis_label_text_font_style = "normal"
    return made
