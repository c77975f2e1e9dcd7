"""How each number reads: units, ratios in words, and the sentence that answers the question."""

from __future__ import annotations

from dataclasses import dataclass

from invbench.results import Interval, Ratio, Result, ResultSet, Status, find
from invbench.spec import Scope
from invbench.verdict import fastest_involution, paired_ratio

MISSING = "-"
# A ratio this close to 1 is neither faster nor slower.
SAME = 0.005


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and the part of a narrow page that it stands in: ``speed`` or ``cost``."""

    heading: str
    part: str


COLUMNS = (
    Column("latency [95 %]", "speed"),
    Column("vs {baseline}", "speed"),
    Column("GFLOP/s", "speed"),
    Column("GB/s", "speed"),
    Column("roofline", "speed"),
    Column("peak memory", "cost"),
    Column("params", "cost"),
    Column("FLOP", "cost"),
)


def headings(results: ResultSet) -> list[str]:
    """The heading of each column."""
    return [column.heading.format(baseline=results.baseline or "none") for column in COLUMNS]


def name_of(result: Result) -> str:
    """What a row is called: involution by its backend, a convolution by its kind."""
    return result.backend if result.subject == "involution" else result.subject


def cells(result: Result) -> list[str]:
    """The cells of a row, one for each of ``COLUMNS``."""
    ratio = result.ratio or Ratio()
    interval = result.latency.interval if result.latency else None
    peak = result.memory.peak if result.memory else None
    counted = result.status is not Status.UNAVAILABLE
    return [
        seconds_with_interval(interval) if interval else str(result.status),
        faster_or_slower(ratio.latency.median) if ratio.latency else MISSING,
        MISSING if result.flop_per_s is None else three_digits(result.flop_per_s / 1e9),
        MISSING if result.bytes_per_s is None else three_digits(result.bytes_per_s / 1e9),
        MISSING if result.roofline_fraction is None else f"{result.roofline_fraction:.1%}",
        MISSING if peak is None else size(peak) + times(ratio.memory),
        MISSING if result.params is None or not counted else count(result.params) + times(ratio.params),
        MISSING if result.flop is None or not counted else count(result.flop) + times(ratio.flop),
    ]


def three_digits(value: float) -> str:
    """A number with about three significant digits and no exponent."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.0995 else 4
    return f"{value:.{digits}f}"


def seconds(value: float, like: float | None = None) -> str:
    """A time in the unit that suits it, or that suits another."""
    scale, unit = next((s for s in ((1.0, "s"), (1e-3, "ms")) if (like or value) >= s[0]), (1e-6, "us"))
    return f"{three_digits(value / scale)} {unit}"


def seconds_with_interval(interval: Interval) -> str:
    """``1.23 ms [1.20, 1.27]``: the median and its interval in one unit."""
    low, high = (seconds(value, like=interval.median).split()[0] for value in (interval.low, interval.high))
    return f"{seconds(interval.median)} [{low}, {high}]"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{three_digits(value)} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1024
    return f"{three_digits(value)} GiB"


def count(value: float) -> str:
    """A count of things, in thousands, millions or billions where that is shorter."""
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= scale:
            return three_digits(value / min(scale, 1e3 if unit == " k" else scale)) + unit
    return f"{value:.0f}"


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
    parts = [f"{cpu.get('model')}, {cpu.get('usable')} cores, {cpu.get('capability')}"]
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
    found = [f"{name_of(r)}: {r.status}: {r.reason}" for r in results.results if r.status is not Status.OK]
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
    kinds = {"conv2d": f"nn.Conv2d {K}x{K}", "conv2d-3x3": "nn.Conv2d 3x3"}
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
    return f"{faster_or_slower(ratio.median)} than"
