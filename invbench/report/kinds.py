"""Rows and checks: a document has either, and a merged one both."""

from __future__ import annotations

from collections.abc import Callable

from invbench.results import ResultSet


def has_rows(results: ResultSet) -> bool:
    """Whether the rows of a document are to be told; also where there is nothing at all, which is then said."""
    return bool(results.results) or not results.checks


def told_apart(rows: Callable[[ResultSet], str], checks: Callable[[ResultSet], str]) -> Callable[[ResultSet], str]:
    """A format that tells rows and checks one below the other, whichever there are."""

    def render(results: ResultSet) -> str:
        parts = [rows(results)] if has_rows(results) else []
        return "\n\n".join([*parts, *([checks(results)] if results.checks else [])])

    return render
