"""Networks trained side by side, from nothing to rows: build, prove, warm up, train, and only then tell.

All networks of a seed take turns, an epoch each, in an order drawn anew for each epoch, so that whatever the machine
does besides falls on all of them alike and times can be compared as pairs; seeds come one after the other.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from invbench.harness import machine, throttling
from invbench.harness.blocks import Slowdown
from invbench.harness.floors import floor_in_use
from invbench.harness.point import Point
from invbench.harness.timing import algorithms_by_trying
from invbench.models import SUBJECTS
from invbench.ops import BACKENDS
from invbench.ops.functional import choose_backend
from invbench.results import Result, machine_class
from invbench.spec import BackendUnavailableError, InvbenchError, TrainingCase
from invbench.training import TrainingSubject, TrainSettings, Unwatched, Watcher, baseline_of
from invbench.training.checkpoints import CheckpointError, open_checkpoints
from invbench.training.data_sets import Images
from invbench.training.learning import Data, Epoch, Learner, history_of
from invbench.training.preparing import prepare
from invbench.training.session import Session, TrainingArm
from invbench.training.telling import measure_memory, tell_training, with_warnings
from invbench.verdict import with_ratio

HASHED = 61  # one image in so many: enough to tell one data set from another


def train_networks(
    case: TrainingCase,
    settings: TrainSettings,
    images: Images,
    watcher: Watcher | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> Point:
    """Train all networks of the settings on the images, and say what came of it.

    folder: where checkpoints are kept, if they are. resume: go on from those that are there. Ctrl-C while networks are
    trained ends it early, with what there is.

    Raises InvbenchError, before anything is built, for what cannot be trained here, and for checkpoints of another run.
    """
    watcher = watcher or Unwatched()
    device = machine.check_device(case.device)
    case = replace(case, device=str(device))
    machine.check_threads(case.threads)
    _refuse(case, settings, images)
    machine.settle(case.threads)
    load = machine.load()  # before our own work counts
    with ExitStack() as stack:
        stack.enter_context(algorithms_by_trying(device, settings.autotune))
        environment = machine.fingerprint(device)
        environment["cpu"]["load"] = load
        checkpoints = None
        if folder is not None:
            run = identity(case, settings, images, environment)
            checkpoints = stack.enter_context(open_checkpoints(folder, resume, run))
        session = Session(case, settings, device, Data.of(images, case), watcher, checkpoints)
        arms = [TrainingArm(subject, _blank(subject, case)) for subject in settings.subjects(case.data_set)]
        _restore(session, arms)
        prepare(session, arms)
        watcher("measuring the machine's peaks")
        peaks = machine.measure_peaks(case.dtype, device)
        floor = floor_in_use(device, "eager", "hot", None)
        environment["floor"] = asdict(floor)
        session.throttling = stack.enter_context(throttling.watched(device))
        interrupted = _train(session, arms)
        if interrupted and not any(arm.histories for arm in arms):
            raise KeyboardInterrupt
        tell_training(session, arms, floor, interrupted)
        try:
            if not interrupted:
                measure_memory(session, arms)
        except KeyboardInterrupt:  # what was trained is kept
            interrupted = True
    rows = [with_warnings(arm, environment) for arm in arms]
    return Point(tuple(with_ratio(row, rows[0]) for row in rows), peaks, environment, interrupted, {})


def complete(
    case: TrainingCase, settings: TrainSettings, device: str | None, threads: int | None
) -> tuple[TrainingCase, TrainSettings]:
    """What was left open: cuda where there is one, else cpu; all usable cores; "auto" as the backend it chooses here.

    Raises BackendUnavailableError where "auto" finds none.
    """
    name = machine.full_name(device)
    case = replace(case, device=name, threads=threads or machine.usable_cores())
    place = torch.empty(0, device=machine.check_device(name), dtype=getattr(torch, case.dtype))
    chosen = (choose_backend(place) if backend == "auto" else backend for backend in settings.backends)
    return case, replace(settings, backends=tuple(dict.fromkeys(chosen)))


def _refuse(case: TrainingCase, settings: TrainSettings, images: Images) -> None:
    device = torch.device(case.device).type
    refusals = {name: BACKENDS[name].refusal(device, case.dtype) for name in settings.asked_for}
    if refusals and all(refusals.values()):
        raise BackendUnavailableError("; ".join(f"--backend {name}: {why}" for name, why in refusals.items()))
    if len(images.train_y) < case.N:
        raise InvbenchError(
            f"--N must be at most the {len(images.train_y)} images that there are to learn from, so that a step has a "
            f"whole batch: got {case.N}; try 128"
        )


def _blank(subject: TrainingSubject, case: TrainingCase) -> Result:
    """The row before anything is known, but for what others say of the network, which also tells on which images."""
    published = SUBJECTS[subject.model].published
    return Result(
        subject.model, subject.backend, case, pair=subject.pair, baseline=baseline_of(case.data_set),
        published=published.to_dict() if published else None,
    )  # fmt: skip


def _restore(session: Session, arms: Sequence[TrainingArm]) -> None:
    """Find what is in the checkpoints, all of it now, so that what cannot be read is told at once."""
    if session.checkpoints is None:
        return
    for arm in arms:
        for seed in session.settings.all_seeds():
            state = session.checkpoints.load(arm.subject, seed)
            if state is not None:
                session.saved[arm.subject, seed] = state
                arm.histories[seed] = history_of(state)
    if session.saved:
        epochs = sum(len(history) for arm in arms for history in arm.histories.values())
        everything = session.case.epochs * session.settings.seeds * len(arms)
        session.watcher.keep(f"{epochs} of {everything} epochs are in {session.checkpoints.folder} already")


# --- Training ---


def _train(session: Session, arms: Sequence[TrainingArm]) -> bool:
    """Train the networks that are ready; True if Ctrl-C ended it early."""
    case, settings = session.case, session.settings
    ready = [arm for arm in arms if arm.is_ready]
    done = [sum(map(len, arm.histories.values())) for arm in ready]
    session.watcher.begin([arm.subject.label for arm in ready], case.epochs * settings.seeds, done)
    try:
        for seed in settings.all_seeds():
            learners: dict[TrainingSubject, Learner] = {}
            for number in range(case.epochs):
                turns = list(ready)
                random.Random(f"turns {seed} {number}").shuffle(turns)
                for arm in turns:
                    if arm.is_ready and len(arm.histories.get(seed, ())) <= number:
                        _turn(session, arm, seed, learners)
    except KeyboardInterrupt:
        return True
    return False


def _turn(session: Session, arm: TrainingArm, seed: int, learners: dict[TrainingSubject, Learner]) -> None:
    """One epoch of one network. One that raises ends with its reason, and the others go on; but checkpoints that cannot
    be written end all, since what follows would be lost."""
    try:
        if arm.subject not in learners:
            learners[arm.subject] = _learner(session, arm.subject, seed)
        _epoch(session, arm, learners[arm.subject])
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 -- a failed row is a result
        learners.pop(arm.subject, None)
        arm.raised(error)
        session.watcher.failed(arm.subject.label, arm.result.reason or "")


def _learner(session: Session, subject: TrainingSubject, seed: int) -> Learner:
    """A network at its beginning, or where it was."""
    learner = Learner(subject, session.case, seed, session.settings.learning_rate)
    saved = session.saved.pop((subject, seed), None)
    if saved is not None:
        learner.restore(saved)
    return learner


def _epoch(session: Session, arm: TrainingArm, learner: Learner) -> None:
    """Train, validate, and keep what came of it."""
    label, watcher = arm.subject.label, session.watcher
    before = session.throttling.look() if session.throttling else None
    loss, steps, seconds = learner.train(session.data, session.clock, lambda share: watcher.step(label, share))
    slowdown = session.throttling.between(before, session.throttling.look()) if session.throttling else Slowdown()
    accuracy = learner.validate(session.data)
    learner.history.append(Epoch(loss, accuracy, tuple(steps), seconds, slowdown.capped, slowdown.spoiled))
    arm.histories[learner.seed] = learner.history
    if session.checkpoints is not None:
        session.checkpoints.save(arm.subject, learner.seed, learner.state())
    watcher.epoch(label, loss, accuracy)


# --- What a training is known by ---


def identity(
    case: TrainingCase, settings: TrainSettings, images: Images, environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same for a training to go on as if it had not stopped, by the names that people know."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in ("asked_for", "pairs", "backends")}
    return {
        **case.to_dict(), **chosen,
        "networks": [subject.label for subject in settings.subjects(case.data_set)],
        "images": _hash_of(images),
        "machine": machine_class(environment),
        "python": environment["python"], **environment["versions"],
        "source": f"{environment['source']}-{_source()}",
    }  # fmt: skip


def _hash_of(images: Images) -> str:
    """Of the labels and some of the images: enough to tell data sets and their versions apart."""
    found = hashlib.sha256()
    for x, y in ((images.train_x, images.train_y), (images.validation_x, images.validation_y)):
        found.update(repr(tuple(x.shape)).encode())
        found.update(y.contiguous().numpy().tobytes())
        found.update(x[::HASHED].contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def _source() -> str:
    """A hash of the code that trains; the fingerprint has that of what is trained."""
    text = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(text).hexdigest()[:12]
