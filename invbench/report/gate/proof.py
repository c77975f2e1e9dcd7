"""What a self-test comes to: whether the gate works on this machine, and how small a slowdown it can see."""

from __future__ import annotations

from collections.abc import Sequence

from invbench.report.gate.details import who
from invbench.report.gate.grids import places_of
from invbench.report.text import percent
from invbench.results.check import LATENCY, Check, Finding
from invbench.verdict.self_test import Outcome, SelfTest, self_test

OUTCOME_MARKS = {Outcome.WORKS: "good", Outcome.NOISY: "doubt", Outcome.MISBEHAVED: "bad"}
QUIET = "stop other programs, raise --budget, or take a machine of your own (invbench doctor)"


def self_test_sentence(group: Sequence[Check]) -> str:
    """The outcome, why it is no better, and the smallest slowdown that was visible."""
    found = self_test(group)
    slowdown = "the injected slowdown" if found.slowdown is None else f"+{percent(found.slowdown)}"
    effect = found.smallest_effect
    least = [f"the smallest slowdown that this machine can see is {percent(effect)} (the worst row)"] if effect else []
    if found.outcome is Outcome.WORKS:
        return "; ".join([f"The gate works here: identical code passed, {slowdown} was found", *least])
    told = _told(group, found, slowdown)
    if found.outcome is Outcome.NOISY:
        return "; ".join([f"Too noisy: {', '.join(told)}", *least, QUIET])
    unfinished = ["the self-test is unfinished"] if found.unfinished else []
    return f"The gate misbehaved: {', '.join([*told, *unfinished])}; do not trust its verdicts here"


def _told(group: Sequence[Check], found: SelfTest, slowdown: str) -> list[str]:
    halves = ((found.same, "identical code"), (found.injected, slowdown))
    return [text for findings, what in halves for text in _verdicts(group, findings, what)]


def _verdicts(group: Sequence[Check], findings: Sequence[Finding], what: str) -> list[str]:
    """``identical code was FAIL in numba at K=3``."""
    places = [place for check in group for place in places_of(check)]
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        metric = "" if finding.metric == LATENCY else f" ({finding.metric})"
        found.setdefault(f"{finding.verdict}{metric}", []).append(finding)
    return [f"{what} was {verdict} in {who([f.row for f in rows], None, places)}" for verdict, rows in found.items()]
