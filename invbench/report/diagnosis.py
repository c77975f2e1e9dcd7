"""The diagnosis of ``invbench doctor`` as one screen of text, or as JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from invbench.diagnosis import Diagnosis, Finding, Launch, Noise, Observed, State, SubjectNoise
from invbench.diagnosis.advice import percent
from invbench.report.text import printable, seconds, size, three_digits

NOT_TOLD = "not told"
STYLES = {State.FIT: "green", State.CAUTION: "yellow", State.UNFIT: "bold red"}


def render_diagnosis(diagnosis: Diagnosis, as_json: bool, width: int | None = None) -> str:
    """The verdict, the facts, the noise, and what to do.

    width: columns; by default the terminal's. Colour only where standard output is a terminal and NO_COLOR is unset.
    """
    if as_json:
        return json.dumps(diagnosis.to_dict(), indent=1, allow_nan=False)
    width = width or shutil.get_terminal_size((100, 24)).columns
    colour = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=colour, no_color=not colour, highlight=False)
    console.print(Text(verdict(diagnosis), style="bold"))
    console.print(_facts(diagnosis))
    if diagnosis.noise.subjects:
        console.print(Text(f"\nidentical code against itself, {diagnosis.noise.point}"), end="")
        console.print(_noise(diagnosis.noise))
    console.print(_findings(diagnosis.findings))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def verdict(diagnosis: Diagnosis) -> str:
    """The answer in one line."""
    effect = diagnosis.noise.smallest_effect
    if effect is None:
        return "not fit to measure: the noise could not be measured"
    if diagnosis.is_fit:
        return f"fit to measure: differences of {percent(effect)} and more can be seen here"
    worst = next(finding for finding in diagnosis.findings if finding.state is State.UNFIT)
    kind = "too noisy to measure" if worst.topic == "noise" else "not fit to measure"
    return f"{kind}: {worst.seen}"


def facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    """A topic and what is known about it, in the order of the page."""
    cpu, observed = diagnosis.environment["cpu"], diagnosis.observed
    versions = diagnosis.environment.get("versions", {})
    named = [f"{name} {versions[name]}" for name in ("torch", "numba", "triton") if versions.get(name)]
    yield "machine", "; ".join([f"{cpu['model']}, {cpu['capability']}", *named])
    yield "cores", _cores(cpu)
    yield "threads", _threads(diagnosis.environment["threads"])
    yield "clocks", f"{_clocks(observed.clock_mhz)}, governor {_or_not_told(cpu['governor'])}"
    yield (
        "load",
        (
            f"{cpu['load']:g} before; meanwhile stolen {_share(observed.steal)}, waited for a core "
            f"{_share(observed.cpu_pressure)}, stopped by the quota {_share(observed.throttled)}"
        ),
    )
    yield "memory", _memory(observed)
    if diagnosis.environment.get("gpu"):
        yield from _gpu(diagnosis.environment["gpu"], observed.gpu or {})
    for floor in diagnosis.floors:
        value = floor.reason or NOT_TOLD
        if floor.seconds is not None and floor.shortest is not None:
            value = f"{_time(floor.seconds)}, so trust samples from {_time(floor.shortest)} on"
        yield "floor", f"{floor.timer} clock, {floor.cache}, {floor.call}: {value}"
    yield "peaks", _peaks(diagnosis)


def _cores(cpu: Mapping[str, Any]) -> str:
    siblings = (
        "SMT siblings" if cpu["cores"] and cpu["logical"] and cpu["cores"] < cpu["logical"] else "no SMT siblings"
    )
    shown = siblings if cpu["cores"] else f"SMT {NOT_TOLD}"
    quota = "no quota" if cpu["quota"] is None else f"quota {cpu['quota']:g}"
    return f"{cpu['usable']} usable of {_or_not_told(cpu['logical'])}, {shown}, {quota}"


def _threads(threads: Mapping[str, Any]) -> str:
    numba = "no Numba" if threads["numba"] is None else f"Numba {threads['numba']}"
    layer = threads["numba_layer"] or f"layer {NOT_TOLD}"
    variables = ", ".join(f"{name}={value}" for name, value in threads["variables"].items())
    return printable(f"torch {threads['torch']}, {numba} ({layer})" + (f"; {variables}" if variables else ""))


def _clocks(clock: tuple[float, float] | None) -> str:
    if clock is None:
        return f"MHz {NOT_TOLD}"
    low, high = (f"{value:.0f}" for value in clock)
    return f"{low} MHz throughout" if low == high else f"{low} to {high} MHz"


def _memory(observed: Observed) -> str:
    free, limit, used = observed.memory_free_bytes, observed.memory_limit_bytes, observed.swap_used_bytes
    parts = [f"{NOT_TOLD if free is None else size(free)} free"]
    parts.append("no limit of a container" if limit is None else f"limit of the container {size(limit)}")
    parts.append(f"swap {NOT_TOLD}" if used is None else f"{size(used)} of swap used" if used else "no swap used")
    return ", ".join([*parts, f"waited for memory {_share(observed.memory_pressure)}"])


def _gpu(gpu: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    driver, others = _or_not_told(gpu["driver"]), _or_not_told(gpu["other_processes"])
    yield "gpu", f"{gpu['name']}, driver {driver}, other processes {others}"
    limits = (
        f"{_unit(seen, 'power_w', 'W')} of {_unit(seen, 'power_limit_w', 'W')}, {_unit(seen, 'temperature_c', 'C')}"
    )
    yield "gpu", f"{_clocks(seen.get('clock_mhz'))} of {_unit(seen, 'clock_most_mhz', 'MHz')}, {limits}"
    names = {"persistence": "persistence", "ecc": "ECC", "mig": "MIG"}
    switches = [f"{shown} {_switch(seen.get(name))}" for name, shown in names.items()]
    tf32 = f"TF32 matmul {_switch(gpu['tf32_matmul'])}, cuDNN {_switch(gpu['tf32_cudnn'])}"
    yield "gpu", ", ".join([*switches, tf32])
    by, held = seen.get("throttled_by"), seen.get("held_down_s") or {}
    slowed = NOT_TOLD if by is None else ", ".join(by) or "never seen"
    times = [f"{name} {NOT_TOLD if value is None else f'{value:.2g} s'}" for name, value in held.items()]
    yield "gpu", f"throttled: {slowed}; clocks held down: {', '.join(times) or NOT_TOLD}"


def _peaks(diagnosis: Diagnosis) -> str:
    parts = []
    for peak in diagnosis.peaks:
        rate = peak.matmul_flop_per_s
        known = f"{three_digits(rate / 1e9)} GFLOP/s" if rate else f"none ({printable(peak.reason or NOT_TOLD)})"
        parts.append(f"{peak.dtype} {known}")
    copies = [peak.copy_bytes_per_s for peak in diagnosis.peaks if peak.copy_bytes_per_s]
    return ", ".join([*parts, f"copy {f'{three_digits(max(copies) / 1e9)} GB/s' if copies else NOT_TOLD}"])


def _facts(diagnosis: Diagnosis) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    last = ""
    for topic, value in facts(diagnosis):
        table.add_row(topic if topic != last else "", Text(printable(value)))
        last = topic
    return table


def _noise(noise: Noise) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for subject in noise.subjects:
        table.add_column(subject.label, justify="right")
    for heading, cell in NOISE_ROWS.items():
        table.add_row(heading, *(cell(subject) for subject in noise.subjects))
    return table


NOISE_ROWS: dict[str, Callable[[SubjectNoise], str]] = {
    "latency": lambda s: seconds(s.worst.median),
    "ratio to itself [95 %]": lambda s: _interval(s.worst),
    "smallest visible difference": lambda s: percent(s.smallest_effect),
    "block to block, at worst": lambda s: f"{percent(s.block_mad)}, {percent(s.block_worst)}",
    "drift within a launch": lambda s: f"{100 * s.drift:+.1f} %",
    "launches, how far apart": lambda s: f"{len(s.launches)}, {_share(s.launch_spread)}",
}


def _interval(launch: Launch) -> str:
    ratio = launch.ratio
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _findings(findings: tuple[Finding, ...]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for finding in findings:
        if finding.state is not State.FIT:  # what is fit stands above
            style = STYLES[finding.state]
            table.add_row(Text(str(finding.state), style=style), finding.topic, Text(printable(finding.line)))
    return table


def _time(value: float) -> str:
    return f"{value * 1e9:.0f} ns" if value < 1e-6 else seconds(value)


def _share(value: float | None) -> str:
    return NOT_TOLD if value is None else percent(value) if value else "0 %"


def _or_not_told(value: object) -> str:
    return NOT_TOLD if value is None else str(value)


def _unit(seen: Mapping[str, Any], name: str, unit: str) -> str:
    return NOT_TOLD if seen.get(name) is None else f"{seen[name]:.0f} {unit}"


def _switch(value: bool | None) -> str:
    return NOT_TOLD if value is None else "on" if value else "off"
