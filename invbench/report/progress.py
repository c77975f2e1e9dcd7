"""What is being waited for, on standard error: a spinner in a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.status import Status
from rich.text import Text


class Teller:
    """Shows one line at a time when called, and keeps those that are to stay."""

    def __call__(self, line: str) -> None:
        """Show what is being waited for, instead of the line before."""

    def keep(self, line: str) -> None:
        """Show a line that stays."""


@contextmanager
def progress(quiet: bool) -> Iterator[Teller]:
    """What to tell to; silent where nobody reads standard error."""
    if quiet or sys.stderr is None:  # closed by the caller
        yield Teller()
    elif sys.stderr.isatty():
        console = Console(stderr=True, no_color="NO_COLOR" in os.environ, highlight=False)
        with console.status("starting") as status:
            yield _Spinner(console, status)
    else:
        yield Lines()


class _Spinner(Teller):
    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status

    def __call__(self, line: str) -> None:
        self._status.update(Text(line))

    def keep(self, line: str) -> None:
        self._console.print(Text(line))


class Lines(Teller):
    """One line for each new activity; rounds of the same one are not repeated into a log."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, line: str) -> None:
        """Show what is begun, unless it is what was begun last."""
        activity = line.partition(": ")[0]
        if activity != self._last:
            self.keep(activity)
        self._last = activity

    def keep(self, line: str) -> None:
        """Show a line."""
        with suppress(OSError):  # who does not read what is done may read the results
            print(f"invbench: {line}", file=sys.stderr, flush=True)  # noqa: T201 -- this is its job
