"""A process that measures points, so that what crashes, hangs or poisons a device takes down a worker and not a sweep.

The parent holds a ``Worker``: it sends requests, and gets lines of progress, an answer, or the end of the process. All
subjects of a point run in one worker, because their blocks have to be interleaved and their thread pools to be the
same. A shared label says which subject is running, so that the parent knows whom to blame.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from invbench.harness.settings import OutOfRoomError, Settings, Subject, failed_rows
from invbench.results import Result, Status
from invbench.spec import Case, InvbenchError

LABEL_BYTES = 256
STOP_SECONDS = 5.0
MOST_FILES = 65536


@dataclass(frozen=True, slots=True)
class Hello:
    """Which devices, threads and user's operators there are; ``devices`` None asks for the fastest type here."""

    devices: tuple[str, ...] | None
    subjects: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer: devices by their full names, threads, the fingerprint of each device, the user's operators."""

    devices: tuple[str, ...]
    threads: int
    environments: Mapping[str, Mapping[str, Any]]
    custom: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would happen at a point: why backends refuse, and what it needs."""

    refusals: Mapping[str, str]
    needed_bytes: int
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class PlanJob:
    """Ask for the plan of a point."""

    case: Case
    settings: Settings


@dataclass(frozen=True, slots=True)
class PointJob:
    """Ask for a point to be measured. skipped: labels of subjects that took a worker down before, and why."""

    case: Case
    settings: Settings
    skipped: Mapping[str, tuple[Status, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured point."""

    results: tuple[Result, ...]
    peaks: Mapping[str, float] | None
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was asked cannot be done, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The device answers no more after a subject failed; the process that says so is of no further use."""

    label: str
    reason: str


class Beacon:
    """Which subject is running, and since when, in memory that both processes see."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._label = context.RawArray(ctypes.c_char, LABEL_BYTES)
        self._beats = context.RawValue(ctypes.c_ulonglong, 0)

    def set(self, label: str) -> None:
        """A subject starts to run; "" where what follows belongs to none."""
        self._label.value = label.encode()[: LABEL_BYTES - 1]
        self._beats.value += 1

    @property
    def label(self) -> str:
        """Who is running."""
        return self._label.value.decode(errors="replace")

    @property
    def beats(self) -> int:
        """How often that has changed."""
        return int(self._beats.value)


class Worker:
    """The parent's side of one process. Not started before the first request."""

    def __init__(self) -> None:
        self.beacon = Beacon()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # No daemon: those may have no children, and memory is measured in children.
        self.process = context.Process(target=serve, args=(theirs, self.beacon), name="invbench-worker")
        self._beats, self._since = 0, time.monotonic()
        try:
            with _no_complaints(), _interrupted_later():
                self.process.start()
        except KeyboardInterrupt:
            if self.process.pid is not None:
                self.stop()
            raise
        theirs.close()

    def send(self, request: object) -> None:
        """Ask for something; a process that has ended is noticed when the answer is read."""
        self._beats, self._since = self.beacon.beats, time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send(request)

    def read(self) -> object:
        """The next message: a line of progress (str), an answer, or None if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ask(self, request: object, tell: Callable[[str], None], timeout: float) -> object:
        """The answer to a request, or None if the process ended or gave none in time."""
        self.send(request)
        deadline = time.monotonic() + timeout
        while self.connection.poll(max(0.0, deadline - time.monotonic())):
            message = self.read()
            if not isinstance(message, str):
                return message
            tell(message)
        return None

    def stuck_for(self) -> float:
        """Seconds since the running subject last gave a sign of life."""
        beats = self.beacon.beats
        if beats != self._beats:
            self._beats, self._since = beats, time.monotonic()
        return time.monotonic() - self._since

    def stop(self, patience: float = 0.0) -> None:
        """End the process and those that it has started, such as the ones that measure memory.

        patience: seconds in which they may end by themselves, so that they leave nothing behind.
        """
        self.connection.close()
        if patience:
            self.process.join(patience)
        _kill_group(self.process.pid)
        self.process.kill()
        self.process.join(STOP_SECONDS)

    def epitaph(self) -> tuple[Status, str]:
        """How the process ended, as a row's status and reason."""
        self.process.join(STOP_SECONDS)
        code = self.process.exitcode
        if code is None:
            return Status.TIMEOUT, "its process gives no answer"
        if code == -signal.SIGKILL:
            return Status.OOM, "its process was killed by the system, which most often means that memory ran out"
        if code < 0:
            names = {int(each): each.name for each in signal.Signals}
            return Status.ERROR, f"it crashed its process ({names.get(-code, f'signal {-code}')})"
        return Status.ERROR, f"it ended its process (exit code {code})"


