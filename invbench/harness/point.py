"""One configuration, from nothing to rows: prepare, prove, warm up, measure, and only then tell."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from invbench.cost import cost_of, held_bytes, reference_bytes
from invbench.harness import machine, memory, server
from invbench.harness.blocks import MIN_ROUNDS, Budget, measure
from invbench.harness.clock import Clock, clock_for
from invbench.harness.subjects import (
    CONVOLUTIONS,
    INVOLUTION,
    Agreement,
    Runnable,
    Subject,
    check,
    describe_failure,
    require_fitting,
)
from invbench.ops import BACKENDS
from invbench.quantities import Memory
from invbench.results import Result, Status
from invbench.spec import LAYOUTS, BackendUnavailableError, Case, InvbenchError
from invbench.verdict import roofline_fraction, with_ratios

LAYOUT_TRIALS = 3
NOISY = 0.05  # half-width of the interval, as a share of the median
ROOM = 0.95  # share of the free memory that a point may plan with


@dataclass(frozen=True, slots=True)
class Settings:
    """How a point is measured; stored with its results.

    asked_for: the backends that the user named, which are an error where none of them can run. baseline: a
    convolution's name, or None for no ratios. autotune: whether cuDNN may choose by trying.
    """

    backends: tuple[str, ...] = tuple(BACKENDS)
    asked_for: tuple[str, ...] = ()
    baseline: str | None = "conv2d"
    budget: Budget = field(default_factory=Budget)
    cache: str = "hot"
    clock: str = "eager"
    seed: int = 0
    autotune: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """The rows of one point, the peaks of the same run, and whether Ctrl-C ended it early."""

    results: tuple[Result, ...]
    peaks: dict[str, float]
    environment: dict[str, Any]
    interrupted: bool


@dataclass
class _Arm:
    """One row on its way: its subject, and what is known so far."""

    subject: Subject
    result: Result
    runnable: Runnable | None = None


def measure_point(case: Case, settings: Settings, tell: Callable[[str], None] = lambda _: None) -> Point:
    """Measure every subject at one point.

    tell: told what is being waited for. Raises InvbenchError, before anything is allocated, for a point that cannot be
    measured here: a device that is not there, more threads than cores, more memory than is free.
    """
    device = machine.check_device(case.device)
    case = replace(case, device=str(device))
    _check_clock(settings, device)
    require_fitting(case)
    _check_asked_for(case, settings, device)
    _check_threads(case)
    _check_memory(case, device)
    if device.type == "cpu":
        server.start(settings.backends)
    machine.set_threads(case.threads)
    load = machine.load()  # before our own work counts
    with _cudnn_autotune(device, settings.autotune):
        clock = clock_for(device, settings.cache)
        arms = [_Arm(subject, _blank_row(subject, case)) for subject in subjects(settings.backends)]
        references: dict[str, Any] = {}
        for arm in arms:
            tell(_preparing(arm.subject))
            _prepare(arm, case, settings, device, clock, references)
        references.clear()
        tell("measuring the machine's peaks")
        peaks = machine.measure_peaks(case, device)
        environment = machine.fingerprint(device)
        environment["cpu"]["load"] = load
        interrupted = _measure(arms, settings, clock, tell)
        # Whatever Ctrl-C cuts off from here on, the latencies are kept.
        try:
            if not interrupted:
                # Again, since a machine that was busy before may be quiet after: a peak is the most that was seen.
                peaks = {name: max(peaks[name], peak) for name, peak in machine.measure_peaks(case, device).items()}
                tell("measuring peak memory, each subject in a process of its own")
                _measure_memory(arms, case, settings, device)
        except KeyboardInterrupt:
            interrupted = True
    results = tuple(_judge(arm.result, peaks, environment) for arm in arms)
    return Point(with_ratios(results, settings.baseline), peaks, environment, interrupted)


def subjects(backends: tuple[str, ...]) -> list[Subject]:
    """The rows of a point, in order: involution by each backend, then the convolutions."""
    return [*(Subject(INVOLUTION, backend) for backend in backends), *(Subject(name) for name in CONVOLUTIONS)]


def _preparing(subject: Subject) -> str:
    slow = {"compiled": " (torch.compile can take a minute the first time)", "numba": " (compiled on first use)"}
    return f"preparing {subject.label}{slow.get(subject.backend, '')}"


def _blank_row(subject: Subject, case: Case) -> Result:
    cost = cost_of(subject.name, case)
    return Result(
        subject.name, subject.backend, case,
        params=cost.params, macs=cost.macs, flop=cost.flop, bytes_min=cost.bytes_min,
    )  # fmt: skip


def _prepare(
    arm: _Arm, case: Case, settings: Settings, device: torch.device, clock: Clock, references: dict[str, Any]
) -> None:
    """Build, call for the first time, and prove right; whatever fails makes the row's status and reason."""
    backend = BACKENDS.get(arm.subject.backend)
    refusal = backend.refusal(device.type, case.dtype) if backend else None
    if refusal:
        arm.result = replace(arm.result, status=Status.UNAVAILABLE, reason=refusal)
        return
    free = machine.free_bytes(device)
    needed = held_bytes(arm.subject.name, arm.subject.backend, case)
    if free is not None and needed > ROOM * free:
        reason = f"needs about {_gib(needed)}: {_gib(free)} are free on {device}; use a smaller N, H or W"
        arm.result = replace(arm.result, status=Status.OOM, reason=reason)
        return
    try:
        layouts = (case.layout,) if arm.subject.name == INVOLUTION else LAYOUTS
        prepared = [_first_call(arm, case, settings, layout, references) for layout in layouts]
        runnable, first_call, agreement = prepared[_fastest([ready[0] for ready in prepared], clock)]
    except Exception as failure:  # noqa: BLE001 -- a failed row is a result; the others go on
        arm.result = _failed(arm.result, failure)
        return
    chosen = None if arm.subject.name == INVOLUTION else runnable.layout
    relative = agreement.relative if math.isfinite(agreement.relative) else None  # JSON has no NaN
    error = {"relative": relative, "tolerance": agreement.tolerance}
    arm.result = replace(arm.result, first_call=first_call, error=error, chosen_layout=chosen)
    if agreement.is_close:
        arm.runnable = runnable
    else:
        reason = (
            f"differs from the float64 reference by {agreement.relative:.1e} of its size: "
            f"expected at most {agreement.tolerance:.0e}; do not use this backend for this configuration"
        )
        arm.result = replace(arm.result, status=Status.MISMATCH, reason=reason)


