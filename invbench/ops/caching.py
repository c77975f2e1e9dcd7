"""The user's cache directory, and a file in it that processes add to."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

LOCK_SECONDS = 10.0


def cache_directory() -> Path:
    """Where what can be made again is kept: INVBENCH_CACHE_DIR, or invbench/ in XDG_CACHE_HOME or in ~/.cache.

    It need not exist. Raises RuntimeError where nobody knows the user's home.
    """
    if named := os.environ.get("INVBENCH_CACHE_DIR"):
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # Relative paths are to be ignored (XDG Base Directory Specification).
    return (base if base.is_absolute() else Path.home() / ".cache") / "invbench"


class CachedLines:
    """JSON objects in a file of the cache directory, one a line, only ever added to.

    Lines that are torn or are no objects are skipped. Where the file cannot be read or written (a read-only home, a
    full disk) a RuntimeWarning says so once, and there are no lines.

    name: of the file. loss: what follows from having no cache, for that warning.
    """

    def __init__(self, name: str, loss: str) -> None:
        self._name, self._loss = name, loss
        self._has_warned = False

    def read(self) -> list[dict[str, Any]]:
        """All objects, the oldest first."""
        try:
            text = (cache_directory() / self._name).read_bytes()
        except FileNotFoundError:
            return []
        except (OSError, RuntimeError) as error:
            self._warn(error)
            return []
        return [entry for entry in map(_parsed, text.splitlines()) if isinstance(entry, dict)]

    def append(self, entry: dict[str, Any]) -> None:
        """Add one at the end; one process at a time."""
        import filelock

        try:
            path = cache_directory() / self._name
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS),
                path.open("ab+") as file,
            ):
                line = json.dumps(entry).encode() + b"\n"
                file.write(line if _ends_whole(file) else b"\n" + line)
        # RuntimeError: no home, or (NotImplementedError) a file system without locks.
        except (OSError, RuntimeError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._loss} ({error}); set INVBENCH_CACHE_DIR to a writable directory", RuntimeWarning, stacklevel=2
            )


def _ends_whole(file: Any) -> bool:
    """Whether an open file is empty or ends with a whole line, so that the next can follow."""
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
