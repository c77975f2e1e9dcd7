"""Results to standard output and to a file; a file is checked before anything is measured, and written whole."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from invbench.spec import InvbenchError


def check_writable(path: Path, option: str = "--output") -> None:
    """Refuse a file that could not be written, leaving nothing behind."""
    try:
        if path.is_dir():
            raise InvbenchError(f"{option} takes a file: got the folder {str(path)!r}; add a file name")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise InvbenchError(f"{option} {str(path)!r}: the folder {str(folder)!r} does not exist; create it first")
        if path.exists():
            with path.open("ab"):
                pass
        if _is_replaceable(path):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise InvbenchError(
            f"{option} {str(path)!r} cannot be written ({error.strerror}); choose a file in a folder you may write"
        ) from error


def write(path: Path, content: str | bytes, option: str = "--output") -> None:
    """Write text or bytes to the file so that a reader sees the old content or the new, never half of it."""
    data = f"{content}\n".encode() if isinstance(content, str) else content
    try:
        if not _is_replaceable(path):
            path.write_bytes(data)
            return
        target = path.resolve()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            part = Path(file.name)
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o666 & ~_umask())
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InvbenchError(
            f"{option} {str(path)!r} could not be written ({error.strerror}); the results are on standard output"
        ) from error


def show(text: str) -> None:
    """Print to standard output; a reader that closed the pipe early is not an error."""
    try:
        print(text, flush=True)  # noqa: T201 -- this is its job
    except OSError as error:
        # What is still in Python's buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise InvbenchError(
                f"standard output cannot be written ({error.strerror}); use --output FILE, or free some space"
            ) from error


def complain(lines: Iterable[str]) -> None:
    """Print lines to standard error, where there is one."""
    for line in lines if sys.stderr is not None else ():
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 -- this is its job


def _is_replaceable(path: Path) -> bool:
    """Whether the path is, or would become, an ordinary file; devices and pipes are written in place."""
    return path.is_file() or not path.exists()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
