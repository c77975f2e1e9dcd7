"""``invbench compare-models``: options, one line for each bad input, what goes where, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from network_runs import FakeClock
from test_cli import assert_one_line, run

from invbench.harness.networks import comparing
from invbench.models import SUBJECTS
from invbench.ops import unfold
from invbench.results import ResultSet, Status
from invbench.spec import Regime

IMAGENET = [name for name, model in SUBJECTS.items() if model.suite == "imagenet"]
SMALL = ["compare-models", "--models=rednet26", "--image-size=48", "--device=cpu", "--threads=1", "--backend=unfold"]


BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "unknown model": (["--models", "rednet51"], ["--models", "rednet51", "try rednet50"]),
    "no model": (["--models", ""], ["--models", "rednet50"]),
    "empty name": (["--models", "rednet50,"], ["--models"]),
    "unknown baseline": (["--baseline", "vgg"], ["--baseline", "vgg"]),
    "unknown backend": (["--backend", "foo"], ["--backend", "foo", "numba"]),
    "unknown mode": (["--mode", "backward"], ["--mode", "backward", "train"]),
    "unknown dtype": (["--dtype", "int8"], ["--dtype", "int8"]),
    "unknown layout": (["--layout", "foo"], ["--layout", "foo"]),
    "unknown device": (["--device", "foo"], ["--device", "foo"]),
    "stem": (["--stem-kernel-size", "5"], ["--stem-kernel-size", "5", "7"]),
    "no images": (["--N", "0"], ["--N", "0", "at least 1"]),
    "no pixels": (["--image-size=-4"], ["--image-size", "-4"]),
    "no threads": (["--threads", "0"], ["--threads", "0"]),
    "image in words": (["--image-size", "big"], ["--image-size", "big"]),
    "no budget": (["--budget", "0"], ["--budget", "0"]),
    "negative seed": (["--seed=-1"], ["--seed", "-1"]),
    "nothing to normalise": (["--mode", "train", "--image-size", "32"], ["--image-size", "position"]),
    "both static and breakdown": (["--static", "--breakdown"], ["--static", "--breakdown", "one"]),
    "unknown format": (["--format", "pdf"], ["--format", "pdf", "markdown"]),
    "unknown suffix": (["--output", "a.pdf"], ["--output", "a.pdf"]),
    "device clock": (["--clock", "device", "--device", "cpu"], ["--clock", "device"]),
    "models and suite": (["--models", "rednet26", "--suite", "small"], ["--models", "--suite", "give one"]),
    "unknown suite": (["--suite", "coco"], ["--suite", "coco", "imagenet"]),
    "sizes for networks that have their own": (
        ["--suite", "small", "--image-size", "64"],
        ["--image-size", "mnist-conv", "28x28", "leave it out"],
    ),
    "other images than the baseline's": (
        ["--models", "mnist-inv", "--baseline", "resnet50"],
        ["mnist-inv", "resnet50"],
    ),
    "a size that a network does not take": (
        ["--suite", "attention", "--image-size", "64"],
        ["--image-size", "san10_pairwise", "at least 128", "got 64x64"],
    ),
    "too large": (["--models", "axial26s", "--image-size", "224,320x128"], ["axial26s", "at most 224", "320x128"]),
    "a size that the baseline does not take": (
        ["--models", "rednet26", "--image-size", "96", "--baseline", "san10_pairwise"],
        ["san10_pairwise", "baseline", "96x96", "--baseline"],
    ),
    "half a size": (["--image-size", "800x"], ["--image-size", "'800x'", "800x1280"]),
    "three sides": (["--image-size", "224,8x8x8"], ["--image-size", "'8x8x8'"]),
    "no width": (["--image-size", "8x0"], ["--image-size", "'8x0'", "at least 1"]),
    "a range that goes down": (["--image-size", "224:160:32"], ["--image-size", "224:160:32", "swap"]),
    "one image of two": (
        ["--models", "upernet_rednet50", "--mode", "train", "--image-size", "64"],
        ["upernet_rednet50", "at least 2 images", "--N 2"],
    ),
    "other sizes than theirs": (
        ["--models", "mnist-inv,cifar10-inv", "--image-size", "28"],
        ["cifar10-inv", "32x32 only", "leave it out"],
    ),
    "autocast in float32": (["--autocast"], ["autocast", "bfloat16", "float32"]),
    "a list that is none": (["--N", "1,x"], ["--N", "'x'"]),
    "one mode of two is unknown": (["--mode", "forward,backward"], ["--mode", "backward"]),
    "own network that is not there": (["--models", "nowhere:it", "--device", "cpu"], ["--models nowhere:it"]),
    "too many threads": (["--threads", "4096", "--device", "cpu"], ["--threads", "4096"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_2_and_one_line(arguments: list[str], words: list[str], capsys: Any) -> None:
    assert run("compare-models", *arguments, "--quiet") == 2
    line = assert_one_line(capsys.readouterr())
    for word in words:
        assert word in line, line


def test_counts_of_all_networks(capsys: Any) -> None:
    assert run("compare-models", "--static", f"--models={','.join(IMAGENET)}", "--format=json", "--device=cpu") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [row["subject"] for row in document["results"]] == IMAGENET
    for row in document["results"]:
        assert (row["status"], row["latency"], row["memory"]) == ("ok", None, None)
        assert row["baseline"] == row["subject"].replace("red", "res")
        assert row["macs_mmcv"] > row["macs"] > row["params"]
        assert row["published"]["source"]
    assert ResultSet.from_json(captured.out).networks().results


def test_static_says_what_the_counts_say(capsys: Any) -> None:
    assert run("compare-models", "--static", "--models=rednet26", "--format=markdown", "--device=cpu", "--quiet") == 0
    out = capsys.readouterr().out
    assert "rednet26 has 0.674x the parameters and 0.730x the multiply-adds of resnet26" in out


def test_a_run(clock: FakeClock, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "result.json"
    assert run(*SMALL, "--budget=0.5", "--stem-kernel-size=3", f"--output={file}", "--seed=5") == 0
    captured = capsys.readouterr()
    assert "rednet26 (unfold), eager" in captured.out
    assert "invbench: preparing rednet26 (unfold), eager\n" in captured.err
    stored = ResultSet.from_json(file.read_text())
    assert [row.regime for row in stored.results] == [Regime.EAGER] * 3 + [Regime.COMPILED] * 3
    assert {row.case.stem_kernel_size for row in stored.results} == {3}
    assert (stored.settings["seed"], stored.settings["backends"]) == (5, ["unfold"])
    assert stored.command.startswith("invbench")


def test_a_mismatch_is_4(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    right = unfold.aggregate
    # Not a factor, which the batch norms of a training step take away.
    monkeypatch.setattr(unfold, "aggregate", lambda x, weight, spec: right(x, weight, spec).flip(-1))
    assert run(*SMALL, "--mode=train", "--budget=0.5", "--quiet", "--format=json") == 4
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["results"]
    assert [row["status"] for row in rows] == [Status.MISMATCH, Status.OK, Status.OK]
    assert captured.err == ""


def test_an_interrupted_run_is_130_with_what_there_is(clock: FakeClock, capsys: Any) -> None:
    def stop(sample: int) -> None:
        if sample == 14:
            raise KeyboardInterrupt

    clock.on_sample = stop
    assert run(*SMALL, "--mode=train", "--budget=9", "--quiet", "--format=json") == 130
    assert json.loads(capsys.readouterr().out)["interrupted"] is True


def test_interrupted_early_is_130_and_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "compare_networks", stop)
    assert run(*SMALL, "--quiet") == 130
    assert "before anything was measured" in assert_one_line(capsys.readouterr())


SUITE_COUNTS = {
    "detection": (11, (800, 1280), "box AP"),
    "segmentation": (5, (1024, 2048), "mIoU"),
    "attention": (4 + 16 + 4, (224, 224), None),
}


@pytest.mark.parametrize(("suite", "expected"), SUITE_COUNTS.items(), ids=SUITE_COUNTS)
def test_counts_of_a_suite(suite: str, expected: tuple[int, tuple[int, int], str | None], capsys: Any) -> None:
    count, size, score = expected
    assert run("compare-models", "--static", f"--suite={suite}", "--format=json", "--device=cpu", "--quiet") == 0
    out = capsys.readouterr().out
    rows = ResultSet.from_json(out).results
    assert len(rows) == count
    for row in rows:
        assert size == (row.case.H, row.case.W)
        assert row.macs_mmcv >= row.macs > row.params > 0
        assert row.ratio.flop
        if score:
            assert row.published["scores"][score] > 30
            assert tuple(row.published["size"]) == size
    assert ResultSet.from_json(ResultSet.from_json(out).to_json()) == ResultSet.from_json(out)


def test_sizes_are_sides_ranges_and_heights_by_widths(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[tuple[Any, Any]] = []
    right = comparing.count_networks

    def counted(case: Any, settings: Any) -> Any:
        seen.append((case, settings))
        return right(case, settings)

    monkeypatch.setattr(comparing, "count_networks", counted)
    arguments = ["--static", "--models=resnet26,mnist-inv", "--image-size=64,40X56,32:48:16", "--device=cpu", "--quiet"]
    assert run("compare-models", *arguments, "--format=csv") == 0
    assert [(case.H, case.W) for case, _ in seen] == [(64, 64), (40, 56), (32, 32), (48, 48), (28, 28)]
    assert "40" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "seconds"), [([], 8.0 + 2.0 * (19 - 6)), (["--budget=5"], 5.0)])
def test_the_budget_grows_with_the_rows(
    given: list[str], seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    seen: list[float] = []

    def compared(case: Any, settings: Any, tell: Any) -> Any:
        seen.append(settings.budget.seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "compare_networks", compared)
    for suite in (["--models=rednet50"], ["--suite=detection", "--image-size=128x192"]):
        assert run("compare-models", *suite, *given, "--device=cpu", "--quiet") == 130
        capsys.readouterr()
    assert seen == [5.0 if given else 8.0, seconds]


def test_counts_of_the_small_networks(capsys: Any) -> None:
    assert run("compare-models", "--static", "--suite=small", "--format=json", "--device=cpu") == 0
    document = ResultSet.from_json(capsys.readouterr().out)
    assert {row.subject: (row.case.H, row.params) for row in document.results} == {
        "mnist-conv": (28, 34_826), "mnist-inv": (28, 544), "mnist-inv-params": (28, 34_932),
        "mnist-inv-macs": (28, 47_015), "fashion-mnist-conv": (28, 257_162), "fashion-mnist-inv": (28, 3_916),
        "fashion-mnist-inv-params": (28, 256_142), "fashion-mnist-inv-macs": (28, 386_547),
        "cifar10-conv": (32, 319_178), "cifar10-inv": (32, 13_074), "cifar10-inv-params": (32, 317_986),
        "cifar10-inv-macs": (32, 426_492),
    }  # fmt: skip
    assert all(row.activations and row.ratio.params for row in document.results)


def test_several_points_are_one_document(clock: FakeClock, capsys: Any) -> None:
    arguments = ["--models=mnist-inv", "--N=2,4", "--mode=forward,train", "--device=cpu", "--threads=1"]
    assert run("compare-models", *arguments, "--backend=unfold", "--budget=1", "--format=json") == 0
    captured = capsys.readouterr()
    document = ResultSet.from_json(captured.out)
    points = {(point[0].case.N, str(point[0].case.mode)): point for point in document.points()}
    assert set(points) == {(2, "forward"), (4, "forward"), (2, "train"), (4, "train")}
    for point in points.values():
        assert all(row.status is Status.OK for row in point), [row.reason for row in point]
        assert point[0].ratio.latency.median == pytest.approx(1)
    assert "[4/4] train, N=4, 28x28; measuring" in captured.err


def test_what_was_measured_of_several_points_survives_ctrl_c(
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    right = comparing.compare_networks

    def stopped(case: Any, settings: Any, tell: Any) -> Any:
        if case.N == 4:
            raise KeyboardInterrupt
        return right(case, settings, tell)

    monkeypatch.setattr(comparing, "compare_networks", stopped)
    arguments = ["--models=mnist-inv", "--N=2,4", "--device=cpu", "--threads=1", "--backend=unfold", "--budget=1"]
    assert run("compare-models", *arguments, "--format=json") == 130
    document = ResultSet.from_json(capsys.readouterr().out)
    assert document.interrupted
    assert {row.case.N for row in document.results} == {2}
