"""Doing, observed: the machine, the clock, the memory, and blocks of interleaved measurements."""

from __future__ import annotations

import os

# OpenMP's threads spin for milliseconds after a parallel region, on the cores where the next runtime's threads (torch's
# and Numba's are two) want to work. These settings let them sleep; OpenMP reads them when torch is first imported.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


def let_threads_sleep() -> None:
    """Ask the OpenMP runtimes of this process and its children to sleep rather than spin, where the user has not said
    otherwise. For programs only, before torch is imported; the fingerprint records it."""
    for name, value in SLEEPING_THREADS.items():
        os.environ.setdefault(name, value)
