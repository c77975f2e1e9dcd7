"""A worker's side of a check: rows made runnable and proved right, and then one block after the other, as asked.

Requests and answers are JSON, one line each, on what were standard input and standard output; what else is printed
goes to standard error. Whatever is raised is an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from invbench.harness import keep_quiet, lifeline
from invbench.harness.gate.counting import IN_MEMORY, MISSING
from invbench.harness.settings import INVOLUTION, USER, Settings, Subject, describe_failure
from invbench.results import Status
from invbench.results.check import Row
from invbench.spec import InvbenchError, Mode, Scope

ASLEEP = 0.1  # share of a core that sleeping thread pools use at most
LOOK = 0.002
LONGEST_LOOK = 0.3  # the longest that a pool of threads spins by default


def serve(path: Sequence[str], descriptor: int | None) -> None:
    """Answer requests until there are no more.

    path: where a user's operators have to come from, if not from anywhere. descriptor: the end of a pipe that closes
    when the parent is gone.
    """
    # What a user's operator starts gets neither the requests nor the answers.
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    if descriptor is not None:
        lifeline.end_with(descriptor)
    keep_quiet()
    service = _Service(tuple(path))
    for line in requests:
        request = json.loads(line)
        try:
            answer = service.answer(request)
        except Exception as error:  # noqa: BLE001 -- also what another version does not have
            answer = {"refused": describe_failure(error)}
        answers.write(json.dumps(answer, allow_nan=False) + "\n")
        answers.flush()


@dataclass
class _Ready:
    """A row that can be called."""

    runnable: Any
    sampler: Callable[[int], float]
    clock: Any


@dataclass
class _Service:
    """What a worker knows: how to measure, and its rows by their number."""

    path: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    rows: dict[int, _Ready] = field(default_factory=dict)
    _flush: Any = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What was asked for."""
        handlers = {
            "hello": self._hello, "prepare": self._prepare, "warm": self._warm, "slow": self._slow,
            "block": self._block,
        }  # fmt: skip
        return handlers[request["do"]](request)

    def _hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The machine, and the user's operators by their name."""
        from invbench.harness import machine
        from invbench.harness.clock import Flush
        from invbench.harness.settings import check_clock
        from invbench.harness.timing import cudnn_autotune
        from invbench.ops import BACKENDS

        self.settings = Settings(
            seed=request["seed"], clock=request["clock"], cache=request["cache"], autotune=request["autotune"]
        )
        device = machine.check_device(machine.full_name(request["device"]))
        check_clock(self.settings.clock, device.type)
        threads = machine.usable_cores()
        machine.settle(threads)
        if self.settings.cache == "cold":
            self._flush = Flush(device)
        subjects = [_asked_for(name) for name in request["subjects"]]
        with cudnn_autotune(device, self.settings.autotune):
            environment = machine.fingerprint(device)
        return {
            "device": str(device), "unavailable": {
                name: reason for name, each in BACKENDS.items() if (reason := each.unavailable(device.type))
            },
            "threads": threads, "environment": environment,
            "subjects": subjects,
        }  # fmt: skip

    def _prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A row, ready: its status, and what does not depend on the clock."""
        from invbench.harness import machine
        from invbench.harness.arms import Preparation
        from invbench.harness.clock import Clock
        from invbench.harness.device_clock import clock_for
        from invbench.harness.subjects import Runnable
        from invbench.harness.timing import algorithms_by_trying

        row = Row.from_dict(request["row"])
        subject = Subject(row.subject, row.backend, request["factory"])
        lacking = _lacking(subject) or self._lacking_here(subject)
        if lacking:
            return {"status": MISSING, "reason": lacking}
        device = machine.check_device(row.case.device)
        machine.set_threads(row.case.threads)

        def clock() -> Clock:
            return clock_for(device, self.settings.clock, self._flush)

        def sampler(runnable: Runnable) -> Callable[[int], float]:
            return runnable.sampler(clock())

        preparation = Preparation(row.case, self.settings, device, sampler, layout=request["layout"])
        with algorithms_by_trying(device, self.settings.autotune):
            arm = preparation.arm(subject)
            found: dict[str, Any] = {
                "status": str(arm.result.status), "reason": arm.result.reason, "error": arm.result.error,
                "layout": arm.result.chosen_layout or row.case.layout, "first_call": arm.result.first_call,
            }  # fmt: skip
            if arm.runnable is None or arm.result.status is not Status.OK:
                return found
            own = clock()
            self.rows[request["number"]] = _Ready(arm.runnable, arm.runnable.sampler(own), own)
            module = arm.runnable.module
            params = sum(each.numel() for each in module.parameters()) if module else arm.result.params
            counts = {"params": params, "flop": arm.result.flop, **_memory(arm.runnable, device)}
        return {
            **found, "inputs": _digest(arm.runnable), "counts": counts, "backends": _used(subject, row),
        }  # fmt: skip

    def _lacking_here(self, subject: Subject) -> str | None:
        """What of a user's operator these files lack, where it has to come from them; raises InvbenchError where they
        have it, but something else is imported (an editable installation can see to that)."""
        from invbench.harness import custom

        home = custom.home(subject.factory) if subject.factory else None
        folders = [Path(each).resolve() for each in self.path]
        if home is None or not folders or any(Path(home).is_relative_to(folder) for folder in folders):
            return None
        name = str(subject.factory).partition(":")[0].partition(".")[0]
        if any((folder / name).is_dir() or (folder / f"{name}.py").is_file() for folder in folders):
            raise InvbenchError(f"{name} is imported from {home} instead of from this version's files")
        return f"there is no module {name}"

    def _warm(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How much makes a block of so many seconds, once two successive windows agree."""
        from invbench.harness.blocks import block_size

        with self._as_measured(request):
            size = block_size(self.rows[request["row"]].sampler, request["longest"], request["block_seconds"])
        _wait_for_threads()
        return asdict(size)

    def _slow(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """From now on the row's calls take so many seconds more."""
        from invbench.harness.gate.slowing import slowed

        ready = self.rows[request["row"]]
        ready.sampler = ready.runnable.sampler(slowed(ready.clock, ready.runnable.case.device, request["seconds"]))
        return {}

    def _block(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One block: its samples, and whether the device was slowed down meanwhile; ends when the threads sleep."""
        from invbench.harness import machine, throttling
        from invbench.harness.blocks import Slowdown, no_garbage_collection

        ready = self.rows[request["row"]]
        with self._as_measured(request), throttling.watched(machine.check_device(ready.runnable.case.device)) as seen:
            started = time.perf_counter()
            ready.sampler(1)
            while time.perf_counter() - started < request["before"]:
                ready.sampler(1)
            before = seen.look() if seen else None
            with no_garbage_collection():
                samples = [ready.sampler(request["calls"]) for _ in range(request["samples"])]
            slowdown = seen.between(before, seen.look()) if seen and before is not None else Slowdown()
        _wait_for_threads()
        return {"seconds": samples, "spoiled": slowdown.spoiled, "capped": slowdown.capped}

    @contextmanager
    def _as_measured(self, request: Mapping[str, Any]) -> Iterator[None]:
        """With the row's threads and the run's choice of algorithms; what the row raises is told by its first line."""
        from invbench.harness import machine
        from invbench.harness.timing import algorithms_by_trying

        case = self.rows[request["row"]].runnable.case
        machine.set_threads(case.threads)
        with algorithms_by_trying(machine.check_device(case.device), self.settings.autotune):
            try:
                yield
            except (Exception, SystemExit) as error:
                raise InvbenchError(describe_failure(error)) from error


def _asked_for(name: str) -> dict[str, Any]:
    """What a user's operator is called here, where it comes from, and what of it is not there."""
    from invbench.harness import custom

    factory = custom.target(name)
    lacking = custom.is_missing(factory)
    if lacking:
        return {"subject": name, "backend": USER, "factory": factory, "home": None, "missing": lacking}
    found = custom.subject(name)
    return {
        "subject": found.name, "backend": found.backend, "factory": factory, "home": custom.home(factory),
        "missing": None,
    }  # fmt: skip


def _lacking(subject: Subject) -> str | None:
    """What this version does not have of a subject, which another may have."""
    from invbench.harness.custom import is_missing
    from invbench.ops import BACKENDS

    if subject.factory is not None:
        return is_missing(subject.factory)
    if subject.name == INVOLUTION and subject.backend not in BACKENDS:
        return f"there is no backend {subject.backend!r}"
    return None


def _memory(runnable: Any, device: Any) -> dict[str, int | None]:
    """What is counted exactly: what a training step keeps, and on CUDA the allocator's peak."""
    from invbench.harness.memory import cuda_peak, kept_bytes

    found: dict[str, int | None] = {"kept": None, "memory": None}
    if runnable.case.mode is not Mode.FORWARD:
        found["kept"] = kept_bytes(runnable.forward, runnable.differentiated)
    if device.type == "cuda":
        runnable.call()  # whatever a first call keeps
        found["memory"] = cuda_peak(runnable, device).peak
    return found


def _digest(runnable: Any) -> str:
    """A hash of the inputs' bits."""
    import torch

    found = hashlib.sha256()
    for tensor in (*runnable.inputs, *(() if runnable.grad_y is None else (runnable.grad_y,))):
        found.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def _used(subject: Subject, row: Row) -> dict[str, str]:
    """The backend that computes a row of ours, and the one that ``auto`` would choose."""
    from invbench.ops import BACKENDS

    if subject.name != INVOLUTION or subject.factory is not None:
        return {}
    case, layer = row.case, row.case.layer
    kind = case.device.partition(":")[0]
    able = [b for b in BACKENDS.values() if b.automatic and kind in b.devices and not b.refusal(kind, case.dtype)]
    fused = BACKENDS[subject.backend].fused
    is_fused = fused is not None and not fused.refusal(layer, case.dtype, layer.hidden_channels, case.H, case.W)
    how = IN_MEMORY if case.scope is Scope.LAYER and not is_fused else ""
    return {"backend": f"{subject.backend}{how}", "automatic": able[0].name if able else "none"}


def _wait_for_threads() -> None:
    """Until this process's threads sleep, so that they take nothing from whoever is next."""
    started = time.perf_counter()
    while time.perf_counter() - started < LONGEST_LOOK:
        used = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - used < ASLEEP * LOOK:
            break
