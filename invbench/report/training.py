"""Networks that were trained, as tables: what came of it, at what cost, and what others report of the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from invbench.report.columns import Cell, Column, Grid, Section, axis_text, name_of, rows_of
from invbench.report.headline import title_of
from invbench.report.networks import counted, latency_ratio, peak_memory
from invbench.report.published import accuracy_as_published, sources
from invbench.report.text import (
    MISSING,
    four_digits,
    plural,
    printable,
    seconds,
    seconds_with_interval,
)
from invbench.results import Result, ResultSet
from invbench.results.quantities import quotient
from invbench.spec import TrainingCase
from invbench.verdict.networks import data_set_of, whole_points
from invbench.verdict.points import Point, varying
from invbench.verdict.training import MACS, PARAMS, REPORT, Spread, base_of, epochs_done, trainable

PAIRS = {REPORT: "nothing", PARAMS: "params", MACS: "macs"}
# What has to be said of a data set where the document does not.
DATA_SETS = {"digits": "scikit-learn's handwritten digits: not MNIST"}
HEADING = "What the report publishes of these networks, beside what came of them here"
ACCURACY_NOTE = (
    "accuracy: of the validation images after the last epoch, never the best of several; mean +- standard deviation "
    "over seeds"
)
STEP_NOTE = "step: forward, backward and optimiser for one batch; train time: all steps of all epochs, mean over seeds"


def training_title(results: ResultSet) -> str:
    """What was trained on, how long, where."""
    most = max((len(row.training.accuracy) for row in results.results if row.training), default=0)
    told = title_of(whole_points(results))
    return f"{told}, {plural(most, 'seed')}" if most else told


def data_set_titles(results: ResultSet) -> list[str]:
    """What each data set really is, which its name may not say."""
    told = results.settings.get("data_set_title")
    names = dict.fromkeys(row.case.data_set for row in results.results if isinstance(row.case, TrainingCase))
    if told and len(names) == 1:
        return [f"Data set: {printable(str(told))}"]
    return [f"Data set {name}: {DATA_SETS[name]}" for name in names if name in DATA_SETS]


def training_columns(results: ResultSet) -> list[Column]:
    """The columns that say something."""
    baselines = {results.baseline_of(row) for row in results.results}
    to = f"vs {next(iter(baselines))}" if len(baselines) == 1 and None not in baselines else "vs baseline"
    bases = _bases(results)

    def over(row: Result, value: Callable[[Result], float | None]) -> float | None:
        base = bases.get(id(row))
        return quotient(value(row), value(base)) if base else None

    def params(row: Result) -> str:
        return counted(trainable(row), over(row, trainable))

    def macs(row: Result) -> str:
        return counted(row.macs, over(row, lambda r: r.macs))

    columns = [
        Column("equal in", "", _pair, lambda _: None),
        Column("accuracy (seeds)", "", accuracy, final_accuracy),
        Column("trainable params", "", params, trainable),
        Column("macs", "", macs, lambda r: r.macs),
        Column("train time", "", _train_time, train_seconds),
        Column("step [95 %]", "", _step, lambda r: r.seconds),
        Column(to, "", latency_ratio, lambda r: r.ratio.latency.median if r.ratio and r.ratio.latency else None),
        Column("peak memory", "", peak_memory, lambda r: r.memory.peak if r.memory else None),
    ]
    return [column for column in columns if any(column.cell(row) != MISSING for row in results.results)]


def _bases(results: ResultSet) -> dict[int, Result]:
    """For each row, by its identity, the one that it is compared with."""
    found = {}
    for point in whole_points(results):
        for row in point.rows:
            base = base_of(row, point.rows, results.baseline)
            if base is not None:
                found[id(row)] = base
    return found


def _pair(row: Result) -> str:
    """What a network shares with the one that it is compared with; nothing is said of that one itself."""
    pairs = [PAIRS.get(pair, pair) for pair in (row.pair or "").split(",") if pair]
    return printable(pairs[0]) if len(pairs) == 1 and row.subject != row.baseline else MISSING


def final_accuracy(row: Result) -> float | None:
    """The mean over the seeds that came to the end."""
    found = Spread.of(row.training.final) if row.training else None
    return found.mean if found else None


def accuracy(row: Result) -> str:
    """``87.2 % +- 0.8 (5)``, which is the number of seeds, or how far it came."""
    training = row.training
    found = Spread.of(training.final) if training else None
    if training and found:
        started = len(training.accuracy)
        seeds = str(started) if started == found.count else f"{found.count} of {started}"
        sd = "" if found.sd is None else f" +- {found.sd:.1f}"
        return f"{found.mean:.1f} %{sd} ({seeds})"
    done = epochs_done(training)
    if training and done:
        last = [curve[-1] for curve in training.accuracy if len(curve) == done]
        return f"{sum(last) / len(last):.1f} % after {done} of {plural(training.epochs, 'epoch')}"
    return MISSING if row.reason is None else str(row.status)


def train_seconds(row: Result) -> float | None:
    """Of a whole training: the mean over the seeds that came to the end."""
    found = Spread.of(row.training.seconds) if row.training else None
    return found.mean if found else None


def _train_time(row: Result) -> str:
    mean = train_seconds(row)
    return MISSING if mean is None else seconds(mean)


def _step(row: Result) -> str:
    return seconds_with_interval(row.latency.interval) if row.latency else MISSING


def published_training(results: ResultSet) -> Section | None:
    """What others report of the same networks beside what came of them here."""
    points = whole_points(results)
    rows = [(point, row) for point, row in rows_of(points) if row.published]
    if not rows:
        return None
    several = len({point.axes["data_set"] for point, _ in rows}) > 1
    lines = []
    for point, row in rows:
        said, told = row.published or {}, (row.published or {}).get("train_seconds") or {}
        here, params, ran = final_accuracy(row), trainable(row), train_seconds(row)
        lines.append([
            *[Cell(axis_text(point.axes["data_set"]), point.axes["data_set"])] * several,
            Cell(name_of(row), row.subject), Cell(accuracy_as_published(row), said.get("top1")),
            Cell(MISSING if here is None else f"{here:.2f} %", here),
            *(Cell(MISSING if n is None else four_digits(n), n) for n in (said.get("params"), params)),
            *(Cell(MISSING if s is None else f"{s:.2f} s", s) for s in (told.get("gpu"), told.get("cpu"), ran)),
        ])  # fmt: skip
    headings = [
        *["data set"] * several, "network", "accuracy", "here", "params", "here", "time on GPU", "on CPU", "here",
    ]  # fmt: skip
    return Section(HEADING, Grid(headings, 1 + several, lines), "published")


def training_notes(results: ResultSet) -> list[str]:
    """What the cells cannot hold: what accuracy and steps are, what pairs have in common, the sources."""
    rows = results.results
    notes = [ACCURACY_NOTE] if any(row.training for row in rows) else []
    notes += [STEP_NOTE] if any(row.latency or train_seconds(row) is not None for row in rows) else []
    if {PARAMS, MACS} & {pair for row in rows for pair in (row.pair or "").split(",")}:
        notes.append(
            "equal in: what a network shares with the one that it is compared with; the report's own pairs share "
            "neither parameters nor multiply-adds"
        )
    said = [row for row in rows if row.published]
    elsewhere = dict.fromkeys(
        f"published on {printable(str(data_set_of(row)))}, trained here on {row.case.data_set}"
        for row in said
        if isinstance(row.case, TrainingCase) and not _same(data_set_of(row), row.case.data_set)
    )
    notes += [f"{each}: the two accuracies cannot be compared" for each in elsewhere]
    if any((row.published or {}).get("train_seconds") for row in said):
        notes.append("published times are of whole trainings on other machines, maybe of another number of epochs")
    return [*notes, *sources(said)]


def _same(one: str | None, other: str) -> bool:
    letters = ["".join(filter(str.isalnum, (name or "").lower())) for name in (one, other)]
    return letters[0] == letters[1]


def label(point: Point, points: Sequence[Point]) -> str:
    """A point of training by what it was trained on, and how where that differs."""
    axes = [axis for axis in varying(points) if axis != "data_set"]
    return ", ".join([str(point.axes["data_set"]), *(f"{axis}={axis_text(point.axes[axis])}" for axis in axes)])