@contextlib.contextmanager
def _no_complaints() -> Iterator[None]:
    """Numba's semaphores are left behind by a worker that crashes or is killed; Python's resource tracker, which starts
    with the first worker, removes them, and need not say so."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _kill_group(leader: int | None) -> None:
    if leader is not None and hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(leader, signal.SIGKILL)


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C in a terminal reaches every process of the group, but it is the parent that decides: processes begin with
    it held back, and the parent takes afterwards what comes meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which would let it through, if it started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DeviceLostError(Exception):
    """A subject's failure left the device unusable for this process."""

    def __init__(self, label: str, reason: str) -> None:
        super().__init__(reason)
        self.label, self.reason = label, reason


@dataclass(frozen=True, slots=True)
class _Watch:
    """``settings.Watch``: keeps the beacon, and gives up when the device is lost."""

    beacon: Beacon
    device: str

    def running(self, label: str) -> None:
        self.beacon.set(label)

    def failed(self, label: str, error: BaseException) -> None:
        import torch

        from invbench.harness.subjects import describe_failure

        if self.device.startswith("cpu"):
            return
        try:
            torch.accelerator.synchronize(self.device)
        except Exception:  # noqa: BLE001 -- whatever it says, the device does not answer
            raise DeviceLostError(label, describe_failure(error)) from error


def serve(connection: Connection, beacon: Beacon) -> None:
    """The worker's side: answer requests until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # held back until it is ignored
    if hasattr(os, "setsid"):
        os.setsid()  # a group of its own, so that it ends with all that it has started
    os.dup2(2, 1)  # what a user's operator prints must not get between the rows on standard output
    _end_with_parent()
    service = _Service(connection, beacon)
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = service.answer(request)
        except InvbenchError as error:
            answer = Refusal(str(error))
        except DeviceLostError as error:
            answer = Lost(error.label, error.reason)
        except KeyboardInterrupt:  # no Ctrl-C reaches a worker: it is what a user's operator raised
            os._exit(1)
        service.tell(answer)


def _end_with_parent() -> None:
    """See to it that this process and all that it starts end with the parent, however that ends.

    A process waits for the parent, where there can be one: a thread would wait for a subject that keeps Python's lock.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not hasattr(os, "fork"):
        threading.Thread(target=_join_and_exit, args=(parent,), daemon=True).start()
    elif os.fork() == 0:
        try:
            # Whatever this process keeps open would look to the parent as if the worker lived.
            os.closerange(3, parent.sentinel)
            os.closerange(parent.sentinel + 1, MOST_FILES)
            os.read(parent.sentinel, 1)  # nobody writes: it returns when the parent is gone
        finally:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def _join_and_exit(parent: Any) -> None:
    parent.join()
    os._exit(1)


@dataclass
class _Service:
    """What a worker can do; it knows the peaks that it has measured, by device and dtype."""

    connection: Connection
    beacon: Beacon
    peaks: dict[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)

    def tell(self, message: object) -> None:
        """Send a line of progress or an answer; a parent that is gone needs none."""
        try:
            self.connection.send(message)
        except OSError:
            os._exit(1)

    def answer(self, request: object) -> object:
        """What was asked for."""
        if isinstance(request, Hello):
            return self._welcome(request)
        if isinstance(request, PlanJob):
            return self._plan(request)
        assert isinstance(request, PointJob)
        return self._measure(request)

    def _welcome(self, hello: Hello) -> Welcome:
        from invbench.harness import custom, machine, server

        if hello.devices and all(device.startswith("cpu") for device in hello.devices):
            server.start(hello.backends)
        names = tuple(dict.fromkeys(machine.full_name(device) for device in hello.devices or (None,)))
        subjects = []
        for name in hello.subjects:
            self.beacon.set(name)
            subjects.append(custom.subject(name))
        self.beacon.set("")
        threads = machine.default_threads()
        machine.set_threads(threads)
        environments = {name: machine.fingerprint(machine.check_device(name)) for name in names}
        return Welcome(names, threads, environments, tuple(subjects))

    def _plan(self, job: PlanJob) -> Plan:
        from invbench.harness import machine
        from invbench.harness.point import needed_bytes
        from invbench.ops import BACKENDS

        device = machine.check_device(job.case.device)
        found = {name: BACKENDS[name].refusal(device.type, job.case.dtype) for name in job.settings.backends}
        refusals = {name: reason for name, reason in found.items() if reason}
        return Plan(refusals, needed_bytes(job.case), machine.free_bytes(device))

    def _measure(self, job: PointJob) -> Measured:
        from invbench.harness.point import measure_point

        known = self.peaks.get((job.case.device, job.case.dtype))
        watch = _Watch(self.beacon, job.case.device)
        # A backend that was asked for and refuses this point is a row of it; no reason to measure nothing.
        settings = replace(job.settings, asked_for=())
        try:
            point = measure_point(job.case, settings, self.tell, watch, job.skipped, known)
        except InvbenchError as error:
            status = Status.OOM if isinstance(error, OutOfRoomError) else Status.ERROR
            return Measured(failed_rows(job.case, job.settings, status, str(error)), known, {})
        self.peaks[job.case.device, job.case.dtype] = point.peaks
        return Measured(point.results, point.peaks, point.seconds)
