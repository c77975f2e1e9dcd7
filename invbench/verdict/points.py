"""Many points at once: which of their axes vary, and means over those that may be averaged. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from invbench.results import Result, ResultSet, find
from invbench.results.quantities import Interval
from invbench.spec import CASE_FIELDS
from invbench.verdict import fastest_involution, paired_ratio

Value = int | str | None

AXES = (
    "data_set", *CASE_FIELDS, "stem_kernel_size", "autocast", "epochs", "clock", "cache", "machine", "baseline", "run",
    "node",
)  # fmt: skip
# Points that differ in one of these are never averaged: the ratio would mean two things at once.
CLASS = ("machine", "device", "dtype", "autocast", "mode", "scope", "clock", "cache")
CONVOLUTIONS = ("conv2d", "conv2d-3x3")
ATTENTION = ("local-attention", "san-pairwise", "san-patchwise", "axial-attention", "local-relation")


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
    points = [Point(rows, _axes(results, rows, names)) for rows in results.points()]
    return _told_apart_by_node(_with_the_clock_of_others(points))


def _with_the_clock_of_others(points: list[Point]) -> list[Point]:
    """A point that was not timed anywhere belongs to those that were, where these share a clock and a cache."""
    for name in ("clock", "cache"):
        known = {point.axes[name] for point in points} - {None}
        if len(known) == 1:
            (value,) = known
            points = [p if p.axes[name] else replace(p, axes={**p.axes, name: value}) for p in points]
    return points


def _told_apart_by_node(points: list[Point]) -> list[Point]:
    """The node is an axis only of points that nothing else tells apart: otherwise it says nothing of what was asked."""
    counts = Counter(tuple(point.axes.values()) for point in points)
    return [
        replace(p, axes={**p.axes, "node": p.rows[0].node}) if counts[tuple(p.axes.values())] > 1 else p for p in points
    ]


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
    # A row that names no machine of the document is of none that is known.
    models |= {key: key or "unknown machine" for key in results.by_machine() if key not in models}
    names: dict[str, str] = {}
    for key, model in models.items():
        alike = [other for other in models if models[other] == model]
        names[key] = f"{model}{_what_differs(key, alike, results.machines)}" if len(alike) > 1 else model
    return names


def _what_differs(key: str, alike: Sequence[str], machines: Mapping[str, Mapping[str, Any]]) -> str:
    """What tells a machine from others with its name: that of which each has another, or else its number."""
    for part, name, words in (
        ("cpu", "model", "in {}"),
        ("cpu", "usable", "{} cores"),
        ("gpu", "power_limit_w", "{} W"),
    ):
        values = [(machines[other].get(part) or {}).get(name) for other in alike]
        if None not in values and len(set(values)) == len(values):
            return f", {words.format(values[alike.index(key)])}"
    return f" #{alike.index(key) + 1}"


def varying(points: Sequence[Point]) -> tuple[str, ...]:
    """The axes along which points differ; unknown is no value. W is left out where every image is square, and so are
    device and threads where the machine tells them."""
    found = []
    for name in AXES:
        values = {point.axes[name] for point in points} - {None}
        if len(values) > 1:
            found.append(name)
    if "H" in found and "W" in found and square(points):
        found.remove("W")
    if "machine" in found:
        found = [name for name in found if name not in ("device", "threads") or not _decides(points, "machine", name)]
    return tuple(found)


def _decides(points: Iterable[Point], axis: str, other: str) -> bool:
    """Whether points with the same value of one axis have the same of the other."""
    pairs = {(point.axes[axis], point.axes[other]) for point in points}
    return len(pairs) == len({a for a, _ in pairs})


def square(points: Iterable[Point]) -> bool:
    """Whether every image is as wide as high."""
    return all(point.axes["H"] == point.axes["W"] for point in points)


def values_of(points: Iterable[Point], axis: str) -> list[Value]:
    """The values that an axis takes, in order; unknown ones last."""
    return sorted({point.axes[axis] for point in points}, key=order)


def order(value: Value) -> tuple[bool, bool, int | str]:
    """What values are sorted by."""
    return value is None, isinstance(value, str), value or 0


def classes(points: Iterable[Point]) -> dict[tuple[Value, ...], list[Point]]:
    """The points that may be averaged with one another."""
    found: dict[tuple[Value, ...], list[Point]] = {}
    for point in points:
        found.setdefault(point.kind, []).append(point)
    return found


def class_names(apart: Mapping[tuple[Value, ...], Sequence[Point]]) -> list[str]:
    """Which of ``CLASS`` tell classes of points apart; the device only where the machine does not tell it."""
    named = [name for index, name in enumerate(CLASS) if len({kind[index] for kind in apart}) > 1]
    points = [point for own in apart.values() for point in own]
    by_machine = "machine" in named and _decides(points, "machine", "device")
    return [name for name in named if name != "device" or not by_machine]


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

    Only axes along which points may be averaged. Explained is the variance of the mean log ratio by the axis' value,
    on each class of machine for itself.
    """
    machines: dict[Value, list[tuple[Point, float]]] = {}
    for point in points:
        if (ratio := point.ratio(subject)) and ratio.median > 0:
            machines.setdefault(point.axes["machine"], []).append((point, math.log(ratio.median)))

    def explained(axis: str) -> float:
        return sum(_explained(logs, axis) for logs in machines.values())

    axes = [axis for axis in varying(points) if axis not in (*CLASS, "run", "node", "baseline")]
    return sorted(axes, key=explained, reverse=True)


def _explained(logs: Sequence[tuple[Point, float]], axis: str) -> float:
    by_value: dict[Value, list[float]] = {}
    for point, value in logs:
        by_value.setdefault(point.axes[axis], []).append(value)
    overall = statistics.fmean(value for _, value in logs)
    return sum(len(values) * (statistics.fmean(values) - overall) ** 2 for values in by_value.values())


def follows(points: Iterable[Point], axis: str, other: str) -> bool:
    """Whether one of two axes decides the other, as G = C // 16 does: together they would make a diagonal, no map."""
    pairs = {(point.axes[axis], point.axes[other]) for point in points}
    return len(pairs) == max(len({a for a, _ in pairs}), len({b for _, b in pairs}))
