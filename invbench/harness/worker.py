"""A process that measures points, so that what crashes, hangs or poisons a device takes down a worker and not a sweep.

The parent holds a ``Worker``: it sends requests, and gets lines of progress, an answer, or the end of the process. All
subjects of a point run in one worker, because their blocks have to be interleaved and their thread pools to be the
same. A shared label says which subject is running, so that the parent knows whom to blame.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator

from invbench.harness.messages import Beacon
from invbench.harness.service import serve
from invbench.results import Status

STOP_SECONDS = 5.0


class Worker:
    """The parent's side of one process. Not started before the first request."""

    def __init__(self) -> None:
        self.beacon = Beacon()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # No daemon: those may have no children, and memory is measured in children.
        self.process = context.Process(target=serve, args=(theirs, self.beacon), name="invbench-worker")
        self._beats, self._since = 0, time.monotonic()
        try:
            with _no_complaints(), _interrupted_later():
                self.process.start()
        except KeyboardInterrupt:
            if self.process.pid is not None:
                self.stop()
            raise
        theirs.close()

    def send(self, request: object) -> None:
        """Ask for something; a process that has ended is noticed when the answer is read."""
        self._beats, self._since = self.beacon.beats, time.monotonic()
        with contextlib.suppress(OSError):
            self.connection.send(request)

    def read(self) -> object:
        """The next message: a line of progress (str), an answer, or None if the process has ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def ask(self, request: object, tell: Callable[[str], None], timeout: float) -> object:
        """The answer to a request, or None if the process ended or gave none in time."""
        self.send(request)
        deadline = time.monotonic() + timeout
        while self.connection.poll(max(0.0, deadline - time.monotonic())):
            message = self.read()
            if not isinstance(message, str):
                return message
            tell(message)
        return None

    def stuck_for(self) -> float:
        """Seconds since the running subject last gave a sign of life."""
        beats = self.beacon.beats
        if beats != self._beats:
            self._beats, self._since = beats, time.monotonic()
        return time.monotonic() - self._since

    def stop(self, patience: float = 0.0) -> None:
        """End the process and those that it has started, such as the ones that measure memory.

        patience: seconds in which they may end by themselves, so that they leave nothing behind.
        """
        self.connection.close()
        if patience:
            self.process.join(patience)
        _kill_group(self.process.pid)
        self.process.kill()
        self.process.join(STOP_SECONDS)

    def epitaph(self) -> tuple[Status, str]:
        """How the process ended, as a row's status and reason."""
        self.process.join(STOP_SECONDS)
        code = self.process.exitcode
        if code is None:
            return Status.TIMEOUT, "its process gives no answer"
        if code == -signal.SIGKILL:
            return Status.OOM, "its process was killed by the system, which most often means that memory ran out"
        if code < 0:
            names = {int(each): each.name for each in signal.Signals}
            return Status.ERROR, f"it crashed its process ({names.get(-code, f'signal {-code}')})"
        return Status.ERROR, f"it ended its process (exit code {code})"


@contextlib.contextmanager
def _no_complaints() -> Iterator[None]:
    """Numba's semaphores are left behind by a worker that crashes or is killed; Python's resource tracker, which starts
    with the first worker, removes them, and need not say so."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _kill_group(leader: int | None) -> None:
    if leader is not None and hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(leader, signal.SIGKILL)


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C in a terminal reaches every process of the group, but it is the parent that decides: processes begin with
    it held back, and the parent takes afterwards what comes meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which would let it through, if it started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
