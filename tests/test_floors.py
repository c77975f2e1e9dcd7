"""The floors of the clocks: which one belongs to a run, and what each is given."""

from __future__ import annotations

import pytest
import torch

from invbench.diagnosis import Floor
from invbench.harness import clock as clocks
from invbench.harness import floors

CPU = torch.device("cpu")


def test_the_floor_of_a_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    hot = floors.floor_in_use(CPU, "eager", "hot", None)
    cold = floors.floor_in_use(CPU, "eager", "cold", lambda: flushes.append(1))
    assert (hot.timer, hot.cache, hot.call) == ("host", "hot", "nothing")
    assert (cold.timer, cold.cache, cold.call) == ("host", "cold", "nothing")
    assert len(flushes) == floors.SAMPLES["cold"]
    for floor in (hot, cold):
        assert floor.seconds is not None
        assert 0 < floor.seconds < 0.01


@pytest.mark.parametrize(
    ("clock", "timer", "call"), [("eager", "cuda events", "nothing"), ("device", "device", "one element")]
)
def test_the_floor_of_a_run_on_a_gpu(clock: str, timer: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def sample(self, before: object, timed: object, calls: int) -> float:
            return 2e-6

    kinds: list[str] = []
    monkeypatch.setattr(floors, "clock_for", lambda device, kind, flush: kinds.append(kind) or Fake())
    monkeypatch.setattr(floors, "_one_element", lambda device: None)
    assert floors.floor_in_use(torch.device("cuda"), clock, "hot", None) == Floor(timer, "hot", call, 2e-6)
    assert kinds == [clock]
    found = floors.measure_floors(torch.device("cuda"))
    flush_needs_a_gpu = [floor for floor in found if floor.cache == "cold"]
    assert {floor.timer for floor in found} == {"cuda events", "device", "host"}
    assert len(flush_needs_a_gpu) == 2


def test_a_floor_that_cannot_be_measured_is_null_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "FLUSH_BYTES", 2**60)
    floor = floors.floor_in_use(CPU, "eager", "cold", None)
    assert (floor.seconds, floor.shortest) == (None, None)
    assert floor.reason


@pytest.mark.gpu
def test_floors_of_a_real_gpu() -> None:
    for floor in floors.measure_floors(torch.device("cuda")):
        assert floor.reason is None, floor
        assert 0 < floor.seconds < 1e-3
