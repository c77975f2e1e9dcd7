"""A table for a terminal: one where it is wide, speed and cost one below the other where it is narrow.

Of many points, every row is one line with the axes that vary in front, and the columns that have no room are left out.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invbench.report.columns import Cell, Column, Grid, axis_headings, axis_text, columns, name_of, stacked, summary
from invbench.report.headline import machine, method, nodes_of, sentences, title
from invbench.report.machines import MachinePart, beside, parts_of, shared_method
from invbench.report.notes import failures, notes, of_all_machines, of_one_machine
from invbench.report.whole import Whole, whole_by_machine, whole_parts
from invbench.results import ResultSet, Status
from invbench.verdict.points import points_of, varying

# The width of what leads a foot.
FOOT = 10
# How the marks of cells are coloured.
MARKED = {"good": "green", "doubt": "yellow", "bad": "bold red"}


def render_table(results: ResultSet, width: int | None = None) -> str:
    """The table, with the machine and the settings above it and the conclusion below it.

    width: columns; by default the terminal's. Colour only where standard output is a terminal and NO_COLOR is unset.
    """
    text, console = canvas(width or terminal_width())
    whole = whole_parts(results)
    operators = results.operators()
    if operators.results or not whole:
        _print_operators(operators, console)
    for part in whole_by_machine(whole):
        _print_whole(part, console)
    return finished(text)


def _print_operators(results: ResultSet, console: Console) -> None:
    parts = parts_of(results)
    if parts:
        _print_machines(results, parts, console)
    else:
        _print_above((title(results), machine(results), *nodes_of(results), method(results)), console)
        _print_rows(results, notes(results), console)
    _print_answer(sentences(results), console)


def _print_machines(results: ResultSet, parts: Sequence[MachinePart], console: Console) -> None:
    """All machines side by side, and then a part for each."""
    _print_above(filter(None, (title(results), shared_method(results))), console)
    if told := beside(results):
        console.print(Text(f"\n{told.hint}:"))
        print_grid(told.grid, console)
        _print_below(told.notes, console)
    for part in parts:
        console.print(Text(f"\n{part.heading}", style="bold"))
        _print_above(part.above, console)
        _print_rows(part.results, [*failures(part.results), *of_one_machine(part.results)], console)
    console.print()
    _print_below(of_all_machines(results), console)


def _print_rows(results: ResultSet, remarks: Sequence[str], console: Console) -> None:
    dropped = _print_points(results, console) if len(points_of(results)) > 1 else _print_point(results, console)
    _print_below(remarks, console)
    if dropped:
        console.print(Text(f"* no room for {', '.join(dropped)}: --format markdown, csv or html has them"))


def _print_whole(part: Whole, console: Console) -> None:
    """Networks or trainings; the axes stand in lines of their own, since names are long."""
    if part.machine:
        console.print(Text(f"\n{part.machine}", style="bold"))
    _print_answer(part.warnings, console)
    _print_above((part.title, machine(part.results), *nodes_of(part.results), part.method), console)
    print_grid(stacked(part.grid), console, [column.part for column in part.columns])
    for section in part.sections:
        console.print(Text(section.heading))
        print_grid(section.grid, console)
    _print_below(part.notes, console)
    _print_answer(part.sentences, console)


def print_grid(grid: Grid, console: Console, parts: Sequence[str] = ()) -> None:
    """One table where there is room, else several, one below the other. parts: what each column belongs to."""
    short = with_short_headings(grid)
    whole = list(range(grid.leading, len(grid.headings)))
    pieces = (
        [whole] if _has_room(grid, whole, console) else packed(short, parts, lambda n: _has_room(short, n, console))
    )
    for piece in pieces:
        shown = grid if _has_room(grid, piece, console) else short
        console.print(table_of(piece_of(shown, piece)))


def _has_room(grid: Grid, columns: Sequence[int], console: Console) -> bool:
    return fits(table_of(piece_of(grid, columns)), console)


def piece_of(grid: Grid, columns: Sequence[int]) -> Grid:
    """The columns that lead, and some of the others by their indices."""
    kept = [*range(grid.leading), *columns]
    lines, foot = ([[line[n] for n in kept] for line in some] for some in (grid.lines, grid.foot))
    return Grid([grid.headings[n] for n in kept], grid.leading, lines, foot)


def with_short_headings(grid: Grid) -> Grid:
    """The same with headings broken between words where they are wider than what stands below them."""
    headings = grid.headings[: grid.leading]
    for n in range(grid.leading, len(grid.headings)):
        texts = [*grid.headings[n].split(), *(line[n].text for line in grid.lines)]
        headings.append("\n".join(textwrap.wrap(grid.headings[n], max(map(len, texts)), break_on_hyphens=False)))
    return replace(grid, headings=headings)


def packed(grid: Grid, parts: Sequence[str], has_room: Callable[[Sequence[int]], bool]) -> list[list[int]]:
    """The columns of each piece of a grid, by index; those of the same part stay together where they can."""
    everything = range(grid.leading, len(grid.headings))
    pieces: list[list[int]] = [[]]
    for _, part in itertools.groupby(everything, key=lambda n: parts[n - grid.leading] if parts else ""):
        own = list(part)
        together = has_room([*pieces[-1], *own])
        whole = together or has_room(own)
        for column in own:
            begins = not together and column == own[0] if whole else not has_room([*pieces[-1], column])
            if begins and pieces[-1]:
                pieces.append([])
            pieces[-1].append(column)
    return pieces


def _print_above(lines: Iterable[str], console: Console) -> None:
    for line in lines:
        console.print(Text(line))


def _print_below(remarks: Iterable[str], console: Console) -> None:
    for remark in remarks:
        console.print(Text(f"* {remark}"))


def _print_answer(told: Iterable[str], console: Console) -> None:
    for sentence in told:
        console.print(Text(sentence, style="bold"))


def terminal_width() -> int:
    """The columns of the terminal, or 100."""
    return shutil.get_terminal_size((100, 24)).columns


def canvas(width: int) -> tuple[io.StringIO, Console]:
    """Where to draw; coloured only if it will be seen."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = io.StringIO()
    return text, Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False)


