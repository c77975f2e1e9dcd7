"""From prepared arms to timed rows: one run's rounds, where its time goes, and what its numbers are worth."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from invbench.harness import machine
from invbench.harness.blocks import MIN_ROUNDS, Budget, Sampler, measure
from invbench.harness.clock import Clock, clock_for
from invbench.harness.settings import Watch, describe_failure
from invbench.harness.steps import Step
from invbench.results import Result, Status

NOISY = 0.05  # half-width of the interval, as a share of the median


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

    seconds: by phase, and ``timed``, the part of it that was spent inside timed blocks or warm-up.
    """

    settings: HowToTime
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

    def clock(self) -> Clock:
        """A new clock of the settings' kind."""
        return clock_for(self.device, self.settings.cache)

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
    clock = run.clock()
    ready = {arm.subject.label: arm for arm in arms if arm.runnable is not None}
    samplers = {label: run.watched(label, arm.runnable.sampler(clock)) for label, arm in ready.items() if arm.runnable}
    run.tell("warming up")
    measurement = measure(
        samplers, run.settings.budget, run.settings.seed, baseline,
        progress=lambda rounds, share: run.tell(f"measuring: round {rounds}, {min(1, share):.0%} of the budget"),
    )  # fmt: skip
    run.watch.running("")
    for label, error in measurement.failures.items():
        run.watch.failed(label, error)
    for label, arm in ready.items():
        if label in measurement.failures:
            arm.raised(measurement.failures[label])
        elif label in measurement.samples:
            samples = replace(measurement.samples[label], clock=run.settings.clock, cache=run.settings.cache)
            arm.result = replace(arm.result, latency=samples)
        else:
            arm.fail(Status.ERROR, "interrupted before its first block was done")
    return measurement.interrupted


def with_warnings(result: Result, environment: Mapping[str, Any]) -> Result:
    """The row with what makes its latency doubtful, each with what to do."""
    warnings = list(result.warnings)
    if result.latency is not None:
        interval = result.latency.interval
        if interval.half_width > NOISY:
            limit = f"the interval is wider than +-{NOISY:.0%} of the median"
            warnings.append(f"noisy: {limit}; stop other programs or raise --budget")
        if interval.count < MIN_ROUNDS:
            warnings.append(f"only {interval.count} round(s): the interval is their range; raise --budget")
        warnings += machine.advice(dict(environment))
    return replace(result, warnings=tuple(warnings))


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
