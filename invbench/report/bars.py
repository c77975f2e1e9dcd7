"""How far a training is, on standard error: a bar for each network in a terminal, plain lines elsewhere.

Bars are drawn by who trains, between steps, and not by a thread of their own: it would take time from the steps.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.status import Status
from rich.text import Text

from invbench.report.progress import Lines, Teller

REDRAWN = 0.2  # seconds from one drawing to the next
LINES = 5.0  # seconds from one line to the next where there is no terminal

Now = Callable[[], float]


class TrainingTeller(Teller):
    """A teller that is told how far each network is, too. This one is silent."""

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        """Training begins: of which networks, for how many epochs over all seeds, and how many each has behind it."""

    def step(self, label: str, share: float) -> None:
        """A network is as far as this in its epoch."""

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        """A network has an epoch more behind it: the mean training loss, the validation accuracy in percent."""

    def failed(self, label: str, reason: str) -> None:
        """A network is not trained any further."""


@contextmanager
def training_progress(quiet: bool) -> Iterator[TrainingTeller]:
    """What to tell to; silent where nobody reads standard error."""
    if quiet or sys.stderr is None:  # closed by the caller
        yield TrainingTeller()
    elif sys.stderr.isatty():
        bars = Bars(Console(stderr=True, no_color="NO_COLOR" in os.environ, highlight=False))
        try:
            yield bars
        finally:
            bars.close()
    else:
        yield TrainingLines()


class _BarsAndTime(Progress):
    """Bars, and below them the time left for all: a short last line, which the terminal's ^C does not break."""

    left = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.left)


class Bars(TrainingTeller):
    """A spinner before and after training, and a bar for each network while they are trained, which stay to be read."""

    def __init__(self, console: Console, now: Now = time.monotonic) -> None:
        self._console, self._now = console, now
        self._status: Status | None = None
        self._progress: _BarsAndTime | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total = 0
        self._epochs: dict[str, float] = {}  # that each network has behind it
        self._trained: dict[str, float] = {}  # of them, since training began
        self._busy: dict[str, float] = {}  # seconds that they took
        self._seen: dict[str, str] = {}  # loss and accuracy after the last one
        self._heard = self._drawn = now()
        self("starting")

    def __call__(self, line: str) -> None:
        """Show what is being waited for."""
        self._stop_bars()
        if self._status is None:
            self._status = self._console.status(Text(line))
            self._status.start()
        self._status.update(Text(line))

    def keep(self, line: str) -> None:
        """Show a line that stays, above what moves."""
        self._console.print(Text(line))

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        """A bar for each network."""
        self._stop_status()
        self._progress = _BarsAndTime(
            TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[epochs]}"),
            TextColumn("{task.fields[seen]}", markup=False), console=self._console, auto_refresh=False,
        )  # fmt: skip
        self._total, self._heard = epochs, self._now()
        for label, behind in zip(labels, done, strict=True):
            told = f"{behind}/{epochs} epochs"
            self._tasks[label] = self._progress.add_task(label, total=epochs, completed=behind, epochs=told, seen="")
            self._epochs[label], self._trained[label], self._busy[label] = behind, 0.0, 0.0
        self._progress.start()

    def step(self, label: str, share: float) -> None:
        """Move its bar."""
        self._move(label, int(self._epochs[label]) + min(share, 0.999))
        if self._now() - self._drawn > REDRAWN:
            self._draw()

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        """Move its bar, and show its loss and accuracy."""
        self._seen[label] = f"loss {loss:.3f}, accuracy {accuracy:.1f} %"
        self._move(label, int(self._epochs[label]) + 1)
        self._draw()

    def failed(self, label: str, reason: str) -> None:
        """Its bar stays where it is."""
        if self._progress is not None:
            self._progress.update(self._tasks[label], seen="failed")
        del self._epochs[label]
        self.keep(f"{label}: {reason}")
        self._draw()

    def close(self) -> None:
        """Nothing moves any more."""
        self._stop_status()
        self._stop_bars()

    def _move(self, label: str, epochs: float) -> None:
        """Since networks take turns, what has passed since the last call is this one's time."""
        now = self._now()
        self._busy[label] += now - self._heard
        self._heard = now
        self._trained[label] += epochs - self._epochs[label]
        self._epochs[label] = epochs
        if self._progress is not None:
            done = f"{int(epochs)}/{self._total} epochs"
            self._progress.update(self._tasks[label], completed=epochs, epochs=done, seen=self._seen.get(label, ""))

    def _left(self) -> str:
        """The time left for all: that of each network by its own epochs, or by all of them where it has had no turn."""
        usual = sum(self._busy.values()) / max(sum(self._trained.values()), 1e-9)
        seconds = 0.0
        for label, epochs in self._epochs.items():
            one = self._busy[label] / self._trained[label] if self._trained[label] else usual
            seconds += one * (self._total - epochs)
        return f"{minutes(seconds)} left" if seconds else ""

    def _draw(self) -> None:
        if self._progress is not None:
            self._drawn, self._progress.left = self._now(), self._left()
            self._progress.refresh()

    def _stop_bars(self) -> None:
        if self._progress is not None:
            self._progress.left = ""
            self._progress.stop()
            self._progress = None

    def _stop_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


class TrainingLines(Lines, TrainingTeller):
    """A line for an epoch that has ended, but not for each where they are short; always for each network's last one."""

    def __init__(self, now: Now = time.monotonic) -> None:
        super().__init__()
        self._now, self._told = now, now()
        self._epochs: dict[str, int] = {}
        self._total = 0

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        """Say of what there will be lines."""
        self._epochs, self._total = dict(zip(labels, done, strict=True)), epochs
        self("training")
        self._told = self._now()

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        """A line, perhaps."""
        self._epochs[label] += 1
        if self._now() - self._told >= LINES or self._epochs[label] == self._total:
            self._told = self._now()
            done = f"{self._epochs[label]}/{self._total} epochs"
            self.keep(f"{label}: {done}, loss {loss:.3f}, accuracy {accuracy:.1f} %")

    def failed(self, label: str, reason: str) -> None:
        """A line."""
        self.keep(f"{label}: {reason}")


def minutes(seconds: float) -> str:
    """``1:05`` or ``1:02:03``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
