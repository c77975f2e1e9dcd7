"""A process that ends, with all that it has started, when another one does."""

from __future__ import annotations

import os
import signal

MOST_FILES = 65536


def end_with(descriptor: int) -> None:
    """See to it that this process's group ends when the other end of a pipe does, of which nobody writes a byte.

    A process waits for it, where there can be one: a thread would wait for whoever keeps Python's lock. To be called
    before threads are started, by the leader of a group.
    """
    if not hasattr(os, "fork") or os.fork():
        return
    try:
        # Whatever this process keeps open would look to others as if the one that it was forked from lived.
        os.closerange(0, descriptor)
        os.closerange(descriptor + 1, MOST_FILES)
        os.read(descriptor, 1)
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)
