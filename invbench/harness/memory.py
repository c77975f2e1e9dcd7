"""Peak memory of one call above its inputs and parameters, the output included (MEASURING.md, rule 11)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from invbench.harness import server
from invbench.harness.machine import set_threads
from invbench.harness.settings import Subject
from invbench.harness.subjects import Runnable
from invbench.quantities import Memory
from invbench.spec import Case

UNKNOWN = Memory(peak=None, method=None)
TIMEOUT = 120.0

# The kernel counts the pages of each thread in batches, so that a peak can be off by some hundred KiB: below this it
# would be mostly error.
RESOLUTION = 2**20

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Job:
    """One row whose memory is wanted: what to build in a process of its own."""

    subject: Subject
    case: Case
    seed: int
    layout: str


def cpu_peaks(jobs: Iterable[Job], workers: int) -> dict[Subject, Memory]:
    """The peaks of all jobs, each in a fresh process, some at a time; ``UNKNOWN`` where one fails or cannot be had."""
    jobs = list(jobs)
    if not server.has_high_water_mark() or not jobs:
        return {job.subject: UNKNOWN for job in jobs}
    server.start()
    # A child of the fork server has run nothing before: neither torch's nor Numba's threads exist there yet.
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN),
        max_tasks_per_child=1,
    )  # fmt: skip
    waiting: dict[Subject, Future[Memory]] = {}
    try:
        waiting = {job.subject: pool.submit(_peak_of, job) for job in jobs}
        return {subject: _collect(future) for subject, future in waiting.items()}
    finally:
        if not all(future.done() for future in waiting.values()):  # one hangs, or Ctrl-C
            for child in multiprocessing.active_children():
                child.kill()
        pool.shutdown(cancel_futures=True)


def cuda_peak(runnable: Runnable) -> Memory:
    """What the caching allocator held at most during one call, above what it held before."""
    device = torch.device(runnable.case.device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    runnable.call()
    torch.cuda.synchronize(device)
    return Memory(torch.cuda.max_memory_allocated(device) - held, "cuda-allocator")


def _collect(future: Future[Memory]) -> Memory:
    try:
        return future.result(timeout=TIMEOUT)
    except (TimeoutError, BrokenProcessPool, RuntimeError, MemoryError, OSError, ValueError):
        return UNKNOWN


def _peak_of(job: Job) -> Memory:
    """Runs in the child: the resident high-water mark of one call, after a first one has compiled and cached."""
    set_threads(job.case.threads)
    runnable = Runnable(job.subject, job.case, job.seed, job.layout)
    runnable.call()
    server.CLEAR_REFS.write_text("5")  # the high-water mark starts again from what is resident now
    resident = _status_bytes("VmHWM")
    outputs = runnable.call()
    peak = _status_bytes("VmHWM") - resident
    certain = peak >= max(RESOLUTION, sum(output.nbytes for output in outputs))
    return Memory(peak if certain else None, "vmhwm")


def _status_bytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no line {name}")
