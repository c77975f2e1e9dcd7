"""A baseline that was measured earlier and kept in a file: what it says of today's quads, and of the counts.

Head is measured alone, so what the machine does from one day to the next is part of what is compared. The convolution
of a point takes a share of that away: where there is one, the ratio to it is compared, launch by launch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from invbench.harness.gate.counting import CHOICES, METRICS, Prepared
from invbench.harness.gate.launching import Plan
from invbench.harness.gate.running import Judging, Measured, Yardstick
from invbench.results import ResultSet, machine_class
from invbench.results.check import AGAIN, HEAD, LATENCY, Check, Finding, Quad, Row, Series, Verdict
from invbench.spec import Case, InvbenchError
from invbench.verdict.gate import Evidence, Launch

Launches = Sequence[Sequence[Quad]]

SAME = ("clock", "cache", "autotune")  # the settings without which latencies are not alike


@dataclass(frozen=True)
class Stored(Yardstick):
    """The baseline of a file. kept: its check. environment: of the machine that measured it. settings: how it did."""

    kept: Check
    environment: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, document: ResultSet, path: str) -> Stored:
        """The baseline in a document; raises InvbenchError if there is none."""
        kept = [check for check in document.checks if check.kind == "baseline"]
        if len(kept) != 1:
            raise InvbenchError(
                f"--baseline-file {path}: it holds no baseline: got {len(document.checks)} other check(s); "
                "write one with --update"
            )
        return cls(kept[0], document.environment, document.settings)

    def evidence(self, measured: Measured, judging: Judging) -> dict[int, Evidence]:
        """Of every row that both have; a point's convolution is what the others are compared by, and has none."""
        found = {}
        for number in measured.alive:
            before = self._series(measured.plan.rows[number][0])
            if before is None or before.row.is_control or not measured.quads(number, 0):
                continue
            control = control_of(measured.plan.rows, number)
            base = self._series(measured.plan.rows[control][0]) if control in measured.alive else None
            was = _levels(before.stages[0], base.stages[0] if base else None)
            use, centre = control if base else None, statistics.median(was)
            found[number] = Evidence(
                _launches(measured, number, use, 0, centre), judging.thresholds[number][LATENCY], judging.visible,
                _launches(measured, number, use, 1, centre), max(abs(each - centre) for each in was),
            )  # fmt: skip
        return found

    def layouts(self, rows: Iterable[Row]) -> dict[Row, str]:
        """The layout of every row, so that today's is the same."""
        kept = {identity(each.row): str(each.head) for each in self.kept.findings if each.metric == "layout"}
        return {row: kept[identity(row)] for row in rows if identity(row) in kept}

    def needs(self, rows: Sequence[int], plan: Plan) -> list[int]:
        """The rows with their convolutions."""
        controls = [control_of(plan.rows, row) for row in rows]
        return list(dict.fromkeys([*rows, *(control for control in controls if control is not None)]))

    def prepared(self, row: Row, of_row: Mapping[str, Prepared]) -> Prepared | None:  # noqa: ARG002
        """What a process of the version that wrote the file would say of the row."""
        found = {each.metric: each.head for each in self.kept.findings if identity(each.row) == identity(row)}
        if not found:
            return None
        return {
            "counts": {name: found.get(name) for name in METRICS},
            "backends": {name: found[name] for name in CHOICES if name in found},
        }

    def seconds(self, row: Row, measured: Measured, number: int) -> float | None:  # noqa: ARG002
        """What the file says."""
        of_row = (each for each in self.kept.findings if identity(each.row) == identity(row))
        kept = (each.head for each in of_row if each.metric == LATENCY)
        return next((head for head in kept if isinstance(head, float)), None)

    def is_yardstick(self, row: Row) -> bool:
        """Convolutions are what the others are measured by."""
        return row.is_control and self._series(row) is not None

    def _series(self, row: Row) -> Series | None:
        return next((each for each in self.kept.series if identity(each.row) == identity(row)), None)

    def missing(self, rows: Iterable[Row]) -> Iterator[Finding]:
        """The rows of the file that are not among these."""
        there = set(map(identity, rows))
        for row in dict.fromkeys(each.row for each in self.kept.findings):
            if identity(row) not in there:
                remedy = "bring it back, or write the file anew with --update"
                yield Finding(row, LATENCY, Verdict.MISSING, reason="only the file has it", remedy=remedy)

    def apart(self, environment: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
        """Why latencies here cannot be compared with those of the file; None if they can."""
        for name in SAME:
            if self.settings.get(name) != settings.get(name):
                return f"the file was measured with {name} {self.settings.get(name)}, and this is {settings.get(name)}"
        if machine_class(environment) != machine_class(self.environment):
            there, here = map(_machine, (self.environment, environment))
            return f"the file was measured on another class of machine: {there}, and this is {here}"
        return None


def identity(row: Row) -> tuple[Case, str, str]:
    """What a row is on any machine: how many threads there are, and which of several devices it is, is the machine's.

    Where threads were asked for, they are in the profile, and rows of several numbers of them would be one: such a
    profile is refused when its file is written.
    """
    return replace(row.case, threads=1, device=row.case.device.partition(":")[0]), row.subject, row.backend


def _machine(environment: Mapping[str, Any]) -> str:
    gpu, cpu = environment.get("gpu") or {}, environment.get("cpu") or {}
    return str(gpu.get("name") or f"{cpu.get('model')}, {cpu.get('usable')} cores")


def control_of(rows: Sequence[tuple[Row, str | None]], number: int) -> int | None:
    """The number of the convolution at the same point, or None."""
    case = rows[number][0].case
    return next((n for n, (row, _) in enumerate(rows) if row.is_control and row.case == case and n != number), None)


def _levels(launches: Launches, control: Launches | None) -> list[float]:
    """The logarithm of each launch's time, or of its ratio to the convolution's in the same launch."""
    own = [_level(quads) for quads in launches]
    return own if control is None else [level - _level(quads) for level, quads in zip(own, control, strict=False)]


def _level(quads: Sequence[Quad]) -> float:
    return statistics.median(quad.log(HEAD) for quad in quads)


def _launches(measured: Measured, number: int, control: int | None, stage: int, centre: float) -> tuple[Launch, ...]:
    found = []
    for launched in measured.stages[stage]:
        quads, beside = launched.quads.get(number), launched.quads.get(control) if control is not None else None
        if not quads or (control is not None and not beside):
            continue
        level = centre + (_level(beside) if beside else 0.0)
        found.append(
            Launch(tuple(quad.log(HEAD) - level for quad in quads), tuple(quad.over(AGAIN, HEAD) for quad in quads))
        )
    return tuple(found)
