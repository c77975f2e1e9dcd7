"""``invbench sweep``: options, files, exit codes, and what is told; with workers of our own."""

from __future__ import annotations

import functools
import io
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_workers import FakeWorker, Machine, crashes, measured, welcome

from invbench import cli
from invbench.harness import sweep as scheduler
from invbench.harness.messages import Hello, Plan, PlanJob, PointJob, Welcome
from invbench.harness.sweep import Sweep, greet
from invbench.report import FORMATS
from invbench.report.progress import progress
from invbench.results import ResultSet
from invbench.results.journal import Header, open_journal, read_document


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TICK", 0.001)


TINY = ["sweep", "--N=1,2,3", "--C=16", "--H=6", "--K=3", "--backend=naive", "--device=cpu"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """The command with fake workers, in a folder of its own."""
    fake = Machine(answers={PlanJob: Plan({}, 2**20, 2**30)})

    def greeted(hello: Hello, tell: Callable[[str], None]) -> tuple[Any, Welcome]:
        fake.answers[Hello] = welcome()
        return greet(hello, tell, fake.spawn)

    command = sys.modules["invbench.cli.sweep"]
    monkeypatch.setattr(command, "greet", greeted)
    monkeypatch.setattr(command, "Sweep", functools.partial(Sweep, spawn=fake.spawn))
    monkeypatch.chdir(tmp_path)
    return fake


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["invbench", *arguments])
        return cli._run(list(arguments))


