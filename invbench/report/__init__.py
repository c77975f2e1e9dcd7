"""Numbers to text: the only code that does so. A format is one function ``ResultSet -> str`` and one row of FORMATS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from invbench.report.data import render_csv, render_json, render_parquet
from invbench.report.gate.text import render_checks_markdown, render_checks_table
from invbench.report.github import render_github
from invbench.report.junit import render_junit
from invbench.report.kinds import told_apart
from invbench.report.markdown import render_markdown
from invbench.report.table import render_table
from invbench.report.web import render_html
from invbench.results import ResultSet
from invbench.spec import InvbenchError

FORMATS: dict[str, Callable[[ResultSet], str]] = {
    "table": told_apart(render_table, render_checks_table),
    "json": render_json,
    "csv": render_csv,
    "markdown": told_apart(render_markdown, render_checks_markdown),
    "html": render_html,
    "junit": render_junit,
    "github": render_github,
}
# Formats that are no text, and go to a file only.
BINARY: dict[str, Callable[[ResultSet], bytes]] = {"parquet": render_parquet}
SUFFIXES = {
    ".txt": "table", ".json": "json", ".csv": "csv", ".md": "markdown", ".html": "html", ".xml": "junit",
}  # fmt: skip


def format_for(path: Path) -> str:
    """The format that a file's suffix asks for; raises InvbenchError for a suffix that is none of ``SUFFIXES``."""
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise InvbenchError(
            f"--output takes a file that ends in {', '.join(SUFFIXES)}: got {str(path)!r}; or say --format"
        ) from None
