"""One configuration, from nothing to rows: prepare, prove, warm up, measure, and only then tell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from invbench.cost import held_bytes, reference_bytes
from invbench.harness import machine, memory, server
from invbench.harness.arms import ROOM, Arm, Preparation, Skipped, fail, gib
from invbench.harness.blocks import MIN_ROUNDS, Sampler, measure
from invbench.harness.clock import clock_for
from invbench.harness.settings import (
    INVOLUTION,
    OutOfRoomError,
    Settings,
    Subject,
    Unwatched,
    Watch,
    check_clock,
)
from invbench.harness.subjects import Runnable, require_fitting
from invbench.ops import BACKENDS
from invbench.results import Result, Status
from invbench.results.quantities import Memory
from invbench.spec import BackendUnavailableError, Case
from invbench.verdict import roofline_fraction, with_ratios

NOISY = 0.05  # half-width of the interval, as a share of the median


@dataclass(frozen=True, slots=True)
class Point:
    """The rows of one point, the peaks of the same run, and whether Ctrl-C ended it early.

    seconds: where the time went: ``prepare``, ``peaks``, ``measure``, ``memory``, and ``timed``, the part of it that
    was spent inside timed blocks or warm-up, the choice of a layout by trying included.
    """

    results: tuple[Result, ...]
    peaks: dict[str, float]
    environment: dict[str, Any]
    interrupted: bool
    seconds: dict[str, float]


@dataclass
class _Run:
    """What one point is measured with, and where its time goes."""

    case: Case
    settings: Settings
    device: torch.device
    tell: Callable[[str], None]
    watch: Watch
    seconds: dict[str, float] = field(default_factory=lambda: {"timed": 0.0})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def watched(self, label: str, sampler: Sampler) -> Sampler:
        """A sampler that says who runs, and for how long."""

        def sample(calls: int) -> float:
            self.watch.running(label)
            with self.phase("timed"):
                return sampler(calls)

        return sample


def measure_point(
    case: Case,
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
    watch: Watch | None = None,
    skipped: Skipped | None = None,
    known_peaks: Mapping[str, float] | None = None,
) -> Point:
    """Measure every subject at one point.

    tell: told what is being waited for. watch: told which subject runs. skipped: subjects, by label, that are not to be
    run, with their status and the reason. known_peaks: of the same run and dtype; measured here where not given.

    Raises InvbenchError, before anything is allocated, for a point that cannot be measured here: a device that is not
    there, more threads than cores, more memory than is free.
    """
    device = machine.check_device(case.device)
    run = _Run(replace(case, device=str(device)), settings, device, tell, watch or Unwatched())
    _check(run)
    if device.type == "cpu":
        server.start(settings.backends)
    machine.set_threads(case.threads)
    load = machine.load()  # before our own work counts
    with _cudnn_autotune(device, settings.autotune):
        with run.phase("prepare"):
            arms = _prepared(run, skipped or {})
        peaks = known_peaks or _peaks(run)
        environment = machine.fingerprint(device)
        environment["cpu"]["load"] = load
        with run.phase("measure"):
            interrupted = _measure(run, arms)
        # Whatever Ctrl-C cuts off from here on, the latencies are kept.
        try:
            if not interrupted:
                if known_peaks is None:
                    # Again, since a machine that was busy before may be quiet after: a peak is the most that was seen.
                    peaks = {name: max(peaks[name], peak) for name, peak in _peaks(run).items()}
                tell("measuring peak memory, each subject in a process of its own")
                with run.phase("memory"):
                    _measure_memory(run, arms)
        except KeyboardInterrupt:
            interrupted = True
    results = tuple(_judge(arm.result, peaks, environment) for arm in arms)
    return Point(with_ratios(results, settings.baseline), dict(peaks), environment, interrupted, run.seconds)


def _prepared(run: _Run, skipped: Skipped) -> list[Arm]:
    clock = clock_for(run.device, run.settings.cache)

    def sampler(runnable: Runnable) -> Sampler:
        return run.watched(runnable.subject.label, runnable.sampler(clock))

    preparation = Preparation(run.case, run.settings, run.device, sampler, run.watch, skipped)
    arms = []
    for subject in run.settings.subjects():
        run.tell(_preparing(subject))
        arms.append(preparation.arm(subject))
    return arms


def _preparing(subject: Subject) -> str:
    slow = {"compiled": " (torch.compile can take a minute the first time)", "numba": " (compiled on first use)"}
    return f"preparing {subject.label}{slow.get(subject.backend, '')}"


def _peaks(run: _Run) -> dict[str, float]:
    run.tell("measuring the machine's peaks")
    with run.phase("peaks"):
        return machine.measure_peaks(run.case, run.device)


def _measure(run: _Run, arms: list[Arm]) -> bool:
    """Fill in the latencies; True if Ctrl-C ended it early."""
    clock = clock_for(run.device, run.settings.cache)
    ready = {arm.subject.label: arm for arm in arms if arm.runnable is not None}
    samplers = {label: run.watched(label, arm.runnable.sampler(clock)) for label, arm in ready.items() if arm.runnable}
    run.tell("warming up")
    measurement = measure(
        samplers, run.settings.budget, run.settings.seed, run.settings.baseline,
        progress=lambda rounds, share: run.tell(f"measuring: round {rounds}, {min(1, share):.0%} of the budget"),
    )  # fmt: skip
    run.watch.running("")
    for label, error in measurement.failures.items():
        run.watch.failed(label, error)
    for label, arm in ready.items():
        if label in measurement.failures:
            fail(arm, measurement.failures[label])
        elif label in measurement.samples:
            samples = replace(measurement.samples[label], clock=run.settings.clock, cache=run.settings.cache)
            arm.result = replace(arm.result, latency=samples, memory=memory.UNKNOWN)
        else:
            arm.fail(Status.ERROR, "interrupted before its first block was done")
    return measurement.interrupted


def _measure_memory(run: _Run, arms: list[Arm]) -> None:
    """Fill in the peaks."""
    ready = {arm.subject: arm.runnable for arm in arms if arm.runnable is not None}
    peaks: Mapping[Subject, Memory] = {}
    if run.device.type == "cuda":
        peaks = {subject: memory.cuda_peak(runnable) for subject, runnable in ready.items()}
    elif run.device.type == "cpu":
        jobs = [memory.Job(subject, run.case, run.settings.seed, ready[subject].layout) for subject in ready]
        peaks = memory.cpu_peaks(jobs, machine.usable_cores(), beat=lambda: run.watch.running(""))
    for arm in arms:
        if arm.subject in peaks:
            arm.result = replace(arm.result, memory=peaks[arm.subject])


def _judge(result: Result, peaks: Mapping[str, float], environment: dict[str, Any]) -> Result:
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


def _check(run: _Run) -> None:
    """Refuse what cannot be measured, before anything is allocated."""
    case, device = run.case, run.device
    check_clock(run.settings.clock, device.type)
    require_fitting(case)
    refusals = {name: BACKENDS[name].refusal(device.type, case.dtype) for name in run.settings.asked_for}
    if refusals and all(refusals.values()):
        raise BackendUnavailableError("; ".join(f"--backend {name}: {why}" for name, why in refusals.items()))
    machine.check_threads(case.threads)
    free, needed = machine.free_bytes(device), needed_bytes(case)
    if free is not None and needed > ROOM * free:
        raise OutOfRoomError(
            f"not enough memory: this point needs about {gib(needed)} on {device} and {gib(free)} are free; "
            "use a smaller --N, --C, --H or --W"
        )


def needed_bytes(case: Case) -> int:
    """About how much memory the leanest row of a point and its reference need at once."""
    return held_bytes(INVOLUTION, "naive", case) + reference_bytes(case)


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
