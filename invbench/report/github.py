"""GitHub's workflow commands: a line for each row that a reader of the job must see, shown beside the change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from invbench.report.columns import name_of
from invbench.report.gate.answer import counts_as, summary_sentence
from invbench.report.gate.details import reason_of
from invbench.report.gate.grids import label, places_of
from invbench.report.gate.told import Group, groups_of
from invbench.report.notes import label as label_of
from invbench.report.text import plural, printable
from invbench.results import ResultSet, Status
from invbench.results.check import Check, Finding, Verdict
from invbench.verdict.points import Point, points_of

LEVELS = {
    Verdict.FAIL: "error", Verdict.MISSING: "error", Verdict.ERROR: "error", Verdict.INCONCLUSIVE: "warning",
    Verdict.NOT_COMPARABLE: "warning", Verdict.NEW: "notice", Verdict.IMPROVED: "notice",
}  # fmt: skip
OUTCOMES = {"good": "notice", "doubt": "warning", "bad": "error"}


def render_github(results: ResultSet) -> str:
    """A command for each row that failed, and each finding that is not PASS; one notice where there is neither."""
    lines = [*_rows(results), *(line for group in groups_of(results) for line in _group(group))]
    return "\n".join(lines or [command("notice", "invbench", _nothing(results))])


def command(level: str, title: str, *message: str) -> str:
    """One workflow command, of several lines if need be."""
    told = "%0A".join(_data(line) for line in message)
    return f"::{level} title={_property(title)}::{told}"


def _data(text: str) -> str:
    """Escaped as GitHub's toolkit does; a line break that somebody else's text has would begin a command."""
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return printable(escaped)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _nothing(results: ResultSet) -> str:
    return f"{plural(len(results.results), 'row')}, none of which failed"


def _rows(results: ResultSet) -> Iterator[str]:
    points = points_of(results)
    for point in points:
        for row in point.rows:
            if row.status not in (Status.OK, Status.UNAVAILABLE):
                where = f"{name_of(row)} {label_of(point, points)}".strip()
                yield command("error", f"invbench: {where}: {row.status}", row.reason or "no reason")


def _group(group: Group) -> Iterator[str]:
    if group.is_self_test:  # whose second half is made of failures
        yield command(OUTCOMES[group.mark], "invbench check --self-test", group.answer)
        return
    (part,) = group.parts
    places = places_of(part.check)
    found = [line for finding in part.check.findings for line in _finding(part.check, finding, places)]
    quiet = part.check.findings and not found
    if quiet or not part.check.findings:
        yield command("notice" if quiet else "error", "invbench check", summary_sentence(part.check))
    yield from found


def _finding(check: Check, finding: Finding, places: Sequence[Point]) -> Iterator[str]:
    level = "error" if counts_as(check, finding) is Verdict.FAIL else LEVELS.get(finding.verdict)
    if level:
        where = f"{label(finding.row, places)}, {finding.metric}"
        yield command(level, f"{finding.verdict}: {where}", *filter(None, [reason_of(finding), finding.remedy]))
