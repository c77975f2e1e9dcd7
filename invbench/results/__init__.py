"""What was measured, and the versioned JSON document it is stored in (schema 1). Seconds, bytes and FLOP inside."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from invbench.results.check import Check
from invbench.results.row import Result as Result
from invbench.results.row import Status as Status
from invbench.spec import AnyCase, Case, InvbenchError, NetworkCase, TrainingCase

SCHEMA = 1


@dataclass(frozen=True)
class ResultSet:
    """A result document: rows, and everything needed to read or repeat them.

    environment: the machine's fingerprint. settings: how it was measured. peaks: ``matmul_flop_per_s`` and
    ``copy_bytes_per_s`` of the same run. interrupted: the run was stopped, and holds what was measured until then.
    machines: where the rows come from several machines, the fingerprint of each, by ``machine_class``. checks: of
    ``invbench check``, whose document has no rows.
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
    checks: tuple[Check, ...] = ()

    def points(self) -> list[tuple[Result, ...]]:
        """The rows of each point that was measured in one go, in order: same case, machine, node, device, baseline and
        run.

        A subject that comes again begins a new point: a journal holds one twice where the versions changed.
        """
        points: dict[tuple[AnyCase, *tuple[str | None, ...]], list[dict[tuple[str, ...], Result]]] = {}
        for result in self.results:
            place = (result.machine, result.node, result.device)
            key = (result.case, *place, self.baseline_of(result), result.run)
            measured, row = points.setdefault(key, [{}]), result.name
            if row in measured[-1]:
                measured.append({})
            measured[-1][row] = result
        return [tuple(rows.values()) for measured in points.values() for rows in measured]

    def by_machine(self) -> dict[str, ResultSet]:
        """The document of each class of machines by its key, in the order of the rows; empty where there is one only.

        What is about the document as a whole, checks and that it was interrupted, is in none of them.
        """
        rows: dict[str, list[Result]] = {}
        for result in self.results:
            rows.setdefault(result.machine or "", []).append(result)
        if len(rows) < 2:
            return {}
        return {
            key: replace(
                self, results=tuple(own), environment=self.machines.get(key, self.environment), machines={},
                interrupted=False, checks=(),
            )
            for key, own in rows.items()
        }  # fmt: skip

    def operators(self) -> ResultSet:
        """The document with the rows of single operators only."""
        return replace(self, results=tuple(r for r in self.results if isinstance(r.case, Case)))

    def networks(self) -> ResultSet:
        """The document with the rows of whole networks only."""
        return replace(self, results=tuple(r for r in self.results if isinstance(r.case, NetworkCase)))

    def trainings(self) -> ResultSet:
        """The document with the rows of networks that were trained only."""
        return replace(self, results=tuple(r for r in self.results if isinstance(r.case, TrainingCase)))

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
            environment=next(iter(machines.values())) if len(machines) == 1 else first.environment,
            settings=functools.reduce(_common, (each.settings for each in sets)),
            peaks=first.peaks if all(each.peaks == first.peaks for each in sets) else None,
            baseline=first.baseline if len(baselines) == 1 else None,
            interrupted=any(each.interrupted for each in sets), machines=machines if len(machines) > 1 else {},
            checks=tuple(check for each in sets for check in each.checks),
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
            **({"checks": [check.to_dict() for check in self.checks]} if self.checks else {}),
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
                checks=tuple(map(Check.from_dict, document.get("checks", ()))),
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


def _measured_again(sets: Sequence[ResultSet]) -> set[tuple[AnyCase, str]]:
    """The cases that more than one document measured on one class of machine."""
    seen: set[tuple[AnyCase, str]] = set()
    again: set[tuple[AnyCase, str]] = set()
    for each in sets:
        own = {(result.case, machine_class(each.environment_of(result))) for result in each.results}
        again |= seen & own
        seen |= own
    return again


def find(results: Iterable[Result], subject: str) -> Result | None:
    """The first row of a subject, if there is one."""
    return next((result for result in results if result.subject == subject), None)
