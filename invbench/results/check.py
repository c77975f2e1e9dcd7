"""What ``invbench check`` found, as its document keeps it: two sides, raw blocks, and a finding for each metric.

The unit is the *quad*: two blocks of every arm in a mirrored order (base, head, again, again, head, base), so that a
machine that drifts favours nobody. ``again`` is the base once more, in a process of its own: what it differs from the
base by is noise. A *launch* is a set of fresh processes and its quads; two launches of identical code differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from invbench.results.quantities import Interval, interval_from_dict, interval_to_dict
from invbench.spec import Case, InvbenchError

BASE, HEAD, AGAIN = "base", "head", "again"
LATENCY = "latency"


class Verdict(StrEnum):
    """What becomes of one metric of one row (MEASURING.md, rule 21); ERROR where nothing could be judged."""

    PASS = "PASS"  # noqa: S105 -- no password
    IMPROVED = "IMPROVED"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_COMPARABLE = "NOT-COMPARABLE"
    NEW = "NEW"
    MISSING = "MISSING"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Row:
    """What is compared: a subject with its backend at a point.

    is_control: its code is torch's alone, so that a change of it is the machine's, or that of what is imported.
    """

    case: Case
    subject: str
    backend: str
    is_control: bool = False

    @property
    def label(self) -> str:
        """One word for progress and errors, as ``harness.settings.Subject`` has it."""
        return self.backend if self.subject == "involution" else self.subject

    def to_dict(self) -> dict[str, Any]:
        """Part of a finding and of a series."""
        own = {"subject": self.subject, "backend": self.backend, "case": self.case.to_dict()}
        return {**own, **({"is_control": True} if self.is_control else {})}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Row:
        """The inverse of ``to_dict``."""
        case = Case.from_dict(found["case"])
        return cls(case, found["subject"], found["backend"], found.get("is_control", False))


@dataclass(frozen=True, slots=True)
class Quad:
    """Two blocks of every arm. blocks: by arm, in seconds per call, the samples of its first block and its second.

    order: of the first half; the second is its mirror image.
    """

    order: tuple[str, ...]
    blocks: Mapping[str, tuple[tuple[float, ...], ...]]

    def __post_init__(self) -> None:
        values: list[Any] = [value for blocks in self.blocks.values() for block in blocks for value in block or (0,)]
        if not values or not all(isinstance(each, int | float) and 0 < each < math.inf for each in values):
            raise InvbenchError(f"blocks are seconds per call, above 0: got {values[:3]}; measure again")

    def log(self, arm: str) -> float:
        """The logarithm of an arm's seconds per call: the mean of those of its two blocks, each a median."""
        return statistics.fmean(math.log(statistics.median(block)) for block in self.blocks[arm])

    def over(self, arm: str, other: str) -> float:
        """The log ratio of two arms."""
        return self.log(arm) - self.log(other)


@dataclass(frozen=True, slots=True)
class Series:
    """The raw blocks of one row. stages: for each of the one or two, its launches, each of them its quads.

    calls: how many calls a sample averages over.
    """

    row: Row
    calls: int
    stages: tuple[tuple[tuple[Quad, ...], ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """One element of the document's ``series``."""
        stages = [
            [
                [{"order": list(q.order), **{a: list(map(list, b)) for a, b in q.blocks.items()}} for q in launch]
                for launch in stage
            ]
            for stage in self.stages
        ]
        return {**self.row.to_dict(), "unit": "s", "calls": self.calls, "stages": stages}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Series:
        """The inverse of ``to_dict``."""
        stages = tuple(tuple(tuple(map(_quad, launch)) for launch in stage) for stage in found["stages"])
        return cls(Row.from_dict(found), found["calls"], stages)


def _quad_to_dict(quad: Quad) -> dict[str, Any]:
    return {"order": list(quad.order), **{arm: list(map(list, blocks)) for arm, blocks in quad.blocks.items()}}


def _quad(found: Mapping[str, Any]) -> Quad:
    order = tuple(found["order"])
    return Quad(order, {arm: tuple(map(tuple, found[arm])) for arm in order})


@dataclass(frozen=True, slots=True)
class Finding:
    """One metric of one row, judged.

    metric: latency (s), memory and kept (B), params, flop, backend (its name). base, head: its values. ratio: head over
    base; of latencies the median over launches and how far launches were apart. launches: that of each launch. change:
    the share that counts as one. floor: the share by which launches of identical code differed in this run.
    smallest_effect: the least slowdown, as a share, that a run as noisy would find. quads, above: how many there were
    in the first stage, and in how many of them the change exceeded both. reason: what was seen; remedy: what to do.
    """

    row: Row
    metric: str
    verdict: Verdict
    base: float | str | None = None
    head: float | str | None = None
    ratio: Interval | None = None
    launches: tuple[float, ...] = ()
    change: float | None = None
    floor: float | None = None
    smallest_effect: float | None = None
    quads: int | None = None
    above: int | None = None
    reason: str | None = None
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """One element of the document's ``findings``."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        ratio = self.ratio and interval_to_dict(self.ratio)
        return {
            **self.row.to_dict(), "metric": self.metric, "verdict": str(self.verdict), "ratio": ratio,
            "launches": list(self.launches), **plain,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Finding:
        """The inverse of ``to_dict``."""
        ratio = interval_from_dict(found["ratio"]) if found["ratio"] else None
        return cls(
            Row.from_dict(found), found["metric"], Verdict(found["verdict"]), ratio=ratio,
            launches=tuple(found["launches"]), **{name: found[name] for name in _PLAIN},
        )  # fmt: skip


_PLAIN = ("base", "head", "change", "floor", "smallest_effect", "quads", "above", "reason", "remedy")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two things compared. name: what people call it. environment: the fingerprint of its process."""

    name: str
    commit: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check: of what against what, what was found, and the raw blocks that it rests on.

    kind: revision, python, wheel, file, baseline (head alone, to be kept in a file), or same (of ``--self-test``:
    identical code). inconclusive: how those findings count: pass, fail, or None for neither. injected: the share of its
    latency by which head was slowed down on purpose. differences: what else the two sides differ in, by name.
    """

    kind: str
    base: Side
    head: Side
    findings: tuple[Finding, ...] = ()
    series: tuple[Series, ...] = ()
    inconclusive: str | None = None
    injected: float | None = None
    differences: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def of(self, *verdicts: Verdict) -> list[Finding]:
        """The findings with one of these verdicts."""
        return [finding for finding in self.findings if finding.verdict in verdicts]

    @property
    def latencies(self) -> list[Finding]:
        """The findings on latency."""
        return [finding for finding in self.findings if finding.metric == LATENCY]

    def without_series(self) -> Check:
        """The check without its raw blocks, as a history keeps it."""
        return replace(self, series=())

    def to_dict(self) -> dict[str, Any]:
        """One element of the document's ``checks``."""
        return {
            "kind": self.kind, "base": asdict(self.base), "head": asdict(self.head), "inconclusive": self.inconclusive,
            "injected": self.injected, "differences": {name: list(pair) for name, pair in self.differences.items()},
            "seconds": dict(self.seconds), "findings": [finding.to_dict() for finding in self.findings],
            "series": [series.to_dict() for series in self.series],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Check:
        """The inverse of ``to_dict``."""
        return cls(
            found["kind"], Side(**found["base"]), Side(**found["head"]),
            tuple(map(Finding.from_dict, found["findings"])), tuple(map(Series.from_dict, found["series"])),
            found["inconclusive"], found["injected"],
            {name: tuple(pair) for name, pair in found["differences"].items()}, dict(found["seconds"]),
        )  # fmt: skip
