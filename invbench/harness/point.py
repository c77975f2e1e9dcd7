"""One configuration, from nothing to rows: prepare, prove, warm up, measure, and only then tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from invbench.cost import held_bytes, reference_bytes
from invbench.harness import machine, memory, server
from invbench.harness.arms import ROOM, OperatorArm, Preparation, Skipped, gib
from invbench.harness.blocks import Sampler
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
from invbench.harness.timing import Run, algorithms_by_trying, measure_arms, with_warnings
from invbench.ops import BACKENDS
from invbench.results import Result
from invbench.results.quantities import Memory
from invbench.spec import BackendUnavailableError, Case
from invbench.verdict import with_ratios


@dataclass(frozen=True, slots=True)
class Point:
    """The rows of one point, the peaks of the same run, and whether Ctrl-C ended it early.

    seconds: where the time went: ``prepare``, ``peaks``, ``measure`` and the part of it that is ``floor``, ``memory``,
    and ``timed``, the part of it all that was spent inside timed blocks or warm-up, the choice of a layout by trying
    included.
    """

    results: tuple[Result, ...]
    peaks: dict[str, float]
    environment: dict[str, Any]
    interrupted: bool
    seconds: dict[str, float]


def measure_point(
    case: Case,
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
    watch: Watch | None = None,
    skipped: Skipped | None = None,
    known_peaks: Mapping[str, float] | None = None,
    launch: int = 0,
) -> Point:
    """Measure every subject at one point.

    tell: told what is being waited for. watch: told which subject runs. skipped: subjects, by label, that are not to be
    run, with their status and the reason. known_peaks: of the same run and dtype; measured here where not given.
    launch: which of ``settings.launches`` this is; each has its share of the budget, and the first one measures peak
    memory, which does not depend on it.

    Raises InvbenchError, before anything is allocated, for a point that cannot be measured here: a device that is not
    there, more threads than cores, more memory than is free.
    """
    device = machine.check_device(case.device)
    case = replace(case, device=str(device))
    budget = replace(settings.budget, seconds=settings.budget.seconds / settings.launches)
    settings = replace(settings, budget=budget)
    run = Run(settings, device, tell, watch or Unwatched(), launch)
    _check(case, settings, device)
    if device.type == "cpu":
        server.start(settings.backends)
    machine.settle(case.threads)
    load = machine.load()  # before our own work counts
    with algorithms_by_trying(device, settings.autotune):
        with run.phase("prepare"):
            arms = _prepared(run, case, settings, skipped or {})
        peaks = known_peaks or run.peaks(case.dtype)
        environment = machine.fingerprint(device)
        environment["cpu"]["load"] = load
        with run.phase("measure"):
            interrupted = measure_arms(run, arms, settings.baseline)
        environment["floor"] = asdict(run.floor)
        if launch == 0:
            _expect_memory(arms)
        # Whatever Ctrl-C cuts off from here on, the latencies are kept.
        try:
            if not interrupted:
                if known_peaks is None:
                    # Again, since a machine that was busy before may be quiet after: a peak is the most that was seen.
                    peaks = {name: max(peaks[name], peak) for name, peak in run.peaks(case.dtype).items()}
                if launch == 0:
                    tell("measuring peak memory, each subject in a process of its own")
                    with run.phase("memory"):
                        _measure_memory(run, case, arms)
        except KeyboardInterrupt:
            interrupted = True
    results = tuple(_judge(arm.result, peaks, environment, settings.launches) for arm in arms)
    return Point(with_ratios(results, settings.baseline), dict(peaks), environment, interrupted, run.seconds)


def _prepared(run: Run, case: Case, settings: Settings, skipped: Skipped) -> list[OperatorArm]:
    def sampler(runnable: Runnable) -> Sampler:
        return run.watched(runnable.subject.label, runnable.sampler(run.clock()))

    preparation = Preparation(case, settings, run.device, sampler, run.watch, skipped)
    arms = []
    for subject in settings.subjects():
        run.tell(_preparing(subject))
        arms.append(preparation.arm(subject))
    return arms


def _preparing(subject: Subject) -> str:
    compiled = " (torch.compile can take a minute the first time)"
    slow = {"compiled": compiled, "flex": compiled, "numba": " (compiled on first use)"}
    return f"preparing {subject.label}{slow.get(subject.backend, '')}"


def _expect_memory(arms: list[OperatorArm]) -> None:
    """Until a row's memory is measured, it is not known."""
    for arm in arms:
        if arm.result.latency is not None:
            arm.result = replace(arm.result, memory=memory.UNKNOWN)


def _measure_memory(run: Run, case: Case, arms: list[OperatorArm]) -> None:
    """Fill in the peaks."""
    ready = {arm.subject: arm.runnable for arm in arms if arm.runnable is not None}
    peaks: Mapping[Subject, Memory] = {}
    if run.device.type == "cuda":
        peaks = {subject: memory.cuda_peak(runnable, run.device) for subject, runnable in ready.items()}
    elif run.device.type == "cpu":
        jobs = [memory.OperatorJob(subject, case, run.settings.seed, ready[subject].layout) for subject in ready]
        peaks = memory.cpu_peaks(jobs, machine.usable_cores(), beat=lambda: run.watch.running(""))
    for arm in arms:
        if arm.subject in peaks:
            arm.result = replace(arm.result, memory=peaks[arm.subject])


def _judge(result: Result, peaks: Mapping[str, float], environment: dict[str, Any], launches: int) -> Result:
    """The row with its roofline share and its warnings, each of which says what to do."""
    share = result.share_of_roofline(peaks)
    result = with_warnings(result, environment, launches)
    warnings = list(result.warnings)
    if share is not None and share > 1:
        why = "its data stays in cache (see --cache cold), or the matrix product was not the machine's fastest"
        warnings.append(f"faster than the peaks of this run allow: {why}")
    if result.memory is not None and result.memory.peak is None:
        warnings.append("peak memory is not known: this system does not tell it, or the point is too small")
    return replace(result, roofline_fraction=share, warnings=tuple(warnings))


def _check(case: Case, settings: Settings, device: torch.device) -> None:
    """Refuse what cannot be measured, before anything is allocated."""
    check_clock(settings.clock, device.type)
    require_fitting(case, settings.compare)
    refusals = {name: BACKENDS[name].refusal(device.type, case.dtype) for name in settings.asked_for}
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
