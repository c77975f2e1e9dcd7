"""Whole networks on a page: tables without plots."""

from __future__ import annotations

from typing import Any

from invbench.report.networks import breakdown, network_grid, network_notes, network_sentences
from invbench.report.web.frame import above, below, page, section
from invbench.report.web.tables import filters, items, table
from invbench.results import Result, ResultSet, Status


def network_page(results: ResultSet) -> str:
    """The page of a document of networks only."""
    rows = [row for point in results.points() for row in point]
    names = ("subject", "backend", "regime", "status")
    at = [dict(zip(names, (*row.name, str(row.status)), strict=True)) for row in rows]
    data: dict[str, Any] = {"rows": [{"point": 0, "at": each} for each in at], "axes": []}
    choices = {name: (name, list(dict.fromkeys(each[name] for each in at))) for name in names}
    body = [*above(results, network_sentences(results)), filters(choices), *_tables(results, rows, "row")]
    return page("\n".join([*body, *below(results)]), data)


def network_sections(results: ResultSet) -> list[str]:
    """The networks of a document that has operators, too."""
    rows = [row for point in results.points() for row in point]
    return _tables(results, rows, "network")


def _tables(results: ResultSet, rows: list[Result], kind: str) -> list[str]:
    failed = (row.status is not Status.OK for row in rows)
    found = section("Whole networks", table(network_grid(results), kind, range(len(rows)), failed))
    share = breakdown(results)
    if share:
        found += section(share.heading, table(share.grid, "kind", range(len(share.grid.lines))))
    return [*found, items(network_notes(results))]
