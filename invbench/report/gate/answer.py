"""What a check comes to: one verdict on the whole, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from invbench.report.text import percent, plural
from invbench.results.check import LATENCY, Check, Finding, Row, Verdict

# The worst first, in the order of the exit codes; what is good news, or none, last.
ORDER = (
    Verdict.ERROR, Verdict.FAIL, Verdict.MISSING, Verdict.NOT_COMPARABLE, Verdict.INCONCLUSIVE, Verdict.IMPROVED,
    Verdict.PASS, Verdict.NEW,
)  # fmt: skip
# How a verdict is marked, where there is colour.
MARKS = {
    Verdict.ERROR: "bad", Verdict.FAIL: "bad", Verdict.MISSING: "bad", Verdict.NOT_COMPARABLE: "doubt",
    Verdict.INCONCLUSIVE: "doubt", Verdict.IMPROVED: "good", Verdict.PASS: "good", Verdict.NEW: "doubt",
}  # fmt: skip


def overall(check: Check) -> Verdict:
    """The worst verdict of a check, by what it does to the exit code; ERROR where nothing was judged."""
    counted = (counts_as(check, finding) for finding in check.findings)
    return min(counted, key=ORDER.index, default=Verdict.ERROR)


def counts_as(check: Check, finding: Finding) -> Verdict:
    """What a finding's verdict does to the whole: ``--inconclusive`` makes of that one a pass or a failure."""
    if finding.verdict is not Verdict.INCONCLUSIVE:
        return finding.verdict
    return {"pass": Verdict.PASS, "fail": Verdict.FAIL}.get(check.inconclusive or "", Verdict.INCONCLUSIVE)


def summary_sentence(check: Check) -> str:
    """The overall verdict and how many rows it rests on: ``FAIL: 1 of 8 rows is slower by more than 5 %``."""
    verdict = overall(check)
    if not check.findings:
        return f"{verdict}: nothing was judged"
    rows = plural(len(rows_of(check.findings)), "row")
    if check.kind == "baseline" and verdict is Verdict.NEW:
        return f"{verdict}: {rows} measured alone, to be compared with later"
    order = sorted(ORDER, key=lambda each: each is not verdict)
    told = [part for each in order if each is not Verdict.PASS for part in _counted(check, each)]
    if verdict is Verdict.PASS:
        told[:0] = _passed(check)
    first, *rest = told
    return f"{verdict}: {'; '.join([first.said(f' of {rows}'), *(part.said() for part in rest)])}"


def rows_of(findings: Iterable[Finding]) -> list[Row]:
    """The rows that findings are about, each once."""
    return list(dict.fromkeys(finding.row for finding in findings))


def thresholds(findings: Iterable[Finding]) -> str:
    """The share that counts as a change, or from which to which where rows differ."""
    shares = sorted({f.change for f in findings if f.metric == LATENCY and f.change is not None})
    if not shares:
        return ""
    return percent(shares[0]) if len(shares) == 1 else f"{percent(shares[0])} to {percent(shares[-1])}"


@dataclass(frozen=True, slots=True)
class _Part:
    """A number of rows, and what is said of them: where there is one, and where there are several."""

    number: int
    one: str
    several: str
    more: str = ""

    def said(self, of: str = "") -> str:
        return f"{self.number or 'none'}{of} {self.one if self.number == 1 else self.several}{self.more}"


def _counted(check: Check, verdict: Verdict) -> Iterator[_Part]:
    """How many rows have a verdict; what changed by its metric."""
    found = check.of(verdict)
    if verdict in (Verdict.FAIL, Verdict.IMPROVED):
        for metric in _metrics(found):
            yield _changed(metric, [f for f in found if f.metric == metric], verdict)
    elif found:
        number = len(rows_of(found))
        if verdict is Verdict.INCONCLUSIVE:
            counted = {"pass": ", which counts as a pass", "fail": ", which counts as a failure"}
            yield _Part(number, "is inconclusive", "are inconclusive", counted.get(check.inconclusive or "", ""))
        else:
            words = STATES[verdict]
            yield _Part(number, f"{words[0]} {words[2]}", f"{words[1]} {words[2]}")


STATES = {
    Verdict.ERROR: ("could", "could", "not be measured"), Verdict.MISSING: ("is", "are", "missing in head"),
    Verdict.NOT_COMPARABLE: ("is", "are", "not comparable"), Verdict.NEW: ("is", "are", "new in head"),
}  # fmt: skip


def _metrics(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.metric for finding in findings))


def _changed(metric: str, found: Sequence[Finding], verdict: Verdict) -> _Part:
    worse = verdict is Verdict.FAIL
    if metric == LATENCY:
        share = thresholds(found) if worse else ""
        words = f"{'slower' if worse else 'faster'}{f' by more than {share}' if share else ''}"
        return _Part(len(found), f"is {words}", f"are {words}")
    words = (WORSE if worse else BETTER).get(metric, f"another {metric}")
    return _Part(len(found), f"has {words}", f"have {words}")


WORSE = {
    "memory": "a higher peak of memory", "kept": "more kept for the backward pass", "params": "more parameters",
    "flop": "more FLOP", "backend": "a worse backend", "automatic": "a worse choice of backend='auto'",
}  # fmt: skip
BETTER = {
    "memory": "a lower peak of memory", "kept": "less kept for the backward pass", "params": "fewer parameters",
    "flop": "fewer FLOP", "backend": "a better backend", "automatic": "a better choice of backend='auto'",
}  # fmt: skip


def _passed(check: Check) -> Iterator[_Part]:
    """How many rows are no slower, and how small a slowdown would have shown."""
    rows, passed = rows_of(check.findings), [f for f in check.latencies if f.verdict is Verdict.PASS]
    if not passed:
        if all(f.metric != LATENCY for f in check.findings):
            yield _Part(len(rows), "is unchanged", "are unchanged", "; latency was not judged")
        return
    share = thresholds(passed)
    slower = f"slower{f' by more than {share}' if share else ''}"
    effects = [f.smallest_effect for f in passed if f.smallest_effect is not None]
    where = " in the worst row" if len(passed) > 1 else ""
    shown = f" (a slowdown of {percent(max(effects))} would have shown{where})" if effects else ""
    if len(passed) == len(rows) > 1:
        yield _Part(0, "", f"is {slower}", shown)
    else:
        yield _Part(len(passed), f"is not {slower}", f"are not {slower}", shown)
