"""How latencies moved over the runs of a history, and where their level changed. Pure.

Absolute latencies of one class of machine, clock and cache only are told together. A *change point* is the first run of
a new level. It is looked for in the logarithms of what a slower machine moves least: the latency over that of a
convolution of the same case and run, where there is one, else the latency itself. A check's own verdict compares two
commits within one run, and is what may fail a build; a change point also sees what crept in below its threshold.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from invbench.results import ResultSet, machine_class
from invbench.results.check import Check, Finding, Row, Verdict
from invbench.results.history import History

FEWEST = 8  # runs, below which no change point is looked for
SHORTEST = 3  # runs of a level; fewer are outliers
CLIP = 2.5  # standard deviations from the median of a run and its neighbours, beyond which a value is an outlier's
NEIGHBOURS = 2  # on either side
LEAST_CHANGE = 0.005  # a share: levels that differ by less are one, whatever the noise
LEAST_NOISE = 0.001  # a share: latencies that agree better than this are not told apart
NORMAL_QUARTILE = 0.6745  # of a normal distribution with standard deviation 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What one run found on the latency of one row.

    number: of the run in the history, from 1. head, base: seconds; None where it was not timed. ratio: head over base.
    control: seconds of the track's control in the same run.
    """

    number: int
    created: str
    commit: str | None
    name: str
    verdict: Verdict
    head: float | None = None
    base: float | None = None
    ratio: float | None = None
    control: float | None = None

    @property
    def relative(self) -> float | None:
        """The latency of head over that of the control."""
        return self.head / self.control if self.head and self.control else None


