"""``invbench train``: options, one line for each bad input, what goes where, bars and lines, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_cli import assert_one_line, run
from test_training import alone, images_of  # noqa: F401 -- a fixture

from invbench.ops import unfold
from invbench.report import bars
from invbench.report.bars import Bars, TrainingLines, TrainingTeller, minutes
from invbench.results import ResultSet, Status
from invbench.training import BATCHES, EPOCHS, running
from invbench.training.data_sets import DATA_SETS
from invbench.training.learning import Learner

command = importlib.import_module("invbench.cli.train")

TINY = ["train", "--pair=report", "--epochs=2", "--N=8", "--device=cpu", "--threads=1", "--backend=unfold"]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few, and made here."""
    monkeypatch.setattr(command, "load", lambda name, folder, tell: images_of())


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C after some epochs."""
    left = [10**9]
    turn = running._turn

    def turning(*arguments: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        turn(*arguments)

    monkeypatch.setattr(running, "_turn", turning)
    return lambda epochs: left.__setitem__(0, epochs)


BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "unknown data set": (["--data-set", "imagenet"], ["--data-set", "imagenet", "digits"]),
    "unknown pair": (["--pair", "flops"], ["--pair", "flops", "macs"]),
    "unknown backend": (["--backend", "foo"], ["--backend", "foo", "numba"]),
    "unknown device": (["--device", "foo"], ["--device", "foo"]),
    "unknown layout": (["--layout", "foo"], ["--layout", "foo"]),
    "unknown dtype": (["--dtype", "int8"], ["--dtype", "int8", "float32"]),
    "a half type": (["--dtype", "float16"], ["--dtype", "scaling", "float16", "try float32"]),
    "the other half type": (["--dtype", "bfloat16"], ["--dtype", "scaling", "bfloat16"]),
    **{
        f"{name} of 0": ([f"--{name}", "0"], [f"--{name}", "0", "at least 1"])
        for name in ("epochs", "seeds", "N", "threads")
    },
    "negative epochs": (["--epochs=-3"], ["--epochs", "-3"]),
    "epochs in words": (["--epochs", "many"], ["--epochs", "many"]),
    "negative seed": (["--seed=-1"], ["--seed", "-1"]),
    "a batch of too many": (["--N", "100000", "--device=cpu"], ["--N", "1437", "100000"]),
    "too many threads": (["--threads", "4096", "--device=cpu"], ["--threads", "4096"]),
    "resuming from nowhere": (["--resume"], ["--resume", "--checkpoint DIR"]),
    "checkpoints in a file": (["--checkpoint", __file__], ["--checkpoint", "folder"]),
    "checkpoints nowhere": (["--checkpoint", "nowhere/below"], ["--checkpoint", "nowhere", "does not exist"]),
    "data for digits": (["--data", "."], ["--data", "digits"]),
    "data nowhere": (["--data", "nowhere", "--data-set", "mnist"], ["--data", "nowhere"]),
    "data in a file": (["--data", __file__, "--data-set", "mnist"], ["--data", "folder"]),
    "data of too long a name": (["--data", "d" * 300, "--data-set", "mnist"], ["--data", "File name too long"]),
    "a file of too long a name": (["--output", f"{'o' * 300}.json"], ["--output", "File name too long"]),
    "unknown format": (["--format", "pdf"], ["--format", "pdf", "markdown"]),
    "unknown suffix": (["--output", "a.pdf"], ["--output", "a.pdf"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_2_and_one_line(
    arguments: list[str], words: list[str], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", *arguments, "--quiet") == 2
    line = assert_one_line(capsys.readouterr())
    for word in words:
        assert word in line, line
    assert not list(tmp_path.iterdir())


def test_defaults_are_those_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "_trained", lambda case, settings, given, tell: seen.append((case, settings)) or 1 / 0)
    for name, data_set in DATA_SETS.items():
        assert run("train", f"--data-set={name}", "--quiet") == 4
        case, settings = seen[-1]
        assert (case.data_set, case.epochs, case.N) == (name, EPOCHS[name], BATCHES[name])
        assert (case.H, case.W, case.dtype, case.layout) == (data_set.H, data_set.W, "float32", "contiguous")
        assert (settings.pairs, settings.backends) == (("report", "params", "macs"), ("auto",))
        assert (settings.seeds, settings.seed, settings.learning_rate, settings.autotune) == (1, 0, 1e-3, True)
    assert run("train", "--quiet") == 4
    assert seen[-1][0].data_set == "digits"


def test_a_run(images: None, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "result.json"
    arguments = ["--seeds=2", "--seed=5", "--pair=params", f"--output={file}", "--format=json", "--no-autotune"]
    assert run(*TINY, *arguments) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    stored = ResultSet.from_json(file.read_text())
    assert [(row["subject"], row["backend"], row["pair"]) for row in document["results"]] == [
        ("mnist-conv", "torch", "report,params"), ("mnist-inv", "unfold", "report"),
        ("mnist-inv-params", "unfold", "params"),
    ]  # fmt: skip
    for row in document["results"]:
        assert row["status"] == "ok"
        assert len(row["accuracy"]["values"]) == len(row["train_time"]["values"]) == 2
        assert row["accuracy"]["median"] == sum(row["accuracy"]["values"]) / 2
        assert row["step_time"]["pairs"] == 4
        assert row["params_trainable"] > 0
        assert (row["case"]["data_set"], row["case"]["epochs"]) == ("digits", 2)
    assert (document["baseline"], document["interrupted"]) == ("mnist-conv", False)
    assert document["settings"] == {
        "pairs": ["report", "params"], "backends": ["unfold"], "asked_for": ["unfold"], "seeds": 2, "seed": 5,
        "learning_rate": 1e-3, "autotune": False, "optimizer": "Adam", "data_set_title": "rows of light",
        "images": {"train": 20, "validation": 12},
    }  # fmt: skip
    assert stored.results == ResultSet.from_json(captured.out).results
    lines = captured.err.splitlines()
    assert "invbench: importing torch" in lines
    assert "invbench: training" in lines
    assert sum("4/4 epochs, loss " in line and "accuracy " in line for line in lines) == 3
    assert "\x1b" not in captured.err


def test_a_mismatch_is_4(images: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = unfold.aggregate
    monkeypatch.setattr(unfold, "aggregate", lambda x, weight, spec: right(x, weight, spec).flip(-1))
    assert run(*TINY, "--quiet", "--format=json") == 4
    captured = capsys.readouterr()
    assert [row["status"] for row in json.loads(captured.out)["results"]] == [Status.OK, Status.MISMATCH]
    assert captured.err == ""


def test_a_loss_that_is_no_number_is_4(images: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = Learner.step

    def step(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return right(learner, x, y) * (float("nan") if learner.subject.backend == "unfold" else 1.0)

    monkeypatch.setattr(Learner, "step", step)
    assert run(*TINY, "--format=json") == 4
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["results"]
    assert [row["status"] for row in rows] == [Status.OK, Status.ERROR]
    assert "nan in epoch 1 of 2" in rows[1]["reason"]
    assert "invbench: mnist-inv (unfold): the training loss became nan" in captured.err


def test_ctrl_c_is_130_with_what_there_is_and_how_to_go_on(
    images: None, stop_after: Callable[[int], None], capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    arguments = [*TINY, "--quiet", "--format=json", f"--checkpoint={folder}"]
    monkeypatch.setattr(sys, "argv", ["invbench", *arguments])
    stop_after(3)
    assert run(*arguments) == 130
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["interrupted"] is True
    assert sum(len(row["accuracy"]["curves"][0]) for row in document["results"]) == 3
    assert captured.err == (
        f"invbench: interrupted: 3 of 4 epochs are trained; go on with: invbench {' '.join(arguments)} --resume\n"
    )
    stop_after(10**9)
    assert run(*arguments, "--resume") == 0
    resumed = json.loads(capsys.readouterr().out)
    assert run(*TINY, "--quiet", "--format=json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert [row["accuracy"] for row in resumed["results"]] == [row["accuracy"] for row in whole["results"]]


def test_without_checkpoints_ctrl_c_says_what_would_help(
    images: None, stop_after: Callable[[int], None], capsys: Any
) -> None:
    stop_after(2)
    assert run(*TINY, "--quiet", "--format=json") == 130
    assert "2 of 4 epochs are trained; with --checkpoint DIR" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [True, False])
def test_interrupted_early_is_130_and_one_line(
    kept: bool, images: None, stop_after: Callable[[int], None], capsys: Any, tmp_path: Path
) -> None:
    stop_after(0)
    assert run(*TINY, "--quiet", *([f"--checkpoint={tmp_path}"] if kept else [])) == 130
    line = assert_one_line(capsys.readouterr())
    assert "interrupted before an epoch was trained; " in line
    assert ("--resume" in line) == kept


def test_a_training_that_is_there_needs_resume(images: None, capsys: Any, tmp_path: Path) -> None:
    arguments = [*TINY, "--quiet", "--format=json", f"--checkpoint={tmp_path}"]
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments) == 2
    assert "add --resume" in assert_one_line(capsys.readouterr())
    assert run(*arguments, "--resume", "--epochs=3") == 2
    assert "differs in epochs (there 2, here 3)" in assert_one_line(capsys.readouterr())


def test_the_command_hides_folders(images: None, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*TINY, "--epochs=1", "--quiet", "--format=json", f"--checkpoint={tmp_path / 'kept'}"]
    monkeypatch.setattr(sys, "argv", ["invbench", *arguments])
    assert run(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["command"].endswith("--checkpoint=kept")


# --- Bars and lines ---


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_bars_show_loss_accuracy_and_time_left() -> None:
    time, screen = Time(), io.StringIO()
    told = Bars(Console(file=screen, force_terminal=True, width=120, no_color=True), time)
    told("preparing")
    told.begin(["mnist-conv", "mnist-inv (numba)"], 10, [0, 4])
    assert "0/10 epochs" in screen.getvalue()
    assert "4/10 epochs" in screen.getvalue()
    time.seconds += 10
    told.step("mnist-conv", 0.5)
    assert "5:10 left" in screen.getvalue()  # 15.5 epochs of both, as long as this one
    before = len(screen.getvalue())
    told.step("mnist-conv", 0.6)  # too soon to be drawn
    assert len(screen.getvalue()) == before
    time.seconds += 10
    told.epoch("mnist-conv", 0.1234, 97.25)
    time.seconds += 1
    told.epoch("mnist-inv (numba)", 0.5, 50.0)
    text = screen.getvalue()[before:]
    assert "1/10 epochs" in text
    assert "loss 0.123, accuracy 97.2 %" in text
    assert "3:05 left" in text  # 9 epochs of 20 s and 5 of 1 s
    time.seconds += 1
    told.failed("mnist-inv (numba)", "it broke [here]")
    assert "mnist-inv (numba): it broke [here]" in screen.getvalue()
    time.seconds += 19
    told.epoch("mnist-conv", 0.1, 98.0)
    assert "2:40 left" in screen.getvalue()  # 8 epochs of 20 s
    told("measuring memory")
    told.close()
    told.keep("done")
    assert screen.getvalue().rstrip().endswith("done")


def test_lines_come_only_now_and_then_and_at_the_end(capsys: Any) -> None:
    time = Time()
    told = TrainingLines(time)
    told.begin(["a", "b"], 3, [0, 0])
    for label, wait in (("a", 1), ("b", 6), ("a", 1), ("b", 1), ("a", 1), ("b", 1)):
        time.seconds += wait
        told.epoch(label, 1.5, 50.0)
    told.failed("a", "it broke")
    assert capsys.readouterr().err.splitlines() == [
        "invbench: training",
        "invbench: b: 1/3 epochs, loss 1.500, accuracy 50.0 %",
        "invbench: a: 3/3 epochs, loss 1.500, accuracy 50.0 %",
        "invbench: b: 3/3 epochs, loss 1.500, accuracy 50.0 %",
        "invbench: a: it broke",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [True, False])
def test_a_terminal_gets_bars_unless_quiet(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with bars.training_progress(quiet) as told:
        told("preparing")
        told.begin(["a"], 1, [0])
        told.step("a", 0.5)
        told.epoch("a", 1.0, 50.0)
        told.failed("a", "it broke")
        told.keep("a line")
    assert (screen.getvalue() == "") == quiet
    assert isinstance(told, Bars) != quiet
    assert "\x1b[3" not in screen.getvalue()  # no colours


def test_nobody_reads_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with bars.training_progress(False) as told:
        assert type(told) is TrainingTeller


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3723, "1:02:03")])
def test_minutes(seconds: float, text: str) -> None:
    assert minutes(seconds) == text


@pytest.mark.slow
def test_digits_are_learned_both_ways(capsys: Any) -> None:
    assert run("train", "--data-set=digits", "--device=cpu", "--quiet", "--format=json") == 0
    rows = {row["pair"]: row["accuracy"]["median"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert rows["report,params,macs"] >= 95
    assert rows["report"] >= 75
    assert min(rows["params"], rows["macs"]) >= 95
