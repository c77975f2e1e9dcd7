"""What a regression check counts as a change for the worse, and how hard it looks. Pure.

Shares of the base's value: 0.05 for 5 %, as in "5 % slower" or "5 % more memory". People write them as percentages,
since a bare 5 could be either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from invbench.spec import InvbenchError, require_choice
from invbench.study.expression import LONGEST, Expression

METRICS = ("latency", "memory", "kept", "params", "flop")
"""Time of a call, peak bytes, bytes kept for the backward pass, parameters, FLOP."""

FEWEST_LAUNCHES = 3
"""Launches of identical code differ, so that one launch's quads are not independent."""
FEWEST_QUADS = 15
"""In all launches of a stage together."""
MOST_SHARE = 10.0

# Counts do not vary by themselves: any increase counts.
_USUAL = {"latency": 0.05, **dict.fromkeys(METRICS[1:], 0.0)}


@dataclass(frozen=True)
class CaseLimits:
    """Thresholds, by metric, of the cases for which a condition holds. Raises InvbenchError for no condition (C / 16),
    for no threshold and for shares that are none."""

    where: Expression
    thresholds: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.where.is_condition:
            raise InvbenchError(f"it takes a condition: got {self.where.text!r}; try mode = train and C >= 64")
        if not self.thresholds:
            raise InvbenchError(
                f"there is no threshold for {self.where.text!r}: give one of {', '.join(METRICS)}, such as latency"
            )
        _check_thresholds(self.thresholds)


@dataclass(frozen=True)
class Limits:
    """What a check counts as a change for the worse.

    thresholds: by metric, the least share that counts; 5 % for latency and 0 %, any increase, for the others where they
    are left out. visible: a run that could not have seen a slowdown of this share is inconclusive instead of a pass.
    launches: fresh processes a stage. quads: ABBA quads a launch. exceptions: cases with thresholds of their own; the
    last one that holds counts. Raises InvbenchError for shares that are none, for a ``visible`` that a threshold of
    latency reaches, and for too few launches or quads to tell noise from a change.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    visible: float = 0.20
    launches: int = FEWEST_LAUNCHES
    quads: int = 30
    exceptions: tuple[CaseLimits, ...] = ()

    def __post_init__(self) -> None:
        _check_thresholds(self.thresholds)
        object.__setattr__(self, "thresholds", {**_USUAL, **self.thresholds})
        _check_share("visible", self.visible)
        for thresholds in (self.thresholds, *(each.thresholds for each in self.exceptions)):
            self._check_visible(thresholds.get("latency", 0.0))
        if self.launches < FEWEST_LAUNCHES:
            raise InvbenchError(
                f"launches must be at least {FEWEST_LAUNCHES}: got {self.launches}; they differ by chance"
            )
        if self.launches * self.quads < FEWEST_QUADS:
            raise InvbenchError(
                f"launches x quads must be at least {FEWEST_QUADS}: got {self.launches} x {self.quads}; "
                f"try quads = {-(-FEWEST_QUADS // self.launches)}"
            )

    def _check_visible(self, latency: float) -> None:
        # The threshold is the least that any run sees, so none could see what is not above it.
        if self.visible <= latency:
            raise InvbenchError(
                "visible must be above the threshold of latency, or nothing could pass: "
                f"got visible {percent(self.visible)} and latency {percent(latency)}; raise visible, or lower latency"
            )

    def threshold(self, metric: str, fields: Mapping[str, Any]) -> float:
        """The least share by which a metric of a case must grow to count.

        fields: of the case, as ``GridPoint.fields`` has them. Raises InvbenchError where a condition has no value.
        """
        for each in reversed(self.exceptions):
            if metric in each.thresholds and each.where(fields):
                return each.thresholds[metric]
        return self.thresholds[metric]

    def with_latency(self, share: float) -> Limits:
        """The same with one threshold of latency for every case, those with one of their own included.

        ``visible`` grows with it, so that what a run must be able to see stays as far above the threshold.
        """
        others = [
            (each.where, {metric: value for metric, value in each.thresholds.items() if metric != "latency"})
            for each in self.exceptions
        ]
        return replace(
            self, thresholds={**self.thresholds, "latency": share},
            visible=max(self.visible, share + self.visible - self.thresholds["latency"]),
            exceptions=tuple(CaseLimits(where, thresholds) for where, thresholds in others if thresholds),
        )  # fmt: skip


def parse_share(value: Any) -> float:
    """The share that a text such as "5%" or "0.5 %" says; raises InvbenchError for anything else, bare numbers too."""
    found = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*%\s*", value) if isinstance(value, str) else None
    share = float(found[1]) / 100 if found else -1.0
    if not 0 <= share < MOST_SHARE:
        got = repr(value)
        got = got if len(got) <= LONGEST else f"{got[:LONGEST]}..."
        raise InvbenchError(f'it takes a percentage from 0% to below {percent(MOST_SHARE)}: got {got}; write "5%"')
    return share


def percent(share: float) -> str:
    """A share as people write it: 5%."""
    return f"{100 * share:g}%"


def _check_thresholds(thresholds: Mapping[str, float]) -> None:
    for metric, share in thresholds.items():
        require_choice("metric", metric, METRICS)
        _check_share(metric, share)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < MOST_SHARE:
        raise InvbenchError(f"{name} must be a share from 0 to below {MOST_SHARE:g}: got {share!r}; try 0.05 for 5%")
