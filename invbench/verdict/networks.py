"""Judging whole networks: ratios within a regime, the share of the ceiling, each side in its faster regime. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from invbench.results import Result
from invbench.results.quantities import Interval
from invbench.spec import FREE, Regime
from invbench.verdict import paired_ratio, with_ratio


def with_network_ratios(results: Iterable[Result]) -> tuple[Result, ...]:
    """The rows with their ratios to their baseline in the same regime, and the share of their ceiling."""
    rows = tuple(results)
    return tuple(_judged(row, rows) for row in rows)


def _judged(row: Result, rows: Sequence[Result]) -> Result:
    base = next((r for r in rows if r.subject == row.baseline and r.regime == row.regime and r.backend != FREE), None)
    free = _of(rows, row.subject, FREE, row.regime)
    ceiling = paired_ratio(free, row) if free is not None and free is not row else None
    return replace(with_ratio(row, base) if base else row, ceiling=ceiling)


@dataclass(frozen=True, slots=True)
class Best:
    """A network with involution and its baseline, each in the regime that is faster for it.

    ratio: of the latencies, paired round by round. ceiling: the same for the network with involution free, in the
    regime that is faster for that.
    """

    row: Result
    base: Result
    ratio: Interval
    ceiling: Interval | None


def best_regimes(rows: Sequence[Result]) -> list[Best]:
    """For each network and backend that is no baseline itself, both sides at their best; one point's rows."""
    names = dict.fromkeys((row.subject, row.backend) for row in rows if row.backend != FREE)
    found = []
    for subject, backend in names:
        row = _fastest(rows, subject, backend)
        base = _fastest(rows, row.baseline) if row and row.baseline else None
        between = paired_ratio(row, base) if row and base and row.subject != base.subject else None
        if row and base and between:
            free = _fastest(rows, subject, FREE)
            found.append(Best(row, base, between, paired_ratio(free, base) if free else None))
    return found


def _of(rows: Iterable[Result], subject: str, backend: str, regime: Regime | None) -> Result | None:
    return next((row for row in rows if row.name == (subject, backend, str(regime or ""))), None)


def _fastest(rows: Iterable[Result], subject: str, backend: str | None = None) -> Result | None:
    """The regime with the lowest median; of any backend but the free one unless one is named."""
    here = (r for r in rows if r.subject == subject and (r.backend == backend if backend else r.backend != FREE))
    return min((r for r in here if r.seconds is not None), key=lambda r: r.seconds or 0.0, default=None)
