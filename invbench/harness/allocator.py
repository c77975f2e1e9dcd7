"""glibc's allocator, put where it comes to by itself in a process that has run for long.

It maps large blocks one by one and unmaps them when they are freed, so that each call faults in every page of its
output anew, until blocks that happened to be freed have raised its threshold; and it gives the top of its heap back
whenever that is large. When either happens is decided by the history of a process and by where its blocks lie. Seen:
unfold 6 or 17 ms, a fused kernel 0.17 or 0.20 ms, in processes of the same code. Allocator growth belongs to the
preparation (MEASURING.md, rule 2), so what is freed is kept.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from typing import Any

from invbench.harness import ALLOCATOR_VARIABLES

# The most that glibc's own adjustment comes to, and that ``mallopt`` takes: larger blocks are mapped in any process.
MMAP_THRESHOLD = 32 * 2**20
NEVER = 2**31 - 1  # bytes at the top of the heap, which are as good as never reached

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed() -> None:
    """From now on, keep what is freed for the next call; nothing where the user's variables say otherwise, or where
    the C library is another."""
    mallopt = _of_glibc("mallopt")
    if mallopt and not _chosen_by_user():
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, NEVER)


def give_back() -> None:
    """Give what was kept back to the system, so that one point does not begin with another's memory."""
    trim = _of_glibc("malloc_trim")
    if trim:
        trim(0)


def describe() -> dict[str, Any]:
    """For the fingerprint: whose allocator it is, whether it keeps what is freed, and what the user set."""
    is_glibc = _of_glibc("mallopt") is not None
    return {
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "keeps_freed": is_glibc and not _chosen_by_user(),
        "variables": _chosen_by_user(),
    }


def _chosen_by_user() -> dict[str, str]:
    chosen = {name: os.environ[name] for name in ALLOCATOR_VARIABLES if name in os.environ}
    if "glibc.malloc." not in chosen.get("GLIBC_TUNABLES", ""):
        chosen.pop("GLIBC_TUNABLES", None)
    return chosen


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None in a process with another C library."""
    if platform.libc_ver()[0] != "glibc":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
