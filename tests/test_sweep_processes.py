"""Sweeps with real processes: killed, interrupted, and with subjects that take their process down."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # noqa: TID251 -- who else would tell which processes are left
import pytest

from invbench.results import Status
from invbench.results.journal import read_document

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and groups of processes")

TINY = ["--C=4", "--H=6", "--K=3", "--backend=naive", "--budget=0.05", "--device=cpu", "--threads=1"]
THREE = ["--N=1,2,3", *TINY]
MARK = "INVBENCH_TEST_SWEEP"  # in the environment of a sweep and of all that it starts
GONE_SECONDS = 10.0


@dataclass
class Running:
    """A sweep in a session of its own, as a terminal gives it one."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str

    def family(self) -> list[psutil.Process]:
        """The sweep and every process that it started, also those whose parents have ended."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def wait_for(self, holds: Callable[[], bool], seconds: float = 120.0) -> None:
        """Wait until something holds, or the sweep has ended."""
        deadline = time.monotonic() + seconds
        while not holds() and self.process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def told(self) -> str:
        return (self.folder / "stderr").read_text()

    def assert_nobody_is_left(self) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        while left := self.family():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)


@contextlib.contextmanager
def sweep(folder: Path, *arguments: str, program: str = "-m invbench sweep") -> Iterator[Running]:
    mark = f"{folder}-{time.monotonic_ns()}"
    # No commit: points are keyed by it, and who runs the tests may commit meanwhile.
    own = {MARK: mark, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GIT_DIR": os.devnull}
    environment = {**os.environ, **own}
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *program.split(), *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=err, text=True, start_new_session=True,
        )  # fmt: skip
    running = Running(process, folder, mark)
    try:
        yield running
    finally:
        for each in running.family():
            with contextlib.suppress(psutil.Error):
                each.kill()
        process.wait(30)


def finish(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a sweep that is left alone."""
    with sweep(folder, *arguments) as running:
        code = running.process.wait(240)
        running.assert_nobody_is_left()
    return code, (folder / "stdout").read_text(), running.told()


def rows(folder: Path) -> list[tuple[int, str, str, str]]:
    found = read_document(folder / "sweep.jsonl").results
    return [(result.case.N, result.subject, result.backend, str(result.status)) for result in found]


def keys(folder: Path) -> list[str]:
    lines = (folder / "sweep.jsonl").read_bytes().splitlines()
    return [line["key"] for line in map(json.loads, lines) if "key" in line]


