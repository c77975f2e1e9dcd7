"""Result files, whatever they are: documents (``.json``), journals of sweeps and histories of checks (``.jsonl``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invbench.results import ResultSet, history, journal
from invbench.results.history import History
from invbench.spec import InvbenchError

BEGINNING = 64  # bytes that tell what a file is


def load(path: Path) -> ResultSet:
    """The document in a file; a journal's points are one document. Raises InvbenchError that names the file."""
    found = _load(path)
    if isinstance(found, History):
        raise InvbenchError(f"{path}: takes a result document: got a history of checks; invbench report draws it")
    return found


def _load(path: Path) -> ResultSet | History:
    try:
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
        if history.is_history(beginning):
            return History(history.read(path))
        if beginning.startswith(journal.FIRST) or path.suffix.lower() == ".jsonl":
            return journal.read_document(path)
        text = path.read_text(encoding="utf-8")
        found = ResultSet.from_json(text)
        return (history.from_document(text) or found) if found.checks else found
    except OSError as error:
        raise InvbenchError(f"{path} cannot be read ({error.strerror}); name a result file") from error
    except UnicodeDecodeError as error:
        raise InvbenchError(f"{path} is no result document: it is not text in UTF-8; name a result file") from error
    except (InvbenchError, RecursionError) as error:
        told = str(error)
        raise InvbenchError(told if told.startswith(str(path)) else f"{path}: {told}") from error


def load_all(paths: Sequence[Path], command: str, created: str) -> ResultSet | History:
    """What several files hold as one; a document that comes alone stays as it is.

    Histories, and several documents of checks, make one history.
    """
    if not paths:
        raise InvbenchError("FILE is missing: got none; name at least one result file")
    loaded = [_load(path) for path in paths]
    documents = [each for each in loaded if isinstance(each, ResultSet)]
    checks = [each for each in documents if each.checks and not each.results]
    if len(documents) == len(loaded) and not (len(checks) == len(loaded) > 1):
        return ResultSet.merged(documents, command, created)
    for path, each in zip(paths, loaded, strict=True):
        if isinstance(each, ResultSet) and each not in checks:
            raise InvbenchError(f"{path} holds no check and has no place in a history: name it in a report of its own")
    return History.of(run for each in loaded for run in (each.runs if isinstance(each, History) else (each,)))
