"""A check from its settings to its record: the rows of a profile, in the versions that are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from invbench.harness.blocks import BLOCK_SECONDS
from invbench.harness.gate.counting import METRICS, is_absent
from invbench.harness.gate.launching import BLOCKS, Plan, Tell, UnusableError
from invbench.harness.gate.running import Alone, Judging, Measured, Yardstick, arms, as_baseline, findings, measure
from invbench.harness.gate.sides import OURS, Home, head_of
from invbench.harness.gate.stored import SAME, Stored, identity
from invbench.harness.gate.workers import RefusedError, Version, Worker
from invbench.harness.settings import INVOLUTION
from invbench.results.check import HEAD, LATENCY, Check, Finding, Row, Side, Verdict
from invbench.spec import BackendUnavailableError, InvbenchError
from invbench.study.grid import Grid, GridPoint
from invbench.study.limits import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    """How a check measures; stored with its results.

    device: None for the fastest here. budget: seconds of measuring a point, both stages' rows and arms alike. subjects:
    a user's operators, by name, instead of ours. timeout: seconds in which a process must answer.
    """

    backends: tuple[str, ...]
    limits: Limits
    budget: float = 6.0
    device: str | None = None
    clock: str = "eager"
    cache: str = "hot"
    seed: int = 0
    autotune: bool = True
    subjects: tuple[str, ...] = ()
    timeout: float = 300.0

    @property
    def hello(self) -> dict[str, Any]:
        """What every process is asked first."""
        names = ("clock", "cache", "seed", "autotune")
        return {**{name: getattr(self, name) for name in names}, "device": self.device, "subjects": []}


@dataclass(frozen=True)
class Welcome:
    """What there is: the device, its usable cores, the machine's fingerprint, the user's operators and their home.

    missing: what of those head does not have. unavailable: backends that cannot run here.
    """

    device: str
    threads: int
    environment: Mapping[str, Any]
    subjects: tuple[tuple[str, str, str], ...]
    home: Home
    missing: str = ""
    unavailable: tuple[str, ...] = ()


def greet(worker: Worker, settings: Settings, named: Sequence[str] = ()) -> Welcome:
    """Ask a process of head what there is; raises InvbenchError for what is wrong with the settings.

    named: backends that were asked for by name, of which each has to be able to run.
    """
    try:
        found = worker.ask({"do": "hello", **settings.hello, "subjects": settings.subjects}, settings.timeout)
    except RefusedError as refusal:
        raise InvbenchError(str(refusal)) from None
    for name in named:
        if reason := found["unavailable"].get(name):
            raise BackendUnavailableError(f"--backend {name}: {reason}")
    packages = {each["factory"].partition(":")[0].partition(".")[0] for each in found["subjects"]}
    if len(packages) > 1:
        raise InvbenchError(
            f"--subject names operators of several packages: got {', '.join(settings.subjects)}; check each on its own"
        )
    folders = [each["home"] for each in found["subjects"] if each["home"]]
    home = OURS
    if packages:
        home = Home(packages.pop(), Path(folders[0]) if folders else Path.cwd(), is_there=bool(folders))
    subjects = tuple((each["subject"], each["backend"], each["factory"]) for each in found["subjects"])
    missing = [
        f"--subject {name}: {each['missing']}"
        for name, each in zip(settings.subjects, found["subjects"], strict=True)
        if each["missing"]
    ]
    return Welcome(
        found["device"], found["threads"], found["environment"], subjects, home, "; ".join(missing),
        tuple(found["unavailable"]),
    )  # fmt: skip


@contextmanager
def opened(
    settings: Settings, grid: Grid, named: Sequence[str], tell: Tell
) -> Iterator[tuple[Gate, dict[str, Worker]]]:
    """The gate for the points of a grid, and the process of head that was asked what there is, for the first launch.

    Raises InvbenchError for what is wrong with the settings or leaves no point.
    """
    tell("starting the first process")
    scout = Worker(Version(Side(HEAD)))
    try:
        welcome = greet(scout, settings, named)
        points, refused = grid.points((welcome.device.partition(":")[0],), welcome.threads)
        if not points:
            raise InvbenchError(f"no point is left: {refused[0].reason if refused else 'conditions leave out all'}")
        there = [replace(point, case=replace(point.case, device=welcome.device)) for point in points]
        yield Gate(settings, welcome, head_of(welcome.home), there, tell), {HEAD: scout}
    finally:
        scout.stop()


@dataclass(frozen=True)
class Gate:
    """A check of some points. head: the version that is judged."""

    settings: Settings
    welcome: Welcome
    head: Version
    points: Sequence[GridPoint]
    tell: Tell
    rows: tuple[tuple[Row, str | None], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(_rows(self.points, self.settings, self.welcome)))

    def against(
        self, base: Version, differs: str | None, kind: str, started: Mapping[str, Worker] | None = None
    ) -> tuple[Check, bool]:
        """Head against a base that runs beside it; and whether Ctrl-C ended it.

        differs: what one depends on and the other does not, for which their latencies are not comparable.
        """
        judging, plan = self._judging(), self._plan()
        if differs:
            reason = f"their dependencies differ: {differs}; each needs an environment of its own (--base-python)"
            judging, plan = replace(judging, launches=1, apart=reason), replace(plan, quads=0)
        yardstick = Yardstick()
        try:
            measured = measure(arms(base, self.head), plan, judging, yardstick, self.tell, started)
        except UnusableError as error:
            if error.arm == HEAD:
                raise
            return self._unusable(kind, base.side, str(error)), False
        asked = [measured.prepared(number) for number, (_, factory) in enumerate(self.rows) if factory]
        if self.welcome.missing and all(is_absent(launches[0]) for launches in asked if launches):
            raise InvbenchError(f"{self.welcome.missing}, neither in head nor in the base")
        return self._check(kind, base.side, measured, findings(measured, judging, yardstick)), measured.interrupted

    def against_file(self, stored: Stored, started: Mapping[str, Worker], whole: bool) -> tuple[Check, bool]:
        """Head against what a file says of an earlier version. whole: rows that only the file has are missing."""
        self._require_all("--baseline-file")
        settings = {name: getattr(self.settings, name) for name in SAME}
        judging = replace(self._judging(), apart=stored.apart(self.welcome.environment, settings))
        plan = self._plan(stored.layouts(row for row, _ in self.rows))
        measured = measure(arms(None, self.head), plan, judging, stored, self.tell, started)
        found = findings(measured, judging, stored)
        if whole:
            found += tuple(stored.missing(row for row, _ in self.rows))
        return self._check("file", stored.kept.head, measured, found), measured.interrupted

    def baseline(self, started: Mapping[str, Worker]) -> tuple[Check, bool]:
        """Head alone, as a file keeps it."""
        self._require_all("--update")
        if len({identity(row) for row, _ in self.rows}) < len(self.rows):
            raise InvbenchError(
                "--update: rows that differ only in threads or in the number of a device are one row to another "
                "machine; keep one file for each"
            )
        nothing = replace(self._judging(), visible=math.inf)
        measured = measure(arms(None, self.head), self._plan(), nothing, Alone(), self.tell, started)
        return self._check("baseline", self.head.side, measured, as_baseline(measured)), measured.interrupted

    def _require_all(self, way: str) -> None:
        """Refuse what head does not have, where no base could."""
        if self.welcome.missing:
            raise InvbenchError(f"{self.welcome.missing}; {way} measures head alone")

    def _unusable(self, kind: str, base: Side, reason: str) -> Check:
        """A base of which nothing can be measured: no row can be compared."""
        remedy = "compare with a base that this invbench can measure, or in an environment of its own (--base-python)"
        found = tuple(
            Finding(row, LATENCY, Verdict.NOT_COMPARABLE, reason=reason, remedy=remedy) for row, _ in self.rows
        )
        return Check(kind, base, replace(self.head.side, environment=self.welcome.environment), found)

    def _plan(self, layouts: Mapping[Row, str] | None = None) -> Plan:
        limits = self.settings.limits
        shortest, longest = BLOCK_SECONDS
        able = [row for row, _ in self.rows if row.backend not in self.welcome.unavailable]
        of_a_point = max(1, round(len(able) / len(self.points)))
        row_seconds = self.settings.budget / limits.launches / of_a_point
        return Plan(
            self.rows, {**self.settings.hello, "device": self.welcome.device}, limits.quads, row_seconds,
            min(longest, max(shortest, row_seconds / limits.quads / BLOCKS)), self.settings.timeout,
            self.settings.seed,
            {n: layout for n, (row, _) in enumerate(self.rows) if (layout := (layouts or {}).get(row))},
        )  # fmt: skip

    def _judging(self) -> Judging:
        limits, fields = self.settings.limits, {point.case: point.fields for point in self.points}
        thresholds = {
            number: {name: limits.threshold(name, fields[row.case]) for name in (LATENCY, *METRICS)}
            for number, (row, _) in enumerate(self.rows)
        }
        return Judging(limits.launches, limits.visible, thresholds)

    def _check(self, kind: str, base: Side, measured: Measured, found: tuple[Finding, ...]) -> Check:
        environments = measured.first.environments
        of_head = environments[HEAD]
        of_base = environments.get("base", base.environment or of_head)
        return Check(
            kind, replace(base, environment=of_base), replace(self.head.side, environment=of_head), found,
            measured.series(), injected=self.head.slowdown or None, differences=_differences(of_base, of_head),
            seconds=measured.seconds,
        )  # fmt: skip


def _rows(points: Sequence[GridPoint], settings: Settings, welcome: Welcome) -> list[tuple[Row, str | None]]:
    """The user's operators, or involution by each backend, and the convolution that the ratios of a point are to."""
    found: list[tuple[Row, str | None]] = []
    for point in points:
        ours = [] if welcome.subjects else [(INVOLUTION, backend, None) for backend in settings.backends]
        for subject, backend, factory in (*welcome.subjects, *ours):
            found.append((Row(point.case, subject, backend), factory))
        if point.baseline:
            found.append((Row(point.case, point.baseline, "torch", is_control=True), None))
    return found


def _differences(base: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The versions in which two fingerprints differ."""
    flat = [{"python": each.get("python"), **(each.get("versions") or {})} for each in (base, head)]
    return {
        name: (flat[0].get(name), flat[1].get(name))
        for name in dict.fromkeys((*flat[0], *flat[1]))
        if flat[0].get(name) != flat[1].get(name)
    }
