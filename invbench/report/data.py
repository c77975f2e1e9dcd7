"""Formats for programs: the whole document as JSON, or a flat row for each result as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from invbench.report.text import printable
from invbench.results import ResultSet


def render_json(results: ResultSet) -> str:
    """The document of schema 1."""
    return results.to_json()


def render_csv(results: ResultSet) -> str:
    """One line a row, nested fields joined by dots; raw samples stay in the JSON."""
    rows = [dict(_flat(result.to_dict())) for result in results.results]
    # A field that is an object in one row and null in another would be a column of its own: only its parts are.
    columns = dict.fromkeys(name for row in rows for name in row)
    leaves = [name for name in columns if not any(other.startswith(f"{name}.") for other in columns)]
    text = io.StringIO()
    writer = csv.DictWriter(text, leaves, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name == "warnings":
            yield prefix + name, printable("; ".join(value))
        elif name != "blocks":
            yield prefix + name, printable(value) if isinstance(value, str) else value
