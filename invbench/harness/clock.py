"""Clocks: how long a few calls take, on the host or by the GPU's own events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# Larger than any last-level cache that matters, so that writing it evicts everything else.
FLUSH_BYTES = 256 * 2**20

Before = Callable[[], Any]
Timed = Callable[[Any], object]


class Clock(Protocol):
    """Times ``calls`` calls and returns seconds per call."""

    def sample(self, before: Before, timed: Timed, calls: int) -> float:
        """Seconds per call of ``timed(state)``, launch included; ``state = before()`` stays outside the clock."""


class HostClock:
    """The host's monotonic clock; a device that runs behind the host is waited for on both sides."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None) -> None:
        self._synchronize = synchronize

    def sample(self, before: Before, timed: Timed, calls: int) -> float:
        """Seconds per call."""
        state = before()
        self._synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            timed(state)
        self._synchronize()
        return (time.perf_counter() - started) / calls


class CudaClock:
    """CUDA events around the calls on the current stream, synchronised before and after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def sample(self, before: Before, timed: Timed, calls: int) -> float:
        """Seconds per call, between two events: the launches of eager PyTorch included."""
        state = before()
        with torch.cuda.device(self._device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                timed(state)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3 / calls


class ColdClock:
    """Another clock with the caches flushed before each call; the flush is finished before the window opens."""

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self._clock = clock
        self._buffer: Tensor = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def sample(self, before: Before, timed: Timed, calls: int) -> float:
        """Seconds per call, the mean of ``calls`` calls that each begin with cold caches."""

        def flushed() -> Any:
            state = before()
            self._buffer.zero_()
            return state

        return sum(self._clock.sample(flushed, timed, 1) for _ in range(calls)) / calls


def clock_for(device: torch.device, cache: str = "hot") -> Clock:
    """The eager clock of a device, hot or cold."""
    clock: Clock
    if device.type == "cuda":
        clock = CudaClock(device)
    elif device.type == "cpu":
        clock = HostClock()
    else:
        clock = HostClock(lambda: torch.accelerator.synchronize(device))
    return ColdClock(clock, device) if cache == "cold" else clock
