"""Tables and controls as HTML, everything escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from invbench.report.columns import Cell, Grid
from invbench.report.text import printable


def esc(text: object) -> str:
    """Text for HTML, without control characters."""
    return html.escape(printable(str(text)))


def table(grid: Grid, kind: str, keys: Sequence[object], failed: Iterable[bool] = ()) -> str:
    """A table that can be sorted. kind: ``row``, ``point`` or ``place``, which is several points; keys: which of
    them each line shows."""
    head = "".join(
        f'<th scope="col"{_lead(index, grid)}><button type="button">{esc(heading)}</button></th>'
        for index, heading in enumerate(grid.headings)
    )
    bad = list(failed) or [False] * len(grid.lines)
    body = "\n".join(
        f'<tr data-{kind}="{key}"{" class=failed" if dim else ""}>'
        + "".join(_cell(cell, index < grid.leading) for index, cell in enumerate(line))
        + "</tr>"
        for line, key, dim in zip(grid.lines, keys, bad, strict=True)
    )
    parts = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n{_foot(grid)}"
    return f'<div class="scroll"><table>\n{parts}</table></div>'


def _foot(grid: Grid) -> str:
    """The lines over all others, which sorting leaves where they are."""
    lines = "\n".join(
        f"<tr>{''.join(_cell(cell, index < grid.leading) for index, cell in enumerate(line))}</tr>"
        for line in grid.foot
    )
    return f"<tfoot>\n{lines}\n</tfoot>\n" if lines else ""


def _lead(index: int, grid: Grid) -> str:
    return " class=lead" if index < grid.leading else ""


def _cell(cell: Cell, leads: bool) -> str:
    value = "" if cell.value is None else f' data-v="{esc(cell.value)}"'
    kind = "lead" if leads else cell.mark
    return f"<td{f' class={kind}' if kind else ''}{value}>{esc(cell.text)}</td>"


def select(kind: str, name: str, label: str, options: Mapping[str, str], chosen: str = "") -> str:
    """A drop-down list. kind: ``filter`` or ``state``; options: words by value."""
    inner = "".join(
        f'<option value="{esc(value)}"{" selected" if value == chosen else ""}>{esc(words)}</option>'
        for value, words in options.items()
    )
    return f'<label>{esc(label)}<select data-{kind}="{esc(name)}">{inner}</select></label>'


def filters(choices: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """The filters: a drop-down list for each name with its label and values, and one for text."""
    lists = "".join(
        select("filter", name, label, {"": "all", **{value: value for value in values}})
        for name, (label, values) in choices.items()
        if len(values) > 1
    )
    return (
        f'<form class="filters" onsubmit="return false">{lists}'
        '<label>contains<input type="search" data-filter="text"></label>'
        '<button type="button" id="reset">Show all</button><span class="shown" id="shown"></span></form>'
    )


def answers(sentences: Iterable[str], mark: str = "") -> str:
    """What a reader came for, a paragraph each; mark: of a cell, which colours it."""
    kinds = f"answer {mark}".strip()
    return "\n".join(f'<p class="{kinds}">{esc(sentence)}</p>' for sentence in sentences)


def items(texts: Iterable[str]) -> str:
    """A list of remarks, or nothing."""
    inner = "\n".join(f"<li>{esc(text)}</li>" for text in texts)
    return f"<ul>{inner}</ul>" if inner else ""


def definitions(fields: Mapping[str, Any], prefix: str = "") -> str:
    """Nested fields as a flat list of names and values."""
    found = ""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            found += definitions(value, f"{prefix}{name}.")
        else:
            found += (
                f"<dt>{esc(prefix + name)}</dt><dd>{esc(value if isinstance(value, str) else json.dumps(value))}</dd>"
            )
    return found


def script_data(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
