"""How each number reads: units, ratios in words, and the sentence that answers the question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from invbench.quantities import Interval, Ratio
from invbench.results import Result, ResultSet, Status, find
from invbench.spec import Scope
from invbench.verdict import fastest_involution, paired_ratio

MISSING = "-"
# A ratio this close to 1 is neither faster nor slower.
SAME = 0.005
# Fewer rounds than this give no 95 % interval.
FEW = 6


def name_of(result: Result) -> str:
    """What a row is called: involution by its backend, a convolution by its kind."""
    return result.backend if result.subject == "involution" else result.subject


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, the part of a narrow page that it stands in (``speed`` or ``cost``), and its cell in a row."""

    heading: str
    part: str
    cell: Callable[[Result], str]


def columns(results: ResultSet) -> list[Column]:
    """The columns after the backend's; no ratio where there is no baseline."""
    found = [
        Column("latency [95 %]", "speed", _latency),
        Column(f"vs {results.baseline}", "speed", _ratio),
        Column("GFLOP/s", "speed", lambda r: _giga(r.flop_per_s)),
        Column("GB/s", "speed", lambda r: _giga(r.bytes_per_s)),
        Column("roofline", "speed", _roofline),
        Column("peak memory", "cost", _peak),
        Column("params", "cost", lambda r: _count(r, r.params, (r.ratio or Ratio()).params)),
        Column("FLOP", "cost", lambda r: _count(r, r.flop, (r.ratio or Ratio()).flop)),
    ]
    return [column for column in found if results.baseline or column.cell is not _ratio]


def grid(results: ResultSet) -> tuple[list[str], list[list[str]]]:
    """The headings and the cells of the whole table."""
    shown = columns(results)
    rows = [[name_of(result), *(column.cell(result) for column in shown)] for result in results.results]
    return ["backend", *(column.heading for column in shown)], rows


def _latency(result: Result) -> str:
    return seconds_with_interval(result.latency.interval) if result.latency else str(result.status)


def _ratio(result: Result) -> str:
    return faster_or_slower(result.ratio.latency.median) if result.ratio and result.ratio.latency else MISSING


def _giga(value: float | None) -> str:
    return MISSING if value is None else three_digits(value / 1e9)


def _roofline(result: Result) -> str:
    return MISSING if result.roofline_fraction is None else f"{result.roofline_fraction:.1%}"


def _peak(result: Result) -> str:
    if result.memory is None or result.memory.peak is None:
        return MISSING
    return size(result.memory.peak) + times((result.ratio or Ratio()).memory)


def _count(result: Result, value: int | None, ratio: float | None) -> str:
    return MISSING if value is None or result.status is Status.UNAVAILABLE else count(value) + times(ratio)


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def rounded(value: float) -> float:
    """A number at the precision of ``three_digits``, by which its unit is chosen."""
    return float(f"{value:.2e}")


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def seconds(value: float, like: float | None = None) -> str:
    """A time in the unit that suits it, or that suits another."""
    shown = rounded(1e6 * (like or value)) / 1e6
    scale, unit = next((s for s in ((1.0, "s"), (1e-3, "ms")) if shown >= s[0]), (1e-6, "us"))
    return f"{three_digits(value / scale)} {unit}"


def seconds_with_interval(interval: Interval) -> str:
    """``1.23 ms [1.20, 1.27]``: the median and its interval in one unit."""
    low, high = (seconds(value, like=interval.median).split()[0] for value in (interval.low, interval.high))
    return f"{seconds(interval.median)} [{low}, {high}]"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if float(three_digits(value)) < 1024:
            return f"{three_digits(value)} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1024
    return f"{three_digits(value)} GiB"


def count(value: float) -> str:
    """A count of things, in thousands, millions or billions where that is shorter."""
    if value < 10_000:
        return f"{value:.0f}"
    scale, unit = next(s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if rounded(value) >= s[0])
    return f"{three_digits(value / scale)} {unit}"


def times(ratio: float | None) -> str:
    """`` (0.25x)``, or nothing."""
    return "" if ratio is None else f" ({three_digits(ratio)}x)"


def faster_or_slower(ratio: float) -> str:
    """A latency ratio in words: ``2.40x faster``."""
    if abs(ratio - 1) < SAME:
        return "1.00x"
    return f"{three_digits(1 / ratio)}x faster" if ratio < 1 else f"{three_digits(ratio)}x slower"


