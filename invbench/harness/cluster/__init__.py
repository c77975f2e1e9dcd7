"""A sweep over the nodes of a Ray cluster: Ray places tasks, says what fails and keeps devices apart, and a point is
one of its tasks. Only the driver writes the journal, so that a sweep goes on wherever it is resumed.

A CPU point has every core of a node, a GPU point a whole GPU and its share of the cores; what else Ray runs waits. On
the node a point is measured as in any sweep (``harness.sweep``), subject and baseline by one process.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from invbench.harness import ALLOCATOR_VARIABLES, THREAD_VARIABLES
from invbench.harness.cluster import node as work
from invbench.harness.cluster.engine import Call, Engine, Gone, Node, connected
from invbench.harness.cluster.members import CPU, CUDA, MOST_LOSSES, TICK, Group, Members
from invbench.harness.cluster.node import Started, Unlike
from invbench.harness.messages import Hello, Refusal
from invbench.harness.settings import failed_rows
from invbench.harness.sweep import CutShortError, Event, Record
from invbench.harness.tasks import Task
from invbench.results import Status
from invbench.results.journal import Entry
from invbench.spec import InvbenchError

MOST_TRIES = 6  # of a point, those that never got their device included
GRACE_SECONDS = 60.0  # for a node to come back, or to be replaced, where a class of machines has none left


@contextmanager
def joined(address: str, hello: Hello, gpu_type: str | None, tell: Callable[[str], None]) -> Iterator[Members]:
    """The nodes of a cluster; raises InvbenchError if it cannot be had, or if one of them has other versions."""
    tell("connecting to Ray" if address != "local" else "starting Ray")
    with connected(address) as engine:
        members = Members(engine, _kinds(engine, hello, gpu_type), hello, _variables(), gpu_type or "")
        members.gather(tell)
        yield members


def _kinds(engine: Engine, hello: Hello, gpu_type: str | None) -> tuple[str, ...]:
    """The types of device to measure on: as asked for, or GPUs where there are any."""
    has_gpus = gpu_type or any(node.gpus for node in engine.nodes())
    return hello.devices or ((CUDA,) if has_gpus else (CPU,))


def _variables() -> dict[str, str]:
    """The driver's environment as far as it decides how a point is measured: a key is the same here and there."""
    names = (*THREAD_VARIABLES, *ALLOCATOR_VARIABLES)
    return {name: os.environ[name] for name in names if name in os.environ}


@dataclass
class _Running:
    """A point that was handed to a node; has_started: it has its device, and does not wait for others' work."""

    node: Node
    task: Task
    since: float
    has_started: bool = False


@dataclass(frozen=True, slots=True)
class _Loss:
    """A task that gave no answer."""

    node: Node
    reason: str
    has_started: bool


