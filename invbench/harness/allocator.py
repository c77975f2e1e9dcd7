"""glibc's allocator, put where it comes to by itself in a process that has run for long.

It maps large blocks one by one and unmaps them when they are freed, so that each call faults in every page of its
output anew, until blocks that happened to be freed have raised its threshold; and it gives the top of its heap back
whenever that is large. When either happens is decided by the history of a process and by where its blocks lie. Seen:
unfold 6 or 17 ms in processes of the same code. Allocator growth belongs to the preparation (MEASURING.md, rule 2), so
what is freed is kept.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
from typing import Any

import torch

from invbench.harness import ALLOCATOR_VARIABLES

# The most that glibc's own adjustment comes to, and that ``mallopt`` takes: larger blocks are mapped in any process.
MMAP_THRESHOLD = 32 * 2**20
NEVER = 2**31 - 1  # bytes at the top of the heap, which are as good as never reached
PROBE_BYTES = 2**20
# Of ``struct mallinfo2`` in malloc.h, and of the older ``mallinfo``, whose numbers are ints.
FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_has_kept = False


def keep_freed() -> None:
    """From now on, keep what is freed for the next call; nothing where the user's variables say otherwise, or where
    tensors lie in another library's memory."""
    global _has_kept
    if _is_glibc() and not _chosen_by_user():
        mallopt = ctypes.CDLL(None).mallopt
        taken = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, NEVER)
        _has_kept = taken == (1, 1)


def give_back() -> None:
    """Give what was kept back to the system, so that one point does not begin with another's memory."""
    gc.collect()  # what is held in circles
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def describe() -> dict[str, Any]:
    """For the fingerprint: whose allocator it is, whether this process has it keep what is freed, and what the user
    set."""
    library = "glibc" if _is_glibc() else "another"
    return {"library": library, "keeps_freed": _has_kept, "variables": _chosen_by_user()}


def _chosen_by_user() -> dict[str, str]:
    chosen = {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ}
    if "glibc.malloc." not in chosen.get("GLIBC_TUNABLES", ""):
        chosen.pop("GLIBC_TUNABLES", None)
    return chosen


@functools.cache
def _is_glibc() -> bool:
    """Whether tensors lie in glibc's memory: not in jemalloc's, by LD_PRELOAD, or in that of torch's own."""
    if platform.libc_ver()[0] != "glibc":
        return False
    before = _in_use()
    probe = torch.empty(PROBE_BYTES, dtype=torch.uint8)
    return _in_use() - before >= probe.nbytes // 2  # other threads may free something meanwhile


def _in_use() -> int:
    """Bytes that glibc has handed out, in its heaps and mapped."""
    libc = ctypes.CDLL(None)
    name, number = ("mallinfo2", ctypes.c_size_t) if hasattr(libc, "mallinfo2") else ("mallinfo", ctypes.c_int)
    told = getattr(libc, name)
    told.restype = type("Statistics", (ctypes.Structure,), {"_fields_": [(field, number) for field in FIELDS]})
    found = told()
    return int(found.uordblks + found.hblkhd)
