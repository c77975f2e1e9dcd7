"""The rules of measuring, with a clock of our own: time passes only when a subject is called."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from invbench.harness.blocks import MIN_ROUNDS, MOST_SPOILED, Budget, Measurement, Slowdown, measure

ENOUGH = Budget(seconds=1e9, precision=0.02, warm_up=0.5)
NEVER = -1.0  # a precision that even equal values do not reach


@dataclass
class Bench:
    """A clock, and subjects whose seconds per call come from an iterator; every sample is logged by name."""

    time: float = 0.0
    log: list[str] = field(default_factory=list)

    def now(self) -> float:
        return self.time

    def subject(self, name: str, seconds: Iterator[float], check: Callable[[], None] = lambda: None):
        def sample(calls: int) -> float:
            check()
            value = next(seconds)
            self.time += calls * value
            self.log.append(name)
            return value

        return sample

    def steady(self, **seconds: float) -> dict[str, Callable[[int], float]]:
        return {name: self.subject(name, itertools.repeat(value)) for name, value in seconds.items()}

    def measure(self, samplers: Mapping[str, Callable[[int], float]], budget: Budget = ENOUGH, **more) -> Measurement:
        more.setdefault("seed", 0)
        return measure(samplers, budget, now=self.now, **more)


def noise(scale: float, around: float = 0.01) -> Iterator[float]:
    """Seconds that jump by a share of their size, the same way every time."""
    return (around * (1 + scale * ((7 * step) % 11 - 5) / 5) for step in itertools.count())


# --- Interleaving ---


def blocks_in_order(seed: int) -> list[str]:
    """Whose block came when, from the log after the warm-up."""
    bench = Bench()
    samplers = bench.steady(a=0.1, b=0.1, c=0.1, d=0.1)
    marks: list[int] = []
    found = bench.measure(
        samplers, Budget(1e9, precision=NEVER, warm_up=0.5), seed=seed,
        progress=lambda rounds, _share: marks.append(len(bench.log)) if rounds <= 12 else interrupt(),
    )  # fmt: skip
    assert {len(samples.blocks) for samples in found.samples.values()} == {13}  # the last one's end ended it
    assert len({later - earlier for earlier, later in itertools.pairwise(marks)}) == 1
    return bench.log[marks[0] : marks[-1]]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_every_round_has_every_subject_once_in_an_order_that_changes() -> None:
    log = blocks_in_order(seed=3)
    per_round = len(log) // 11
    rounds = [[name for name, _ in itertools.groupby(log[i : i + per_round])] for i in range(0, len(log), per_round)]
    assert len(rounds) == 11
    for order in rounds:
        assert sorted(order) == ["a", "b", "c", "d"]
    assert len({tuple(order) for order in rounds}) > 1
    assert len({order[0] for order in rounds}) > 1  # nobody is always first


def test_order_comes_from_the_seed() -> None:
    assert blocks_in_order(seed=5) == blocks_in_order(seed=5)
    assert blocks_in_order(seed=5) != blocks_in_order(seed=6)


def test_all_subjects_have_the_same_rounds_so_that_they_pair() -> None:
    bench = Bench()
    samplers = {"slow": bench.subject("slow", noise(0.5, 0.3)), **bench.steady(fast=1e-5)}
    found = bench.measure(samplers, Budget(20.0))
    assert len({len(samples.blocks) for samples in found.samples.values()}) == 1


# --- Warm-up ---


def warm_up_of(seconds: Iterator[float], cap: float = 0.5) -> float:
    """How long a subject was warmed up, on the bench's clock, before its first block."""
    bench = Bench()
    blocks: list[float] = []
    sampler = bench.subject("a", seconds)

    def watched(calls: int) -> float:
        if not gc.isenabled() and not blocks:  # blocks run without garbage collection; warm-up does not
            blocks.append(bench.time)
        return sampler(calls)

    bench.measure({"a": watched}, Budget(0.1, warm_up=cap))
    return blocks[0]


