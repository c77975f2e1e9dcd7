"""Peak memory of one call above its inputs and parameters, the output included (MEASURING.md, rule 11)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from invbench.harness import server
from invbench.harness.machine import set_threads
from invbench.harness.settings import Subject
from invbench.harness.steps import Step
from invbench.harness.subjects import Runnable
from invbench.results.quantities import Memory
from invbench.spec import Case

UNKNOWN = Memory(peak=None, method=None)
END_SECONDS = 5.0

# The kernel counts the pages of each thread in batches, so that a peak can be off by some hundred KiB: below this it
# would be mostly error.
RESOLUTION = 2**20

_STATUS = Path("/proc/self/status")


Named = TypeVar("Named", bound=Hashable, covariant=True)


class Job(Protocol[Named]):
    """One row whose memory is wanted: what to build in a process of its own. It is pickled on its way there."""

    @property
    def subject(self) -> Named:
        """Whose memory it is: one process measures all jobs of a subject, and no other's."""

    @property
    def threads(self) -> int:
        """CPU threads."""

    @property
    def timeout(self) -> float:
        """Seconds after which the process is given up."""

    def step(self) -> Step:
        """What is called."""


@dataclass(frozen=True, slots=True)
class OperatorJob:
    """A subject at a point, in the layout that was chosen for it."""

    subject: Subject
    case: Case
    seed: int
    layout: str
    timeout: float = 120.0

    @property
    def threads(self) -> int:
        """CPU threads of the point."""
        return self.case.threads

    def step(self) -> Step:
        """The subject, ready to be called."""
        return Runnable(self.subject, self.case, self.seed, self.layout)


class Child:
    """A process that measures the memory of one subject, at as many points as it is asked for.

    It has run nothing but that subject, so that no one else's memory can serve it. What it frees goes back to the
    system at once (``server.MMAP_THRESHOLD``), so that no earlier point's memory can serve a later one either.
    """

    def __init__(self) -> None:
        # A child of the fork server has run nothing before: neither torch's nor Numba's threads exist there yet.
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def peak(self, job: Job[Any]) -> Memory | None:
        """The peak; None if the process failed, and is of no further use."""
        try:
            self._connection.send(job)
            found = self._connection.recv() if self._connection.poll(job.timeout) else None
        except (EOFError, OSError):
            return None
        return found if isinstance(found, Memory) else None

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def dismiss(self) -> None:
        """Let the process end by itself, so that it leaves nothing behind."""
        self._connection.close()

    def join(self) -> None:
        """Wait for a dismissed process, but not long."""
        self._process.join(END_SECONDS)


_children: dict[Hashable, Child] = {}


def _dismiss_children() -> None:
    """Let all children end; multiprocessing would terminate them at exit, and then complain of what they leave."""
    children = [_children.pop(subject) for subject in list(_children)]
    for child in children:
        child.dismiss()
    for child in children:
        child.join()


util.Finalize(None, _dismiss_children, exitpriority=1)


def cpu_peaks(jobs: Iterable[Job[Named]], workers: int, beat: Callable[[], None] = lambda: None) -> dict[Named, Memory]:
    """The peaks of all jobs, each subject in its own process, some at a time; ``UNKNOWN`` where one cannot be had.

    beat: called as each is done, so that somebody who waits sees that it goes on.
    """
    jobs = list(jobs)
    if not server.has_high_water_mark() or not jobs:
        return {job.subject: UNKNOWN for job in jobs}
    server.start()
    pool = ThreadPoolExecutor(workers)
    try:
        peaks = {}
        for job, peak in zip(jobs, pool.map(_peak_of, jobs), strict=True):
            peaks[job.subject] = peak
            beat()
        return peaks
    except BaseException:  # Ctrl-C: who waits for a child is not kept waiting
        for child in list(_children.values()):
            child.kill()
        _children.clear()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _peak_of(job: Job[Any]) -> Memory:
    try:
        child = _children.get(job.subject)
        if child is None:
            child = _children[job.subject] = Child()
        found = child.peak(job)
    except (EOFError, OSError, RuntimeError, ValueError):  # no process can be had
        return UNKNOWN
    if found is None:
        _children.pop(job.subject, child).kill()
        return UNKNOWN
    return found


def cuda_peak(step: Step, device: torch.device) -> Memory:
    """What the caching allocator held at most during one call, above what it held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    step.call()
    torch.cuda.synchronize(device)
    return Memory(torch.cuda.max_memory_allocated(device) - held, "cuda-allocator")


def kept_bytes(forward: Callable[[], object], besides: Sequence[Tensor]) -> int:
    """What a forward pass keeps for the backward pass, each storage once.

    besides: inputs and parameters, which are there anyway.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in besides}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor  # what the graph holds on to, so that no other can have its address

    with saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()
    del output
    return sum(size for address, size in found.items() if address not in there)


def _serve(connection: Connection) -> None:
    """Runs in the child: answer jobs until the parent is gone; None where one fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = _high_water_mark(job)
        except Exception:  # noqa: BLE001 -- the timed process has told what goes wrong
            answer = None
        connection.send(answer)


def _high_water_mark(job: Job[Any]) -> Memory:
    """The resident high-water mark of one call, after a first one has compiled and cached."""
    set_threads(job.threads)
    step = job.step()
    step.call()
    server.CLEAR_REFS.write_text("5")  # the high-water mark starts again from what is resident now
    resident = _status_bytes("VmHWM")
    outputs = step.call()
    peak = _status_bytes("VmHWM") - resident
    certain = peak >= max(RESOLUTION, sum(output.nbytes for output in outputs))
    return Memory(peak if certain else None, "vmhwm")


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no line {name}")
