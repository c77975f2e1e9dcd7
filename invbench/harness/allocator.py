"""glibc's allocator, put where it comes to by itself in a process that has run for long.

It maps large blocks one by one and unmaps them when they are freed, so that each call faults in every page of its
output anew, until blocks that happened to be freed have raised its threshold; and it gives the top of its heap back
whenever that is large. When either happens is decided by the history of a process and by where its blocks lie. Seen:
unfold 6 or 17 ms in processes of the same code. Allocator growth belongs to the preparation (MEASURING.md, rule 2), so
what is freed is kept.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invbench.harness import ALLOCATOR_VARIABLES

# The most that glibc's own adjustment comes to, and that ``mallopt`` takes: larger blocks are mapped in any process.
MMAP_THRESHOLD = 32 * 2**20
NEVER = 2**31 - 1  # bytes at the top of the heap, which are as good as never reached

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_OTHERS = re.compile(r"/([^/\n]*(?:jemalloc|tcmalloc|mimalloc)[^/\n]*)$", re.MULTILINE)
_has_kept = False


def keep_freed() -> None:
    """From now on, keep what is freed for the next call; nothing where the user's variables say otherwise, or where
    memory is another library's."""
    global _has_kept
    mallopt = _of_glibc("mallopt")
    if mallopt and not _chosen_by_user():
        taken = mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD), mallopt(_M_TRIM_THRESHOLD, NEVER)
        _has_kept = taken == (1, 1)


def give_back() -> None:
    """Give what was kept back to the system, so that one point does not begin with another's memory."""
    gc.collect()  # what is held in circles
    trim = _of_glibc("malloc_trim")
    if trim:
        trim(0)


def describe() -> dict[str, Any]:
    """For the fingerprint: whose allocator it is, whether this process has it keep what is freed, and what the user
    set."""
    return {
        "library": _other() or platform.libc_ver()[0] or None,
        "keeps_freed": _has_kept, "variables": _chosen_by_user(),
    }  # fmt: skip


def _chosen_by_user() -> dict[str, str]:
    chosen = {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ}
    if "glibc.malloc." not in chosen.get("GLIBC_TUNABLES", ""):
        chosen.pop("GLIBC_TUNABLES", None)
    return chosen


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None in a process whose memory is another library's."""
    if platform.libc_ver()[0] != "glibc" or _other():
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found


def _other() -> str | None:
    """The file name of another allocator in this process, such as one that LD_PRELOAD names."""
    try:
        found = _OTHERS.search(Path("/proc/self/maps").read_text())
    except OSError:
        return None
    return found[1] if found else None