def finished(text: io.StringIO) -> str:
    """What was drawn, without blanks at the ends of lines and an empty line at the top."""
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).removeprefix("\n")


def empty_table() -> Table:
    """The style of all tables."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))


def fits(table: Table, console: Console) -> bool:
    """Whether no column would have to be folded."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def table_of(grid: Grid) -> Table:
    """A table of texts."""
    table = empty_table()
    for index, heading in enumerate(grid.headings):
        leads = index < grid.leading
        table.add_column(Text(heading), justify="left" if leads else "right", no_wrap=leads, overflow="fold")
    for line in grid.lines:
        table.add_row(*(Text(cell.text, MARKED.get(cell.mark or "", "")) for cell in line))
    if grid.foot:
        table.add_section()
    for line in grid.foot:
        # What leads is narrow above: an axis' values.
        leading = ["\n".join(textwrap.wrap(cell.text, FOOT)) for cell in line[: grid.leading]]
        table.add_row(*map(Text, [*leading, *(cell.text for cell in line[grid.leading :])]))
    return table


def _print_point(results: ResultSet, console: Console) -> list[str]:
    everything = columns(results)

    def table(piece: Sequence[int]) -> Table:
        return _table(results, [everything[n - 1] for n in piece])

    headings = Grid(["backend", *(column.heading for column in everything)], 1, [])
    parts = [column.part for column in everything]
    for piece in packed(headings, parts, lambda piece: fits(table(piece), console)):
        console.print(table(piece))
    return []


def _table(results: ResultSet, shown: Sequence[Column]) -> Table:
    table = empty_table()
    table.add_column("backend", no_wrap=True)
    for column in shown:
        table.add_column(column.heading, justify="right", overflow="fold")
    for result in results.results:
        style = "" if result.status is Status.OK else "dim"
        table.add_row(name_of(result), *(column.cell(result) for column in shown), style=style)
    return table


def _print_points(results: ResultSet, console: Console) -> list[str]:
    """All rows and then a line for each point; the headings of the columns that had no room."""
    everything = columns(results)
    shown: list[Column] = []
    for column in sorted(everything, key=lambda column: -column.keep):
        more = [each for each in everything if each in shown or each is column]
        if not shown or fits(_widest(results, more), console):
            shown = more
    console.print(_rows(results, shown))
    console.print(table_of(summary(results)))
    return [column.heading for column in everything if column not in shown]


def _widest(results: ResultSet, shown: Sequence[Column]) -> Table:
    """A table of one line that is as wide as that of all rows: measuring thousands of lines takes seconds."""
    points = points_of(results)
    columns = [
        *([axis_text(point.axes[axis]) for point in points] for axis in varying(points)),
        [name_of(row) for row in results.results],
        *([column.cell(row) for row in results.results] for column in shown),
    ]
    line = [Cell(max(cells, key=len)) for cells in columns]
    return table_of(Grid([*axis_headings(points), "backend", *(column.heading for column in shown)], 0, [line]))


def _rows(results: ResultSet, shown: Sequence[Column]) -> Table:
    """Every row; a point's place on the axes stands in its first line, and a blank line follows its last."""
    points = points_of(results)
    axes = varying(points)
    table = empty_table()
    for heading in axis_headings(points):
        table.add_column(heading, justify="left", overflow="fold")
    table.add_column("backend", no_wrap=True)
    for column in shown:
        table.add_column(column.heading, justify="right", overflow="fold")
    for point in points:
        for index, row in enumerate(point.rows):
            place = [axis_text(point.axes[axis]) if index == 0 else "" for axis in axes]
            cells = [column.cell(row) for column in shown]
            last = row is point.rows[-1] and point is not points[-1]
            style = "" if row.status is Status.OK else "dim"
            told = (Text(cell, style) for cell in (name_of(row), *cells))
            table.add_row(*map(Text, place), *told, end_section=last)
    return table
