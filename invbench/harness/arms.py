"""One row of a point on its way: built, called for the first time, and proved right before it is timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from invbench.attention.operators import OPERATORS, flex_refusal
from invbench.cost import held_bytes
from invbench.harness import machine
from invbench.harness.blocks import SHORTEST_SAMPLE, Sampler
from invbench.harness.settings import FLEX, INVOLUTION, Settings, Subject, Unwatched, Watch, blank_row
from invbench.harness.steps import Agreement
from invbench.harness.subjects import Runnable, check
from invbench.harness.timing import Arm
from invbench.ops import BACKENDS
from invbench.results import Result, Status
from invbench.spec import LAYOUTS, Case, Scope

HOPELESS = 2.0  # a layout that is so many times slower, twice, needs no more trials
LEAST_TRIALS, MOST_TRIALS = 3, 25
TRIAL_SECONDS = 0.15  # for the trials of all layouts, once there are the fewest
ROOM = 0.95  # share of the free memory that a point may plan with

Skipped = Mapping[str, tuple[Status, str]]


OperatorArm = Arm[Subject, Runnable]


@dataclass(frozen=True)
class Preparation:
    """What all arms of a point share while they are prepared.

    sampler: of a runnable, whose samples count as warm-up. references: float64 results so far, by operator. skipped:
    labels that are not to be run at all, and why. layout: of every subject; without it that of the case for involution
    and attention, and for convolutions the faster one.
    """

    case: Case
    settings: Settings
    device: torch.device
    sampler: Callable[[Runnable], Sampler]
    watch: Watch = field(default_factory=Unwatched)
    skipped: Skipped = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)
    layout: str | None = None

    def arm(self, subject: Subject) -> OperatorArm:
        """Build, call for the first time, and prove right; whatever fails makes the row's status and reason."""
        arm = OperatorArm(subject, blank_row(subject, self.case))
        meaningless = self._meaningless(subject)
        if meaningless is not None:
            arm.result = Result(subject.name, subject.backend, self.case)  # its closed forms mean nothing, either
            arm.fail(Status.UNAVAILABLE, meaningless)
            return arm
        refusal = self._refusal(subject)
        if refusal is not None:
            arm.fail(*refusal)
            return arm
        self.watch.running(subject.label)
        try:
            prepared = [self._first_call(subject, layout) for layout in self._layouts(subject)]
            runnable, first_call, agreement = prepared[_fastest([self.sampler(ready[0]) for ready in prepared])]
        except (Exception, SystemExit) as failure:  # noqa: BLE001 -- a failed row is a result; the others go on
            arm.raised(failure)
            self.watch.failed(subject.label, failure)
        else:
            self._record(arm, runnable, first_call, agreement)
        self.watch.running("")  # not where the process ends: it is this subject that has ended it
        return arm

    def _refusal(self, subject: Subject) -> tuple[Status, str] | None:
        if subject.label in self.skipped:
            return self.skipped[subject.label]
        backend = BACKENDS.get(subject.backend)
        refusal = backend.refusal(self.device.type, self.case.dtype) if backend else None
        if subject.backend == FLEX:
            refusal = flex_refusal(self.device.type, self.case.dtype, self.case.layer)
        if refusal:
            return Status.UNAVAILABLE, refusal
        if subject.factory is not None:
            return None
        free = machine.free_bytes(self.device)
        needed = held_bytes(subject.name, subject.backend, self.case)
        if free is not None and needed > ROOM * free:  # what earlier subjects have freed may be kept by the allocator
            machine.give_back(str(self.device))
            free = machine.free_bytes(self.device)
        if free is not None and needed > ROOM * free:
            reason = f"needs about {gib(needed)}: {gib(free)} are free on {self.device}; use a smaller N, H or W"
            return Status.OOM, reason
        return None

    def _meaningless(self, subject: Subject) -> str | None:
        """Why there is no such operator at this point, on any device, or None."""
        operator = OPERATORS.get(subject.name)
        return operator.refusal(self.case.layer, self.case.H, self.case.W) if operator else None

    def _layouts(self, subject: Subject) -> tuple[str, ...]:
        if self.layout:
            return (self.layout,)
        return (self.case.layout,) if subject.name in (INVOLUTION, *OPERATORS) else LAYOUTS

    def _first_call(self, subject: Subject, layout: str) -> tuple[Runnable, float, Agreement | None]:
        runnable = Runnable(subject, self.case, self.settings.seed, layout)
        started = time.perf_counter()
        results = runnable.results()
        if self.case.device != "cpu":
            torch.accelerator.synchronize(self.case.device)
        first_call = time.perf_counter() - started
        return runnable, first_call, check(runnable, self.references, results)

    def _record(self, arm: OperatorArm, runnable: Runnable, first_call: float, agreement: Agreement | None) -> None:
        chosen = None if arm.subject.name in (INVOLUTION, *OPERATORS) else runnable.layout
        arm.result = replace(arm.result, first_call=first_call, chosen_layout=chosen)
        arm.runnable = runnable
        if runnable.module is not None and arm.result.params is None:
            arm.result = replace(arm.result, params=sum(p.numel() for p in runnable.module.parameters()))
        backend, layer = BACKENDS.get(arm.subject.backend), self.case.layer
        if backend and backend.fused and self.case.scope is Scope.LAYER:
            size = self.case.H, self.case.W
            refusal = backend.fused.refusal(layer, self.case.dtype, layer.hidden_channels, *size)
            if refusal:
                arm.result = replace(arm.result, warnings=(f"its weight is made in memory: {refusal}",))
        if agreement is None:
            warning = "not checked: it does not run in float64, so that nothing says whether its results are right"
            arm.result = replace(arm.result, warnings=(*arm.result.warnings, warning))
            return
        relative = agreement.relative if math.isfinite(agreement.relative) else None  # JSON has no NaN
        arm.result = replace(arm.result, error={"relative": relative, "tolerance": agreement.tolerance})
        if not agreement.is_close:
            reason = (
                f"differs from the float64 reference by {agreement.relative:.1e} of its size: "
                f"expected at most {agreement.tolerance:.0e}; do not use this backend for this configuration"
            )
            arm.fail(Status.MISMATCH, reason)


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"


def _fastest(samplers: list[Sampler], now: Callable[[], float] = time.perf_counter) -> int:
    """The index of the fastest of a few, by the medians of alternating samples; by one where that is clear enough.

    Layouts are often near each other, and what disturbs the machine for some milliseconds must not choose: a wrong
    choice moves every ratio of a point.
    """
    if len(samplers) == 1:
        return 0
    first = [sampler(1) for sampler in samplers]
    if max(first) >= HOPELESS * min(first):
        first = [sampler(1) for sampler in samplers]  # whoever was disturbed has another chance
    if max(first) >= HOPELESS * min(first):
        return first.index(min(first))
    calls = [max(1, math.ceil(SHORTEST_SAMPLE / max(seconds, 1e-9))) for seconds in first]
    times: list[list[float]] = [[] for _ in samplers]
    started = now()
    while len(times[0]) < LEAST_TRIALS or (len(times[0]) < MOST_TRIALS and now() - started < TRIAL_SECONDS):
        for each, sampler, count in zip(times, samplers, calls, strict=True):
            each.append(sampler(count))
    medians = [statistics.median(each) for each in times]
    return medians.index(min(medians))
