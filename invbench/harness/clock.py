"""Clocks: how long a few calls take, on the host, by the GPU's own events, or on the GPU alone; caches hot or cold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# Larger than any last-level cache of a processor, so that writing it evicts everything else.
FLUSH_BYTES = 256 * 2**20

Before = Callable[[], Any]
Timed = Callable[[Any], object]


def nothing() -> None:
    """No flush, no preparation."""


class Clock(Protocol):
    """Times ``calls`` calls and returns seconds per call."""

    @property
    def way(self) -> str | None:
        """How the device clock keeps launches out of the window: "graph" or "queue"; None for the eager clocks."""

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call of ``timed(state)``; ``state = before()`` and then ``flush()`` are over when it opens."""


class HostClock:
    """The host's monotonic clock; a device that runs behind the host is waited for on both sides."""

    way: str | None = None

    def __init__(self, synchronize: Callable[[], None] = nothing) -> None:
        self._synchronize = synchronize

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call."""
        state = before()
        flush()
        self._synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            timed(state)
        self._synchronize()
        return (time.perf_counter() - started) / calls


class CudaClock:
    """CUDA events around the calls on the current stream, synchronised before and after."""

    way: str | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call, between two events: the launches of eager PyTorch included."""
        state = before()
        with torch.cuda.device(self._device):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush()
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                timed(state)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) * 1e-3 / calls


class ColdClock:
    """Another clock with the caches flushed before each call."""

    def __init__(self, clock: Clock, flush: Callable[[], object]) -> None:
        self._clock, self._flush = clock, flush

    @property
    def way(self) -> str | None:
        """That of the other clock."""
        return self._clock.way

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call, the mean of ``calls`` calls that each begin with cold caches in a window of their own."""

        def flush_all() -> None:
            flush()
            self._flush()

        return sum(self._clock.sample(before, timed, 1, flush_all) for _ in range(calls)) / calls


class Flush:
    """Evicts what the device's caches hold, by writing a buffer that is larger than they are."""

    def __init__(self, device: torch.device) -> None:
        self._buffer: Tensor = torch.empty(flush_bytes(device) // 4, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        """Write it all; on a GPU the write is queued."""
        self._buffer.zero_()


def flush_bytes(device: torch.device) -> int:
    """Twice the L2 of a GPU that tells it, so that no replacement policy keeps a part; otherwise FLUSH_BYTES."""
    return 2 * l2_bytes(device) or FLUSH_BYTES


def l2_bytes(device: torch.device) -> int:
    """The size of a GPU's L2; 0 where it is not told."""
    if device.type != "cuda":
        return 0
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))


def eager_clock(device: torch.device) -> Clock:
    """The clock of a device that includes launches, hot."""
    if device.type == "cuda":
        return CudaClock(device)
    return HostClock() if device.type == "cpu" else HostClock(lambda: torch.accelerator.synchronize(device))
