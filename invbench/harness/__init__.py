"""Doing, observed: the machine, the clock, the memory, and blocks of interleaved measurements."""

from __future__ import annotations

import os

QUIET = {
    # LLVM's and Intel's OpenMP let threads spin for 200 ms after a parallel region, into the next subject's block. That
    # of torch's Linux wheels, GNU's, spins for some 6 ms: left as it is, since it is what torch's users have, and since
    # there is only one pool here (the Numba kernels run on torch's).
    "KMP_BLOCKTIME": "1",
    # torch.compile's pool of processes would start up on the cores where others are being prepared.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    # torch.profiler's library writes a line to standard error for each time it is used.
    "KINETO_LOG_LEVEL": "99",
}
# What of a process's environment decides how its threads and kernels run; the fingerprint records it.
THREAD_VARIABLES = (
    *QUIET, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS",
    "TRITON_INTERPRET",
)  # fmt: skip
# And how glibc's allocator deals with what is freed.
ALLOCATOR_VARIABLES = (
    "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES",
)  # fmt: skip


def keep_quiet() -> None:
    """Ask the runtimes of this process and its children to leave the cores and the terminal alone, where
    the user has not said otherwise. For programs only, before torch is imported; the fingerprint records it."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
