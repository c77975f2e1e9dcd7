"""What tests of networks compared share: small settings, a clock of our own that does not wait, and rows by name."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from invbench.harness import blocks, machine, memory, timing
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, NetworkSubject, build
from invbench.harness.point import Point
from invbench.models.folding import fold_batch_norm
from invbench.results import Result
from invbench.results.quantities import Memory
from invbench.spec import NetworkCase

SMALL = NetworkCase(1, 48, 48, threads=1)
SHORT = Budget(seconds=0.5)
SETTINGS = NetworkSettings(("rednet26",), ("unfold",), budget=SHORT)
EAGER = ["rednet26 (unfold), eager", "rednet26 (free), eager", "resnet26, eager"]
DEPLOYED = [name.replace("eager", "folded and compiled") for name in EAGER]
PEAK = Memory(2**22, "vmhwm")
PEAKS = {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}


class FakeClock:
    """Time passes when a network is called."""

    way = None

    def __init__(self) -> None:
        self.time = 0.0
        self.samples = itertools.count()
        self.on_sample: Callable[[int], None] = lambda _: None

    def now(self) -> float:
        return self.time

    def sample(self, before: Callable[[], Any], timed: Callable[[Any], Any], calls: int) -> float:
        self.on_sample(next(self.samples))
        self.time += 0.1 * calls
        return 0.1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Real tensors, but neither waiting nor compiling."""
    fake = FakeClock()
    monkeypatch.setattr(timing, "clock_for", lambda *_: fake)
    monkeypatch.setattr(timing, "measure", functools.partial(blocks.measure, now=fake.now))
    monkeypatch.setattr(machine, "measure_peaks", lambda dtype, device: dict(PEAKS))
    monkeypatch.setattr(build, "deployed", lambda network: fold_batch_norm(network))
    monkeypatch.setattr(memory, "cpu_peaks", lambda jobs, workers: {job.subject: PEAK for job in jobs})
    return fake


def label(row: Result) -> str:
    return NetworkSubject(row.subject, row.backend, row.regime).label


def by_label(found: Point) -> Mapping[str, Result]:
    return {label(row): row for row in found.results}
