"""What a check compares exactly: whether a row is there and right, its counts, its memory, and who computes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from invbench.ops import BACKENDS
from invbench.results import Status
from invbench.results.check import BASE, HEAD, LATENCY, Finding, Row, Verdict
from invbench.results.quantities import Interval, quotient

MISSING = "missing"  # a row's status in a version that does not have it
METRICS = ("params", "flop", "kept", "memory")
CHOICES = ("backend", "automatic")
IN_MEMORY = ", its weight in memory"  # after the name of a backend
BROKEN = "mend what fails; the gate says nothing about this row until then"

Prepared = Mapping[str, Any]


def is_absent(prepared: Mapping[str, Prepared]) -> bool:
    """Whether no version can run a row here, which is no finding."""
    return all(found["status"] in (Status.UNAVAILABLE, MISSING) for found in prepared.values())


def state(row: Row, prepared: Mapping[str, Prepared]) -> Finding | None:
    """The finding on a row that one of the versions does not have or gets wrong; None if it can be compared, or if none
    has it. prepared: what the processes of the arms said of it."""
    if is_absent(prepared):
        return None
    head, others = prepared[HEAD], [found for arm, found in prepared.items() if arm != HEAD]
    absent = (Status.UNAVAILABLE, MISSING)
    if head["status"] in absent:
        remedy = "bring it back, or take it out of the profile"
        return Finding(row, LATENCY, Verdict.MISSING, reason=f"head does not have it: {head['reason']}", remedy=remedy)
    if head["status"] != Status.OK:
        return Finding(row, LATENCY, Verdict.ERROR, reason=f"head: {head['reason']}", remedy=BROKEN)
    for base in others:
        if base["status"] in absent:
            return Finding(row, LATENCY, Verdict.NEW, reason=f"base does not have it: {base['reason']}")
        if base["status"] != Status.OK and BASE not in prepared:  # it is head that runs beside itself
            return Finding(row, LATENCY, Verdict.ERROR, reason=f"head: {base['reason']}", remedy=BROKEN)
        if base["status"] != Status.OK:
            return Finding(
                row, LATENCY, Verdict.NOT_COMPARABLE, reason=f"base: {base['reason']}",
                remedy="compare with a base that works",
            )  # fmt: skip
    if len({found["inputs"] for found in prepared.values()}) > 1:
        reason = "the versions were not given the same inputs, bit for bit"
        remedy = "compare environments whose torch makes the same random numbers"
        return Finding(row, LATENCY, Verdict.NOT_COMPARABLE, reason=reason, remedy=remedy)
    return None


def counts(
    row: Row, base: Prepared, head: Prepared, thresholds: Mapping[str, float], twins: tuple[Prepared, Prepared]
) -> Iterator[Finding]:
    """A finding for every count that a side has, and for who computes.

    twins: two processes of identical code. A count in which they differ is not exact here (an allocator's peak where
    algorithms are chosen by trying), and is not compared.
    """
    for metric in METRICS:
        before, after = base["counts"].get(metric), head["counts"].get(metric)
        if twins[0]["counts"].get(metric) != twins[1]["counts"].get(metric):
            continue
        if before is not None or after is not None:
            yield _count(row, metric, before, after, thresholds[metric])
    for name in CHOICES:
        if name in base["backends"] and name in head["backends"]:
            yield _choice(row, name, base["backends"][name], head["backends"][name])


def _count(row: Row, metric: str, base: float | None, head: float | None, threshold: float) -> Finding:
    if base is None or head is None:
        verdict = Verdict.NEW if base is None else Verdict.MISSING
        return Finding(
            row, metric, verdict, base, head, reason=f"{'base' if base is None else 'head'} does not tell it"
        )
    ratio = quotient(head, base)
    exact = None if ratio is None else Interval(ratio, ratio, ratio, 1)
    if head > base * (1 + threshold):
        allowed = f", at most {threshold:.1%} more is allowed" if threshold else ""
        reason = f"{metric} grew from {base:,.0f} to {head:,.0f}{allowed}"
        remedy = f"take it back, or give {metric} a threshold in the profile's [check] if it is a trade"
        return Finding(row, metric, Verdict.FAIL, base, head, exact, change=threshold, reason=reason, remedy=remedy)
    verdict = Verdict.IMPROVED if head < base * (1 - threshold) else Verdict.PASS
    return Finding(row, metric, verdict, base, head, exact, change=threshold)


def _choice(row: Row, name: str, base: str, head: str) -> Finding:
    """Who computes, by name."""
    if base == head:
        return Finding(row, name, Verdict.PASS, base, head)
    what = "backend='auto' chooses" if name == "automatic" else "the row is computed by"
    reason = f"{what} {head!r} instead of {base!r}"
    if _preference(head) <= _preference(base):
        return Finding(row, name, Verdict.IMPROVED, base, head, reason=reason)
    return Finding(row, name, Verdict.FAIL, base, head, reason=reason, remedy="see why the better one refuses")


def _preference(name: str) -> tuple[int, bool]:
    """The place of a backend among all, the best first; a name that only the base knows comes last."""
    backend = name.removesuffix(IN_MEMORY)
    order = list(BACKENDS)
    return order.index(backend) if backend in order else len(order), name.endswith(IN_MEMORY)