def _first_call(
    arm: _Arm, case: Case, settings: Settings, layout: str, references: dict[str, Any]
) -> tuple[Runnable, float, Agreement]:
    runnable = Runnable(arm.subject, case, settings.seed, layout)
    started = time.perf_counter()
    results = runnable.results()
    if case.device != "cpu":
        torch.accelerator.synchronize(case.device)
    first_call = time.perf_counter() - started
    return runnable, first_call, check(runnable, references, results)


def _fastest(runnables: list[Runnable], clock: Clock) -> int:
    """The index of the fastest of a few runnables, by alternating calls."""
    if len(runnables) == 1:
        return 0
    samplers = [runnable.sampler(clock) for runnable in runnables]
    times = [min(sample) for sample in zip(*([s(1) for s in samplers] for _ in range(LAYOUT_TRIALS)), strict=True)]
    return times.index(min(times))


def _measure(arms: list[_Arm], settings: Settings, clock: Clock, tell: Callable[[str], None]) -> bool:
    """Fill in the latencies; True if Ctrl-C ended it early."""
    ready = {arm.subject.label: arm for arm in arms if arm.runnable is not None}
    samplers = {label: arm.runnable.sampler(clock) for label, arm in ready.items() if arm.runnable is not None}
    tell("warming up")
    measurement = measure(
        samplers, settings.budget, settings.seed, settings.baseline,
        progress=lambda rounds, share: tell(f"measuring: round {rounds}, {min(1, share):.0%} of the budget"),
    )  # fmt: skip
    for label, arm in ready.items():
        if label in measurement.failures:
            arm.result, arm.runnable = _failed(arm.result, measurement.failures[label]), None
        elif label in measurement.samples:
            samples = replace(measurement.samples[label], clock=settings.clock, cache=settings.cache)
            arm.result = replace(arm.result, latency=samples, memory=memory.UNKNOWN)
        else:
            arm.result = replace(arm.result, status=Status.ERROR, reason="interrupted before its first block was done")
    return measurement.interrupted


