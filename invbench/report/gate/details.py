"""What the cells of a check's table cannot hold: what was compared, why a row is not PASS, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from invbench.report.gate.answer import counts_as, rows_of, thresholds
from invbench.report.gate.grids import label, name_of, places_of
from invbench.report.headline import machine_of, title_of
from invbench.report.text import plural, printable, spoken
from invbench.results import ResultSet
from invbench.results.check import HEAD, LATENCY, Check, Finding, Row, Side, Verdict
from invbench.verdict.points import Point

# Up to so many rows are named one by one.
NAMED = 3
LEGEND = "floor: how far identical code differed here; visible: the smallest slowdown that would have shown"
KINDS = {
    "python": "in another environment", "wheel": "of a wheel", "file": "of a stored file",
}  # fmt: skip


def above(check: Check, results: ResultSet) -> list[str]:
    """What was compared with what, of what, where, and how."""
    how = KINDS.get(check.kind, "")
    sides = f"head {_side(check.head)} against base {_side(check.base)}{f', {how}' if how else ''}"
    if check.kind == "same":
        sides = f"{_side(check.head)} against itself"
    elif check.kind == "baseline":
        sides = f"{_side(check.head)} alone, to be compared with later"
    places = places_of(check)
    return [
        printable(sides), *([title_of(places)] if places else []),
        *filter(None, [machine_of(check.head.environment or results.environment)]), _method(check, results),
        *[LEGEND] * bool(check.latencies),
    ]  # fmt: skip


def notes(check: Check) -> list[str]:
    """What was seen, what could have been seen, and what to do, for all that is not PASS; and what else differs."""
    return [*_seen(check), *_remedies(check), *_same(check), *_controls(check), *_differences(check)]


def reason_of(finding: Finding) -> str:
    """What was seen, and what could have been seen."""
    parts = [printable(finding.reason)] if finding.reason else []
    effect = finding.smallest_effect
    if effect is not None and f"{effect:.1%}" not in (finding.reason or "") and finding.verdict is not Verdict.PASS:
        parts.append(f"a slowdown of {effect:.1%} would have shown")
    return "; ".join(parts) or "no reason"


def _side(side: Side) -> str:
    commit = (side.commit or "")[:12]
    return f"{side.name} ({commit})" if commit and not side.name.startswith(commit) else side.name


def _method(check: Check, results: ResultSet) -> str:
    found = check.latencies
    rows = plural(len(rows_of(check.findings)), "row")
    launches = _range([len(f.launches) for f in found if f.launches])
    quads = _range([f.quads for f in found if f.quads is not None])
    parts = [rows]
    parts += [f"{launches} launches of fresh processes"] if launches else []
    parts += [f"{quads} quads of blocks in turns"] if quads else []
    parts += [f"{results.settings[name]} {name}" for name in ("clock", "cache") if name in results.settings]
    parts += [f"a change is more than {share} and the floor"] if (share := thresholds(found)) else []
    total = sum(check.seconds.values())
    parts += [f"{total:.0f} s"] if total else []
    return printable(", ".join(parts))


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"


def who(rows: Sequence[Row], everyone: int | None, places: Sequence[Point]) -> str:
    """The rows that share a reason: each by its name and place, or how many of which names."""
    if len(rows) <= NAMED:
        return spoken([label(row, places) for row in rows])
    names = spoken(list(dict.fromkeys(printable(name_of(row)) for row in rows)))
    return f"all {everyone} rows" if len(rows) == everyone else f"{plural(len(rows), 'row')} ({names})"


def _seen(check: Check) -> Iterator[str]:
    places, everyone = places_of(check), len(rows_of(check.findings))
    found: dict[tuple[Verdict, str, str], list[Row]] = {}
    for finding in check.findings:
        if finding.verdict is not Verdict.PASS:
            found.setdefault((finding.verdict, finding.metric, reason_of(finding)), []).append(finding.row)
    for (verdict, metric, reason), rows in found.items():
        what = "" if metric == LATENCY else f", {metric}"
        yield f"{verdict}: {who(rows, everyone, places)}{what}: {reason}"


def _remedies(check: Check) -> Iterator[str]:
    """Each once, with whom it is for where that is not all that there is to do."""
    found: dict[str, list[Finding]] = {}
    for finding in check.findings:
        if finding.remedy and finding.verdict is not Verdict.PASS:
            found.setdefault(printable(finding.remedy), []).append(finding)
    for remedy, findings in found.items():
        what = spoken(list(dict.fromkeys(f"{finding.verdict} ({finding.metric})" for finding in findings)))
        yield f"to do about {what}: {remedy}" if len(found) > 1 else f"to do: {remedy}"
    doubtful = [f for f in check.findings if counts_as(check, f) is Verdict.PASS and f.verdict is not Verdict.PASS]
    if doubtful:
        yield f"{plural(len(rows_of(doubtful)), 'inconclusive row')} counted as a pass (--inconclusive pass)"


def _same(check: Check) -> Iterator[str]:
    metrics = [m for m in dict.fromkeys(f.metric for f in check.findings) if m != LATENCY]
    passed = {m: [f for f in check.findings if f.metric == m] for m in metrics}
    kept = {m: found for m, found in passed.items() if all(f.verdict is Verdict.PASS for f in found)}
    same = [m for m, found in kept.items() if all(f.base == f.head for f in found)]
    near = [m for m in kept if m not in same]
    if same:
        yield f"the same in all rows: {', '.join(same)}"
    if near:
        yield f"no change that can be told in any row: {', '.join(near)}"


def _controls(check: Check) -> Iterator[str]:
    changed = [f.row for f in check.latencies if f.row.is_control and f.verdict not in (Verdict.PASS, Verdict.NEW)]
    if changed:
        names = spoken(list(dict.fromkeys(printable(name_of(row)) for row in changed)))
        yield f"{names}: PyTorch's code alone, so that a change of it is the machine's, or that of what is imported"


def _differences(check: Check) -> Iterator[str]:
    for name, (base, head) in check.differences.items():
        yield printable(f"differs: {name}: {json.dumps(base)} in base, {json.dumps(head)} in {HEAD}")
