"""What one row is made of: raw timings and their intervals, memory, ratios. Seconds and bytes inside."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Any

from invbench.spec import InvbenchError

CONFIDENCE = 0.95
# Fewer values than this give no interval that holds the median with 95 %.
FEWEST = 6
NOISY = 0.05  # half-width of an interval, as a share of the median, that is worth a warning
# Why a measurement stopped, from the best reason to the worst.
STOPS = ("epochs", "precision", "noise", "budget", "throttled", "interrupted")


class Unit(StrEnum):
    """What a stored number counts."""

    SECONDS = "s"
    BYTES = "B"
    PERCENT = "%"


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and an order-statistic interval for it, from ``count`` independent values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
        """The median of values with its exact binomial interval; fewer than 6 values give their whole range.

        The interval [v(k), v(n+1-k)] of sorted values holds the median with probability 1 - 2 P(B(n, 1/2) < k);
        k is the largest for which that is at least ``confidence`` (David and Nagaraja, Order Statistics, 7.1).
        """
        ordered = sorted(values)
        n = len(ordered)
        limit = Fraction((1 - confidence) / 2) * 2**n  # in outcomes of 2**n, which floats cannot count
        k, tail = 1, 1
        while tail + math.comb(n, k) <= limit:
            tail += math.comb(n, k)
            k += 1
        return cls(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)

    @property
    def half_width(self) -> float:
        """Half the interval's width as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else math.inf


