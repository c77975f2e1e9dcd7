"""From prepared arms to timed rows: one run's rounds, where its time goes, and what its numbers are worth."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch

from invbench.diagnosis import TRUSTED_FLOORS, Floor
from invbench.harness import machine, throttling
from invbench.harness.blocks import MIN_ROUNDS, Budget, Sampler, measure
from invbench.harness.clock import Clock, Flush
from invbench.harness.device_clock import clock_for
from invbench.harness.floors import floor_in_use
from invbench.harness.settings import Watch, describe_failure
from invbench.harness.steps import Step
from invbench.ops.autotuning import autotuning
from invbench.results import Result, Status
from invbench.results.quantities import NOISY, Samples

SLOWED_DOWN = (
    "the GPU was slowed down by its temperature or a fault; cool it, wait, or cap its power (nvidia-smi -pl), and see "
    "nvidia-smi -q -d PERFORMANCE"
)


class Labelled(Protocol):
    """A subject, as far as timing cares."""

    @property
    def label(self) -> str:
        """One name for progress and errors."""


class HowToTime(Protocol):
    """The settings that timing needs."""

    @property
    def budget(self) -> Budget:
        """How long and how precisely."""

    @property
    def clock(self) -> str:
        """Eager or device."""

    @property
    def cache(self) -> str:
        """Hot or cold."""

    @property
    def seed(self) -> int:
        """Of the order of blocks."""


Named = TypeVar("Named", bound=Labelled)
Called = TypeVar("Called", bound=Step)


@dataclass
class Arm(Generic[Named, Called]):
    """A subject, what is known of it so far, and how to call it where it can be called."""

    subject: Named
    result: Result
    runnable: Called | None = None

    def fail(self, status: Status, reason: str) -> None:
        """It ends here, with a reason and no latency."""
        self.result = replace(self.result, status=status, reason=reason, latency=None)
        self.runnable = None

    def raised(self, error: BaseException) -> None:
        """It ends here, since it has raised."""
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        self.fail(Status.OOM if out_of_memory else Status.ERROR, describe_failure(error))


@dataclass
class Run:
    """What all arms of a run are measured with, and where its time goes.

    launch: which one it is, where several processes measure the same, so that each draws an order of blocks of its own.
    seconds: by phase, and ``timed``, the part of it that was spent inside timed blocks or warm-up.
    """

    settings: HowToTime
    device: torch.device
    tell: Callable[[str], None]
    watch: Watch
    launch: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"timed": 0.0})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def clock(self) -> Clock:
        """A new clock of the settings' kind, for one subject; what it captures is released with it."""
        return clock_for(self.device, self.settings.clock, self._flush)

    @cached_property
    def floor(self) -> Floor:
        """What the clock in use reads for next to nothing."""
        self.tell("measuring the floor of the clock")
        with self.phase("floor"):
            return floor_in_use(self.device, self.settings.clock, self.settings.cache, self._flush)

    @cached_property
    def _flush(self) -> Callable[[], object] | None:
        """What makes the caches cold, one for all clocks; None where they stay hot."""
        return Flush(self.device) if self.settings.cache == "cold" else None

    def watched(self, label: str, sampler: Sampler) -> Sampler:
        """A sampler that says who runs, and for how long."""

        def sample(calls: int) -> float:
            self.watch.running(label)
            with self.phase("timed"):
                return sampler(calls)

        return sample

    def peaks(self, dtype: str) -> dict[str, float]:
        """The machine's peaks now."""
        self.tell("measuring the machine's peaks")
        with self.phase("peaks"):
            return machine.measure_peaks(dtype, self.device)


