"""A sweep: points to workers, one at a time on each device, and rows to the journal (MEASURING.md, rules 14 to 16).

Needs no torch: the workers do. A subject that crashes, hangs or poisons its worker becomes a row with its reason; the
worker is replaced, and the point is measured again without that subject. Nothing else of the sweep is lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import Protocol

from invbench.harness.messages import Hello, Lost, Measured, Plan, PlanJob, PointJob, Refusal, Welcome
from invbench.harness.settings import failed_rows
from invbench.harness.tasks import Task, kind_of
from invbench.harness.worker import STOP_SECONDS, Worker
from invbench.results import Status, machine_class
from invbench.results.journal import Entry
from invbench.spec import InvbenchError

START_SECONDS = 300.0  # to import torch from a cold disk
TICK = 0.5
QUIET_PHASE = 300.0  # between subjects: peaks, and memory with its own limit for each subject


class CutShortError(InvbenchError):
    """Points are left that cannot be measured now; those before are in the journal, and a resumed sweep goes on."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell: what a device is doing (``line``), or a point that is done (``entry``).

    device: of a cluster, the node. task: None where the line is about the node. running: on a cluster, which points run
    where; waiting: how many do not yet. stays: the line is to be read afterwards, too.
    """

    device: str
    task: Task | None
    line: str = ""
    entry: Entry | None = None
    running: Sequence[tuple[str, Task]] | None = None
    waiting: int = 0
    stays: bool = False


@dataclass
class _Lane:
    """A device: its worker, what that is working on, and of which launch all that it has measured was."""

    device: str
    worker: Worker | None = None
    launch: int | None = None
    task: Task | None = None
    started: float = 0.0

    def start(self, task: Task, spawn: Callable[[], Worker], peaks: Mapping[str, float] | None) -> None:
        """Give the worker a task; each launch of a point has a worker that has not measured it before."""
        self.started = time.monotonic()
        if self.launch not in (None, task.launch):
            self.retire()
        self.worker = self.worker or spawn()
        self.task, self.launch = task, task.launch
        case = replace(task.point.case, device=self.device)
        self.worker.send(PointJob(case, task.settings, task.skipped, task.launch, peaks))

    def stuck_for(self, timeout: float) -> float | None:
        """The seconds that are too long for what runs, or None; what happens between subjects has limits of its own."""
        if self.worker is None or self.task is None:
            return None
        limit = timeout if self.worker.beacon.label else max(timeout, QUIET_PHASE)
        return limit if self.worker.stuck_for() > limit else None

    def retire(self) -> None:
        """End the worker: at once if it is busy, otherwise in its own time."""
        if self.worker is not None:
            self.worker.stop(patience=0.0 if self.task else STOP_SECONDS)
        self.worker = self.task = self.launch = None


def greet(hello: Hello, tell: Callable[[str], None], spawn: Callable[[], Worker] = Worker) -> tuple[Worker, Welcome]:
    """Start a worker and ask what there is; raises InvbenchError if it cannot be had."""
    worker = spawn()
    try:
        answer = worker.ask(hello, tell, START_SECONDS)
        if isinstance(answer, Welcome):
            return worker, answer
        if isinstance(answer, Refusal):
            raise InvbenchError(answer.reason)
        label = worker.beacon.label
        who = f"--subject {label}: it cannot be imported: " if label else "the measuring process could not start: "
        raise InvbenchError(f"{who}{worker.epitaph()[1]}")
    except BaseException:
        worker.stop()
        raise


def plans_of(tasks: Sequence[Task], worker: Worker) -> list[Plan]:
    """What would happen at each point, without measuring any; raises InvbenchError where nothing could run."""
    plans = []
    for task in tasks:
        answer = worker.ask(PlanJob(task.point.case, task.settings), lambda _: None, START_SECONDS)
        if not isinstance(answer, Plan):
            raise InvbenchError(answer.reason if isinstance(answer, Refusal) else worker.epitaph()[1])
        plans.append(answer)
    return plans


class Record(Protocol):
    """Where points go, and those that are there: a ``results.journal.Journal``, or what hands them to one."""

    entries: dict[str, Entry]

    def add(self, entry: Entry) -> None:
        """Keep a point."""


@dataclass
class Sweep:
    """Measures tasks on the devices of a welcome, each point in the journal before it is told.

    timeout: seconds that one subject may run without a sign of life. All workers end with ``run``.
    """

    journal: Record
    welcome: Welcome
    timeout: float
    spawn: Callable[[], Worker] = Worker
    _lanes: list[_Lane] = field(default_factory=list, init=False)
    _peaks: dict[tuple[str, str, int], Mapping[str, float]] = field(default_factory=dict, init=False)
    """What has been measured of the machine, by device, dtype and threads."""
    _skipped: dict[str, Mapping[str, tuple[Status, str]]] = field(default_factory=dict, init=False)
    """What took a worker down in a launch of a point, which its other launches need not show again."""

    def run(self, tasks: Sequence[Task], first: Worker | None = None) -> Generator[Event, None, None]:
        """Measure what the journal lacks. Devices of one type share the points of that type; types take turns.

        first: a worker that is running already, for the first device.
        """
        self.begin(first)
        try:
            yield from self.measure(tasks)
        finally:
            self.close()

    def begin(self, first: Worker | None = None) -> None:
        """Get ready for ``measure``, which may be called several times and leaves the workers running."""
        self._lanes = [_Lane(device) for device in self.welcome.devices]
        self._lanes[0].worker = first

    def measure(self, tasks: Sequence[Task]) -> Iterator[Event]:
        """What ``run`` does, between ``begin`` and ``close``."""
        for kind in dict.fromkeys(map(kind_of, self.welcome.devices)):
            lacking = (task for task in tasks if task.key not in self.journal.entries)
            waiting = deque(task for task in lacking if kind_of(task.point.case.device) == kind)
            yield from self._run_kind(waiting, [lane for lane in self._lanes if kind_of(lane.device) == kind])

    def worker(self) -> Worker:
        """The worker of the first device, which is started if there is none."""
        lane = self._lanes[0]
        lane.worker = lane.worker or self.spawn()
        return lane.worker

    def close(self) -> None:
        """End all workers."""
        for lane in self._lanes:
            lane.retire()

    def _run_kind(self, waiting: deque[Task], lanes: list[_Lane]) -> Iterator[Event]:
        while waiting or any(lane.task for lane in lanes):
            for lane in lanes:
                if lane.task is None and waiting:
                    task = waiting.popleft()
                    if task.point_key in self._skipped:
                        task = replace(task, skipped={**self._skipped[task.point_key], **task.skipped})
                    lane.start(task, self.spawn, self._peaks.get(_place(lane, task)))
            busy = {lane.worker.connection: lane for lane in lanes if lane.worker is not None and lane.task is not None}
            for ready in connection.wait(list(busy), TICK):
                yield from self._hear(busy[ready], waiting)  # type: ignore[index]  # it is one of those given
            for lane in lanes:
                limit = lane.stuck_for(self.timeout)
                if limit is not None:
                    how = Status.TIMEOUT, f"no sign of life for {limit:g} s; raise --timeout"
                    yield from self._lose(lane, waiting, how)

    def _hear(self, lane: _Lane, waiting: deque[Task]) -> Iterator[Event]:
        """Take one message of a worker: progress, a measured point, or its end."""
        assert lane.worker is not None
        assert lane.task is not None
        message = lane.worker.read()
        if isinstance(message, str):
            yield Event(lane.device, lane.task, line=message)
        elif isinstance(message, Measured):
            yield self._record(lane, message)
        elif isinstance(message, Lost):
            how = Status.ERROR, f"{message.reason}; the device had to be reset"
            yield from self._lose(lane, waiting, how, message.label)
        else:
            yield from self._lose(lane, waiting, None)

    def _lose(
        self, lane: _Lane, waiting: deque[Task], how: tuple[Status, str] | None, label: str | None = None
    ) -> Iterator[Event]:
        """Replace the worker. The point comes next, without the subject that took the worker down; where nobody knows
        which that was, none of its subjects can be measured."""
        assert lane.worker is not None
        assert lane.task is not None
        task = lane.task
        status, reason = how or lane.worker.epitaph()
        label = lane.worker.beacon.label if label is None else label
        if label and label not in task.skipped:
            task = task.without(label, status, reason)
            waiting.appendleft(task)
            if task.point_key:
                self._skipped[task.point_key] = task.skipped
            yield Event(lane.device, task, line=f"{label}: {reason}; measuring the point without it")
        else:
            rows = failed_rows(replace(task.point.case, device=lane.device), task.settings, status, reason)
            yield self._record(lane, Measured(rows, None, {}))
        lane.retire()

    def _record(self, lane: _Lane, measured: Measured) -> Event:
        """Write the point to the journal; its rows carry what differs from point to point."""
        assert lane.task is not None
        task, lane.task = lane.task, None
        if measured.peaks:
            self._peaks[_place(lane, task)] = measured.peaks
        machine = machine_class(self.welcome.environments[lane.device])
        # Devices that share the points are alike, so that a point is the same on each; the row says which it was.
        rows = tuple(
            replace(
                row, case=task.point.case, device=lane.device if row.case != task.point.case else None,
                baseline=task.point.baseline, peaks=measured.peaks, machine=machine,
            )
            for row in measured.results
        )  # fmt: skip
        entry = task.entry(rows, {"wall": time.monotonic() - lane.started, **measured.seconds})
        self.journal.add(entry)
        return Event(lane.device, task, entry=entry)


def _place(lane: _Lane, task: Task) -> tuple[str, str, int]:
    """What a machine's peaks depend on."""
    return lane.device, task.point.case.dtype, task.point.case.threads