@dataclass(frozen=True)
class Track:
    """One row over the runs, on one class of machine. control: what ``Reading.control`` is of.

    clock, cache: how it was timed, None where a run does not say. is_current: the latest run of the machine has it.
    """

    row: Row
    machine: str
    clock: str | None
    cache: str | None
    readings: tuple[Reading, ...]
    control: Row | None = None
    is_current: bool = True

    @property
    def latest(self) -> Reading:
        """The reading of the latest run that has the row."""
        return self.readings[-1]

    @cached_property
    def timed(self) -> tuple[Reading, ...]:
        """The readings with a latency."""
        return tuple(reading for reading in self.readings if reading.head)

    @cached_property
    def against(self) -> Row | None:
        """The control if change points are looked for against it: if most runs have it."""
        both = sum(reading.relative is not None for reading in self.timed)
        return self.control if 2 * both > len(self.timed) else None

    @cached_property
    def judged(self) -> tuple[Reading, ...]:
        """The readings in which change points are looked for."""
        return tuple(reading for reading in self.timed if self.value_of(reading) is not None)

    def value_of(self, reading: Reading) -> float | None:
        """What change points are looked for in."""
        return reading.relative if self.against else reading.head


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A new level. last: the last run of the old one; first: the first of the new one. before, after: their medians, in
    seconds or over ``against``. latency: the ratio of the medians of the latency itself."""

    last: Reading
    first: Reading
    before: float
    after: float
    latency: float
    against: Row | None

    @property
    def ratio(self) -> float:
        """The new level over the old one: above 1 is slower."""
        return self.after / self.before


Place = tuple[str, str | None, str | None]  # machine, clock, cache
Key = tuple[Place, Row]


def tracks(history: History) -> list[Track]:
    """Every row in every place, in the order of the latest run that has it."""
    found: dict[Key, dict[int, Reading]] = {}
    controls: dict[Key, Row] = {}
    latest: dict[Place, int] = {}
    for number, run in enumerate(history.runs, 1):
        for check in run.checks:
            if check.injected:  # --self-test slowed it down on purpose
                continue
            place = _place(run, check)
            latest[place] = number
            for finding in check.latencies:
                key = place, replace(finding.row, is_control=False)  # whatever the version of the run marked it as
                found.setdefault(key, {})[number] = _reading(number, run, check, finding)
                if finding.row.is_control:
                    controls[key] = finding.row
    keys = sorted(found, key=lambda key: -max(found[key]))  # stable: within a run as it has them
    return [_track(key, found, controls, max(found[key]) == latest[key[0]]) for key in keys]


def _place(run: ResultSet, check: Check) -> Place:
    machine = machine_class(run.environment or check.head.environment)
    return machine, run.settings.get("clock"), run.settings.get("cache")


def _reading(number: int, run: ResultSet, check: Check, finding: Finding) -> Reading:
    head, base = (value if isinstance(value, int | float) else None for value in (finding.head, finding.base))
    ratio = finding.ratio.median if finding.ratio else None
    return Reading(number, run.created, check.head.commit, check.head.name, finding.verdict, head, base, ratio)


def _track(
    key: Key, found: Mapping[Key, Mapping[int, Reading]], controls: Mapping[Key, Row], is_current: bool
) -> Track:
    place, row = key
    own = found[key]
    beside = [other for other in controls if other[0] == place and other[1].case == row.case and key not in controls]
    # One for all runs: that which most of them have, so that no level changes because another one was taken.
    best = max(beside, key=lambda other: len(own.keys() & _timed(found[other])), default=None)
    times = _timed(found[best]) if best else {}
    readings = tuple(replace(reading, control=times.get(number)) for number, reading in own.items())
    return Track(controls.get(key, row), *place, readings, best and controls[best], is_current)


def _timed(readings: Mapping[int, Reading]) -> dict[int, float]:
    return {number: reading.head for number, reading in readings.items() if reading.head}


def levels(track: Track) -> list[tuple[Reading, ...]]:
    """The judged readings of each level, the oldest first. Raises ImportError where ruptures is not installed."""
    values = [math.log(value) for reading in track.judged if (value := track.value_of(reading))]
    bounds = [0, *level_starts(values), len(values)]
    found = [(track.judged[start:end], values[start:end]) for start, end in pairwise(bounds) if end > start]
    kept = found[:1]
    for readings, own in found[1:]:
        before, old = kept[-1]
        if abs(statistics.median(own) - statistics.median(old)) < LEAST_CHANGE:
            kept[-1] = (before + readings, old + own)
        else:
            kept.append((readings, own))
    return [readings for readings, _ in kept]


def change_points(track: Track, found: Sequence[Sequence[Reading]]) -> list[ChangePoint]:
    """Where one level of a track follows another, the oldest first."""
    return [_change(track, before, after) for before, after in pairwise(found)]


def level_starts(values: Sequence[float]) -> list[int]:
    """The indices at which a new level begins: PELT (Killick et al., 2012) with the squared distance to a level's mean.

    The values are first divided by the standard deviation of their noise, taken from the median absolute difference of
    neighbours, which steps hardly move; then those further than ``CLIP`` from the median of their neighbourhood are
    moved there (a Hampel filter), since a squared distance believes outliers. So a level costs as much everywhere:
    2 log n, as the Bayesian information criterion charges for a place and a mean among n values; and 12 more, since
    the noise is an estimate and outliers are not all caught. In simulations (tests/test_history.py) white noise, also
    with 5 % of outliers, then has a change point in 1 to 4 % of series of 8 to 300 values; a step of 5 standard
    deviations is found at the right value or its neighbour in 95 % of series of 20 and more, one of 3 in 88 % of those
    of 30 and more. Noise that drifts from run to run is not white, and does have levels.
    """
    if len(values) < FEWEST:
        return []
    import numpy as np

    own = np.asarray(values, dtype=float)
    noise = float(np.median(np.abs(np.diff(own)))) / (NORMAL_QUARTILE * math.sqrt(2))
    scaled = own / max(noise, LEAST_NOISE)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(scaled, NEIGHBOURS, "reflect"), 2 * NEIGHBOURS + 1)
    medians = np.median(around, axis=1)
    signal = np.clip(scaled, medians - CLIP, medians + CLIP).reshape(-1, 1)
    from ruptures import KernelCPD

    search = KernelCPD(kernel="linear", min_size=SHORTEST).fit(signal)
    return [int(index) for index in search.predict(pen=12 + 2 * math.log(len(values)))[:-1]]


def _change(track: Track, before: Sequence[Reading], after: Sequence[Reading]) -> ChangePoint:
    (old, old_latency), (new, new_latency) = (medians(track, readings) for readings in (before, after))
    return ChangePoint(before[-1], after[0], old, new, new_latency / old_latency, track.against)


def medians(track: Track, readings: Sequence[Reading]) -> tuple[float, float]:
    """Of what change points are looked for in, and of the latency itself in seconds."""
    values = [(value, reading.head) for reading in readings if (value := track.value_of(reading)) and reading.head]
    return statistics.median(value for value, _ in values), statistics.median(head for _, head in values)
