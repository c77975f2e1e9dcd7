"""A point that several processes measured, one after the other: their rows as one.

Processes of the same code differ (where their memory and their threads lie), and so do minutes of the same machine: the
interval of a row is then over the processes (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from invbench.results.quantities import CONFIDENCE, FEWEST, NOISY, Memory, Samples
from invbench.results.row import Result, Status

SEPARATOR = ", "  # of nodes and devices, where a point was measured on several
NO_MEMORY = "peak memory is not known: the launch that measures it came to nothing"


def together(launches: Mapping[int, Sequence[Result]], asked_for: int) -> tuple[Result, ...]:
    """The rows of a point from those of its launches, by their numbers, which count from 0.

    A row that is not ok in one launch is not ok: what differs from the reference once, or crashes once, has no latency.
    A launch of which nothing came, such as one whose node died twice, costs no more than itself. Peak memory is that of
    the first launch that tells it. asked_for: how many launches there were to be.
    """
    launches = dict(sorted(launches.items()))
    whole = {n: rows for n, rows in launches.items() if not _is_lost(rows)} or launches
    lost = {n: _lost(n, rows, asked_for) for n, rows in launches.items() if n not in whole}
    of: dict[tuple[str, ...], dict[int, Result]] = {}
    for number, own in whole.items():
        for row in own:
            of.setdefault(row.name, {})[number] = row
    merged = [_one(own, len(launches), asked_for, lost) for own in of.values()]
    base = next((row for row in merged if row.subject == row.baseline), None)
    # All rows of a point have the same place; a node and its device stand in the same order.
    places = sorted({(row.node or "", row.device or "") for own in whole.values() for row in own})
    node, device = (_joined([place[part] for place in places]) for part in (0, 1))
    return tuple(replace(row, ratio=row.over(base) if base else None, node=node, device=device) for row in merged)


def _is_lost(rows: Sequence[Result]) -> bool:
    return not any(row.status in (Status.OK, Status.MISMATCH) for row in rows)


def _lost(number: int, rows: Sequence[Result], asked_for: int) -> str:
    reason = next((row.reason for row in rows if row.status is not Status.UNAVAILABLE), None)
    return f"launch {number + 1} of {asked_for} came to nothing: {reason or 'nobody says why'}"


def _joined(names: Sequence[str]) -> str | None:
    return SEPARATOR.join(names if len(set(names)) > 1 else names[:1]) or None


def _one(launches: Mapping[int, Result], measured: int, asked_for: int, lost: Mapping[int, str]) -> Result:
    rows = list(launches.values())
    bad = next(((n, row) for n, row in launches.items() if row.status is not Status.OK), None)
    if bad:
        number, row = bad
        alike = {(each.status, _words(each.reason or "")) for each in rows}
        return row if len(alike) == 1 else replace(row, reason=f"in launch {number + 1} of {asked_for}: {row.reason}")
    first = rows[0]
    latencies = [row.latency for row in rows if row.latency]
    errors = [row.error for row in rows if row.error]
    peaks = [row.peaks for row in rows if row.peaks]
    merged = replace(
        first,
        latency=Samples.together(latencies) if latencies else None,
        memory=next((row.memory for row in rows if row.memory), Memory(None, None) if 0 in lost else None),
        error=max(errors, key=lambda error: (error["relative"] or 0.0) / (error["tolerance"] or 1.0), default=None),
        peaks={name: max(own[name] for own in peaks) for name in peaks[0]} if peaks else None,
        chosen_layout=Counter(row.chosen_layout for row in rows).most_common(1)[0][0],
    )
    unknown = [NO_MEMORY] if 0 in lost else []
    warnings = (*_without_repeats(rows), *_doubts(merged, rows, measured, asked_for), *lost.values(), *unknown)
    share = merged.share_of_roofline(merged.peaks) if merged.peaks else first.roofline_fraction
    return replace(merged, roofline_fraction=share, warnings=warnings)


def _words(text: str) -> str:
    return re.sub(r"[\d.]+", "#", text)


def _without_repeats(rows: Sequence[Result]) -> Iterator[str]:
    """The warnings of all launches, each once, whatever its numbers."""
    warnings: dict[str, str] = {}
    for warning in (warning for row in rows for warning in row.warnings):
        warnings.setdefault(_words(warning), warning)
    yield from warnings.values()


def _doubts(row: Result, rows: Sequence[Result], measured: int, asked_for: int) -> Iterator[str]:
    layouts = Counter(each.chosen_layout for each in rows if each.chosen_layout)
    if len(layouts) > 1:
        told = SEPARATOR.join(f"{name} in {count}" for name, count in layouts.most_common())
        yield f"the faster layout was {told} of {len(rows)} launches, all in this row; peak memory is of the first one"
    if row.latency is None:
        return
    if measured < asked_for:
        yield f"only {measured} of {asked_for} launches are measured: --resume measures the others"
    elif row.latency.is_of_one_process:
        few = f" of {row.latency.interval.count} round(s), of which it is the range" * (
            row.latency.interval.count < FEWEST
        )
        yield f"only 1 launch: the interval is that of its rounds{few}"
    elif len(rows) < FEWEST:
        usual = f"from {FEWEST} on (--launches) it is one of {CONFIDENCE:.0%}"
        yield f"only {len(rows)} launches: the interval is their range; {usual}"
    elif row.latency.interval.half_width > NOISY:
        limit = f"the interval over launches is wider than +-{NOISY:.0%} of the median"
        yield f"noisy: {limit}; stop other programs, or raise --launches"
