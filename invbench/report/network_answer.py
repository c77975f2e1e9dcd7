"""The answer of a document of whole networks, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from invbench.report.headline import than, versus
from invbench.report.networks import where
from invbench.report.text import faster_or_slower, three_digits
from invbench.results import ResultSet
from invbench.verdict.networks import Best, best_regimes, whole_points
from invbench.verdict.points import CLASS, Point, Versus, varying

# More sentences than this are one for each network instead, over all its points.
MANY = 8
NOTHING = "No network with involution was timed beside its counterpart, so there is nothing to conclude."


def network_sentences(results: ResultSet) -> list[str]:
    """Each network with involution against its counterpart, both in the regime that is faster for them."""
    points = whole_points(results)
    found = [(point, best) for point in points for best in best_regimes(point.rows)]
    if len(found) > MANY and len(points) > 1:
        told = _over_points(found, points)
    else:
        told = [_at(where(point, points), _compared(best)) for point, best in found]
    return told or _counted(results, points)


def _at(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text


def _compared(best: Best) -> str:
    free = ""
    if best.ceiling:
        free = f"; with involution free it would be {faster_or_slower(best.ceiling.median)}"
    return f"{_who(best)} is {than(best.ratio)} {best.base.subject} ({_regimes(best)}){free}."


def _who(best: Best) -> str:
    return f"{best.row.subject} ({best.row.backend})"


def _regimes(best: Best) -> str:
    return str(best.row.regime) if best.row.regime == best.base.regime else "each in its faster regime"


def _over_points(found: Sequence[tuple[Point, Best]], points: Sequence[Point]) -> list[str]:
    """A sentence for each network over the points that may be averaged."""
    named = [name for name in CLASS if name in varying(points)]
    groups: dict[tuple[str, ...], list[Best]] = {}
    for point, best in found:
        place = ", ".join(f"{name} {point.axes[name]}" for name in named)
        groups.setdefault((place, _who(best), best.base.subject), []).append(best)
    told = []
    for (place, who, base), bests in groups.items():
        beats = versus(Versus(base, tuple(best.ratio for best in bests)), base)
        told.append(f"{f'With {place}, ' if place else ''}{who} beats {beats}, each in its faster regime.")
    return told


def _counted(results: ResultSet, points: Sequence[Point]) -> list[str]:
    """What counts alone say; what holds at every point is said once."""
    said: dict[str, list[str]] = {}
    for point in points:
        for row in point.rows:
            ratio, base = row.ratio, results.baseline_of(row)
            if ratio and ratio.params is not None and ratio.flop is not None and row.subject != base:
                text = (
                    f"{row.subject} has {three_digits(ratio.params)}x the parameters and "
                    f"{three_digits(ratio.flop)}x the multiply-adds of {base}"
                )
                places = said.setdefault(text, [])
                places += [place] if (place := where(point, points)) not in places else []
    if any(row.latency for row in results.results) or not said:
        return [NOTHING]
    return [
        f"{text if len(places) == len(points) else _at('; '.join(places), text)}; nothing was timed."
        for text, places in said.items()
    ]
