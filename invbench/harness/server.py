"""The process whose children measure memory: it imports what they need, once for all, and runs nothing itself.

Needs no torch here, so that a program can start it first and import torch at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

# Blocks of this size are mapped when they are asked for and unmapped when they are freed, so that memory which an
# earlier call has freed cannot serve a later one unseen.
MMAP_THRESHOLD = 65536

# What takes long to import, by backend; importing starts no threads, which a fork would lose.
IMPORTS = {"numba": ("numba",), "compiled": ("torch._inductor.compile_fx",)}

PRELOAD = "INVBENCH_PRELOAD"  # tells the server, in its environment, what to import
CLEAR_REFS = Path("/proc/self/clear_refs")


def has_high_water_mark() -> bool:
    """Whether this system tells a process's peak, and can start it again."""
    return sys.platform == "linux" and os.access(CLEAR_REFS, os.W_OK)


def start(backends: tuple[str, ...] = ()) -> None:
    """Start the server in the background, unless it runs; nothing where its children could measure nothing."""
    if not has_high_water_mark():
        return
    from multiprocessing import forkserver  # not on Windows

    needed = [name for backend in backends for name in IMPORTS.get(backend, ())]
    multiprocessing.set_forkserver_preload(["invbench.harness.memory", "invbench.harness.preload"])
    settings = {
        "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD), "MALLOC_TRIM_THRESHOLD_": "0",
        "OMP_WAIT_POLICY": "passive",  # several children share the cores, and nobody times them
        PRELOAD: ",".join(needed),
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Ctrl-C reaches the server, too; it ends with this process, and has nothing to say about it.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        forkserver.ensure_running()
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
