"""``invbench backends``: what there is, and what can run here."""

from __future__ import annotations

from typing import Annotated

from invbench.cli.options import option
from invbench.report import output
from invbench.report.listing import render_backends
from invbench.spec import require_choice


def backends(
    format_name: Annotated[str, option("--format", "Format of standard output.", "table", "json")] = "table",
) -> int:
    """Say what can run here, and why the rest cannot."""
    require_choice("--format", format_name, ("table", "json"))
    from invbench.harness import machine

    output.show(render_backends(machine.backends_here(), as_json=format_name == "json"))
    return 0
