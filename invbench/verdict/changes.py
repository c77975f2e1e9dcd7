"""Two result documents, the same points and subjects side by side: what changed from A to B. Pure.

A and B were not measured in turns, so the ratio of their latencies carries whatever differed between the two runs.
They are told apart only where their 95 % intervals of the median do not overlap, and only on one class of machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from invbench.results import Result, ResultSet, Status, machine_class
from invbench.results.quantities import FEWEST, Interval, quotient
from invbench.spec import AnyCase, Regime
from invbench.verdict.points import machine_names

# A high-water mark of the kernel is off by some hundred KiB; a smaller difference is none (invbench.harness.memory).
PAGES = 2**20
COUNTS = ("params", "macs", "flop")
# What changes by itself from run to run.
VOLATILE = ("cpu.load", "cpu.memory", "cpu.affinity", "gpu.free", "gpu.processes", "floor.seconds")


class Verdict(StrEnum):
    """What became of a metric from A to B."""

    FASTER = "faster"
    SLOWER = "slower"
    LESS = "less"
    MORE = "more"
    SAME = "no difference"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not comparable"
    ONLY_A = "only in A"
    ONLY_B = "only in B"


@dataclass(frozen=True)
class Change:
    """One metric of one subject at one point in A and in B.

    metric: latency (seconds), memory (bytes), params, macs or flop. ratio: B over A; of latencies with the interval
    that the two intervals allow, of counts with no width. smallest_effect: the least slowdown, as a ratio, that two
    intervals of these widths would have told. reason: why it is not comparable or inconclusive. machine: the class of
    the machine, of A's if they differ. regime: of a network.
    """

    case: AnyCase
    subject: str
    backend: str
    metric: str
    verdict: Verdict
    a: float | None = None
    b: float | None = None
    ratio: Interval | None = None
    smallest_effect: float | None = None
    reason: str | None = None
    machine: str | None = None
    regime: Regime | None = None

    def to_dict(self) -> dict[str, Any]:
        """One element of the comparison's ``changes``."""
        ratio = self.ratio and {"median": self.ratio.median, "low": self.ratio.low, "high": self.ratio.high}
        return {
            "case": self.case.to_dict(), "subject": self.subject, "backend": self.backend, "metric": self.metric,
            "verdict": str(self.verdict), "a": self.a, "b": self.b, "ratio": ratio,
            "smallest_effect": self.smallest_effect, "reason": self.reason, "machine": self.machine,
            **({"regime": str(self.regime)} if self.regime else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """All changes from A to B, and the settings, versions and flags that differ: by name, the values in A and B."""

    a: ResultSet
    b: ResultSet
    changes: tuple[Change, ...]
    differences: Mapping[str, tuple[Any, Any]]

    def of(self, metric: str) -> list[Change]:
        """The changes of one metric; a row that only one side has counts as one of latency."""
        return [change for change in self.changes if change.metric == metric]

    @property
    def is_of_single_processes(self) -> bool:
        """Whether a side has intervals of operators that are of one process each."""
        rows = (*self.a.operators().results, *self.b.operators().results)
        return any(row.latency and row.latency.is_of_one_process for row in rows)

    @property
    def counts(self) -> Counter[Verdict]:
        """How often each verdict on latency was given."""
        return Counter(change.verdict for change in self.of("latency"))

    @property
    def exit_code(self) -> int:
        """0, or 5 if something could not be compared; it is no gate, so slower rows are 0."""
        return 5 if any(change.verdict is Verdict.NOT_COMPARABLE for change in self.changes) else 0


def compare(a: ResultSet, b: ResultSet) -> Comparison:
    """What changed from A to B, one class of machines after the other, in A's order; what only B has comes last."""
    in_a, in_b = _by_row(a), _by_row(b)
    changes: list[Change] = []
    for key in dict.fromkeys([*in_a, *in_b]):
        changes += _row(*_that_could_run(in_a.get(key, {}), in_b.get(key, {})))
    machines = list(dict.fromkeys([*_machines(a), *_machines(b), *(change.machine for change in changes)]))
    changes.sort(key=lambda change: machines.index(change.machine))
    return Comparison(a, b, tuple(changes), _differences(a, b))


def _by_row(results: ResultSet) -> dict[tuple[AnyCase, tuple[str, ...]], dict[str, Result]]:
    """The rows of each case and name, by class of machine; of several runs the last one counts."""
    found: dict[tuple[AnyCase, tuple[str, ...]], dict[str, Result]] = {}
    for row in results.results:
        machine = machine_class(results.environment_of(row))
        found.setdefault((row.case, row.name), {})[machine] = row
    return found


def _that_could_run(a: Mapping[str, Result], b: Mapping[str, Result]) -> tuple[dict[str, Result], dict[str, Result]]:
    """Without the rows of a backend that could run on the other side only: added or taken away, it is no failure."""

    def kept(rows: Mapping[str, Result], others: Mapping[str, Result]) -> dict[str, Result]:
        ran = {machine for machine, row in others.items() if row.status is not Status.UNAVAILABLE}
        return {m: row for m, row in rows.items() if not (row.status is Status.UNAVAILABLE and m in ran)}

    return kept(a, b), kept(b, a)


def _row(a: Mapping[str, Result], b: Mapping[str, Result]) -> Iterator[Change]:
    """The changes of one row, on each machine that both sides have."""
    both = [machine for machine in a if machine in b]
    for machine in both:
        regime = a[machine].regime
        changes = _metrics(a[machine], b[machine], None)
        yield from (replace(change, machine=machine, regime=regime) for change in changes)
    if a and b and not both:
        (machine, before), after = next(iter(a.items())), next(iter(b.values()))
        apart = "measured on machines of different classes"
        changes = _metrics(before, after, apart)
        yield from (replace(change, machine=machine, regime=before.regime) for change in changes)
        return
    for rows, other, verdict in ((a, b, Verdict.ONLY_A), (b, a, Verdict.ONLY_B)):
        for machine, row in rows.items():
            if machine not in other:
                a_side, b_side = (row.seconds, None) if verdict is Verdict.ONLY_A else (None, row.seconds)
                only = Change(row.case, row.subject, row.backend, "latency", verdict, a_side, b_side)
                yield replace(only, machine=machine, regime=row.regime)


def _metrics(a: Result, b: Result, apart: str | None) -> Iterator[Change]:
    """Latency if a side was timed, memory if a side knows it, and counts. apart: why latencies cannot be compared."""
    if a.latency or b.latency:
        yield _latency(a, b, apart)
    if (a.memory and a.memory.peak is not None) or (b.memory and b.memory.peak is not None):
        yield _memory(a, b)
    for name in COUNTS:
        before, after = getattr(a, name), getattr(b, name)
        if before is not None or after is not None:
            yield _count(a, name, before, after)


def _latency(a: Result, b: Result, apart: str | None) -> Change:
    apart = apart or _why_not(a, b)
    if apart or a.latency is None or b.latency is None:
        verdict = Verdict.NOT_COMPARABLE
        return Change(a.case, a.subject, a.backend, "latency", verdict, a.seconds, b.seconds, reason=apart)
    before, after = a.latency.interval, b.latency.interval
    found, reason = Verdict.SAME, None
    if min(before.count, after.count) < FEWEST:
        found = Verdict.INCONCLUSIVE
        fewest = a.latency if before.count <= after.count else b.latency
        unit, option = ("rounds", "--budget") if fewest.is_of_one_process else ("launches", "--launches")
        reason = f"{fewest.interval.count} {unit} give no 95 % interval: raise {option} to have {FEWEST}"
    elif after.low > before.high:
        found = Verdict.SLOWER
    elif after.high < before.low:
        found = Verdict.FASTER
    smallest = quotient(before.high * after.median, before.median * after.low)
    return Change(
        a.case,
        a.subject,
        a.backend,
        "latency",
        found,
        before.median,
        after.median,
        _over(before, after),
        smallest,
        reason,
    )


def _why_not(a: Result, b: Result) -> str | None:
    for side, row in (("A", a), ("B", b)):
        if row.status is not Status.OK or row.latency is None:
            return f"{side}: {row.status}{f': {row.reason}' if row.reason else ''}"
    assert a.latency
    assert b.latency
    for name in ("clock", "cache"):
        before, after = getattr(a.latency, name), getattr(b.latency, name)
        if before != after:
            return f"another {name}: {before} in A, {after} in B"
    return None


def _over(a: Interval, b: Interval) -> Interval | None:
    """B over A, as far as the ends of both intervals can be apart."""
    if not (a.low and a.median and a.high):
        return None
    return Interval(b.median / a.median, b.low / a.high, b.high / a.low, min(a.count, b.count))


def _memory(a: Result, b: Result) -> Change:
    before, after = (row.memory.peak if row.memory else None for row in (a, b))
    methods = [row.memory.method if row.memory else None for row in (a, b)]
    if before is None or after is None:
        side = "A" if before is None else "B"
        reason = f"{side}: its memory is not known"
        return Change(a.case, a.subject, a.backend, "memory", Verdict.INCONCLUSIVE, before, after, reason=reason)
    if methods[0] != methods[1]:
        reason = f"measured by {methods[0]} in A, by {methods[1]} in B"
        return Change(a.case, a.subject, a.backend, "memory", Verdict.NOT_COMPARABLE, before, after, reason=reason)
    return _count(a, "memory", before, after, resolution=PAGES if methods[0] == "vmhwm" else 0)


def _count(row: Result, metric: str, a: float | None, b: float | None, resolution: int = 0) -> Change:
    """The change of something that is counted: any difference above the resolution is one."""
    if a is None or b is None:
        verdict = Verdict.ONLY_B if a is None else Verdict.ONLY_A
        return Change(row.case, row.subject, row.backend, metric, verdict, a, b)
    found = Verdict.SAME if abs(b - a) <= resolution else Verdict.MORE if b > a else Verdict.LESS
    ratio = quotient(b, a)
    exact = None if ratio is None else Interval(ratio, ratio, ratio, 1)
    return Change(row.case, row.subject, row.backend, metric, found, a, b, exact)


def _differences(a: ResultSet, b: ResultSet) -> dict[str, tuple[Any, Any]]:
    """Versions, flags and settings that are not the same on both sides; of several classes of machines, those of each
    that both sides have."""
    sides = [_machines(a), _machines(b)]
    if len(sides[0]) == len(sides[1]) == 1:
        here, there = _described(a, {"": a.environment}), _described(b, {"": b.environment})
    else:
        names = {**machine_names(b), **machine_names(a)}
        both = {f"{names[key]}: ": key for key in sides[0] if key in sides[1]}
        here, there = (
            _described(each, {lead: found[key] for lead, key in both.items()})
            for each, found in zip((a, b), sides, strict=True)
        )
    return {
        name: (here.get(name), there.get(name))
        for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)
    }  # fmt: skip


def _described(results: ResultSet, environments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Version, environments and settings as a flat list of names; environments: by what their names begin with."""
    found = {"invbench": results.tool_version}
    for lead, environment in environments.items():
        told = _flat(environment)
        found |= {f"{lead}{name}": value for name, value in told if not name.startswith(VOLATILE)}
    return found | dict(_flat(results.settings, "settings."))


def _machines(results: ResultSet) -> Mapping[str, Mapping[str, Any]]:
    """The fingerprint of each class of machines."""
    return results.machines or {machine_class(results.environment): results.environment}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
