"""What Ray runs on a node: one task asks what there is, or measures one point, in a process like that of any sweep.

Ray's worker process stays, and with it the measuring process that it has started, so that only the first point waits
for torch. Imports no Ray: that is its caller.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

from invbench.harness import ALLOCATOR_VARIABLES, THREAD_VARIABLES
from invbench.harness.messages import Hello, Refusal, Welcome
from invbench.harness.sweep import START_SECONDS, Sweep, greet, plans_of
from invbench.harness.tasks import Task
from invbench.harness.worker import Worker
from invbench.results import machine_class
from invbench.results.journal import Entry, Span
from invbench.spec import InvbenchError


@dataclass(frozen=True, slots=True)
class Started:
    """The task has the device that it asked for, and runs."""


@dataclass(frozen=True, slots=True)
class Job:
    """What any task needs: what to ask the measuring process, and the variables of its environment."""

    hello: Hello
    variables: Mapping[str, str]
    timeout: float = START_SECONDS


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node has, and what to know of it."""

    welcome: Welcome
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unlike:
    """The device is not of the class that the point is for, and why that must not be."""

    reason: str


class _UnlikeError(Exception):
    """What ``Unlike`` tells."""


@dataclass
class Kept:
    """A journal in memory, for the driver to write."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Keep a point."""
        self.entries[entry.key] = entry


@dataclass
class _Warm:
    """The measuring process of this worker process of Ray's, and what it was started for."""

    place: tuple[object, ...]
    sweep: Sweep
    notes: tuple[str, ...]


_warm: list[_Warm] = []  # one at most


def greeting(job: Job) -> Iterator[Started | Greeting | Refusal]:
    """What the node has."""
    yield Started()
    try:
        warm = _warmed(job)
        yield Greeting(warm.sweep.welcome, warm.notes)
    except InvbenchError as error:
        yield Refusal(str(error))


def plans(job: Job, tasks: list[Task]) -> Iterator[object]:
    """What would happen at each point: a list of ``messages.Plan``."""
    yield Started()
    try:
        warm = _warmed(job)
        yield plans_of(tasks, warm.sweep.worker())
    except InvbenchError as error:
        yield Refusal(str(error))


def measure(job: Job, task: Task, node: tuple[str, str]) -> Iterator[Started | Entry | Unlike | Refusal]:
    """Measure a point. node: its name for the rows, and its ID."""
    yield Started()
    try:
        yield _measured(job, task, *node)
    except _UnlikeError as error:
        yield Unlike(str(error))
    except InvbenchError as error:
        yield Refusal(str(error))


def _measured(job: Job, task: Task, name: str, identity: str) -> Entry:
    start = time.time()
    warm = _warmed(job)
    (device,) = warm.sweep.welcome.devices
    environment = warm.sweep.welcome.environments[device]
    if machine_class(environment) != task.machine:
        raise _UnlikeError(
            f"{name} is not what it was when the sweep began, or its devices differ from one another: "
            f"got {(environment.get('gpu') or environment['cpu'])}; sweep devices that are alike, with --gpu-type"
        )
    kept = Kept()
    warm.sweep.journal = kept
    for _ in warm.sweep.measure([task]):
        pass
    entry = kept.entries[task.key]
    ids = os.environ.get("CUDA_VISIBLE_DEVICES") if device != "cpu" else None
    shown = f"{device}:{ids}" if ids else None
    rows = tuple(replace(row, node=name, device=shown) for row in entry.results)
    return replace(entry, results=rows, span=Span(identity, start, time.time()))


def _warmed(job: Job) -> _Warm:
    """The measuring process for this device and these subjects; another one is ended first."""
    place = job.hello, tuple(sorted(job.variables.items())), os.environ.get("CUDA_VISIBLE_DEVICES")
    if _warm and _warm[0].place == place and _warm[0].sweep.worker().process.is_alive():
        _warm[0].sweep.timeout = job.timeout
        return _warm[0]
    while _warm:
        _warm.pop().sweep.close()
    notes = tuple(filter(None, [_usual_priority()]))

    def spawn() -> Worker:
        with _plain_process(job.variables):
            return Worker()

    first, welcome = greet(job.hello, lambda _: None, spawn)
    sweep = Sweep(Kept(), welcome, job.timeout, spawn)
    sweep.begin(first)
    _warm.append(_Warm(place, sweep, notes))
    return _warm[0]


def _usual_priority() -> str | None:
    """Undo that Ray starts its workers with a low priority; what to do where this process may not."""
    if not hasattr(os, "setpriority") or os.getpriority(os.PRIO_PROCESS, 0) <= 0:
        return None
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        return f"Ray measures with a low priority here (niceness {nice}): start Ray there with RAY_worker_niceness=0"
    return None


@contextmanager
def _plain_process(variables: Mapping[str, str]) -> Iterator[None]:
    """Let a process that starts meanwhile be as a sweep without Ray would start it.

    Ray's worker program is the main module here, which multiprocessing would run again in the new process; Ray's own
    copies of packages come first on the path; and Ray sets the number of threads.
    """
    for name in (*THREAD_VARIABLES, *ALLOCATOR_VARIABLES):
        os.environ.pop(name, None)
    os.environ.update(variables)
    main, path = sys.modules["__main__"], list(sys.path)
    program = getattr(main, "__file__", None)
    ray = Path(program).parents[2] if program and Path(program).name == "default_worker.py" else None
    sys.modules["__main__"] = ModuleType("__main__")
    sys.path[:] = [folder for folder in path if not (ray and Path(folder).is_relative_to(ray))]
    try:
        yield
    finally:
        sys.modules["__main__"], sys.path[:] = main, path
