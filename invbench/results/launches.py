"""A point that several processes measured, one after the other: their rows as one.

Processes of the same code differ (where their memory and their threads lie), and so do minutes of the same machine: the
interval of a row is then over the processes (Kalibera and Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from invbench.results.quantities import CONFIDENCE, FEWEST, NOISY, Ratio, Samples
from invbench.results.row import Result, Status


def together(launches: Sequence[Sequence[Result]], asked_for: int) -> tuple[Result, ...]:
    """The rows of a point from the rows of its launches, in their order.

    A row that is not ok in one launch is not ok: whoever differs from the reference once, or crashes once, has no
    latency. Peak memory and the first call's time are of the first launch that has them. asked_for: how many launches
    there were to be.
    """
    of: dict[tuple[str, ...], list[tuple[int, Result]]] = {}
    for number, own in enumerate(launches, 1):
        for row in own:
            of.setdefault(row.name, []).append((number, row))
    merged = {name: _one(own, len(launches), asked_for) for name, own in of.items()}
    base = next((row for row in merged.values() if row.subject == row.baseline), None)
    everyone = [row for own in launches for row in own]
    # Launches may have been measured in several places; all rows of a point have the same.
    node, device = _joined(row.node for row in everyone), _joined(row.device for row in everyone)
    return tuple(
        replace(row, ratio=_ratio(row, base, [each for _, each in of[name]]), node=node, device=device)
        for name, row in merged.items()
    )


def _joined(names: Iterable[str | None]) -> str | None:
    return ", ".join(dict.fromkeys(name for name in names if name)) or None


def _one(launches: Sequence[tuple[int, Result]], measured: int, asked_for: int) -> Result:
    rows = [row for _, row in launches]
    bad = next(((n, row) for n, row in launches if row.status is not Status.OK), None)
    if bad:
        number, row = bad
        is_everywhere = all((each.status, each.reason) == (row.status, row.reason) for each in rows)
        return row if is_everywhere else replace(row, reason=f"in launch {number} of {asked_for}: {row.reason}")
    first = rows[0]
    latencies = [row.latency for row in rows if row.latency]
    errors = [row.error for row in rows if row.error]
    peaks = [row.peaks for row in rows if row.peaks]
    merged = replace(
        first,
        latency=Samples.together(latencies) if latencies else None,
        memory=next((row.memory for row in rows if row.memory and row.memory.peak is not None), first.memory),
        error=max(errors, key=lambda error: (error["relative"] or 0.0) / (error["tolerance"] or 1.0), default=None),
        peaks={name: max(own[name] for own in peaks) for name in peaks[0]} if peaks else None,
        chosen_layout=Counter(row.chosen_layout for row in rows).most_common(1)[0][0],
    )
    warnings = (*_without_repeats(rows), *_doubts(merged, measured, asked_for))
    share = merged.share_of_roofline(merged.peaks) if merged.peaks else first.roofline_fraction
    return replace(merged, roofline_fraction=share, warnings=warnings)


def _ratio(row: Result, base: Result | None, launches: Sequence[Result]) -> Ratio | None:
    """Its latency over the baseline's, launch by launch; the rest does not depend on the launch."""
    known = [each.ratio for each in launches if each.ratio]
    if not known:
        return None
    memory = next((each.memory for each in known if each.memory is not None), None)
    latency = row.latency.over(base.latency) if row.latency and base and base.latency else None
    return replace(known[0], latency=latency, memory=memory)


def _without_repeats(rows: Sequence[Result]) -> Iterator[str]:
    """The warnings of all launches, each once, whatever its numbers."""
    seen = set()
    for warning in (warning for row in rows for warning in row.warnings):
        words = re.sub(r"[\d.]+", "#", warning)
        if words not in seen:
            seen.add(words)
            yield warning


def _doubts(row: Result, measured: int, asked_for: int) -> Iterator[str]:
    if row.latency is None:
        return
    if measured < asked_for:
        yield f"only {measured} of {asked_for} launches are measured: --resume measures the others"
    if measured < FEWEST:
        share = f"{FEWEST} make one of {CONFIDENCE:.0%}"
        yield f"only {measured} launch(es): the interval is their range; {share}: --launches {FEWEST}"
    elif row.latency.interval.half_width > NOISY:
        limit = f"the interval over launches is wider than +-{NOISY:.0%} of the median"
        yield f"noisy: {limit}; stop other programs, or raise --launches"
