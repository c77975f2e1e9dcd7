"""Before training: each network is counted, compiled, warmed up and proved right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from invbench.models import SUBJECTS
from invbench.models.counting import count
from invbench.ops import BACKENDS
from invbench.results import Result, Status
from invbench.spec import TrainingCase
from invbench.training import TrainingSubject
from invbench.training.learning import Data, Learner, build, own_randomness
from invbench.training.proving import check
from invbench.training.session import Session, TrainingArm

WARM_UP_STEPS = 3


def prepare(session: Session, arms: Sequence[TrainingArm]) -> None:
    """Count, compile and prove each network."""
    case, seed = session.case, session.settings.seed
    slow = {"compiled": " (torch.compile can take minutes the first time)", "numba": " (compiled on first use)"}
    for arm in arms:
        subject = arm.subject
        session.watcher(f"preparing {subject.label}{slow.get(subject.backend, '')}")
        try:
            arm.result = _counted(arm.result, seed)
            backend = BACKENDS.get(subject.backend)
            refusal = backend.refusal(session.device.type, case.dtype) if backend else None
            if refusal:
                arm.fail(Status.UNAVAILABLE, refusal)
                continue
            arm.result = replace(arm.result, first_call=_warm_up(session, subject))
            _prove(arm, seed)
        except Exception as error:  # noqa: BLE001 -- a failed row is a result; the others go on
            arm.raised(error)


def _counted(row: Result, seed: int) -> Result:
    """The row with the counts of one image."""
    case = row.case
    assert isinstance(case, TrainingCase)
    network = build(row.subject, "naive", replace(case, device="cpu"), seed)
    counts = count(network, case.H, case.W, SUBJECTS[row.subject].images.channels)
    return replace(
        row, params=counts.params, params_trainable=counts.params_trainable, macs=counts.macs,
        macs_mmcv=counts.macs_mmcv, activations=counts.activations, flop=case.mode.flop_per_mac * counts.macs,
    )  # fmt: skip


def _warm_up(session: Session, subject: TrainingSubject) -> float:
    """Some steps of a network that is thrown away, of every size of batch, and its validation; the first one's seconds.

    A few are enough to compile, to choose algorithms and to fill caches; each epoch is a block of many more.
    """
    case, data, settings = session.case, session.data, session.settings
    learner = Learner(subject, case, settings.seed, settings.learning_rate)
    with own_randomness(case.device, "warm-up"):
        seconds = [
            session.clock.sample(lambda: (data.train_x[: case.N], data.train_y[: case.N]), _stepping(learner), 1)
            for _ in range(WARM_UP_STEPS)
        ]
        left = len(data.train_y) % case.N
        if left:
            learner.step(data.train_x[:left], data.train_y[:left])
        learner.validate(_some(data, case.N))
    return seconds[0]


def _stepping(learner: Learner) -> Any:
    return lambda batch: learner.step(*batch)


def _some(data: Data, N: int) -> Data:
    """A whole batch for validation, and the last one."""
    last = max(0, len(data.validation_y) // N * N)
    first = min(N, last)
    return replace(
        data,
        validation_x=torch.cat([data.validation_x[:first], data.validation_x[last:]]),
        validation_y=torch.cat([data.validation_y[:first], data.validation_y[last:]]),
    )


def _prove(arm: TrainingArm, seed: int) -> None:
    case = arm.result.case
    assert isinstance(case, TrainingCase)
    found = check(arm.subject, case, seed)
    relative = found.relative if math.isfinite(found.relative) else None  # JSON has no NaN
    arm.result = replace(arm.result, error={"relative": relative, "tolerance": found.tolerance})
    if not found.is_close:
        arm.fail(
            Status.MISMATCH,
            f"differs from the float64 reference by {found.relative:.1e} of its size: expected at most "
            f"{found.tolerance:.0e}; do not train with this backend",
        )