def _measure_memory(arms: list[_Arm], case: Case, settings: Settings, device: torch.device) -> None:
    """Fill in the peaks."""
    ready = {arm.subject: arm.runnable for arm in arms if arm.runnable is not None}
    peaks: Mapping[Subject, Memory] = {}
    if device.type == "cuda":
        peaks = {subject: memory.cuda_peak(runnable) for subject, runnable in ready.items()}
    elif device.type == "cpu":
        jobs = [memory.Job(subject, case, settings.seed, ready[subject].layout) for subject in ready]
        peaks = memory.cpu_peaks(jobs, workers=machine.usable_cores())
    for arm in arms:
        if arm.subject in peaks:
            arm.result = replace(arm.result, memory=peaks[arm.subject])


def _judge(result: Result, peaks: dict[str, float], environment: dict[str, Any]) -> Result:
    """The row with its roofline share and its warnings, each of which says what to do."""
    share = roofline_fraction(result, peaks)
    warnings = list(result.warnings)
    if result.latency is not None:
        interval = result.latency.interval
        if interval.half_width > NOISY:
            limit = f"the interval is wider than +-{NOISY:.0%} of the median"
            warnings.append(f"noisy: {limit}; stop other programs or raise --budget")
        if interval.count < MIN_ROUNDS:
            warnings.append(f"only {interval.count} round(s): the interval is their range; raise --budget")
        warnings += machine.advice(environment)
    if share is not None and share > 1:
        why = "its data stays in cache (see --cache cold), or the matrix product was not the machine's fastest"
        warnings.append(f"faster than the peaks of this run allow: {why}")
    if result.memory is not None and result.memory.peak is None:
        warnings.append("peak memory is not known: this system does not tell it, or the point is too small")
    return replace(result, roofline_fraction=share, warnings=tuple(warnings))


def _failed(result: Result, error: BaseException) -> Result:
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
    status = Status.OOM if out_of_memory else Status.ERROR
    return replace(result, status=status, reason=describe_failure(error), latency=None)


def _check_asked_for(case: Case, settings: Settings, device: torch.device) -> None:
    refusals = {name: BACKENDS[name].refusal(device.type, case.dtype) for name in settings.asked_for}
    if refusals and all(refusals.values()):
        raise BackendUnavailableError("; ".join(f"--backend {name}: {why}" for name, why in refusals.items()))


def _check_threads(case: Case) -> None:
    cores = machine.usable_cores()
    if case.threads > cores:
        raise InvbenchError(
            f"--threads {case.threads}: this process may use {cores} core(s); ask for at most {cores}, since "
            "threads that share a core measure the scheduler"
        )


def _check_memory(case: Case, device: torch.device) -> None:
    """Refuse a point whose tensors and reference cannot fit, before any of them is made."""
    free = machine.free_bytes(device)
    needed = held_bytes(INVOLUTION, "naive", case) + reference_bytes(case)
    if free is not None and needed > ROOM * free:
        raise InvbenchError(
            f"not enough memory: this point needs about {_gib(needed)} on {device} and {_gib(free)} are free; "
            "use a smaller --N, --C, --H or --W"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _check_clock(settings: Settings, device: torch.device) -> None:
    if settings.clock == "device":
        why = "the CPU has only the eager clock" if device.type == "cpu" else "the device clock is not built yet"
        raise InvbenchError(f"--clock device: {why}; use --clock eager")


@contextlib.contextmanager
def _cudnn_autotune(device: torch.device, allowed: bool) -> Iterator[None]:
    """cuDNN may choose the fastest algorithm for the convolutions; the setting is put back afterwards."""
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
