"""The points of a sweep as tasks: a key each, launches one after the other; and what is refused before any is measured.

Needs no torch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from invbench.harness.messages import Welcome
from invbench.harness.settings import Settings, check_clock, require_cores
from invbench.results import Result, Status, machine_class
from invbench.results.journal import Entry, key_of
from invbench.spec import InvbenchError
from invbench.study.grid import GridPoint


@dataclass(frozen=True, slots=True)
class Task:
    """A point to measure, and the key under which the journal knows it."""

    point: GridPoint
    settings: Settings
    key: str
    skipped: Mapping[str, tuple[Status, str]] = field(default_factory=dict)
    machine: str = ""
    """The class of machines (``results.machine_class``) that it is measured on."""
    launch: int = 0
    """Which of the settings' launches of the point it is."""
    point_key: str | None = None
    """What all launches of the point have in common, where there are several."""

    def without(self, label: str, status: Status, reason: str) -> Task:
        """The same point, once a subject has shown that it takes the worker down."""
        return replace(self, skipped={**self.skipped, label: (status, reason)})

    def entry(self, rows: tuple[Result, ...], seconds: Mapping[str, float]) -> Entry:
        """What the journal keeps of it."""
        return Entry(self.key, rows, seconds, launch=self.launch, point=self.point_key)


def tasks_of(points: Iterable[GridPoint], settings: Settings, welcome: Welcome) -> list[Task]:
    """The points as tasks: a key each, by the point, the settings, the versions and the machine.

    Of several launches, all points come before any comes again, so that a point's are as far apart as can be: machines
    have moods that last for minutes.
    """
    tasks = []
    for launch, point in itertools.product(range(settings.launches), points):
        own = replace(settings, baseline=point.baseline, custom=welcome.custom)
        environment = environment_for(point.case.device, welcome)
        identity = {
            "case": {**point.case.to_dict(), "device": kind_of(point.case.device)},
            "settings": {name: value for name, value in asdict(own).items() if name != "asked_for"},
            "versions": environment.get("versions"),
            "python": environment.get("python"),
            "source": environment.get("source"),
            "threads": environment.get("threads", {}).get("variables"),
            "allocator": environment.get("allocator"),
            "machine": machine_class(environment),
        }
        key, machine = key_of(identity), machine_class(environment)
        if settings.launches == 1:
            tasks.append(Task(point, own, key, machine=machine))
        else:
            tasks.append(Task(point, own, key_of({"point": key, "launch": launch}), {}, machine, launch, key))
    return tasks


def shuffled(tasks: Sequence[Task], seed: int) -> list[Task]:
    """The tasks in an order drawn from the seed, one launch of them all after the other."""
    order = random.Random(seed)
    launches: dict[int, list[Task]] = {}
    for task in tasks:
        launches.setdefault(task.launch, []).append(task)
    for own in launches.values():
        order.shuffle(own)
    return [task for _, own in sorted(launches.items()) for task in own]


def kind_of(device: str) -> str:
    """The type of a device: ``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def environment_for(device: str, welcome: Welcome) -> Mapping[str, Any]:
    """The fingerprint of the machine with a device of that type."""
    return next(found for name, found in welcome.environments.items() if kind_of(name) == kind_of(device))


def check_alike(welcome: Welcome) -> None:
    """Refuse devices of one type that are not alike: which of them measures a point is left to chance."""
    by_kind: dict[str, dict[str, str]] = {}
    for name, environment in welcome.environments.items():
        by_kind.setdefault(kind_of(name), {})[name] = machine_class(environment)
    for kind, classes in by_kind.items():
        if len(set(classes.values())) > 1:
            names = ", ".join(f"{name} {(welcome.environments[name].get('gpu') or {}).get('name')}" for name in classes)
            raise InvbenchError(
                f"--device spreads points over {kind} devices, which have to be alike: got {names}; "
                "sweep each in a run of its own"
            )


def check_cluster_devices(devices: Sequence[str] | None, gpu_type: str | None) -> None:
    """Refuse devices among which a cluster cannot choose, before it is asked."""
    for device in devices or ():
        if device not in ("cpu", "cuda"):
            raise InvbenchError(
                f"--device with --ray takes cpu or cuda: got {device!r}; Ray chooses which of them, and --gpu-type "
                "which kind of GPU"
            )
    if gpu_type is not None and (not gpu_type.split() or "cuda" not in (devices or ("cuda",))):
        raise InvbenchError(
            f"--gpu-type takes a kind of GPU, such as H200, and needs --device cuda: got {gpu_type!r}; leave it out"
        )


def check_settings(tasks: Sequence[Task], welcome: Welcome) -> None:
    """Refuse, before anything is measured, what is wrong with the settings of any task and not with its point."""
    for task in tasks:
        check_clock(task.settings.clock, kind_of(task.point.case.device))
        require_cores(task.point.case.threads, welcome.cores)
