"""Judging networks that were trained: over their seeds, and against the network they are compared with. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from invbench.results import Result
from invbench.results.quantities import Interval, Training, quotient
from invbench.verdict import paired_ratio

REPORT, PARAMS, MACS = "report", "params", "macs"


@dataclass(frozen=True, slots=True)
class Spread:
    """The mean over seeds and their standard deviation, which one seed alone does not have."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without a value."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True, slots=True)
class Epoch:
    """A quantity after an epoch: its mean, lowest and highest over the seeds that came so far."""

    mean: float
    low: float
    high: float
    count: int


def over_seeds(curves: Sequence[Sequence[float]]) -> list[Epoch]:
    """A summary for each epoch; where seeds were stopped early, of those that went on."""
    longest = max(map(len, curves), default=0)
    each = ([curve[n] for curve in curves if n < len(curve)] for n in range(longest))
    return [Epoch(statistics.fmean(values), min(values), max(values), len(values)) for values in each]


def epochs_done(training: Training | None) -> int:
    """After how many epochs there is an accuracy of some seed."""
    return max(map(len, training.accuracy), default=0) if training else 0


def trainable(row: Result) -> int | None:
    """Parameters that training changes."""
    return row.params if row.params_trainable is None else row.params_trainable


@dataclass(frozen=True, slots=True)
class Trained:
    """A network and the one that it is compared with; pair: what the two have in common, one of those above."""

    row: Result
    base: Result
    pair: str | None

    @property
    def step(self) -> Interval | None:
        """The time of a training step over the other's, epoch by epoch."""
        return paired_ratio(self.row, self.base)

    @property
    def params(self) -> float | None:
        """Trainable parameters over the other's."""
        return quotient(trainable(self.row), trainable(self.base))

    @property
    def macs(self) -> float | None:
        """Multiply-adds of a forward pass over the other's."""
        return quotient(self.row.macs, self.base.macs)


def trained_pairs(rows: Sequence[Result], baseline: str | None = None) -> list[Trained]:
    """Each network of a point beside its baseline, in order; baseline: of rows that name none."""
    found = []
    for row in rows:
        base = base_of(row, rows, baseline)
        if base is not None and base.subject != row.subject:
            pairs = (row.pair or "").split(",")
            found.append(Trained(row, base, next((p for p in (PARAMS, MACS, REPORT) if p in pairs), None)))
    return found


def base_of(row: Result, rows: Sequence[Result], baseline: str | None = None) -> Result | None:
    """The row that another is compared with."""
    return next((other for other in rows if other.subject == (row.baseline or baseline)), None)
