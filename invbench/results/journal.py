"""A sweep's journal: append-only JSON Lines, each on disk before the next is measured (MEASURING.md, rule 14).

A run writes a *header* (what was run, how, and on which machines) and then one *entry* for each point, or for each
launch of a point. An entry is found again by its key: a hash of the point, the settings, the versions and the machine.
Whatever ends a sweep, all entries before it are whole; of the last line, a part may be there, which the next run
removes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from invbench.results import Result, ResultSet
from invbench.results.launches import together
from invbench.results.lines import add_line, locked, require_file, sync_folder
from invbench.spec import InvbenchError

VERSION = 1
FIRST = b'{"journal":'  # what every journal begins with
OPTION = "--journal"
_BEGINNING = b'{"journal":'  # of the first line


@dataclass(frozen=True)
class Span:
    """When a node of a cluster measured a point: seconds since 1970 by that node's clock, and the node's full ID."""

    node: str
    start: float
    end: float


@dataclass(frozen=True)
class Entry:
    """One measured point: its rows, where the seconds went (``wall``, and of it ``timed``, by kind of work), and, where
    a cluster measured it, when; or one of several launches of a point: launch, counted from 0, and the point's key."""

    key: str
    results: tuple[Result, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    span: Span | None = None
    launch: int = 0
    point: str | None = None

    def to_line(self) -> dict[str, Any]:
        """The line of the journal."""
        when = {"span": asdict(self.span)} if self.span else {}
        which = {"point": self.point, "launch": self.launch} if self.point else {}
        rows = [row.to_dict() for row in self.results]
        return {"key": self.key, **which, "seconds": dict(self.seconds), **when, "results": rows}

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Entry:
        """The inverse of ``to_line``."""
        rows, span = tuple(Result.from_dict(row) for row in line["results"]), line.get("span")
        when = Span(**span) if span else None
        return cls(
            str(line["key"]), rows, dict(line["seconds"]), when, int(line.get("launch", 0)), line.get("point")
        )  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a run of the sweep measured, how, and where: fingerprints by ``results.machine_class``."""

    command: str
    created: str
    tool_version: str
    settings: Mapping[str, Any]
    machines: Mapping[str, Mapping[str, Any]]

    def to_line(self) -> dict[str, Any]:
        """The line of the journal."""
        return {
            "journal": VERSION,
            "tool": {"name": "invbench", "version": self.tool_version},
            "command": self.command,
            "created": self.created,
            "settings": dict(self.settings),
            "machines": {name: dict(found) for name, found in self.machines.items()},
        }

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Header:
        """The inverse of ``to_line``."""
        settings, machines = dict(line["settings"]), dict(line["machines"])
        return cls(line["command"], line["created"], line["tool"]["version"], settings, machines)


def key_of(point: Mapping[str, Any]) -> str:
    """The key of a point: a hash of all that decides what is measured."""
    text = json.dumps(point, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Journal:
    """A journal that is being written; ``open_journal`` makes it."""

    def __init__(self, path: Path, file: BinaryIO, entries: dict[str, Entry], repaired: int) -> None:
        self.path = path
        self.entries = entries
        self.repaired = repaired
        """Bytes of a torn last line that were removed."""
        self._file = file

    def add_header(self, header: Header) -> None:
        """Write that a run begins."""
        self._append(header.to_line())

    def add(self, entry: Entry) -> None:
        """Write a point; when this returns it is on disk. If it cannot be, InvbenchError, and the journal is intact."""
        self._append(entry.to_line())
        self.entries[entry.key] = entry

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            add_line(self._file, line)
        except OSError as error:
            raise InvbenchError(
                f"--journal {str(self.path)!r} cannot be written ({error.strerror}); its {len(self.entries)} point(s) "
                "are kept: free some space, and run the same command with --resume"
            ) from error


@contextmanager
def open_journal(path: Path, resume: bool) -> Iterator[Journal]:
    """The journal at a path, locked against a second sweep, its torn last line removed.

    Raises InvbenchError if another sweep has it, if it holds points and ``resume`` is false, if it is no journal, or if
    it cannot be written.
    """
    with ExitStack() as stack:
        try:
            require_file(path, OPTION)
            file = stack.enter_context(path.open("ab+", buffering=0))
            stack.enter_context(locked(path, OPTION, "another sweep"))
            data = _read(file)
            whole = _whole_lines(data, path)
            entries = {entry.key: entry for entry in _parsed(whole, path) if isinstance(entry, Entry)}
            if data and not resume:
                raise InvbenchError(
                    f"--journal {str(path)!r} exists: add --resume to measure what it lacks, or choose another file"
                )
            file.truncate(len(whole))
            sync_folder(path)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead back to themselves
            raise InvbenchError(
                f"--journal {str(path)!r} cannot be opened ({getattr(error, 'strerror', None) or error}); "
                "choose a file in a folder you may write"
            ) from error
        try:
            yield Journal(path, file, entries, len(data) - len(whole))
        finally:
            if file.seek(0, os.SEEK_END) == 0:  # the sweep was refused: it leaves no empty file
                with suppress(OSError):
                    path.unlink()


def _read(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _whole_lines(data: bytes, path: Path) -> bytes:
    """The file without a torn last line; raises InvbenchError if what would be removed was never a sweep's."""
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and data[: len(_BEGINNING)] != _BEGINNING[: len(data)]:
        raise InvbenchError(f"{path}:1 is not a line of a sweep's journal: got {data[:20]!r}; choose another file")
    return whole


def _parsed(whole: bytes, path: Path) -> Iterator[Header | Entry]:
    """The lines of a journal; raises InvbenchError that names the first one which is none."""
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            version = line.get("journal", VERSION)
            if version == VERSION:
                yield Header.from_line(line) if "journal" in line else Entry.from_line(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvbenchError(
                f"{path}:{number} is not a line of a sweep's journal ({type(error).__name__}: {error}); "
                "name a journal, or remove the line"
            ) from error
        if version != VERSION:
            raise InvbenchError(
                f"{path}:{number}: the journal must be of version {VERSION}: got {version!r}; "
                "use the invbench that wrote it, or choose another file"
            )


def read_document(path: Path) -> ResultSet:
    """All points of a journal as one document, of which each run is a part; a torn last line is left out.

    Raises InvbenchError if it cannot be read, is no journal, or holds no run.
    """
    data = _read_file(path)
    runs: list[tuple[Header, dict[str, Entry]]] = []
    homes: dict[str, dict[str, Entry]] = {}  # launches that a resumed run has added belong to those before
    for line in _parsed(data[: data.rfind(b"\n") + 1], path):
        if isinstance(line, Header):
            runs.append((line, {}))
        elif runs:
            home = homes.setdefault(line.point, runs[-1][1]) if line.point else runs[-1][1]
            home[line.key] = line
    if not runs:
        raise InvbenchError(f"{path} holds no sweep: got {len(data)} bytes without a header; name a sweep's journal")
    # Runs may differ in versions and settings; each row is told with those of its own.
    measured = [run for run in runs if run[1]] or runs[-1:]
    sets = [document(entries.values(), header, header.machines) for header, entries in measured]
    return ResultSet.merged(sets, sets[-1].command, sets[-1].created)


def read_entries(path: Path) -> list[Entry]:
    """The entries of a journal, the last of each key, and without a torn last line; raises as ``read_document``."""
    data = _read_file(path)
    lines = _parsed(data[: data.rfind(b"\n") + 1], path)
    return list({line.key: line for line in lines if isinstance(line, Entry)}.values())


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvbenchError(f"{path} cannot be read ({error.strerror}); name a sweep's journal") from error


def document(
    entries: Iterable[Entry], header: Header, machines: Mapping[str, Mapping[str, Any]], interrupted: bool = False
) -> ResultSet:
    """The result document of some entries, measured as the header says on those machines; launches of a point are put
    together."""
    rows = tuple(_rows_of(entries, header.settings.get("launches", 1)))
    used = {
        result.machine: machines[result.machine] for result in rows if result.machine and result.machine in machines
    }
    peaks, baselines = {str(result.peaks): result.peaks for result in rows}, {result.baseline for result in rows}
    return ResultSet(
        results=rows, command=header.command, created=header.created, tool_version=header.tool_version,
        environment=next(iter(used.values()), next(iter(machines.values()), {})), settings=header.settings,
        peaks=next(iter(peaks.values())) if len(peaks) == 1 else None,
        baseline=next(iter(baselines)) if len(baselines) == 1 else None,
        interrupted=interrupted, machines=used if len(used) > 1 else {},
    )  # fmt: skip


def _rows_of(entries: Iterable[Entry], launches: int) -> Iterator[Result]:
    points: dict[str, list[Entry]] = {}
    for entry in entries:
        points.setdefault(entry.point or entry.key, []).append(entry)
    for own in points.values():
        if own[0].point is None:
            yield from own[0].results
        else:
            yield from together({entry.launch: entry.results for entry in own}, launches)
