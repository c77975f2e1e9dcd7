"""The journal: whole lines whatever happens, one writer at a time, and nothing of anybody else's that is lost."""

from __future__ import annotations

import errno
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import CASE, document, row

from invbench.results import Status, journal
from invbench.results import files as documents
from invbench.results.journal import Entry, Header, Journal, Span, key_of, open_journal, read_document
from invbench.spec import InvbenchError

HEADER = Header("invbench sweep", "2026-01-02T03:04:05+00:00", "0.1.0", {"seed": 0}, {"abc": {"cpu": {"model": "ä"}}})
POINTS = {f"key{N}": replace(CASE, N=N) for N in (1, 2, 3)}


def entry(key: str, *medians: float) -> Entry:
    rows = [
        row(*who, *medians, case=POINTS[key], machine="abc") for who in (("involution", "numba"), ("conv2d", "torch"))
    ]
    failed = row("involution", "naive", status=Status.OOM, reason="needs 9 GiB", case=POINTS[key], machine="abc")
    return Entry(key, (*rows, failed), {"wall": 1.5})


def write(path: Path, *keys: str, resume: bool = True) -> None:
    with open_journal(path, resume) as kept:
        kept.add_header(HEADER)
        for key in keys:
            if key not in kept.entries:
                kept.add(entry(key))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep.jsonl"


# --- Writing and reading ---


def test_what_is_written_is_read(path: Path) -> None:
    write(path, *POINTS, resume=False)
    with open_journal(path, resume=True) as kept:
        assert kept.entries == {key: entry(key) for key in POINTS}
        assert kept.repaired == 0
    found = read_document(path)
    assert [result.case for result in found.results] == [case for case in POINTS.values() for _ in range(3)]
    assert (found.command, found.settings, found.environment) == (
        "invbench sweep",
        {"seed": 0},
        {"cpu": {"model": "ä"}},
    )
    assert documents.load(path) == found


def test_an_entry_of_a_cluster_says_where_and_when(path: Path) -> None:
    with open_journal(path, resume=False) as kept:
        kept.add_header(HEADER)
        plain = entry("key1")
        rows = tuple(replace(result, node="node-a/0123abcd") for result in plain.results)
        kept.add(replace(plain, results=rows, span=Span("0123abcd" * 7, 1e9, 1e9 + 2.5)))
    with open_journal(path, resume=True) as again:
        assert again.entries == kept.entries
    assert {result.node for result in read_document(path).results} == {"node-a/0123abcd"}


def test_each_line_is_on_disk_before_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        sizes.append(path.stat().st_size)

    with open_journal(path, resume=False) as kept:
        monkeypatch.setattr(os, "fsync", seen)
        kept.add_header(HEADER)
        for key in POINTS:
            kept.add(entry(key))
            assert path.read_bytes().endswith(b"\n")
            assert sizes[-1] == path.stat().st_size
    assert len(sizes) == 4


def test_lines_are_plain_json(path: Path) -> None:
    write(path, *POINTS)
    lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert lines[0]["journal"] == 1
    assert [line["key"] for line in lines[1:]] == list(POINTS)


def test_an_entry_again_counts_last(path: Path) -> None:
    with open_journal(path, resume=True) as kept:
        kept.add_header(HEADER)
        kept.add(entry("key1", *[1e-3] * 6))
        kept.add(entry("key1", *[2e-3] * 6))
    found = read_document(path)
    assert [result.seconds for result in found.results] == [2e-3, 2e-3, None]


@pytest.mark.parametrize("content", [None, b""], ids=["none", "empty"])
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "new"])
def test_a_journal_begins_where_there_is_none(path: Path, content: bytes | None, resume: bool) -> None:
    if content is not None:
        path.write_bytes(content)
    write(path, "key1", resume=resume)
    assert len(read_document(path).results) == 3


def test_a_journal_with_points_wants_resume(path: Path) -> None:
    write(path, "key1")
    before = path.read_bytes()
    with pytest.raises(InvbenchError, match="exists: add --resume"), open_journal(path, resume=False):
        pass
    assert path.read_bytes() == before


# --- Torn lines ---