def test_warm_up_ends_when_two_windows_agree() -> None:
    assert 0.0599 <= warm_up_of(itertools.repeat(0.01)) <= 0.1


def test_one_window_agrees_with_nothing() -> None:
    # One window of a subject that becomes four times faster must not be the warm-up.
    slow_start = itertools.chain(itertools.repeat(0.02, 3), itertools.repeat(0.005))
    assert warm_up_of(slow_start) >= 3 * 0.02 + 0.03


def test_warm_up_goes_on_while_windows_disagree_and_ends_at_its_cap() -> None:
    ever_slower = (0.005 * 1.1**step for step in itertools.count())
    assert 0.5 <= warm_up_of(ever_slower, cap=0.5) <= 0.5 + 0.03 + 0.07


def test_a_call_longer_than_the_cap_is_not_repeated_for_warmth() -> None:
    # Two windows at the most: one that passes the cap is the last.
    assert warm_up_of(itertools.repeat(2.0)) <= 4.0


# --- Samples ---


@pytest.mark.parametrize("seconds", [1e-6, 1.3e-5, 4.9e-4, 5.1e-4, 1e-3, 3.0])
def test_short_calls_are_timed_together(seconds: float) -> None:
    # A sample lasts half a millisecond, a thousand times what reading the clock costs, or one call.
    bench = Bench()
    calls = bench.measure(bench.steady(a=seconds), Budget(50.0)).samples["a"].calls
    assert calls == 1 or 5e-4 <= calls * seconds < 5e-4 + 2 * seconds
    assert calls * seconds >= 5e-4


def test_raw_samples_are_kept_and_outliers_too() -> None:
    bench = Bench()
    given: list[float] = []

    def logged() -> Iterator[float]:
        for step in itertools.count():
            given.append(0.01 if step % 7 else 0.05)
            yield given[-1]

    found = bench.measure({"a": bench.subject("a", logged())}, Budget(3.0, precision=NEVER)).samples["a"]
    kept = [sample for block in found.blocks for sample in block]
    assert kept == given[-len(kept) :]
    assert 0.05 in kept


@pytest.mark.parametrize(
    ("budget", "subjects"), [(10.0, 1), (10.0, 9), (2.0, 6), (0.3, 6), (60.0, 2)], ids=lambda value: str(value)
)
def test_blocks_are_50_to_200_ms_or_what_the_budget_allows(budget: float, subjects: int) -> None:
    bench = Bench()
    found = bench.measure(bench.steady(**{f"s{i}": 1e-3 for i in range(subjects)}), Budget(budget))
    lengths = [sum(block) * samples.calls for samples in found.samples.values() for block in samples.blocks]
    allowed = budget / MIN_ROUNDS / subjects
    assert max(lengths) <= 0.21
    assert min(lengths) >= min(0.049, allowed / 3)


def test_a_small_budget_still_has_the_rounds_of_an_interval() -> None:
    # Blocks shrink to what the budget allows, so that there are six pairs and not one.
    bench = Bench()
    found = bench.measure(bench.steady(**{f"s{i}": 1e-4 for i in range(6)}), Budget(0.3))
    assert {len(samples.blocks) for samples in found.samples.values()} == {MIN_ROUNDS}


# --- When to stop ---


def test_stops_on_precision_after_the_fewest_rounds_with_an_interval() -> None:
    bench = Bench()
    found = bench.measure(bench.steady(a=0.01, b=0.02), baseline="a")
    for samples in found.samples.values():
        assert samples.stop == "precision"
        assert len(samples.blocks) == MIN_ROUNDS == 6


def test_precision_is_reached_by_every_subject() -> None:
    bench = Bench()
    samplers = {"noisy": bench.subject("noisy", noise(0.05)), **bench.steady(quiet=0.01)}
    found = bench.measure(samplers, Budget(1e9, precision=0.002))
    assert {samples.stop for samples in found.samples.values()} <= {"precision", "noise"}
    assert len(found.samples["quiet"].blocks) == len(found.samples["noisy"].blocks) > MIN_ROUNDS


