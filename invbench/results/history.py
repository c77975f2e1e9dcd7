"""The history of checks: JSON Lines that ``check --history`` appends to, one flushed and fsynced line a run.

A line holds what a run found and where, without the raw blocks. Whatever ends a writer, all lines before its own are
whole; of its own, a part may be there, which the next run removes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from invbench.results import ResultSet
from invbench.results.check import Check
from invbench.results.lines import add_line, locked, require_file, sync_folder
from invbench.spec import InvbenchError

VERSION = 1
OPTION = "--history"
PATIENCE = 60.0  # seconds to wait for another run that appends, which takes it milliseconds
FIRST = b'{"history":'  # what each line begins with, spaces aside
_BEGINNING = re.compile(rb'\s*\{\s*"history"\s*:\s*(\d+)\s*,')


@dataclass(frozen=True)
class History:
    """Runs of ``invbench check``, the oldest first, none twice."""

    runs: tuple[ResultSet, ...]

    @classmethod
    def of(cls, runs: Iterable[ResultSet]) -> History:
        """A history of runs in any order; raises InvbenchError where one holds no check, or no date."""
        found = {json.dumps(to_line(run), sort_keys=True): run for run in runs}
        return cls(tuple(sorted(found.values(), key=_moment)))


def is_history(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes is a history."""
    return _BEGINNING.match(beginning) is not None


def append(path: Path, results: ResultSet) -> None:
    """Add a run to a history, which begins with it where there is none; when this returns the line is on disk.

    A last line that a killed writer tore is removed. Raises InvbenchError if the file is no history, or cannot be
    written, and then leaves it as it was.
    """
    line = to_line(results)
    _checked_path(path)
    with locked(path, OPTION, "another check", PATIENCE):
        try:
            with path.open("ab+", buffering=0) as file:
                file.seek(0)
                data = file.read()
                whole, tail = _split(data, path)
                if tail and not _is_json(tail):
                    file.truncate(len(whole))
                elif tail:  # an editor took the end of the last line away
                    file.write(b"\n")
                add_line(file, line)
                sync_folder(path)
        except OSError as error:
            raise InvbenchError(
                f"{OPTION} {str(path)!r} cannot be written ({error.strerror}); its earlier runs are kept: "
                "free some space, or choose a file that you may write"
            ) from error


def check_appendable(path: Path) -> None:
    """Refuse a file to which ``append`` could not add a run, before anything is measured; leaves nothing behind."""
    _checked_path(path)
    try:
        if path.exists():
            with path.open("rb+") as file:
                _split(file.read(), path)
        with tempfile.TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise InvbenchError(
            f"{OPTION} {str(path)!r} cannot be written ({error.strerror}); choose a file in a folder you may write"
        ) from error


def read(path: Path) -> tuple[ResultSet, ...]:
    """The runs of a history, the oldest first; a torn last line is left out.

    Raises InvbenchError if it cannot be read, is no history, or holds no run.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvbenchError(f"{path} cannot be read ({error.strerror}); name a history of checks") from error
    whole, tail = _split(data, path)
    runs = tuple(_parsed(whole + (tail if _is_json(tail) else b""), path))
    if not runs:
        raise InvbenchError(f"{path} holds no run: got {len(data)} bytes; name a history that check --history wrote")
    return History.of(runs).runs


def to_line(results: ResultSet) -> dict[str, Any]:
    """A run's line; raises InvbenchError if the document holds no check."""
    if not results.checks:
        raise InvbenchError(f"a history takes documents of invbench check: got one of {results.command!r}")
    return {
        "history": VERSION, "tool": {"name": "invbench", "version": results.tool_version}, "created": results.created,
        "command": results.command, "environment": dict(results.environment), "settings": dict(results.settings),
        "interrupted": results.interrupted, "checks": [check.without_series().to_dict() for check in results.checks],
    }  # fmt: skip