def test_a_sweep_is_one_document_and_a_journal(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--format=json", "--output=out.json", "--journal=j.jsonl") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["command"].startswith("invbench sweep --N=1,2,3")
    assert [row["case"]["N"] for row in document["results"][::5]] == [1, 2, 3]
    assert document["baseline"] == "conv2d"
    assert ResultSet.from_json(captured.out).results == read_document(Path("j.jsonl")).results
    assert Path("out.json").read_text(encoding="utf-8") == captured.out
    lines = captured.err.splitlines()
    assert all(line.startswith("invbench: ") and line.isprintable() for line in lines)
    assert [line.partition("]")[0] for line in lines if "[" in line] == [f"invbench: [{done}/3" for done in (1, 2, 3)]
    assert len(machine.workers) == 1
    assert machine.workers[0].stopped


def test_the_journal_is_named_after_the_profile(machine: Machine) -> None:
    Path("mine.toml").write_text("[axes]\nN = [1, 2]\nC = 16\nH = 6\nK = 3\n")
    assert run("sweep", "mine.toml", "--quiet") == 0
    assert len(read_document(Path("mine.jsonl")).points()) == 2
    assert run("sweep", "--N=1", "--C=16", "--quiet") == 0
    assert Path("sweep.jsonl").exists()


def test_resume_measures_what_is_missing_once(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--N=1,2", "--quiet", "--resume") == 0
    capsys.readouterr()
    assert run(*TINY, "--format=json", "--resume") == 0
    captured = capsys.readouterr()
    assert "2 of 3 points are in sweep.jsonl already" in captured.err
    assert [len(worker.jobs) for worker in machine.workers] == [2, 1]
    assert [row["case"]["N"] for row in json.loads(captured.out)["results"][::5]] == [1, 2, 3]
    assert run(*TINY, "--quiet", "--resume") == 0
    assert [len(worker.jobs) for worker in machine.workers] == [2, 1, 0]
    assert run(*TINY, "--quiet") == 2
    assert "exists: add --resume" in capsys.readouterr().err


def test_launches_are_resumed_one_by_one_and_told_as_points(machine: Machine, capsys: Any) -> None:
    def stop(worker: FakeWorker, job: PointJob) -> None:
        if (job.launch, job.case.N) == (1, 2):
            raise KeyboardInterrupt
        worker.answer(measured(job))

    usual, machine.measure = machine.measure, stop
    assert run(*TINY, "--launches=6", "--format=json") == 130
    captured = capsys.readouterr()
    assert "4 of 18 launches are in sweep.jsonl; go on with" in captured.err
    document = json.loads(captured.out)
    assert [row["latency"]["processes"] for row in document["results"][::5]] == [[6, 6], [6], [6]]
    assert "only 2 of 6 launches are measured: --resume measures the others" in document["results"][0]["warnings"]
    machine.measure = usual
    assert run(*TINY, "--launches=6", "--format=json", "--resume") == 0
    captured = capsys.readouterr()
    assert "4 of 18 launches are in sweep.jsonl already" in captured.err
    assert "invbench: [14/14] launch 6 of 6, N=3 C=16" in captured.err
    assert "invbench: 14 launches in 0:0" in captured.err
    document = json.loads(captured.out)
    assert [row["case"]["N"] for row in document["results"][::5]] == [1, 2, 3]
    assert all(row["latency"]["processes"] == [6] * 6 for row in document["results"])
    assert document["settings"]["launches"] == 6
    assert ResultSet.from_json(captured.out).results == read_document(Path("sweep.jsonl")).results


def test_a_launch_that_came_to_nothing_is_4_and_its_points_are_told(machine: Machine, capsys: Any) -> None:
    def second_dies(worker: FakeWorker, job: PointJob) -> None:
        if (job.launch, job.case.N) == (1, 2):
            worker.crash()
        else:
            worker.answer(measured(job))

    machine.measure = second_dies
    assert run(*TINY, "--launches=3", "--quiet", "--format=json") == 4
    rows = json.loads(capsys.readouterr().out)["results"]
    assert {row["status"] for row in rows} == {"ok"}
    assert [len(row["latency"]["processes"]) for row in rows[::5]] == [3, 2, 3]


def test_a_journal_of_one_and_of_several_launches_has_both(machine: Machine, tmp_path: Path, capsys: Any) -> None:
    assert run(*TINY, "--quiet") == 0
    assert run(*TINY, "--quiet", "--launches=2", "--resume") == 0
    assert [len(worker.jobs) for worker in machine.workers] == [3, 3, 3]
    found = read_document(Path("sweep.jsonl"))
    assert len(found.points()) == 6
    assert {row.latency.processes for row in found.results} == {None, (6, 6)}
    capsys.readouterr()
    for name in FORMATS:
        assert run("report", "sweep.jsonl", "--format", name) == 0
        assert capsys.readouterr().out
    assert run("report", "sweep.jsonl", "--output", "a.parquet") == 0
    import pandas as pd

    frame = pd.read_parquet("a.parquet")
    assert [None if each is None else list(each) for each in frame["latency.processes"]] == [None] * 15 + [[6, 6]] * 15


def test_a_dry_run_tells_points_and_how_long_their_launches_take(machine: Machine, capsys: Any) -> None:
    seconds = []
    for launches in (1, 6):
        assert run(*TINY, f"--launches={launches}", "--dry-run", "--format=json") == 0
        found = json.loads(capsys.readouterr().out)
        assert [point["case"]["N"] for point in found["points"]] == [1, 2, 3]
        seconds.append(found["seconds"]["low"])
    assert seconds[0] < seconds[1] < 6 * seconds[0]
    assert run(*TINY, "--launches=6", "--dry-run") == 0
    assert "3 points in 6 launches, about" in capsys.readouterr().out


def test_the_profile_says_how_many_launches_unless_the_command_does(machine: Machine) -> None:
    Path("mine.toml").write_text("launches = 2\n[axes]\nC = 16\nH = 6\nK = 3\n")
    assert run("sweep", "mine.toml", "--quiet") == 0
    assert [len(worker.jobs) for worker in machine.workers] == [1, 1]
    assert run("sweep", "mine.toml", "--quiet", "--launches=1", "--journal=one.jsonl") == 0
    assert [len(worker.jobs) for worker in machine.workers] == [1, 1, 1]


def test_a_torn_line_is_told(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--quiet") == 0
    data = Path("sweep.jsonl").read_bytes()
    Path("sweep.jsonl").write_bytes(data[:-100])
    assert run(*TINY, "--resume") == 0
    assert "the last line was torn, and is removed" in capsys.readouterr().err
    assert len(read_document(Path("sweep.jsonl")).points()) == 3


@pytest.mark.parametrize("after", [0, 2])
def test_ctrl_c_is_130_and_says_how_to_go_on(machine: Machine, after: int, capsys: Any) -> None:
    def stop(worker: FakeWorker, job: PointJob) -> None:
        if after < job.case.N:
            raise KeyboardInterrupt
        worker.answer(measured(job))

    machine.measure = stop
    assert run(*TINY, "--format=json", "--output=out.json", "--quiet", "--journal", "a b.jsonl") == 130
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"invbench: interrupted: {after} of 3 points are in a b.jsonl; go on with: ")
    assert all(worker.stopped for worker in machine.workers)
    if after:
        assert json.loads(captured.out)["interrupted"] is True
        assert len(ResultSet.from_json(Path("out.json").read_text()).results) == 5 * after
    else:
        assert captured.out == ""
    machine.measure = Machine().measure
    again = shlex.split(line.partition("go on with: ")[2])
    assert again[0] == "invbench"
    assert run(*again[1:]) == 0
    assert len(read_document(Path("a b.jsonl")).points()) == 3
    assert json.loads(capsys.readouterr().out)["interrupted"] is False


def test_ctrl_c_before_the_first_point_says_how_to_go_on(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["invbench.cli.sweep"], "greet", stop)
    assert run(*TINY, "--quiet") == 130
    line = f"invbench: interrupted before anything was measured; go on with: invbench {' '.join(TINY)} --quiet --resume"
    assert capsys.readouterr().err == f"{line}\n"
    assert run(*TINY, "--quiet", "--dry-run") == 130
    assert capsys.readouterr().err == "invbench: interrupted before anything was measured\n"


def test_a_failed_point_is_4_and_the_others_are_measured(machine: Machine, capsys: Any) -> None:
    machine.measure = crashes("conv2d")
    assert run(*TINY, "--format=json", "--quiet") == 4
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["case"]["N"], row["subject"]) for row in rows if row["status"] != "ok"] == [(2, "conv2d")]