ROWS = sorted(
    (N, *row, "ok")
    for N in (1, 2, 3)
    for row in (
        ("involution", "naive"),
        *((name, "torch") for name in ("conv2d", "conv2d-3x3", "depthwise", "separable")),
    )
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys of a sweep that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, err = finish(folder, *THREE, "--format=json")
    assert code == 0, err
    assert len(json.loads(out)["results"]) == 15
    assert all(line.startswith("invbench: ") for line in err.splitlines()), err
    assert sorted(rows(folder)) == ROWS
    return keys(folder)


# --- Killed ---


def kill_and_resume(folder: Path, moments: list[float]) -> None:
    """kill -9 the sweep, after seconds that count from where its journal begins, and resume; then to the end."""
    for after in moments:
        known = len(keys(folder)) if (folder / "sweep.jsonl").exists() else 0
        with sweep(folder, *THREE, "--resume") as running:
            running.wait_for(lambda: (folder / "sweep.jsonl").exists())
            time.sleep(after)
            running.process.kill()
            running.process.wait(10)
            running.assert_nobody_is_left()
        assert "Traceback" not in running.told()
        whole = (folder / "sweep.jsonl").read_bytes()
        assert whole == b"" or known <= whole.count(b'\n{"key":') <= 3
    # Every second time as if the machine had died, too: the end of the file is torn.
    data = (folder / "sweep.jsonl").read_bytes()
    (folder / "sweep.jsonl").write_bytes(data[: len(data) - 7 * (len(moments) % 2)])
    code, out, err = finish(folder, *THREE, "--resume", "--format=json")
    assert code == 0, err
    assert sorted(rows(folder)) == ROWS  # none twice, none lost
    assert len(set(keys(folder))) == len(keys(folder)) == 3
    assert len(json.loads(out)["results"]) == 15


def test_killed_twice_and_resumed_it_has_all_rows(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, [random.uniform(2, 6), random.uniform(2, 6)])


def test_launches_that_were_killed_in_the_middle_make_whole_points(tmp_path: Path) -> None:
    two = ["--N=1,2", "--launches=2", *TINY]
    with sweep(tmp_path, *two) as running:
        running.wait_for(lambda: "[3/4]" in running.told())
        running.process.kill()
        running.process.wait(10)
        running.assert_nobody_is_left()
    assert len(keys(tmp_path)) == 3
    code, out, err = finish(tmp_path, *two, "--resume", "--format=json")
    assert code == 0, err
    assert "3 of 4 launches are in sweep.jsonl already" in err
    found = json.loads(out)["results"]
    assert [row["case"]["N"] for row in found] == [1] * 5 + [2] * 5
    for row in found:
        assert (len(row["latency"]["processes"]), row["ratio"]["latency"]["pairs"]) == (2, 2)
        assert sum(row["latency"]["processes"]) == len(row["latency"]["blocks"])
        assert row["memory"] is not None
        assert any(warning.startswith("only 2 launches") for warning in row["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_a_random_moment_and_resumed_it_has_the_same_rows(
    seed: int, undisturbed: list[str], tmp_path: Path
) -> None:
    kill_and_resume(tmp_path, [random.Random(seed).uniform(0, 10)])
    assert sorted(keys(tmp_path)) == sorted(undisturbed)


# --- Subjects that take their process down ---

SUBJECTS = """
import os, re, sys, time, torch
from torch import nn
from invbench import Involution2d, involution2d

print("imported")  # must not get into the document

def raises(case):
    raise RuntimeError("first line\\nsecond \\x1b[31mline")

def hangs(case):
    return lambda x: re.match("(a+)+$", "a" * 60 + "b")  # and keeps Python's lock meanwhile

def aborts(case):
    os.write(1, b"made\\n")
    return lambda x: os.abort()

def leaves(case):
    return lambda x: sys.exit(3)

def interrupts(case):
    def operator(x):
        raise KeyboardInterrupt
    return operator

def nothing(case):
    return None

def pair(case):
    return lambda x: (x, x)

def no_number(case):
    return lambda x: x * torch.nan

def own(case):
    return nn.Conv2d(case.layer.C, case.layer.C, 1)

def right(case):
    s = case.layer
    if case.scope == "aggregate":
        return lambda x, weight: involution2d(x, weight, backend="naive")
    return Involution2d(s.C, s.K, s.stride, s.dilation, s.G, reduction=s.reduction)

def wrong(case):
    return lambda x, weight: involution2d(x, weight.flip(2), backend="naive")

def shape(case):
    return lambda x, weight: involution2d(x, weight, backend="naive").unsqueeze(0)

right.is_involution = wrong.is_involution = shape.is_involution = True
"""

# subject: status, and words of the reason.
FATES: dict[str, tuple[str, str]] = {
    "raises": ("error", "RuntimeError: first line"),
    "hangs": ("timeout", "raise --timeout"),
    "aborts": ("error", "SIGABRT"),
    "leaves": ("error", "SystemExit: 3"),
    "interrupts": ("error", "ended its process"),
    "nothing": ("error", "got NoneType"),
    "pair": ("error", "got tuple"),
    "no_number": ("mismatch", "float64 reference"),
    "own": ("ok", ""),
    "right": ("ok", ""),
    "wrong": ("mismatch", "float64 reference"),
    "shape": ("error", "wrong shape"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """Two points, one of which needs more memory than there is, with every subject of FATES."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "mine.py").write_text(SUBJECTS)
    named = [f"--subject=mine:{name}" for name in FATES]
    how = ["--N=1,1000000000", *TINY, "--scope=aggregate", "--timeout=3", "--format=json"]
    code, out, err = finish(folder, *how, *named)
    return code, json.loads(out), err


def test_subjects_that_fail_are_rows_with_reasons_and_4(hostile: tuple[int, dict[str, Any], str]) -> None:
    code, document, err = hostile
    assert code == 4, err
    found = {
        row["backend"] if row["subject"] == "involution" else row["subject"]: row for row in document["results"][:17]
    }
    for name, (status, words) in FATES.items():
        row = found.pop(f"mine:{name}")
        assert (row["status"], words in (row["reason"] or "")) == (status, True), row
        assert (row["latency"] is not None) == (status == "ok")
        assert row["subject"] == ("involution" if name in ("right", "wrong", "shape") else f"mine:{name}")
        assert (row["reason"] or "").isprintable()
    assert {label: row["status"] for label, row in found.items()} == dict.fromkeys(
        ["naive", "conv2d", "conv2d-3x3", "depthwise", "separable"], "ok"
    )


def test_a_point_without_room_is_not_tried(hostile: tuple[int, dict[str, Any], str]) -> None:
    _, document, _ = hostile
    large = [row for row in document["results"] if row["case"]["N"] == 10**9]
    assert {row["status"] for row in large} == {str(Status.OOM)}
    assert len(large) == 17
    assert all("not enough memory" in row["reason"] for row in large)


def test_what_subjects_print_is_no_result_and_no_traceback_is_told(hostile: tuple[int, dict[str, Any], str]) -> None:
    _, _, err = hostile  # standard output was a document
    assert "imported" in err
    assert "made" in err
    assert "Traceback" not in err
    assert "leaked" not in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys; sys.exit(5)", "ended its process (exit code 5)"),
        pytest.param("raise RuntimeError('at import')", "RuntimeError: at import", marks=pytest.mark.slow),
        ("import os; os.abort()", "SIGABRT"),
    ],
    ids=["exits", "raises", "aborts"],
)
def test_a_subject_that_cannot_be_imported_is_2_and_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    code, out, err = finish(tmp_path, *THREE, "--quiet", "--subject=mine:make", "--subject=mine:make")
    (line,) = [each for each in err.splitlines() if each.startswith("invbench: ")]
    assert (code, out) == (2, "")
    assert line.startswith("invbench: --subject mine:make: it cannot be imported")
    assert words in line
    assert "Traceback" not in err


# --- Interrupted, and read by nobody ---


@pytest.mark.parametrize(
    "after", ["starting the measuring process", pytest.param("0 of 3 points", marks=pytest.mark.slow), "[1/3]"]
)
def test_ctrl_c_is_130_and_leaves_nobody(after: str, tmp_path: Path) -> None:
    with sweep(tmp_path, *THREE) as running:
        running.wait_for(lambda: after in running.told())
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
        # If it came inside of exec, as dataclasses use it, Python ends by the signal, whatever the program says; a
        # shell calls both 130.
        assert running.process.wait(30) in (130, -signal.SIGINT)
        running.assert_nobody_is_left()
    assert "Traceback" not in running.told()
    last = running.told().splitlines()[-1]
    found = re.search(r"interrupted: (\d) of 3 points are in sweep.jsonl;", last)
    assert found or "interrupted before anything was measured" in last
    assert last.endswith(f"; go on with: invbench sweep {' '.join(THREE)} --resume")
    assert (tmp_path / "sweep.jsonl").exists() == bool(found)  # a journal without a point is not left behind
    assert not found or len(keys(tmp_path)) == int(found[1])


@pytest.mark.slow
def test_a_sweep_whose_standard_files_are_closed_keeps_an_intact_journal(tmp_path: Path) -> None:
    arguments = " ".join(["--N=1", *TINY, "--output=out.json"])
    command = f"exec {sys.executable} -m invbench sweep {arguments} >&- 2>&- <&-"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    del environment["HOME"]
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, timeout=240)
    assert done.returncode == 0
    assert len(rows(tmp_path)) == 5
    assert json.loads((tmp_path / "out.json").read_text())["results"]
