"""The gate on noise that was really measured: many runs made from the launches of recorded checks. Pure.

A simulated machine is as noisy as it was told to be. Checks of identical code have the noise of a real one: tails,
jumps, and what rows of a launch have in common. Here their launches are dealt into new runs, whole, with all of their
rows, and judged by the code that judges a check. A run never has a launch twice, as no real one has.

Only launches of the first stage are dealt, for both stages: those of the second have flagged rows alone, and are there
because something looked wrong. A first stage that goes on while rows are noisy is not replayed: it has as many launches
as it is told.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from invbench.results.check import AGAIN, BASE, HEAD, Check, Quad, Row, Verdict
from invbench.spec import InvbenchError
from invbench.verdict.gate import FEWEST_LAUNCHES, Evidence, Judgement, Launch, against_base, flagged, judge

Together = Mapping[Row, Launch]
"""A launch with all of its rows."""


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share itself; NaN of nothing."""
        return self.count / self.total if self.total else math.nan

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Its interval (Wilson, 1927). It is of the dealing alone: more runs narrow it, but only more launches would
        tell more of the machine."""
        if not self.total:
            return 0.0, 1.0
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
        centre = self.count + z * z / 2
        half = z * math.sqrt(self.count * (self.total - self.count) / self.total + z * z / 4)
        low, high = ((centre + sign * half) / (self.total + z * z) for sign in (-1, 1))
        return max(0.0, low) if self.count else 0.0, min(1.0, high) if self.count < self.total else 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of the runs.

    launches: how many there were to deal from. alarms: runs with a FAIL of a row whose code was identical. verdicts: of
    these rows. slowed: verdicts on the rows that were slowed down. found: runs with a FAIL of such a row. blind: how
    many of them were a PASS that claimed to see less than that. effects: the smallest effects of all rows that had one,
    as shares, in order.
    """

    runs: int
    launches: int
    injected: float
    alarms: Share
    verdicts: Mapping[Verdict, int]
    slowed: Mapping[Verdict, int]
    found: Share
    blind: Share
    effects: tuple[float, ...]

    @property
    def inconclusive(self) -> Share:
        """Rows of identical code that were not judged."""
        return Share(self.verdicts.get(Verdict.INCONCLUSIVE, 0), sum(self.verdicts.values()))

    def effect(self, quantile: float) -> float | None:
        """The smallest effect that so large a share of rows reached; None where none had one."""
        if not self.effects:
            return None
        return self.effects[min(len(self.effects) - 1, int(quantile * len(self.effects)))]


def replay(
    checks: Iterable[Check],
    runs: int,
    seed: int,
    injected: float = 0.0,
    *,
    threshold: float = 0.05,
    visible: float = 0.20,
    launches: int = FEWEST_LAUNCHES,
    exchanged: bool = False,
    whole: bool = False,
) -> Outcome:
    """Deal the launches of checks of identical code into runs, and judge them.

    injected: the share by which one row of each run, any, is slowed down, since alone it is hardest to find (Holm).
    whole: all rows are slowed down, as by something that they have in common.
    launches: of each stage. exchanged: let any of a launch's three processes be head. In identical code they may trade
    places, which makes more launches out of few; but it also hides what the harness does to head alone, such as
    starting it last, and that is what a replay is there to find. So by default each stays what it was, and rates that
    change with it say that head is not treated like the others.

    Checks are dealt apart if their rows differ, in proportion to their launches; rows that miss a launch are left out.
    Raises InvbenchError for fewer launches than two stages need.
    """
    decks = [deck for deck in _decks(checks, exchanged).values() if len(deck) >= 2 * launches]
    if not decks:
        raise InvbenchError(
            f"a replay needs {2 * launches} launches of the same rows, for two stages of {launches}: got fewer; record "
            "more checks of identical code, or take fewer launches"
        )
    dealer = random.Random(seed)
    verdicts: Counter[Verdict] = Counter()
    slowed: Counter[Verdict] = Counter()
    effects: list[float] = []
    alarms = blind = found = 0
    for _ in range(runs):
        deck = dealer.choices(decks, [len(each) for each in decks])[0]
        dealt = [dealer.choice(variants) for variants in dealer.sample(deck, 2 * launches)]
        slow: set[Row] = set()
        if injected:
            slow = set(dealt[0]) if whole else {dealer.choice(list(dealt[0]))}
        judged = _run(dealt[:launches], dealt[launches:], slow, injected, threshold, visible)
        others = [each.verdict for row, each in judged.items() if row not in slow]
        verdicts.update(others)
        alarms += Verdict.FAIL in others
        effects += [each.smallest_effect for each in judged.values() if each.smallest_effect is not None]
        slowed.update(judged[row].verdict for row in slow)
        found += any(judged[row].verdict is Verdict.FAIL for row in slow)
        blind += sum(_is_blind(judged[row], injected) for row in slow)
    return Outcome(
        runs, sum(map(len, decks)), injected, Share(alarms, runs), dict(verdicts), dict(slowed),
        Share(found, runs if injected else 0), Share(blind, slowed.total()), tuple(sorted(effects)),
    )  # fmt: skip


def _is_blind(judgement: Judgement, injected: float) -> bool:
    effect = judgement.smallest_effect
    return judgement.verdict is Verdict.PASS and effect is not None and effect <= injected


def _run(
    first: Sequence[Together], second: Sequence[Together], slow: Collection[Row], injected: float, threshold: float,
    visible: float,
) -> dict[Row, Judgement]:  # fmt: skip
    """One run: a second stage only for what the first one finds."""

    def stage(launches: Sequence[Together], row: Row) -> tuple[Launch, ...]:
        by = math.log1p(injected) if row in slow else 0.0
        return tuple(_slower(each[row], by) if by else each[row] for each in launches)

    rows = {row: Evidence(stage(first, row), threshold, visible) for row in first[0]}
    again = {row: replace(rows[row], second=stage(second, row)) for row in flagged(rows)}
    return judge({**rows, **again})


def _slower(launch: Launch, by: float) -> Launch:
    return replace(launch, head=tuple(value + by for value in launch.head))


def _decks(checks: Iterable[Check], exchanged: bool) -> dict[frozenset[Row], list[list[Together]]]:
    """The launches of all checks with the same rows, each with its variants."""
    decks: dict[frozenset[Row], list[list[Together]]] = {}
    for check in checks:
        most = max((len(series.stages[0]) for series in check.series if series.stages), default=0)
        whole = {each.row: each.stages[0] for each in check.series if each.stages and len(each.stages[0]) == most}
        deck = decks.setdefault(frozenset(whole), [])
        for index in range(most):
            variants = zip(
                *(_variants(launches[index], exchanged) for launches in whole.values()), strict=True
            )  # one of each row
            deck.append([dict(zip(whole, launch, strict=True)) for launch in variants])
    return decks


def _variants(quads: Sequence[Quad], exchanged: bool) -> Iterator[Launch]:
    """A row's part of a launch as it was, and with either process of the base as head."""
    for head in (HEAD, BASE, AGAIN) if exchanged else (HEAD,):
        names = {HEAD: head, head: HEAD}
        traded = [replace(q, blocks={arm: q.blocks[names.get(arm, arm)] for arm in q.blocks}) for q in quads]
        yield from against_base([traded])
