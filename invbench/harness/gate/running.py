"""A whole check: launches until enough is known, a second stage for what was found, and a finding for every metric."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from invbench.harness.gate import counting
from invbench.harness.gate.launching import Launched, Plan, Spawn, Tell, launch
from invbench.harness.gate.workers import Version, Worker, WorkerLostError
from invbench.results.check import AGAIN, BASE, HEAD, LATENCY, Finding, Quad, Row, Series, Verdict
from invbench.verdict.gate import Evidence, Judgement, against_base, flagged, judge, smallest_effect

MOST_LAUNCHES = 2  # times the least, while rows are too noisy

Rows = Mapping[int, Evidence]


@dataclass(frozen=True, slots=True)
class Judging:
    """What the rows are judged by. thresholds: by row and metric. visible: what a run must be able to see to pass."""

    launches: int
    visible: float
    thresholds: Mapping[int, Mapping[str, float]]


@dataclass
class Measured:
    """What the launches of both stages have found. problem: why no more could be measured."""

    plan: Plan
    stages: tuple[list[Launched], list[Launched]] = field(default_factory=lambda: ([], []))
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    interrupted: bool = False

    @property
    def alive(self) -> list[int]:
        """The rows that can still be measured."""
        rows = range(len(self.plan.rows))
        first = self.stages[0][0] if self.stages[0] else None
        return [row for row in rows if row not in self.lost and (first is None or row in first.quads)]

    def quads(self, row: int, stage: int) -> tuple[tuple[Quad, ...], ...]:
        """The quads of a row, launch by launch."""
        return tuple(tuple(each.quads[row]) for each in self.stages[stage] if each.quads.get(row))

    def series(self) -> tuple[Series, ...]:
        """The raw blocks of every row that has any."""
        found = []
        for number, (row, _) in enumerate(self.plan.rows):
            stages = tuple(stage for stage in (self.quads(number, 0), self.quads(number, 1)) if stage)
            if stages:
                calls = next(each.calls[number] for each in self.stages[0] if number in each.calls)
                found.append(Series(row, calls, stages))
        return tuple(found)

    @property
    def first(self) -> Launched:
        """The first launch."""
        return self.stages[0][0]


class Yardstick:
    """How quads become evidence: head against the base that runs beside it, and the base against itself."""

    def evidence(self, measured: Measured, judging: Judging) -> dict[int, Evidence]:
        """Of every row that has quads."""
        return {
            row: Evidence(
                against_base(measured.quads(row, 0)), judging.thresholds[row][LATENCY], judging.visible,
                against_base(measured.quads(row, 1)),
            )
            for row in measured.alive
            if measured.quads(row, 0)
        }  # fmt: skip

    def second(self, rows: Sequence[int]) -> list[int]:
        """The rows that a second stage has to measure where these were found."""
        return list(rows)


def measure(
    versions: Mapping[str, Version],
    plan: Plan,
    judging: Judging,
    yardstick: Yardstick,
    tell: Tell,
    started: Mapping[str, Worker] | None = None,
    spawn: Spawn = Worker,
) -> Measured:
    """Run both stages. versions: by arm, in the order in which processes start. started: those that run already.

    The first stage has at least ``judging.launches`` launches, and up to twice as many while some row is too noisy to
    pass: its noise decides, and not what it seems to show (rule 6). Raises WorkerLostError where nothing could be
    measured; whatever ends it later is noted, and what was measured is kept.
    """
    measured = Measured(plan)
    layouts: dict[int, str] = {}

    def once(stage: int, rows: Sequence[int]) -> None:
        number = len(measured.stages[0]) + len(measured.stages[1])
        name = f"{'confirming' if stage else 'measuring'}, launch {len(measured.stages[stage]) + 1}"
        arms = dict(reversed(list(versions.items()))) if stage else versions
        begun = time.perf_counter()
        found = launch(
            arms, plan, rows, number, layouts, lambda line: tell(f"{name}: {line}"), {} if number else started, spawn
        )
        measured.stages[stage].append(found)
        measured.lost |= found.lost
        key = "second" if stage else "first"
        measured.seconds[key] = measured.seconds.get(key, 0.0) + time.perf_counter() - begun

    try:
        while measured.alive and not _enough(measured, judging, yardstick):
            once(0, measured.alive)
        again = yardstick.second(list(flagged(yardstick.evidence(measured, judging))))
        while again and len(measured.stages[1]) < judging.launches:
            once(1, [row for row in again if row not in measured.lost])
    except WorkerLostError as error:
        if not measured.stages[0]:
            raise
        measured.problem = str(error)
    except KeyboardInterrupt:
        if not measured.stages[0]:
            raise
        measured.interrupted = True
    return measured


def _enough(measured: Measured, judging: Judging, yardstick: Yardstick) -> bool:
    count = len(measured.stages[0])
    if count < judging.launches:
        return False
    rows = yardstick.evidence(measured, judging)
    effects = [smallest_effect(row, len(rows)) for row in rows.values()]
    return count >= MOST_LAUNCHES * judging.launches or all(e is not None and e <= judging.visible for e in effects)


def findings(measured: Measured, judging: Judging, yardstick: Yardstick) -> tuple[Finding, ...]:
    """What was found of every row: its latency, and what does not depend on the clock."""
    judged = judge(yardstick.evidence(measured, judging))
    found: list[Finding] = []
    for number, (row, _) in enumerate(measured.plan.rows):
        if number in measured.lost:
            arm, reason = measured.lost[number]
            found.append(Finding(row, LATENCY, Verdict.ERROR, reason=f"{arm}: {reason}", remedy=counting.BROKEN))
            continue
        of_row = {arm: prepared[number] for arm, prepared in measured.first.prepared.items()}
        state = counting.state(row, of_row)
        if state is not None:
            found.append(state)
            continue
        if counting.is_absent(of_row):
            continue
        if measured.problem:
            found.append(Finding(row, LATENCY, Verdict.ERROR, reason=measured.problem, remedy=counting.BROKEN))
        else:
            found.append(_latency(row, measured, number, judged.get(number), judging))
        found += counting.counts(row, of_row[BASE], of_row[HEAD], judging.thresholds[number])
    return tuple(found)


def _latency(row: Row, measured: Measured, number: int, judgement: Judgement | None, judging: Judging) -> Finding:
    if judgement is None:
        reason = "no quad was measured: the device was slowed down, or its power limit held some blocks and not others"
        return Finding(row, LATENCY, Verdict.INCONCLUSIVE, reason=reason, remedy="cool the device, and run it again")
    return Finding(
        row, LATENCY, judgement.verdict, seconds_of(measured, number, BASE), seconds_of(measured, number, HEAD),
        judgement.ratio, judgement.launches, judging.thresholds[number][LATENCY], judgement.floor,
        judgement.smallest_effect, judgement.quads, judgement.above, judgement.reason, judgement.remedy,
    )  # fmt: skip


def seconds_of(measured: Measured, number: int, arm: str) -> float:
    """The median over the quads of both stages, in seconds per call."""
    quads = [quad for stage in (0, 1) for launched in measured.quads(number, stage) for quad in launched]
    return statistics.median(math.exp(quad.log(arm)) for quad in quads)


def arms(base: Version, head: Version) -> dict[str, Version]:
    """The processes of a launch, in the order in which they start."""
    return {BASE: base, HEAD: head, AGAIN: base}
