"""A whole check: launches until enough is known, a second stage for what was found, and a finding for every metric."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from invbench.harness.gate import counting
from invbench.harness.gate.launching import Launched, Plan, Spawn, Tell, launch
from invbench.harness.gate.workers import Version, Worker, WorkerLostError
from invbench.results.check import AGAIN, BASE, HEAD, LATENCY, Finding, Quad, Row, Series, Verdict
from invbench.verdict.gate import Evidence, Judgement, against_base, flagged, judge

KEPT = "measured alone, to be compared with later"


@dataclass(frozen=True, slots=True)
class Judging:
    """What the rows are judged by.

    launches: of each stage. thresholds: by row and metric. visible: what a run must be able to see to pass.
    apart: why latencies cannot be compared at all, if they cannot.
    """

    launches: int
    visible: float
    thresholds: Mapping[int, Mapping[str, float]]
    apart: str | None = None


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

    def prepared(self, row: int) -> list[dict[str, counting.Prepared]]:
        """What the processes of each launch that has a row say of it."""
        launches = (each.prepared for stage in self.stages for each in stage)
        return [
            {arm: rows[row] for arm, rows in each.items()} for each in launches if all(row in r for r in each.values())
        ]

    @property
    def first(self) -> Launched:
        """The first launch."""
        return self.stages[0][0]


class Yardstick:
    """What head is compared with: the base that runs beside it, and beside itself."""

    def evidence(self, measured: Measured, judging: Judging) -> dict[int, Evidence]:
        """What every row with quads is judged by."""
        return {
            row: Evidence(
                against_base(measured.quads(row, 0)), judging.thresholds[row][LATENCY], judging.visible,
                against_base(measured.quads(row, 1)),
            )
            for row in measured.alive
            if measured.quads(row, 0)
        }  # fmt: skip

    def needs(self, rows: Sequence[int], plan: Plan) -> list[int]:  # noqa: ARG002 -- others need more
        """The rows that have to be measured where these are to be judged."""
        return list(rows)

    def prepared(self, row: Row, of_row: Mapping[str, counting.Prepared]) -> counting.Prepared | None:  # noqa: ARG002
        """What the base says of a row besides its latency; None if it does not have it."""
        return of_row[BASE]

    def seconds(self, row: Row, measured: Measured, number: int) -> float | None:  # noqa: ARG002
        """The base's seconds per call."""
        return seconds_of(measured, number, BASE)

    def is_yardstick(self, row: Row) -> bool:  # noqa: ARG002
        """Whether a row is what others are measured by, so that it has no verdict of its own."""
        return False


