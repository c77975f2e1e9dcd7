"""What a sweep is going to do: the points of ``--dry-run``, and one point in a line of progress."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invbench.report import text
from invbench.report.columns import name_of
from invbench.results import Result, Status, find
from invbench.spec import CASE_FIELDS
from invbench.study.grid import DEFAULTS, GridPoint, Refused
from invbench.verdict import fastest_involution, paired_ratio

# What a point costs besides its budget, about: first calls, checks against float64, memory. Seconds.
BESIDES = 4.0
STARTING, AGAIN = 5.0, 1.0  # and of each further launch: a process, and first calls and checks of each point
COMPILING = 30.0


class Plan(Protocol):
    """What would happen at a point: why backends refuse, bytes that its leanest and its largest row need, those that
    are free, and why nothing can be measured there."""

    @property
    def refusals(self) -> Any: ...  # noqa: D102
    @property
    def needed_bytes(self) -> int: ...  # noqa: D102
    @property
    def free_bytes(self) -> int | None: ...  # noqa: D102
    @property
    def most_bytes(self) -> int: ...  # noqa: D102
    @property
    def reason(self) -> str | None: ...  # noqa: D102


class Method(Protocol):
    """The settings of a sweep, as far as they say how long it takes."""

    @property
    def backends(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def budget(self) -> Any: ...  # noqa: D102
    @property
    def launches(self) -> int: ...  # noqa: D102


def render_plan(
    points: Sequence[GridPoint], plans: Sequence[Plan], refused: Sequence[Refused], method: Method, format_name: str
) -> str:
    """The points of a sweep, the backends that can run, and estimates of time and memory."""
    low, high = _seconds(points, plans, method)
    if format_name == "json":
        return json.dumps(
            {
                "points": [
                    {
                        "case": point.case.to_dict(), "baseline": point.baseline,
                        "backends": [name for name in method.backends if name not in plan.refusals],
                        "refusals": dict(plan.refusals), "needed_bytes": plan.needed_bytes,
                        "most_bytes": plan.most_bytes, "free_bytes": plan.free_bytes, "reason": plan.reason,
                    }
                    for point, plan in zip(points, plans, strict=True)
                ],
                "left_out": [{"fields": dict(each.fields), "reason": each.reason} for each in refused],
                "seconds": {"low": low, "high": high},
            },
            indent=1,
        )  # fmt: skip
    lines = [_table(points, plans, method)]
    reasons = {f"{name}: {reason}" for plan in plans for name, reason in plan.refusals.items()}
    lines += [f"* {reason}" for reason in sorted(reasons)]
    lines += [f"* {reason}" for reason in dict.fromkeys(plan.reason for plan in plans) if reason]
    lines += [f"* left out: {reason}" for reason in dict.fromkeys(each.reason for each in refused)]
    compiling = " (the longer where torch.compile has cached nothing yet)" if high > low else ""
    launches = f" in {method.launches} launches" if method.launches > 1 else ""
    lines.append(f"{len(points)} point{'s' * (len(points) != 1)}{launches}, about {_span(low, high)}{compiling}")
    return "\n".join(lines)


def point_line(point: GridPoint, rows: Sequence[Result] = ()) -> str:
    """A point in a few words, and, where it has been measured, what came of it."""
    case = point.case.to_dict()
    always = {name: case[name] for name in ("N", "C", "H", "W", "K", "G")}
    words = [f"{name}={value}" for name, value in always.items()]
    words += [str(case[name]) for name in ("dtype", "layout", "mode", "scope") if case[name] != DEFAULTS[name]]
    other = ("stride", "dilation", "reduction", "padding_mode")
    words += [f"{name}={case[name]}" for name in other if case[name] != DEFAULTS[name]]
    words += [f"threads={case['threads']}"] if case["device"] == "cpu" else []
    words += [f"against {point.baseline}"] if point.baseline != DEFAULTS["baseline"] else []
    line = " ".join(words)
    return f"{line}: {_outcome(point, rows)}" if rows else line


def _outcome(point: GridPoint, rows: Sequence[Result]) -> str:
    bad = [row for row in rows if row.status not in (Status.OK, Status.UNAVAILABLE)]
    failures = [f"{name_of(row)} {row.status}" for row in bad]
    best = fastest_involution(rows)
    base = find(rows, point.baseline or "conv2d")
    ratio = paired_ratio(best, base) if best and base else None
    if best is None or best.latency is None:
        return ", ".join(failures) or "nothing was timed"
    found = f"{name_of(best)} {text.seconds(best.latency.interval.median)}"
    found += f", {text.faster_or_slower(ratio.median)} than {base.subject}" if ratio and base else ""
    return ", ".join([found, *failures])


def _table(points: Sequence[GridPoint], plans: Sequence[Plan], method: Method) -> str:
    cases = [{**point.case.to_dict(), "baseline": point.baseline or "none"} for point in points]
    shown = ["N", "C", "H", "W", "K", "G"]
    shown += [name for name in (*CASE_FIELDS, "baseline") if name not in shown and len({c[name] for c in cases}) > 1]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in (*shown, "memory", "backends"):
        table.add_column(name, justify="left" if name == "backends" else "right")
    for case, plan in zip(cases, plans, strict=True):
        too_much = plan.free_bytes is not None and plan.needed_bytes > plan.free_bytes
        sizes = dict.fromkeys([text.size(plan.needed_bytes), text.size(max(plan.needed_bytes, plan.most_bytes))])
        memory = " to ".join(sizes) + (" (too much)" if too_much else "")
        backends = "" if plan.reason else ", ".join(name for name in method.backends if name not in plan.refusals)
        table.add_row(*(str(case[name]) for name in shown), memory, Text(backends or "none"))
    buffer = io.StringIO()
    Console(file=buffer, width=shutil.get_terminal_size((100, 24)).columns, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")


def _seconds(points: Sequence[GridPoint], plans: Sequence[Plan], method: Method) -> tuple[float, float]:
    """About how long it takes, with everything compiled before and with nothing."""
    further = (method.launches - 1) * (STARTING + len(points) * AGAIN)
    low = len(points) * (method.budget.seconds + BESIDES) + further
    compiled = sum("compiled" in method.backends and "compiled" not in plan.refusals for plan in plans)
    return low, low + COMPILING * compiled


def _span(low: float, high: float) -> str:
    minutes = [f"{max(1, round(seconds / 60))}" for seconds in (low, high)]
    return f"{' to '.join(dict.fromkeys(minutes))} min"
