"""What is measured at a point, and how; no torch, so that a sweep's parent process needs none."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from invbench.attention import ATTENTION
from invbench.cost import WORK, cost_of
from invbench.harness.blocks import Budget
from invbench.ops import DEFAULT_BACKENDS
from invbench.results import Result, Status
from invbench.spec import Case, InvbenchError

INVOLUTION = "involution"
CONVOLUTION_NAMES = tuple(dict.fromkeys(name for name, _ in WORK if name not in (INVOLUTION, *ATTENTION)))
TORCH, FLEX = "torch", "flex"
USER = "user"

# What ``--compare`` adds: operators, each with its backends.
COMPARISONS = {"attention": ATTENTION}


class OutOfRoomError(InvbenchError):
    """A point needs more memory than is free, by an estimate made before anything is allocated."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: an operator's name and the backend that computes it ("torch" for convolutions, and for
    attention unless it is "flex").

    factory: for a user's operator, where it comes from; its name is then "involution" if it claims to be one.
    """

    name: str
    backend: str = TORCH
    factory: str | None = None

    @property
    def label(self) -> str:
        """One name for progress and errors, which no other subject of a point has."""
        if self.name == INVOLUTION:
            return self.backend
        return self.name if self.backend in (TORCH, USER) else f"{self.name} ({self.backend})"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a point is measured; stored with its results.

    asked_for: the backends that the user named, which are an error where none of them can run. baseline: a
    convolution's name, or None for no ratios. autotune: whether cuDNN and the Triton kernels may choose by trying.
    custom: a user's operators. compare: what else gets rows, a key of ``COMPARISONS``. launches: how often a sweep
    measures each point, every time in a process that has not done so before; they share its budget.
    """

    backends: tuple[str, ...] = DEFAULT_BACKENDS
    asked_for: tuple[str, ...] = ()
    baseline: str | None = "conv2d"
    budget: Budget = field(default_factory=Budget)
    cache: str = "hot"
    clock: str = "eager"
    seed: int = 0
    autotune: bool = True
    custom: tuple[Subject, ...] = ()
    compare: str | None = None
    launches: int = 1

    def subjects(self) -> list[Subject]:
        """The rows of a point, in order: involution by each backend, the user's operators, what else is compared, the
        convolutions."""
        involutions = [Subject(INVOLUTION, backend) for backend in self.backends]
        operators = COMPARISONS[self.compare] if self.compare else {}
        compared = [Subject(name, backend) for name, backends in operators.items() for backend in backends]
        return [*involutions, *self.custom, *compared, *(Subject(name) for name in CONVOLUTION_NAMES)]


class Watch(Protocol):
    """Told what runs, by whoever must say later what crashed or hung."""

    def running(self, label: str) -> None:
        """A subject is about to run; "" where what follows belongs to none."""

    def failed(self, label: str, error: BaseException) -> None:
        """A subject has raised; may raise to give up the whole point."""


class Unwatched:
    """Nobody watches."""

    def running(self, label: str) -> None:
        """Nothing."""

    def failed(self, label: str, error: BaseException) -> None:
        """Nothing."""


def check_clock(clock: str, device_type: str) -> None:
    """Refuse a clock that the type of device does not have."""
    if clock == "device" and device_type != "cuda":
        name = "the CPU" if device_type == "cpu" else device_type
        raise InvbenchError(f"--clock device: {name} has only the eager clock; use --clock eager, or --device cuda")


def require_cores(threads: int, cores: int) -> None:
    """Refuse more threads than there are cores to run them."""
    if threads > cores:
        raise InvbenchError(
            f"--threads {threads}: this process may use {cores} core(s); ask for at most {cores}, since "
            "threads that share a core measure the scheduler"
        )


def blank_row(subject: Subject, case: Case) -> Result:
    """The row of a subject before it is measured, with its closed-form costs where there are such."""
    if (subject.name, case.scope) not in WORK:
        return Result(subject.name, subject.backend, case)
    cost = cost_of(subject.name, case)
    return Result(
        subject.name, subject.backend, case,
        params=cost.params, macs=cost.macs, flop=cost.flop, bytes_min=cost.bytes_min,
    )  # fmt: skip


def failed_rows(case: Case, settings: Settings, status: Status, reason: str) -> tuple[Result, ...]:
    """A row with the reason for every subject of a point that could not be measured at all."""
    rows = (blank_row(subject, case) for subject in settings.subjects())
    return tuple(replace(row, status=status, reason=reason) for row in rows)


def describe_failure(error: BaseException) -> str:
    """The first line of what went wrong, with its type unless it already speaks to people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = printable(lines[0]) if lines else "no message"
    return text if isinstance(error, InvbenchError) else f"{type(error).__name__}: {text}"


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
