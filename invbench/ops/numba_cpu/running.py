"""Compiling, caching and running the Numba kernels, on torch's own threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import torch

from invbench.ops.numba_cpu import kernels
from invbench.ops.numba_cpu.record import COUNTERS, SIGNATURE
from invbench.ops.numba_cpu.simd import OPTIONS


def _hash_of_sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


# A hash of all the code that kernels are made of. Taken where that is imported: a file that is edited before the first
# kernel is compiled is not what will be compiled.
_VERSION = _hash_of_sources()

_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# Compiled kernels by name and bytes: the C function, and Numba's object that owns it.
_ready: dict[tuple[str, int], tuple[Any, Any]] = {}
_one_at_a_time = threading.Lock()
_has_warned = False


def launch(kernel: str, size: int, job: array[int], threads: int) -> None:
    """Run a kernel (a name of ``kernels.entries``), computing in a type of so many bytes, on a job, its fields in the
    order of ``record.FIELDS``; the job cannot be run again.

    Every thread takes units of the job until there are none. One thread is the caller itself; more are those of the
    OpenMP that torch itself uses: a second pool, awake beside the first, would take its cores.
    """
    address, _ = job.buffer_info()
    job[COUNTERS] = address
    function, _ = _ready.get((kernel, size)) or _prepare(kernel, size)
    parallel = _openmp() if threads > 1 else None
    if parallel:
        parallel(function, address, threads, 0)
    elif threads > 1:
        _in_python_threads(function, address, threads)
    else:
        function(address)


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """GNU's entry to a parallel region, in the OpenMP library that torch is linked with; LLVM's and Intel's offer it,
    too. None where torch has another kind of threads, or the system's OpenMP does not export it (macOS, Windows)."""
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (_CALL, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


@functools.cache
def _executor(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="invbench")


def _in_python_threads(function: Any, address: int, threads: int) -> None:
    """A call through ctypes lets go of Python's lock."""
    others = [_executor(threads).submit(function, address) for _ in range(threads - 1)]
    function(address)
    for other in others:
        other.result()


def threads_of() -> str:
    """Whose threads the kernels run on, for people and for a machine's fingerprint."""
    return "torch's OpenMP" if _openmp() else "Python"


def _prepare(kernel: str, size: int) -> tuple[Any, Any]:
    key = kernel, size
    with _one_at_a_time:
        if key not in _ready:
            compiled = _compiled(kernels.entries(_VERSION, size)[kernel])
            _ready[key] = _CALL(compiled.address), compiled
        return _ready[key]


def _compiled(function: Callable[[Any], None]) -> Any:
    """The function from Numba's cache, or compiled and cached.

    Numba keeps the cache in NUMBA_CACHE_DIR, beside the kernels' file or in the user's cache directory, and finds in
    it what was compiled by the same Numba for the same processor.
    """
    try:
        with _only_process_in(numba.njit(function, cache=True).stats.cache_path):
            return numba.cfunc(SIGNATURE, cache=True, **OPTIONS)(function)
    # RuntimeError: there is no directory to write to. OSError: there was one, but the disk is full or forbids it.
    except (RuntimeError, OSError) as error:
        _warn_uncached(error)
        return numba.cfunc(SIGNATURE, **OPTIONS)(function)


@contextlib.contextmanager
def _only_process_in(directory: str) -> Iterator[None]:
    """Hold a directory of the cache: of two processes that save different signatures at once, one could otherwise
    find the other's machine code under its own signature. Others wait, and then need not compile."""
    with contextlib.ExitStack() as stack:
        # Without locks (Windows, some network file systems) that is as unlikely as it is in Numba itself.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stack.enter_context(Path(directory, "invbench.lock").open("wb")), fcntl.LOCK_EX)
        yield


def _warn_uncached(error: Exception) -> None:
    """Say once that each process will compile for itself, and what helps."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            f"Numba's compiled kernels cannot be cached, so that each process compiles them again ({error}); "
            "set NUMBA_CACHE_DIR to a writable directory",
            RuntimeWarning,
            stacklevel=2,
        )
