"""Made-up documents of several classes of machines, as a sweep over a cluster makes them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sweeps import PEAKS, at, failed, rounds
from test_results import document, row

from invbench.results import Result, ResultSet, machine_class
from invbench.spec import Case
from invbench.verdict import with_ratios

HOST = {"model": "A host CPU", "usable": 16, "capability": "AVX512", "cores": 16}


def gpu(name: str, torch: str = "2.13.0+cu130") -> dict[str, Any]:
    """The fingerprint of a node with a GPU."""
    found = {"name": name, "capability": [9, 0], "power_limit_w": 700}
    return {"versions": {"torch": torch, "triton": "3.7.1"}, "cpu": HOST, "gpu": found}


H200, A100 = gpu("NVIDIA H200"), gpu("NVIDIA A100-SXM4-80GB", "2.12.1+cu126")
EPYC = {
    "versions": {"torch": "2.13.0+cpu", "numba": "0.68.1"}, "gpu": None,
    "cpu": {"model": "AMD EPYC 9654 96-Core Processor", "usable": 64, "capability": "AVX512", "cores": 64},
}  # fmt: skip
MACHINES = {"H200": H200, "A100": A100, "EPYC": EPYC}
KEYS = {name: machine_class(found) for name, found in MACHINES.items()}


def measured(name: str, case: Case, seconds: float, ratio: float, **fields: Any) -> list[Result]:
    """One point on a machine: the fastest involution takes ``seconds``, ``ratio`` times as long as conv2d."""
    environment = MACHINES[name]
    own = {"case": case, "machine": KEYS[name], "peaks": PEAKS, "baseline": "conv2d", **fields}
    best, other = ("triton", "compiled") if environment["gpu"] else ("numba", "compiled")
    rows = [
        row("involution", best, *rounds(seconds), **own), row("involution", other, *rounds(3 * seconds), **own),
        row("conv2d", "torch", *rounds(seconds / ratio), chosen_layout="channels_last", **own),
    ]  # fmt: skip
    return list(with_ratios(rows, "conv2d"))


def case_on(name: str, **axes: Any) -> Case:
    """The case of a point on a machine: the device and the threads are its own."""
    has_gpu = MACHINES[name]["gpu"] is not None
    return at(device="cuda" if has_gpu else "cpu", threads=16 if has_gpu else 64, **axes)


def cluster(
    ratios: Mapping[str, Mapping[int, float]], nodes: Mapping[str, Sequence[str]] | None = None, **axes: Sequence[Any]
) -> ResultSet:
    """A sweep over a cluster: for each machine its points by N, and the ratio to conv2d at each; axes: more of them.

    nodes: of each machine, which measure its points in turns, each on two devices.
    """
    rows: list[Result] = []
    for name, points in ratios.items():
        turns = itertools.cycle(itertools.product((nodes or {}).get(name, [None]), ("cuda:0", "cuda:1")))
        for (N, ratio), values in itertools.product(points.items(), itertools.product(*axes.values())):
            (node, device), case = next(turns), case_on(name, N=N, **dict(zip(axes, values, strict=True)))
            where = {"node": node, "device": device if node and case.device == "cuda" else None}
            rows += measured(name, case, 1e-3 * N / (1 + len(points)), ratio, **where)
    return of_rows(rows)


def of_rows(rows: Sequence[Result]) -> ResultSet:
    """The document of a journal with these rows."""
    used = {KEYS[name]: found for name, found in MACHINES.items() if KEYS[name] in {row.machine for row in rows}}
    several = {"machines": used} if len(used) > 1 else {}
    return document(*rows, environment=next(iter(used.values())), command="invbench sweep", **several)


def failed_at(results: ResultSet, name: str, *images: int) -> ResultSet:
    """The same, with the points of so many images out of memory on a machine."""
    gone = {id(r) for r in results.results if r.machine == KEYS[name] and r.case.N in images}
    bad = failed(results).results
    return replace(results, results=tuple(b if id(r) in gone else r for r, b in zip(results.results, bad, strict=True)))


NODES = {"H200": ["gpu-1 (3f2a)", "gpu-2 (77c0)"], "A100": ["gpu-7 (b001)"], "EPYC": ["cpu-1 (0d0d)"]}
# Involution wins on the H200 and loses on the A100, by as much: over both, a mean would be 1.
TWO = cluster({"H200": {1: 0.5, 2: 0.25}, "A100": {1: 2.0, 2: 4.0}}, NODES)
# The A100 ran out of memory with 8 images, and the CPU was given a part of the points only.
THREE = failed_at(
    cluster(
        {"H200": {1: 0.5, 2: 0.4, 4: 0.3, 8: 0.2}, "A100": {1: 1.5, 2: 1.4, 4: 1.2, 8: 1.1}, "EPYC": {1: 0.1, 4: 0.05}},
        NODES, K=[3, 7],
    ),
    "A100", 8,
)  # fmt: skip
TYPES = cluster(
    {"H200": {1: 0.5, 2: 0.4}, "EPYC": {1: 0.1, 2: 0.2}}, NODES, K=[3, 7], dtype=["float32", "bfloat16"],
)  # fmt: skip
