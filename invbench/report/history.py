"""What a history of checks tells: the latest reading of each row, where its level changed, and how to find out why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from invbench.report.columns import Cell, Grid, axis_headings, axis_text, row_name
from invbench.report.headline import machine, title_of
from invbench.report.text import MISSING, SAME, faster_or_slower, plural, printable, seconds, spoken, three_digits
from invbench.results import ResultSet, machine_class
from invbench.results.check import Verdict
from invbench.results.history import History, moment
from invbench.verdict.history import FEWEST, ChangePoint, Reading, Track, change_points, levels, tracks
from invbench.verdict.points import AXES, Point, machine_names, varying

METHOD = (
    "A change point is the first run of a new level, which is the median of its runs' latencies, over the "
    "convolution's of the same run where there is one"
)
NO_RUPTURES = "no change points: ruptures is not installed: pip install 'invbench[report]'"
MANY = 5  # changes that are told in words


@dataclass(frozen=True)
class Line:
    """A row and its levels: None where nothing can look for them."""

    track: Track
    levels: Sequence[Sequence[Reading]] | None

    @cached_property
    def changes(self) -> list[ChangePoint]:
        """The oldest first."""
        return change_points(self.track, self.levels or [])

    @property
    def name(self) -> str:
        """As in every table."""
        return printable(row_name(self.track.row.subject, self.track.row.backend, self.track.row.case))


@dataclass(frozen=True)
class Story:
    """A history, judged. lines: the rows of the latest run of each machine. gone: those that only earlier runs have."""

    history: History
    lines: Sequence[Line]
    gone: Sequence[Track]

    @property
    def latest(self) -> ResultSet:
        """The latest run."""
        return self.history.runs[-1]

    @cached_property
    def points(self) -> list[Point]:
        """A place on the axes for each line."""
        names = machine_names(self.machines)
        return [
            Point((), {
                **dict.fromkeys(AXES), **line.track.row.case.to_dict(), "clock": line.track.clock,
                "cache": line.track.cache, "machine": names.get(line.track.machine),
            })
            for line in self.lines
        ]  # fmt: skip

    @cached_property
    def machines(self) -> ResultSet:
        """The latest run, with the latest fingerprint of each machine where there are several."""
        found = {machine_class(run.environment): run.environment for run in self.history.runs}
        return replace(self.latest, checks=(), machines=found if len(found) > 1 else {})

    @property
    def control(self) -> str:
        """What the latencies stand over: its name if it is one for all."""
        names = {printable(line.track.control.subject) for line in self.lines if line.track.control}
        return names.pop() if len(names) == 1 else "control"


def story(history: History) -> Story:
    """What there is to tell; without levels where ruptures is not installed."""
    found = tracks(history)
    lines = []
    for track in found:
        if track.is_current:
            try:
                lines.append(Line(track, levels(track)))
            except ImportError:
                lines.append(Line(track, None))
    return Story(history, lines, [track for track in found if not track.is_current])


# --- Words ---


def date_of(created: str) -> str:
    """The day, in the zone in which it was written."""
    return moment(created).date().isoformat()


def commit_of(reading: Reading) -> str:
    """The commit in short, else what people call what was measured."""
    return printable(reading.commit[:7] if reading.commit else reading.name)


def change_words(change: ChangePoint, brief: bool = False) -> str:
    """``1.12x slower since 2026-11-03 (3f2a9c1)``; brief: without the commit."""
    when = date_of(change.first.created)
    words = faster_or_slower(change.ratio)
    return f"{words}, {when}" if brief else f"{words} since {when} ({commit_of(change.first)})"


def place_of(index: int, told: Story) -> str:
    """A line's name with its place on the axes that vary."""
    axes = varying(told.points)
    point = told.points[index]
    return ", ".join(
        [told.lines[index].name]
        + [f"{h}={axis_text(point.axes[a])}" for h, a in zip(axis_headings(told.points), axes, strict=True)]
    )


def above(told: Story) -> list[str]:
    """What was checked, where, and how changes are found."""
    runs = told.history.runs
    first, last = date_of(runs[0].created), date_of(runs[-1].created)
    when = first if first == last else f"{first} to {last}"
    different = {tuple(point.axes.values()): point for point in told.points}
    return [
        f"{plural(len(runs), 'run')} of invbench check, {when}: {title_of(list(different.values()))}",
        printable(machine(told.machines)), METHOD,
    ]  # fmt: skip


def sentences(told: Story) -> list[str]:
    """The latest run's verdicts, and what changed, the latest first."""
    counts = Counter(line.track.latest.verdict for line in told.lines)
    verdicts = spoken([f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]])
    runs = len(told.history.runs)
    found = [f"Latest run ({date_of(told.latest.created)}): {verdicts or 'no latencies'}."]
    changed = [(line.changes[-1], n) for n, line in enumerate(told.lines) if line.changes]
    if not changed:
        looked = any(line.levels and len(line.track.judged) >= FEWEST for line in told.lines)
        return found + [f"No row changed its level over {plural(runs, 'run')}."] * looked
    changed.sort(key=lambda each: -each[0].first.number)
    words = [f"{place_of(n, told)} {_against(change)}" for change, n in changed[:MANY]]
    more = f"; and {plural(len(changed) - MANY, 'more row')}" if len(changed) > MANY else ""
    of = f"{len(changed)} of {plural(len(told.lines), 'row')} changed over {plural(runs, 'run')}"
    return [*found, f"{of}, last: {'; '.join(words)}{more}."]


