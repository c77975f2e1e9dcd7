"""Workers and machines of our own, for the tests of sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

from invbench.harness.blocks import Budget
from invbench.harness.messages import Hello, Measured, PlanJob, PointJob, Welcome
from invbench.harness.settings import Settings, Subject, blank_row
from invbench.harness.sweep import Sweep
from invbench.harness.tasks import Task, tasks_of
from invbench.results import Status
from invbench.results.journal import Entry
from invbench.results.quantities import Samples
from invbench.study.grid import Grid

CPU = {"versions": {"torch": "2.13.0"}, "python": "3.11.7", "cpu": {"model": "A CPU", "usable": 2}, "gpu": None}
GPU = {**CPU, "gpu": {"name": "A GPU", "capability": "9.0", "power_limit_w": 700}}
SETTINGS = Settings(backends=("naive", "unfold"), budget=Budget(seconds=0.1))
LABELS = ["naive", "unfold", "conv2d", "conv2d-3x3", "depthwise", "separable"]
CRASH = (Status.ERROR, "it crashed its process (SIGABRT)")


def welcome(*devices: str, custom: tuple[Subject, ...] = ()) -> Welcome:
    names = devices or ("cpu",)
    return Welcome(names, 2, 2, {name: CPU if name == "cpu" else GPU for name in names}, custom)


def tasks(count: int = 3, *devices: str, given: Settings = SETTINGS) -> list[Task]:
    here = welcome(*devices)
    kinds = tuple(dict.fromkeys(name.partition(":")[0] for name in here.devices))
    points, refused = Grid({"N": tuple(range(1, count + 1)), "C": (16,)}).points(kinds, 2)
    assert not refused
    return tasks_of(points, given, here)


def measured(job: PointJob) -> Measured:
    """All rows of a point that nothing happens to."""
    rows = []
    for subject in job.settings.subjects():
        row = blank_row(subject, job.case)
        if subject.label in job.skipped:
            status, reason = job.skipped[subject.label]
            rows.append(replace(row, status=status, reason=reason))
        else:
            rows.append(replace(row, latency=Samples(((1e-3,) * 3,) * 6, calls=1, stop="precision"), first_call=0.1))
    return Measured(tuple(rows), {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}, {"timed": 0.1})


class FakeWorker:
    """Answers as its machine says; ``label`` is what it says that it runs."""

    def __init__(self, machine: Machine) -> None:
        self.connection, self.theirs = Pipe()
        self.machine = machine
        self.beacon = SimpleNamespace(label="")
        self.jobs: list[PointJob] = []
        self.seconds = 0.0
        self.stopped: list[float] = []
        self.end = CRASH
        machine.workers.append(self)

    def send(self, request: object) -> None:
        assert not self.stopped
        if isinstance(request, PointJob):
            self.jobs.append(request)
            self.machine.measure(self, request)
        else:
            assert isinstance(request, Hello | PlanJob)
            self.answer(self.machine.answers[type(request)])

    def answer(self, *messages: object) -> None:
        for message in messages:
            self.theirs.send(message)

    def crash(self, label: str = "") -> None:
        self.beacon.label = label
        self.theirs.close()

    def hang(self, label: str, seconds: float = 1e9) -> None:
        self.beacon.label, self.seconds = label, seconds

    def read(self) -> object:
        try:
            return self.connection.recv()
        except EOFError:
            return None

    def ask(self, request: object, tell: Callable[[str], None], timeout: float) -> object:
        self.send(request)
        while isinstance(message := self.read(), str):
            tell(message)
        return message

    def stuck_for(self) -> float:
        return self.seconds

    def stop(self, patience: float = 0.0) -> None:
        self.stopped.append(patience)
        self.connection.close()

    def epitaph(self) -> tuple[Status, str]:
        return self.end


@dataclass
class Machine:
    """Makes workers, and says what they do with a point."""

    measure: Callable[[FakeWorker, PointJob], None] = lambda worker, job: worker.answer(
        "preparing naive", measured(job)
    )
    answers: dict[type, object] = field(default_factory=dict)
    workers: list[FakeWorker] = field(default_factory=list)

    def spawn(self) -> Any:
        return FakeWorker(self)

    def sweep(self, kept: Any, *devices: str, timeout: float = 100.0) -> Sweep:
        return Sweep(kept, welcome(*devices), timeout, self.spawn)


class Kept:
    """A journal in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.added: list[str] = []

    def add(self, entry: Entry) -> None:
        self.added.append(entry.key)
        self.entries[entry.key] = entry


def crashes(*labels: str, at: int = 2) -> Callable[[FakeWorker, PointJob], None]:
    """One point on which some subjects, one after the other, take the worker down."""

    def measure(worker: FakeWorker, job: PointJob) -> None:
        left = [label for label in labels if label not in job.skipped]
        if at == job.case.N and left:
            worker.answer(f"preparing {left[0]}")
            worker.crash(left[0])
        else:
            worker.answer(measured(job))

    return measure
