"""What was measured, and the versioned JSON document it is stored in (schema 1). Seconds, bytes and FLOP inside."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from invbench.results.quantities import Memory, Ratio, Samples, Unit
from invbench.spec import Case, InvbenchError

SCHEMA = 1


class Status(StrEnum):
    """How a row ended; anything but ``ok`` has a reason and no latency."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    MISMATCH = "mismatch"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Result:
    """One row: a subject computed by a backend at a point, or the reason why it was not.

    first_call: seconds of the first call, compilation included. params, macs (forward), flop (of the timed mode)
    and bytes_min are closed forms. error: largest relative difference from the float64 reference, and what it may be.
    roofline_fraction: the least time that the machine's peaks allow, over the latency.

    Documents of several points say in each row what a document of one point says once: baseline, what the ratio is to;
    peaks, of the run that measured the row; machine, a key of ``ResultSet.machines``; device, where several
    share the points; run, which document it is from, where several measured the same case on the same machine.
    """

    subject: str
    backend: str
    case: Case
    status: Status = Status.OK
    reason: str | None = None
    latency: Samples | None = None
    first_call: float | None = None
    memory: Memory | None = None
    params: int | None = None
    macs: int | None = None
    flop: int | None = None
    bytes_min: int | None = None
    roofline_fraction: float | None = None
    error: Mapping[str, float | None] | None = None
    ratio: Ratio | None = None
    chosen_layout: str | None = None
    warnings: tuple[str, ...] = ()
    baseline: str | None = None
    peaks: Mapping[str, float] | None = None
    machine: str | None = None
    device: str | None = None
    run: str | None = None

    @property
    def seconds(self) -> float | None:
        """The median latency."""
        return self.latency.interval.median if self.latency else None

    @property
    def flop_per_s(self) -> float | None:
        """Closed-form FLOP over the median latency."""
        return self.flop / self.seconds if self.flop is not None and self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """Closed-form least bytes over the median latency."""
        return self.bytes_min / self.seconds if self.bytes_min is not None and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """One element of the document's ``results``."""
        row: dict[str, Any] = {
            "subject": self.subject,
            "backend": self.backend,
            "status": str(self.status),
            "reason": self.reason,
            "case": self.case.to_dict(),
            "latency": self.latency and self.latency.to_dict(),
            "first_call": None if self.first_call is None else {"unit": str(Unit.SECONDS), "value": self.first_call},
            "memory": self.memory and {"unit": str(Unit.BYTES), **asdict(self.memory)},
            **{name: getattr(self, name) for name in ("params", "macs", "flop", "bytes_min")},
            **{name: getattr(self, name) for name in ("flop_per_s", "bytes_per_s", "roofline_fraction")},
            "error": self.error and dict(self.error),
            "ratio": self.ratio and self.ratio.to_dict(),
            "warnings": list(self.warnings),
        }
        optional = {
            name: getattr(self, name) for name in ("chosen_layout", "baseline", "peaks", "machine", "device", "run")
        }
        return {**row, **{name: value for name, value in optional.items() if value is not None}}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """The inverse of ``to_dict``."""
        memory, first_call = row["memory"], row["first_call"]
        return cls(
            case=Case.from_dict(row["case"]),
            status=Status(row["status"]),
            latency=row["latency"] and Samples.from_dict(row["latency"]),
            first_call=first_call and first_call["value"],
            memory=memory and Memory(memory["peak"], memory["method"]),
            ratio=row["ratio"] and Ratio.from_dict(row["ratio"]),
            warnings=tuple(row["warnings"]),
            chosen_layout=row.get("chosen_layout"),
            baseline=row.get("baseline"),
            peaks=row.get("peaks"),
            machine=row.get("machine"),
            device=row.get("device"),
            run=row.get("run"),
            **{
                name: row[name]
                for name in (
                    "subject", "backend", "reason", "params", "macs", "flop", "bytes_min", "roofline_fraction", "error",
                )
            },
        )  # fmt: skip