def _against(change: ChangePoint) -> str:
    words = change_words(change)
    return words.replace(" since ", f" against {change.against.subject} since ", 1) if change.against else words


def notes(told: Story) -> list[str]:
    """What the table does not tell."""
    return list(_notes(told))


def _notes(told: Story) -> Iterator[str]:
    if any(line.levels is None for line in told.lines):
        yield NO_RUPTURES
    else:
        short = [len(line.track.judged) for line in told.lines if len(line.track.judged) < FEWEST]
        if short:
            have = f"{min(short)} to {max(short)}" if min(short) < max(short) else str(short[0])
            yield f"change points need {FEWEST} runs: {plural(len(short), 'row')} of {len(told.lines)} have {have}"
    yield from _bisections(told)
    for index, line in enumerate(told.lines):
        for change in line.changes[-1:]:
            if change.against and _disagree(change):
                yield (
                    f"{place_of(index, told)}: {_against(change)}, but {faster_or_slower(change.latency)} by itself: "
                    f"what {change.against.subject} takes changed then, or the machine's speed"
                )
    if told.gone:
        yield f"{plural(len(told.gone), 'row')} of earlier runs not in the latest run of its machine: csv and json have"
    names = machine_names(told.machines)
    if names:
        yield f"each class of machine has rows of its own: {printable(spoken(list(names.values())))}"


def _bisections(told: Story) -> Iterator[str]:
    """Between which commits the last change of rows lies, once each."""
    found: dict[tuple[str, str], list[str]] = {}
    for index, line in enumerate(told.lines):
        for change in line.changes[-1:]:
            good, bad = change.last.commit, change.first.commit
            if good and bad and good != bad:
                found.setdefault((printable(bad[:12]), printable(good[:12])), []).append(place_of(index, told))
    for (bad, good), rows in list(found.items())[:MANY]:
        yield f"to find the change of {spoken(rows)}: git bisect start {bad} {good}"


def _disagree(change: ChangePoint) -> bool:
    """Whether the latency itself did not go the same way, by at least half as much."""
    return abs(change.latency - 1) < max(SAME, abs(change.ratio - 1) / 2) or (change.latency > 1) != (change.ratio > 1)


# --- Tables ---


def latest_grid(told: Story, brief: bool = False) -> Grid:
    """A line for each row: its latest latency, against the control, runs, the last change and the last verdict.

    brief: changes without their commits, which the notes have.
    """
    axes = varying(told.points)
    lines = []
    for line, point in zip(told.lines, told.points, strict=True):
        latest = line.track.latest
        relative, change = latest.relative, line.changes[-1] if line.changes else None
        lines.append([
            *(Cell(axis_text(point.axes[axis]), point.axes[axis]) for axis in axes), Cell(line.name, line.name),
            Cell(seconds(latest.head), latest.head) if latest.head else Cell(MISSING),
            Cell(faster_or_slower(relative), relative) if relative else Cell(MISSING),
            Cell(str(len(line.track.timed)), len(line.track.timed)),
            Cell(change_words(change, brief), change.ratio) if change else Cell(MISSING),
            Cell(str(latest.verdict), str(latest.verdict)),
        ])  # fmt: skip
    headings = ["latency", f"vs {told.control}", "runs", "last change", "last verdict"]
    grid = Grid([*axis_headings(told.points), "backend", *headings], len(axes) + 1, lines)
    return grid if any(line.track.control for line in told.lines) else _without(grid, f"vs {told.control}")


def _without(grid: Grid, heading: str) -> Grid:
    kept = [n for n, each in enumerate(grid.headings) if each != heading]
    return Grid([grid.headings[n] for n in kept], grid.leading, [[line[n] for n in kept] for line in grid.lines])


def changes_grid(told: Story) -> tuple[Grid, list[int]]:
    """All change points, the latest first, and which line of the history each is of."""
    found = [(change, n) for n, line in enumerate(told.lines) for change in line.changes]
    found.sort(key=lambda each: -each[0].first.number)
    axes = varying(told.points)
    lines = [
        [
            *(Cell(axis_text(told.points[n].axes[axis]), told.points[n].axes[axis]) for axis in axes),
            Cell(told.lines[n].name, told.lines[n].name),
            Cell(date_of(change.first.created), change.first.number), Cell(commit_of(change.first)),
            Cell(commit_of(change.last)), Cell(faster_or_slower(change.ratio), change.ratio),
            Cell(level_words(change.before, change), change.before),
            Cell(level_words(change.after, change), change.after),
            Cell(faster_or_slower(change.latency), change.latency),
        ]
        for change, n in found
    ]  # fmt: skip
    headings = ["since", "commit", "last before", "change", "from", "to", "latency itself"]
    return Grid([*axis_headings(told.points), "backend", *headings], len(axes) + 1, lines), [n for _, n in found]


def level_words(level: float, change: ChangePoint) -> str:
    """A level in its unit."""
    return f"{three_digits(level)}x {change.against.subject}" if change.against else seconds(level)