def to_document(history: History) -> dict[str, Any]:
    """A result document with the checks of all runs, and what else their lines hold as ``runs``."""
    latest = history.runs[-1]
    document: dict[str, Any] = json.loads(ResultSet.merged(history.runs, latest.command, latest.created).to_json())
    document["checks"] = [check for run in history.runs for check in to_line(run)["checks"]]
    document["runs"] = [{**to_line(run), "checks": len(run.checks)} for run in history.runs]
    return document


def from_document(text: str) -> History | None:
    """The inverse; None for every other document."""
    document = json.loads(text) if '"runs"' in text else None
    if not isinstance(document, dict) or not document.get("runs"):
        return None
    try:
        checks = iter(document["checks"])
        lines = [{**run, "checks": list(islice(checks, run["checks"]))} for run in document["runs"]]
        return History.of(map(_from_line, lines))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvbenchError(f"incomplete history ({type(error).__name__}: {error}); make it again") from error


def _from_line(line: Mapping[str, Any]) -> ResultSet:
    run = ResultSet(
        (), line["command"], line["created"], line["tool"]["version"], dict(line["environment"]),
        dict(line["settings"]), interrupted=line["interrupted"], checks=tuple(map(Check.from_dict, line["checks"])),
    )  # fmt: skip
    _moment(run)
    return run


def moment(created: str) -> datetime:
    """When that was; raises ValueError if it is no ISO 8601."""
    found = datetime.fromisoformat(created)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _moment(run: ResultSet) -> datetime:
    try:
        return moment(run.created)
    except ValueError:
        raise InvbenchError(
            f"a run's created must be an ISO 8601 date: got {run.created!r}; correct the file"
        ) from None


def _checked_path(path: Path) -> None:
    try:
        require_file(path, OPTION)
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead back to themselves
        raise InvbenchError(
            f"{OPTION} {str(path)!r} cannot be opened ({getattr(error, 'strerror', None) or error}); "
            "choose a file in a folder you may write"
        ) from error


def _split(data: bytes, path: Path) -> tuple[bytes, bytes]:
    """The whole lines and what follows them; raises InvbenchError if either was never a history's."""
    end = data.rfind(b"\n") + 1
    whole, tail = data[:end], data[end:]
    for number, text in enumerate(whole.split(b"\n"), 1):
        if text.strip():
            _require_beginning(text, number, path)
    if _is_json(tail):
        _require_beginning(tail, whole.count(b"\n") + 1, path)
    elif not whole and tail and not FIRST.startswith(tail[: len(FIRST)]) and not is_history(tail):
        raise _no_history(tail, 1, path)
    return whole, tail


def _require_beginning(text: bytes, number: int, path: Path) -> None:
    found = _BEGINNING.match(text)
    if found is None:
        raise _no_history(text, number, path)
    if int(found[1]) != VERSION:
        raise InvbenchError(
            f"{path}:{number}: the history must be of version {VERSION}: got {int(found[1])}; "
            "use the invbench that wrote it, or choose another file"
        )


def _no_history(text: bytes, number: int, path: Path) -> InvbenchError:
    known = {b'{"journal"': "a sweep's journal", b'{"key"': "a sweep's journal", b'{"schema"': "a result document"}
    begins = re.sub(rb"\s", b"", text[:200])
    kind = next((words for word, words in known.items() if begins.startswith(word)), "")
    got = kind or ("a result document, or other JSON" if begins == b"{" else repr(text[:20]))
    return InvbenchError(f"{path}:{number} is not a line of a history of checks: got {got}; choose another file")


def _is_json(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _parsed(lines: bytes, path: Path) -> Iterator[ResultSet]:
    for number, text in enumerate(lines.split(b"\n"), 1):
        if not text.strip():
            continue
        _require_beginning(text, number, path)
        try:
            yield _from_line(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvbenchError(
                f"{path}:{number} is not a line of a history of checks ({type(error).__name__}: {error}); "
                "name a history, or remove the line"
            ) from error