def test_precision_is_that_of_the_ratio_where_there_is_a_baseline() -> None:
    # The machine's speed changes from round to round, for both subjects alike: latencies spread, ratios do not.
    def run(baseline: str | Mapping[str, str] | None) -> Mapping[str, str]:
        bench, speed = Bench(), [1.0]
        speeds = itertools.cycle([1.0, 3.0, 0.5, 2.0, 4.0, 1.5, 0.7])
        steady = {name: (lambda calls, s=s: tick(calls, s)) for name, s in (("a", 0.01), ("b", 0.02), ("c", 0.04))}

        def tick(calls: int, seconds: float) -> float:
            bench.time += calls * seconds * speed[0]
            return seconds * speed[0]

        found = bench.measure(
            steady, Budget(30.0), baseline=baseline,
            progress=lambda _rounds, _share: speed.__setitem__(0, next(speeds)),
        )  # fmt: skip
        return {name: samples.stop for name, samples in found.samples.items()}

    assert run("c")["a"] == run("c")["b"] == "precision"
    each = run({"a": "c", "b": "b"})
    assert (each["a"], each["b"] != "precision") == ("precision", True)
    assert run(None)["a"] != "precision"


def test_stops_when_the_noise_is_stable() -> None:
    bench = Bench()
    # One sample a block, so that the blocks differ as much as the samples.
    found = bench.measure({"a": bench.subject("a", noise(0.5, 0.3))}, Budget(1e9, precision=1e-4))
    assert found.samples["a"].stop == "noise"
    assert len(found.samples["a"].blocks) >= 32


@pytest.mark.parametrize("subjects", [1, 3, 9])
@pytest.mark.parametrize("seconds", [1e-6, 0.004, 0.05, 0.3])
@pytest.mark.parametrize("budget", [0.3, 2.0, 10.0])
def test_the_budget_is_kept(budget: float, seconds: float, subjects: int) -> None:
    bench, started = Bench(), []
    samplers = {f"s{i}": bench.subject(f"s{i}", noise(0.5, seconds)) for i in range(subjects)}
    found = bench.measure(
        samplers, Budget(budget, precision=NEVER), progress=lambda _rounds, _share: started.append(bench.time)
    )
    spent = sum(sum(block) * samples.calls for samples in found.samples.values() for block in samples.blocks)
    first = sum(sum(samples.blocks[0]) * samples.calls for samples in found.samples.values())
    # One round is always measured; otherwise no more than the budget, but for the noise of the last round.
    assert spent <= max(first, 1.5 * budget)
    assert len(started) == len(found.samples["s0"].blocks) >= 1
    assert {samples.stop for samples in found.samples.values()} <= {"budget", "noise"}


def test_a_spent_budget_is_recorded() -> None:
    bench = Bench()
    found = bench.measure({"a": bench.subject("a", noise(0.5, 0.3))}, Budget(3.0, precision=1e-4))
    assert found.samples["a"].stop == "budget"
    assert not found.interrupted


def test_progress_hears_of_every_round() -> None:
    bench: Bench = Bench()
    heard: list[tuple[int, float]] = []
    bench.measure(bench.steady(a=0.01), Budget(5.0), progress=lambda *news: heard.append(news))
    assert [rounds for rounds, _ in heard] == list(range(1, len(heard) + 1))
    assert all(0 < share <= 1.5 for _, share in heard)
    assert heard == sorted(heard)


def test_nothing_to_measure() -> None:
    assert Bench().measure({}) == Measurement({}, {}, interrupted=False)


# --- What goes wrong ---


def failing_at(sample: int, error: BaseException) -> Iterator[float]:
    """Steady seconds until the given sample, which raises."""

    def seconds() -> Iterator[float]:
        yield from itertools.repeat(0.01, sample)
        raise error

    return seconds()


