"""The floors of the clocks: what each reads for next to nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from invbench.diagnosis import Floor
from invbench.harness.clock import Flush, HostClock
from invbench.harness.device_clock import clock_for
from invbench.harness.settings import describe_failure

SAMPLES = {"hot": 1001, "cold": 15}  # a cold one flushes the caches before
TIMERS = {"eager": "cuda events", "device": "device"}  # on a CUDA device; elsewhere it is the host's


def floor_in_use(device: torch.device, clock: str, cache: str, flush: Callable[[], object] | None) -> Floor:
    """The floor of the clock that a run uses.

    flush: of the run, where the cache is cold. The device clock is given one element, since a CUDA graph holds at
    least one kernel; the others are given nothing.
    """
    timer = TIMERS[clock] if device.type == "cuda" else "host"
    return _floor(timer, cache, "one element" if timer == "device" else "nothing", device, flush)


def measure_floors(device: torch.device) -> tuple[Floor, ...]:
    """What each clock of the device reads, hot and cold: for nothing, and for one element."""
    has_events = device.type == "cuda"
    eager = "cuda events" if has_events else "host"
    cases = [(eager, "hot", "nothing"), (eager, "cold", "nothing"), (eager, "hot", "one element")]
    if has_events:
        cases += [("device", "hot", "one element"), ("device", "cold", "one element"), ("host", "hot", "nothing")]
    return tuple(_floor(timer, cache, call, device) for timer, cache, call in cases)


def _floor(timer: str, cache: str, call: str, device: torch.device, flush: Callable[[], object] | None = None) -> Floor:
    try:
        if cache == "cold":
            flush = flush or Flush(device)
        clock = clock_for(device, "device" if timer == "device" else "eager", flush)
        if timer == "host" and device.type == "cuda":
            clock = HostClock(lambda: torch.cuda.synchronize(device))
        timed = _one_element(device) if call == "one element" else _nothing
        values = [clock.sample(lambda: None, timed, 1) for _ in range(SAMPLES[cache])]
    except Exception as error:  # noqa: BLE001 -- told as this floor's reason; the others are measured
        return Floor(timer, cache, call, None, describe_failure(error))
    return Floor(timer, cache, call, statistics.median(values))


def _nothing(_state: Any) -> None:
    """What a clock should read 0 for."""


def _one_element(device: torch.device) -> Callable[[Any], object]:
    """The least that an operator costs: its dispatch and, on a GPU, its launch."""
    element = torch.zeros(1, device=device)
    return lambda _state: element.add_(1)
