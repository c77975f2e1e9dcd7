"""The parent's side of one worker of a check: a process of any interpreter, asked line by line, given up in time."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invbench.harness.gate import bootstrap
from invbench.harness.settings import printable
from invbench.results.check import Side

PACKAGE = Path(__file__).parents[2]
STOP_SECONDS = 5.0
CHUNK = 2**16
LONGEST_ANSWER = 2**26


class WorkerLostError(Exception):
    """A worker has died, gives no answer, or says what is none; the message says which, and why."""


class RefusedError(Exception):
    """A worker cannot do what it was asked, and says why; it goes on."""


@dataclass(frozen=True, slots=True)
class Version:
    """One of the things that are compared: whose code, run by which interpreter, from where.

    measured: the folder of the ``invbench`` whose operators are measured; None for the interpreter's own. path: folders
    to import from before all others. folder: where its processes run. slowdown: the share of the measured latency that
    is added on purpose.
    """

    side: Side
    python: str = field(default_factory=lambda: sys.executable)
    measured: Path | None = None
    path: tuple[Path, ...] = ()
    folder: Path = field(default_factory=Path.cwd)
    slowdown: float = 0.0


class Worker:
    """A process that has rows of a version ready, and measures a block when it is asked to."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by stop
        self._rest = b""
        theirs, self._lifeline = os.pipe()
        config = {
            "measuring": str(PACKAGE), "measured": version.measured and str(version.measured),
            "path": [str(folder) for folder in version.path], "lifeline": theirs if os.name == "posix" else None,
        }  # fmt: skip
        command = [version.python, str(Path(bootstrap.__file__)), json.dumps(config)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- an interpreter that the user has named, or our own
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=version.folder,
                env=environment_for(version.python), bufsize=0, start_new_session=True,
                pass_fds=(theirs,) if os.name == "posix" else (),
            )  # fmt: skip
        except OSError as error:
            os.close(self._lifeline)
            raise WorkerLostError(f"{version.python} cannot be run ({error.strerror})") from error
        finally:
            os.close(theirs)

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask; a process that has ended is noticed when the answer is read."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next answer; raises RefusedError, or WorkerLostError after ``timeout`` seconds without one."""
        line = self._line(timeout)
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise TypeError
        except (ValueError, TypeError, RecursionError):
            said = printable(line[:60].decode(errors="replace"))
            raise WorkerLostError(f"its process answers what is no answer: got {said!r}") from None
        if "refused" in found:
            raise RefusedError(str(found["refused"]))
        return found

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to a request."""
        self.send(request)
        return self.answer(timeout)

    def _line(self, timeout: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise WorkerLostError(f"no answer for {timeout:g} s; raise --timeout")
                if len(self._rest) > LONGEST_ANSWER:
                    raise WorkerLostError(f"its process answers what is no answer: {len(self._rest)} bytes, no line")
                chunk = os.read(self._process.stdout.fileno(), CHUNK)
                if not chunk:
                    raise WorkerLostError(self._epitaph())
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        """How the process ended, and the last that it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        code = self._process.returncode
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        last = f": {printable(lines[-1][:300])}" if lines else ""
        if code == -signal.SIGKILL:
            return "its process was killed by the system, which most often means that memory ran out"
        if code is not None and code < 0:
            return f"it crashed its process ({signal.Signals(-code).name}){last}"
        return f"it ended its process (exit code {code}){last}"

    def stop(self) -> None:
        """End the process and all that it has started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            os.close(self._lifeline)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._errors.close()


def environment_for(python: str) -> dict[str, str]:
    """This process's, but what leads to this interpreter's packages leads another one astray."""
    found = dict(os.environ)
    if python != sys.executable:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
            found.pop(name, None)
    return found
