"""Checks of a machine whose noise is known, many at once: how often the gate is wrong, and what it finds.

Every launch has three processes (base, again, head) with an effect of their own, shared in part by its rows, and every
quad adds noise of its own. The counts of ``invbench.verdict.gate`` are written again here, on arrays; a test holds one
against the other. ``python tests/gate_simulation.py`` prints the rates of several machines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from invbench.verdict.gate import FIRST, SECOND, Evidence, Launch, needed, sign_test

PASS, FAIL, IMPROVED, INCONCLUSIVE = 0, 1, -1, 2


@dataclass(frozen=True)
class Machine:
    """process, quad: standard deviations, as log ratios, of a process and of a quad. heavy: Student's t with 3 degrees
    of freedom instead of normal. jumps: the share of processes that are slower by 10 %. shared: the share of the
    variance that all rows of a launch have in common."""

    process: float
    quad: float
    heavy: bool = False
    jumps: float = 0.0
    shared: float = 0.5

    def draw(self, rng, runs: int, rows: int, launches: int, quads: int, slower: float | np.ndarray):
        """Log ratios [runs, rows, launches, quads] of head and of the base to the base; row 0 has a log ratio more."""

        def noise(*shape: int):
            return rng.standard_t(3, shape) / math.sqrt(3) if self.heavy else rng.standard_normal(shape)

        def both(*shape: int):
            common, own = noise(runs, 3, 1, *shape), noise(runs, 3, rows, *shape)
            return math.sqrt(self.shared) * common + math.sqrt(1 - self.shared) * own

        of_process = self.process * both(launches)
        if self.jumps:
            of_process += 0.1 * (rng.random((runs, 3, 1, launches)) < self.jumps)
        base, again, head = np.moveaxis(of_process[..., None] + self.quad / math.sqrt(2) * both(launches, quads), 1, 0)
        ratio = head - (base + again) / 2
        ratio[:, 0] += np.asarray(slower)[..., None, None]
        return ratio, again - base


@dataclass(frozen=True)
class Runs:
    """Both stages of many runs; each array is [runs, rows, launches, quads]."""

    first: np.ndarray
    noise: np.ndarray
    second: np.ndarray
    second_noise: np.ndarray
    threshold: float = 0.05
    visible: float = 0.2

    @classmethod
    def of(cls, machine: Machine, rng, runs: int, slower=0.0, rows: int = 8, launches: int = 3, quads: int = 7) -> Runs:
        """Both stages of runs in which row 0 is slower by a log ratio, one for all runs or one for each."""
        drawn = (machine.draw(rng, runs, rows, launches, quads, slower) for _ in range(2))
        return cls(*(part for stage in drawn for part in stage))

    def evidence(self, run: int) -> dict[int, Evidence]:
        """One run as the gate has it: the second stage of rows that the first found."""

        def launches(heads, noises) -> tuple[Launch, ...]:
            return tuple(Launch(tuple(h), tuple(n)) for h, n in zip(heads.tolist(), noises.tolist(), strict=True))

        flags = self.flags(_floor(self.noise))[run]
        return {
            row: Evidence(
                launches(self.first[run, row], self.noise[run, row]), self.threshold, self.visible,
                launches(self.second[run, row], self.second_noise[run, row]) if flags[row] else (),
            )
            for row in range(self.first.shape[1])
        }  # fmt: skip

    def flags(self, floor):
        """What the first stage finds with a floor."""
        return _changed(self.first, self.limit(floor), floor, np.ones(floor.shape, bool), FIRST)

    def limit(self, floor):
        """The log ratio that a change must exceed."""
        return np.maximum(math.log1p(self.threshold), floor)

    def verdicts(self):
        """The verdicts and the smallest effects, both [runs, rows]."""
        has_second = self.flags(_floor(self.noise)) != 0
        floor = np.where(has_second, _floor(self.noise, self.second_noise), _floor(self.noise))
        limit = self.limit(floor)
        flags = np.where(has_second, self.flags(floor), 0)
        confirmed = _changed(self.second, limit, floor, flags != 0, SECOND)
        median, again = (np.median(each.reshape(*floor.shape, -1), 2) for each in (self.first, self.second))
        effect = self._effect(limit, floor, median)
        unsure = (
            (flags > 0) | (effect > self.visible) | (np.where(has_second, np.maximum(median, again), median) > limit)
        )
        return np.where((flags != 0) & (flags == confirmed), flags, np.where(unsure, INCONCLUSIVE, PASS)), effect

    def _effect(self, limit, floor, median):
        values = np.sort(self.first.reshape(*floor.shape, -1), 2)
        count = values.shape[2]
        above = needed(count, FIRST / floor.shape[1])
        spread = np.maximum(median - values[..., count - above], values[..., above - 1] - median)
        return np.expm1(limit + 2 * floor + spread)


def _floor(*stages):
    return np.sqrt((np.median(np.concatenate(stages, 2), 3) ** 2).mean(2))


def _changed(quads, limit, floor, asked, level: float):
    count = quads.shape[2] * quads.shape[3]
    of_count = np.array([sign_test(above, count) for above in range(count + 1)])
    found = np.zeros(limit.shape, int)
    for sign in (1, -1):
        probability = of_count[(sign * quads > limit[..., None, None]).sum((2, 3))]
        medians = sign * np.median(quads, 3)
        agree = (medians.min(2) > floor) & (np.median(medians, 2) > limit)
        found[_holm(np.where(agree, probability, 1.0), asked, level)] = sign
    return found


def _holm(probability, asked, level: float):
    """Rejected hypotheses among those asked about, run by run."""
    order = np.argsort(np.where(asked, probability, 2.0), 1, kind="stable")
    rank, count = np.arange(probability.shape[1]), asked.sum(1, keepdims=True)
    in_order = np.take_along_axis(probability, order, 1) <= level / np.maximum(count - rank, 1)
    rejected = np.logical_and.accumulate(in_order & (rank < count), 1)
    found = np.empty_like(rejected)
    np.put_along_axis(found, order, rejected, 1)
    return found


@dataclass(frozen=True)
class Rates:
    """alarms: runs of identical code with a FAIL. inconclusive: rows of them. ten, twenty: runs that find a slowdown of
    row 0 by 10 % and 20 %. found, missed: runs that FAIL and that PASS a slowdown by what another run says is the
    smallest effect it could have seen."""

    alarms: float
    inconclusive: float
    ten: float
    twenty: float
    found: float
    missed: float


def rates(machine: Machine, seed: int, alarms: int, power: int, chunk: int = 5_000, **shape: int) -> Rates:
    """Rates from so many runs of identical code, and of slowdowns."""
    rng = np.random.default_rng(seed)

    def share(runs: int, slower: float, *of) -> list[float]:
        """The means of some things of the verdicts, a chunk of runs at a time."""
        size = min(chunk, runs)
        drawn = (Runs.of(machine, rng, size, slower, **shape).verdicts()[0] for _ in range(runs // size))
        return np.mean([[each(verdicts) for each in of] for verdicts in drawn], 0).tolist()

    identical = share(alarms, 0.0, lambda v: (v == FAIL).any(1).mean(), lambda v: (v == INCONCLUSIVE).mean())
    slowed = [share(power, math.log1p(by), lambda v: (v[:, 0] == FAIL).mean())[0] for by in (0.1, 0.2)]
    size = min(chunk, power)
    effects = Runs.of(machine, rng, size, **shape).verdicts()[1][:, 0]
    honest = Runs.of(machine, rng, size, np.log1p(effects), **shape).verdicts()[0][:, 0]
    return Rates(*identical, *slowed, float((honest == FAIL).mean()), float((honest == PASS).mean()))


MACHINES = {
    "still": Machine(0.005, 0.01),
    "quiet": Machine(0.015, 0.01),
    "quiet, noisy quads": Machine(0.015, 0.03),
    "restless": Machine(0.03, 0.03),
    "noisy quads": Machine(0.005, 0.15),
    "noisy": Machine(0.03, 0.15),
    "heavy tails": Machine(0.03, 0.05, heavy=True),
    "jumps": Machine(0.015, 0.03, jumps=0.02),
    "all of it": Machine(0.03, 0.15, heavy=True, jumps=0.02),
    "launches only": Machine(0.3, 0.001, shared=0.0),
}

if __name__ == "__main__":
    for name, machine in MACHINES.items():
        print(f"{name:20}", rates(machine, 1, 100_000, 10_000), flush=True)  # noqa: T201
