"""The device clock: the time on the GPU alone, launches excluded (MEASURING.md, rule 8).

The GPU spins while the host queues an event, the calls and another event. If the first event is still ahead of the GPU
when all is queued, then no launch was waited for between the two; otherwise the sample is void, and the spin becomes
longer. What is queued are replays of a CUDA graph of one call ("graph"), or, where the call cannot be captured, the
launches of PyTorch themselves ("queue").

Mode ``backward`` has a graph for what happens before, the forward pass, and one for the call, which share their memory:
each replay of the second follows one of the first, so that saved tensors are always fresh and need not be retained.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from invbench.harness.clock import Before, Clock, ColdClock, Timed, eager_clock, nothing
from invbench.spec import InvbenchError

GRAPH, QUEUE = "graph", "queue"
WARM_UP_CALLS = 3  # on the stream of the capture, where libraries set up workspaces of their own
# Cycles of the GPU's clock: about 50 us and half a second.
SHORTEST_SPIN, LONGEST_SPIN = 10**5, 10**9


class DeviceClock:
    """Times one call, that of its first sample, which it captures then; the graph is released with the clock.

    way: "graph" or "queue", known after the first sample.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._replays: tuple[Before, Timed] | None = None
        self._spin = SHORTEST_SPIN
        self.way: str | None = None

    def sample(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object] = nothing) -> float:
        """Seconds per call on the GPU.

        Raises InvbenchError where a call waits for the GPU, or the host cannot queue faster than the GPU works.
        """
        with torch.cuda.device(self._device):
            if self.way is None:
                self._prepare(before, timed)
            return self._queued(*(self._replays or (before, timed)), calls, flush)

    def _prepare(self, before: Before, timed: Timed) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # A capture that fails does not put the current stream back; this does.
        with torch.cuda.stream(stream):
            # Of what fails in a capture, torch's allocator may not recover: what is known to fail is not tried.
            needs_state = _warmed_up(before, timed)
            try:
                self._replays = _captured(before if needs_state else None, timed, stream)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self._replays = None
        torch.cuda.synchronize()  # raises if it was not the capture that failed, but the GPU
        self.way = QUEUE if self._replays is None else GRAPH

    def _queued(self, before: Before, timed: Timed, calls: int, flush: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        while self._spin <= LONGEST_SPIN:
            state = before()
            torch.cuda._sleep(self._spin)  # noqa: SLF001 -- nothing else makes a GPU wait without touching its caches
            flush()
            start.record()
            for _ in range(calls):
                timed(state)
            end.record()
            is_ahead = not start.query()
            end.synchronize()
            if is_ahead:
                # One late launch must not make all later samples wait.
                self._spin = max(SHORTEST_SPIN, self._spin - self._spin // 16)
                return float(start.elapsed_time(end)) * 1e-3 / calls
            self._spin *= 2
        raise InvbenchError(
            "--clock device: the GPU began before the host had queued all calls, however long it was kept busy; "
            "use --clock eager, and see that CUDA_LAUNCH_BLOCKING is not set"
        )


def clock_for(device: torch.device, kind: str = "eager", flush: Callable[[], object] | None = None) -> Clock:
    """A clock of a device, eager or device; cold where it is given what flushes the caches."""
    clock = DeviceClock(device) if kind == "device" else eager_clock(device)
    return clock if flush is None else ColdClock(clock, flush)


def _warmed_up(before: Before, timed: Timed) -> bool:
    """A few calls on the current stream; whether something has to happen before each of them."""
    with _waiting_refused():
        for _ in range(WARM_UP_CALLS):
            state = before()
            timed(state)
    return state is not None


def _captured(before: Before | None, timed: Timed, stream: torch.cuda.Stream) -> tuple[Before, Timed]:
    """Functions that replay what ``before`` and ``timed`` would do, and keep the graphs and what those return."""
    preparation: torch.cuda.CUDAGraph | None = None
    state = None
    if before is not None:
        preparation = torch.cuda.CUDAGraph()
        with torch.cuda.graph(preparation, stream=stream):
            state = before()
    call = torch.cuda.CUDAGraph()
    with torch.cuda.graph(call, pool=preparation.pool() if preparation else None, stream=stream):
        timed(state)
    return preparation.replay if preparation else nothing, lambda _state: call.replay()


@contextlib.contextmanager
def _waiting_refused() -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error: neither can it be captured nor queued."""
    mode: Any = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says each time that it does not notice all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise InvbenchError(
            "--clock device: it makes the host wait for the GPU in the middle of a call, expected launches only; "
            "use --clock eager, or leave out what waits (.item(), .cpu(), nonzero)"
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)
