"""Which cut a span kernel gets: measured once for each problem on each kind of GPU, and then remembered.

Candidates are the default cut and those that ``tiling.cost`` ranks next. They are timed by the device's own events, in
interleaved rounds, on the tensors of the launch at hand, which itself writes all their results anew afterwards. What
was chosen is known to the process, and to later ones by a file in the user's cache directory.

The device is waited for in that measuring and at no other time. Where the current stream is being captured into a
graph, nothing is measured. Sizes that change from call to call are each a problem of its own: see
``autotuning(False)`` where that is not wanted. Kernels whose sums follow from the cut are not tuned, so that results
repeat bit for bit whatever was chosen.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import triton

from invbench.ops.autotuning import is_allowed
from invbench.ops.caching import CachedLines
from invbench.ops.triton_gpu.launching import INTERPRETED
from invbench.ops.triton_gpu.tiling import Chip, Cut, Problem, cost, cuts, default_cut

MOST_CANDIDATES = 12
LEAST_ROUNDS, MOST_ROUNDS = 5, 20
SECONDS = 0.5  # of timing one kernel's candidates, compilation not counted
GAIN = 0.02  # by which the default has to be beaten
# A sample is several calls where one is so short that events could not tell candidates apart.
SAMPLE_SECONDS, MOST_CALLS = 1e-4, 8
# Cycles for which a GPU is kept busy while a sample is queued, so that none of it waits for the host: about 1 ms.
SPIN = 2 * 10**6

FILE = "triton-cuts.jsonl"


def _hash_of_sources() -> str:
    """A hash of all the code beside this file, that of kernels and how they are launched."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


SOURCES = _hash_of_sources()  # here, since files may change while the process runs


class Runs(Protocol):
    """A ``Launch``, as far as tuning cares."""

    def run(self, device: torch.device) -> None:
        """Queue it on the device's current stream."""


@dataclass(frozen=True, slots=True)
class Task:
    """One of ``tiling.KERNELS`` on a problem and a device, for which a cut is to be chosen.

    dtype: of x, hidden, y and their gradients. atomic: how grad_span adds up.
    """

    kernel: str
    problem: Problem
    chip: Chip
    dtype: torch.dtype
    device: torch.device
    atomic: bool = False

    @property
    def default(self) -> Cut:
        """The cut without any trial."""
        return default_cut(self.kernel, self.problem, self.chip)

    def candidates(self) -> list[Cut]:
        """The cuts worth measuring, the default first."""
        ranked = sorted(dict.fromkeys(cuts(self.kernel, self.problem, self.chip)), key=cost)
        return [self.default, *(cut for cut in ranked if cut != self.default)][:MOST_CANDIDATES]

    def key(self, module: Any) -> dict[str, Any]:
        """All that the fastest cut depends on, as JSON has it; ``module`` is that of the device's type."""
        p = self.problem
        properties = module.get_device_properties(self.device)
        arch = f"{module.get_device_capability(self.device)} {getattr(properties, 'gcnArchName', '')}"
        return {
            "gpu": module.get_device_name(self.device), "arch": arch, "chip": list(astuple(self.chip)),
            "triton": triton.__version__, "sources": SOURCES, "kernel": self.kernel, "atomic": self.atomic,
            "window": list(astuple(p.window)), "C": p.C, "G": p.G, "r": p.r, "H": p.H, "W": p.W, "N": p.N,
            "dtype": str(self.dtype),
        }  # fmt: skip


