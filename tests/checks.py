"""Made-up documents of ``invbench check``, for the tests of telling: every verdict, long reasons, self-tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sweeps import MACHINE, at
from test_results import document

from invbench.results import ResultSet
from invbench.results.check import Check, Finding, Quad, Row, Series, Side, Verdict
from invbench.results.quantities import Interval

BASE = Side("v0.3", "0f3c1d2e4b5a69788796a5b4c3d2e1f001122334", MACHINE)
HEAD = Side("work tree", "1a2b3c4d5e6f708192a3b4c5d6e7f80911223344", MACHINE)
QUIET = "stop other programs, raise --budget, or take a machine of your own (invbench doctor)"
TRADE = "make it fast again, or raise the threshold of this case in the profile's [check] if it is a trade"


def named(name: str = "numba", **axes: Any) -> Row:
    """A row by the name it has in tables."""
    is_convolution = name in ("conv2d", "conv2d-3x3")
    subject, backend = (name, "torch") if is_convolution else ("involution", name)
    return Row(at(**axes), subject, backend, is_control=is_convolution)


def latency(
    row: Row, ratio: float | None = 1.0, verdict: Verdict = Verdict.PASS, spread: float = 0.01, **fields: Any
) -> Finding:
    """A finding on latency of three launches a little apart; ratio None: there is no head."""
    base = 0.00145 * (1 + len(row.backend) / 7)
    if ratio is None:
        return Finding(row, "latency", verdict, **{"base": base, "change": 0.05, **fields})
    launches = tuple(ratio * (1 + spread * step) for step in (-1, 0, 0.6))
    told = {"change": 0.05, "floor": 0.0123, "smallest_effect": 0.061, "quads": 15, "above": 0, **fields}
    interval = Interval(ratio, launches[0], launches[-1], len(launches))
    return Finding(row, "latency", verdict, base, base * ratio, interval, launches, **told)


def counts(row: Row, **heads: float | str) -> list[Finding]:
    """The other metrics; heads: those that differ from base, for the worse where they are more."""
    bases: dict[str, float | str] = {
        "memory": 3 * 2**20, "kept": 2**20, "params": 67_472, "flop": 997_097_472, "backend": row.backend
    }  # fmt: skip
    found = []
    for metric, base in bases.items():
        head = heads.get(metric, base)
        improved = not isinstance(head, str) and not isinstance(base, str) and head < base
        verdict = Verdict.PASS if head == base else Verdict.IMPROVED if improved else Verdict.FAIL
        reason = None if head == base else f"{metric} changed"
        remedy = "accept it with --update if it is meant" if verdict is Verdict.FAIL else None
        found.append(Finding(row, metric, verdict, base, head, change=0.0, reason=reason, remedy=remedy))
    return found


def check(*findings: Finding, **fields: Any) -> Check:
    """A check of the work tree against a revision."""
    return Check(**{"kind": "revision", "base": BASE, "head": HEAD, "findings": findings, **fields})


def checked(*checks: Check, **fields: Any) -> ResultSet:
    """A document of checks."""
    settings = {"clock": "eager", "cache": "hot", "seed": 0}
    told = {"command": "invbench check small --base v0.3", "baseline": None, "peaks": None, "settings": settings}
    return document(**{**told, "environment": MACHINE, "checks": checks, **fields})


def passing(rows: int = 4) -> Check:
    """Nothing changed."""
    found = [named(K=K) for K in (3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29)[:rows]]
    return check(*(latency(row) for row in found), *(f for row in found for f in counts(row)))


def slower() -> Check:
    """One of four rows."""
    row = named("compiled", K=7)
    reason = "+8.2% over 15 quads in 3 launches, +7.9% again in 3 fresh launches: slower by more than 5.0%"
    found = latency(row, 1.082, Verdict.FAIL, reason=reason, remedy=TRADE, above=15)
    others = [named("numba", K=3), named("compiled", K=3), named("numba", K=7)]
    return check(*(latency(r) for r in others), found, *(f for r in (*others, row) for f in counts(r)))


NOISE = (
    "+1.0% over 15 quads in 3 launches; identical code differed by 9.0%, so that less than 14.2% would not have shown"
)
SLOW = "+21.0% over 15 quads in 3 launches, +20.4% again in 3 fresh launches: slower by more than 5.0%"
FAST = "-12.1% over 15 quads in 3 launches, -11.9% again in 3 fresh launches"
CRASH = "RuntimeError: \x1b[31mno kernel\x1b[0m <image> & | 100 %\nfor this: card, and so on"


def every_verdict(**fields: Any) -> Check:
    """One row of each, two that share a reason, and counts that changed."""
    noisy = {"spread": 0.05, "floor": 0.09, "smallest_effect": 0.142, "reason": NOISE, "remedy": QUIET}
    numba, fails, improved, unsure = (
        named(name, K=K, H=14) for name, K in (("numba", 3), ("numba", 7), ("compiled", 3), ("compiled", 7))
    )
    missing, new, broken, other, control = (
        named(name, K=3, H=28) for name in ("naive", "unfold", "triton", "conv2d", "conv2d-3x3")
    )
    found = [
        latency(numba),
        latency(fails, 1.21, Verdict.FAIL, reason=SLOW, remedy=TRADE, above=15),
        latency(improved, 0.879, Verdict.IMPROVED, reason=FAST),
        latency(unsure, 1.01, Verdict.INCONCLUSIVE, **noisy),
        latency(missing, None, Verdict.MISSING, reason="head has no naive", remedy="or take it out of the profile"),
        latency(new, None, Verdict.NEW, base=None, reason="base has no backend unfold"),
        latency(broken, None, Verdict.ERROR, base=None, reason=CRASH, remedy="see the log"),
        latency(other, None, Verdict.NOT_COMPARABLE, reason="another torch", remedy="measure both with the same one"),
        latency(control, 1.01, Verdict.INCONCLUSIVE, **noisy),
    ]
    found += [
        *counts(numba), *counts(fails, memory=3.5 * 2**20, params=67_473), *counts(improved, flop=997_097_471),
        *counts(unsure, backend="naive"),
    ]  # fmt: skip
    told = {"differences": {"versions.torch": ("2.12.0", "2.13.0")}, "seconds": {"first": 60.2, "second": 21.0}}
    return check(*found, **{**told, **fields})


def with_series(whole: Check) -> Check:
    """With the raw blocks."""
    quad = Quad(("base", "head", "again"), dict.fromkeys(("base", "head", "again"), ((1e-3, 2e-3), (1e-3,))))
    return replace(whole, series=tuple(Series(f.row, 3, (((quad,) * 5,) * 3,)) for f in whole.latencies))


def self_test(outcome: str = "works") -> tuple[Check, Check]:
    """Both halves, as they are where the gate works, where it misbehaved, or where it was too noisy."""
    rows = [named("numba", K=3), named("numba", K=7)]
    noise = {"floor": 0.2, "smallest_effect": 0.31, "reason": "identical code differed by 20.0%", "remedy": QUIET}
    same = [latency(rows[0]), latency(rows[1], smallest_effect=0.083)]
    if outcome == "too noisy":
        same[1] = latency(rows[1], 1.02, Verdict.INCONCLUSIVE, 0.1, **noise)
    found = [latency(row, 1.2, Verdict.FAIL, reason="+20.0%, +20.0% again", above=15) for row in rows]
    if outcome == "misbehaved":
        found[0] = latency(rows[0], 1.0, Verdict.PASS)
    side = replace(HEAD, name="work tree")
    halves = {"kind": "same", "base": side, "head": side}
    return check(*same, **halves), check(*found, **halves, injected=0.2)
