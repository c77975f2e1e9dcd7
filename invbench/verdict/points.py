"""Many points at once: which of their axes vary, and means over those that may be averaged. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from invbench.results import Result, ResultSet, find
from invbench.results.quantities import Interval
from invbench.spec import CASE_FIELDS
from invbench.verdict import fastest_involution, paired_ratio

Value = int | str | None

AXES = (
    "data_set", *CASE_FIELDS, "stem_kernel_size", "autocast", "epochs", "clock", "cache", "machine", "baseline", "run",
)  # fmt: skip
# Points that differ in one of these are never averaged: the ratio would mean two things at once.
CLASS = ("machine", "device", "dtype", "autocast", "mode", "scope", "clock", "cache")
CONVOLUTIONS = ("conv2d", "conv2d-3x3")


@dataclass(frozen=True)
class Point:
    """The rows that were measured in one go, and where they lie: a value for each of ``AXES``."""

    rows: tuple[Result, ...]
    axes: Mapping[str, Value]

    @property
    def best(self) -> Result | None:
        """The fastest involution."""
        return fastest_involution(self.rows)

    def ratio(self, subject: str, of: Result | None = None) -> Interval | None:
        """The latency of a row (default: the fastest involution) over that of a subject, paired round by round."""
        row, base = of or self.best, find(self.rows, subject)
        return paired_ratio(row, base) if row and base else None

    @property
    def kind(self) -> tuple[Value, ...]:
        """The values of ``CLASS``: points may be averaged where this is equal."""
        return tuple(self.axes[name] for name in CLASS)


def points_of(results: ResultSet) -> list[Point]:
    """The points of a document, in its order."""
    names = machine_names(results)
    return [Point(rows, _axes(results, rows, names)) for rows in results.points()]


def _axes(results: ResultSet, rows: Sequence[Result], machines: Mapping[str, str]) -> dict[str, Value]:
    first = rows[0]
    timed = next((row.latency for row in rows if row.latency), None)
    return {
        **dict.fromkeys(AXES),  # those that this kind of row does not have
        **first.case.to_dict(),
        "clock": timed.clock if timed else None,
        "cache": timed.cache if timed else None,
        "machine": machines.get(first.machine or "", first.machine),
        "baseline": results.baseline_of(first),
        "run": first.run,
    }


def machine_names(results: ResultSet) -> dict[str, str]:
    """A name to read for each machine of a document: its accelerator or processor; a number where two are alike."""
    models = {}
    for key, environment in results.machines.items():
        cpu, gpu = environment.get("cpu") or {}, environment.get("gpu") or {}
        models[key] = str(gpu.get("name") or f"{cpu.get('model', 'unknown CPU')}, {cpu.get('usable', '?')} cores")
    seen: list[str] = []
    names = {}
    for key, model in models.items():
        seen.append(model)
        names[key] = f"{model} #{seen.count(model)}" if list(models.values()).count(model) > 1 else model
    return names


def varying(points: Sequence[Point]) -> tuple[str, ...]:
    """The axes along which points differ. W is left out where every image is square; unknown is no value."""
    found = []
    for name in AXES:
        values = {point.axes[name] for point in points} - {None}
        if len(values) > 1:
            found.append(name)
    if "H" in found and "W" in found and square(points):
        found.remove("W")
    return tuple(found)


def square(points: Iterable[Point]) -> bool:
    """Whether every image is as wide as high."""
    return all(point.axes["H"] == point.axes["W"] for point in points)


def values_of(points: Iterable[Point], axis: str) -> list[Value]:
    """The values that an axis takes, in order; unknown ones last."""
    return sorted({point.axes[axis] for point in points}, key=lambda v: (v is None, isinstance(v, str), v or 0))


def classes(points: Iterable[Point]) -> dict[tuple[Value, ...], list[Point]]:
    """The points that may be averaged with one another."""
    found: dict[tuple[Value, ...], list[Point]] = {}
    for point in points:
        found.setdefault(point.kind, []).append(point)
    return found


@dataclass(frozen=True, slots=True)
class Versus:
    """The fastest involution against one convolution: a ratio for each point at which both were timed."""

    subject: str
    ratios: tuple[Interval, ...]

    @property
    def faster(self) -> int:
        """Points at which involution is faster, the whole interval below 1."""
        return sum(ratio.high < 1 for ratio in self.ratios)

    @property
    def slower(self) -> int:
        """Points at which it is slower, the whole interval above 1."""
        return sum(ratio.low > 1 for ratio in self.ratios)

    @property
    def even(self) -> int:
        """Points at which the interval does not tell."""
        return len(self.ratios) - self.faster - self.slower

    @property
    def mean(self) -> float:
        """The geometric mean of the median ratios."""
        return geometric_mean(ratio.median for ratio in self.ratios)


def against(points: Iterable[Point], subject: str) -> Versus:
    """The fastest involution of each point against a convolution; points where one was not timed are left out."""
    ratios = (point.ratio(subject) for point in points)
    return Versus(subject, tuple(ratio for ratio in ratios if ratio is not None and ratio.median > 0))


def geometric_mean(ratios: Iterable[float]) -> float:
    """The geometric mean, the only one that means something for ratios (MEASURING.md, rule 23)."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


def informative(points: Sequence[Point], subject: str = CONVOLUTIONS[0]) -> list[str]:
    """The varying axes, best first: those that explain most of how the ratio to a convolution changes.

    Only axes along which points may be averaged. Explained is the variance of the mean log ratio by the axis' value.
    """
    logs = [(point, math.log(ratio.median)) for point in points if (ratio := point.ratio(subject)) and ratio.median > 0]

    def explained(axis: str) -> float:
        by_value: dict[Value, list[float]] = {}
        for point, value in logs:
            by_value.setdefault(point.axes[axis], []).append(value)
        overall = statistics.fmean(value for _, value in logs) if logs else 0.0
        return sum(len(values) * (statistics.fmean(values) - overall) ** 2 for values in by_value.values())

    axes = [axis for axis in varying(points) if axis not in (*CLASS, "run", "baseline")]
    return sorted(axes, key=explained, reverse=True)


def follows(points: Iterable[Point], axis: str, other: str) -> bool:
    """Whether one of two axes decides the other, as G = C // 16 does: together they would make a diagonal, no map."""
    pairs = {(point.axes[axis], point.axes[other]) for point in points}
    return len(pairs) == max(len({a for a, _ in pairs}), len({b for _, b in pairs}))
