"""Large results in large pages: faulting in the fresh pages of one can take longer than computing it."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

# Smaller tensors come from memory that glibc keeps, whose pages are there already: 32 MiB is its greatest threshold.
FRESH_BYTES = 32 * 2**20
HUGE_BYTES = 2 * 2**20
_MADV_HUGEPAGE = 14


def in_huge_pages(fresh: Tensor) -> Tensor:
    """The tensor, nothing of which was touched yet; if it is large, the system is asked to give it huge pages."""
    size = fresh.nbytes
    advise = _madvise() if size > FRESH_BYTES else None
    if advise:
        start = fresh.data_ptr()
        whole = -(-start // HUGE_BYTES) * HUGE_BYTES
        advise(whole, (start + size - whole) // HUGE_BYTES * HUGE_BYTES, _MADV_HUGEPAGE)  # refused: nothing is lost
    return fresh


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Linux's madvise; None on other systems."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
