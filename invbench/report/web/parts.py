"""What each kind of rows adds to a page, and what all kinds need for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from invbench.report.columns import axis_name, axis_text
from invbench.report.web.plots import Plot
from invbench.report.web.tables import esc
from invbench.verdict.points import Point, values_of, varying

NO_BOKEH = (
    "No plots: this page was made where Bokeh is not installed. "
    "For plots: pip install 'invbench[report]', and make the page again."
)
GLYPHS = {
    "circle": "\u25cf\u25cb", "square": "\u25a0\u25a1", "triangle": "\u25b2\u25b3", "diamond": "\u25c6\u25c7",
    "inverted_triangle": "\u25bc\u25bd", "hex": "\u2b22\u2b21", "star": "\u2605\u2606",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """HTML, the rows that the scripts know, in the order of their lines, and figures: None where Bokeh is missing.

    prefix: of the figures' ids. data: what the scripts need besides.
    """

    body: Sequence[str]
    rows: Sequence[Mapping[str, Any]]
    figures: Sequence[Plot] | None
    data: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""

    def items(self) -> list[dict[str, Any]]:
        """The figures as the scripts take them."""
        if not self.figures:
            return []
        from bokeh.embed import json_item

        return [
            {**plot.spec, "id": f"plot-{self.prefix}{n}", "item": json_item(plot.figure)}
            for n, plot in enumerate(self.figures)
        ]


def axes_of(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The axes that vary, each with its label and its values as texts."""
    return [
        {"name": axis, "label": axis_name(axis, points), "values": [axis_text(v) for v in values_of(points, axis)]}
        for axis in varying(points)
    ]


def plot_sections(drawn: Sequence[Plot] | None, before: Mapping[str, str], prefix: str = "") -> str:
    """The places of figures under their headings; before: what stands above those of a section."""
    if drawn is None:
        return f'<p class="missing">{esc(NO_BOKEH)}</p>'
    sections: dict[str, list[str]] = {}
    for number, plot in enumerate(drawn):
        inner = f'<div><h3>{esc(plot.heading)}</h3><div id="plot-{prefix}{number}"></div></div>'
        sections.setdefault(plot.section, []).append(inner)
    return "\n".join(
        f'<h2>{esc(section)}</h2>{before.get(section, "")}<div class="plots">{"".join(inner)}</div>'
        for section, inner in sections.items()
    )


def legend(styles: Mapping[str, Mapping[str, Any]]) -> str:
    """Which mark is whose."""
    entries = "".join(
        f'<li><span style="color:{style["color"]}">{GLYPHS[style["marker"]][0 if style["filled"] else 1]}</span> '
        f"{esc(name)}</li>"
        for name, style in styles.items()
    )
    return f'<ul class="legend">{entries}</ul>'
