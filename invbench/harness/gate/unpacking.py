"""Folders in the user's cache that are filled once, whole or not at all, and used by many processes.

    trees/KEY/              what was unpacked
    trees/KEY.json          the stamp: its files, with size and time; its own time is that of the last use
    trees/.lock             held while any of them is looked at, filled or removed
    trees/.unpacking-*/     what is being filled, or what a killed process has left

A key names a content for good (a commit, or the hash of a file).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from invbench.ops.caching import cache_directory
from invbench.spec import InvbenchError

LOCK_SECONDS = 120.0
KEPT = 8
IN_USE_SECONDS = 3600.0  # for so long after it was asked for, a folder may still be read by a run
PREFIX = ".unpacking-"
KEY = re.compile("[0-9a-f]{40,64}")
# Kernel caches are valid for a path, size and time of a source. A time that is the same whenever it is unpacked, and in
# whole seconds, survives also a cache that was damaged, or carried from one job of a CI to the next.
MODIFIED = 1_577_836_800  # 2020


def kept_folder(key: str, fill: Callable[[Path], None]) -> Path:
    """The folder of that key, filled already or now.

    fill: gets an empty folder, beside which it may leave what it needs meanwhile.

    Raises InvbenchError where the cache cannot be written or another process holds it for too long, and what fill does.
    """
    with _locked() as trees:
        folder = trees / key
        if not _is_whole(folder):
            _fill(folder, fill)
        os.utime(_stamp(folder))
        _prune(trees)
        return folder


@contextmanager
def _locked() -> Iterator[Path]:
    """The folder of all, while no other process is in it, and without what killed ones left there."""
    import filelock

    place = "the cache folder"
    try:
        trees = cache_directory().resolve() / "trees"
        place = str(trees)
        trees.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(trees / ".lock", timeout=LOCK_SECONDS):
            for left in trees.glob(f"{PREFIX}*"):
                # Whatever its killed process had started may still be writing into it: then the next one removes it.
                shutil.rmtree(left, ignore_errors=True)
            yield trees
    except filelock.Timeout as error:
        raise InvbenchError(
            f"--base: another process has held {place} for {LOCK_SECONDS:g} s: wait until it has unpacked its base, "
            "end it, or set INVBENCH_CACHE_DIR to another folder"
        ) from error
    # RuntimeError: no home, or (NotImplementedError) a file system without locks.
    except (OSError, RuntimeError) as error:
        raise InvbenchError(
            f"--base: it cannot be unpacked in {place} ({error}): set INVBENCH_CACHE_DIR to a writable folder with "
            "room for it"
        ) from error


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    with _scratch(folder.parent) as scratch:
        fresh = scratch / "tree"
        fresh.mkdir()
        fill(fresh)
        for path in _files(fresh):
            if os.utime in os.supports_follow_symlinks or not path.is_symlink():
                os.utime(path, (MODIFIED, MODIFIED), follow_symlinks=not path.is_symlink())
        stamp = scratch / "stamp"
        stamp.write_text(json.dumps({str(path.relative_to(fresh)): _state(path) for path in _files(fresh)}))
        if os.path.lexists(folder):
            folder.rename(scratch / "damaged")
        fresh.rename(folder)
        # A process that is killed before this leaves a folder without a stamp, which is filled again.
        stamp.replace(_stamp(folder))


def _prune(trees: Path) -> None:
    """Remove what was not used for a while, but for the last few. What cannot be removed stays."""
    folders = sorted((path for path in trees.iterdir() if KEY.fullmatch(path.name)), key=_last_use, reverse=True)
    unused = [folder for folder in folders[KEPT:] if time.time() - _last_use(folder) > IN_USE_SECONDS]
    for folder in unused:
        with suppress(OSError), _scratch(trees) as scratch:
            _stamp(folder).unlink(missing_ok=True)
            folder.rename(scratch / "old")


@contextmanager
def _scratch(trees: Path) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=trees))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether all files are there as they were unpacked; others, such as compiled ones, may have come."""
    try:
        states = json.loads(_stamp(folder).read_text())
        return folder.is_dir() and all(_state(folder / name) == state for name, state in states.items())
    except (OSError, ValueError, AttributeError):
        return False


def _last_use(folder: Path) -> float:
    try:
        return _stamp(folder).stat().st_mtime
    except OSError:
        return 0.0


def _stamp(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _files(folder: Path) -> Iterator[Path]:
    """All but folders; symbolic links are files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path))
            else:
                yield Path(entry.path)


def _state(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]
