"""Warm-up, interleaved blocks and when to stop (MEASURING.md, rules 4 to 7).

Each round times one block of every subject, in an order drawn anew from the stored seed, so that whatever the machine
does besides falls on all of them alike. Nothing here knows torch: a subject is a function that returns seconds per
call, so that the rules can be tested with a clock of our own.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from invbench.results.quantities import Interval, Samples

Sampler = Callable[[int], float]  # calls -> seconds per call

MIN_ROUNDS = 6  # the fewest values that have a 95 % order-statistic interval
SHORTEST_SAMPLE = 5e-4  # seconds; a thousand times what reading the clock costs
BLOCK_SECONDS = (0.002, 0.2)
WARM_UP_WINDOW = 0.03
WARM_UP_AGREEMENT = 0.05
WALL_SAMPLES = 3
STABLE_ROUNDS = 16  # noise is looked at over this many rounds
STABLE_NOISE = 0.1
MOST_SPOILED = 6  # rounds; if no more were kept, the device will not recover while it is measured


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how precisely one point is measured.

    seconds: for all rounds of all subjects. precision: half-width of the 95 % interval, as a share of the median,
    at which a subject is known well enough. warm_up: the longest warm-up of one subject, seconds.
    """

    seconds: float = 6.0
    precision: float = 0.02
    warm_up: float = 0.5


@dataclass(frozen=True, slots=True)
class Slowdown:
    """Whether a device was slowed down during a block; None where it does not tell.

    spoiled: by its temperature or a fault of its hardware, so that the block says nothing. capped: by its power limit.
    """

    spoiled: bool | None = None
    capped: bool | None = None


class Throttling(Protocol):
    """Looks at what slows a device down, before and after each block."""

    def look(self) -> Any:
        """The device's counters now."""

    def between(self, before: Any, after: Any) -> Slowdown:
        """What happened between two looks."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Samples by name, what went wrong by name, and whether Ctrl-C ended the measurement early.

    discarded: rounds that were not kept, since the device was slowed down; None where it does not tell.
    """

    samples: Mapping[str, Samples]
    failures: Mapping[str, Exception]
    interrupted: bool
    discarded: int | None = None


@dataclass(frozen=True, slots=True)
class BlockSize:
    """Seconds of one warm call, how many calls a sample averages over, and how many samples make a block."""

    seconds: float
    calls: int
    samples: int


@dataclass
class _Track:
    """One subject while it is measured."""

    sampler: Sampler
    calls: int
    samples: int
    blocks: list[tuple[float, ...]] = field(default_factory=list)
    capped: list[bool | None] = field(default_factory=list)

    def values(self) -> list[float]:
        return [statistics.median(block) for block in self.blocks]


def measure(
    samplers: Mapping[str, Sampler],
    budget: Budget,
    seed: int,
    baseline: str | Mapping[str, str] | None = None,
    now: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, float], None] = lambda _rounds, _share: None,
    throttling: Throttling | None = None,
) -> Measurement:
    """Blocks of all subjects, interleaved, until all are precise or their noise is known, or the budget is spent.

    samplers: by name; each returns seconds per call, averaged over the number of calls it is given.
    baseline: where given, precision means that of the paired ratio to it, otherwise that of the latency; one for all,
    or by name.
    progress: told the rounds done and the share of the budget spent.
    throttling: of the device. A round in which a block was spoiled is repeated as a whole, so that rounds pair up;
    after MOST_SPOILED of them, and as many as were kept, it ends.

    All subjects take part in all rounds, so that any two of them can be compared as pairs; an unfinished round is not
    kept. A subject that raises is a failure, and the others go on.
    """
    tracks: dict[str, _Track] = {}
    bases = dict.fromkeys(samplers, baseline) if isinstance(baseline, str) else dict(baseline or {})
    failures: dict[str, Exception] = {}
    order = random.Random(seed)
    interrupted = False
    discarded: int | None = None
    try:
        block_seconds = _block_seconds(budget, len(samplers))
        for name, sampler in samplers.items():
            try:
                size = block_size(sampler, budget.warm_up, block_seconds, now)
                tracks[name] = _Track(sampler, size.calls, size.samples)
            except Exception as error:  # noqa: BLE001 -- told to the caller as this subject's failure
                failures[name] = error.with_traceback(None)
        started = now()
        while tracks and not _finished(tracks, bases, budget, now() - started) and not _hopeless(tracks, discarded):
            spoiled = _round(tracks, failures, order, throttling)
            if spoiled is not None:
                discarded = (discarded or 0) + spoiled
            progress(_rounds(tracks), (now() - started) / budget.seconds)
    except KeyboardInterrupt:
        interrupted = True
    done = {}
    for name, track in tracks.items():
        if track.blocks:
            stop = "interrupted" if interrupted else _stop_reason(name, tracks, bases, budget)
            stop = stop or ("throttled" if _hopeless(tracks, discarded) else "budget")
            capped = [each for each in track.capped if each is not None]
            done[name] = Samples(
                tuple(track.blocks), track.calls, stop=stop, discarded=discarded,
                power_capped=tuple(capped) if len(capped) == len(track.blocks) else None,
            )  # fmt: skip
    return Measurement(done, failures, interrupted, discarded)


