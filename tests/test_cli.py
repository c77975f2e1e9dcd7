"""The command line: options, one line for each bad input, what goes where, exit codes."""

from __future__ import annotations

import csv
import functools
import html.parser
import io
import itertools
import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from test_results import DOCUMENT, differences
from torch import Tensor

from invbench import __version__, cli
from invbench.cli import options
from invbench.harness import arms, blocks, machine, memory, point, server, timing
from invbench.ops import BACKENDS, naive, unfold
from invbench.report import FORMATS, SUFFIXES
from invbench.results import ResultSet
from invbench.results.quantities import Memory
from invbench.spec import LayerSpec

TINY = ["op", "--N=1", "--C=16", "--G=4", "--H=9", "--W=9", "--K=3", "--threads=1", "--device=cpu"]
TWO = ["--backend=naive", "--backend=unfold"]


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Put torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class FakeClock:
    """Time passes when a subject is called; ``on_sample`` runs before each sample."""

    way = None

    def __init__(self) -> None:
        self.time = 0.0
        self.on_sample: Callable[[], None] = lambda: None

    def now(self) -> float:
        return self.time

    def sample(self, before: Callable[[], Any], timed: Callable[[Any], Any], calls: int) -> float:
        self.on_sample()
        timed(before())
        self.time += 0.01 * calls
        return 0.01


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Real tensors, but neither waiting, nor large copies, nor other processes."""
    fake = FakeClock()
    monkeypatch.setattr(timing, "clock_for", lambda *_: fake)
    monkeypatch.setattr(timing, "measure", functools.partial(blocks.measure, now=fake.now))
    monkeypatch.setattr(arms, "TRIAL_SECONDS", 0.0)  # the fewest trials of layouts
    monkeypatch.setattr(
        machine, "measure_peaks", lambda dtype, device: {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}
    )
    monkeypatch.setattr(server, "start", lambda backends=(): None)
    monkeypatch.setattr(
        memory, "cpu_peaks", lambda jobs, workers, beat: {job.subject: Memory(7, "fake") for job in jobs}
    )
    return fake


def run(*arguments: str) -> int:
    return cli._run(list(arguments))


def assert_one_line(captured: Any) -> str:
    """Nothing on standard output, and one line of words on standard error."""
    assert captured.out == ""
    assert captured.err.endswith("\n")
    line = captured.err[:-1]
    assert line.startswith("invbench: ")
    assert line.isprintable(), line
    assert len(line) > 20
    return str(line)


# --- Bad input ---

BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    # what: the arguments after "op", and words of the answer
    "even K": (["--K", "4"], ["--K", "odd", "4"]),
    "G does not divide C": (["--C", "10", "--G", "4"], ["--G", "divide", "C=10", "G=4", "try"]),
    "default G does not divide C": (["--C", "10"], ["--G", "divide", "C=10"]),
    "group channels do not divide C": (["--C", "10", "--group-channels", "4"], ["--group-channels", "10", "4"]),
    "no group channels": (["--group-channels", "0"], ["--group-channels"]),
    "both G and group channels": (["--G", "4", "--group-channels", "4"], ["--G", "--group-channels", "one"]),
    **{f"{name} of 0": ([f"--{name}", "0"], [f"--{name}", "0", "at least 1"]) for name in (
        "N", "C", "H", "W", "K", "G", "stride", "dilation", "reduction", "threads")},
    **{f"negative {name}": ([f"--{name}=-3"], [f"--{name}", "-3"]) for name in ("N", "K", "stride", "threads", "seed")},
    **{f"unknown {name}": ([f"--{name}", "foo"], [f"--{name}", "foo", choice]) for name, choice in (
        ("dtype", "bfloat16"), ("backend", "numba"), ("device", "cuda:1"), ("layout", "channels_last"),
        ("mode", "backward"), ("scope", "aggregate"), ("format", "markdown"), ("padding-mode", "reflect"),
        ("baseline", "depthwise"), ("clock", "eager"), ("cache", "cold"), ("compare", "attention"))},
    **{f"{name} in words": ([f"--{name}", "many"], [f"--{name}", "many"]) for name in (
        "N", "C", "H", "W", "K", "G", "group-channels", "stride", "dilation", "reduction", "budget", "precision",
        "threads", "seed")},
    "half an image": (["--N", "1.5"], ["--N", "1.5"]),
    "empty number": (["--N", ""], ["--N"]),
    "no value": (["--N"], ["--N"]),
    "no budget": (["--budget", "0"], ["--budget", "0"]),
    "endless budget": (["--budget", "inf"], ["--budget", "inf"]),
    "budget nan": (["--budget", "nan"], ["--budget", "nan"]),
    "negative precision": (["--precision=-1"], ["--precision", "-1"]),
    "too many threads": (["--threads", "100000"], ["--threads", "100000", "core"]),
    "too large for memory": (["--N", "100000000"], ["memory", "GiB", "--N"]),
    "reflect on a small image": (["--H", "3", "--padding-mode", "reflect"], ["--padding-mode", "reflect", "H=3"]),
    "circular on a small image": (["--W", "2", "--padding-mode", "circular"], ["--padding-mode", "W=2"]),
    "device clock on the CPU": (["--clock", "device", "--device", "cpu"], ["--clock", "eager"]),
    "unknown option": (["--frobnicate"], ["--frobnicate"]),
    "unexpected argument": (["surprise"], ["surprise"]),
    "unknown suffix": (["--output", "results.xlsx"], ["--output", ".xlsx", ".json"]),
    "no suffix": (["--output", "results"], ["--output", ".json", "--format"]),
    "folder that is not there": (["--output", "nowhere/results.json"], ["--output", "nowhere", "does not exist"]),
    "output is a folder": (["--output", "folder.json"], ["--output", "folder"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_one_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    assert run("op", "--quiet", *arguments) == 2
    line = assert_one_line(capsys.readouterr())
    for word in words:
        assert word in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "xpu"])
def test_an_absent_device_is_one_line(name: str, capsys: Any) -> None:
    assert run("op", "--quiet", "--device", name) == 2
    assert f"--device {name}" in assert_one_line(capsys.readouterr())


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["op", "op"], ["backends", "--format", "xml"]])
def test_bad_commands_are_one_line(arguments: list[str], capsys: Any) -> None:
    assert run(*arguments) == 2
    assert arguments[-1] in assert_one_line(capsys.readouterr())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path, capsys: Any) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert run("op", "--quiet", "--output", str(tmp_path / "a.json")) == 2
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert "--output" in assert_one_line(capsys.readouterr())


def test_an_output_that_may_not_be_written_is_found_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from invbench.report import output

    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(point, "measure_point", pytest.fail)
    assert run(*TINY, "--quiet", "--output", str(tmp_path / "a.json")) == 2
    assert "Permission denied" in assert_one_line(capsys.readouterr())


def test_progress_of_a_refused_point_is_lines_that_begin_alike(capsys: Any) -> None:
    # Without --quiet, what was being done when the point was refused may stand before the refusal.
    assert run("op", "--threads", "100000") == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("invbench: ") for line in lines)
    assert "--threads" in lines[-1]


def test_a_huge_size_is_refused_at_once() -> None:
    # In a process of its own, which can be ended: the remedy must not be searched for among 10**11 divisors.
    program = "import sys; from invbench.cli import _run; sys.exit(_run(['op', '--C', '100000000001', '--quiet']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_fault_of_ours_is_told_as_one(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fault(*_: Any) -> Any:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(point, "measure_point", fault)
    assert run(*TINY, "--quiet") == 4
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("invbench: this is a fault of invbench")


# --- Interface ---

# CLI.md, "Options of the measuring commands", with what op must accept.
OPTIONS = (
    "--N", "--C", "--H", "--W", "--K", "--stride", "--dilation",
    "--reduction", "--padding-mode", "--G", "--group-channels", "--device", "--dtype", "--layout",
    "--mode", "--scope", "--backend", "--baseline", "--clock", "--cache", "--budget",
    "--precision", "--threads", "--seed", "--format", "--output", "--quiet", "--no-autotune", "--compare",
)  # fmt: skip
DEFAULTS = {"N": 8, "C": 256, "H": 28, "W": 28, "K": 7, "stride": 1, "dtype": "float32", "layout": "channels_last",
            "mode": "forward", "scope": "layer", "baseline": "conv2d"}  # fmt: skip


def test_op_has_the_options_of_the_interface(capsys: Any) -> None:
    assert run("op", "--help") == 0
    words = capsys.readouterr().out.split()
    for option in OPTIONS:
        assert option in words


def test_op_has_the_defaults_of_the_interface(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[Any] = []

    def stop(case: Any, settings: Any, tell: Any) -> Any:
        seen.extend([case, settings])
        raise KeyboardInterrupt

    monkeypatch.setattr(point, "measure_point", stop)
    assert run("op", "--device", "cpu", "--quiet") == 130
    assert_one_line(capsys.readouterr())
    case, settings = seen
    flat = case.to_dict()
    assert {name: flat[name] for name in DEFAULTS if name in flat} == {k: v for k, v in DEFAULTS.items() if k in flat}
    assert flat["G"] == 16
    assert flat["threads"] == machine.usable_cores()
    assert settings.baseline == "conv2d"
    assert settings.backends == tuple(name for name in BACKENDS if name not in ("triton-atomic", "triton-unfused"))
    assert settings.asked_for == ()


@pytest.mark.parametrize(
    ("arguments", "G"),
    [(["--C=64", "--G=4"], 4), (["--C=64", "--group-channels=4"], 16), (["--C=64", "--group-channels=64"], 1)],
    ids=["groups", "channels a group", "all channels in one"],
)
def test_groups(arguments: list[str], G: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LayerSpec] = []

    def stop(case: Any, settings: Any, tell: Any) -> Any:
        seen.append(case.layer)
        raise KeyboardInterrupt

    monkeypatch.setattr(point, "measure_point", stop)
    run("op", "--quiet", *arguments)
    assert [layer.G for layer in seen] == [G]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], [], ["op", "--help"], ["backends", "--help"]])
def test_help_and_version(arguments: list[str], capsys: Any) -> None:
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert all(line.isprintable() for line in captured.out.splitlines())
    if arguments == ["--version"]:
        assert captured.out == f"invbench {__version__}\n"
    else:
        assert "Usage: invbench" in captured.out


def test_backends_as_json_is_one_document(capsys: Any) -> None:
    assert run("backends", "--format", "json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert [row["name"] for row in json.loads(captured.out)] == list(BACKENDS)


def test_backends_says_why_not(capsys: Any) -> None:
    assert run("backends") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in BACKENDS:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


# --- What goes where ---


def test_json_is_one_document_on_standard_output(clock: FakeClock, capsys: Any) -> None:
    assert run(*TINY, *TWO, "--format", "json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert list(differences(document, DOCUMENT)) == []
    assert document["tool"]["version"] == __version__
    assert document["settings"]["backends"] == ["naive", "unfold"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", document["created"])
    assert all(line.startswith("invbench: ") for line in captured.err.splitlines())
    assert "\x1b" not in captured.err


@pytest.mark.parametrize("name", FORMATS)
def test_quiet_leaves_standard_error_empty_and_no_control_characters(clock: FakeClock, name: str, capsys: Any) -> None:
    assert run(*TINY, *TWO, "--quiet", "--format", name) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith("\n")
    assert all(line.isprintable() for line in captured.out.splitlines())


def test_progress_is_plain_lines_without_a_terminal(clock: FakeClock, capsys: Any) -> None:
    assert run(*TINY, *TWO) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "invbench: importing torch"
    assert "invbench: preparing unfold" in lines
    assert len(lines) < 20  # one for each activity, not for each round
    assert all(line.isprintable() for line in lines)


READERS: dict[str, Callable[[str], Any]] = {
    "table": lambda text: text.index("latency"),
    "json": ResultSet.from_json,
    "csv": lambda text: list(csv.DictReader(io.StringIO(text), strict=True))[5],
    "markdown": lambda text: text.index("| naive |"),
    "html": lambda text: html.parser.HTMLParser().feed(text),
    "junit": lambda text: ElementTree.fromstring(text.encode())[0][5],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_output_has_the_format_of_its_suffix(clock: FakeClock, suffix: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / f"results{suffix}"
    assert run(*TINY, *TWO, "--quiet", "--output", str(file)) == 0
    READERS[SUFFIXES[suffix]](file.read_text())
    assert "latency [95 %]" in capsys.readouterr().out  # the table stays where it was
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_format_goes_before_the_suffix(clock: FakeClock, tmp_path: Path) -> None:
    file = tmp_path / "results.txt"
    assert run(*TINY, *TWO, "--quiet", "--format", "json", "--output", str(file)) == 0
    ResultSet.from_json(file.read_text())


def test_output_replaces_a_file_through_a_link(clock: FakeClock, tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    assert run(*TINY, *TWO, "--quiet", "--output", str(link)) == 0
    assert link.is_symlink()
    ResultSet.from_json(target.read_text())


@pytest.mark.parametrize("fault", ["replace", "fsync"])
def test_an_existing_file_survives_a_failed_write(
    clock: FakeClock, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    file = tmp_path / "results.json"
    file.write_text("precious")
    owner = {"replace": Path, "fsync": os}[fault]
    monkeypatch.setattr(owner, fault, fails)
    assert run(*TINY, *TWO, "--quiet", "--output", str(file)) == 2
    assert file.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    captured = capsys.readouterr()
    assert "latency" in captured.out  # what was measured is not lost
    assert captured.err.startswith("invbench: --output")
    assert "No space left on device" in captured.err
    assert captured.err.count("\n") == 1


def test_a_device_is_written_and_not_replaced(clock: FakeClock) -> None:
    before = Path("/dev/null").stat()
    assert run(*TINY, *TWO, "--quiet", "--format", "json", "--output", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/null").stat().st_ino == before.st_ino


def test_no_file_is_left_where_nothing_was_measured(clock: FakeClock, tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(point, "measure_point", stop)
        assert run(*TINY, "--quiet", "--output", str(tmp_path / "a.json")) == 130
    assert list(tmp_path.iterdir()) == []


# --- Exit codes ---


def rows_of(captured: Any) -> dict[str, dict[str, Any]]:
    rows = json.loads(captured.out)["results"]
    return {row["backend"] if row["subject"] == "involution" else row["subject"]: row for row in rows}


def wrong(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    return naive.aggregate(x, weight.flip(2), spec)


def nan(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    return naive.aggregate(x, weight, spec) * torch.nan


def raises(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    raise RuntimeError("no such instruction")


def fills(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    raise MemoryError("cannot have 1 TiB")


@pytest.mark.parametrize(
    ("aggregate", "status", "reason"),
    [
        (wrong, "mismatch", "float64 reference"),
        (nan, "mismatch", "float64 reference"),
        (raises, "error", "no such instruction"),
        (fills, "oom", "1 TiB"),
    ],
)
def test_a_failed_row_is_4_and_the_others_are_measured(
    clock: FakeClock, aggregate: Any, status: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(unfold, "aggregate", aggregate)
    assert run(*TINY, *TWO, "--quiet", "--format", "json") == 4
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = rows_of(captured)
    assert rows["unfold"]["status"] == status
    assert reason in rows["unfold"]["reason"]
    assert rows["unfold"]["latency"] is None
    assert {row["status"] for name, row in rows.items() if name != "unfold"} == {"ok"}


def make_triton_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment of the tests may have switched Triton's interpreter on.
    refusal = type(BACKENDS["triton"]).refusal
    monkeypatch.setattr(
        type(BACKENDS["triton"]),
        "refusal",
        lambda self, device, dtype: "it runs on GPUs" if self.name == "triton" else refusal(self, device, dtype),
    )


def test_an_unavailable_backend_asked_for_alone_is_2(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    make_triton_unavailable(monkeypatch)
    assert run(*TINY, "--quiet", "--backend", "triton") == 2
    assert "--backend triton: it runs on GPUs" in assert_one_line(capsys.readouterr())


def test_an_unavailable_backend_asked_for_beside_others_is_2_with_its_row(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_triton_unavailable(monkeypatch)
    assert run(*TINY, "--quiet", "--backend=naive", "--backend=triton", "--format=json") == 2
    rows = rows_of(capsys.readouterr())
    assert (rows["triton"]["status"], rows["triton"]["reason"]) == ("unavailable", "it runs on GPUs")
    assert rows["naive"]["status"] == "ok"


@pytest.mark.parametrize(("after", "timed"), [(0.0, False), (3.0, True)], ids=["warming up", "measuring"])
def test_ctrl_c_is_130_and_prints_the_rows_so_far(
    clock: FakeClock, after: float, timed: bool, tmp_path: Path, capsys: Any
) -> None:
    def on_sample() -> None:
        if clock.time > after + 0.42:  # later than the trials of layouts
            raise KeyboardInterrupt

    clock.on_sample = on_sample
    file = tmp_path / "results.json"
    arguments = ["--quiet", "--format=json", "--budget=100", "--precision=1e-9", f"--output={file}"]
    assert run(*TINY, *TWO, *arguments) == 130
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["interrupted"] is True
    assert ResultSet.from_json(file.read_text()).interrupted
    assert [row["latency"] is not None for row in document["results"]] == [timed] * 6


def test_ctrl_c_while_preparing_is_130(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unfold, "aggregate", stop)
    assert run(*TINY, *TWO, "--quiet") == 130
    assert "interrupted before anything was measured" in assert_one_line(capsys.readouterr())


def test_ctrl_c_goes_before_a_mismatch(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(unfold, "aggregate", wrong)
    samples = itertools.count()

    def on_sample() -> None:
        if next(samples) > 60:
            raise KeyboardInterrupt

    clock.on_sample = on_sample
    assert run(*TINY, *TWO, "--quiet", "--format", "json") == 130
    assert rows_of(capsys.readouterr())["unfold"]["status"] == "mismatch"


# --- A process of its own ---


def fresh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "COLUMNS")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, env={**kept, **environment}
    )


@pytest.mark.parametrize("arguments", ["'--help'", "'op', '--help'", "'--version'", "'op', '--K', '4'"])
def test_help_and_refusals_import_nothing_heavy(arguments: str) -> None:
    program = (
        f"import sys; from invbench.cli import _run; _run([{arguments}]); "
        "print('HEAVY', *{'torch', 'pandas', 'numba', 'triton', 'numpy', 'psutil'} & set(sys.modules))"
    )
    assert fresh("-c", program).stdout.splitlines()[-1] == "HEAVY"


def test_help_answers_soon() -> None:
    # The promise is half a second on a quiet machine; this bound only notices that torch is imported (seconds).
    def seconds() -> float:
        started = time.perf_counter()
        assert fresh("-m", "invbench", "--help").returncode == 0
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 5


def test_a_real_run_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "results.html"
    arguments = ["--backend=naive", "--backend=numba", "--budget=0.3", "--format=json"]
    # torch 2.6 forgets temporary folders of its own.
    leaks = "ignore:Implicitly cleaning up:ResourceWarning"
    done = fresh("-W", "error", "-W", leaks, "-m", "invbench", *TINY, *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert list(differences(document, DOCUMENT)) == []
    assert [row["status"] for row in document["results"]] == ["ok"] * 6
    assert document["command"] == f"invbench {' '.join([*TINY, *arguments])}"
    assert all(line.startswith("invbench: ") for line in done.stderr.splitlines()), done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    assert not file.exists()


def test_triton_named_on_a_cpu_is_2_and_one_line() -> None:
    done = fresh("-m", "invbench", "op", "--device", "cpu", "--backend", "triton", "--quiet")
    assert done.returncode == 2
    assert_one_line(SimpleNamespace(out=done.stdout, err=done.stderr))


def test_a_closed_pipe_is_no_traceback() -> None:
    program = f"{sys.executable} -m invbench op --help | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_the_recorded_command_names_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["invbench", "op", "--K", "3", "--output", str(file)])
    assert options.command_line(file) == "invbench op --K 3 --output result.json"
    monkeypatch.setattr("sys.argv", ["invbench", "op", f"--output={file}"])
    assert options.command_line(file) == "invbench op --output=result.json"
    assert options.command_line(None).endswith(str(file))


@pytest.mark.parametrize(
    "arguments", [["backends"], [*TINY, "--backend", "naive", "--budget", "0.1", "--quiet"]], ids=len
)
def test_a_full_standard_output_is_one_line(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    if "op" in arguments:
        arguments = [*arguments, "--output", str(file)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "invbench", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "standard output cannot be written" in done.stderr
    assert "op" not in arguments or file.exists()


def test_one_position_cannot_be_normalised(capsys: Any) -> None:
    assert run("op", "--N=1", "--C=16", "--H=1", "--W=1", "--K=3", "--mode=train", "--device=cpu", "--threads=1") == 2
    assert "use a larger --N" in capsys.readouterr().err
