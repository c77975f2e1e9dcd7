"""One HTML file that opens anywhere: the answer, plots, tables to sort and filter. Nothing is fetched."""

from __future__ import annotations

from invbench.report.kinds import has_rows
from invbench.report.web.frame import below, page
from invbench.report.web.gate import checks_part
from invbench.report.web.operators import operators_part
from invbench.report.web.parts import Part
from invbench.report.web.whole import main_part, section_part
from invbench.report.whole import whole_parts
from invbench.results import ResultSet


def render_html(results: ResultSet) -> str:
    """The page of a document. What is first of operators, networks, trainings and checks can be filtered; the others
    follow."""
    if has_rows(results):
        first, shown, others = _of_rows(results)
        others |= {"check": checks_part(results, alone=False)} if results.checks else {}
    else:
        first, shown, others = checks_part(results, alone=True), results, {}
    parts = [first, *others.values()]
    data = {
        "axes": [], "styles": {}, "units": {}, "linked": {}, **first.data, "rows": first.rows,
        "others": {kind: part.rows for kind, part in others.items()},
        "figures": [item for part in parts for item in part.items()],
    }  # fmt: skip
    body = [*(line for part in parts for line in part.body), *below(shown)]
    return page("\n".join(body), data, with_plots=any(part.figures for part in parts))


def _of_rows(results: ResultSet) -> tuple[Part, ResultSet, dict[str, Part]]:
    """What is first, its rows, and the others by kind."""
    whole, operators = whole_parts(results), results.operators()
    if operators.results or not whole:
        first, shown, rest = operators_part(operators), operators, whole
    else:
        first, shown, rest = main_part(whole[0]), whole[0].results, whole[1:]
    return first, shown, {part.kind: section_part(part) for part in rest}
