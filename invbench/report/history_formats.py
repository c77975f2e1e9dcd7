"""A history of checks in every format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.text import Text

from invbench.report.data import csv_of, parquet_of
from invbench.report.history import Story, above, latest_grid, notes, sentences, story
from invbench.report.markdown import markdown_table
from invbench.report.table import canvas, finished, fits, piece_of, table_of, terminal_width
from invbench.report.web.history import render_history_html
from invbench.results.history import History, to_document
from invbench.verdict.history import ChangePoint, Reading, Track, change_points


def render_history_table(history: History, width: int | None = None) -> str:
    """For a terminal. width: columns; by default the terminal's."""
    told = story(history)
    text, console = canvas(width or terminal_width())
    for line in above(told):
        console.print(Text(line))
    whole, brief = latest_grid(told), latest_grid(told, brief=True)
    shown = next((grid for grid in (whole, brief) if fits(table_of(grid), console)), None)
    # Else what was measured, and what came of it below.
    middle, end = whole.headings.index("runs"), len(whole.headings)
    pieces = [shown] if shown else [piece_of(whole, range(whole.leading, middle)), piece_of(whole, range(middle, end))]
    for grid in pieces:
        console.print(table_of(grid))
    for note in notes(told):
        console.print(Text(f"* {note}"))
    for sentence in sentences(told):
        console.print(Text(sentence, style="bold"))
    return finished(text)


def render_history_markdown(history: History) -> str:
    """For a pull request or a wiki."""
    told = story(history)
    lines = ["  \n".join(f"**{sentence}**" for sentence in sentences(told)), "", "  \n".join(above(told)), ""]
    lines += [*markdown_table(latest_grid(told)), "", *(f"* {note}" for note in notes(told))]
    return "\n".join(lines).rstrip()


def render_history_csv(history: History) -> str:
    """One line a run and row, also of rows that the latest run does not have."""
    return csv_of(_flat(story(history)))


def render_history_parquet(history: History) -> bytes:
    """The rows and columns of the CSV with their types."""
    return parquet_of(_flat(story(history)))


def render_history_json(history: History) -> str:
    """A result document with the checks of all runs, the runs themselves, and the readings of each row."""
    told = story(history)
    document = to_document(history)
    tracks = [*((line.track, line.levels) for line in told.lines), *((track, None) for track in told.gone)]
    document["tracks"] = [
        {
            **_row(track), "is_current": track.is_current,
            "control": track.control.to_dict() if track.control else None,
            "readings": [_reading(reading) for reading in track.readings],
            "change_points": None if found is None else [_change(each) for each in change_points(track, found)],
        }
        for track, found in tracks
    ]  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False)


HISTORY_FORMATS: dict[str, Callable[[History], str | bytes]] = {
    "table": render_history_table,
    "json": render_history_json,
    "csv": render_history_csv,
    "markdown": render_history_markdown,
    "html": render_history_html,
    "parquet": render_history_parquet,
}


def _flat(told: Story) -> list[dict[str, Any]]:
    lines = [(line.track, {change.first.number for change in line.changes}) for line in told.lines]
    found = [
        {**_reading(reading), **_row(track), "is_change_point": reading.number in firsts}
        for track, firsts in [*lines, *((track, set[int]()) for track in told.gone)]
        for reading in track.readings
    ]
    return sorted(found, key=lambda each: int(each["run"]))


def _row(track: Track) -> dict[str, Any]:
    row = track.row.to_dict()
    place = {"machine": track.machine, "clock": track.clock, "cache": track.cache}
    return {"subject": row["subject"], "backend": row["backend"], **place, "case": row["case"]}


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "run": reading.number, "created": reading.created, "commit": reading.commit, "name": reading.name,
        "verdict": str(reading.verdict), "head": reading.head, "base": reading.base, "ratio": reading.ratio,
        "control": reading.control, "relative": reading.relative,
    }  # fmt: skip


def _change(change: ChangePoint) -> dict[str, Any]:
    return {
        "last": _reading(change.last), "first": _reading(change.first), "before": change.before, "after": change.after,
        "ratio": change.ratio, "latency_ratio": change.latency,
        "against": change.against.subject if change.against else None,
    }  # fmt: skip
