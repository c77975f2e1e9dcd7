"""``invbench check`` with real processes: every exit code, and workers that die, hang and print rubbish.

What is compared here sleeps instead of computing, so that its speed is known on any machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
PROFILE = """\
budget = 1.5
[axes]
N = 1
C = 4
H = 4
baseline = "none"
[check]
latency = "20%"
visible = "60%"
"""
OPERATOR = """\
import os, random, time
import torch

class Sleeper(torch.nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
    def forward(self, x):
        time.sleep(self.seconds)
        return 2 * x

def scribble():
    for number in range(3, 20):
        try:
            os.write(number, b"rubbish\\n")
        except OSError:
            pass

def factory(case):
    return Sleeper({seconds})
"""
DIES = OPERATOR.format(seconds="0.002").replace("time.sleep(self.seconds)", "os._exit(7)")
CRASHES = OPERATOR.format(seconds="0.002").replace("time.sleep(self.seconds)", "os.abort()")
HANGS = OPERATOR.format(seconds="0.002").replace("time.sleep(self.seconds)", "time.sleep(1000)")
RAISES = OPERATOR.format(seconds="0.002").replace("time.sleep(self.seconds)", "raise RuntimeError('no luck')")
RUBBISH = OPERATOR.format(seconds="0.002").replace(
    "time.sleep(self.seconds)",
    "scribble()",
)
WRONG = OPERATOR.format(seconds="0.002").replace("return 2 * x", "return 2 * x if x.dtype == torch.float64 else 3 * x")
SLOWER = OPERATOR.format(seconds="0.004")
NOISY = OPERATOR.format(seconds="random.choice([0.001, 0.004])")  # once a process


class Project:
    """A user's git checkout with an operator, and the program run in it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        folder.mkdir()
        self.git("init", "--quiet")
        self.write(OPERATOR.format(seconds="0.002"), "small.toml", PROFILE)
        self.commit()

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def write(self, operator: str, *more: str) -> None:
        (self.folder / "operator_of_mine.py").write_text(operator)
        for name, text in zip(more[::2], more[1::2], strict=True):
            (self.folder / name).write_text(text)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "one")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "INVBENCH_CACHE_DIR": str(self.cache), "PYTHONPATH": str(ROOT)}
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            environment.pop(name, None)
        command = [
            sys.executable, "-m", "invbench", "check", "small.toml", "--subject", "operator_of_mine:factory",
            "--device", "cpu", *arguments,
        ]  # fmt: skip
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def check(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=400)
        assert "Traceback" not in stderr
        return process.returncode, stdout, stderr

    def found(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        code, stdout, stderr = self.check(*arguments, "--format", "json")
        assert stdout, stderr
        return code, json.loads(stdout)


def latency(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(f for f in document["checks"][0]["findings"] if f["metric"] == "latency")
    return found


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", tmp_path / "cache")


@pytest.mark.alone
@pytest.mark.slow
def test_identical_code_passes_with_0_and_leaves_the_checkout_alone(project: Project) -> None:
    before = project.git("status", "--porcelain"), sorted(project.folder.rglob("*"))
    (project.folder / ".git" / "info" / "exclude").write_text("__pycache__\n")
    code, document = project.found("--base", "HEAD", "--quiet")
    assert (code, latency(document)["verdict"]) == (0, "PASS")
    files = [path for path in sorted(project.folder.rglob("*")) if "__pycache__" not in str(path)]
    assert (project.git("status", "--porcelain"), files) == before
    series = document["checks"][0]["series"][0]
    assert [len(launch) for launch in series["stages"][0]] == [30, 30, 30]


@pytest.mark.alone
@pytest.mark.slow
def test_a_slower_head_fails_with_1_and_a_faster_one_improves(project: Project) -> None:
    project.write(SLOWER)
    code, document = project.found("--base", "HEAD")
    finding = latency(document)
    assert (code, finding["verdict"]) == (1, "FAIL")
    assert 1.3 < finding["ratio"]["median"] < 2.5
    assert len(document["checks"][0]["series"][0]["stages"]) == 2  # confirmed by fresh processes
    project.commit()
    project.write(OPERATOR.format(seconds="0.002"))
    code, document = project.found("--base", "HEAD")
    assert (code, latency(document)["verdict"]) == (0, "IMPROVED")


@pytest.mark.alone
@pytest.mark.slow
def test_launches_that_differ_are_inconclusive_with_3_and_count_as_asked(project: Project) -> None:
    project.write(NOISY)
    project.commit()
    # Where all six processes happen to draw alike, nothing differs.
    for _ in range(3):
        code, document = project.found("--base", "HEAD")
        if latency(document)["verdict"] != "PASS":
            break
    assert (code, latency(document)["verdict"]) == (3, "INCONCLUSIVE")
    assert latency(document)["smallest_effect"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (DIES, "exit code 7"), (CRASHES, "SIGABRT"), (HANGS, "no answer for 15 s"), (RUBBISH, "what is no answer"),
        (WRONG, "differs from the float64 reference"), (RAISES, "no luck"),
    ],
    ids=["dies", "crashes", "hangs", "rubbish", "wrong", "raises"],
)  # fmt: skip
def test_a_head_that_fails_is_4(project: Project, operator: str, reason: str) -> None:
    project.write(operator)
    code, document = project.found("--base", "HEAD", "--timeout", "15")
    assert (code, latency(document)["verdict"]) == (4, "ERROR")
    assert reason in latency(document)["reason"]


@pytest.mark.slow
def test_other_dependencies_are_not_comparable_with_5(project: Project) -> None:
    project.write(OPERATOR.format(seconds="0.002"), "pyproject.toml", '[project]\ndependencies = ["torch>=2.6"]\n')
    project.commit()
    project.write(SLOWER, "pyproject.toml", '[project]\ndependencies = ["torch>=2.7"]\n')
    code, document = project.found("--base", "HEAD")
    assert (code, latency(document)["verdict"]) == (5, "NOT-COMPARABLE")
    assert "base wants torch>=2.6, head torch>=2.7" in latency(document)["reason"]
    params = next(f for f in document["checks"][0]["findings"] if f["metric"] == "params")
    assert params["verdict"] == "PASS"


@pytest.mark.slow
def test_what_only_one_side_has_is_new_or_missing(project: Project) -> None:
    project.git("rm", "--quiet", "operator_of_mine.py")
    project.commit()
    project.write(SLOWER)
    project.commit()
    code, document = project.found("--base", "HEAD~1")
    assert (code, latency(document)["verdict"]) == (0, "NEW")


@pytest.mark.slow
def test_what_head_has_lost_is_missing_and_what_nobody_has_is_bad_input(project: Project) -> None:
    project.git("rm", "--quiet", "operator_of_mine.py")
    code, document = project.found("--base", "HEAD")
    assert (code, latency(document)["verdict"]) == (1, "MISSING")
    project.commit()
    code, _, stderr = project.check("--base", "HEAD")
    assert code == 2
    assert "there is no module operator_of_mine, neither in head nor in the base" in stderr


@pytest.mark.alone
@pytest.mark.slow
def test_a_wheel_is_a_base_whatever_lies_where_the_user_is(project: Project) -> None:
    wheel = project.folder / "mine-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("operator_of_mine.py", OPERATOR.format(seconds="0.002"))
        file.writestr("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
        file.writestr("mine-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("mine-1.dist-info/RECORD", "")
    project.write(SLOWER)
    code, document = project.found("--base-wheel", wheel.name)
    assert (code, latency(document)["verdict"]) == (1, "FAIL")
    assert document["checks"][0]["base"]["name"] == wheel.name


@pytest.mark.alone
@pytest.mark.slow
def test_another_environment_is_a_base_whatever_lies_where_the_user_is(project: Project, tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    python = tmp_path / "other" / "bin" / "python"
    site = next((tmp_path / "other" / "lib").glob("python*")) / "site-packages"
    # What is installed here, but for what is installed by its path.
    (site / "here.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    (site / "operator_of_mine.py").write_text(SLOWER)
    code, document = project.found("--base-python", str(python))
    assert (code, latency(document)["verdict"]) == (0, "IMPROVED")


@pytest.mark.alone
@pytest.mark.slow
def test_a_baseline_file_is_written_compared_with_and_guards_its_rows(project: Project) -> None:
    assert project.check("--baseline-file", "base.json")[0] == 2
    code, _, stderr = project.check("--baseline-file", "base.json", "--update")
    assert code == 0, stderr
    code, document = project.found("--baseline-file", "base.json")
    assert (code, latency(document)["verdict"]) == (0, "PASS")
    project.write(SLOWER)
    code, document = project.found("--baseline-file", "base.json")
    assert (code, latency(document)["verdict"]) == (1, "FAIL")
    stored = json.loads((project.folder / "base.json").read_text())
    stored["environment"]["cpu"]["model"] = "another processor"
    (project.folder / "base.json").write_text(json.dumps(stored))
    code, document = project.found("--baseline-file", "base.json")
    assert (code, latency(document)["verdict"]) == (5, "NOT-COMPARABLE")
    (project.folder / "small.toml").write_text(PROFILE.replace("C = 4", "C = 8"))
    code, document = project.found("--baseline-file", "base.json")
    assert code == 1
    assert {f["verdict"] for f in document["checks"][0]["findings"] if f["metric"] == "latency"} == {"NEW", "MISSING"}


@pytest.mark.alone
@pytest.mark.slow
def test_the_self_test_proves_the_gate(project: Project) -> None:
    code, document = project.found("--self-test")
    same, slowed = document["checks"]
    assert code == 0
    assert (same["injected"], slowed["injected"]) == (None, pytest.approx(0.8))
    assert {f["verdict"] for f in same["findings"]} == {"PASS"}


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_a_kill_leaves_no_process(project: Project) -> None:
    with project.start("--base", "HEAD", "--format", "json") as process:
        _wait_for("launch 2", process)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    document = json.loads(stdout)
    assert document["interrupted"]
    assert latency(document)["verdict"] == "INCONCLUSIVE"

    with project.start("--base", "HEAD") as process:
        _wait_for("launch 1", process)
        process.kill()
    deadline = time.monotonic() + 20
    while (left := _workers(project.folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
    assert project.git("status", "--porcelain") == ""


def _wait_for(words: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    next(line for line in iter(process.stderr.readline, "") if words in line)


def _workers(folder: Path) -> list[str]:
    """The processes that measure for a project."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
            if b"gate/bootstrap.py" in command and (process / "cwd").resolve().is_relative_to(folder.parent):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_revision_that_there_is_not_is_one_line_and_2(project: Project) -> None:
    code, _, stderr = project.check("--base", "no-such-revision", "--quiet")
    assert code == 2
    assert "no-such-revision" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ci",), "check takes one of --base, --base-python"),
        (("--base", "HEAD"), "check takes a profile"),
        (("ci", "--base", "HEAD", "--self-test"), "got --base and --self-test"),
        (("ci", "--base", "HEAD", "--update"), "--update writes the file of --baseline-file"),
        (("ci", "--base", "HEAD", "--threshold", "5"), "--threshold: it takes a percentage"),
        (("ci", "--base", "HEAD", "--inconclusive", "maybe"), "--inconclusive must be one of pass, fail"),
        (("ci", "--base", "HEAD", "--backend", "numbra"), "--backend must be one of"),
        (("no-such", "--base", "HEAD"), "no profile 'no-such'"),
        (("ci", "--baseline-file", "none.json"), "none.json"),
        (("ci", "--base-wheel", "none.whl"), "none.whl"),
        (("ci", "--base-python", "no-such-python"), "--base-python takes the interpreter"),
        (("ci", "--base-python", "/bin/false"), "--base-python /bin/false: it does not run Python"),
        (("ci", "--base-python", sys.executable), "imports the same invbench as this interpreter"),
        (("ci", "--base", "HEAD", "--filter", "C = 1"), "no point is left"),
        (("ci", "--base", "HEAD", "--history", "."), "--history"),
    ],
)
def test_bad_input_is_one_line_and_2(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    environment = {**os.environ, "INVBENCH_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "invbench", "check", *arguments, "--quiet", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
