"""The answer of a document of trained networks, in sentences."""

from __future__ import annotations

from invbench.report.text import SAME, faster_or_slower, plural, printable, three_digits
from invbench.report.training import accuracy, label
from invbench.results import Result, ResultSet
from invbench.results.quantities import Interval
from invbench.verdict.networks import whole_points
from invbench.verdict.training import MACS, PARAMS, Spread, Trained, epochs_done, trained_pairs

NOTHING = "No network with involution was trained beside its counterpart, so there is nothing to conclude."


def training_sentences(results: ResultSet) -> list[str]:
    """Each network with involution against the one that it is compared with, data set by data set."""
    points = whole_points(results)
    told = []
    for point in points:
        place = printable(label(point, points))
        several = len({row.subject for row in point.rows}) < len(point.rows)
        told += [_sentence(each, place, several) for each in trained_pairs(point.rows, results.baseline)]
    return told or [NOTHING]


def _sentence(pair: Trained, place: str, several: bool) -> str:
    name = f"{pair.row.subject} ({pair.row.backend})" if several else pair.row.subject
    equal = {PARAMS: ", at equal parameters,", MACS: ", at equal multiply-adds,"}.get(pair.pair or "", "")
    parts = [_cost(pair), _speed(pair.step)]
    told = "".join(f", {part}" for part in parts if part)
    return f"On {place}{equal or ','} {name} {_reached(pair)}{told}."


def _reached(pair: Trained) -> str:
    """What both came to; of one that was stopped, how far it came."""
    row, base = (Spread.of(each.training.final) if each.training else None for each in (pair.row, pair.base))
    if row and base:
        same = row.count == base.count
        return f"reaches {_spread(row, True)} where {pair.base.subject} reaches {_spread(base, not same)}"
    return f"{_so_far(pair.row)} where {pair.base.subject} {_so_far(pair.base)}"


def _spread(found: Spread, with_count: bool) -> str:
    seeds = [plural(found.count, "seed")] if with_count else []
    sd = [] if found.sd is None else [f"+-{found.sd:.1f}"]
    told = ", ".join([*sd, *seeds])
    return f"{found.mean:.1f} %{f' ({told})' if told else ''}"


def _so_far(row: Result) -> str:
    if not epochs_done(row.training):
        return "was not trained"
    if row.training and (found := Spread.of(row.training.final)):
        return f"reaches {_spread(found, True)}"
    return f"reached {accuracy(row)}"


def _cost(pair: Trained) -> str:
    params, macs = (None if ratio is None else f"{three_digits(ratio)}x" for ratio in (pair.params, pair.macs))
    if pair.pair == PARAMS:
        return f"with {macs} the multiply-adds" if macs else ""
    return f"with {params} the parameters" if params else ""


def _speed(step: Interval | None) -> str:
    if step is None:
        return ""
    if step.low <= 1 <= step.high:
        return f"and a step takes {three_digits(step.low)} to {three_digits(step.high)}x the time"
    if abs(step.median - 1) < SAME:
        return "and trains as fast"
    return f"and trains {faster_or_slower(step.median)} a step"