@pytest.mark.parametrize("sample", [0, 3, 40, 90], ids=["first call", "warm-up", "first rounds", "later"])
@pytest.mark.parametrize("culprit", ["a", "base"])
def test_a_subject_that_raises_is_a_failure_and_the_others_go_on(culprit: str, sample: int) -> None:
    bench, error = Bench(), RuntimeError("broke")
    samplers = bench.steady(a=0.01, b=0.02, base=0.03)
    samplers[culprit] = bench.subject(culprit, failing_at(sample, error))
    found = bench.measure(samplers, baseline="base")
    assert found.failures == {culprit: error}
    assert not found.interrupted
    others = {"a", "b", "base"} - {culprit}
    assert set(found.samples) == others
    for name in others:
        assert len(found.samples[name].blocks) >= MIN_ROUNDS
        assert found.samples[name].stop == "precision"
    assert gc.isenabled()


def test_all_subjects_may_fail() -> None:
    bench = Bench()
    samplers = {name: bench.subject(name, failing_at(at, MemoryError())) for name, at in (("a", 0), ("b", 30))}
    found = bench.measure(samplers)
    assert set(found.failures) == {"a", "b"}
    assert found.samples == {}


@pytest.mark.parametrize("culprit", ["a", "b", "c"])
@pytest.mark.parametrize("after_rounds", [1, 3])
def test_ctrl_c_keeps_whole_rounds_only(culprit: str, after_rounds: int) -> None:
    bench, armed = Bench(), []

    def check() -> None:
        if armed:
            raise KeyboardInterrupt

    samplers = bench.steady(a=0.01, b=0.02, c=0.03)
    samplers[culprit] = bench.subject(culprit, itertools.repeat(0.01), check)
    found = bench.measure(
        samplers, Budget(1e9, precision=NEVER),
        progress=lambda rounds, _share: armed.append(1) if rounds == after_rounds else None,
    )  # fmt: skip
    assert found.interrupted
    assert {name: len(samples.blocks) for name, samples in found.samples.items()} == dict.fromkeys("abc", after_rounds)
    assert {samples.stop for samples in found.samples.values()} == {"interrupted"}
    assert gc.isenabled()


def test_ctrl_c_before_the_first_round_leaves_no_samples() -> None:
    bench = Bench()
    samplers = {**bench.steady(a=0.01), "b": bench.subject("b", failing_at(2, KeyboardInterrupt()))}
    found = bench.measure(samplers)
    assert found.interrupted
    assert found.samples == {}
    assert found.failures == {}


# --- Garbage collection ---


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_rests_within_blocks_and_is_put_back(enabled: bool) -> None:
    bench, seen = Bench(), Counter()
    sampler = bench.subject("a", itertools.repeat(0.1), lambda: seen.update([gc.isenabled()]))
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        found = bench.measure({"a": sampler}, Budget(5.0))
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was else gc.disable)()
    in_blocks = sum(map(len, found.samples["a"].blocks))
    assert seen[False] == (in_blocks if enabled else sum(seen.values()))


# --- A device that is slowed down ---


class Weather:
    """``blocks.Throttling`` whose slowdowns come from an iterator, block by block."""

    def __init__(self, slowdowns: Iterator[Slowdown]) -> None:
        self.slowdowns = slowdowns
        self.looks = 0

    def look(self) -> int:
        self.looks += 1
        return self.looks

    def between(self, before: int, after: int) -> Slowdown:
        assert after == before + 1
        return next(self.slowdowns)


CALM, HOT, CAPPED = Slowdown(False, False), Slowdown(True, False), Slowdown(False, True)


def under(*slowdowns: Slowdown, then: Slowdown = CALM, budget: Budget = ENOUGH) -> Measurement:
    """Two subjects, whose blocks take turns, under this weather."""
    weather = Weather(itertools.chain(slowdowns, itertools.repeat(then)))
    bench = Bench()
    return bench.measure(bench.steady(a=0.01, b=0.02), budget, throttling=weather)