@dataclass(frozen=True)
class ResultSet:
    """A result document: rows, and everything needed to read or repeat them.

    environment: the machine's fingerprint. settings: how it was measured. peaks: ``matmul_flop_per_s`` and
    ``copy_bytes_per_s`` of the same run. interrupted: the run was stopped, and holds what was measured until then.
    machines: where the rows come from several machines, the fingerprint of each, by ``machine_class``.
    """

    results: tuple[Result, ...]
    command: str
    created: str
    tool_version: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    peaks: Mapping[str, float] | None = None
    baseline: str | None = None
    interrupted: bool = False
    machines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def points(self) -> list[tuple[Result, ...]]:
        """The rows of each point that was measured in one go: same case, machine, baseline and run, in order.

        A subject that comes again begins a new point: a journal holds one twice where the versions changed.
        """
        points: dict[tuple[Case, str | None, str | None, str | None], list[dict[tuple[str, str], Result]]] = {}
        for result in self.results:
            key = (result.case, result.machine, self.baseline_of(result), result.run)
            measured, row = points.setdefault(key, [{}]), (result.subject, result.backend)
            if row in measured[-1]:
                measured.append({})
            measured[-1][row] = result
        return [tuple(rows.values()) for measured in points.values() for rows in measured]

    def baseline_of(self, result: Result) -> str | None:
        """What the row's ratio is to."""
        return result.baseline or self.baseline

    def peaks_of(self, result: Result) -> Mapping[str, float] | None:
        """The peaks of the run that measured the row."""
        return result.peaks or self.peaks

    def environment_of(self, result: Result) -> Mapping[str, Any]:
        """The fingerprint of the machine that measured the row."""
        return self.machines.get(result.machine or "", self.environment)

    @classmethod
    def merged(cls, sets: Sequence[ResultSet], command: str, created: str) -> ResultSet:
        """One document of several: each row keeps its baseline, its peaks and its machine.

        Settings, and what is said of a machine, are what all have in common. A point that several documents measured
        is several points, told apart by ``run``. Raises InvbenchError where there is nothing to merge.
        """
        if not sets:
            raise InvbenchError("no result documents: got none; name at least one file")
        sets = [each for index, each in enumerate(sets) if each not in sets[:index]]  # a file that was named twice
        if len(sets) == 1:
            return sets[0]
        machines: dict[str, Mapping[str, Any]] = {}
        rows = []
        again = _measured_again(sets)
        for each in sets:
            for result in each.results:
                environment = each.environment_of(result)
                name = machine_class(environment)
                machines[name] = _common(machines.get(name, environment), environment)
                run = result.run or (each.created if (result.case, name) in again else None)
                rows.append(
                    replace(
                        result, baseline=each.baseline_of(result), peaks=each.peaks_of(result), machine=name, run=run
                    )
                )
        first = sets[0]
        baselines = {each.baseline for each in sets}
        return cls(
            results=tuple(rows), command=command, created=created, tool_version=first.tool_version,
            environment=machines[machine_class(first.environment)] if len(machines) == 1 else first.environment,
            settings=functools.reduce(_common, (each.settings for each in sets)),
            peaks=first.peaks if all(each.peaks == first.peaks for each in sets) else None,
            baseline=first.baseline if len(baselines) == 1 else None,
            interrupted=any(each.interrupted for each in sets), machines=machines if len(machines) > 1 else {},
        )  # fmt: skip

    def to_json(self) -> str:
        """The document, with one line a row's field so that diffs stay readable."""
        document = {
            "schema": SCHEMA,
            "tool": {"name": "invbench", "version": self.tool_version},
            "command": self.command,
            "created": self.created,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "peaks": self.peaks and dict(self.peaks),
            "baseline": self.baseline,
            "interrupted": self.interrupted,
            **({"machines": {name: dict(found) for name, found in self.machines.items()}} if self.machines else {}),
            "results": [result.to_dict() for result in self.results],
        }
        return json.dumps(document, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ResultSet:
        """Read a document; raises InvbenchError if it is not one that this version understands."""
        try:
            document = json.loads(text)
            schema = document["schema"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InvbenchError(
                f"not a result document: got {text[:40]!r}; expected JSON written by invbench --format json"
            ) from error
        if schema != SCHEMA:
            raise InvbenchError(
                f"result schema must be {SCHEMA}: got {schema!r}; read it with the version that wrote it"
            )
        try:
            if not all(isinstance(document[name], dict) for name in ("environment", "settings")):
                raise TypeError("environment and settings must be objects")
            return cls(
                results=tuple(Result.from_dict(row) for row in document["results"]),
                tool_version=document["tool"]["version"],
                interrupted=document.get("interrupted", False),
                machines=document.get("machines", {}),
                **{
                    name: document[name]
                    for name in ("command", "created", "environment", "settings", "peaks", "baseline")
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvbenchError(
                f"incomplete result document ({type(error).__name__}: {error}); expected every field of schema {SCHEMA}"
            ) from error


def machine_class(environment: Mapping[str, Any]) -> str:
    """A short name for machines whose latencies may be compared: same processor, cores, accelerator and settings.

    Versions and the commit do not belong to it: they are what people compare.
    """
    cpu, gpu = environment.get("cpu") or {}, environment.get("gpu") or {}
    names = ("model", "capability", "cores", "logical", "usable", "quota", "governor")
    parts = [[cpu.get(name) for name in names], [gpu.get(name) for name in ("name", "capability", "power_limit_w")]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are equal in both, objects field by field."""
    found = {}
    for name, value in one.items():
        if isinstance(value, Mapping) and isinstance(other.get(name), Mapping):
            found[name] = _common(value, other[name])
        elif name in other and other[name] == value:
            found[name] = value
    return found


def _measured_again(sets: Sequence[ResultSet]) -> set[tuple[Case, str]]:
    """The cases that more than one document measured on one class of machine."""
    seen: set[tuple[Case, str]] = set()
    again: set[tuple[Case, str]] = set()
    for each in sets:
        own = {(result.case, machine_class(each.environment_of(result))) for result in each.results}
        again |= seen & own
        seen |= own
    return again


def find(results: Iterable[Result], subject: str) -> Result | None:
    """The first row of a subject, if there is one."""
    return next((result for result in results if result.subject == subject), None)
