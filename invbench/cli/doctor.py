"""``invbench doctor``: is this machine fit to measure, how small an effect can be seen, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

from invbench import __version__
from invbench.cli import options
from invbench.cli.interrupts import held_back
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.report import output
from invbench.report.diagnosis import render_diagnosis
from invbench.report.progress import progress
from invbench.spec import InvbenchError

FORMATS = ("table", "json")


def doctor(
    device: Annotated[
        str | None,
        option("--device", "What to examine. [default: cuda if there is one]", "cpu", "cuda", "cuda:1", "mps", "xpu"),
    ] = None,
    threads: Annotated[int | None, option("--threads", "CPU threads. [default: the usable cores]")] = None,
    budget: Annotated[
        float, option("--budget", "Measuring time for the noise, all its launches.", metavar="SECONDS")
    ] = 7.0,
    format_name: Annotated[str, option("--format", "Format of standard output.", *FORMATS)] = "table",
    quiet: options.Quiet = False,
) -> int:
    """Examine the machine: what would spoil a measurement, and how small an effect can be seen."""
    options.check_choices({"--format": (format_name, FORMATS)})
    options.check_measuring(budget, None, 0)
    if threads is not None and threads < 1:
        raise InvbenchError(f"--threads must be at least 1: got {threads}; try 1")
    try:
        with progress(quiet) as tell:
            tell("importing torch")
            keep_quiet()
            with held_back():
                from invbench.harness.doctor import diagnose

            found = diagnose(device, threads, budget, tell)
    except KeyboardInterrupt as stop:
        raise options.Interrupted("interrupted: a diagnosis is whole or none; run it again to have one") from stop
    created = datetime.now(UTC).isoformat(timespec="seconds")
    found = replace(found, tool_version=__version__, command=options.command_line(None), created=created)
    output.show(render_diagnosis(found, as_json=format_name == "json"))
    return found.exit_code
