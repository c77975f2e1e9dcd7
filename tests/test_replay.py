"""Runs dealt from recorded launches: what is known of them in advance."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy import stats
from test_results import CASE

from invbench.results.check import AGAIN, BASE, HEAD, Check, Quad, Row, Series, Side, Verdict
from invbench.spec import InvbenchError
from invbench.verdict.replay import Outcome, Share, replay

ROWS = [Row(CASE, "involution", backend) for backend in ("numba", "naive", "unfold")]
ARMS = (BASE, HEAD, AGAIN)


def recorded(count: int, process: float, quad: float, seed: int = 0, head: float = 0.0, rows=ROWS, quads=5) -> Check:
    """A check of ``count`` launches with noise of processes and of quads, and a head that is always slower."""
    rng = random.Random(seed)

    def launch() -> tuple[Quad, ...]:
        of = {arm: rng.gauss(head if arm == HEAD else 0.0, process) for arm in ARMS}
        return tuple(
            Quad(ARMS, {arm: ((math.exp(of[arm] + rng.gauss(0.0, quad)),) * 3,) * 2 for arm in ARMS})
            for _ in range(quads)
        )

    series = tuple(Series(row, 1, (tuple(launch() for _ in range(count)),)) for row in rows)
    return Check("same", Side("base"), Side("head"), series=series)


def test_quiet_launches_pass_and_a_slowdown_is_found() -> None:
    found = replay([recorded(9, 0.005, 0.01)], 100, 1, injected=0.2)
    assert found.alarms == Share(0, 100)
    assert found.verdicts == {Verdict.PASS: 200}
    assert found.slowed == {Verdict.FAIL: 100}
    assert found.found == Share(100, 100)
    assert found.blind == Share(0, 100)
    assert (found.launches, len(found.effects)) == (9, 300)
    low, middle, high = (found.effect(q) for q in (0.0, 0.5, 1.0))
    assert low is not None
    assert middle is not None
    assert high is not None
    assert 0.05 < low <= middle <= high < 0.12


def test_without_an_injection_all_rows_are_identical() -> None:
    found = replay([recorded(6, 0.005, 0.01)], 50, 1)
    assert sum(found.verdicts.values()) == 150
    assert found.slowed == {}
    assert math.isnan(found.found.value)


def test_noisy_launches_are_inconclusive() -> None:
    found = replay([recorded(12, 0.1, 0.1)], 50, 1)
    assert found.inconclusive.value > 0.8
    assert found.alarms.count == 0


def test_what_the_harness_does_to_head_alone_is_an_alarm_and_exchanging_hides_it() -> None:
    checks = [recorded(12, 0.002, 0.005, head=0.1)]
    assert replay(checks, 50, 1).alarms == Share(50, 50)
    assert replay(checks, 50, 1, exchanged=True).alarms.value < 0.1


def test_seeds_decide() -> None:
    checks = [recorded(12, 0.03, 0.03)]
    assert replay(checks, 40, 7) == replay(checks, 40, 7)
    assert replay(checks, 40, 7) != replay(checks, 40, 8)


def test_checks_of_the_same_rows_are_one_deck_and_others_are_dealt_apart() -> None:
    same = [recorded(3, 0.01, 0.01, seed) for seed in range(3)]
    other = recorded(6, 0.01, 0.01, rows=ROWS[:1])
    too_few = recorded(3, 0.01, 0.01, rows=ROWS[1:])
    found = replay([*same, other, too_few], 200, 1)
    assert found.launches == 9 + 6
    assert 200 < sum(found.verdicts.values()) < 600  # some runs have three rows and some have one


def test_rows_that_miss_a_launch_are_left_out() -> None:
    whole = recorded(6, 0.01, 0.01)
    torn = replace(whole.series[0], stages=(whole.series[0].stages[0][1:],))
    found = replay([replace(whole, series=(torn, *whole.series[1:]))], 10, 1)
    assert sum(found.verdicts.values()) == 20


@pytest.mark.parametrize("checks", [[], [recorded(5, 0.01, 0.01)], [Check("same", Side("a"), Side("b"))]])
def test_too_few_launches_are_refused(checks: list[Check]) -> None:
    with pytest.raises(InvbenchError, match="needs 6 launches of the same rows"):
        replay(checks, 10, 1)


def test_a_pass_that_claims_to_see_less_than_it_missed_is_blind() -> None:
    # A head that is faster by what it is slowed down by: nothing to see, whatever was claimed.
    found: Outcome = replay([recorded(9, 0.002, 0.005, head=-math.log(1.1))], 20, 1, injected=0.1)
    assert found.slowed == {Verdict.PASS: 20}
    assert found.blind == Share(20, 20)


@pytest.mark.parametrize(("count", "total"), [(0, 10_000), (1, 10), (5, 10), (10, 10), (37, 50), (3, 4_000)])
def test_wilson_intervals(count: int, total: int) -> None:
    known = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
    assert Share(count, total).interval() == pytest.approx((known.low, known.high), abs=1e-12)


def test_nothing_tells_nothing() -> None:
    assert Share(0, 0).interval() == (0.0, 1.0)
