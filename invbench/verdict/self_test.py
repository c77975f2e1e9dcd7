"""What a self-test proves: that the gate passes identical code here, and finds a slowdown that was injected. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from invbench.results.check import LATENCY, Check, Finding, Verdict

# What identical code must not be called; its counts are judged like its latency.
WRONG = (
    Verdict.FAIL, Verdict.IMPROVED, Verdict.MISSING, Verdict.NEW, Verdict.NOT_COMPARABLE, Verdict.ERROR,
)  # fmt: skip


class Outcome(StrEnum):
    """How a self-test ended."""

    WORKS = "works"
    NOISY = "too noisy"
    MISBEHAVED = "misbehaved"


@dataclass(frozen=True, slots=True)
class SelfTest:
    """An outcome, and why it is no better: of identical code and of the injected slowdown the findings that are not as
    they must be. unfinished: a half is missing.

    slowdown: the share by which head was slowed down. smallest_effect: that of the worst row of identical code.
    """

    outcome: Outcome
    same: tuple[Finding, ...] = ()
    injected: tuple[Finding, ...] = ()
    slowdown: float | None = None
    smallest_effect: float | None = None
    unfinished: bool = False

    @property
    def exit_code(self) -> int:
        """0 as expected, 3 too noisy, 4 the gate misbehaved (CLI.md)."""
        return {Outcome.WORKS: 0, Outcome.NOISY: 3, Outcome.MISBEHAVED: 4}[self.outcome]


def groups(checks: Sequence[Check]) -> Iterator[tuple[Check, ...]]:
    """The checks one by one, but for the two halves of a self-test, which belong together."""
    found: list[list[Check]] = []
    for check in checks:
        if check.injected is not None and found and _is_same(found[-1][-1]):
            found[-1].append(check)
        else:
            found.append([check])
    yield from map(tuple, found)


def is_self_test(group: Sequence[Check]) -> bool:
    """Whether a group is one, or the half of one that came to be."""
    return any(_is_same(check) or check.injected is not None for check in group)


def self_test(group: Sequence[Check]) -> SelfTest:
    """The outcome: identical code must pass in all metrics, and each row that was slowed down must FAIL on latency."""
    same = [finding for check in group if check.injected is None for finding in check.findings]
    injected = [finding for check in group if check.injected is not None for finding in check.latencies]
    slowdown = next((check.injected for check in group if check.injected is not None), None)
    worst = max((f.smallest_effect for f in same if f.smallest_effect is not None), default=None)
    wrong = tuple(f for f in same if f.verdict in WRONG)
    missed = tuple(f for f in injected if f.verdict not in (Verdict.FAIL, Verdict.INCONCLUSIVE))
    unfinished = not (any(f.metric == LATENCY for f in same) and injected)
    if wrong or missed or unfinished:
        return SelfTest(Outcome.MISBEHAVED, wrong, missed, slowdown, worst, unfinished)
    unsure, unseen = (tuple(f for f in half if f.verdict is Verdict.INCONCLUSIVE) for half in (same, injected))
    return SelfTest(Outcome.NOISY if unsure or unseen else Outcome.WORKS, unsure, unseen, slowdown, worst)


def _is_same(check: Check) -> bool:
    return check.kind == "same" and check.injected is None
