"""What is counted of networks, as a table of its own: it is the same however a network is run."""

from __future__ import annotations

from collections.abc import Sequence

from invbench.report.columns import Cell, Column, Grid, Section
from invbench.report.text import MISSING
from invbench.results import Result
from invbench.spec import FREE, NetworkCase


def counts(rows: Sequence[Result], columns: Sequence[Column]) -> Section | None:
    """A line for each network, and for each size of image and stem that it was counted at; columns: of counts."""
    found: dict[tuple[object, ...], tuple[Result, list[Cell]]] = {}
    for row in rows:
        cells = [Cell(column.cell(row), column.value(row)) for column in columns]
        if any(cell.text != MISSING for cell in cells):
            key = (counted_name(row), *size_of(row), *(cell.text for cell in cells))
            found.setdefault(key, (row, cells))
    if not found or not columns:
        return None
    place = Sizes([row for row, _ in found.values()])
    lines = [[*place.cells(row), *cells] for row, cells in found.values()]
    headings = [*place.headings, *(column.heading for column in columns)]
    return Section("Counted, of one image", Grid(headings, place.leading, lines), "counted")


def counted_name(row: Result) -> str:
    """What counts depend on: the network, and whether its involutions are free."""
    return f"{row.subject} ({FREE})" if row.backend == FREE else row.subject


def size_of(row: Result) -> tuple[int, int, int | None]:
    """Height and width of the images, and K of the stem."""
    return row.case.H, row.case.W, row.case.stem_kernel_size if isinstance(row.case, NetworkCase) else None


class Sizes:
    """The columns that lead a table of counts: the network, and size and stem where those differ."""

    def __init__(self, rows: Sequence[Result]) -> None:
        images, stems = {size_of(row)[:2] for row in rows}, {size_of(row)[2] for row in rows}
        self._images, self._stems = len(images) > 1, len(stems) > 1
        self.headings = ["network", *["image"] * self._images, *["stem"] * self._stems]
        self.leading = len(self.headings)

    def cells(self, row: Result) -> list[Cell]:
        """Those of a row."""
        H, W, stem = size_of(row)
        name = counted_name(row)
        return [
            Cell(name, name), *[Cell(f"{H}x{W}", H)] * self._images,
            *[Cell(f"{stem}x{stem}", stem)] * self._stems,
        ]  # fmt: skip
