"""Everything that is told of the checks of a document, for every format to lay out as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from invbench.report.columns import Grid
from invbench.report.gate.answer import MARKS, overall, summary_sentence
from invbench.report.gate.details import above, notes
from invbench.report.gate.grids import changes, changes_grid, latency_grid
from invbench.report.gate.proof import OUTCOME_MARKS, self_test_sentence
from invbench.report.text import percent, printable
from invbench.results import ResultSet
from invbench.results.check import Check
from invbench.verdict.self_test import groups, is_self_test, self_test

INTERRUPTED = "warning: interrupted: the rows hold what was measured until then"


@dataclass(frozen=True)
class Told:
    """One check. heading: where a document has several. sentence: its verdict, which a mark colours."""

    check: Check
    heading: str
    above: Sequence[str]
    grid: Grid
    brief: Grid
    changes: Grid | None
    notes: Sequence[str]
    sentence: str


@dataclass(frozen=True)
class Group:
    """One check, or the two halves of a self-test. answer: what they come to; mark: what colours it."""

    parts: Sequence[Told]
    answer: str
    mark: str
    is_self_test: bool


def groups_of(results: ResultSet) -> list[Group]:
    """What there is of checks."""
    return [_group(results, group) for group in groups(results.checks)]


def _group(results: ResultSet, group: Sequence[Check]) -> Group:
    parts = [_told(results, check) for check in group]
    if is_self_test(group):
        first, *rest = parts
        parts = [first, *(replace(part, above=_without(part.above, first.above)) for part in rest)]
        return Group(parts, printable(self_test_sentence(group)), OUTCOME_MARKS[self_test(group).outcome], True)
    return Group(parts, parts[0].sentence, MARKS[overall(group[0])], False)


def _without(lines: Sequence[str], told: Sequence[str]) -> list[str]:
    return [line for line in lines if line not in told]


def _told(results: ResultSet, check: Check) -> Told:
    return Told(
        check=check, heading=_heading(check), above=above(check, results), grid=latency_grid(check),
        brief=latency_grid(check, brief=True), changes=changes_grid(check) if changes(check) else None,
        notes=[*notes(check), *[INTERRUPTED] * results.interrupted], sentence=summary_sentence(check),
    )  # fmt: skip


def _heading(check: Check) -> str:
    if check.injected is not None:
        return f"Self-test: head slowed down by {percent(check.injected)} on purpose, so that FAIL is right"
    if check.kind == "same":
        return "Self-test: identical code, so that PASS is right"
    return printable(f"{check.head.name} against {check.base.name}")
