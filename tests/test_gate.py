"""The gate's statistics against known answers, and what must hold of its verdicts whatever was measured."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace
from fractions import Fraction

import gate_simulation
import numpy as np
import pytest
from gate_simulation import MACHINES, Runs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import CASE

from invbench.results.check import AGAIN, BASE, HEAD, LATENCY, Check, Finding, Quad, Row, Side, Verdict
from invbench.results.quantities import Interval
from invbench.verdict.gate import (
    Evidence,
    Judgement,
    Launch,
    against_base,
    exit_code,
    flagged,
    holm,
    judge,
    needed,
    sign_test,
    smallest_effect,
)  # fmt: skip

PASS, IMPROVED, FAIL, INCONCLUSIVE = Verdict.PASS, Verdict.IMPROVED, Verdict.FAIL, Verdict.INCONCLUSIVE
ORDER = (IMPROVED, PASS, INCONCLUSIVE, FAIL)

# --- Order statistics ---


def coverage(n: int, k: int) -> Fraction:
    """P(v(k) <= median <= v(n+1-k)), by steps of a walk: how many of n values lie below the median."""
    below = [Fraction(1)]
    for _ in range(n):
        below = [(a + b) / 2 for a, b in itertools.pairwise([Fraction(0), *below, Fraction(0)])]
    return sum(below[k : n + 1 - k], Fraction(0))


@pytest.mark.parametrize("n", range(6, 31))
def test_intervals_of_the_median_are_the_narrowest_that_hold_it(n: int) -> None:
    found = Interval.of(list(range(1, n + 1)))
    k = int(found.low)
    assert found.high == n + 1 - k
    assert coverage(n, k) >= Fraction(95, 100)
    assert coverage(n, k + 1) < Fraction(95, 100)


def test_coverage_is_that_of_published_tables() -> None:
    # Conover, Practical Nonparametric Statistics, table A3; n: rank of the lower end.
    for n, k in {6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 15: 4, 17: 5, 20: 6, 25: 8, 30: 10}.items():
        assert Interval.of(range(1, n + 1)).low == k  # type: ignore[arg-type]


# --- The sign test ---


@pytest.mark.parametrize("count", range(11))
def test_sign_test_counts_outcomes(count: int) -> None:
    coins = list(itertools.product((0, 1), repeat=count))
    for above in range(count + 1):
        assert sign_test(above, count) == sum(sum(each) >= above for each in coins) / len(coins)


@pytest.mark.parametrize(
    ("count", "level", "above"),
    [
        (15, 0.05, 12), (15, 0.05 / 8, 13), (15, 0.02, 12), (21, 0.05 / 8, 17), (5, 0.05, 5), (4, 0.05, None),
        (0, 0.05, None),
    ],
)  # fmt: skip
def test_needed(count: int, level: float, above: int | None) -> None:
    assert needed(count, level) == above
    if above is not None:
        assert sign_test(above, count) <= level < sign_test(above - 1, count)


# --- Holm ---


def closed_testing(probabilities: dict[int, float], level: float) -> set[int]:
    """Those of which every intersection with others is rejected by Bonferroni (Marcus, Peritz and Gabriel, 1976)."""
    subsets = [c for size in range(1, len(probabilities) + 1) for c in itertools.combinations(probabilities, size)]
    kept = [subset for subset in subsets if min(probabilities[key] for key in subset) > level / len(subset)]
    return {key for key in probabilities if not any(key in subset for subset in kept)}


def test_holm_of_a_published_example() -> None:
    # R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03, 0.06, 0.06, 0.02.
    probabilities = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(probabilities, 0.05) == {"a", "d"}
    assert holm(probabilities, 0.025) == {"d"}
    assert holm(probabilities, 0.0600001) == {"a", "b", "c", "d"}
    assert holm(probabilities, 0.019) == set()
    assert holm({}, 0.05) == set()


@given(st.lists(st.sampled_from([0.001, 0.005, 0.00625, 0.01, 0.0125, 0.02, 0.025, 0.04, 0.05, 0.3, 1.0]), max_size=6))
def test_holm_is_closed_testing(values: list[float]) -> None:
    probabilities = dict(enumerate(values))
    assert holm(probabilities, 0.05) == closed_testing(probabilities, 0.05)


# --- Paired ratios ---


def drifting(order: tuple[str, ...], rate: float, **seconds: float) -> Quad:
    """A mirrored quad on a machine whose logarithm of time grows by ``rate`` from block to block."""
    blocks: dict[str, list[tuple[float, ...]]] = {arm: [] for arm in order}
    for step, arm in enumerate((*order, *reversed(order))):
        blocks[arm].append((seconds[arm] * math.exp(rate * step),) * 3)
    return Quad(order, {arm: tuple(each) for arm, each in blocks.items()})


@pytest.mark.parametrize("order", list(itertools.permutations((BASE, HEAD, AGAIN))))
@pytest.mark.parametrize("rate", [0.0, 0.3, -2.0])
def test_mirrored_blocks_cancel_drift(order: tuple[str, ...], rate: float) -> None:
    quad = drifting(order, rate, base=2.0, head=3.0, again=2.0)
    assert quad.over(HEAD, BASE) == pytest.approx(math.log(1.5), abs=1e-14)
    assert quad.over(AGAIN, BASE) == pytest.approx(0.0, abs=1e-14)
    assert quad.over(HEAD, BASE) == -quad.over(BASE, HEAD)


def test_a_block_is_its_median() -> None:
    quad = Quad((BASE, HEAD), {BASE: ((1.0, 2.0, 99.0), (8.0,)), HEAD: ((4.0, 4.0, 0.1), (4.0, 4.0))})
    assert quad.log(BASE) == pytest.approx(math.log(4.0))
    assert quad.over(HEAD, BASE) == pytest.approx(0.0)


def test_head_is_compared_with_both_processes_of_the_base() -> None:
    (launch,) = against_base([[drifting((BASE, HEAD, AGAIN), 0.1, base=2.0, head=4.0, again=8.0)]])
    assert launch.head == pytest.approx((0.0,), abs=1e-14)
    assert launch.noise == pytest.approx((math.log(4.0),))


# --- Verdicts ---


def launch(*head: float, noise: float = 0.0) -> Launch:
    return Launch(head, (noise,) * len(head))


def evidence(first: float, second: float | None = None, noise: float = 0.01, spread: float = 0.01) -> Evidence:
    """Three launches of five quads around a log ratio, in each stage."""

    def stage(middle: float) -> tuple[Launch, ...]:
        return tuple(launch(*(middle + spread * step for step in (-1, -0.5, 0, 0.5, 1)), noise=noise) for _ in range(3))

    return Evidence(stage(first), 0.05, 0.2, () if second is None else stage(second))


def verdict(row: Evidence) -> Verdict:
    return judge({"row": row})["row"].verdict


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (evidence(0.0), PASS),
        (evidence(0.04), PASS),
        (evidence(0.1, 0.1), FAIL),
        (evidence(0.1), INCONCLUSIVE),
        (evidence(0.1, 0.0), INCONCLUSIVE),
        (evidence(-0.1, -0.1), IMPROVED),
        (evidence(-0.1), PASS),
        (evidence(-0.1, 0.0), PASS),
        (evidence(-0.1, 0.1), INCONCLUSIVE),
        (evidence(0.1, 0.1, noise=0.12), INCONCLUSIVE),
        (evidence(0.0, noise=0.12), INCONCLUSIVE),
        (evidence(0.0, spread=0.3), INCONCLUSIVE),
        (evidence(0.051, spread=0.03), INCONCLUSIVE),
        (evidence(-0.051, spread=0.03), PASS),
        (replace(evidence(0.1, 0.1), besides=0.12), INCONCLUSIVE),
    ],
    ids=[
        "same", "within the threshold", "slower", "slower, no second stage", "slower, not confirmed", "faster",
        "faster, no second stage", "faster, not confirmed", "faster, then slower", "slower within the floor",
        "noisy launches", "noisy quads", "slower, in few quads", "faster, in few quads", "a floor from elsewhere",
    ],
)  # fmt: skip
def test_verdicts(row: Evidence, expected: Verdict) -> None:
    assert verdict(row) is expected


def test_the_floor_is_the_root_mean_square_of_all_launches_of_the_base_against_itself() -> None:
    def launches(*noises: float) -> tuple[Launch, ...]:
        return tuple(Launch((0.0,) * 5, (noise - 0.5, noise, noise, noise, noise + 9)) for noise in noises)

    first, second = launches(0.03, -0.06, 0.02), launches(0.05, 0.01, 0.05)
    assert Evidence(first, 0.05, 0.2).floor == pytest.approx(math.sqrt(0.0049 / 3))
    assert Evidence(first, 0.05, 0.2, second).floor == pytest.approx(math.sqrt(0.01 / 6))
    assert Evidence(first, 0.05, 0.2, besides=0.07).floor == pytest.approx(0.07)


def test_a_judgement_says_what_it_rests_on() -> None:
    found = judge({"row": evidence(math.log(1.1), math.log(1.2), noise=math.log(1.02), spread=0.0)})["row"]
    assert (found.quads, found.above) == (15, 15)
    assert found.ratio.median == pytest.approx(math.sqrt(1.1 * 1.2))
    assert (found.ratio.low, found.ratio.high, found.ratio.count) == (*map(pytest.approx, (1.1, 1.2)), 6)
    assert found.launches == pytest.approx((1.1,) * 3 + (1.2,) * 3)
    assert found.floor == pytest.approx(0.02)
    assert found.smallest_effect == pytest.approx(1.05 * 1.02**2 - 1)


STEP = 1 / 1024  # sums of multiples are exact, so that properties are not of rounding
shares = st.integers(-250, 250).map(lambda step: step * STEP)
narrow = st.integers(-40, 40).map(lambda step: step * STEP)


@st.composite
def launches_of(draw, quads: int = 5, count: int = 3) -> tuple[Launch, ...]:
    """Launches around a common middle, or each around its own."""
    middle, own = draw(shares), draw(st.booleans())
    found = []
    for _ in range(count):
        around = draw(shares) if own else middle
        head = tuple(around + each for each in draw(st.lists(narrow, min_size=quads, max_size=quads)))
        found.append(Launch(head, tuple(draw(st.lists(narrow, min_size=quads, max_size=quads)))))
    return tuple(found)


limits = st.sampled_from([0.0, 0.05, 0.1])
rows_of = st.lists(
    st.builds(
        Evidence, launches_of(), limits, st.sampled_from([0.1, 0.3, 1.0]), st.one_of(launches_of(), st.just(())),
        st.sampled_from([0.0, 4 * STEP]),
    ),
    min_size=1, max_size=4,
).map(lambda rows: dict(enumerate(rows)))  # fmt: skip


def mapped(row: Evidence, of_head) -> Evidence:
    def stage(launches: tuple[Launch, ...]) -> tuple[Launch, ...]:
        return tuple(replace(each, head=tuple(map(of_head, each.head))) for each in launches)

    return replace(row, first=stage(row.first), second=stage(row.second))


@settings(max_examples=100, deadline=None)
@given(rows_of, st.integers(0, 300).map(lambda step: step * STEP))
def test_a_slower_head_is_never_judged_more_kindly(rows: dict[int, Evidence], slower: float) -> None:
    before = judge(rows)[0].verdict
    after = judge({**rows, 0: mapped(rows[0], lambda value: value + slower)})[0].verdict
    assert ORDER.index(after) >= ORDER.index(before)


@settings(max_examples=100, deadline=None)
@given(rows_of)
def test_swapping_the_arms_mirrors_what_was_found(rows: dict[int, Evidence]) -> None:
    mirrored = judge({key: mapped(row, lambda value: -value) for key, row in rows.items()})
    for key, found in judge(rows).items():
        other = mirrored[key]
        assert math.log(other.ratio.low) == pytest.approx(-math.log(found.ratio.high))
        assert math.log(other.ratio.high) == pytest.approx(-math.log(found.ratio.low))
        assert (other.floor, other.smallest_effect) == (found.floor, found.smallest_effect)
        assert (found.verdict is FAIL) == (other.verdict is IMPROVED)
        # What is neither stays neither; but whether it is slower is asked, and not whether it is faster.
        assert (found.verdict in (PASS, INCONCLUSIVE)) == (other.verdict in (PASS, INCONCLUSIVE))
        if found.verdict is PASS and other.verdict is PASS:
            medians = [
                statistics.median(v for x in s for v in x.head) for s in (rows[key].first, rows[key].second) if s
            ]
            assert max(map(abs, medians)) <= rows[key].limit


@given(st.lists(st.lists(shares, min_size=5, max_size=5), min_size=3, max_size=6), limits)
def test_identical_samples_are_neither_slower_nor_faster(noise: list[list[float]], threshold: float) -> None:
    launches = tuple(Launch((0.0,) * 5, tuple(each)) for each in noise)
    for first in range(3, len(launches) + 1):
        row = Evidence(launches[:first], threshold, 0.2, launches)
        assert verdict(row) in (PASS, INCONCLUSIVE)
        assert not flagged({0: row})


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sizes", [(15, 15), (40,), (5, 5, 4), (5, 5), (14, 0, 0), (10, 10, 0)], ids=str)
@pytest.mark.parametrize("stage", ["first", "second"])
def test_too_few_launches_or_quads_find_nothing(sizes: tuple[int, ...], stage: str, sign: int) -> None:
    row = evidence(sign * 1.0, sign * 1.0)
    row = replace(row, **{stage: tuple(Launch((sign * 1.0,) * size, (0.0,) * size) for size in sizes)})
    assert verdict(row) in (PASS, INCONCLUSIVE)
    if stage == "first":
        assert smallest_effect(row, 1) is None
        assert verdict(row) is INCONCLUSIVE


def test_launches_without_noise_find_nothing() -> None:
    row = evidence(1.0, 1.0)
    silent = replace(row, first=tuple(replace(each, noise=()) for each in row.first))
    assert verdict(silent) is INCONCLUSIVE


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.sampled_from([5, 7, 30]), launches_of(), st.integers(1, 5))
def test_one_wild_launch_in_each_stage_is_no_failure(
    one: int, other: int, quads: int, noise: tuple[Launch, ...], often: int
) -> None:
    # However many quads the wild launch has, and however far they are.
    calm = [launch(*(0.001 * step for step in range(quads))) for _ in range(3)]

    def stage(wild: int) -> tuple[Launch, ...]:
        hit = [launch(*(5.0,) * quads * often) if n == wild else each for n, each in enumerate(calm)]
        return tuple(replace(each, noise=found.noise) for each, found in zip(hit, noise, strict=True))

    assert verdict(Evidence(stage(one), 0.05, 0.2, stage(other))) in (PASS, INCONCLUSIVE)


def test_a_row_is_harder_to_find_among_many() -> None:
    # 12 of 15 quads beyond the limit are enough for one row, and too few for four.
    weak = tuple(launch(0.1, 0.1, 0.1, 0.1, 0.04, noise=0.001) for _ in range(3))
    assert flagged({0: Evidence(weak, 0.05, 0.2)}) == {0: 1}
    assert flagged({n: Evidence(weak, 0.05, 0.2) if n == 0 else evidence(0.0) for n in range(4)}) == {}
    # Those that cannot be found count too.
    few = Evidence(weak[:2], 0.05, 0.2)
    assert flagged({0: Evidence(weak, 0.05, 0.2), **dict.fromkeys(range(1, 4), few)}) == {}


# --- Exit codes ---


def check(*verdicts: Verdict, inconclusive: str | None = None) -> Check:
    row = Row(CASE, "involution", "numba")
    return Check(
        "same", Side("a"), Side("b"), tuple(Finding(row, LATENCY, each) for each in verdicts), (), inconclusive
    )


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ((), 4), ((PASS,), 0), ((IMPROVED, PASS), 0), ((Verdict.NEW,), 0), ((FAIL, PASS), 1), ((Verdict.MISSING,), 1),
        ((INCONCLUSIVE,), 3), ((Verdict.NOT_COMPARABLE,), 5), ((Verdict.ERROR,), 4),
    ],
)  # fmt: skip
def test_exit_code_of_verdicts(verdicts: tuple[Verdict, ...], code: int) -> None:
    assert exit_code([check(*verdicts)]) == code


CODES = {Verdict.ERROR: 4, FAIL: 1, Verdict.NOT_COMPARABLE: 5, INCONCLUSIVE: 3, PASS: 0}


@pytest.mark.parametrize("some", [s for n in range(1, 6) for s in itertools.combinations(CODES, n)], ids="+".join)
def test_the_gravest_code_wins_in_whatever_order(some: tuple[Verdict, ...]) -> None:
    expected = next(code for each, code in CODES.items() if each in some)
    assert exit_code([check(*some)]) == exit_code([check(*reversed(some))]) == expected
    assert exit_code([check(each) for each in some]) == expected
    assert exit_code([check(*some)], interrupted=True) == 130


@pytest.mark.parametrize(("counts_as", "code"), [(None, 3), ("pass", 0), ("fail", 1)])
def test_inconclusive_counts_as_it_was_asked_to(counts_as: str | None, code: int) -> None:
    assert exit_code([check(INCONCLUSIVE, PASS, inconclusive=counts_as)]) == code
    assert exit_code([check(Verdict.ERROR, INCONCLUSIVE, inconclusive=counts_as)]) == 4


# --- Simulated machines ---


@pytest.mark.parametrize(
    ("name", "slower"), [("quiet", 0.08), ("restless", 0.15), ("jumps", 0.1), ("launches only", 0.0)]
)
@pytest.mark.parametrize("shape", [(3, 5), (3, 7), (4, 4)], ids=str)
def test_the_simulation_judges_as_the_gate_does(name: str, slower: float, shape: tuple[int, int]) -> None:
    runs = Runs.of(MACHINES[name], np.random.default_rng(3), 60, slower, rows=4, launches=shape[0], quads=shape[1])
    codes = {PASS: 0, FAIL: 1, IMPROVED: -1, INCONCLUSIVE: 2}
    verdicts, effects = runs.verdicts()
    for run in range(60):
        judged: dict[int, Judgement] = judge(runs.evidence(run))
        assert [codes[judged[row].verdict] for row in range(4)] == verdicts[run].tolist()
        if not runs.evidence(run)[0].second:
            assert judged[0].smallest_effect == pytest.approx(effects[run, 0])


@pytest.mark.parametrize("name", ["quiet", "quiet, noisy quads", "launches only"])
def test_rates_on_machines_that_are_known(name: str) -> None:
    found = gate_simulation.rates(MACHINES[name], 1, 2_000, 1_000, chunk=1_000)
    assert found.alarms <= 0.001
    assert found.missed <= 0.02
    if name != "launches only":
        assert found.ten >= 0.8
        assert found.twenty >= 0.99
        assert found.found >= 0.85


@pytest.mark.parametrize("quads", [7, 30])
@pytest.mark.parametrize("name", ["quiet", "restless", "noisy", "heavy tails"])
def test_the_smallest_effect_is_honest_with_few_quads_and_with_many(name: str, quads: int) -> None:
    found = gate_simulation.rates(MACHINES[name], 1, 500, 1_000, chunk=500, rows=6, quads=quads)
    assert found.found >= 0.85
    assert found.missed <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_false_alarms_are_one_in_a_thousand_runs_at_most(name: str) -> None:
    assert gate_simulation.rates(MACHINES[name], 2, 100_000, 2_000).alarms <= 0.001


def test_seeds_give_the_same_runs() -> None:
    one, other = (gate_simulation.rates(MACHINES["quiet"], 5, 200, 200) for _ in range(2))
    assert one == other
