"""Made-up runs of ``invbench check``, for the tests of its history."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sweeps import MACHINE, at

from invbench.results import ResultSet
from invbench.results.check import LATENCY, Check, Finding, Quad, Row, Series, Side, Verdict
from invbench.results.quantities import Interval

START = datetime(2026, 9, 5, 12, tzinfo=UTC)
LEVELS = {"numba": 1.2e-3, "compiled": 2.4e-3, "naive": 30e-3}
CONTROL = Row(at(), "conv2d", "torch", is_control=True)


def commit(number: int) -> str:
    return f"{0x3F2A9C1 + 7919 * number:07x}" * 5


def row_of(backend: str, **axes: Any) -> Row:
    return Row(at(**axes), "involution", backend)


def finding(row: Row, head: float | None, base: float | None, verdict: Verdict = Verdict.PASS) -> Finding:
    ratio = Interval(head / base, 0.98 * head / base, 1.02 * head / base, 3) if head and base else None
    return Finding(row, LATENCY, verdict, base, head, ratio, (1.0, 1.01, 0.99), 0.05, 0.02, 0.06, 15, 1)


def run(number: int, heads: Mapping[Row, float | None], **fields: Any) -> ResultSet:
    """One run: heads: seconds of each row; verdicts and raw blocks are made up."""
    verdicts: Mapping[Row, Verdict] = fields.pop("verdicts", {})
    head, base = Side("HEAD", commit(number)), Side("main", commit(number - 1))
    found = [finding(row, t, t and t / 1.001, verdicts.get(row, Verdict.PASS)) for row, t in heads.items()]
    quad = Quad(("base", "head"), {"base": ((1e-3,), (1e-3,)), "head": ((1e-3,), (1e-3,))})
    params = Finding(next(iter(heads)), "params", Verdict.PASS, 5, 5)
    raw = (Series(next(iter(heads)), 3, (((quad,),),)),)
    check = Check("revision", base, head, (*found, params), raw, injected=fields.pop("injected", None))
    created = (START + timedelta(days=number)).isoformat(timespec="seconds")
    told: dict[str, Any] = {"environment": MACHINE, "settings": {"clock": "eager", "cache": "hot", "seed": 0}, **fields}
    return ResultSet((), "invbench check small --base main", created, "0.1.0", checks=(check,), **told)


def runs(
    count: int, steps: Mapping[str, tuple[int, float]] | None = None, noise: float = 0.01, seed: int = 0, **fields: Any
) -> list[ResultSet]:
    """Runs of three involutions beside a convolution. steps: by row, from which run on it takes how many times as
    long, and then it fails once. A machine that drifts moves all rows."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        drift = 1 + 0.03 * chance.gauss(0, 1)
        times: dict[Row, float | None] = {CONTROL: 2e-3 * drift * (1 + noise * chance.gauss(0, 1))}
        verdicts: dict[Row, Verdict] = {}
        for name, level in LEVELS.items():
            start, factor = (steps or {}).get(name, (count, 1.0))
            times[row_of(name)] = level * drift * (1 + noise * chance.gauss(0, 1)) * (factor if number >= start else 1)
            if number == start:
                verdicts[row_of(name)] = Verdict.FAIL if factor > 1 else Verdict.IMPROVED
        found.append(run(number, times, verdicts=verdicts, **fields))
    return found


def noisy(rng: Any, count: int, outliers: bool) -> Sequence[float]:
    """White noise of standard deviation 1; one value in twenty may be far too long."""
    values = rng.normal(size=count)
    return values + outliers * (rng.random(count) < 0.05) * rng.exponential(8, size=count)  # type: ignore[no-any-return]