def test_a_full_disk_is_one_line_and_what_was_measured_is_kept(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write, lines = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        """A header and a point fit, and the beginning of another."""
        if len(lines) == 3:
            raise OSError(28, "No space left on device")
        lines.append(data)
        return write(descriptor, data[:100] if len(lines) == 3 else data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert run(*TINY, "--quiet") == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "No space left on device); its 1 point(s) are kept: free some space" in captured.err
    assert Path("sweep.jsonl").read_bytes().endswith(b"}\n")
    assert all(worker.stopped for worker in machine.workers)
    assert run(*TINY, "--quiet", "--resume") == 0
    assert len(read_document(Path("sweep.jsonl")).points()) == 3


def test_a_second_sweep_on_the_journal_is_refused(machine: Machine, capsys: Any) -> None:
    with open_journal(Path("sweep.jsonl"), resume=True) as kept:
        kept.add_header(Header("invbench sweep", "", "", {}, {}))
        assert run(*TINY, "--quiet", "--resume") == 2
    assert "in use by another sweep" in capsys.readouterr().err
    assert machine.workers == []


def test_a_dry_run_leaves_nothing_behind(machine: Machine, tmp_path: Path, capsys: Any) -> None:
    assert run(*TINY, "--dry-run") == 0
    assert "3 points" in capsys.readouterr().out
    assert run(*TINY, "--dry-run", "--format=json", "--quiet") == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 3
    assert list(tmp_path.iterdir()) == []
    assert all(worker.jobs == [] and worker.stopped for worker in machine.workers)


def test_shuffle_changes_the_order_of_measuring_and_nothing_else(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--N=1:8", "--shuffle", "--format=json", "--quiet") == 0
    assert [job.case.N for job in machine.workers[0].jobs] != list(range(1, 9))
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["case"]["N"] for row in rows[::5]] == list(range(1, 9))


def test_a_subject_named_twice_is_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Hello] = []
    command = sys.modules["invbench.cli.sweep"]
    greeted = command.greet  # type: ignore[attr-defined]
    monkeypatch.setattr(command, "greet", lambda hello, tell: (seen.append(hello), greeted(hello, tell))[1])
    assert run(*TINY, "--quiet", "--subject=a:b", "--subject=a:b", "--subject=c:d") == 0
    assert seen[0].subjects == ("a:b", "c:d")


def test_conditions_on_the_threads_wait_for_their_number(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--quiet", "--filter", "threads = 2") == 0
    assert run(*TINY, "--quiet", "--resume", "--filter", "threads = 3") == 2
    assert "no point is left: none fulfils threads = 3" in capsys.readouterr().err


def test_points_of_other_devices_only_are_none_here(machine: Machine, capsys: Any) -> None:
    Path("gpu.toml").write_text('backend = "naive"\nconstraints = "device = cuda"\n')
    assert run("sweep", "gpu.toml", "--quiet", "--backend=naive") == 2
    assert "no point is left: none fulfils device = cuda" in capsys.readouterr().err


def test_a_backend_that_was_asked_for_and_can_run_nowhere_is_2(machine: Machine, capsys: Any) -> None:
    machine.answers[PlanJob] = Plan({"triton": "it runs on GPUs"}, 1, 1)
    assert run(*TINY[:-2], "--backend=triton", "--quiet") == 2
    assert "--backend triton: it runs on GPUs" in capsys.readouterr().err


BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    # what: the arguments after "sweep", and words of the answer
    "G twice": (["--G=4", "--group-channels=4"], ["--G", "--group-channels", "give one"]),
    "range backwards": (["--H", "56:7"], ["--H", "'56:7'", "swap"]),
    "no value": (["--C", ""], ["--C", "got ''"]),
    "a comma too many": (["--C", "16,"], ["--C", "got ''"]),
    "even window": (["--K", "3,4"], ["K=4", "odd"]),
    "group channels in words": (["--group-channels", "x"], ["--group-channels", "'x'"]),
    "group channels that fit nowhere": (["--C=10", "--group-channels=4"], ["no point is left", "divide C"]),
    "unknown baseline": (["--baseline", "conv"], ["--baseline", "conv2d-3x3"]),
    "unknown mode": (["--mode", "forward,sideways"], ["--mode", "'sideways'"]),
    "unknown backend": (["--backend", "naive,cuda"], ["--backend", "'cuda'", "numba"]),
    "unknown format": (["--format", "xml"], ["--format", "'xml'"]),
    "too many": (["--N", "1:1000", "--C", "1:1000"], ["combinations", "shorten"]),
    "an endless range": (["--N", "1:99999999999999999999"], ["--N", "at most"]),
    "a filter that leaves nothing": (["--filter", "C = 3"], ["no point is left", "C = 3"]),
    "a filter that is none": (["--filter", "C ="], ["'C ='", "try"]),
    "a filter of nobody": (["--filter", "Q = 3"], ["'Q'", "take N, C"]),
    "a filter without a value": (["--filter", "C / 0 > 1"], ["division by zero"]),
    "no timeout": (["--timeout", "0"], ["--timeout", "above 0"]),
    "endless timeout": (["--timeout", "inf"], ["--timeout", "inf"]),
    "no budget": (["--budget", "0"], ["--budget"]),
    "unknown profile": (["quik"], ["quick?"]),
    "empty profile name": ([""], ["no profile ''"]),
    "profile that is not there": (["no.toml"], ["No such file"]),
    "bad profile": (["bad.toml"], ["bad.toml:2: axes.C"]),
    "profile whose constraint divides by zero": (["zero.toml"], ["division by zero"]),
    "journal in no folder": (["--journal", "no/j.jsonl"], ["--journal", "'no' does not exist"]),
    "journal that is a folder": (["--journal", "folder"], ["--journal", "got the folder"]),
    "journal that is none": (["--journal", "notes.txt", "--resume"], ["notes.txt:1", "not a line"]),
    "output in no folder": (["--output", "no/a.json"], ["--output", "does not exist"]),
    "dry run to a file": (["--dry-run", "--output", "a.json"], ["--dry-run", "--output"]),
    "dry run as a page": (["--dry-run", "--format", "html"], ["--dry-run", "--format"]),
    "two profiles": (["quick", "ci"], ["ci"]),
    "no launch": (["--launches=0"], ["--launches must be at least 1: got 0", "6 give an interval"]),
    "half a launch": (["--launches=1.5"], ["--launches"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line(
    machine: Machine, arguments: list[str], words: list[str], tmp_path: Path, capsys: Any
) -> None:
    Path("folder").mkdir()
    Path("notes.txt").write_text("precious")
    Path("bad.toml").write_text("[axes]\nC = 0\n")
    Path("zero.toml").write_text('constraints = ["G = C / (H - 28)"]\n')
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run("sweep", "--quiet", *arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("invbench: ")
    for word in words:
        assert word in captured.err, captured.err
    assert machine.workers == []
    assert Path("notes.txt").read_text() == "precious"
    assert [name for name in sorted(path.name for path in tmp_path.iterdir()) if not name.startswith(".")] == before


# --- Who reads what is done ---


class Gone(io.StringIO):
    """A standard error whose reader has left."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_nobody_has_to_read_standard_error(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Gone())
        assert run(*TINY, "--format=json") == 0
        assert run("sweep", "--K=4") == 2
    assert len(json.loads(capsys.readouterr().out)["results"]) == 15


def test_progress_keeps_the_time_left_and_not_every_round(capsys: Any) -> None:
    with progress(quiet=False) as tell:
        for line in (
            "1 of 2 points, about 0:06 min left; N=1: preparing",
            "1 of 2 points, about 0:06 min left; N=1: more",
        ):
            tell(line)
    assert capsys.readouterr().err == "invbench: 1 of 2 points, about 0:06 min left; N=1\n"


@pytest.mark.parametrize("option", ["--threads=1,3", "--clock=device"])
def test_what_is_wrong_at_every_point_is_2_before_any_is_measured(machine: Machine, option: str, capsys: Any) -> None:
    assert run(*TINY, option) == 2
    assert option.partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
    assert not machine.workers[0].jobs


def test_the_journal_is_not_written_over_by_the_results(machine: Machine, capsys: Any) -> None:
    assert run(*TINY, "--journal=one.json", "--output=./one.json") == 2
    assert "--journal and --output are one file" in capsys.readouterr().err
    assert not Path("one.json").exists()


def test_settings_say_what_was_asked(machine: Machine) -> None:
    assert run(*TINY, "--baseline=depthwise", "--timeout=7", "--quiet", "--output=out.json") == 0
    settings = ResultSet.from_json(Path("out.json").read_text(encoding="utf-8")).settings
    assert (settings["baseline"], settings["timeout"]) == ("depthwise", 7)
