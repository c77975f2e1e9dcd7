"""What is told while a sweep measures: points that are done, who measures what, and about how long it takes."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import closing

from invbench.harness.sweep import CutShortError, Event
from invbench.harness.tasks import Task
from invbench.report.plan import point_line
from invbench.report.progress import Teller
from invbench.results import Result
from invbench.results.journal import Journal

SHOWN = 4  # nodes in a line of progress
ONE = {"points": "point", "launches": "launch"}


def unit_of(tasks: Sequence[Task]) -> str:
    """What is counted: points or, where several processes measure each, launches of points."""
    return "points" if all(task.point_key is None for task in tasks) else "launches"


def _line(task: Task, rows: Sequence[Result] = ()) -> str:
    which = f"launch {task.launch + 1} of {task.settings.launches}, " if task.point_key else ""
    return f"{which}{point_line(task.point, rows)}"


def follow(
    events: Generator[Event, None, None], tasks: Sequence[Task], journal: Journal, has_several: bool, tell: Teller
) -> BaseException | None:
    """Measure what is missing, telling about it; what ended it early: Ctrl-C, or that nobody is left to measure.

    The events have ended when this returns, wherever Ctrl-C came: nothing that they started is left.
    """
    unit = unit_of(tasks)
    lacking = sum(task.key not in journal.entries for task in tasks)
    if lacking < len(tasks):
        tell.keep(f"{len(tasks) - lacking} of {len(tasks)} {unit} are in {journal.path} already")
    started, done, timed = time.monotonic(), 0, 0.0
    try:
        with closing(events):
            for event in events:
                spent = time.monotonic() - started
                where = f"{event.device}: " if has_several and event.device else ""
                if event.entry is None:
                    left = f", about {_minutes(spent / done * (lacking - done))} left" if done else ""
                    if event.running is not None:
                        tell(f"{done} of {lacking} {unit}{_running(event)}{left}")
                    elif event.stays:
                        point = f"{_line(event.task)}: " if event.task else ""
                        tell.keep(f"{where}{point}{event.line}")
                    elif event.task:
                        tell(f"{done} of {lacking} {unit}; {where}{_line(event.task)}: {event.line}{left}")
                    continue
                assert event.task is not None
                done += 1
                timed += event.entry.seconds.get("timed", 0.0)
                tell.keep(f"[{done}/{lacking}] {where}{_line(event.task, event.entry.results)}")
    except KeyboardInterrupt as stop:
        return stop
    except CutShortError as error:
        return error
    if done:
        spent = time.monotonic() - started
        counted = f"{done} {unit if done != 1 else ONE[unit]} in {_minutes(spent)}"
        tell.keep(f"{counted}, {timed / spent:.0%} of it in timed blocks and warm-up")
    return None


def _running(event: Event) -> str:
    """Which nodes measure what, and how many points wait for one."""
    assert event.running is not None
    measured = [f"{_line(task)} on {node}" for node, task in event.running[:SHOWN]]
    more = len(event.running) - SHOWN
    measured += [f"{more} more elsewhere"] if more > 0 else []
    return f"; {', '.join(measured) or 'none runs'}; {event.waiting} waiting"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
