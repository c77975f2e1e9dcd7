"""Formats for programs: the whole document as JSON, or a flat row for each result as CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from invbench.report.text import printable
from invbench.results import ResultSet
from invbench.results.check import Check, Finding
from invbench.spec import InvbenchError
from invbench.verdict.points import machine_names

# Raw series, which stay in the JSON: samples, and what came of training after each epoch.
SERIES = ("blocks", "curves", "losses")


def render_json(results: ResultSet) -> str:
    """The document of schema 1."""
    return results.to_json()


def render_csv(results: ResultSet) -> str:
    """One line a row or finding, nested fields joined by dots; raw samples and curves stay in the JSON."""
    return csv_of(_objects(results))


def render_parquet(results: ResultSet) -> bytes:
    """The rows and columns of the CSV with their types; raises InvbenchError where pyarrow is not installed."""
    return parquet_of(_objects(results))


def parquet_of(objects: list[dict[str, Any]]) -> bytes:
    """Objects as Parquet, one row each; raises InvbenchError where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401 -- pandas would say so in several lines
    except ImportError as error:
        raise InvbenchError(
            "parquet needs pyarrow, which is not installed: pip install 'invbench[report]', or choose csv"
        ) from error
    import pandas as pd

    columns, rows = flat_table(objects)
    frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})
    file = io.BytesIO()
    frame.astype({name: _type_of(frame[name]) for name in columns}).to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


def _objects(results: ResultSet) -> list[dict[str, Any]]:
    """Rows, and then the findings of checks."""
    names = machine_names(results)  # of several classes, whose keys nobody can read
    rows = [
        {**result.to_dict(), **({"machine_name": names[key]} if (key := result.machine or "") in names else {})}
        for result in results.results
    ]
    checks = enumerate(results.checks, 1)
    return [*rows, *(_finding(number, check, finding) for number, check in checks for finding in check.findings)]


def _finding(number: int, check: Check, finding: Finding) -> dict[str, Any]:
    """A finding with the two sides of its check; a column has words or numbers, and never both."""
    values = {"base": finding.base, "head": finding.head}
    numbers = {name: None if isinstance(value, str) else value for name, value in values.items()}
    words = {f"{name}_name": value if isinstance(value, str) else None for name, value in values.items()}
    sides = {"check.base": check.base, "check.head": check.head}
    return {
        "check": {"number": number, "kind": check.kind, "injected": check.injected},
        **{f"{name}.{key}": getattr(side, key) for name, side in sides.items() for key in ("name", "commit")},
        **finding.to_dict(), **numbers, **words,
    }  # fmt: skip


def _type_of(values: Iterable[object]) -> str:
    """The column's type by what is in it; pandas would make whole numbers beside null floats, which cannot hold all."""
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int}:
        return "Int64"
    return "Float64" if kinds and kinds <= {int, float} else "string" if kinds == {str} else "object"


def csv_of(objects: list[dict[str, Any]]) -> str:
    """Objects as CSV, one line each."""
    columns, rows = flat_table(objects)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def flat_table(objects: list[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of nested objects, joined by dots, and their flat rows."""
    rows = [dict(_flat(each)) for each in objects]
    # A field that is an object in one row and null in another would be a column of its own: only its parts are.
    columns = dict.fromkeys(name for row in rows for name in row)
    inner = {name[:end] for name in columns for end, letter in enumerate(name) if letter == "."}
    return [name for name in columns if name not in inner], rows


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name == "warnings":
            yield prefix + name, printable("; ".join(value))
        elif name not in SERIES:
            yield prefix + name, printable(value) if isinstance(value, str) else value
