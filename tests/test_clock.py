"""Clocks: what stands inside the window and what outside, with a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from invbench.harness import clock
from invbench.harness.clock import ColdClock, CudaClock, Flush, HostClock
from invbench.harness.device_clock import DeviceClock, clock_for

CPU = torch.device("cpu")


class Events:
    """A log of what happened, and a time that advances by what each happening costs."""

    def __init__(self) -> None:
        self.time = 0.0
        self.log: list[str] = []

    def happens(self, what: str, cost: float) -> None:
        self.log.append(what)
        self.time += cost


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    happened = Events()

    def perf_counter() -> float:
        happened.log.append("clock")
        return happened.time

    monkeypatch.setattr(clock.time, "perf_counter", perf_counter)
    return happened


def before(events: Events) -> str:
    events.happens("before", 100.0)
    return "state"


def timed(events: Events, state: Any) -> None:
    events.happens(f"timed {state}", 2.0)


def test_host_clock_leaves_the_preparation_outside(events: Events) -> None:
    seconds = HostClock().sample(lambda: before(events), lambda state: timed(events, state), calls=1)
    assert seconds == 2.0
    assert events.log == ["before", "clock", "timed state", "clock"]


def test_host_clock_averages_over_calls(events: Events) -> None:
    seconds = HostClock().sample(lambda: before(events), lambda state: timed(events, state), calls=5)
    assert seconds == 2.0
    assert events.log.count("timed state") == 5
    assert events.log.count("before") == 1


def test_host_clock_waits_for_the_device_on_both_sides(events: Events) -> None:
    # What is still running from before must not count, and what was launched must.
    waiting = HostClock(lambda: events.happens("wait", 0.5))
    seconds = waiting.sample(lambda: before(events), lambda state: timed(events, state), calls=2)
    assert events.log == ["before", "wait", "clock", "timed state", "timed state", "wait", "clock"]
    assert seconds == (2 * 2.0 + 0.5) / 2


def test_cold_clock_flushes_before_every_call_and_outside_the_window(events: Events) -> None:
    cold = ColdClock(HostClock(), flush=lambda: events.happens("flush", 50.0))
    seconds = cold.sample(lambda: before(events), lambda state: timed(events, state), calls=3)
    assert seconds == 2.0
    assert events.log == ["before", "flush", "clock", "timed state", "clock"] * 3


def test_the_flush_is_larger_than_a_last_level_cache() -> None:
    # 32 MiB a core complex on desktops, 60 to 105 MiB a socket on servers.
    assert clock.FLUSH_BYTES >= 2 * 105 * 2**20
    assert Flush(CPU)._buffer.nbytes == clock.FLUSH_BYTES


@pytest.mark.parametrize(
    ("told", "expected"),
    [({"L2_cache_size": 50 * 2**20}, 100 * 2**20), ({}, clock.FLUSH_BYTES), ({"L2_cache_size": 0}, clock.FLUSH_BYTES)],
)
def test_the_flush_of_a_gpu_is_twice_its_l2(
    told: dict[str, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**told))
    assert clock.flush_bytes(torch.device("cuda:1")) == expected


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("cpu", "eager", HostClock),
        ("cuda", "eager", CudaClock),
        ("cuda:1", "eager", CudaClock),
        ("mps", "eager", HostClock),
        ("xpu", "eager", HostClock),
        ("cuda:1", "device", DeviceClock),
    ],
)
def test_clock_for(name: str, kind: str, expected: type) -> None:
    hot = clock_for(torch.device(name), kind)
    assert isinstance(hot, expected)
    cold = clock_for(torch.device(name), kind, lambda: None)
    assert isinstance(cold, ColdClock)
    assert isinstance(cold._clock, expected)
    assert (hot.way, cold.way) == (None, None)


def test_other_accelerators_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    seconds = clock_for(torch.device("mps")).sample(lambda: None, lambda _: None, 1)
    assert waited == [torch.device("mps")] * 2
    assert seconds >= 0


def test_cuda_clock_reads_events_between_synchronisations(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("event done")

        def elapsed_time(self, end: Event) -> float:
            return 12.0  # milliseconds

    class Device:
        def __init__(self, device: torch.device) -> None:
            log.append(f"on {device}")

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    seconds = CudaClock(torch.device("cuda:1")).sample(
        lambda: log.append("before"), lambda _: log.append("timed"), 3, lambda: log.append("flush")
    )
    assert seconds == pytest.approx(4e-3)
    assert log == ["before", "on cuda:1", "flush", "wait", "record", "timed", "timed", "timed", "record", "event done"]
