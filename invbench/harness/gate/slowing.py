"""A slowdown on purpose, to prove that a gate finds it: every call waits a little longer, inside the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from invbench.harness.clock import Before, Clock, Timed, nothing
from invbench.spec import InvbenchError

CYCLES = 10**7  # of the GPU's clock, by which its rate is measured


class SlowedClock:
    """Another clock, whose calls wait after they have done their work."""

    def __init__(self, clock: Clock, wait: Callable[[], object]) -> None:
        self._clock, self._wait = clock, wait

    @property
    def way(self) -> str | None:
        """That of the other clock."""
        return self._clock.way

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call, the waiting included."""

        def late(state: object) -> None:
            timed(state)
            self._wait()

        return self._clock.sample(before, late, calls, flush)


def slowed(clock: Clock, device: str, seconds: float) -> Clock:
    """The clock with so many seconds more for each call; the host waits, or the GPU where it computes.

    Raises InvbenchError for a device that cannot be made to wait.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return SlowedClock(clock, lambda: _spin(seconds))
    if kind == "cuda":
        cycles = max(1, round(seconds * _cycles_per_second(device)))
        return SlowedClock(clock, lambda: torch.cuda._sleep(cycles))  # noqa: SLF001 -- as the device clock waits
    raise InvbenchError(f"--self-test slows down the CPU or a CUDA device: got {device}; use --device cpu")


def _spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def _cycles_per_second(device: str) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(CYCLES)  # noqa: SLF001
        start.record()
        torch.cuda._sleep(CYCLES)  # noqa: SLF001
        end.record()
        end.synchronize()
        return CYCLES / (float(start.elapsed_time(end)) * 1e-3)
