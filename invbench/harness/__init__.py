"""Doing, observed: the machine, the clock, the memory, and blocks of interleaved measurements."""

from __future__ import annotations

import os

QUIET = {
    # OpenMP's threads spin for milliseconds after a parallel region, on the cores where the next runtime's threads
    # (torch's and Numba's are two) want to work; these let them sleep.
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    # torch.compile's pool of processes would start up on the cores where others are being prepared.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    # torch.profiler's library writes a line to standard error for each time it is used.
    "KINETO_LOG_LEVEL": "99",
}


def keep_quiet() -> None:
    """Ask the runtimes of this process and its children to leave the cores and the terminal alone, where
    the user has not said otherwise. For programs only, before torch is imported; the fingerprint records it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
