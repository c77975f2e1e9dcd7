"""The A/A noise of a machine: the same runnable twice, measured as a point measures its subjects.

Launches of identical code differ (where their memory lies, where their threads run), so besides this process fresh
ones are asked: ``python -m invbench.harness.noise`` measures one launch and prints it as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from invbench.diagnosis import Launch, Noise, SubjectNoise
from invbench.harness import machine
from invbench.harness.blocks import Budget, measure
from invbench.harness.clock import eager_clock
from invbench.harness.settings import INVOLUTION, Subject, describe_failure
from invbench.harness.subjects import Runnable
from invbench.ops import BACKENDS
from invbench.ops.functional import choose_backend
from invbench.spec import Case, InvbenchError, LayerSpec

# Stage 3 of RedNet-50 with four images: milliseconds on two cores, as most of what is measured.
POINT = Case(4, 14, 14, LayerSpec(256, 7, 16), layout="channels_last")
LAUNCHES = 3
LEAST_SECONDS = 2.0  # of budget for each launch, so that it has rounds enough for an interval
PATIENCE = 1.5  # budgets; after these no further launch is begun, since importing and compiling take long here
LONGEST_LAUNCH = 120  # seconds until a fresh process is given up
AGAIN = " again"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one launch measures, for how many seconds."""

    device: str
    threads: int
    seconds: float
    seed: int = 0

    @property
    def case(self) -> Case:
        """The point."""
        return replace(POINT, device=self.device, threads=self.threads)


Tell = Callable[[str], None]
Found = dict[str, Launch]


def measure_noise(
    device: torch.device,
    threads: int,
    budget: float,
    tell: Tell = lambda _: None,
    look: Callable[[], None] = lambda: None,
) -> Noise:
    """Measure the noise in this process and, where the budget and the machine allow, in fresh ones.

    budget: seconds of measuring, all launches together; preparing them comes on top. look: called between rounds.
    """
    count = max(1, min(LAUNCHES, int(budget / LEAST_SECONDS)))
    plan = Plan(str(device), threads, budget / count)
    began = time.perf_counter()

    def between_rounds(line: str) -> None:
        tell(f"measuring noise{line}")
        look()

    here, problems = measure_launch(plan, between_rounds)
    launches = [here]
    for index in range(1, count):
        if time.perf_counter() - began > PATIENCE * budget:
            break
        tell(f"measuring noise in a fresh process ({index + 1} of {count})")
        try:
            launches.append(_fresh_launch(Plan(plan.device, threads, plan.seconds, seed=index)))
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            problems.append(f"a fresh process could not measure ({describe_failure(error)})")
            break
    subjects = tuple(
        SubjectNoise(label, tuple(launch[label] for launch in launches if label in launch)) for label in here
    )
    return Noise(_describe(plan.case), subjects, tuple(problems))


def measure_launch(plan: Plan, tell: Tell = lambda _: None) -> tuple[Found, list[str]]:
    """One launch in this process: its subjects by label, and why others failed."""
    clock = eager_clock(torch.device(plan.device))
    samplers, problems = {}, []
    for subject in _subjects(plan):
        tell(f": preparing {subject.label}")
        try:
            # Each with tensors of its own, as two subjects have: where they lie is part of the noise.
            pair = [Runnable(subject, plan.case, plan.seed) for _ in range(2)]
            for runnable in pair:
                runnable.call()
        except Exception as error:  # noqa: BLE001 -- a subject that fails here leaves the other
            problems.append(f"{_label(subject)}: {describe_failure(error)}")
            continue
        for runnable, name in zip(pair, (_label(subject), _label(subject) + AGAIN), strict=True):
            samplers[name] = runnable.sampler(clock)
    # No precision is enough to stop at: the whole budget says how noisy it is.
    measurement = measure(
        samplers, Budget(plan.seconds, precision=0), plan.seed, progress=lambda rounds, _: tell(f": round {rounds}")
    )
    if measurement.interrupted:
        raise KeyboardInterrupt
    problems += [f"{name}: {describe_failure(error)}" for name, error in measurement.failures.items()]
    found = {name: samples.block_medians for name, samples in measurement.samples.items()}
    labels = [name for name in found if name + AGAIN in found]
    return {name: Launch(found[name], found[name + AGAIN]) for name in labels}, problems


def _subjects(plan: Plan) -> list[Subject]:
    """The involution that ``auto`` chooses here, and the convolution that the layer replaces."""
    backend = choose_backend(torch.empty(1, 16, 1, 1, device=plan.device))
    return [Subject(INVOLUTION, backend), Subject("conv2d-3x3")]


def _label(subject: Subject) -> str:
    return f"{subject.name} ({subject.backend})" if subject.backend in BACKENDS else subject.name


def _describe(case: Case) -> str:
    s = case.layer
    return (
        f"N={case.N} C={s.C} H={case.H} W={case.W} K={s.K} G={s.G}, {case.dtype} {case.layout}, "
        f"{case.mode} of the {case.scope}"
    )


def _fresh_launch(plan: Plan) -> Found:
    command = [sys.executable, "-m", "invbench.harness.noise", json.dumps(asdict(plan))]
    # Its warnings have been said by this process.
    done = subprocess.run(  # noqa: S603
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST_LAUNCH, env=dict(os.environ)
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise InvbenchError(last)
    found = json.loads(done.stdout.splitlines()[-1])
    return {label: Launch(tuple(pair["first"]), tuple(pair["second"])) for label, pair in found.items()}


def main(argument: str) -> None:
    """Measure one launch and print it."""
    plan = Plan(**json.loads(argument))
    machine.settle(plan.threads)
    found, _ = measure_launch(plan)
    sys.stdout.write("\n" + json.dumps({label: asdict(launch) for label, launch in found.items()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