@dataclass
class ClusterSweep:
    """What ``sweep.Sweep`` is to a machine: measures tasks on the members, each point in the journal before it is told.

    timeout: seconds that one subject may run without a sign of life.
    """

    journal: Record
    members: Members
    timeout: float
    _running: dict[Call, _Running] = field(default_factory=dict, init=False)
    _losses: dict[str, list[_Loss]] = field(default_factory=dict, init=False)

    def run(self, tasks: Sequence[Task]) -> Generator[Event, None, None]:
        """Measure what the journal lacks; all nodes share the points of their class. Types of device take turns, since
        a GPU's point needs cores of its node.

        Raises CutShortError where no node of a class is left, or where one's device is no longer of its class.
        """
        try:
            for kind in self.members.kinds:
                waiting: dict[str, deque[Task]] = {}
                for task in tasks:
                    if task.point.case.device == kind and task.key not in self.journal.entries:
                        waiting.setdefault(task.machine, deque()).append(task)
                yield from self._run_kind(kind, waiting)
        finally:
            self.members.engine.cancel([*self._running, *self.members.calls])

    def _run_kind(self, kind: str, waiting: dict[str, deque[Task]]) -> Iterator[Event]:
        last_able = time.monotonic()
        told: Event | None = None
        while self._running or any(waiting.values()):
            for machine, queue in waiting.items():
                self._fill(self.members.groups[kind, machine], queue)
            if self._running or self.members.newcomers:
                last_able = time.monotonic()
            elif time.monotonic() > last_able + GRACE_SECONDS:
                raise CutShortError(self._nobody_left(kind, waiting))
            heard = self.members.engine.hear([*self._running, *self.members.calls], TICK)
            for call, message in heard:
                if call not in self._running:
                    yield from self._greet(call, message)
                elif isinstance(message, Started):
                    self._running[call].has_started = True
                else:
                    yield from self._finish(self._running.pop(call), message, waiting)
            now = self._state(waiting)
            if now != told and (not heard or any(isinstance(message, Started) for _, message in heard)):
                yield now
                told = now
            self.members.look()

    def _fill(self, group: Group, queue: deque[Task]) -> None:
        """Hand out points to the nodes of a class that have a free device."""
        for node in list(group.nodes.values()):
            room = (node.gpus if group.kind == CUDA else 1) - sum(r.node.id == node.id for r in self._running.values())
            for _ in range(min(room, len(queue))):
                task = self._choose(node, queue, len(group.nodes) > 1)
                if task is None:
                    break
                queue.remove(task)
                job = self.members.job(group.kind, self.timeout)
                demand = self.members.demand(node, group.kind)
                call = self.members.engine.start(node, demand, work.measure, job, task, (node.label, node.id))
                self._running[call] = _Running(node, task, time.monotonic())

    def _choose(self, node: Node, queue: deque[Task], has_others: bool) -> Task | None:
        """The next point; one that was lost on this node is for another, if there is one."""
        last = {key: lost[-1].node.id for key, lost in self._losses.items()}
        return next((task for task in queue if not (has_others and last.get(task.key) == node.id)), None)

    def _finish(self, running: _Running, message: object, waiting: dict[str, deque[Task]]) -> Iterator[Event]:
        """A task has answered, or never will."""
        if isinstance(message, Unlike):
            raise CutShortError(message.reason)
        if isinstance(message, Gone | Refusal):
            yield from self._lose(running, message.reason, waiting)
            return
        assert isinstance(message, Entry)
        yield self._record(running, message)

    def _record(self, running: _Running, entry: Entry) -> Event:
        self.journal.add(entry)
        return Event(running.node.label, running.task, entry=entry)

    def _lose(self, running: _Running, reason: str, waiting: dict[str, deque[Task]]) -> Iterator[Event]:
        """A task is gone, with its node, with Ray's worker or by itself: another node has a try, if it is the first."""
        node, task = running.node, running.task
        self.members.drop(node)
        lost = self._losses.setdefault(task.key, [])
        lost.append(_Loss(node, reason, running.has_started))
        if sum(each.has_started for each in lost) < MOST_LOSSES and len(lost) < MOST_TRIES:
            waiting[task.machine].appendleft(task)
            yield Event(node.label, task, line=f"lost: {reason}; it is measured again", stays=True)
            return
        where = "; ".join(f"{each.node.label}: {each.reason}" for each in lost)
        rows = failed_rows(task.point.case, task.settings, Status.ERROR, f"lost {len(lost)} times ({where})")
        rows = tuple(replace(row, baseline=task.point.baseline, machine=task.machine, node=node.label) for row in rows)
        yield self._record(running, task.entry(rows, {"wall": time.monotonic() - running.since}))

    def _greet(self, call: Call, message: object) -> Iterator[Event]:
        """A node comes while others measure; one that must not take part is told, and ends nothing."""
        try:
            line = self.members.hear(call, message)
        except InvbenchError as error:
            line = f"{error}; it is left out"
        if line:
            yield Event("", None, line=line, stays=True)

    def _state(self, waiting: dict[str, deque[Task]]) -> Event:
        """Who measures what, and how many points are not measured yet."""
        running = tuple((each.node.label, each.task) for each in self._running.values() if each.has_started)
        left = len(self._running) - len(running) + sum(map(len, waiting.values()))
        return Event("", None, running=running, waiting=left)

    def _nobody_left(self, kind: str, waiting: dict[str, deque[Task]]) -> str:
        left = {name: len({task.point_key or task.key for task in queue}) for name, queue in waiting.items() if queue}
        fingerprints = [self.members.groups[kind, machine].welcome.environments[kind] for machine in left]
        names = ", ".join(found["gpu"]["name"] if kind == CUDA else found["cpu"]["model"] for found in fingerprints)
        return f"no node is left with {names}: {sum(left.values())} point(s) are not measured; start Ray on one"
