"""The answer of a document of whole networks, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from invbench.report.headline import than, versus
from invbench.report.networks import where
from invbench.report.text import faster_or_slower, spoken, three_digits
from invbench.results import ResultSet
from invbench.verdict import paired_ratio
from invbench.verdict.networks import Best, best_regimes, whole_points
from invbench.verdict.points import CLASS, Point, Versus, varying

# More sentences than this are one for each network instead, over all its points.
MANY = 8
TORCH = "torch"
NOTHING = "No network with involution was timed beside its counterpart, so there is nothing to conclude."


def network_sentences(results: ResultSet) -> list[str]:
    """Each network against its counterpart, both in the regime that is faster for them; those with involution also
    against others with that counterpart."""
    points = whole_points(results)
    found = [(point, best) for point in points for best in best_regimes(point.rows)]
    if len(found) > MANY and len(points) > 1:
        told = _over_points(found, points)
    else:
        told = [_at(where(point, points), text) for point in points for text in _at_point(best_regimes(point.rows))]
    return told or _counted(results, points)


def _at_point(bests: Sequence[Best]) -> Iterator[str]:
    """What is asked is how involution does: where there is some, others are compared with that and not one by one."""
    involutions = [best for best in bests if best.row.backend != TORCH]
    bases = {best.base.subject for best in involutions}
    for best in bests:
        if best.row.backend != TORCH or best.base.subject not in bases:
            yield _compared(best)
        if best.row.backend != TORCH:
            others = [
                other for other in bests if other.row.backend == TORCH and other.base.subject == best.base.subject
            ]
            told = [
                f"{than(between)} {_who(other)}" for other in others if (between := paired_ratio(best.row, other.row))
            ]
            if told:
                yield f"{_who(best)} is {spoken(told)}{', each in its faster regime' if _differ(best, others) else ''}."


def _differ(best: Best, others: Sequence[Best]) -> bool:
    return any(other.row.regime != best.row.regime for other in others)


def _at(place: str, text: str) -> str:
    return f"{place}: {text}" if place else text


def _compared(best: Best) -> str:
    free = ""
    if best.ceiling:
        free = f"; with involution free it would be {faster_or_slower(best.ceiling.median)}"
    return f"{_who(best)} is {than(best.ratio)} {best.base.subject} ({_regimes(best)}){free}."


def _who(best: Best) -> str:
    return best.row.subject if best.row.backend == TORCH else f"{best.row.subject} ({best.row.backend})"


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
        of_involution = {results.baseline_of(row) for row in point.rows if row.backend != TORCH}
        for row in point.rows:
            ratio, base = row.ratio, results.baseline_of(row)
            if row.backend == TORCH and base in of_involution:  # what is asked is how involution does
                continue
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
