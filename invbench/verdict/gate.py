"""Whether head is slower than base: what a check's quads say (MEASURING.md, rules 19 to 21). Pure.

Launches of identical code differ, so quads of one launch are not independent, and no interval from within a process
decides. The *limit* that a change must exceed is the larger of the threshold and the *floor*: how far launches of the
base against itself were apart in the same run (the root mean square of their medians: the largest of them would grow
with every launch, and half the slowdowns of 10 % that were tried on recorded noise drowned in it). Two stages, each
with fresh processes:

1. for each row a sign test that the median of its quads exceeds the limit; Holm at 5 % over the rows;
2. for the rows that it found, fresh quads in the swapped order, and the same test; Holm at 2 % over them.

In both, the median of every launch has to exceed the floor, and the median of these the limit: however many quads one
launch has, it is one launch. What holds false alarms down is exchangeability more than the sign test: in identical code
any of a launch's three processes may be the slowest, and for FAIL it has to be head in all of them, by more than the
base's two mostly differ.

FAIL and IMPROVED need both stages, and are each other's mirror image: all is done on log ratios. The others are not,
since the gate asks whether head is slower: what seems faster and is not confirmed is a PASS like any other, and what
seems slower and is not confirmed is INCONCLUSIVE. So a head that is slower is never judged more kindly: IMPROVED, PASS,
INCONCLUSIVE, FAIL. PASS is only said where the run could have seen a change as small as it was asked for.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from invbench.results.check import AGAIN, BASE, HEAD, Check, Quad, Verdict
from invbench.results.quantities import Interval

FIRST, SECOND = 0.05, 0.02  # the familywise errors of the two stages
# A stage with less finds nothing.
FEWEST_LAUNCHES, FEWEST_QUADS = 3, 15

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Launch:
    """The log ratios of one launch's quads: head over what it is compared with, and that over itself."""

    head: tuple[float, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one row is judged by. first, second: the launches of both stages; the second is empty until it is needed.

    threshold: the share that counts as a change. visible: the share that a run must be able to see to say PASS.
    besides: a floor, as a log ratio, that comes from elsewhere.
    """

    first: tuple[Launch, ...]
    threshold: float
    visible: float
    second: tuple[Launch, ...] = ()
    besides: float = 0.0

    @property
    def floor(self) -> float:
        """How far launches of the base against itself were from 1: the root mean square of their log ratios."""
        medians = [statistics.median(each.noise) for each in (*self.first, *self.second) if each.noise]
        return max(self.besides, math.sqrt(statistics.fmean(m * m for m in medians)) if medians else 0.0)

    @property
    def limit(self) -> float:
        """The log ratio that a change must exceed."""
        return max(math.log1p(self.threshold), self.floor)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict on one row's latency, and what it rests on; shares and ratios, no logarithms.

    ratio: head over base, the median of all launches' medians and their range. above: quads of the first stage beyond
    the limit. smallest_effect: the least slowdown that a run as noisy would find; None if it could find none.
    """

    verdict: Verdict
    ratio: Interval
    launches: tuple[float, ...]
    floor: float
    smallest_effect: float | None
    quads: int
    above: int
    reason: str | None = None
    remedy: str | None = None


def against_base(launches: Sequence[Sequence[Quad]]) -> tuple[Launch, ...]:
    """Launches of quads with all three arms.

    Head is compared with the mean of both processes of the base: a quarter less variance than with one of them, and
    what one of them has of its own no longer moves both head's ratio and the floor.
    """
    return tuple(
        Launch(
            tuple((quad.over(HEAD, BASE) + quad.over(HEAD, AGAIN)) / 2 for quad in quads),
            tuple(quad.over(AGAIN, BASE) for quad in quads),
        )
        for quads in launches
    )


@functools.cache
def sign_test(above: int, count: int) -> float:
    """The probability that at least ``above`` of ``count`` fair coins show heads (exact)."""
    return float(Fraction(sum(math.comb(count, k) for k in range(above, count + 1)), 2**count))


@functools.cache
def needed(count: int, level: float) -> int | None:
    """The fewest of ``count`` quads beyond the limit at which the sign test reaches a level; None if none do."""
    above, tail = count + 1, 0
    while above and Fraction(tail + math.comb(count, above - 1), 2**count) <= level:
        above -= 1
        tail += math.comb(count, above)
    return above if above <= count else None


def holm(probabilities: Mapping[Key, float], level: float) -> set[Key]:
    """The hypotheses that are rejected with a familywise error of at most ``level`` (Holm, 1979)."""
    rejected: set[Key] = set()
    for rank, (key, probability) in enumerate(sorted(probabilities.items(), key=lambda item: item[1])):
        if probability > level / (len(probabilities) - rank):
            break
        rejected.add(key)
    return rejected


def flagged(rows: Mapping[Key, Evidence]) -> dict[Key, int]:
    """The rows that the first stage finds changed: 1 for slower, -1 for faster; they need a second one."""
    return _changed({key: (row, row.first) for key, row in rows.items()}, FIRST)


def judge(rows: Mapping[Key, Evidence]) -> dict[Key, Judgement]:
    """The verdict on each row; rows that were flagged need their second stage, or are inconclusive."""
    first = flagged(rows)
    second = _changed({key: (rows[key], rows[key].second) for key in first}, SECOND)
    return {key: _judged(row, len(rows), first.get(key, 0), second.get(key, 0)) for key, row in rows.items()}


def smallest_effect(row: Evidence, rows: int) -> float | None:
    """The least slowdown, as a share, that a run as noisy would find among so many rows; None if it could find none.

    Beyond the limit lie twice the floor, since launches of head are as far apart as those of the base and none may be
    an exception, and the spread: how far from their median the quads begin of which the strictest test needs as many.
    In simulations of 7 and of 30 quads a launch, 9 of 10 runs find such a slowdown, quiet or noisy, and fewer than 1 in
    100 say PASS (tests/gate_simulation.py).
    """
    values = sorted(_quads(row.first))
    above = needed(len(values), FIRST / max(1, rows))
    if not above or not _is_enough(row.first):
        return None
    median = statistics.median(values)
    # The larger of both sides, so that swapping the arms changes nothing.
    spread = max(median - values[len(values) - above], values[above - 1] - median)
    return math.expm1(row.limit + 2 * row.floor + spread)


def exit_code(checks: Iterable[Check], interrupted: bool = False) -> int:
    """The exit code of CLI.md: where several apply, 130, 4, 1, 5, 3, 0."""
    found: set[int] = {130} if interrupted else set()
    for check in checks:
        inconclusive = {"pass": 0, "fail": 1}.get(check.inconclusive or "", 3)
        codes = {
            Verdict.ERROR: 4, Verdict.FAIL: 1, Verdict.MISSING: 1, Verdict.NOT_COMPARABLE: 5,
            Verdict.INCONCLUSIVE: inconclusive,
        }  # fmt: skip
        found |= {codes.get(finding.verdict, 0) for finding in check.findings}
        if not check.findings:
            found.add(4)  # nothing was judged, which must not look as if all was well
    return next((code for code in (130, 4, 1, 5, 3) if code in found), 0)


def _changed(stage: Mapping[Key, tuple[Evidence, Sequence[Launch]]], level: float) -> dict[Key, int]:
    """The rows that a stage finds changed: 1 for above, -1 for below; each direction has the level for itself.

    Rows that cannot be found count among the hypotheses, so that they make no other easier to find.
    """
    found: dict[Key, int] = {}
    for sign in (1, -1):
        probabilities = {key: _probability(row, launches, sign) for key, (row, launches) in stage.items()}
        found |= dict.fromkeys(holm(probabilities, level), sign)
    return found


def _probability(row: Evidence, launches: Sequence[Launch], sign: int) -> float:
    """That of as many quads beyond the limit if it were their median; 1 where launches are too few or do not agree."""
    if not _is_enough(launches):
        return 1.0
    medians = [sign * statistics.median(each.head) for each in launches]
    if min(medians) <= row.floor or statistics.median(medians) <= row.limit:
        return 1.0
    values = _quads(launches)
    return sign_test(sum(sign * value > row.limit for value in values), len(values))


def _is_enough(launches: Sequence[Launch]) -> bool:
    """Whether a stage can find anything: a launch without noise has no floor."""
    whole = all(each.head and each.noise for each in launches)
    return whole and len(launches) >= FEWEST_LAUNCHES and len(_quads(launches)) >= FEWEST_QUADS


def _judged(row: Evidence, rows: int, first: int, second: int) -> Judgement:
    launches = tuple(statistics.median(each.head) for each in (*row.first, *row.second) if each.head)
    quads, effect = _quads(row.first), smallest_effect(row, rows)
    median = statistics.median(launches)
    verdict, reason, remedy = _verdict(row, effect, first, second)
    return Judgement(
        verdict,
        Interval(math.exp(median), math.exp(min(launches)), math.exp(max(launches)), len(launches)),
        tuple(math.exp(each) for each in launches), math.expm1(row.floor), effect, len(quads),
        sum(value > row.limit for value in quads), reason, remedy,
    )  # fmt: skip


def _verdict(row: Evidence, effect: float | None, first: int, second: int) -> tuple[Verdict, str | None, str | None]:
    """The verdict, what was seen, and what to do."""
    medians = [statistics.median(_quads(launches)) for launches in (row.first, row.second) if launches]
    median = medians[0]
    seen = f"{_signed(median)} over {len(_quads(row.first))} quads in {len(row.first)} launches"
    limit = f"{math.expm1(row.limit):.1%}"
    if first and first == second:
        confirmed = f"{_signed(medians[1])} again in {len(row.second)} fresh launches"
        if first < 0:
            return Verdict.IMPROVED, f"{seen}, {confirmed}", None
        remedy = "make it fast again, or raise the threshold of this case in the profile's [check] if it is a trade"
        return Verdict.FAIL, f"{seen}, {confirmed}: slower by more than {limit}", remedy
    if first > 0:
        how = "fresh launches were not measured" if not row.second else (
            f"{_signed(medians[1])} in {len(row.second)} fresh launches does not confirm it"
        )  # fmt: skip
        return Verdict.INCONCLUSIVE, f"{seen}, but {how}", "run it again, on a machine that does nothing else"
    if effect is None:
        few = f"{len(_quads(row.first))} quads in {len(row.first)} launches, of {FEWEST_QUADS} in {FEWEST_LAUNCHES}"
        return Verdict.INCONCLUSIVE, f"too little was measured: {few}", "let it run to its end"
    if effect > row.visible:
        remedy = "stop other programs, raise --budget, or take a machine of your own (invbench doctor)"
        noise = f"identical code differed by {math.expm1(row.floor):.1%}"
        return Verdict.INCONCLUSIVE, f"{seen}; {noise}, so that less than {effect:.1%} would not have shown", remedy
    if max(medians) > row.limit:
        seen = f"{seen}, {_signed(medians[1])} in fresh ones" if len(medians) > 1 else seen
        return (
            Verdict.INCONCLUSIVE, f"{seen}, beyond {limit}, but not in enough quads to be sure",
            "run it again, or raise --budget",
        )  # fmt: skip
    return Verdict.PASS, None, None


def _signed(median: float) -> str:
    return f"{math.expm1(median):+.1%}"


def _quads(launches: Collection[Launch]) -> list[float]:
    return [value for launch in launches for value in launch.head]
