"""``invbench backends`` and ``invbench profiles``: what there is, and what can run here."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from invbench.cli.options import option
from invbench.report import output
from invbench.report.listing import render_backends, render_profiles
from invbench.spec import require_choice
from invbench.study import profile


def backends(
    format_name: Annotated[str, option("--format", "Format of standard output.", "table", "json")] = "table",
) -> int:
    """Say what can run here, and why the rest cannot."""
    require_choice("--format", format_name, ("table", "json"))
    from invbench.harness import machine

    output.show(render_backends(machine.backends_here(), as_json=format_name == "json"))
    return 0


def profiles(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this one whole: a shipped name, or a path.", show_default=False),
    ] = None,
    format_name: Annotated[str, option("--format", "Format of standard output.", "table", "json")] = "table",
) -> int:
    """List the shipped profiles, or show one."""
    require_choice("--format", format_name, ("table", "json"))
    as_json = format_name == "json"
    if name is None:
        found = {each: profile.load(each) for each in profile.shipped()}
        counts = {each: len(study.grid.points(("cpu",), 1)[0]) for each, study in found.items()}
        rows = [
            {"name": each, "description": study.description, "points": counts[each]} for each, study in found.items()
        ]
        output.show(render_profiles(rows, as_json))
        return 0
    text = profile.source(name)
    profile.parse(text, name, name)
    output.show(json.dumps({"name": name, "toml": text}, indent=1) if as_json else text.rstrip())
    return 0
