"""What is being waited for, on standard error: a spinner in a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows one line at a time."""
    if quiet or sys.stderr is None:  # closed by the caller
        yield lambda _line: None
    elif sys.stderr.isatty():
        console = Console(stderr=True, no_color="NO_COLOR" in os.environ, highlight=False)
        with console.status("starting") as status:
            yield lambda line: status.update(line)
    else:
        yield _plain()


def _plain() -> Callable[[str], None]:
    """One line for each new activity; rounds of the same one are not repeated into a log."""
    last = ""

    def show(line: str) -> None:
        nonlocal last
        activity = line.partition(":")[0]
        if activity != last:
            print(f"invbench: {activity}", file=sys.stderr, flush=True)  # noqa: T201 -- this is its job
        last = activity

    return show
