"""Classes of machines side by side: what each of them made of the same points. Pure.

Nothing here is of two machines: a ratio is that of the fastest involution to the baseline that the same machine timed
in the same rounds, and a mean is of such ratios of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from invbench.results import ResultSet
from invbench.results.quantities import Interval
from invbench.verdict.points import CLASS, Point, Value, geometric_mean, order, points_of, varying

# What differs from machine to machine although the same is measured.
OF_THE_MACHINE = ("machine", "device", "run", "node")


@dataclass(frozen=True)
class Place:
    """Where points of several machines lie: what they share on ``AXES``, and the point of each machine by its key."""

    axes: Mapping[str, Value]
    points: Mapping[str, Point]

    @property
    def kind(self) -> tuple[Value, ...]:
        """Places may be averaged where this is equal."""
        return (*(self.axes[name] for name in CLASS), self.axes["baseline"])

    def ratio(self, machine: str) -> Interval | None:
        """The latency of a machine's fastest involution over its baseline's; None where it has not timed both."""
        point, baseline = self.points.get(machine), self.axes["baseline"]
        found = point.ratio(str(baseline)) if point and baseline else None
        return found if found and found.median > 0 else None


@dataclass(frozen=True)
class Means:
    """Geometric means of one kind of places, those at which every machine of ``means`` has a ratio.

    means: by the machine's key; machines without any ratio of this kind are left out. places: how many the means are
    over. whole: how many places there are of this kind.
    """

    axes: Mapping[str, Value]
    places: int
    whole: int
    means: Mapping[str, float]


@dataclass(frozen=True)
class SideBySide:
    """All machines of a document, by their keys, and what they measured. repeated: at how many places a machine has
    several points, of which the last one counts."""

    machines: tuple[str, ...]
    places: tuple[Place, ...]
    repeated: int

    @property
    def means(self) -> list[Means]:
        """Those of each kind of places that several machines timed."""
        kinds: dict[tuple[Value, ...], list[Place]] = {}
        for place in self.places:
            kinds.setdefault(place.kind, []).append(place)
        return [found for places in kinds.values() if (found := _means(places, self.machines))]


def side_by_side(results: ResultSet) -> SideBySide | None:
    """The machines of a document side by side; None where there is one only."""
    apart = {machine: points_of(own) for machine, own in results.by_machine().items()}
    if not apart:
        return None
    names = (*OF_THE_MACHINE, *_of_one_value(apart))
    found: dict[tuple[Value, ...], dict[str, list[Point]]] = {}
    for machine, points in apart.items():
        for point in points:
            key = tuple(value for name, value in point.axes.items() if name not in names)
            found.setdefault(key, {}).setdefault(machine, []).append(point)
    places = [Place(_axes(own, names), {name: points[-1] for name, points in own.items()}) for own in found.values()]
    # A journal has them as they were done, one machine before another.
    axes = varying([Point((), place.axes) for place in places])
    places.sort(key=lambda place: [order(place.axes[axis]) for axis in axes])
    repeated = sum(any(len(points) > 1 for points in own.values()) for own in found.values())
    return SideBySide(tuple(apart), tuple(places), repeated)


def _of_one_value(apart: Mapping[str, Sequence[Point]]) -> list[str]:
    """Threads, where each machine has one number of them: as many as it has cores, as a rule."""
    return ["threads"] * all(len({point.axes["threads"] for point in points}) == 1 for points in apart.values())


def _axes(points: Mapping[str, Sequence[Point]], left_out: Sequence[str]) -> dict[str, Value]:
    first = next(iter(points.values()))[0]
    return {**first.axes, **dict.fromkeys(left_out)}


def _means(places: Sequence[Place], machines: Sequence[str]) -> Means | None:
    able = [machine for machine in machines if any(place.ratio(machine) for place in places)]
    if len(able) < 2 or len(places) < 2:
        return None
    common = [[ratio for machine in able if (ratio := place.ratio(machine))] for place in places]
    whole = [ratios for ratios in common if len(ratios) == len(able)]
    means = {machine: geometric_mean(r[n].median for r in whole) for n, machine in enumerate(able)} if whole else {}
    return Means(places[0].axes, len(whole), len(places), means)
