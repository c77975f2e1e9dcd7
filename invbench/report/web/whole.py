"""Whole networks, measured or trained, on a page: pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from invbench.report.columns import axis_text, rows_of
from invbench.report.headline import machine, nodes_of
from invbench.report.web import curves, scatter
from invbench.report.web.frame import above, how, section
from invbench.report.web.parts import Part, axes_of, plot_sections
from invbench.report.web.plots import Plot
from invbench.report.web.tables import answers, filters, items, table
from invbench.report.whole import Whole
from invbench.results import Status

PICTURES = {"network": scatter, "training": curves}


@dataclass(frozen=True)
class _Drawn:
    figures: list[Plot] | None
    before: Mapping[str, str]
    remark: str


def main_part(part: Whole) -> Part:
    """Of a document that has no operators: what the page filters by."""
    drawn, rows = _drawn(part, None), _rows(part)
    body = [
        *above(_where(part), [*part.warnings, *part.sentences]),
        filters(_choices(part, rows)), plot_sections(drawn.figures, drawn.before), drawn.remark, *_tables(part, "row"),
        items(part.own_notes),
    ]  # fmt: skip
    return Part(body, rows, drawn.figures, {"axes": axes_of(part.points)})


def section_part(part: Whole) -> Part:
    """Of a document that has others, which its filters are for."""
    prefix = f"{part.kind}-"
    drawn = _drawn(part, part.kind)
    body = [
        *section(part.heading, answers([*part.warnings, *part.sentences])),
        how(_where(part)),
        *([plot_sections(drawn.figures, drawn.before, prefix), drawn.remark] if drawn.figures else []),
        *_tables(part, part.kind), items(part.notes),
    ]  # fmt: skip
    return Part(body, _rows(part), drawn.figures, prefix=prefix)


def _where(part: Whole) -> list[str]:
    return [part.title, machine(part.results), *nodes_of(part.results), part.method]


def _drawn(part: Whole, rows: str | None) -> _Drawn:
    pictures = PICTURES[part.kind]
    try:
        figures: list[Plot] | None = pictures.plots(part.points, rows)
    except ImportError:
        figures = None
    return _Drawn(figures, pictures.before(part.points), pictures.left_out(part.points))


def _rows(part: Whole) -> list[dict[str, Any]]:
    """What the scripts know of each row."""
    axes = [axis["name"] for axis in axes_of(part.points)]
    numbers = {id(point): number for number, point in enumerate(part.points)}
    own = PICTURES[part.kind].rows(part.points)
    found = []
    for (point, row), more in zip(rows_of(part.points), own, strict=True):
        names = {"subject": row.subject, "backend": row.backend, "regime": str(row.regime or "")}
        at = {**{axis: axis_text(point.axes[axis]) for axis in axes}, **names, "status": str(row.status)}
        found.append({"point": numbers[id(point)], "at": at, **more})
    return found


def _choices(part: Whole, rows: list[dict[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    axes = {axis["name"]: (str(axis["label"]), list(axis["values"])) for axis in axes_of(part.points)}
    own = ("subject", "backend", "regime", "status")
    return {**axes, **{name: (name, list(dict.fromkeys(row["at"][name] for row in rows))) for name in own}}


def _tables(part: Whole, kind: str) -> list[str]:
    failed = (row.status is not Status.OK for row in part.rows)
    found = section("All rows" if kind == "row" else "Rows", table(part.grid, kind, range(len(part.rows)), failed))
    for more in part.sections:
        found += section(more.heading, table(more.grid, more.kind, range(len(more.grid.lines))))
    return found