@dataclass(frozen=True)
class Samples:
    """Raw timings in blocks; each block is summarised by its median, and no sample is ever dropped.

    blocks: one tuple of seconds per call for each round. calls: how many calls one sample averages over.
    clock: eager or device. cache: hot or cold. stop: precision, noise, budget, throttled, interrupted, or
    epochs, of a training that came to its end.
    launches: how the device clock keeps them out of the window: "graph" (replays of a CUDA graph) or "queue" (queued
    before the GPU gets there). floor: seconds that the clock read for next to nothing in the same run. discarded:
    rounds of the run that were not kept, since the device was slowed down by heat or a fault. power_capped: for each
    block, whether the power limit held the clocks down. All four are None where they were not told.
    processes: where several launches took turns with those of other points, how many of the blocks each measured, in
    their order; processes of the same code differ, so that the values are then one for each of them. None of one.
    """

    blocks: tuple[tuple[float, ...], ...]
    calls: int = 1
    clock: str = "eager"
    cache: str = "hot"
    stop: str = "budget"
    launches: str | None = None
    floor: float | None = None
    discarded: int | None = None
    power_capped: tuple[bool, ...] | None = None
    processes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.blocks or not all(self.blocks):
            raise InvbenchError("a latency needs at least one block of at least one sample: got none; measure again")
        counts = self.processes
        if counts is not None and (sum(counts) != len(self.blocks) or any(count < 1 for count in counts)):
            raise InvbenchError(
                f"each process measured some of the blocks: got {counts} of {len(self.blocks)}; measure again"
            )
        if not all(isinstance(value, int | float) for block in self.blocks for value in block):
            raise InvbenchError(f"samples are numbers of seconds: got {self.blocks[0]!r}; measure again")

    @cached_property
    def block_medians(self) -> tuple[float, ...]:
        """One value a round."""
        return tuple(statistics.median(block) for block in self.blocks)

    @property
    def is_of_one_process(self) -> bool:
        """Whether values are rounds: also where only one of several launches is done."""
        return self.processes is None or len(self.processes) == 1

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The latency again and again, in seconds: one value a round or, of several processes, a process."""
        return tuple(statistics.median(self.block_medians[part]) for part in self._parts)

    @cached_property
    def interval(self) -> Interval:
        """The latency: the median over ``values`` and its interval, in seconds."""
        return Interval.of(self.values)

    def over(self, base: Samples) -> Interval | None:
        """The latency over another's in the same rounds: blocks of one round were measured next to each other, so they
        are compared as pairs; of several processes, each is a value. None where nothing pairs up."""
        ratios = []
        for part in self._parts:
            pairs = zip(self.block_medians[part], base.block_medians[part], strict=False)
            own = [value / reference for value, reference in pairs if reference]
            ratios += [statistics.median(own)] if own else []
        return Interval.of(ratios) if ratios else None

    @cached_property
    def _parts(self) -> tuple[slice, ...]:
        """Which blocks make a value."""
        counts = (1,) * len(self.blocks) if self.is_of_one_process else self.processes or ()
        return tuple(slice(end - count, end) for end, count in zip(itertools.accumulate(counts), counts, strict=True))

    @property
    def mad(self) -> float:
        """Median absolute deviation of the values, in seconds."""
        return statistics.median(abs(value - self.interval.median) for value in self.values)

    @classmethod
    def together(cls, launches: Sequence[Samples]) -> Samples:
        """Those of several processes; ``calls`` is then the least, ``floor`` the largest, and ``stop`` the worst."""
        stop = max((each.stop for each in launches), key=lambda stop: STOPS.index(stop) if stop in STOPS else -1)
        floors = [each.floor for each in launches if each.floor is not None]
        discarded = [each.discarded for each in launches if each.discarded is not None]
        capped = [each.power_capped for each in launches]
        ways = {each.launches for each in launches}
        return cls(
            tuple(block for each in launches for block in each.blocks), min(each.calls for each in launches),
            launches[0].clock, launches[0].cache, stop, ways.pop() if len(ways) == 1 else None,
            max(floors, default=None), sum(discarded) if discarded else None,
            None if None in capped else tuple(flag for each in capped for flag in each or ()),
            tuple(len(each.blocks) for each in launches),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The ``latency`` object of the document."""
        return {
            "unit": str(Unit.SECONDS),
            "median": self.interval.median,
            "mad": self.mad,
            "low": self.interval.low,
            "high": self.interval.high,
            "blocks": [list(block) for block in self.blocks],
            "samples": sum(map(len, self.blocks)),
            "calls": self.calls,
            "clock": self.clock,
            "cache": self.cache,
            "stop": self.stop,
            "launches": self.launches,
            "floor": self.floor,
            "discarded": self.discarded,
            "power_capped": None if self.power_capped is None else list(self.power_capped),
            **({} if self.processes is None else {"processes": list(self.processes)}),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Samples:
        """The inverse of ``to_dict``; the summary is computed again from the raw samples."""
        blocks = tuple(tuple(block) for block in stored["blocks"])
        capped, processes = stored.get("power_capped"), stored.get("processes")
        return cls(
            blocks, stored.get("calls", 1), stored["clock"], stored["cache"], stored["stop"], stored.get("launches"),
            stored.get("floor"), stored.get("discarded"), None if capped is None else tuple(capped),
            None if processes is None else tuple(processes),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes above inputs and parameters, the output included; None where the method cannot tell.

    kept: of a training step, what its forward pass keeps for the backward pass, inputs and parameters left out.
    """

    peak: int | None
    method: str | None
    kept: int | None = None


def quotient(value: float | None, base: float | None) -> float | None:
    """value / base, or None where a side is missing or the base is zero."""
    return None if value is None or not base else value / base


@dataclass(frozen=True, slots=True)
class Ratio:
    """Subject over baseline: under 1 means faster or smaller. None where a side is missing or zero."""

    latency: Interval | None = None
    memory: float | None = None
    params: float | None = None
    flop: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The ``ratio`` object of the document."""
        return {
            "latency": self.latency and interval_to_dict(self.latency),
            "memory": self.memory,
            "params": self.params,
            "flop": self.flop,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Ratio:
        """The inverse of ``to_dict``."""
        latency = stored["latency"] and interval_from_dict(stored["latency"])
        return cls(latency, stored["memory"], stored["params"], stored["flop"])


def interval_to_dict(ratio: Interval) -> dict[str, Any]:
    """A ratio of paired rounds in the document."""
    return {"median": ratio.median, "low": ratio.low, "high": ratio.high, "pairs": ratio.count}


def interval_from_dict(stored: Mapping[str, Any]) -> Interval:
    """The inverse of ``interval_to_dict``."""
    return Interval(stored["median"], stored["low"], stored["high"], stored["pairs"])


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time of one call goes: seconds by kind of layer, and of the whole call; ``method`` is how it is known.

    places: the same call by the parts of the network that have names, such as its neck; None where it has none. Its
    total is that of the calls that were looked into, which observing makes a little slower than the latency.
    """

    total: float
    parts: Mapping[str, float]
    method: str
    places: Mapping[str, float] | None = None

    @property
    def rest(self) -> float:
        """Seconds of the call that belong to no kind: what the framework does between and around operators."""
        return self.total - sum(self.parts.values())

    @property
    def elsewhere(self) -> float:
        """Seconds of the call that belong to no place."""
        return self.total - sum((self.places or {}).values())

    def to_dict(self) -> dict[str, Any]:
        """The ``breakdown`` object of the document; with ``rest`` the parts are the total, and so are the places."""
        parts = {**self.parts, "rest": self.rest}
        found = {"unit": str(Unit.SECONDS), "total": self.total, "parts": parts, "method": self.method}
        return found if self.places is None else {**found, "places": {**self.places, "rest": self.elsewhere}}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Breakdown:
        """The inverse of ``to_dict``."""
        parts, places = ({n: v for n, v in (stored.get(of) or {}).items() if n != "rest"} for of in ("parts", "places"))
        return cls(stored["total"], parts, stored["method"], places if stored.get("places") else None)


@dataclass(frozen=True, slots=True)
class Training:
    """How networks of one kind came out of training, one of each seed.

    accuracy: validation accuracy in percent after each epoch, for each seed. loss: the training loss, the mean over
    each epoch. seconds: of all training steps, for each seed that was trained to its end. epochs: how many there are to
    be.
    """

    accuracy: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]
    epochs: int

    @property
    def final(self) -> tuple[float, ...]:
        """The accuracy after the last epoch, for each seed that came so far; never the best of several epochs."""
        return tuple(curve[-1] for curve in self.accuracy if len(curve) == self.epochs)

    def to_dict(self) -> dict[str, Any]:
        """The fields ``accuracy`` and ``train_time`` of the document."""
        curves = {"curves": [list(curve) for curve in self.accuracy], "losses": [list(curve) for curve in self.loss]}
        return {
            "accuracy": {"unit": str(Unit.PERCENT), **_spread(self.final), **curves, "epochs": self.epochs},
            "train_time": {"unit": str(Unit.SECONDS), **_spread(self.seconds)},
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Training:
        """The inverse of ``to_dict``."""
        accuracy, seconds = row["accuracy"], row["train_time"]
        curves, losses = (tuple(map(tuple, accuracy[name])) for name in ("curves", "losses"))
        return cls(curves, losses, tuple(seconds["values"]), accuracy["epochs"])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, mean and standard deviation over seeds; None where there are too few."""
    return {
        "median": statistics.median(values) if values else None,
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }
