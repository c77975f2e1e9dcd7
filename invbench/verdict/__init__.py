"""Judging what was measured: ratios to a baseline, who is fastest. Pure, without input or output."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from invbench.results import Result, Status, find
from invbench.results.quantities import Interval


def with_ratios(results: Iterable[Result], baseline: str | None) -> tuple[Result, ...]:
    """The rows with their ratios to the row of the baseline, paired round by round."""
    results = tuple(results)
    base = find(results, baseline) if baseline else None
    if base is None:
        return results
    return tuple(with_ratio(result, base) for result in results)


def with_ratio(result: Result, base: Result) -> Result:
    """The row with its ratio to another, and a warning where the two ran under different conditions."""
    warnings = (*result.warnings, *_unlike(result, base))
    return replace(result, ratio=result.over(base), warnings=warnings)


def _unlike(result: Result, base: Result) -> Iterator[str]:
    if result.latency is None or base.latency is None:
        return
    here, there = result.latency.power_capped, base.latency.power_capped
    if here is None or there is None:
        return
    unlike = sum(one != other for one, other in zip(here, there, strict=False))
    if unlike:
        rounds = f"{unlike} of {min(len(here), len(there))} rounds"
        seen = f"in {rounds} the power cap held down either this row or {base.subject}, and not both"
        yield f"the ratio is of unlike clocks: {seen}; lock lower clocks (nvidia-smi -lgc), and measure again"


def paired_ratio(result: Result, base: Result) -> Interval | None:
    """``Samples.over`` of the latencies of two rows; None where a side has none."""
    return None if result.latency is None or base.latency is None else result.latency.over(base.latency)


def fastest_involution(results: Iterable[Result]) -> Result | None:
    """The involution row with the lowest median latency."""
    return fastest(results, ("involution",))


def fastest(results: Iterable[Result], subjects: Collection[str]) -> Result | None:
    """The row of some subjects with the lowest median latency."""
    timed = [r for r in results if r.subject in subjects and r.status is Status.OK and r.seconds is not None]
    return min(timed, key=lambda r: r.seconds or 0.0, default=None)


def exit_code(results: Iterable[Result], asked_for: Iterable[str] = ()) -> int:
    """0, 2 if a backend asked for by name is unavailable, 4 if a measurement failed or mismatched (CLI.md)."""
    named = set(asked_for)
    results = tuple(results)
    if any(r.status is Status.UNAVAILABLE and r.backend in named for r in results):
        return 2
    failed = (Status.MISMATCH, Status.OOM, Status.TIMEOUT, Status.ERROR)
    return 4 if any(r.status in failed for r in results) else 0