def measure_arms(run: Run, arms: Sequence[Arm[Any, Any]], baseline: str | Mapping[str, str] | None) -> bool:
    """Fill in the latencies of the arms that are ready, in interleaved blocks; True if Ctrl-C ended it early.

    baseline: the label of what ratios are to; one for all, or by label.
    """
    floor = run.floor
    ready = {arm.subject.label: arm for arm in arms if arm.runnable is not None}
    clocks = {label: run.clock() for label in ready}
    samplers = {
        label: run.watched(label, arm.runnable.sampler(clocks[label])) for label, arm in ready.items() if arm.runnable
    }
    run.tell("warming up")
    with throttling.watched(run.device) as watched:
        measurement = measure(
            samplers, run.settings.budget, run.settings.seed + run.launch, baseline,
            progress=lambda rounds, share: run.tell(f"measuring: round {rounds}, {min(1, share):.0%} of the budget"),
            throttling=watched,
        )  # fmt: skip
    run.watch.running("")
    for label, error in measurement.failures.items():
        run.watch.failed(label, error)
    for label, arm in ready.items():
        if label in measurement.failures:
            arm.raised(measurement.failures[label])
        elif label in measurement.samples:
            samples = replace(
                measurement.samples[label], clock=run.settings.clock, cache=run.settings.cache,
                launches=clocks[label].way, floor=floor.seconds,
            )  # fmt: skip
            arm.result = replace(arm.result, latency=samples)
        elif measurement.interrupted:
            arm.fail(Status.ERROR, "interrupted before its first block was done")
        else:
            arm.fail(Status.ERROR, f"all {measurement.discarded} rounds were discarded: {SLOWED_DOWN}")
    return measurement.interrupted


def with_warnings(result: Result, environment: Mapping[str, Any], launches: int = 1) -> Result:
    """The row with what makes its latency doubtful, each with what to do; of several launches, the interval of one is
    not told."""
    warnings = list(result.warnings)
    if result.latency is not None:
        interval = result.latency.interval
        if launches == 1 and interval.half_width > NOISY:
            limit = f"the interval is wider than +-{NOISY:.0%} of the median"
            warnings.append(f"noisy: {limit}; stop other programs or raise --budget")
        if launches == 1 and interval.count < MIN_ROUNDS:
            warnings.append(f"only {interval.count} round(s): the interval is their range; raise --budget")
        warnings += [*_too_short(result, result.latency), *_slowed_down(result.latency)]
        warnings += machine.advice(dict(environment))
    return replace(result, warnings=tuple(warnings))


def _too_short(result: Result, latency: Samples) -> Iterator[str]:
    if latency.floor is not None and latency.interval.median < TRUSTED_FLOORS * latency.floor:
        could_be_device = latency.clock == "eager" and result.case.device.startswith("cuda")
        remedy = "use --clock device, or a larger --N" if could_be_device else "use a larger --N"
        times = f"{TRUSTED_FLOORS} times the {1e6 * latency.floor:.2g} us that the {latency.clock} clock reads"
        yield f"shorter than {times} for next to nothing, so that a part of it is the clock: {remedy}"


def _slowed_down(latency: Samples) -> Iterator[str]:
    if latency.discarded:
        kept = "which ended the measurement early" if latency.stop == "throttled" else "and repeated"
        yield f"{latency.discarded} round(s) were discarded, {kept}: {SLOWED_DOWN}"
    if latency.power_capped and any(latency.power_capped):
        share = f"{sum(latency.power_capped)} of {len(latency.power_capped)} blocks"
        remedy = "trust ratios of rows that were capped alike, or lock lower clocks (nvidia-smi -lgc)"
        yield f"the power cap held the GPU's clocks down in {share}: {remedy}"


@contextlib.contextmanager
def algorithms_by_trying(device: torch.device, allowed: bool) -> Iterator[None]:
    """cuDNN and our own kernels may choose by trying, at a first call of each size, or may not."""
    with cudnn_autotune(device, allowed), autotuning(allowed):
        yield


@contextlib.contextmanager
def cudnn_autotune(device: torch.device, allowed: bool) -> Iterator[None]:
    """cuDNN may choose the fastest algorithm for the convolutions; the setting is put back afterwards."""
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
