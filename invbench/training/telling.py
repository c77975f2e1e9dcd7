"""After training: what each network learned, what a step takes, and what makes that doubtful."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from invbench.diagnosis import TRUSTED_FLOORS, Floor
from invbench.harness import machine, memory, server
from invbench.harness.blocks import MIN_ROUNDS
from invbench.harness.timing import SLOWED_DOWN
from invbench.results import Result, Status
from invbench.results.quantities import NOISY, Memory, Samples, Training
from invbench.training import TrainingSubject
from invbench.training.learning import Loss, TrainingJob, own_randomness
from invbench.training.session import Session, TrainingArm


def tell_training(session: Session, arms: Sequence[TrainingArm], floor: Floor, interrupted: bool) -> None:
    """Fill in what each network learned, and the latency of a step in blocks of an epoch."""
    seeds, epochs = session.settings.all_seeds(), session.case.epochs
    for arm in arms:
        histories = [arm.histories[seed] for seed in seeds if arm.histories.get(seed)]
        whole = [history for history in histories if len(history) == epochs]
        if histories:
            training = Training(
                accuracy=tuple(tuple(epoch.accuracy for epoch in history) for history in histories),
                loss=tuple(tuple(epoch.loss for epoch in history) for history in histories),
                seconds=tuple(sum(epoch.seconds for epoch in history) for history in whole),
                epochs=epochs,
            )
            arm.result = replace(arm.result, training=training)
        if not arm.is_ready:
            continue
        if not histories:
            arm.fail(Status.ERROR, "interrupted before its first epoch was done")
            continue
        blocks = [epoch for history in histories for epoch in history]
        capped = [epoch.capped for epoch in blocks if epoch.capped is not None]
        latency = Samples(
            tuple(epoch.steps for epoch in blocks), clock="eager", cache="hot",
            stop="interrupted" if interrupted and len(whole) < len(seeds) else "epochs", floor=floor.seconds,
            power_capped=tuple(capped) if len(capped) == len(blocks) else None,
        )  # fmt: skip
        arm.result = replace(arm.result, latency=latency, memory=memory.UNKNOWN)


def measure_memory(session: Session, arms: Sequence[TrainingArm]) -> None:
    """Fill in the peaks of a training step, and what it keeps for its backward pass."""
    jobs = {arm.subject: TrainingJob(arm.subject, session.case, session.settings.seed) for arm in arms if arm.is_ready}
    peaks: Mapping[TrainingSubject, Memory] = {}
    if jobs and session.device.type == "cpu":
        session.watcher("measuring peak memory, each network in a process of its own")
        server.start(tuple(subject.backend for subject in jobs))
        peaks = memory.cpu_peaks(jobs.values(), machine.usable_cores())
    for arm in arms:
        if arm.subject in jobs:
            found = peaks.get(arm.subject, memory.UNKNOWN)
            with own_randomness(session.case.device, "memory"), suppress(torch.OutOfMemoryError, MemoryError):
                found = _memory_of(jobs[arm.subject], found, session.device)
            arm.result = replace(arm.result, memory=found)


def _memory_of(job: TrainingJob, known: Memory, device: torch.device) -> Memory:
    """known: what a process of its own has found, if there was one."""
    step = job.step()
    if device.type == "cuda":
        step.call()  # what a first call keeps for good is not the step's
        known = memory.cuda_peak(step, device)
    assert isinstance(step.function, Loss)
    besides = [*step.inputs, *step.differentiated, *step.function.buffers()]
    return replace(known, kept=memory.kept_bytes(step.forward, besides))


def with_warnings(arm: TrainingArm, environment: dict[str, Any]) -> Result:
    """The row with what makes its latency doubtful, each with what to do."""
    result, latency = arm.result, arm.result.latency
    if latency is None:
        return result
    warnings = []
    interval = latency.interval
    if interval.half_width > NOISY:
        limit = f"the interval is wider than +-{NOISY:.0%} of the median"
        warnings.append(f"noisy: {limit}; stop other programs, or train for more --epochs")
    if interval.count < MIN_ROUNDS:
        warnings.append(f"only {interval.count} epoch(s): the interval is their range; train for more --epochs")
    if latency.floor is not None and interval.median < TRUSTED_FLOORS * latency.floor:
        times = f"{TRUSTED_FLOORS} times the {1e6 * latency.floor:.2g} us that the clock reads"
        warnings.append(f"shorter than {times} for next to nothing, so that a part of it is the clock: a larger --N")
    spoiled = sum(bool(epoch.spoiled) for history in arm.histories.values() for epoch in history)
    if spoiled:
        warnings.append(f"{spoiled} epoch(s) are among the times all the same: {SLOWED_DOWN}")
    if latency.power_capped and any(latency.power_capped):
        share = f"{sum(latency.power_capped)} of {len(latency.power_capped)} epochs"
        remedy = "trust ratios of rows that were capped alike, or lock lower clocks (nvidia-smi -lgc)"
        warnings.append(f"the power cap held the GPU's clocks down in {share}: {remedy}")
    if result.memory is not None and result.memory.peak is None:
        warnings.append("peak memory is not known: this system does not tell it, or training was interrupted")
    return replace(result, warnings=(*result.warnings, *warnings, *machine.advice(environment)))
