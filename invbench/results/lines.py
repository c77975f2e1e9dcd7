"""Files that only grow, a whole line at a time: one writer at a time, each line on disk, and none that is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from invbench.spec import InvbenchError


def require_file(path: Path, option: str) -> None:
    """Refuse what is no file, and could become none. option: the one that named it."""
    target = path.resolve()
    if path.is_dir():
        raise InvbenchError(f"{option} takes a file: got the folder {str(path)!r}; add a file name")
    if not target.parent.is_dir():
        raise InvbenchError(
            f"{option} {str(path)!r}: the folder {target.parent.name!r} does not exist; create it first"
        )
    if target.exists() and not target.is_file():
        raise InvbenchError(f"{option} takes a file that keeps what it is given: got {str(path)!r}; choose another")


@contextmanager
def locked(path: Path, option: str, user: str, patience: float = 0) -> Iterator[None]:
    """Nobody else has the file; InvbenchError if ``user`` still has it after some seconds of patience."""
    import filelock

    target = path.resolve()  # the same for all links to a file
    try:
        with filelock.FileLock(target.with_name(f".{target.name}.lock"), timeout=patience):
            yield
    except filelock.Timeout:
        raise InvbenchError(
            f"{option} {str(path)!r} is in use by {user}; wait for it, or choose another file"
        ) from None


def add_line(file: BinaryIO, line: Mapping[str, Any]) -> None:
    """Write a line at the end of an unbuffered file, and wait until it is on disk; if it cannot be, OSError, and the
    file is as it was."""
    data = json.dumps(line, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    end = file.seek(0, os.SEEK_END)
    try:
        while data:  # unbuffered: what is written is known, and nothing is tried again when the file is closed
            data = data[os.write(file.fileno(), data) :]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):  # half a line is repaired by the next writer, too
            file.truncate(end)
        raise


def sync_folder(path: Path) -> None:
    """Make sure that the file's name is on disk, too."""
    if os.name == "posix":
        folder = os.open(path.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