def _block_seconds(budget: Budget, subjects: int) -> float:
    shortest, longest = BLOCK_SECONDS
    return min(longest, max(shortest, budget.seconds / (2.5 * MIN_ROUNDS * max(1, subjects))))


def block_size(
    sampler: Sampler, warm_up: float, block_seconds: float, now: Callable[[], float] = time.perf_counter
) -> BlockSize:
    """Warm up until two successive windows agree, or for so many seconds; then the size of a block."""
    started = now()
    previous = math.inf
    while True:
        seconds, wall = _window(sampler, now)
        agree = math.isfinite(previous) and abs(seconds - previous) <= WARM_UP_AGREEMENT * previous
        if agree or now() - started > warm_up:
            break
        previous = seconds
    seconds = max(seconds, 1e-9)
    calls = max(1, math.ceil(SHORTEST_SAMPLE / seconds))
    if calls > 1:  # what the clock does not see may come once a sample, and not with each call
        wall = statistics.median(_wall(sampler, calls, now) for _ in range(WALL_SAMPLES))
    return BlockSize(seconds, calls, max(1, round(block_seconds / max(wall, calls * seconds))))


def _wall(sampler: Sampler, calls: int, now: Callable[[], float]) -> float:
    """How long one sample takes, with all that its clock does not see."""
    started = now()
    sampler(calls)
    return now() - started


def _window(sampler: Sampler, now: Callable[[], float]) -> tuple[float, float]:
    """The median of the timed seconds of one call, and what one call takes with all that its clock does not see."""
    started = now()
    values = [sampler(1)]
    while now() - started < WARM_UP_WINDOW:
        values.append(sampler(1))
    return statistics.median(values), (now() - started) / len(values)


def _round(
    tracks: dict[str, _Track], failures: dict[str, Exception], order: random.Random, throttling: Throttling | None
) -> bool | None:
    """One block of every subject; whether one was spoiled, in which case none is kept, or None if nobody tells."""
    names = list(tracks)
    order.shuffle(names)
    blocks, slowdowns = {}, {}
    for name in names:
        track = tracks[name]
        before = throttling.look() if throttling else None
        try:
            with no_garbage_collection():
                blocks[name] = tuple(track.sampler(track.calls) for _ in range(track.samples))
        except Exception as error:  # noqa: BLE001 -- told to the caller as this subject's failure
            failures[name] = error.with_traceback(None)  # whose frames would keep what the subject holds
            del tracks[name]
            continue
        slowdowns[name] = throttling.between(before, throttling.look()) if throttling else Slowdown()
        if slowdowns[name].spoiled:
            return True
    for name, block in blocks.items():
        tracks[name].blocks.append(block)
        tracks[name].capped.append(slowdowns[name].capped)
    return False if any(each.spoiled is not None for each in slowdowns.values()) else None


def _hopeless(tracks: Mapping[str, _Track], discarded: int | None) -> bool:
    """Whether the device is slowed down so often that more rounds would not help."""
    return discarded is not None and discarded >= max(MOST_SPOILED, _rounds(tracks))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Inside, no time goes to looking for garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _rounds(tracks: Mapping[str, _Track]) -> int:
    return min((len(track.blocks) for track in tracks.values()), default=0)


def _finished(tracks: Mapping[str, _Track], bases: Mapping[str, str], budget: Budget, spent: float) -> bool:
    rounds = _rounds(tracks)
    if rounds < 1:
        return False
    if spent + spent / rounds > budget.seconds:  # another round would not fit
        return True
    return rounds >= MIN_ROUNDS and all(_stop_reason(name, tracks, bases, budget) for name in tracks)


def _stop_reason(name: str, tracks: Mapping[str, _Track], bases: Mapping[str, str], budget: Budget) -> str | None:
    """Why no more rounds are needed for this subject: its precision, or its noise; None if they are."""
    values = tracks[name].values()
    baseline = bases.get(name, name)
    if baseline in tracks and baseline != name:
        values = [value / base for value, base in zip(values, tracks[baseline].values(), strict=True)]
    if len(values) < MIN_ROUNDS:
        return None
    if Interval.of(values).half_width <= budget.precision:
        return "precision"
    return "noise" if _noise_is_stable(values) else None


def _noise_is_stable(values: list[float]) -> bool:
    """Whether the spread has stopped changing, so that more rounds would only shrink the interval by their root."""
    if len(values) < 2 * STABLE_ROUNDS:
        return False
    spreads = [_spread(values[:count]) for count in range(len(values) - STABLE_ROUNDS, len(values) + 1)]
    return max(spreads) - min(spreads) <= STABLE_NOISE * statistics.median(spreads)


def _spread(values: list[float]) -> float:
    centre = statistics.median(values)
    return statistics.median(abs(value - centre) for value in values) / centre if centre else 0.0