class Alone(Yardstick):
    """Nothing: head is measured for later."""

    def evidence(self, measured: Measured, judging: Judging) -> dict[int, Evidence]:  # noqa: ARG002
        """Of no row."""
        return {}


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

    Raises WorkerLostError where nothing could be measured; whatever ends it later is noted, and what was measured is
    kept.
    """
    measured = Measured(plan)
    layouts = dict(plan.layouts)

    def once(stage: int, rows: Sequence[int]) -> None:
        number = len(measured.stages[0]) + len(measured.stages[1])
        name = f"{'confirming' if stage else 'measuring'}, launch {len(measured.stages[stage]) + 1}"
        # Head is prepared last in the first stage, and first in the second.
        arms = dict(sorted(versions.items(), key=lambda item: item[0] != HEAD)) if stage else versions
        begun = time.perf_counter()
        launched = launch(
            arms, plan, rows, number, layouts, lambda line: tell(f"{name}: {line}"), {} if number else started, spawn
        )
        measured.stages[stage].append(launched)
        measured.lost |= launched.lost
        key = "second" if stage else "first"
        measured.seconds[key] = measured.seconds.get(key, 0.0) + time.perf_counter() - begun

    try:
        while measured.alive and len(measured.stages[0]) < judging.launches:
            once(0, measured.alive)
        found = {} if judging.apart else flagged(yardstick.evidence(measured, judging))
        again = yardstick.needs(list(found), plan)
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


def findings(measured: Measured, judging: Judging, yardstick: Yardstick) -> tuple[Finding, ...]:
    """What was found of every row: its latency, and what does not depend on the clock."""
    judged = judge(yardstick.evidence(measured, judging))
    found: list[Finding] = []
    for number, (row, _) in enumerate(measured.plan.rows):
        if number in measured.lost:
            arm, reason = measured.lost[number]
            found.append(Finding(row, LATENCY, Verdict.ERROR, reason=f"{arm}: {reason}", remedy=counting.BROKEN))
            continue
        of_row = measured.prepared(number)[0]
        if counting.is_absent(of_row):
            continue
        state = _state(row, number, measured)
        if state is not None:
            found.append(state)
            continue
        base = yardstick.prepared(row, of_row)
        latency = _Latency(row, number, measured, judging, yardstick, is_new=base is None)
        found.append(_latency(latency, judged.get(number)))
        if base is not None:
            twins = of_row.get(BASE, of_row[HEAD]), of_row[AGAIN]
            found += counting.counts(row, base, of_row[HEAD], judging.thresholds[number], twins)
    if found and all(each.row.is_control for each in found):
        found += _nothing_of_ours(measured)
    return tuple(found)


def _state(row: Row, number: int, measured: Measured) -> Finding | None:
    """``counting.state``: what fails in a later launch fails all the same."""
    states = (counting.state(row, prepared) for prepared in measured.prepared(number))
    return next(filter(None, states), None)


def _nothing_of_ours(measured: Measured) -> list[Finding]:
    """Convolutions alone say nothing of the code that is judged."""
    absent = {row: number for number, (row, _) in enumerate(measured.plan.rows) if not row.is_control}
    return [
        Finding(row, LATENCY, Verdict.ERROR, reason=f"it cannot run here: {prepared[0][HEAD].get('reason')}",
                remedy="choose a backend that can, with --backend")
        for row, number in absent.items()
        if (prepared := measured.prepared(number))
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Latency:
    """A row whose latency is to be told."""

    row: Row
    number: int
    measured: Measured
    judging: Judging
    yardstick: Yardstick
    is_new: bool

    def finding(self, verdict: Verdict, reason: str | None = None, remedy: str | None = None) -> Finding:
        """What is known whatever the verdict."""
        has_quads = bool(self.measured.quads(self.number, 0))
        base = self.yardstick.seconds(self.row, self.measured, self.number) if has_quads else None
        head = seconds_of(self.measured, self.number, HEAD) if has_quads else None
        change = self.judging.thresholds[self.number][LATENCY]
        return Finding(self.row, LATENCY, verdict, base, head, change=change, reason=reason, remedy=remedy)


def _latency(latency: _Latency, judgement: Judgement | None) -> Finding:
    if latency.measured.problem:
        return latency.finding(Verdict.ERROR, latency.measured.problem, counting.BROKEN)
    if latency.is_new:
        return latency.finding(Verdict.NEW, "the file does not have it")
    if latency.judging.apart:
        return latency.finding(Verdict.NOT_COMPARABLE, latency.judging.apart, "its counts are compared all the same")
    if latency.yardstick.is_yardstick(latency.row):
        return latency.finding(Verdict.PASS)
    if judgement is None:
        reason = "no quad was measured: the device was slowed down, or its power limit held some blocks and not others"
        return latency.finding(Verdict.INCONCLUSIVE, reason, "cool the device, and run it again")
    return replace(
        latency.finding(judgement.verdict, judgement.reason, judgement.remedy),
        ratio=judgement.ratio, launches=judgement.launches, floor=judgement.floor, quads=judgement.quads,
        above=judgement.above, smallest_effect=judgement.smallest_effect,
    )  # fmt: skip


def as_baseline(measured: Measured) -> tuple[Finding, ...]:
    """What is kept of head alone, to be compared with later."""
    found: list[Finding] = []
    for number, (row, _) in enumerate(measured.plan.rows):
        prepared = measured.prepared(number)
        problem = measured.problem or _why_not_kept(row, number, measured)
        if problem:
            found.append(Finding(row, LATENCY, Verdict.ERROR, reason=problem, remedy=counting.BROKEN))
        elif not counting.is_absent(of_row := prepared[0]):
            seconds = seconds_of(measured, number, HEAD)
            found.append(Finding(row, LATENCY, Verdict.NEW, head=seconds, reason=KEPT))
            values = {**of_row[HEAD]["counts"], **of_row[HEAD]["backends"], "layout": of_row[HEAD]["layout"]}
            known = {name: value for name, value in values.items() if value is not None}
            found += [Finding(row, name, Verdict.NEW, head=value, reason=KEPT) for name, value in known.items()]
    return tuple(found)


def _why_not_kept(row: Row, number: int, measured: Measured) -> str | None:
    if number in measured.lost:
        return ": ".join(measured.lost[number])
    state = _state(row, number, measured)
    if state:
        return state.reason
    is_absent = counting.is_absent(measured.prepared(number)[0])
    return None if is_absent or measured.quads(number, 0) else "no quad was measured"


def seconds_of(measured: Measured, number: int, arm: str) -> float:
    """The median over the quads of both stages, in seconds per call."""
    quads = [quad for stage in (0, 1) for launched in measured.quads(number, stage) for quad in launched]
    return statistics.median(math.exp(quad.log(arm)) for quad in quads)


def arms(base: Version | None, head: Version) -> dict[str, Version]:
    """The processes of a launch, in the order in which they start; without a base, head is what runs beside itself."""
    return {BASE: base, HEAD: head, AGAIN: base} if base else {HEAD: head, AGAIN: head}
