"""Everything that is told of whole networks, measured or trained, for every format to lay out as it does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from invbench.report.columns import Column, Grid, Section, rows_of
from invbench.report.counts import counts
from invbench.report.headline import method, title_of
from invbench.report.network_answer import network_sentences
from invbench.report.networks import breakdowns, network_columns, network_notes, whole_grid
from invbench.report.notes import notes
from invbench.report.published import published
from invbench.report.text import printable
from invbench.report.training import (
    data_set_titles,
    published_training,
    training_columns,
    training_notes,
    training_title,
)
from invbench.report.training_answer import training_sentences
from invbench.results import Result, ResultSet
from invbench.verdict.networks import whole_points
from invbench.verdict.points import Point, machine_names


@dataclass(frozen=True)
class Whole:
    """The rows of a document that are of one kind. warnings: what a reader must know first.

    kind: ``network`` or ``training``. columns: of the main table, a line for each row. own_notes: those that only this
    kind has; notes are all. machine: the name of the class that measured it, where it is one of several.
    """

    kind: str
    heading: str
    results: ResultSet
    points: Sequence[Point]
    title: str
    method: str
    columns: Sequence[Column]
    sections: Sequence[Section]
    own_notes: Sequence[str]
    sentences: Sequence[str]
    warnings: Sequence[str] = ()
    machine: str = ""

    @property
    def grid(self) -> Grid:
        """A line for each row."""
        return whole_grid(self.points, self.columns)

    @property
    def notes(self) -> list[str]:
        """Failures and warnings, and then what cells cannot hold."""
        return [*notes(self.results), *self.own_notes]

    @property
    def rows(self) -> list[Result]:
        """In the order of the grid's lines."""
        return [row for _, row in rows_of(self.points)]


def whole_parts(results: ResultSet) -> list[Whole]:
    """What there is of whole networks."""
    kinds = ((results.networks(), _networks), (results.trainings(), _trainings))
    return [told(rows) for rows, told in kinds if rows.results]


def whole_by_machine(parts: Iterable[Whole]) -> Iterator[Whole]:
    """Each of them apart by class of machines, where it is of several."""
    for part in parts:
        apart, names = part.results.by_machine(), machine_names(part.results)
        for key, own in apart.items():
            yield from (replace(each, machine=printable(names[key])) for each in whole_parts(own))
        if not apart:
            yield part


def _networks(results: ResultSet) -> Whole:
    """Counts are the same however a network is run, so that they have a table of their own beside what was timed."""
    points, everything = whole_points(results), network_columns(results)
    timed, counted = ([c for c in everything if (c.part == "cost") is cost] for cost in (False, True))
    apart = counts([row for _, row in rows_of(points)], counted) if timed else None
    return Whole(
        kind="network", heading="Whole networks", results=results, points=points, title=title_of(points),
        method=method(results), columns=timed if apart else everything,
        sections=[section for section in (apart, published(results), *breakdowns(results)) if section],
        own_notes=network_notes(results), sentences=network_sentences(results),
    )  # fmt: skip


def _trainings(results: ResultSet) -> Whole:
    section = published_training(results)
    return Whole(
        kind="training", heading="Trained networks", results=results, points=whole_points(results),
        title=training_title(results), method=method(results, "blocks of an epoch each"),
        columns=training_columns(results), sections=[section] if section else [],
        own_notes=training_notes(results), sentences=training_sentences(results), warnings=data_set_titles(results),
    )  # fmt: skip
