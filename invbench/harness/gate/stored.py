"""A baseline that was measured earlier and kept in a file: what it says of today's quads, and of the counts.

Head is measured alone, so what the machine does from one day to the next is part of what is compared. The convolution
of a point takes a share of that away: where there is one, the ratio to it is compared, launch by launch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invbench.harness.gate.counting import CHOICES, METRICS, Prepared
from invbench.harness.gate.launching import Plan
from invbench.harness.gate.running import Judging, Measured, Yardstick
from invbench.results import ResultSet, machine_class
from invbench.results.check import AGAIN, HEAD, LATENCY, Check, Finding, Quad, Row, Verdict
from invbench.spec import InvbenchError
from invbench.verdict.gate import Evidence, Launch

Launches = Sequence[Sequence[Quad]]


@dataclass(frozen=True)
class Stored(Yardstick):
    """The baseline of a file. kept: its check. environment: of the machine that measured it."""

    kept: Check
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, document: ResultSet, path: str) -> Stored:
        """The baseline in a document; raises InvbenchError if there is none."""
        kept = [check for check in document.checks if check.kind == "baseline"]
        if len(kept) != 1:
            raise InvbenchError(
                f"--baseline-file {path}: it holds no baseline: got {len(document.checks)} other check(s); "
                "write one with --update"
            )
        return cls(kept[0], document.environment)

    def evidence(self, measured: Measured, judging: Judging) -> dict[int, Evidence]:
        """Of every row that both have; a point's convolution is what the others are compared by, and has none."""
        series = {each.row: each for each in self.kept.series}
        found = {}
        for number in measured.alive:
            row, control = measured.plan.rows[number][0], control_of(measured.plan.rows, number)
            before = series.get(row)
            if before is None or row.is_control or not measured.quads(number, 0):
                continue
            base = series.get(measured.plan.rows[control][0]) if control is not None else None
            use = control if base else None
            was = _levels(before.stages[0], base.stages[0] if base else None)
            centre = statistics.median(was)
            found[number] = Evidence(
                _launches(measured, number, use, 0, centre), judging.thresholds[number][LATENCY], judging.visible,
                _launches(measured, number, use, 1, centre), max(abs(each - centre) for each in was),
            )  # fmt: skip
        return found

    @property
    def layouts(self) -> dict[Row, str]:
        """The layout of every row, so that today's is the same."""
        return {each.row: str(each.head) for each in self.kept.findings if each.metric == "layout"}

    def needs(self, rows: Sequence[int], plan: Plan) -> list[int]:
        """The rows with their convolutions."""
        controls = [control_of(plan.rows, row) for row in rows]
        return list(dict.fromkeys([*rows, *(control for control in controls if control is not None)]))

    def prepared(self, row: Row, of_row: Mapping[str, Prepared]) -> Prepared | None:  # noqa: ARG002
        """What a process of the version that wrote the file would say of the row."""
        found = {each.metric: each.head for each in self.kept.findings if each.row == row}
        if not found:
            return None
        return {
            "counts": {name: found.get(name) for name in METRICS},
            "backends": {name: found[name] for name in CHOICES if name in found},
        }

    def seconds(self, row: Row, measured: Measured, number: int) -> float | None:  # noqa: ARG002
        """What the file says."""
        kept = (each.head for each in self.kept.findings if each.row == row and each.metric == LATENCY)
        return next((head for head in kept if isinstance(head, float)), None)

    def is_yardstick(self, row: Row) -> bool:
        """Convolutions are what the others are measured by."""
        return row.is_control and any(each.row == row for each in self.kept.series)

    def missing(self, rows: Iterable[Row]) -> Iterator[Finding]:
        """The rows of the file that are not among these."""
        there = set(rows)
        for row in dict.fromkeys(each.row for each in self.kept.findings):
            if row not in there:
                remedy = "bring it back, or write the file anew with --update"
                yield Finding(row, LATENCY, Verdict.MISSING, reason="only the file has it", remedy=remedy)

    def apart(self, environment: Mapping[str, Any]) -> str | None:
        """Why latencies here cannot be compared with those of the file; None if they can."""
        if machine_class(environment) == machine_class(self.environment):
            return None
        there, here = map(_machine, (self.environment, environment))
        return f"the file was measured on another class of machine: {there}, and this is {here}"


def _machine(environment: Mapping[str, Any]) -> str:
    gpu, cpu = environment.get("gpu") or {}, environment.get("cpu") or {}
    return str(gpu.get("name") or f"{cpu.get('model')}, {cpu.get('usable')} cores")


def control_of(rows: Sequence[tuple[Row, str | None]], number: int) -> int | None:
    """The number of the convolution at the same point, or None."""
    case = rows[number][0].case
    return next((n for n, (row, _) in enumerate(rows) if row.is_control and row.case == case and n != number), None)


def _levels(launches: Launches, control: Launches | None) -> list[float]:
    """The logarithm of each launch's time, or of its ratio to the convolution's in the same launch."""
    own = [statistics.median(quad.log(HEAD) for quad in quads) for quads in launches]
    if control is None:
        return own
    return [
        level - statistics.median(quad.log(HEAD) for quad in quads) for level, quads in zip(own, control, strict=False)
    ]


def _launches(measured: Measured, number: int, control: int | None, stage: int, centre: float) -> tuple[Launch, ...]:
    found = []
    for index, quads in enumerate(measured.quads(number, stage)):
        beside = measured.quads(control, stage)[index] if control is not None else ()
        level = centre + (statistics.median(quad.log(HEAD) for quad in beside) if beside else 0.0)
        found.append(
            Launch(tuple(quad.log(HEAD) - level for quad in quads), tuple(quad.over(AGAIN, HEAD) for quad in quads))
        )
    return tuple(found)
