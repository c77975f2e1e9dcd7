"""Made-up documents of many points, for the tests of telling."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from test_results import CASE, document, row

from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Memory
from invbench.spec import Case
from invbench.verdict import with_ratios

PEAKS = {"matmul_flop_per_s": 1.5e11, "copy_bytes_per_s": 3e10}
MACHINE = {
    "versions": {"torch": "2.13.0", "numba": "0.68.1"},
    "cpu": {"model": "A CPU", "usable": 2, "capability": "AVX512", "cores": 2},
    "gpu": None,
}
OTHER = {**MACHINE, "cpu": {**MACHINE["cpu"], "model": "Another CPU", "usable": 8}}
BACKENDS = {"numba": 1.0, "compiled": 1.3, "naive": 4.0, "unfold": 30.0}
LOAD = "load average 3.5 on 2 cores: stop other programs, or trust only the ratios"


def at(**axes: Any) -> Case:
    """A case that differs from the usual one by some of its flat fields; W follows H."""
    flat = {**CASE.to_dict(), **axes}
    return Case.from_dict({**flat, "W": axes.get("W", flat["H"])})


def rounds(median: float, spread: float = 0.01) -> list[float]:
    """Seven rounds around a median."""
    return [median * (1 + spread * step) for step in (-2, -1, -1, 0, 1, 1, 2)]


def rows_at(case: Case, **fields: Any) -> list[Result]:
    """Nine rows whose times grow as the work does: involution wins against conv2d, and 3x3 where images are small."""
    K, pixels = case.layer.K, case.positions * case.layer.C
    counts = {"flop": pixels * (4 * K * K + 1000), "bytes_min": 12 * pixels, "macs": pixels * 500, "params": 67_000}
    fast = 2e-10 * pixels * K**1.5 + 2e-8 * pixels**0.9
    rows = [
        row("involution", "triton", status=Status.UNAVAILABLE, reason="it runs on GPUs: got cpu", case=case, **counts)
    ]
    for name, factor in BACKENDS.items():
        memory = Memory(int(pixels * 4 * (K * K if name == "unfold" else 2)), "vmhwm")
        warnings = (LOAD,) if name == "naive" else ()
        rows.append(
            row("involution", name, *rounds(fast * factor), case=case, memory=memory, warnings=warnings, **counts)
        )
    convolutions = {"conv2d": 1.2e-9 * K * K, "conv2d-3x3": 4.2e-9, "depthwise": 4e-11 * K, "separable": 1e-9}
    for name, cost in convolutions.items():
        own = {**counts, "flop": int(counts["flop"] * cost * 1e9), "chosen_layout": "contiguous", "case": case}
        rows.append(row(name, "torch", *rounds(pixels * cost), memory=Memory(pixels * 4, "vmhwm"), **{**own, **fields}))
    return rows


def sweep(axes: Mapping[str, Sequence[Any]], **fields: Any) -> ResultSet:
    """Every combination of some axes."""
    found: list[Result] = []
    for values in itertools.product(*axes.values()):
        rows = rows_at(at(**dict(zip(axes, values, strict=True))))
        shared = [replace(r, roofline_fraction=r.share_of_roofline(PEAKS)) for r in rows]
        found += with_ratios(shared, "conv2d")
    return document(*found, **{"peaks": PEAKS, "environment": MACHINE, "command": "invbench sweep", **fields})


def failed(results: ResultSet, status: Status = Status.OOM, reason: str = "needs about 9.1 GiB") -> ResultSet:
    """The same with nothing measured."""
    gone = {"latency": None, "memory": None, "ratio": None, "error": None, "roofline_fraction": None, "warnings": ()}
    rows = tuple(replace(r, status=status, reason=reason, first_call=None, **gone) for r in results.results)
    return replace(results, results=rows)
