"""Networks side by side, from nothing to rows: build, prove, warm up, measure, and only then tell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import torch

from invbench.harness import machine, memory, server
from invbench.harness.networks import TORCH, NetworkSettings, NetworkSubject, require_trainable
from invbench.harness.networks.breakdown import break_down, is_possible
from invbench.harness.networks.build import NetworkJob, Networks, Original, custom_model, new
from invbench.harness.networks.proving import Reference, check
from invbench.harness.point import Point
from invbench.harness.settings import Unwatched, check_clock, describe_failure
from invbench.harness.steps import Step
from invbench.harness.timing import Arm, Run, algorithms_by_trying, measure_arms, with_warnings
from invbench.models import Model
from invbench.models.counting import Counts, count
from invbench.ops import BACKENDS
from invbench.ops.functional import choose_backend
from invbench.results import Result, Status
from invbench.results.quantities import Memory
from invbench.spec import FREE, BackendUnavailableError, InvbenchError, Mode, NetworkCase, Regime
from invbench.verdict.networks import with_network_ratios

NetworkArm = Arm[NetworkSubject, Step]


def compare_networks(
    case: NetworkCase, settings: NetworkSettings, tell: Callable[[str], None] = lambda _: None
) -> Point:
    """Measure networks at one point, all rows interleaved.

    tell: told what is being waited for. Raises InvbenchError, before anything is built, for what cannot be measured
    here.
    """
    device = machine.check_device(case.device)
    case = replace(case, device=str(device))
    check_clock(settings.clock, device.type)
    machine.check_threads(case.threads)
    require_trainable(case, settings)
    _refuse(settings, device, case.dtype)
    run = Run(settings, device, tell, Unwatched())
    networks = Networks(case, settings.seed)
    machine.settle(case.threads)
    load = machine.load()  # before our own work counts
    # First, and in as many processes as there are cores: what they compile, this process finds in torch's cache.
    peaks_of = _cpu_memory(run, networks, settings) if device.type == "cpu" else {}
    with algorithms_by_trying(device, settings.autotune):
        with run.phase("prepare"):
            arms = _prepared(run, networks, settings)
        peaks = run.peaks(case.dtype)
        environment = machine.fingerprint(device)
        environment["cpu"]["load"] = load
        with run.phase("measure"):
            interrupted = measure_arms(run, arms, settings.baselines(case.mode))
        environment["floor"] = asdict(run.floor)
        try:
            _fill_memory(run, arms, peaks_of)
            if settings.breakdown and not interrupted:
                _break_down(run, arms)
        except KeyboardInterrupt:  # the latencies are kept
            interrupted = True
    results = [with_warnings(arm.result, environment) for arm in arms]
    return Point(with_network_ratios(results), peaks, environment, interrupted, run.seconds)


def count_networks(case: NetworkCase, settings: NetworkSettings) -> Point:
    """The counts of each network and nothing timed: a row each, ``ok`` and without latency."""
    rows = []
    for name in settings.networks():
        model = settings.model(name)
        with torch.device("meta" if model.suite else "cpu"):  # a user's network may need its numbers
            network = new(model, case.stem_kernel_size)
        backend = settings.backends[0] if model.has_involution else TORCH
        row = Result(name, backend, case, baseline=settings.baseline_of(name))
        try:
            counts = count(network, case.H, case.W, model.images.channels)
        except Exception as error:
            if model.suite or isinstance(error, InvbenchError):
                raise
            raise InvbenchError(
                f"--models {name}: it cannot be counted on an image of {case.H}x{case.W} ({describe_failure(error)})"
            ) from error
        rows.append(_counted(row, model, counts))
    return Point(with_network_ratios(rows), {}, machine.fingerprint(torch.device("cpu")), False, {})


def complete(
    case: NetworkCase, settings: NetworkSettings, device: str | None, threads: int | None
) -> tuple[NetworkCase, NetworkSettings]:
    """What was left open: cuda where there is one, else cpu; all usable cores; "auto" as the backend it chooses here;
    a user's networks.

    Raises BackendUnavailableError where "auto" finds none, and InvbenchError where a user's network cannot be had.
    """
    name = machine.full_name(device)
    case = replace(case, device=name, threads=threads or machine.usable_cores())
    place = torch.empty(0, device=machine.check_device(name), dtype=getattr(torch, case.dtype))
    chosen = (choose_backend(place) if backend == "auto" else backend for backend in settings.backends)
    asked = (*settings.models, *([settings.baseline] if settings.baseline else []))
    custom: dict[str, Model] = {}
    while missing := [each for each in asked if ":" in each and each not in custom]:
        custom |= {each: custom_model(each) for each in missing}
        asked = (*asked, *(model.counterpart for model in custom.values()))
    return case, replace(settings, backends=tuple(dict.fromkeys(chosen)), custom=tuple(custom.values()))


def _refuse(settings: NetworkSettings, device: torch.device, dtype: str) -> None:
    refusals = {name: BACKENDS[name].refusal(device.type, dtype) for name in settings.asked_for}
    if refusals and all(refusals.values()):
        raise BackendUnavailableError("; ".join(f"--backend {name}: {why}" for name, why in refusals.items()))


def _prepared(run: Run, networks: Networks, settings: NetworkSettings) -> list[NetworkArm]:
    case = networks.case
    originals: dict[tuple[str, bool], Original] = {}
    references: dict[int, Reference] = {}
    arms = []
    for subject in settings.subjects(case.mode):
        run.tell(f"preparing {subject.label}{_slow(subject)}")
        row = Result(subject.model, subject.backend, case, regime=subject.regime)
        arm = NetworkArm(subject, replace(row, baseline=settings.baseline_of(subject.model)))
        arms.append(arm)
        refusal = _refusal(subject, run.device.type, case.dtype)
        if refusal:
            arm.fail(Status.UNAVAILABLE, refusal)
            continue
        key = subject.model, subject.backend == FREE
        try:
            if key not in originals:
                originals[key] = networks.original(settings.model(subject.model), subject.backend == FREE)
            arm.result = _counted(arm.result, originals[key].model, originals[key].counts)
            _prove(arm, networks, originals[key], references, run.device)
        except Exception as error:  # noqa: BLE001 -- a failed row is a result; the others go on
            arm.raised(error)
    return arms


def _slow(subject: NetworkSubject) -> str:
    return " (torch.compile can take minutes the first time)" if subject.regime is Regime.COMPILED else ""


def _cpu_memory(run: Run, networks: Networks, settings: NetworkSettings) -> Mapping[NetworkSubject, Memory]:
    """The peaks of all rows that can run here, each in a process of its own."""
    case = networks.case
    subjects = [each for each in settings.subjects(case.mode) if not _refusal(each, run.device.type, case.dtype)]
    slow = next(filter(None, map(_slow, subjects)), "")
    run.tell(f"measuring peak memory, each row in a process of its own{slow}")
    subjects.sort(key=lambda each: each.regime is not Regime.COMPILED)  # what takes longest begins first
    jobs = [NetworkJob(subject, networks, settings.model(subject.model)) for subject in subjects]
    server.start(tuple({**dict.fromkeys(settings.backends), "compiled": None}))
    with run.phase("memory"):
        return memory.cpu_peaks(jobs, machine.usable_cores())


def _fill_memory(run: Run, arms: Sequence[NetworkArm], peaks: Mapping[NetworkSubject, Memory]) -> None:
    """What each row needs besides inputs and parameters, and what a training step keeps for its backward pass."""
    for arm in arms:
        if arm.runnable is None or arm.result.latency is None:
            continue
        step = arm.runnable
        found = peaks.get(arm.subject, memory.UNKNOWN)
        if run.device.type == "cuda":
            found = memory.cuda_peak(step, run.device)
        if step.mode is not Mode.FORWARD:
            besides = [*step.inputs, *step.differentiated, *_buffers(step)]
            found = replace(found, kept=memory.kept_bytes(step.forward, besides))
        arm.result = replace(arm.result, memory=found)


def _buffers(step: Step) -> Iterator[torch.Tensor]:
    if isinstance(step.function, torch.nn.Module):
        yield from step.function.buffers()


def _break_down(run: Run, arms: list[NetworkArm]) -> None:
    """Fill in where the time of a call goes."""
    run.tell("looking where the time goes")
    for arm in arms:
        if arm.runnable is None or arm.result.seconds is None:
            continue
        if is_possible(run.device):
            arm.result = replace(arm.result, breakdown=break_down(arm.runnable, arm.result.seconds))
        else:
            warning = f"no breakdown on {run.device.type}: it is for the CPU; use --device cpu"
            arm.result = replace(arm.result, warnings=(*arm.result.warnings, warning))


def _refusal(subject: NetworkSubject, device: str, dtype: str) -> str | None:
    """Why the row cannot run here: its backend, or torch.compile, which the backend of that name knows about."""
    names = [subject.backend, *(["compiled"] if subject.regime is Regime.COMPILED else [])]
    reasons = (BACKENDS[name].refusal(device, dtype) for name in names if name in BACKENDS)
    return next(filter(None, reasons), None)


def _prove(
    arm: NetworkArm, networks: Networks, original: Original, references: dict[int, Reference], device: torch.device
) -> None:
    """The first call, and whether it is right."""
    step = networks.step(original, arm.subject)
    started = time.perf_counter()
    outputs = step.results()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    first_call = time.perf_counter() - started
    found = check(networks, original, step, outputs, references)
    relative = found.relative if math.isfinite(found.relative) else None  # JSON has no NaN
    error = {"relative": relative, "tolerance": found.tolerance}
    arm.result = replace(arm.result, first_call=first_call, error=error)
    arm.runnable = step
    if not found.is_close:
        arm.fail(
            Status.MISMATCH,
            f"differs from the float64 reference by {found.relative:.1e} of its size: expected at most "
            f"{found.tolerance:.0e}; do not use this backend for this network",
        )


def _counted(row: Result, model: Model, counts: Counts) -> Result:
    """The row with the counts of one image, and what others say of the network."""
    published = model.published
    said = published.to_dict() if published else None
    return replace(
        row, params=counts.params, params_trainable=counts.params_trainable, macs=counts.macs,
        macs_mmcv=counts.macs_mmcv, activations=counts.activations, flop=Mode(row.case.mode).flop_per_mac * counts.macs,
        published=said if row.backend != FREE else None,
    )  # fmt: skip
