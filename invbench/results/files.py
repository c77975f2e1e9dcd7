"""Result files, whatever they are: documents (``.json``) and journals of sweeps (``.jsonl``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invbench.results import ResultSet, journal
from invbench.spec import InvbenchError


def load(path: Path) -> ResultSet:
    """The document in a file; a journal's points are one document. Raises InvbenchError that names the file."""
    try:
        with path.open("rb") as file:
            begins_as_journal = file.read(len(journal.FIRST)) == journal.FIRST
        if begins_as_journal or path.suffix.lower() == ".jsonl":
            return journal.read_document(path)
        return ResultSet.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvbenchError(f"{path} cannot be read ({error.strerror}); name a result file") from error
    except UnicodeDecodeError as error:
        raise InvbenchError(f"{path} is no result document: it is not text in UTF-8; name a result file") from error
    except (InvbenchError, RecursionError) as error:
        raise InvbenchError(f"{path}: {error}") from error


def load_all(paths: Sequence[Path], command: str, created: str) -> ResultSet:
    """The documents in several files as one; that of a single file stays as it is."""
    if not paths:
        raise InvbenchError("FILE is missing: got none; name at least one result file")
    loaded = [load(path) for path in paths]
    return ResultSet.merged(loaded, command, created)
