"""Judging whole networks: ratios within a regime, the share of the ceiling, each side in its faster regime. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from invbench.results import Result, ResultSet
from invbench.results.quantities import Interval
from invbench.spec import FREE, Regime
from invbench.verdict import paired_ratio, with_ratio
from invbench.verdict.points import Point, points_of

IMAGENET = "ImageNet"
TOP1 = "top-1"
# The images and K of the stem for which figures on ImageNet are published, where a document does not tell.
IMAGENET_SIZE, IMAGENET_STEM = (224, 224), 7


def with_network_ratios(results: Iterable[Result]) -> tuple[Result, ...]:
    """The rows with their ratios to their baseline in the same regime, and the share of their ceiling."""
    rows = tuple(results)
    return tuple(_judged(row, rows) for row in rows)


def _judged(row: Result, rows: Sequence[Result]) -> Result:
    base = next((r for r in rows if r.subject == row.baseline and r.regime == row.regime and r.backend != FREE), None)
    free = _of(rows, row.subject, FREE, row.regime)
    ceiling = paired_ratio(free, row) if free is not None and free is not row else None
    return replace(with_ratio(row, base) if base else row, ceiling=ceiling)


@dataclass(frozen=True, slots=True)
class Best:
    """A network with involution and its baseline, each in the regime that is faster for it.

    ratio: of the latencies, paired round by round. ceiling: the same for the network with involution free, in the
    regime that is faster for that.
    """

    row: Result
    base: Result
    ratio: Interval
    ceiling: Interval | None


def best_regimes(rows: Sequence[Result]) -> list[Best]:
    """For each network and backend that is no baseline itself, both sides at their best; one point's rows."""
    names = dict.fromkeys((row.subject, row.backend) for row in rows if row.backend != FREE)
    found = []
    for subject, backend in names:
        row = _fastest(rows, subject, backend)
        base = _fastest(rows, row.baseline) if row and row.baseline else None
        between = paired_ratio(row, base) if row and base and row.subject != base.subject else None
        if row and base and between:
            free = _fastest(rows, subject, FREE)
            found.append(Best(row, base, between, paired_ratio(free, base) if free else None))
    return found


def _of(rows: Iterable[Result], subject: str, backend: str, regime: Regime | None) -> Result | None:
    return next((row for row in rows if row.name == (subject, backend, str(regime or ""))), None)


def _fastest(rows: Iterable[Result], subject: str, backend: str | None = None) -> Result | None:
    """The regime with the lowest median; of any backend but the free one unless one is named."""
    here = (r for r in rows if r.subject == subject and (r.backend == backend if backend else r.backend != FREE))
    return min((r for r in here if r.seconds is not None), key=lambda r: r.seconds or 0.0, default=None)


def whole_points(results: ResultSet) -> list[Point]:
    """The points of networks: those that differ in nothing but what their networks are compared with are one."""
    found: list[Point] = []
    for point in points_of(results):
        axes = {**point.axes, "baseline": None}
        names = {row.name for row in point.rows}
        for index, other in enumerate(found):
            if other.axes == axes and names.isdisjoint(row.name for row in other.rows):
                found[index] = Point((*other.rows, *point.rows), axes)
                break
        else:
            found.append(Point(point.rows, axes))
    return found


def scores_of(row: Result) -> dict[str, float]:
    """The published accuracies in percent, by name."""
    said = row.published or {}
    top1 = {} if said.get("top1") is None else {TOP1: float(said["top1"])}
    return top1 | dict(said.get("scores") or {})


def data_set_of(row: Result) -> str | None:
    """What the published accuracy is on; None where there is none."""
    if not row.published or not scores_of(row):
        return None
    return str(row.published.get("data_set") or IMAGENET)  # documents before it was told were of ImageNet only


def published_size(row: Result) -> tuple[int, int] | None:
    """Height and width of the images that the published multiply-adds are of; None where nobody tells."""
    said = row.published
    if not said:
        return None
    if said.get("size"):
        return said["size"][0], said["size"][1]
    return IMAGENET_SIZE if (said.get("data_set") or IMAGENET) == IMAGENET else None


def published_stem(row: Result) -> int | None:
    """K of the involution in the stem that they are of; None where the network has none."""
    return None if row.backend == "torch" else int((row.published or {}).get("stem") or IMAGENET_STEM)


def counts_as_published(row: Result) -> bool:
    """Whether the row's multiply-adds are those of images as large as the published ones."""
    return published_size(row) in (None, (row.case.H, row.case.W))


def with_accuracy(rows: Iterable[Result]) -> dict[str, list[Result]]:
    """By data set one row for each network with a published accuracy, its counts at the published size if there are."""
    found: dict[str, dict[str, Result]] = {}
    for row in rows:
        data_set = data_set_of(row)
        if data_set is not None and row.backend != FREE:
            own = found.setdefault(data_set, {})
            if row.subject not in own or (counts_as_published(row) and not counts_as_published(own[row.subject])):
                own[row.subject] = row
    return {data_set: list(own.values()) for data_set, own in found.items()}


def family_of(subject: str) -> str:
    """What networks of several sizes have in common: ``rednet`` of ``rednet50``, ``axial`` of ``axial50s``; of
    detectors and segmenters what they are without their backbone."""
    whole = re.split(r"_re[sd]net\d", subject)[0]
    return re.sub(r"(?<=[a-z])\d+[sml]?(?=_|$)", "", whole)
