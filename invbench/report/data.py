"""Formats for programs: the whole document as JSON, or a flat row for each result as CSV."""

from __future__ import annotations

from invbench.results import ResultSet


def render_json(results: ResultSet) -> str:
    """The document of schema 1."""
    return results.to_json()


def render_csv(results: ResultSet) -> str:
    """One line a row, nested fields joined by dots; raw samples stay in the JSON."""
    import pandas as pd  # takes half a second, which --help must not wait for

    rows = [result.to_dict() for result in results.results]
    for row in rows:
        row["warnings"] = "; ".join(row["warnings"])
        if row["latency"]:
            del row["latency"]["blocks"]
    return pd.json_normalize(rows).to_csv(index=False).rstrip("\n")