def test_a_block_is_looked_at_before_and_after() -> None:
    found = under()
    assert found.discarded == 0
    for samples in found.samples.values():
        assert (samples.discarded, samples.stop) == (0, "precision")
        assert samples.power_capped == (False,) * MIN_ROUNDS


@pytest.mark.parametrize("spoiled", [(HOT,), (CALM, HOT)], ids=["first block", "second block"])
def test_a_spoiled_block_costs_its_round_and_the_round_is_repeated(spoiled: tuple[Slowdown, ...]) -> None:
    found = under(CALM, CALM, *spoiled)
    assert found.discarded == 1
    for samples in found.samples.values():
        assert (len(samples.blocks), samples.discarded, samples.stop) == (MIN_ROUNDS, 1, "precision")


def test_a_device_that_stays_hot_ends_the_measurement_with_what_there_is() -> None:
    found = under(*[CALM] * 6, then=HOT)
    assert found.discarded == MOST_SPOILED
    for samples in found.samples.values():
        assert (len(samples.blocks), samples.discarded, samples.stop) == (3, MOST_SPOILED, "throttled")


def test_a_device_that_is_always_hot_leaves_no_samples() -> None:
    found = under(then=HOT)
    assert (found.samples, found.failures, found.interrupted) == ({}, {}, False)
    assert found.discarded == MOST_SPOILED


def test_a_long_measurement_survives_some_heat() -> None:
    # Every fourth block spoils its round: two rounds are kept for each that is not.
    weather = itertools.cycle([CALM, CALM, CALM, CALM, HOT])
    bench = Bench()
    found = bench.measure(
        bench.steady(a=0.1, b=0.1), Budget(30.0, precision=NEVER), throttling=Weather(weather)
    )  # fmt: skip
    assert found.discarded > MOST_SPOILED
    assert "throttled" not in {samples.stop for samples in found.samples.values()}
    assert len(found.samples["a"].blocks) == len(found.samples["b"].blocks) > found.discarded


def test_a_capped_block_is_kept_and_labelled() -> None:
    found = under(CAPPED, CALM, CAPPED, CAPPED)
    flags = [found.samples[name].power_capped for name in "ab"]
    assert found.discarded == 0
    assert sorted(pair for pair in zip(*flags, strict=True))[-1] == (True, True)
    assert sum(map(sum, flags)) == 3


def test_what_the_device_does_not_tell_is_none() -> None:
    found = under(then=Slowdown())
    assert found.discarded is None
    assert {(samples.discarded, samples.power_capped) for samples in found.samples.values()} == {(None, None)}
    found = under(then=Slowdown(spoiled=False))
    assert {(samples.discarded, samples.power_capped) for samples in found.samples.values()} == {(0, None)}
    bench = Bench()
    assert bench.measure(bench.steady(a=0.1), Budget(3.0)).discarded is None


def test_a_subject_that_fails_in_the_heat_is_a_failure() -> None:
    bench, error = Bench(), RuntimeError("broke")
    samplers = {**bench.steady(a=0.01), "b": bench.subject("b", failing_at(60, error))}
    found = bench.measure(samplers, throttling=Weather(itertools.chain([HOT] * 3, itertools.repeat(CALM))))
    assert found.failures == {"b": error}
    assert found.discarded == 3
    assert len(found.samples["a"].blocks) >= MIN_ROUNDS


# --- What the clock does not see ---


@pytest.mark.parametrize("overhead", [0.0, 1e-4, 1e-3])
def test_blocks_of_short_calls_are_as_long_as_planned_whatever_a_sample_costs_besides(overhead: float) -> None:
    bench, starts = Bench(), []

    def sample(calls: int) -> float:
        bench.time += overhead + calls * 1e-6
        return 1e-6

    bench.measure(
        {"a": sample}, Budget(6.0, precision=NEVER), progress=lambda _rounds, _share: starts.append(bench.time)
    )  # fmt: skip
    assert {round(later - earlier, 1) for earlier, later in itertools.pairwise(starts)} == {0.2}
