"""The worker's side of a sweep: it answers requests until the parent is gone, and then ends with all it has started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from invbench.cost import held_bytes
from invbench.harness import lifeline
from invbench.harness.messages import Beacon, Hello, Lost, Measured, Plan, PlanJob, PointJob, Refusal, Welcome
from invbench.harness.settings import OutOfRoomError, describe_failure, failed_rows
from invbench.results import Status
from invbench.spec import InvbenchError


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
        if not _answers(self.device):
            raise DeviceLostError(label, describe_failure(error)) from error


def _answers(device: str) -> bool:
    """Whether the device is still of use to this process."""
    import torch

    if device.startswith("cpu"):
        return True
    try:
        torch.accelerator.synchronize(device)
    except Exception:  # noqa: BLE001 -- whatever it says, the device does not answer
        return False
    return True


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
            service.tell(service.reply(request))
        except KeyboardInterrupt:  # no Ctrl-C reaches a worker: it is what a user's operator raised
            os._exit(1)


def _end_with_parent() -> None:
    """See to it that this process and all that it starts end with the parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if hasattr(os, "fork"):
        lifeline.end_with(parent.sentinel)
    else:
        threading.Thread(target=_join_and_exit, args=(parent,), daemon=True).start()


def _join_and_exit(parent: Any) -> None:
    parent.join()
    os._exit(1)


@dataclass
class _Service:
    """What a worker can do."""

    connection: Connection
    beacon: Beacon

    def tell(self, message: object) -> None:
        """Send a line of progress or an answer; a parent that is gone needs none."""
        try:
            self.connection.send(message)
        except OSError:
            os._exit(1)

    def reply(self, request: object) -> object:
        """The answer to a request, or what has come of it instead."""
        try:
            return self.answer(request)
        except InvbenchError as error:
            return Refusal(str(error))
        except DeviceLostError as error:
            return Lost(error.label, error.reason)
        except Exception as error:
            traceback.print_exc()
            if not isinstance(request, PointJob):
                raise
            reason = describe_failure(error)
            if not _answers(request.case.device):
                return Lost("", reason)
            return Measured(failed_rows(request.case, request.settings, Status.ERROR, reason), None, {})

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
        from invbench.harness.timing import cudnn_autotune

        if hello.devices and all(device.startswith("cpu") for device in hello.devices):
            server.start(hello.backends)
        found = {machine.full_name(device): None for device in hello.devices or (None,)}
        places = {machine.check_device(name): name for name in found}
        # A type without a number is its first device.
        names = tuple({(place.type, place.index or 0): name for place, name in places.items()}.values())
        subjects = []
        for name in hello.subjects:
            self.beacon.set(name)
            subjects.append(custom.subject(name))
        self.beacon.set("")
        threads = machine.usable_cores()
        machine.settle(threads)
        environments = {}
        for name in names:
            device = machine.check_device(name)
            with cudnn_autotune(device, hello.autotune):
                environments[name] = machine.fingerprint(device)
        return Welcome(names, threads, machine.usable_cores(), environments, tuple(subjects))

    def _plan(self, job: PlanJob) -> Plan:
        from invbench.harness import machine
        from invbench.harness.point import needed_bytes
        from invbench.harness.subjects import require_fitting
        from invbench.ops import BACKENDS

        device = machine.check_device(job.case.device)
        found = {name: BACKENDS[name].refusal(device.type, job.case.dtype) for name in job.settings.backends}
        refusals = {name: reason for name, reason in found.items() if reason}
        able = [s for s in job.settings.subjects() if s.factory is None and s.backend not in refusals]
        most = max(held_bytes(subject.name, subject.backend, job.case) for subject in able)
        needed = needed_bytes(job.case)
        try:
            require_fitting(job.case)
            reason = None
        except InvbenchError as error:
            reason = str(error)
        return Plan(refusals, needed, machine.free_bytes(device), max(most, needed), reason)

    def _measure(self, job: PointJob) -> Measured:
        from invbench.harness import machine
        from invbench.harness.point import measure_point

        watch = _Watch(self.beacon, job.case.device)
        # A backend that was asked for and refuses this point is a row of it; no reason to measure nothing.
        settings = replace(job.settings, asked_for=())
        try:
            point = measure_point(job.case, settings, self.tell, watch, job.skipped, job.peaks, job.launch)
        except InvbenchError as error:
            status = Status.OOM if isinstance(error, OutOfRoomError) else Status.ERROR
            return Measured(failed_rows(job.case, job.settings, status, str(error)), job.peaks, {})
        finally:
            with contextlib.suppress(Exception):  # of a device that does not answer, which whoever needs it next tells
                machine.give_back(job.case.device)
        return Measured(point.results, point.peaks, point.seconds)
