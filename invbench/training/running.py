"""Networks trained side by side, from nothing to rows: build, prove, warm up, train, and only then tell.

All networks of a seed take turns, an epoch each, in an order drawn anew for each epoch, so that whatever the machine
does besides falls on all of them alike and times can be compared as pairs; seeds come one after the other.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from invbench.diagnosis import TRUSTED_FLOORS, Floor
from invbench.harness import machine, memory, server, throttling
from invbench.harness.blocks import MIN_ROUNDS, Slowdown, Throttling
from invbench.harness.clock import Clock, eager_clock
from invbench.harness.floors import floor_in_use
from invbench.harness.point import Point
from invbench.harness.steps import Step
from invbench.harness.timing import NOISY, SLOWED_DOWN, Arm, algorithms_by_trying
from invbench.models import SUBJECTS
from invbench.models.counting import count
from invbench.ops import BACKENDS
from invbench.ops.functional import choose_backend
from invbench.results import Result, Status, machine_class
from invbench.results.quantities import Memory, Samples, Training
from invbench.spec import BackendUnavailableError, InvbenchError, TrainingCase
from invbench.training import TrainingSubject, TrainSettings, Unwatched, Watcher, baseline_of, family_of
from invbench.training.checkpoints import CheckpointError, Checkpoints, open_checkpoints
from invbench.training.data_sets import Images
from invbench.training.learning import Data, Epoch, Learner, Loss, TrainingJob, build, history_of, own_randomness
from invbench.training.proving import check
from invbench.verdict import with_ratio

WARM_UP_STEPS = 3
HASHED = 61  # one image in so many: enough to tell one data set from another


@dataclass
class TrainingArm(Arm[TrainingSubject, Step]):
    """A network, what is known of it so far, and by seed the epochs that it has behind it."""

    histories: dict[int, list[Epoch]] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether it is trained."""
        return self.result.status is Status.OK


@dataclass
class Session:
    """What all networks of a run are trained with. saved: where each was, by subject and seed."""

    case: TrainingCase
    settings: TrainSettings
    device: torch.device
    data: Data
    watcher: Watcher
    checkpoints: Checkpoints | None
    saved: dict[tuple[TrainingSubject, int], dict[str, Any]] = field(default_factory=dict)
    throttling: Throttling | None = None

    @property
    def clock(self) -> Clock:
        """Launches included; on a GPU by events around each step, synchronised before and after."""
        return eager_clock(self.device)


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
    machine.set_threads(case.threads)
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
        _prepare(session, arms)
        watcher("measuring the machine's peaks")
        peaks = machine.measure_peaks(case.dtype, device)
        floor = floor_in_use(device, "eager", "hot", None)
        environment["floor"] = asdict(floor)
        session.throttling = stack.enter_context(throttling.watched(device))
        interrupted = _train(session, arms)
        if interrupted and not any(arm.histories for arm in arms):
            raise KeyboardInterrupt
        _tell_training(session, arms, floor, interrupted)
        try:
            if not interrupted:
                _measure_memory(session, arms)
        except KeyboardInterrupt:  # what was trained is kept
            interrupted = True
    rows = [_with_warnings(arm, environment) for arm in arms]
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
    """The row before anything is known, but for what others say of the network on the same images."""
    published = SUBJECTS[subject.model].published if family_of(case.data_set) == case.data_set else None
    return Result(
        subject.model, subject.backend, case, pair=subject.pair, baseline=baseline_of(case.data_set),
        published=asdict(published) if published else None,
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


# --- Before training ---


def _prepare(session: Session, arms: Sequence[TrainingArm]) -> None:
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


# --- After training ---


def _tell_training(session: Session, arms: Sequence[TrainingArm], floor: Floor, interrupted: bool) -> None:
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


def _measure_memory(session: Session, arms: Sequence[TrainingArm]) -> None:
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


def _with_warnings(arm: TrainingArm, environment: dict[str, Any]) -> Result:
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


# --- What a training is known by ---


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
