"""One launch: fresh processes of every arm, and the quads that they measure in turns."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from invbench.harness.gate.workers import RefusedError, Version, Worker, WorkerLostError
from invbench.results import Status
from invbench.results.check import BASE, Quad, Row

BLOCKS = 6  # of a row in a quad: two of each arm
BEFORE_A_BLOCK = 0.002  # seconds of calls that bring a row's data back into the caches; at least one call
FEWEST_QUADS_A_LAUNCH = 5
WARM_UP = 0.3  # the longest, of one row in one process
MOST_SPOILED = 6  # quads of a launch that a slowed-down device may cost

Tell = Callable[[str], None]
Spawn = Callable[[Version], Worker]


@dataclass(frozen=True, slots=True)
class Plan:
    """How all launches measure.

    rows: what is compared, each with the factory that makes it where it is a user's. hello: what every process is
    asked first. quads: of a row in a launch, unless its calls are so long that they would take more than twice
    ``row_seconds``. block_seconds: of one block. timeout: seconds without an answer after which a process is given up.
    layouts: of rows, where they are known before.
    """

    rows: tuple[tuple[Row, str | None], ...]
    hello: Mapping[str, Any]
    quads: int
    row_seconds: float
    block_seconds: float
    timeout: float
    seed: int
    layouts: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Launched:
    """What a launch has found. quads and calls: by row. prepared: by arm and row, what its process says of the row.
    lost: rows that took a process down or failed while they were measured: the arm, and why."""

    quads: dict[int, list[Quad]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    prepared: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    environments: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)


class UnusableError(WorkerLostError):
    """A version that nothing can be measured of: its arm, and why."""

    def __init__(self, arm: str, reason: str) -> None:
        super().__init__(reason)
        self.arm = arm


class _RowLostError(Exception):
    """A row has taken a process with it."""

    def __init__(self, row: int, arm: str, reason: str) -> None:
        super().__init__(reason)
        self.row, self.arm, self.reason = row, arm, reason


def launch(
    versions: Mapping[str, Version],
    plan: Plan,
    rows: Sequence[int],
    number: int,
    layouts: dict[int, str],
    tell: Tell,
    started: Mapping[str, Worker] | None = None,
    spawn: Spawn = Worker,
) -> Launched:
    """Start a process of each arm, in the order given, and measure some of the plan's rows by their numbers.

    number: of the launch, which decides its order of rows and arms. layouts: of the rows, filled in by the first one,
    whose base tries them. started: processes that are running already.

    A row that takes its process down is lost, and the launch begins anew without it. Raises WorkerLostError if a
    process cannot be had at all.
    """
    lost: dict[int, tuple[str, str]] = {}
    while True:
        found = Launched(lost=lost)
        try:
            with _workers(versions, started or {}, spawn) as workers:
                _measure(
                    _Run(workers, versions, plan, number, layouts, tell, found),
                    [row for row in rows if row not in lost],
                )
            return found
        except _RowLostError as error:
            lost[error.row] = error.arm, error.reason
            started = None


@contextmanager
def _workers(
    versions: Mapping[str, Version], started: Mapping[str, Worker], spawn: Spawn
) -> Iterator[dict[str, Worker]]:
    """A process for each arm; all end with the context."""
    workers = dict(started)
    try:
        for arm, version in versions.items():
            if arm not in workers:
                workers[arm] = spawn(version)
        yield {arm: workers[arm] for arm in versions}
    finally:
        for worker in workers.values():
            worker.stop()


@dataclass
class _Run:
    """A launch while it is measured."""

    workers: Mapping[str, Worker]
    versions: Mapping[str, Version]
    plan: Plan
    number: int
    layouts: dict[int, str]
    tell: Tell
    found: Launched

    def ask(self, arm: str, row: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """A worker's answer about a row."""
        self.workers[arm].send({**request, "row": row})
        return self.answer(arm, row)

    def answer(self, arm: str, row: int) -> dict[str, Any]:
        """A worker's next answer, which is about that row."""
        try:
            return self.workers[arm].answer(self.plan.timeout)
        except WorkerLostError as error:
            raise _RowLostError(row, arm, str(error)) from error


