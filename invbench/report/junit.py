"""JUnit XML, which every CI shows: a suite for each document or check, a test case for each row or finding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from invbench.report.columns import axis_text
from invbench.report.gate.answer import counts_as
from invbench.report.gate.details import reason_of
from invbench.report.gate.grids import place_of
from invbench.report.gate.told import Told, groups_of
from invbench.report.headline import title_of
from invbench.report.text import printable
from invbench.results import Result, ResultSet, Status
from invbench.results.check import LATENCY, Check, Finding, Verdict
from invbench.verdict.points import points_of, varying

FAILURE, ERROR, SKIPPED = "failure", "error", "skipped"
STATUSES = {Status.UNAVAILABLE: SKIPPED, Status.MISMATCH: FAILURE}  # any other that is not ok is an error
VERDICTS = {
    Verdict.FAIL: FAILURE, Verdict.MISSING: FAILURE, Verdict.ERROR: ERROR, Verdict.INCONCLUSIVE: SKIPPED,
    Verdict.NOT_COMPARABLE: SKIPPED, Verdict.NEW: SKIPPED,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _TestCase:
    """One test case. outcome: of those above, None for one that passed; kind: the word for it here."""

    classname: str
    name: str
    seconds: float | None = None
    outcome: str | None = None
    kind: str = ""
    message: str = ""


def render_junit(results: ResultSet) -> str:
    """The document as JUnit XML; a row's time is its latency, in seconds per call."""
    root = ElementTree.Element("testsuites", name="invbench")
    if results.results:
        _add(root, results.command, results.created, _rows(results))
    for group in groups_of(results):
        for part in group.parts:
            _add(root, f"invbench check: {part.heading}", results.created, _findings(part))
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}'


def _add(root: ElementTree.Element, name: str, created: str, cases: Iterable[_TestCase]) -> None:
    """One suite. XML forbids most control characters even where they are escaped: ``printable`` leaves none."""
    found = list(cases)
    counts = {
        "tests": len(found), "failures": sum(case.outcome == FAILURE for case in found),
        "errors": sum(case.outcome == ERROR for case in found),
        "skipped": sum(case.outcome == SKIPPED for case in found),
    }  # fmt: skip
    suite = _child(root, "testsuite", name=name, timestamp=created, **{key: str(n) for key, n in counts.items()})
    for case in found:
        time = {} if case.seconds is None else {"time": f"{case.seconds:.9f}"}
        element = _child(suite, "testcase", classname=case.classname, name=case.name, **time)
        if case.outcome:
            kind = {"type": case.kind} if case.outcome != SKIPPED else {}
            outcome = _child(element, case.outcome, message=case.message, **kind)
            outcome.text = printable(case.message)  # what some show instead


def _child(parent: ElementTree.Element, tag: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, tag, {name: printable(value) for name, value in attributes.items()})


# --- Rows ---


def _rows(results: ResultSet) -> Iterator[_TestCase]:
    points = points_of(results)
    apart = [axis for axis in ("machine", "run", "node") if axis in varying(points)]
    for point in points:
        where = ", ".join([title_of([point]), *(f"{axis} {axis_text(point.axes[axis])}" for axis in apart)])
        for row in point.rows:
            yield _row(row, f"{where}, {row.regime}" if row.regime else where)


def _row(row: Result, name: str) -> _TestCase:
    outcome = None if row.status is Status.OK else STATUSES.get(row.status, ERROR)
    message = f"{row.status}: {row.reason or 'no reason'}" if outcome else ""
    return _TestCase(f"{row.subject}/{row.backend}", name, row.seconds, outcome, str(row.status), message)


# --- Checks ---


def _findings(part: Told) -> Iterator[_TestCase]:
    if not part.check.findings:
        yield _TestCase("check", "findings", None, ERROR, str(Verdict.ERROR), "nothing was judged")
    for finding in part.check.findings:
        yield _finding(part.check, finding)


def _finding(check: Check, finding: Finding) -> _TestCase:
    row, head = finding.row, finding.head
    outcome, message = _outcome(check, finding)
    return _TestCase(
        f"{row.subject}/{row.backend}", f"{title_of([place_of(row)])}: {finding.metric}",
        head if finding.metric == LATENCY and isinstance(head, int | float) else None,
        outcome, str(finding.verdict), message if outcome else "",
    )  # fmt: skip


def _outcome(check: Check, finding: Finding) -> tuple[str | None, str]:
    """What became of it; of code that was slowed down on purpose, FAIL is what has to come."""
    told = "; ".join(filter(None, [f"{finding.verdict}: {reason_of(finding)}", finding.remedy]))
    if check.injected is not None and finding.metric == LATENCY:
        if finding.verdict is Verdict.FAIL:
            return None, ""
        if finding.verdict in (Verdict.PASS, Verdict.IMPROVED):
            return FAILURE, f"{finding.verdict}: the injected slowdown was not found"
    failed = counts_as(check, finding) is Verdict.FAIL
    return FAILURE if failed else VERDICTS.get(finding.verdict), told
