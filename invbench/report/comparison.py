"""Two documents side by side, in every format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rich.text import Text

from invbench.report.columns import Cell, Grid, axis_headings, axis_name, axis_text, row_name
from invbench.report.data import csv_of
from invbench.report.headline import machine, title
from invbench.report.markdown import markdown_table
from invbench.report.table import canvas, finished, fits, table_of, terminal_width
from invbench.report.text import (
    MISSING,
    SAME,
    count,
    faster_or_slower,
    plural,
    printable,
    seconds,
    size,
    spoken,
    three_digits,
)
from invbench.report.web.frame import page
from invbench.report.web.tables import esc, filters, items, table
from invbench.results import ResultSet
from invbench.verdict.changes import COUNTS, Change, Comparison, Verdict
from invbench.verdict.points import AXES, Point, geometric_mean, machine_names, varying

METHOD = (
    "A and B were measured one after the other, not in turns: faster and slower are said only where the two 95 % "
    "intervals of the median do not overlap, and whatever differs between the runs is part of the change"
)
ONE_PROCESS = (
    "intervals are of one process each, and processes of identical code differ by more: sweep both with --launches 6, "
    "or use invbench check --base"
)


def render_comparison_table(comparison: Comparison) -> str:
    """For a terminal."""
    text, console = canvas(terminal_width())
    for line in _above(comparison):
        console.print(Text(line))
    for name, part in _by_machine(comparison).items():
        if name:
            console.print(Text(f"\n{name}", style="bold"))
        whole = table_of(comparison_grid(part))
        console.print(whole if fits(whole, console) else table_of(comparison_grid(part, brief=True)))
    for note in _below(comparison):
        console.print(Text(f"* {note}"))
    console.print(Text(verdict_sentence(comparison), style="bold"))
    return finished(text)


def render_comparison_markdown(comparison: Comparison) -> str:
    """For a pull request."""
    lines = [f"**{verdict_sentence(comparison)}**", "", *(f"{line}  " for line in _above(comparison)), ""]
    lines += [*markdown_table(comparison_grid(comparison)), "", *(f"* {note}" for note in _below(comparison))]
    return "\n".join(lines).rstrip()


def render_comparison_csv(comparison: Comparison) -> str:
    """One line a change."""
    return csv_of([change.to_dict() for change in comparison.changes])


def render_comparison_json(comparison: Comparison) -> str:
    """One document: both sides, what differs between them, and every change."""
    sides = {
        name: {"command": side.command, "created": side.created, "version": side.tool_version}
        for name, side in (("a", comparison.a), ("b", comparison.b))
    }
    document = {
        "schema": 1, "kind": "comparison", **sides, "method": METHOD,
        "counts": {str(verdict): number for verdict, number in comparison.counts.items()},
        "differences": {name: {"a": a, "b": b} for name, (a, b) in comparison.differences.items()},
        "changes": [change.to_dict() for change in comparison.changes],
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


def render_comparison_html(comparison: Comparison) -> str:
    """A page of its own with a table to sort and filter."""
    grid, groups = comparison_grid(comparison), _groups(comparison)
    points = _points(comparison)
    axes = varying(points)
    rows = [
        {"point": n, "at": {**{axis: axis_text(point.axes[axis]) for axis in axes}, "subject": changes[0].subject,
         "backend": changes[0].backend, "verdict": _verdict(changes).text}}
        for n, (point, changes) in enumerate(zip(points, groups, strict=True))
    ]  # fmt: skip
    names = [*axes, "subject", "backend", "verdict"]
    choices = {
        name: (axis_name(name, points), list(dict.fromkeys(str(row["at"][name]) for row in rows)))  # type: ignore[index]
        for name in names
    }
    body = [
        "<h1>invbench compare</h1>", f'<p class="answer">{esc(verdict_sentence(comparison))}</p>',
        f'<p class="how">{"<br>".join(esc(line) for line in _above(comparison))}</p>',
        filters(choices), table(grid, "row", range(len(groups))), items(_below(comparison)),
    ]  # fmt: skip
    return page("\n".join(body), {"rows": rows, "axes": []})


COMPARISON_FORMATS: dict[str, Callable[[Comparison], str]] = {
    "table": render_comparison_table,
    "json": render_comparison_json,
    "csv": render_comparison_csv,
    "markdown": render_comparison_markdown,
    "html": render_comparison_html,
}


def verdict_sentence(comparison: Comparison) -> str:
    """How many rows became faster or slower, and by how much on the whole where that means something."""
    counts = comparison.counts
    rows = sum(counts.values())
    if not rows:
        return "Neither file has a latency, so there is nothing to compare."
    told = [f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]]
    return f"Of {plural(rows, 'timed row')}, B against A: {', '.join(told)}.{''.join(_means(comparison))}"


def _means(comparison: Comparison) -> Iterator[str]:
    """A geometric mean for each class of points and kind of subject; never over both."""
    found: dict[tuple[str, ...], list[float]] = {}
    for change in comparison.of("latency"):
        if change.ratio and change.ratio.median > 0:
            case = change.case
            kind = "involution" if change.subject == "involution" else "other"
            key = (kind, str(change.machine), case.device, case.dtype, str(case.mode), str(case.scope))
            found.setdefault(key, []).append(change.ratio.median)
    names = _machines(comparison)
    for (kind, machine_key, *rest), ratios in found.items():
        apart = [text for n, text in enumerate(rest, 2) if len({key[n] for key in found}) > 1]
        apart += [names.get(machine_key, machine_key)] if len({key[1] for key in found}) > 1 else []
        mean = geometric_mean(ratios)
        words = "as fast as in A" if abs(mean - 1) < SAME else f"{faster_or_slower(mean)} than in A"
        where = f" ({', '.join(apart)})" if apart else ""
        yield f" In B the {kind} rows{where} are {words}, geometric mean of {len(ratios)}."


def _by_machine(comparison: Comparison) -> dict[str, Comparison]:
    """Where a side has several classes of machines the changes on each, by its name; else all of them."""
    if not (comparison.a.machines or comparison.b.machines):
        return {"": comparison}
    found: dict[str | None, list[Change]] = {}
    for change in comparison.changes:
        found.setdefault(change.machine, []).append(change)
    names = _machines(comparison)
    return {
        printable(names.get(machine or "", machine or "")): replace(comparison, changes=tuple(own))
        for machine, own in found.items()
    }


def _machines(comparison: Comparison) -> dict[str, str]:
    return {**machine_names(comparison.b), **machine_names(comparison.a)}


def comparison_grid(comparison: Comparison, brief: bool = False) -> Grid:
    """A line for each row: latencies, B over A, the verdict, and where memory or counts changed, from what to what.

    brief: the ratios without their intervals.
    """
    points = _points(comparison)
    axes = varying(points)
    lines = []
    for point, changes in zip(points, _groups(comparison), strict=True):
        by_metric = {change.metric: change for change in changes}
        latency, name = by_metric.get("latency"), _name(changes[0])
        line = [*(Cell(axis_text(point.axes[axis]), point.axes[axis]) for axis in axes), Cell(name, name)]
        line += [*_sides(latency), _ratio(latency, brief), _verdict(changes)]
        counts = [by_metric[metric] for metric in COUNTS if metric in by_metric]
        line += [_memory(by_metric.get("memory")), _counts(counts)]
        lines.append(line)
    headings = ["latency A", "latency B", "B / A", "verdict", "memory", "counts"]
    grid = Grid([*axis_headings(points), "backend", *headings], len(axes) + 1, lines)
    return _without_same(grid)


def _without_same(grid: Grid) -> Grid:
    """Memory and counts are left out where no row has a change of them."""
    kept = [
        n for n, heading in enumerate(grid.headings)
        if heading not in ("memory", "counts") or any(row[n] not in ("same", MISSING) for row in grid.rows)
    ]  # fmt: skip
    return Grid([grid.headings[n] for n in kept], grid.leading, [[line[n] for n in kept] for line in grid.lines])


def _name(change: Change) -> str:
    return row_name(change.subject, change.backend, change.case, change.regime)


def _groups(comparison: Comparison) -> list[list[Change]]:
    """The changes of each row together: a latency, or the first metric where there is none, begins the next row."""
    groups: list[list[Change]] = []
    for change in comparison.changes:
        last = groups[-1] if groups else []
        if last and _row(last[0]) == _row(change) and change.metric not in {other.metric for other in last}:
            last.append(change)
        else:
            groups.append([change])
    return groups


def _row(change: Change) -> tuple[object, ...]:
    return change.case, change.subject, change.backend, change.regime, change.machine


def _points(comparison: Comparison) -> list[Point]:
    """A place on the axes for each row."""
    unknown, names = dict.fromkeys(AXES), _machines(comparison)
    return [
        Point((), {**unknown, **row.case.to_dict(), "machine": names.get(row.machine or "", row.machine)})
        for row, *_ in _groups(comparison)
    ]


def _sides(change: Change | None) -> list[Cell]:
    values = (change.a, change.b) if change else (None, None)
    return [Cell(MISSING) if value is None else Cell(seconds(value), value) for value in values]


def _ratio(change: Change | None, brief: bool) -> Cell:
    if change is None or change.ratio is None:
        return Cell(MISSING)
    ratio = change.ratio
    low, high = three_digits(ratio.low), three_digits(ratio.high)
    text = f"{three_digits(ratio.median)}x{'' if brief else f' [{low}, {high}]'}"
    return Cell(text, ratio.median)


def _verdict(changes: Sequence[Change]) -> Cell:
    latency = next((change for change in changes if change.metric == "latency"), None)
    text = str(latency.verdict) if latency else "not timed"
    return Cell(text, text)


def _memory(change: Change | None) -> Cell:
    if change is None or change.a is None or change.b is None:
        return Cell(MISSING)
    if change.verdict is Verdict.SAME:
        return Cell("same", 1.0)
    ratio = f"{size(change.a)} to {size(change.b)}"
    return Cell(ratio, change.ratio.median if change.ratio else None)


def _counts(changes: Sequence[Change]) -> Cell:
    changed = [change for change in changes if change.verdict is not Verdict.SAME]
    told = [
        f"{change.metric} {' to '.join(MISSING if value is None else count(value) for value in (change.a, change.b))}"
        for change in changed
    ]
    return Cell(("; ".join(told) or "same") if changes else MISSING)


def _above(comparison: Comparison) -> list[str]:
    lines = [_described(name, side) for name, side in (("A", comparison.a), ("B", comparison.b))]
    return [*lines, METHOD]


def _described(name: str, side: ResultSet) -> str:
    return printable(f"{name}: {title(side)}; {machine(side)}; {side.created}; {side.command}")


def _below(comparison: Comparison) -> list[str]:
    """Why rows could not be judged, once each, and what differs between the runs."""
    reasons: dict[str, list[str]] = {}
    for change in comparison.changes:
        if change.reason:
            text = f"{change.metric} {change.verdict}: {printable(change.reason)}"
            reasons.setdefault(text, []).append(_name(change))
    compared = {change.metric for change in comparison.changes if change.ratio}
    same = [m for m in ("memory", *COUNTS) if m in compared and {c.verdict for c in comparison.of(m)} == {Verdict.SAME}]
    told = [f"the same in all rows of both: {', '.join(same)}"] if same else []
    told += [
        f"{plural(len(rows), 'row')} ({spoken(list(dict.fromkeys(rows)))}): {text}" for text, rows in reasons.items()
    ]
    undecided = [c.smallest_effect for c in comparison.of("latency") if c.verdict is Verdict.SAME and c.smallest_effect]
    if undecided:
        least, most = (f"{pick(undecided) - 1:.1%}" for pick in (min, max))
        noisiest = "" if least == most else f" (in the noisiest row, below {most})"
        told.append(f"no difference: slowdowns below {least}{noisiest} would not have shown")
    decided = [c for c in comparison.of("latency") if c.verdict in (Verdict.SLOWER, Verdict.FASTER)]
    if decided and comparison.is_of_single_processes:
        told.append(ONE_PROCESS)
    for name, (a, b) in comparison.differences.items():
        told.append(printable(f"differs: {name}: {json.dumps(a)} in A, {json.dumps(b)} in B"))
    return told
