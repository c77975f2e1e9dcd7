"""What stands above and below a table: what was measured, where and how, and the sentence that answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from invbench.report.columns import axis_name, axis_text, name_of
from invbench.report.text import SAME, faster_or_slower, plural, printable, spoken, three_digits
from invbench.results import ResultSet, find
from invbench.results.launches import SEPARATOR
from invbench.results.quantities import FEWEST, Interval
from invbench.spec import TRAINING, Case, Scope
from invbench.verdict import fastest, fastest_involution, paired_ratio
from invbench.verdict.points import (
    ATTENTION,
    CONVOLUTIONS,
    Point,
    Value,
    Versus,
    against,
    class_names,
    classes,
    machine_names,
    points_of,
    values_of,
    varying,
)

# More values of an axis than this are told as their first and last.
MANY = 8


def title(results: ResultSet) -> str:
    """What all points share, and how many there are over which axes."""
    points, machines = points_of(results), results.by_machine()
    if not machines:
        return title_of(points)
    axes = [axis for axis in varying(points) if axis != "machine"]
    over = f"{_over(points, axes)} on {len(machines)} classes of machines"
    return ": ".join(filter(None, [over, _shared(fixed(points), ())]))


def title_of(points: Sequence[Point], said: Iterable[str] = ()) -> str:
    """The same of points; said: the fields that need not be told any more."""
    if not points:
        return "no rows"
    shared = _shared(fixed(points), said)
    return shared if len(points) == 1 else ": ".join(filter(None, [_over(points, varying(points)), shared]))


def fixed(points: Sequence[Point]) -> dict[str, Value]:
    """The fields that all points share, and their values."""
    told = {name: value for name, value in points[0].axes.items() if value is not None} if points else {}
    return {name: value for name, value in told.items() if len(values_of(points, name)) == 1}


def _shared(every: Mapping[str, Value], said: Iterable[str]) -> str:
    case = {name: value for name, value in every.items() if name not in said}
    sizes = " ".join(f"{name}={case[name]}" for name in ("N", "C", "H", "W", "K", "G") if name in case)
    parts = [f"trained on {printable(str(case['data_set']))}"] if "data_set" in case else []
    parts += [sizes] if sizes else []
    parts += [f"{name}={case[name]}" for name in ("stride", "dilation") if case.get(name, 1) != 1]
    parts += [f"reduction={case['reduction']}"] if every.get("scope") == Scope.LAYER and "reduction" in case else []
    parts += [f"stem {case['stem_kernel_size']}x{case['stem_kernel_size']}"] if "stem_kernel_size" in case else []
    parts += [f"padding {case['padding_mode']}"] if case.get("padding_mode", "zeros") != "zeros" else []
    stored = " ".join(str(case[name]) for name in ("dtype", "layout") if name in case)
    parts += [f"autocast to {stored}" if case.get("autocast") else stored] if stored else []
    parts += [plural(int(str(case["epochs"])), "epoch")] if "epochs" in case else []
    trained = every.get("scope") == TRAINING  # which says what is timed
    timed = [str(case["mode"])] if "mode" in case and not trained else []
    timed += [f"of the {case['scope']}"] if "scope" in case and not trained else []
    parts += [" ".join(timed)] if timed else []
    parts += [f"on {case['device']}"] if "device" in case else []
    if every.get("device") == "cpu" and isinstance(case.get("threads"), int):
        parts.append(plural(int(str(case["threads"])), "thread"))
    return ", ".join(parts)


def _over(points: Sequence[Point], axes: Sequence[str]) -> str:
    told = []
    for axis in axes:
        values = [axis_text(value) for value in values_of(points, axis)]
        many = f"{values[0]} to {values[-1]} ({len(values)} values)"
        told.append(f"{axis_name(axis, points)} {', '.join(values) if len(values) <= MANY else many}")
    return f"{len(points)} points over {'; '.join(told)}" if told else plural(len(points), "point")


def machine(results: ResultSet) -> str:
    """The machine, the versions and the peaks of the run; several machines one after the other."""
    if not results.machines:
        return machine_of(results.environment, _peaks(results, None))
    names = machine_names(results)
    return " | ".join(
        f"{printable(names[key])}: {machine_of(environment, _peaks(results, key))}"
        for key, environment in results.machines.items()
    )


def nodes_of(results: ResultSet) -> list[str]:
    """A line that says which nodes of a cluster measured, and on which of their devices; none where rows have none."""
    found: dict[str, dict[str, None]] = {}
    for row in results.results:
        nodes, devices = ((name or "").split(SEPARATOR) for name in (row.node, row.device))
        nodes, devices = (
            nodes * (len(devices) if len(nodes) == 1 else 1),
            devices * (len(nodes) if len(devices) == 1 else 1),
        )
        for node, device in zip(nodes, devices, strict=False):
            if node:
                found.setdefault(node, {}).update(dict.fromkeys([device] if device else []))
    told = [f"{node} with {spoken(sorted(own))}" if own else node for node, own in sorted(found.items())]
    return [printable(f"measured on {plural(len(told), 'node')}: {'; '.join(told)}")] if told else []


def machine_of(environment: Mapping[str, Any], peaks: Sequence[Mapping[str, float]] = ()) -> str:
    """One machine by its fingerprint, and its peaks in each run."""
    versions = environment.get("versions", {})
    cpu, gpu = environment.get("cpu") or {}, environment.get("gpu")
    parts = [f"{cpu.get('model')}, {cpu.get('usable')} cores, {cpu.get('capability')}"] if cpu else []
    parts += [str(gpu.get("name"))] if gpu else []
    parts += [f"{name} {versions[name]}" for name in ("torch", "triton" if gpu else "numba") if versions.get(name)]
    if peaks:
        units = (("matmul_flop_per_s", "GFLOP/s"), ("copy_bytes_per_s", "GB/s"))
        told = [f"{_range([p[name] / 1e9 for p in peaks])} {unit}" for name, unit in units]
        parts.append(f"peaks {', '.join(told)}")
    return printable("; ".join(parts))


def _peaks(results: ResultSet, key: str | None) -> list[Mapping[str, float]]:
    rows = [row for row in results.results if key is None or row.machine == key]
    found = {str(peaks): peaks for row in rows if (peaks := results.peaks_of(row))}
    return list(found.values()) or ([results.peaks] if results.peaks else [])


def _range(values: Sequence[float]) -> str:
    low, high = three_digits(min(values)), three_digits(max(values))
    return low if low == high else f"{low} to {high}"


def method(results: ResultSet, blocks: str = "rounds of interleaved blocks") -> str:
    """How the latencies were taken; blocks: what each of their values is of."""
    timed = [result.latency for result in results.results if result.latency]
    if not timed:
        return "nothing was timed"
    rounds = _counted([count for latency in timed for count in latency.processes or (len(latency.blocks),)])
    launches = [len(latency.processes) for latency in timed if latency.processes]
    if launches:
        rounds = f"{_counted(launches)} launch{'es' * (max(launches) > 1)} of {rounds}"
    stops, clocks, caches = (
        ", ".join(sorted({getattr(latency, name) for latency in timed})) for name in ("stop", "clock", "cache")
    )
    each = "each stopped on" if launches else "stopped on"
    text = f"{rounds} {blocks}, {clocks} clock, {caches} cache; {each} {stops}"
    return f"{text}; seed {results.settings['seed']}" if "seed" in results.settings else text


def _counted(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least}" if least == most else f"{least} to {most}"


def conclusion(results: ResultSet) -> str:
    """The answer: is involution cheaper than convolution here? A sentence for each class of points."""
    return " ".join(sentences(results))


def sentences(results: ResultSet) -> list[str]:
    """The answer, a sentence for each class of points that may be averaged."""
    points = points_of(results)
    if len(points) <= 1:
        return [_one_point(results), *_beside_attention(results)]
    apart = classes(points)
    named = class_names(apart)
    return [_many_points(here, "Here" if not named else f"With {_kind(here[0], named)},") for here in apart.values()]


def _kind(point: Point, named: Sequence[str]) -> str:
    return ", ".join(f"{name} {axis_text(point.axes[name])}" for name in named)


def _one_point(results: ResultSet) -> str:
    best = fastest_involution(results.results)
    if best is None or not isinstance(best.case, Case):
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
    baseline = results.baseline_of(best)
    if best.ratio and best.ratio.flop is not None and baseline:
        cost = f", at {three_digits(best.ratio.flop)}x the FLOP"
        cost += "" if best.ratio.memory is None else f" and {three_digits(best.ratio.memory)}x the peak memory"
        cost += f" of {baseline}"
    return f"Here involution ({best.backend}) is {' and '.join(compared)}{cost}."


def _beside_attention(results: ResultSet) -> Iterator[str]:
    """Involution against the fastest attention over the same window, where there is one."""
    best, other = fastest_involution(results.results), fastest(results.results, ATTENTION)
    ratio = best and other and paired_ratio(best, other)
    if best and other and ratio:
        involution = f"involution ({best.backend})"
        alone = isinstance(best.case, Case) and best.case.scope is Scope.AGGREGATE
        more = ", which is timed with its projections, involution with its weight given" if alone else ""
        yield f"Over the same window {involution} is {than(ratio)} the fastest attention ({name_of(other)}){more}."


def than(ratio: Interval) -> str:
    """``2.40x faster than``, or that the interval does not tell which is faster."""
    if ratio.low <= 1 <= ratio.high:
        return f"not distinguishable in speed ({three_digits(ratio.low)} to {three_digits(ratio.high)}x the time) from"
    few = "" if ratio.count >= FEWEST else f"(from {ratio.count} round{'s' * (ratio.count > 1)} or launches only) "
    if abs(ratio.median - 1) < SAME:
        return f"{few}as fast as"
    return f"{few}{faster_or_slower(ratio.median)} than"


def _many_points(points: Sequence[Point], where: str) -> str:
    best = [point.best for point in points]
    won = Counter(row.backend for row in best if row)
    if not won:
        return (
            f"{where} no involution was timed at any of {plural(len(points), 'point')}: there is nothing to conclude."
        )
    sizes = {point.axes["K"] for point in points}
    kinds = {"conv2d": f"nn.Conv2d {f'{k}x{k}' if (k := next(iter(sizes))) and len(sizes) == 1 else 'KxK'}"}
    kinds |= {"conv2d-3x3": "nn.Conv2d 3x3"} if sizes != {3} else {}
    told = [versus(against(points, subject), kind) for subject, kind in kinds.items() if subject in CONVOLUTIONS]
    fastest = spoken([f"{name} at {number}" for name, number in won.most_common()])
    who = f"{where} the fastest involution ({fastest if len(won) > 1 else next(iter(won))})"
    compared = [text for text in told if text]
    if not compared:
        return f"{who} was timed at {sum(won.values())} of {len(points)} points; no convolution was timed beside it."
    missing = len(points) - max(len(against(points, subject).ratios) for subject in kinds)
    rest = f"; {plural(missing, 'point')} without both" if missing else ""
    return f"{who} beats {', and '.join(compared)}{rest}."


def versus(told: Versus, kind: str) -> str:
    """At how many points involution beats a kind of convolution, and by how much; empty without a ratio."""
    if not told.ratios:
        return ""
    medians = sorted(ratio.median for ratio in told.ratios)
    mean = faster_or_slower(told.mean) if abs(told.mean - 1) >= SAME else "as fast"
    spread = f"geometric mean {mean}, from {faster_or_slower(medians[-1])} to {faster_or_slower(medians[0])}"
    few = sum(ratio.count < FEWEST for ratio in told.ratios)
    parts = [spread if len(medians) > 1 else mean]
    parts += [f"slower at {told.slower}"] if told.slower and len(medians) > 1 else []
    parts += [f"not distinguishable at {told.even}"] if told.even else []
    parts += [f"fewer than {FEWEST} rounds or launches at {few}"] if few else []
    return f"{kind} at {told.faster} of {plural(len(medians), 'point')} ({'; '.join(parts)})"