class Tuner:
    """Chooses cuts and remembers them; may be shared by threads.

    device_module: as ``torch.get_device_module``. now: the host's clock, in seconds.
    """

    def __init__(
        self,
        device_module: Callable[[torch.device], Any] = torch.get_device_module,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device_module, self._now = device_module, now
        self._chosen: dict[Task, Cut] = {}
        self._file = CachedLines(FILE, "the choices of Triton's cuts cannot be kept: each process measures them again")
        self._one_at_a_time = threading.Lock()

    def cut(self, task: Task, launch: Callable[[Cut], Runs]) -> Cut:
        """The cut to launch with: the default one where tuning is off, where kernels are interpreted, and where the
        current stream is captured before a choice is known.

        launch: makes the launch of a cut. It is run any number of times with several cuts, and once more by the caller.

        Waits for the device where the choice has to be measured. A candidate that raises is left out; where none
        succeeds, the default is returned, so that the caller's launch says why.
        """
        if INTERPRETED or not is_allowed():
            return task.default
        return self._chosen.get(task) or self._choose(task, launch)

    def _choose(self, task: Task, launch: Callable[[Cut], Runs]) -> Cut:
        module = self._device_module(task.device)
        with module.device(task.device):
            key = task.key(module)
            found = _stored(task, key, self._file.read())
            if found is None:
                if _is_capturing(module):
                    return task.default
                with self._one_at_a_time:
                    return self._chosen.get(task) or self._measured(task, key, launch, module)
        self._chosen[task] = found
        return found

    def _measured(self, task: Task, key: dict[str, Any], launch: Callable[[Cut], Runs], module: Any) -> Cut:
        seconds = _Race(task.device, launch, module, self._now).run(task.candidates())
        if not seconds:
            return task.default
        fastest = min(seconds, key=lambda cut: seconds[cut])
        if seconds[fastest] >= (1 - GAIN) * seconds.get(task.default, math.inf):
            fastest = task.default
        self._chosen[task] = fastest
        if task.default in seconds:  # if not, what made it fail may have been of that moment, such as a full memory
            self._file.append({"key": key, "cut": list(astuple(fastest.tile)), "seconds": seconds[fastest]})
        return fastest


def _is_capturing(module: Any) -> bool:
    """Whether the current stream records a graph; False for devices that do not say."""
    asked = getattr(module, "is_current_stream_capturing", None)
    return bool(asked and asked())


def _stored(task: Task, key: dict[str, Any], entries: Iterable[dict[str, Any]]) -> Cut | None:
    """The latest choice of this key that is a cut of the problem; None where there is none."""
    chosen = [entry.get("cut") for entry in entries if entry.get("key") == key]
    if not chosen:
        return None
    known = {astuple(cut.tile): cut for cut in cuts(task.kernel, task.problem, task.chip)}
    tiles = [tuple(tile) for tile in chosen if isinstance(tile, list) and all(type(part) is int for part in tile)]
    return next((known[tile] for tile in reversed(tiles) if tile in known), None)


class _Race:
    """Times cuts against each other on the current stream of a device."""

    def __init__(
        self, device: torch.device, launch: Callable[[Cut], Runs], module: Any, now: Callable[[], float]
    ) -> None:
        self._device, self._launch, self._module, self._now = device, launch, module, now
        self._seconds: dict[Cut, float] = {}
        self._calls = 1
        self._spent = 0.0

    def run(self, candidates: list[Cut]) -> dict[Cut, float]:
        """The least seconds of a call of each, but for those that raised, and the last ones where time is short."""
        for cut in candidates:
            # A round has a fifth of the time. What is not measured has a higher cost than what is.
            if len(self._seconds) > 1 and self._spent > SECONDS / LEAST_ROUNDS:
                break
            self._measure(cut, first=True)
        order = random.Random(0)
        rounds = 1
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and self._spent < SECONDS):
            for cut in order.sample(list(self._seconds), len(self._seconds)):
                self._measure(cut)
            rounds += 1
        return self._seconds

    def _measure(self, cut: Cut, first: bool = False) -> None:
        try:
            if first:
                self._sample(cut, 1)  # compiled, and warm
                if not self._seconds:
                    estimate = self._sample(cut, 1)
                    self._calls = max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(estimate, 1e-9))))
            started = self._now()
            found = self._sample(cut, self._calls)
            self._spent += self._now() - started
        except Exception:  # noqa: BLE001 -- compilers and drivers raise what they like; without this cut the others go on
            self._seconds.pop(cut, None)
        else:
            self._seconds[cut] = min(found, self._seconds.get(cut, math.inf))

    def _sample(self, cut: Cut, calls: int) -> float:
        """Seconds of a call by the device's events; waits for the second one."""
        launch = self._launch(cut)  # anew, since its buffers need not be there for all cuts at once
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        if hasattr(self._module, "_sleep"):  # CUDA only; elsewhere short kernels take the time of a launch, all alike
            self._module._sleep(SPIN)  # noqa: SLF001
        start.record()
        for _ in range(calls):
            launch.run(self._device)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / calls


TUNER = Tuner()