def _measure(run: _Run, rows: Sequence[int]) -> None:
    for worker in run.workers.values():
        worker.send({"do": "hello", **run.plan.hello})
    for arm, worker in run.workers.items():
        try:
            run.found.environments[arm] = worker.answer(run.plan.timeout)["environment"]
        except RefusedError as error:
            raise UnusableError(arm, f"{arm} ({worker.version.side.name}) cannot measure: {error}") from error
        except WorkerLostError as error:
            raise WorkerLostError(f"{arm} ({worker.version.side.name}) cannot measure: {error}") from error
    _prepare(run, rows)
    able = [row for row in rows if _is_ready(run, row)]
    sizes = _warm(run, able)
    run.found.quads = {row: [] for row in able}
    order = random.Random(f"{run.plan.seed}, launch {run.number}")
    orders = [list(each) for each in itertools.permutations(run.workers)]
    lacking = {row: _quads_of(run.plan, sizes[row]) for row in able}
    spoiled = 0
    for done in range(max(lacking.values(), default=0) + MOST_SPOILED):
        rows = [row for row in able if lacking[row] and row not in run.found.lost]
        order.shuffle(rows)
        for row in rows:
            run.tell(f"quad {done + 1} of {run.plan.quads}")
            quad = _quad(run, row, tuple(order.choice(orders)), sizes[row]) if spoiled < MOST_SPOILED else None
            if quad is not None:
                run.found.quads[row].append(quad)
                lacking[row] -= 1
            elif row not in run.found.lost:
                spoiled += 1


def _quads_of(plan: Plan, size: Mapping[str, Any]) -> int:
    """How many quads of a row fit: those of quick calls all do."""
    block = max(size["seconds"], BEFORE_A_BLOCK) + size["calls"] * size["samples"] * size["seconds"]
    fitting = int(2 * plan.row_seconds / (BLOCKS * block))
    return min(plan.quads, max(FEWEST_QUADS_A_LAUNCH, fitting))


def _prepare(run: _Run, rows: Sequence[int]) -> None:
    """Rows made ready in one arm after the other: side by side their threads would fight for the cores, and take four
    times as long. Layouts that are not known yet are tried by the first."""
    for arm in run.workers:
        for row in rows:
            subject, factory = run.plan.rows[row]
            run.workers[arm].send({
                "do": "prepare", "number": row, "row": subject.to_dict(), "factory": factory,
                "layout": run.layouts.get(row),
            })  # fmt: skip
            run.tell(f"preparing {subject.label}")
            try:
                answer = run.answer(arm, row)
            except RefusedError as error:
                answer = {"status": Status.ERROR, "reason": str(error)}
            run.found.prepared.setdefault(arm, {})[row] = answer
            if answer["status"] == Status.OK:
                run.layouts.setdefault(row, answer["layout"])


def _is_ready(run: _Run, row: int) -> bool:
    return all(found[row]["status"] == Status.OK for found in run.found.prepared.values())


def _warm(run: _Run, rows: list[int]) -> dict[int, dict[str, Any]]:
    """Every row warm in every arm, and the size of its blocks: that of the base, or without one of the first arm."""
    sizes: dict[int, dict[str, Any]] = {}
    for row in list(rows):
        run.tell(f"warming up {run.plan.rows[row][0].label}")
        for arm in sorted(run.workers, key=lambda arm: arm != BASE):
            try:
                size = run.ask(arm, row, {"do": "warm", "longest": WARM_UP, "block_seconds": run.plan.block_seconds})
                sizes.setdefault(row, size)
                if run.versions[arm].slowdown:  # not its worker's, which may have been started before
                    seconds = run.versions[arm].slowdown * sizes[row]["seconds"]
                    run.ask(arm, row, {"do": "slow", "seconds": seconds})
            except RefusedError as error:
                run.found.lost[row] = arm, str(error)
                rows.remove(row)
                break
        else:
            run.found.calls[row] = sizes[row]["calls"]
    return sizes


def _quad(run: _Run, row: int, order: tuple[str, ...], size: Mapping[str, Any]) -> Quad | None:
    """Two blocks of every arm in mirrored order; None if the device was slowed down, or held by its power limit in some
    blocks and not in others, or if the row is lost."""
    blocks: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in order}
    capped = set()
    for arm in (*order, *reversed(order)):
        try:
            block = {"do": "block", "before": BEFORE_A_BLOCK, "calls": size["calls"], "samples": size["samples"]}
            found = run.ask(arm, row, block)
        except RefusedError as error:
            run.found.lost[row] = arm, str(error)
            return None
        if found["spoiled"]:
            return None
        capped.add(found["capped"])
        blocks[arm].append(tuple(float(f"{value:.6g}") for value in found["seconds"]))
    if len(capped) > 1:
        return None
    return Quad(order, {arm: tuple(each) for arm, each in blocks.items()})
