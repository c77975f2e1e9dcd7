"""``invbench report`` and ``invbench compare``: from result files to any format, without measuring anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from invbench.cli import options
from invbench.cli.options import option
from invbench.report import BINARY, FORMATS, SUFFIXES, output
from invbench.report.comparison import COMPARISON_FORMATS
from invbench.results import ResultSet
from invbench.results.files import load, load_all
from invbench.results.history import History
from invbench.spec import InvbenchError

ALL_FORMATS: Mapping[str, Callable[..., str | bytes]] = {**FORMATS, **BINARY}
ALL_SUFFIXES = {**SUFFIXES, ".parquet": "parquet"}

File = Annotated[
    Path | None, option("--output", "Write a file instead; format from its suffix unless given.", metavar="FILE")
]


def report(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Result documents (.json), journals, histories.")
    ] = None,
    format_name: Annotated[str | None, option("--format", "Format. [default: table]", *ALL_FORMATS)] = None,
    file: File = None,
) -> int:
    """Results to table, Markdown, CSV, Parquet, JSON, a page, or what CI shows; several files are merged."""
    chosen = _format(format_name, file, ALL_FORMATS)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    found = load_all(files or (), options.command_line(file), created)
    _give(_rendered(found, chosen), file)
    return 0


def _rendered(found: ResultSet | History, chosen: str) -> str | bytes:
    if not isinstance(found, History):
        return ALL_FORMATS[chosen](found)
    from invbench.report.history_formats import HISTORY_FORMATS

    if chosen not in HISTORY_FORMATS:
        raise InvbenchError(
            f"--format of a history takes {', '.join(HISTORY_FORMATS)}: got {chosen!r}; name the document of one check"
        )
    return HISTORY_FORMATS[chosen](found)


def compare(
    a: Annotated[Path | None, typer.Argument(metavar="A", help="Result file, before.")] = None,
    b: Annotated[Path | None, typer.Argument(metavar="B", help="Result file, after.")] = None,
    format_name: Annotated[str | None, option("--format", "Format. [default: table]", *COMPARISON_FORMATS)] = None,
    file: File = None,
) -> int:
    """Two result files, same points side by side: what became faster or slower from A to B."""
    if a is None or b is None:
        raise InvbenchError(f"compare takes two result files, A and B: got {'one' if a else 'none'}; name both")
    chosen = _format(format_name, file, COMPARISON_FORMATS)
    from invbench.verdict import changes

    comparison = changes.compare(load(a), load(b))
    _give(COMPARISON_FORMATS[chosen](comparison), file)
    return comparison.exit_code


def _format(name: str | None, file: Path | None, formats: Mapping[str, Any]) -> str:
    """The format that is asked for, after a check that it can be given where it is to go."""
    options.check_choices({"--format": (name, formats)})
    if file is None:
        if name in BINARY:
            raise InvbenchError(f"--format {name} is binary and needs a file: got none; add --output FILE.{name}")
        return name or "table"
    found = name or ALL_SUFFIXES.get(file.suffix.lower(), "")
    if found not in formats:
        takes = ", ".join(suffix for suffix, each in ALL_SUFFIXES.items() if each in formats)
        raise InvbenchError(f"--output takes a file that ends in {takes}: got {str(file)!r}; or say --format")
    output.check_writable(file)
    return found


def _give(content: str | bytes, file: Path | None) -> None:
    if file is not None:
        output.write(file, content)
    elif isinstance(content, str):
        output.show(content)
