"""What a sweep and its workers say to each other, and the memory in which both see who is running."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from invbench.harness.settings import Settings, Subject
from invbench.results import Result, Status
from invbench.spec import Case

LABEL_BYTES = 256


@dataclass(frozen=True, slots=True)
class Hello:
    """Which devices, threads and user's operators there are; ``devices`` None asks for the fastest type here.

    autotune: as it will be while points are measured, since the fingerprint records it.
    """

    devices: tuple[str, ...] | None
    subjects: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    autotune: bool = True


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer: devices by their full names, threads by default and at most, the fingerprint of each device, the
    user's operators."""

    devices: tuple[str, ...]
    threads: int
    cores: int
    environments: Mapping[str, Mapping[str, Any]]
    custom: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would happen at a point: why backends refuse, what its leanest and its largest row need, and, where nothing
    can be measured there, why."""

    refusals: Mapping[str, str]
    needed_bytes: int
    free_bytes: int | None
    most_bytes: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PlanJob:
    """Ask for the plan of a point."""

    case: Case
    settings: Settings


@dataclass(frozen=True, slots=True)
class PointJob:
    """Ask for a point to be measured.

    skipped: labels of subjects that took a worker down before, and why. launch: which of the settings' launches it is,
    from 0. peaks: of the machine, where they are known.
    """

    case: Case
    settings: Settings
    skipped: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    launch: int = 0
    peaks: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured point."""

    results: tuple[Result, ...]
    peaks: Mapping[str, float] | None
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was asked cannot be done, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The device answers no more after a subject failed; the process that says so is of no further use."""

    label: str
    reason: str


class Beacon:
    """Which subject is running, and since when, in memory that both processes see."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._label = context.RawArray(ctypes.c_char, LABEL_BYTES)
        self._beats = context.RawValue(ctypes.c_ulonglong, 0)

    def set(self, label: str) -> None:
        """A subject starts to run; "" where what follows belongs to none."""
        self._label.value = label.encode()[: LABEL_BYTES - 1]
        self._beats.value += 1

    @property
    def label(self) -> str:
        """Who is running."""
        return self._label.value.decode(errors="replace")

    @property
    def beats(self) -> int:
        """How often that has changed."""
        return int(self._beats.value)
