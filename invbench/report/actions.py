"""A result told to GitHub Actions: the summary of the job, and annotations. Needs no token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from invbench.report import FORMATS
from invbench.report.gate.told import groups_of
from invbench.report.github import command
from invbench.results import ResultSet

# GitHub shows no summary of a step that is larger.
LARGEST = 2**20


def tell_actions(results: ResultSet, environ: Mapping[str, str]) -> list[str]:
    """Add the Markdown to the file that GITHUB_STEP_SUMMARY names, if any; and what to print on standard error.

    That are annotations where GITHUB_ACTIONS is true, and a warning if the file cannot be written; never an error.
    """
    on_actions = environ.get("GITHUB_ACTIONS") == "true"
    path = environ.get("GITHUB_STEP_SUMMARY")
    problem = _summarise(results, Path(path)) if path else None
    lines = FORMATS["github"](results).split("\n") if on_actions else []
    if problem:
        lines.append(command("warning", "invbench", problem) if on_actions else f"invbench: warning: {problem}")
    return lines


def _summarise(results: ResultSet, path: Path) -> str | None:
    """Append to the summary; why it could not be."""
    text = FORMATS["markdown"](results)
    try:
        with path.open("ab") as file:
            if file.tell() + len(text.encode()) >= LARGEST:
                answers = [f"**{group.answer}**" for group in groups_of(results)]
                text = "\n\n".join([*answers, "The tables are too large for a summary; --output FILE keeps them."])
            file.write(f"{text}\n\n".encode())
    except OSError as error:
        return f"GITHUB_STEP_SUMMARY {str(path)!r} cannot be written ({error.strerror})"
    return None
