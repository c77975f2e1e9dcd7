"""A folder from which a training goes on: what is trained, and where each network is.

    run.json                        what must be the same: settings, versions, machine, images
    mnist-inv-numba-seed-0.pt       a network after its last whole epoch; replaced as a whole after each

Whatever ends a training, each file is there as it was before or after an epoch. No torch is needed to open the folder.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from invbench.spec import InvbenchError
from invbench.training import TrainingSubject

VERSION = 1
RUN = "run.json"
STATE_FIELDS = {"network", "optimizer", "history"}


class CheckpointError(InvbenchError):
    """A checkpoint cannot be written."""


def require_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that cannot be one, or that has a training which is not to be gone on with."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InvbenchError(f"--checkpoint takes a folder: got the file {str(folder)!r}; choose another")
        if not folder.resolve().parent.is_dir():
            parent = folder.resolve().parent.name
            raise InvbenchError(
                f"--checkpoint {str(folder)!r}: the folder {parent!r}, in which it is to be, does not exist; "
                "create it first"
            )
        if (folder / RUN).exists() and not resume:
            raise InvbenchError(
                f"--checkpoint {str(folder)!r} has a training: add --resume to go on with it, or choose another folder"
            )
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead back to themselves
        raise _unusable(folder, error) from error


class Checkpoints:
    """A folder that is being trained into; ``open_checkpoints`` makes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, subject: TrainingSubject, seed: int) -> dict[str, Any] | None:
        """Where a network is; None where it has no epoch behind it.

        Raises InvbenchError if its file cannot be read.
        """
        import torch

        path = self._path(subject, seed)
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if set(state) != STATE_FIELDS or not state["history"]:
                raise ValueError(f"it must have {', '.join(sorted(STATE_FIELDS))}")
        except Exception as error:  # what a broken file raises depends on where it is broken
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvbenchError(
                f"--checkpoint {str(self.folder)!r}: {path.name} cannot be read ({reason}); delete it to train "
                f"{subject.label} from its beginning, or choose another folder"
            ) from error
        return state

    def save(self, subject: TrainingSubject, seed: int, state: Mapping[str, Any]) -> None:
        """Write where a network is; when this returns it is on disk."""
        import torch

        def write(file: BinaryIO) -> None:
            packed = io.BytesIO()  # torch writing to a full disk says where in its own code it failed, and not why
            torch.save(dict(state), packed)
            file.write(packed.getbuffer())

        self._replace(self._path(subject, seed), write)

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Write what is trained."""
        text = json.dumps({"checkpoint": VERSION, **run}, indent=1, sort_keys=True)
        self._replace(self.folder / RUN, lambda file: file.write(f"{text}\n".encode()))

    def require_same(self, run: Mapping[str, Any]) -> bool:
        """Whether the folder has a training; InvbenchError, saying what differs, where it is another than this, and
        where nobody knows which it is."""
        path = self.folder / RUN
        if not path.exists():
            if any(self.folder.glob("*-seed-*.pt")):
                raise InvbenchError(
                    f"--checkpoint {str(self.folder)!r} has networks (*.pt) and lacks {RUN}, which says how they were "
                    "trained; delete them to train from the beginning, or choose another folder"
                )
            others = sorted(each.name for each in self.folder.iterdir() if not _is_ours(each.name))
            if others:  # also the folder that one is in, for an option that is empty
                raise InvbenchError(
                    f"--checkpoint {str(self.folder)!r} has other files, such as {others[0]!r}; choose an empty "
                    "folder, or the name of a new one"
                )
            return False
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict) or "checkpoint" not in found:
                raise ValueError("it is not one of invbench")
        except (OSError, ValueError) as error:
            raise InvbenchError(
                f"--checkpoint {str(self.folder)!r}: {RUN} cannot be read ({error}); choose another folder"
            ) from error
        expected = json.loads(json.dumps({"checkpoint": VERSION, **run}))
        names = [*expected, *(name for name in found if name not in expected)]
        unlike = [
            f"{name} (there {_short(found.get(name))}, here {_short(expected.get(name))})"
            for name in names
            if found.get(name) != expected.get(name)
        ]
        if unlike:
            raise InvbenchError(
                f"--checkpoint {str(self.folder)!r} has another training, which differs in {', '.join(unlike)}; make "
                "these the same, or choose another folder"
            )
        return True

    def _path(self, subject: TrainingSubject, seed: int) -> Path:
        return self.folder / f"{subject.model}-{subject.backend}-seed-{seed}.pt"

    def _replace(self, path: Path, write: Callable[[BinaryIO], object]) -> None:
        """A reader, or the next run, finds the file as it was before or as it is now, never half of it."""
        part = path.with_name(f"{path.name}.part")
        try:
            try:
                with part.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
                _sync_folder(self.folder)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise CheckpointError(
                f"--checkpoint {str(self.folder)!r}: {path.name} cannot be written ({_reason(error)}); what was there "
                "before is kept: free some space, and run the same command with --resume"
            ) from error


@contextmanager
def open_checkpoints(folder: Path, resume: bool, run: Mapping[str, Any]) -> Iterator[Checkpoints]:
    """The folder, made where there is none, and locked against a second training.

    run: what must be the same, plain values by name. Raises InvbenchError if another training is going on in it, if it
    has one and ``resume`` is false, if that is another one, or if the folder cannot be used.
    """
    import filelock

    require_folder(folder, resume)
    try:
        folder.mkdir(exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise InvbenchError(
            f"--checkpoint {str(folder)!r} is in use by another training; wait for it, or choose another folder"
        ) from None
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        checkpoints = Checkpoints(folder)
        if not checkpoints.require_same(run):
            checkpoints.write_run(run)
        yield checkpoints
    finally:
        lock.release()


def _is_ours(name: str) -> bool:
    """Whether a file is the lock, or was never finished."""
    return name == ".lock" or name.endswith(".part")


def _short(value: object) -> str:
    """A value in a few words: what is long is told by its beginning."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unusable(folder: Path, error: Exception) -> InvbenchError:
    return InvbenchError(
        f"--checkpoint {str(folder)!r} cannot be used ({_reason(error)}); choose a folder that you may write"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sync_folder(folder: Path) -> None:
    """Make sure that the file's name is on disk, too."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