@functools.cache
def whole_journal() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.jsonl"
        write(path, *POINTS)
        return path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_cut_anywhere_it_resumes_to_the_same_set(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = whole_journal()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    near = st.sampled_from([end + step for end in (-1, *ends) for step in (0, 1, 2) if 0 <= end + step <= len(whole)])
    cut = data.draw(st.one_of(near, st.integers(0, len(whole))))
    path = tmp_path_factory.mktemp("cut") / "sweep.jsonl"
    path.write_bytes(whole[:cut])
    with open_journal(path, resume=True) as kept:
        assert kept.repaired == cut - (whole[:cut].rfind(b"\n") + 1)
        assert kept.entries == {key: entry(key) for key in list(POINTS)[: max(0, whole[:cut].count(b"\n") - 1)]}
    write(path, *POINTS)
    with open_journal(path, resume=True) as kept:
        assert (kept.entries, kept.repaired) == ({key: entry(key) for key in POINTS}, 0)
    keys = [json.loads(line).get("key") for line in path.read_bytes().splitlines()]
    assert sorted(filter(None, keys)) == sorted(POINTS)  # none twice, none lost


def test_reading_leaves_a_torn_line_out_and_where_it_is(path: Path) -> None:
    torn = whole_journal()[:-20]
    path.write_bytes(torn)
    assert {result.case.N for result in read_document(path).results} == {1, 2}
    assert path.read_bytes() == torn


# --- What is no journal stays as it is ---

STRANGE: dict[str, tuple[bytes, str]] = {
    # what: the content, and words of the message
    "a line without an end": (b"precious", "not a line of a sweep's journal"),
    "text": (b"precious\nwork", ":1 is not a line"),
    "JSON without an end": (b'{"schema": 1}', "not a line"),
    "a document": (document(row()).to_json().encode() + b"\n", ":1 is not a line"),
    "a list": (b'["journal"]\n', ":1 is not a line"),
    "a number": (b"3\n", ":1 is not a line"),
    "an empty line": (b"\n", ":1 is not a line"),
    "no text": (b"\xff\xfe\n", ":1 is not a line"),
    "deep": (b"[" * 100_000 + b"\n", ":1 is not a line"),
    "an entry without rows": (b'{"key": "a"}\n', ":1 is not a line"),
    "rows that are none": (b'{"key": "a", "results": [3], "seconds": {}}\n', ":1 is not a line"),
    "a header without machines": (b'{"journal": 1}\n', ":1 is not a line"),
    "machines that are none": (
        b'{"journal":1,"command":"","created":"","tool":{"version":""},"settings":{},"machines":3}\n', ":1 is not"),
    "another version": (b'{"journal": 2, "command": ""}\n', "version 1: got 2"),
    "a version that is none": (b'{"journal": null}\n', "version 1: got None"),
    "damage in the middle": (b"%(header)s\n{\n%(header)s\n", ":2 is not a line"),
}  # fmt: skip


@pytest.mark.parametrize("read", ["write", "load"])
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "new"])
@pytest.mark.parametrize(("content", "words"), STRANGE.values(), ids=STRANGE.keys())
def test_what_is_no_journal_is_refused_and_kept(
    path: Path, content: bytes, words: str, resume: bool, read: str
) -> None:
    content = content.replace(b"%(header)s", json.dumps(HEADER.to_line()).encode())
    path.write_bytes(content)
    if read == "load" and not content.endswith(b"\n"):
        words = "holds no sweep|is not a line"
    with pytest.raises(InvbenchError, match=words) as refused:
        write(path, "key1", resume=resume) if read == "write" else read_document(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a folder": (lambda folder: folder, "got the folder"),
    "here": (lambda folder: Path(), "got the folder"),
    "the root": (lambda folder: Path("/"), "got the folder"),
    "a folder that is not there": (lambda folder: folder / "no" / "a.jsonl", "'no' does not exist"),
    "in a file": (lambda folder: folder / "file" / "a.jsonl", "'file' does not exist"),
    "a name too long": (lambda folder: folder / ("x" * 300), "cannot be opened"),
    "a link to itself": (lambda folder: folder / "loop", "cannot be opened"),
    "a device": (lambda folder: Path("/dev/null"), "takes a file that keeps"),
    "a full device": (lambda folder: Path("/dev/full"), "takes a file that keeps"),
    "where nothing can be": (lambda folder: Path("/proc/a.jsonl"), "cannot be opened"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="some of these places are Linux's")
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "new"])
@pytest.mark.parametrize(("place", "words"), PLACES.values(), ids=PLACES.keys())
def test_a_place_that_can_have_no_journal(
    place: Callable[[Path], Path], words: str, resume: bool, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InvbenchError, match=words) as refused, open_journal(place(tmp_path), resume):
        pass
    assert str(refused.value).startswith("--journal ")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_that_may_not_be_written(path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so this is what the system would say to others.
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if "a" in mode and self == path:
            raise (
                PermissionError(errno.EACCES, "Permission denied")
                if what == "file"
                else OSError(errno.EROFS, "Read-only file system")
            )
        return opened(self, mode, *args, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvbenchError, match=r"cannot be opened \((Permission denied|Read-only file system)\)"):
        write(path)
    assert not path.exists()


@pytest.mark.parametrize("path", ["nowhere.jsonl", "."])
def test_reading_what_is_not_there(path: str) -> None:
    with pytest.raises(InvbenchError, match="cannot be read"):
        read_document(Path(path))


# --- One writer ---


def test_the_second_sweep_is_refused(path: Path) -> None:
    with open_journal(path, resume=True) as kept:
        kept.add_header(HEADER)
        before = path.read_bytes()
        for resume in (True, False):
            with pytest.raises(InvbenchError, match="in use by another sweep"), open_journal(path, resume):
                pass
        assert path.read_bytes() == before
        kept.add(entry("key1"))
    write(path, "key2")  # once the first is done, it is free
    assert len(read_document(path).results) == 6


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_to_a_journal_in_use_is_in_use(path: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.jsonl"
    link.symlink_to(path)
    with (
        open_journal(path, resume=True),
        pytest.raises(InvbenchError, match="in use by another sweep"),
        open_journal(link, resume=True),
    ):
        pass


def test_a_sweep_in_another_process_is_refused_and_its_death_is_not_waited_for(path: Path) -> None:
    program = (
        "import sys, pathlib; from invbench.results.journal import open_journal\n"
        "with open_journal(pathlib.Path(sys.argv[1]), True): print('open', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, str(path)], text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(InvbenchError, match="in use by another sweep"):
            write(path)
        other.kill()
        other.wait(10)
    write(path, "key1")
    assert len(read_document(path).results) == 3


# --- A full disk ---


@pytest.fixture
def kept(path: Path) -> Iterator[Journal]:
    with open_journal(path, resume=False) as opened:
        opened.add_header(HEADER)
        opened.add(entry("key1"))
        yield opened


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nothing", "half", "all but its end"])
@pytest.mark.parametrize("can_cut", [True, False], ids=["cut", "not cut"])
def test_a_full_disk_leaves_an_intact_journal(
    path: Path, kept: Journal, share: float, can_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, written = path.read_bytes(), []
    write_bytes = os.write

    def full(descriptor: int, data: bytes) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: int(share * (len(data) - 1))]
        written.append(part)
        return write_bytes(descriptor, part)

    class Stuck:
        """A file that cannot even be made shorter."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def truncate(self, size: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

    file = kept._file
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        if not can_cut:
            patch.setattr(kept, "_file", Stuck())
        with pytest.raises(InvbenchError, match=r"No space left on device\); its 1 point\(s\) are kept: .*--resume"):
            kept.add(entry("key2"))
    assert path.read_bytes() == (before if can_cut else before + written[0])
    assert set(kept.entries) == {"key1"}
    if can_cut:
        kept.add(entry("key2"))  # there is room again
        assert {result.case.N for result in read_document(path).results} == {1, 2}
    else:
        assert {result.case.N for result in read_document(path).results} == {1}


def test_a_disk_that_does_not_keep_what_it_took(path: Path, kept: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(InvbenchError, match="Input/output error"):
            kept.add(entry("key2"))
    assert path.read_bytes() == before


def test_a_slow_disk_takes_a_line_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write_bytes(descriptor, data[:1000]))
    write(path, *POINTS)
    assert path.read_bytes() == whole_journal()


# --- Keys ---


def test_a_key_depends_on_everything_and_not_on_its_order() -> None:
    point: dict[str, Any] = {"case": {"N": 1, "C": 2}, "settings": {"seed": 0}, "versions": {"torch": "2"}}
    assert key_of(point) == key_of(dict(reversed(point.items())))
    others = [{**point, "case": {"N": 2, "C": 1}}, {**point, "versions": {"torch": "3"}}, {**point, "more": None}]
    assert len({key_of(each) for each in (point, *others)}) == 4
    assert journal.VERSION == 1


def test_a_sweep_that_is_refused_leaves_no_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    with pytest.raises(InvbenchError, match="refused"), open_journal(path, resume=False):
        raise InvbenchError("refused")
    assert not path.exists()


def test_runs_that_differ_are_told_apart(path: Path) -> None:
    """A journal that was resumed with another torch and budget: no row is said to have been measured by the other."""
    headers = [
        replace(HEADER, settings={"seed": 0, "budget": budget}, machines={"abc": {"versions": {"torch": torch}}})
        for budget, torch in ((1, "2.12"), (2, "2.13"))
    ]
    with open_journal(path, resume=True) as kept:
        for number, header in enumerate(headers):
            kept.add_header(replace(header, created=f"run {number}"))
            kept.add(replace(entry("key1"), key=f"key1 of {number}"))
    found = read_document(path)
    assert found.settings == {"seed": 0}
    assert "torch" not in found.environment.get("versions", {})
    assert len(found.points()) == 2
    assert {row.run for row in found.results} == {"run 0", "run 1"}


def test_a_journal_by_any_name_is_read(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    write(path, "key1", "key2")
    assert len(documents.load(path).points()) == 2
