"""A table for a terminal: one where it is wide, speed and cost one below the other where it is narrow."""

from __future__ import annotations

import io
import os
import shutil
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invbench.report.text import columns, conclusion, machine, method, name_of, notes, title
from invbench.results import ResultSet, Status


def render_table(results: ResultSet, width: int | None = None) -> str:
    """The table, with the machine and the settings above it and the conclusion below it.

    width: columns; by default the terminal's. Colour only where standard output is a terminal and NO_COLOR is unset.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    for line in (title(results), machine(results), method(results)):
        console.print(Text(line))
    whole = _table(results, ("speed", "cost"))
    fits = console.measure(whole, options=console.options.update(width=10_000)).maximum <= width
    for table in [whole] if fits else [_table(results, ("speed",)), _table(results, ("cost",))]:
        console.print(table)
    for note in notes(results):
        console.print(Text(f"* {note}"))
    console.print(Text(conclusion(results), style="bold"))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _table(results: ResultSet, parts: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("backend", no_wrap=True)
    shown = [column for column in columns(results) if column.part in parts]
    for column in shown:
        table.add_column(column.heading, justify="right", overflow="fold")
    for result in results.results:
        style = "" if result.status is Status.OK else "dim"
        table.add_row(name_of(result), *(column.cell(result) for column in shown), style=style)
    return table