def title(results: ResultSet) -> str:
    """The settings that all rows share."""
    if not results.results:
        return "no rows"
    case = results.results[0].case
    s = case.layer
    parts = [f"N={case.N} C={s.C} H={case.H} W={case.W} K={s.K} G={s.G}"]
    parts += [f"stride={s.stride}"] if s.stride > 1 else []
    parts += [f"dilation={s.dilation}"] if s.dilation > 1 else []
    parts += [f"reduction={s.reduction}"] if case.scope is Scope.LAYER else []
    parts += [f"padding {s.padding_mode}"] if s.padding_mode != "zeros" else []
    parts += [f"{case.dtype} {case.layout}", f"{case.mode} of the {case.scope}", f"on {case.device}"]
    parts += [f"{case.threads} thread{'s' * (case.threads > 1)}"] if case.device == "cpu" else []
    return ", ".join(parts)


def machine(results: ResultSet) -> str:
    """The machine, the versions and the peaks of the run."""
    environment = results.environment
    versions = environment.get("versions", {})
    cpu, gpu = environment.get("cpu", {}), environment.get("gpu")
    parts = [f"{cpu['model']}, {cpu['usable']} cores, {cpu['capability']}"] if cpu else []
    parts += [gpu["name"]] if gpu else []
    parts += [f"{name} {versions[name]}" for name in ("torch", "triton" if gpu else "numba") if versions.get(name)]
    if results.peaks:
        peaks = results.peaks
        parts.append(
            f"peaks {three_digits(peaks['matmul_flop_per_s'] / 1e9)} GFLOP/s, "
            f"{three_digits(peaks['copy_bytes_per_s'] / 1e9)} GB/s"
        )
    return "; ".join(parts)


def method(results: ResultSet) -> str:
    """How the latencies were taken."""
    timed = [result.latency for result in results.results if result.latency]
    if not timed:
        return "nothing was timed"
    stops = ", ".join(sorted({latency.stop for latency in timed}))
    seed = results.settings.get("seed")
    text = f"{len(timed[0].blocks)} rounds of interleaved blocks, {timed[0].clock} clock, {timed[0].cache} cache"
    return f"{text}; stopped on {stops}; seed {seed}"


def notes(results: ResultSet) -> list[str]:
    """What the cells cannot hold: reasons of rows without a latency, warnings, chosen layouts."""
    bad = [r for r in results.results if r.status is not Status.OK]
    found = [f"{name_of(r)}: {r.status}: {printable(r.reason or 'no reason')}" for r in bad]
    chosen = [f"{name_of(r)} {r.chosen_layout}" for r in results.results if r.chosen_layout]
    found += [f"the faster layout: {', '.join(chosen)}"] if chosen else []
    rows_by_warning: dict[str, list[str]] = {}
    for result in results.results:
        for warning in result.warnings:
            rows_by_warning.setdefault(warning, []).append(name_of(result))
    everyone = sum(result.latency is not None for result in results.results)
    for warning, rows in rows_by_warning.items():
        found.append(f"warning: {warning}" if len(rows) == everyone else f"warning: {', '.join(rows)}: {warning}")
    if results.interrupted:
        found.append("warning: interrupted: the rows hold what was measured until then")
    return found


def conclusion(results: ResultSet) -> str:
    """One sentence that answers: is involution cheaper than convolution here?"""
    best = fastest_involution(results.results)
    if best is None:
        return "No involution was timed, so there is nothing to conclude."
    K = best.case.layer.K
    kinds = {"conv2d": f"nn.Conv2d {K}x{K}", **({"conv2d-3x3": "nn.Conv2d 3x3"} if K != 3 else {})}
    compared = []
    for subject, kind in kinds.items():
        convolution = find(results.results, subject)
        ratio = convolution and paired_ratio(best, convolution)
        if ratio:
            compared.append(f"{than(ratio)} {kind}")
    if not compared:
        return f"The fastest involution here is {best.backend}; no convolution was timed beside it."
    cost = ""
    if best.ratio and best.ratio.flop is not None and results.baseline:
        cost = f", at {three_digits(best.ratio.flop)}x the FLOP"
        cost += "" if best.ratio.memory is None else f" and {three_digits(best.ratio.memory)}x the peak memory"
        cost += f" of {results.baseline}"
    return f"Here involution ({best.backend}) is {' and '.join(compared)}{cost}."


def than(ratio: Interval) -> str:
    """``2.40x faster than``, or that the interval does not tell which is faster."""
    if ratio.low <= 1 <= ratio.high:
        return f"not distinguishable in speed ({three_digits(ratio.low)} to {three_digits(ratio.high)}x the time) from"
    rounds = "" if ratio.count >= FEW else f"(from {ratio.count} round{'s' * (ratio.count > 1)} only) "
    if abs(ratio.median - 1) < SAME:
        return f"{rounds}as fast as"
    return f"{rounds}{faster_or_slower(ratio.median)} than"
