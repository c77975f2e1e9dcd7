"""Which cut a kernel gets, on a device whose time is made up, and what later processes know of it."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import invbench
from invbench.harness import arms, point
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, comparing
from invbench.harness.settings import Settings
from invbench.ops import caching, naive, triton_gpu
from invbench.ops.autotuning import autotuning, is_allowed
from invbench.ops.caching import CachedLines, cache_directory
from invbench.ops.fused import Generator
from invbench.ops.library import Window
from invbench.ops.triton_gpu import TritonSpanKernels, tuning
from invbench.ops.triton_gpu.tiling import FORWARD, GRAD_HIDDEN, GRAD_SPAN, GRAD_X, Chip, Cut, Problem
from invbench.ops.triton_gpu.tuning import Task, Tuner
from invbench.spec import Case, LayerSpec, Mode, NetworkCase

DEVICE = torch.device("cuda:0")
PROBLEM = Problem(N=256, C=256, H=14, W=14, H_out=14, W_out=14, G=16, r=64, window=Window(7, 1, 1, 3))
TASK = Task(FORWARD, PROBLEM, Chip(), torch.bfloat16, DEVICE)
DEFAULT, OTHER, *REST = TASK.candidates()


class FakeGpu:
    """The module of a type of devices, and the time of the only one. A cut takes ``seconds`` of it, or raises them."""

    def __init__(self, **seconds_or_more: Any) -> None:
        self.name, self.capability, self.captures, self.now, self.waits = "Fake 100", (9, 0), False, 0.0, 0
        self.seconds: dict[Cut, float | Exception] = {}
        self.usual: float = 1e-3
        self.runs: list[Cut] = []
        vars(self).update(seconds_or_more)

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace()

    def get_device_capability(self, device: torch.device) -> tuple[int, int]:
        return self.capability

    def get_device_name(self, device: torch.device) -> str:
        return self.name

    def is_current_stream_capturing(self) -> bool:
        return self.captures

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.synchronize = lambda: setattr(self, "waits", self.waits + 1)
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event

    def launch(self, cut: Cut) -> SimpleNamespace:
        def run(device: torch.device) -> None:
            assert device == DEVICE
            self.runs.append(cut)
            seconds = self.seconds.get(cut, self.usual)
            if isinstance(seconds, Exception):
                raise seconds
            self.now += seconds

        return SimpleNamespace(run=run)

    def tuner(self) -> Tuner:
        """A new one, as in a new process."""
        return Tuner(lambda device: self, lambda: self.now)

    def cut(self, task: Task = TASK, tuner: Tuner | None = None) -> Cut:
        return (tuner or self.tuner()).cut(task, self.launch)


@pytest.fixture(autouse=True)
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As on a GPU, with an empty cache."""
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setenv("INVBENCH_CACHE_DIR", str(tmp_path / "cache"))
    with autotuning(True):
        yield


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cache_directory() / tuning.FILE).read_text().splitlines()]


# --- The choice ---


@pytest.mark.parametrize("N", [1, 8, 64, 256])
@pytest.mark.parametrize("kernel", [FORWARD, GRAD_X, GRAD_HIDDEN, GRAD_SPAN])
def test_the_default_is_a_candidate_and_the_first(kernel: str, N: int) -> None:
    """Also where another asks for less in proportion to the time that it is taken to need."""
    task = replace(TASK, kernel=kernel, problem=replace(PROBLEM, N=N))
    candidates = task.candidates()
    assert candidates[0] == task.default
    assert len(set(candidates)) == len(candidates)


@pytest.mark.parametrize("kernel", [FORWARD, GRAD_X, GRAD_SPAN])
def test_the_fastest_candidate_is_chosen_and_remembered(kernel: str) -> None:
    task = replace(TASK, kernel=kernel)
    candidates = task.candidates()
    assert candidates[0] == task.default
    assert len(set(candidates)) == len(candidates) == 12
    gpu = FakeGpu(seconds={candidates[5]: 8e-4, candidates[7]: 9e-4})
    tuner = gpu.tuner()
    assert gpu.cut(task, tuner) == candidates[5]
    assert set(gpu.runs) == set(candidates)
    runs, waits = len(gpu.runs), gpu.waits
    assert gpu.cut(task, tuner) == candidates[5]
    assert (len(gpu.runs), gpu.waits) == (runs, waits)


@pytest.mark.parametrize(("share", "chosen"), [(0.5, OTHER), (0.979, OTHER), (0.981, DEFAULT), (1.0, DEFAULT)])
def test_the_default_has_to_be_beaten_by_two_percent(share: float, chosen: Cut) -> None:
    assert FakeGpu(seconds={OTHER: share * 1e-3}).cut() == chosen


def test_rounds_are_interleaved_in_changing_orders() -> None:
    gpu = FakeGpu()
    gpu.cut()
    rounds = [tuple(gpu.runs[at : at + 12]) for at in range(len(gpu.runs) % 12, len(gpu.runs), 12)]
    whole = [each for each in rounds if len(set(each)) == 12]
    assert len(whole) >= 4  # and a first one, in which each cut has a warm-up
    assert len(set(whole)) > 1


@pytest.mark.parametrize("usual", [2e-6, 1e-3, 1e-2, 1e-1])
def test_measuring_takes_about_half_a_second_and_at_least_five_rounds(usual: float) -> None:
    gpu = FakeGpu(usual=usual)
    gpu.cut()
    assert gpu.now < max(0.8, 14 * usual)
    assert Counter(gpu.runs)[DEFAULT] >= 6
    assert len(set(gpu.runs)) == (12 if usual < 1e-2 else len(set(gpu.runs)))
    assert len(set(gpu.runs)) >= 2


@pytest.mark.parametrize("when", ["made", "first", "later"])
def test_a_candidate_that_raises_is_left_out(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(seconds={OTHER: 1e-4, REST[3]: 8e-4})
    launch = gpu.launch

    def launch_or_raise(cut: Cut) -> SimpleNamespace:
        if cut == OTHER and (when == "made" or gpu.runs.count(OTHER) > 5):
            raise torch.OutOfMemoryError("no")
        return launch(cut)

    if when == "first":
        gpu.seconds[OTHER] = RuntimeError("out of resource: shared memory")
    monkeypatch.setattr(gpu, "launch", launch_or_raise)
    assert gpu.cut() == REST[3]


def test_a_default_that_raises_is_replaced() -> None:
    assert FakeGpu(seconds={DEFAULT: RuntimeError("spilled"), REST[0]: 5e-4}).cut() == REST[0]


def test_where_all_raise_the_caller_finds_out_with_the_default() -> None:
    gpu = FakeGpu(usual=RuntimeError("no device"))
    assert gpu.cut() == DEFAULT
    assert not (cache_directory() / tuning.FILE).exists()


def test_ctrl_c_is_no_failure_of_a_candidate() -> None:
    def launch(cut: Cut) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FakeGpu().tuner().cut(TASK, launch)


def test_threads_measure_once() -> None:
    gpu = FakeGpu(seconds={OTHER: 1e-4})
    tuner, both = gpu.tuner(), threading.Barrier(2)

    def choose(_: int) -> Cut:
        both.wait()
        return tuner.cut(TASK, gpu.launch)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(choose, range(2))) == [OTHER, OTHER]
    assert len(lines()) == 1


# --- Where nothing is tuned ---


def test_interpreted_kernels_are_not_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "INTERPRETED", True)
    gpu = FakeGpu(seconds={OTHER: 1e-4})
    assert gpu.cut() == DEFAULT
    assert not gpu.runs


def test_a_capture_measures_nothing_but_uses_what_is_known() -> None:
    gpu = FakeGpu(seconds={OTHER: 1e-4}, captures=True)
    tuner = gpu.tuner()
    assert gpu.cut(tuner=tuner) == DEFAULT
    assert (gpu.runs, gpu.waits) == ([], 0)
    gpu.captures = False
    assert gpu.cut(tuner=tuner) == OTHER
    gpu.captures = True
    assert gpu.cut(tuner=tuner) == gpu.cut() == OTHER


def test_a_device_that_does_not_say_whether_it_captures() -> None:
    gpu = FakeGpu(seconds={OTHER: 1e-4}, is_current_stream_capturing=None)
    assert gpu.cut() == OTHER


def test_tuning_is_off_in_a_context() -> None:
    gpu = FakeGpu(seconds={OTHER: 1e-4})
    with autotuning(False):
        assert gpu.cut() == DEFAULT
    assert not gpu.runs
    assert gpu.cut() == OTHER
    with autotuning(False):
        assert gpu.cut() == DEFAULT


def test_the_innermost_context_counts() -> None:
    found = [is_allowed()]
    with autotuning(False):
        found.append(is_allowed())
        with autotuning(True):
            found.append(is_allowed())
        found.append(is_allowed())
        with pytest.raises(ZeroDivisionError), autotuning(True):
            _ = 1 / 0
        found.append(is_allowed())
    assert [*found, is_allowed()] == [True, False, True, False, False, True]


def test_a_context_is_that_of_its_thread() -> None:
    with autotuning(False), ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_allowed).result()

        def other() -> bool:
            with autotuning(True):
                return is_allowed()

        assert pool.submit(other).result()
        assert not is_allowed()


class Nested(torch.autograd.Function):
    """Its backward pass starts another one, so often that autograd goes on in a thread of its own."""

    seen: list[tuple[bool, bool]]

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int) -> Tensor:
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.depth:
            with torch.enable_grad():
                Nested.apply(torch.ones(1, requires_grad=True), ctx.depth - 1).sum().backward()
        else:
            Nested.seen.append((threading.current_thread() is threading.main_thread(), is_allowed()))
        return grad, None


@pytest.mark.parametrize("allowed", [True, False])
def test_a_context_holds_in_autograds_own_threads(allowed: bool) -> None:
    """Gradients of a GPU are computed in such a thread, too."""
    Nested.seen = []
    y = Nested.apply(torch.ones(1, requires_grad=True), 70)
    with autotuning(allowed):
        y.sum().backward()
    assert Nested.seen == [(False, allowed)]


class SeenError(Exception):
    """Carries whether tuning was allowed where the harness begins to prepare."""


@pytest.mark.parametrize("allowed", [True, False])
def test_the_harness_says_whether_to_tune(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared(*_: Any) -> None:
        raise SeenError(is_allowed())

    for module in (point, comparing):
        monkeypatch.setattr(module, "_prepared", prepared)
    monkeypatch.setattr(comparing, "_cpu_memory", lambda *_: {})
    networks = NetworkSettings(("rednet26",), ("naive",), autotune=allowed)
    with autotuning(not allowed):
        with pytest.raises(SeenError, match=str(allowed)):
            point.measure_point(Case(1, 9, 9, LayerSpec(16, 3, 4), threads=1), Settings(autotune=allowed))
        with pytest.raises(SeenError, match=str(allowed)):
            comparing.compare_networks(NetworkCase(1, 32, 32, threads=1), networks)
        assert is_allowed() is not allowed


# --- What later processes know ---


def test_a_second_process_measures_nothing() -> None:
    assert FakeGpu(seconds={OTHER: 1e-4}).cut() == OTHER
    later = FakeGpu()
    assert later.cut() == OTHER
    assert (later.runs, later.waits) == ([], 0)
    assert later.cut(replace(TASK, device=torch.device("cuda:1"))) == OTHER  # the same kind of GPU
    (line,) = lines()
    assert line["cut"] == list(astuple(OTHER.tile))
    assert line["seconds"] == pytest.approx(1e-4)


def with_problem(**changes: Any) -> Task:
    return replace(TASK, problem=replace(PROBLEM, **changes))


@pytest.mark.parametrize(
    "task",
    [
        with_problem(N=128),
        with_problem(C=512),
        with_problem(H=28, H_out=28),
        with_problem(W=28, W_out=28),
        with_problem(G=8),
        with_problem(r=32),
        with_problem(window=Window(5, 1, 1, 2)),
        with_problem(window=Window(7, 2, 1, 3), H_out=7, W_out=7),
        with_problem(window=Window(7, 1, 2, 6)),
        replace(TASK, kernel=GRAD_X),
        replace(TASK, dtype=torch.float16),
        replace(TASK, atomic=True),
        replace(TASK, chip=Chip(114)),
    ],
    ids=str,
)
def test_another_problem_is_measured_anew(task: Task) -> None:
    gpu = FakeGpu()
    tuner = gpu.tuner()
    gpu.cut(tuner=tuner)
    gpu.runs.clear()
    gpu.cut(task, tuner)
    assert gpu.runs
    gpu.runs.clear()
    assert gpu.cut(task) == gpu.cut(task, tuner)
    assert not gpu.runs


@pytest.mark.parametrize("change", ["gpu", "capability", "triton", "sources"])
def test_another_machine_or_version_is_measured_anew(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu().cut()
    later = FakeGpu()
    if change == "gpu":
        later.name = "Fake 200"
    elif change == "capability":
        later.capability = (10, 0)
    elif change == "triton":
        monkeypatch.setattr(tuning.triton, "__version__", "99")
    else:
        monkeypatch.setattr(tuning, "SOURCES", "another")
    later.cut()
    assert later.runs
    assert len(lines()) == 2


@pytest.mark.parametrize(
    "line", [b'{"key": {"gpu": "F', b"\xff\xfe", b"[1]", b"null", b"{}", b"[" * 100_000, b'{"key": 1, "cut": 2}']
)
@pytest.mark.parametrize("ending", [b"", b"\n"])
def test_torn_and_foreign_lines_are_skipped(line: bytes, ending: bytes) -> None:
    FakeGpu(seconds={OTHER: 1e-4}).cut()
    with (cache_directory() / tuning.FILE).open("ab") as file:
        file.write(line + ending)
    gpu = FakeGpu(seconds={OTHER: 1e-4})
    assert gpu.cut() == OTHER
    assert not gpu.runs
    assert gpu.cut(replace(TASK, atomic=True)) == OTHER
    gpu.runs.clear()
    assert gpu.cut(replace(TASK, atomic=True)) == OTHER  # begins a line of its own
    assert not gpu.runs


@pytest.mark.parametrize(
    "cut", [None, 3, "8", [], [3, 14, 1], [8, 14, 3], [8, 14], [8.0, 14, 4], [True, 14, 1], [[8], 14, 4], [0, 0, 0]]
)
def test_choices_that_are_no_cut_are_measured_again(cut: Any) -> None:
    FakeGpu(seconds={OTHER: 1e-4}).cut()
    (line,) = lines()
    file = cache_directory() / tuning.FILE
    file.write_text(json.dumps({**line, "cut": cut}) + "\n")
    gpu = FakeGpu(seconds={REST[0]: 1e-4})
    assert gpu.cut() == REST[0]
    assert gpu.runs
    assert FakeGpu().cut() == REST[0]
    with file.open("a") as appended:
        appended.write(json.dumps({**line, "cut": cut}) + "\n")
    assert FakeGpu().cut() == REST[0]


def no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place: permissions would not stop root."""
    cache_directory().write_text("")


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str = "r") -> Any:
        raise OSError(28, "No space left on device")

    cache_directory().mkdir()
    (cache_directory() / tuning.FILE).write_text("")
    monkeypatch.setattr(caching.Path, "open", refuse)


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INVBENCH_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(caching.Path, "home", refuse)


@pytest.mark.parametrize("spoil", [no_directory, full_disk, no_home])
def test_without_a_cache_it_warns_once_and_goes_on(
    spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    gpu = FakeGpu(seconds={OTHER: 1e-4})
    tuner = gpu.tuner()
    with pytest.warns(RuntimeWarning, match="set INVBENCH_CACHE_DIR to a writable directory") as caught:
        assert gpu.cut(tuner=tuner) == OTHER
    assert len(caught) == 1
    gpu.runs.clear()
    assert gpu.cut(tuner=tuner) == OTHER
    assert not gpu.runs
    assert gpu.cut(replace(TASK, atomic=True), tuner) == OTHER


def test_a_lock_that_is_not_given_back_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(caching, "LOCK_SECONDS", 0.01)
    cache_directory().mkdir()
    with (
        filelock.FileLock(cache_directory() / f".{tuning.FILE}.lock"),
        pytest.warns(RuntimeWarning, match="each process measures them again"),
    ):
        FakeGpu().cut()


def test_writers_do_not_tear_each_others_lines() -> None:
    def write(writer: int) -> None:
        for number in range(20):
            CachedLines("shared.jsonl", "").append({"writer": writer, "number": number, "more": "x" * 5000})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(CachedLines("shared.jsonl", "").read()) == 80


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"INVBENCH_CACHE_DIR": "/named", "XDG_CACHE_HOME": "/xdg"}, "/named"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/invbench"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/user/.cache/invbench"),
        ({"INVBENCH_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, "/home/user/.cache/invbench"),
        ({}, "/home/user/.cache/invbench"),
    ],
)
def test_the_cache_directory(environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INVBENCH_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/user", **environment}.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


# --- The kernels ---


class Fixed:
    """A tuner that takes the candidate of a rank, the last one if there are fewer, and keeps the tasks."""

    def __init__(self, rank: int) -> None:
        self.rank, self.tasks = rank, []

    def cut(self, task: Task, launch: Any) -> Cut:
        self.tasks.append(task)
        return task.candidates()[: self.rank + 1][-1]


def inputs(spec: LayerSpec, N: int, H: int, r: int, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """grad_y, x, hidden and the generator."""
    rng = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        values = torch.randn(size, generator=rng).to(device, dtype)
        return values.to(memory_format=torch.channels_last) if len(size) == 4 else values

    out = spec.out_size(H)
    grad_y, x, hidden = randn(N, spec.C, out, out), randn(N, spec.C, H, H), randn(N, r, out, out)
    return grad_y, x, hidden, Generator(randn(spec.G * spec.taps, r), randn(spec.G * spec.taps), spec.G)


def computed(kernels: TritonSpanKernels, spec: LayerSpec, given: tuple[Any, ...]) -> list[Tensor]:
    """y, and the gradients for x, hidden, the span and its bias."""
    grad_y, x, hidden, generator = given
    window = Window(spec.K, spec.stride, spec.dilation, spec.dilation * (spec.K // 2))
    y = kernels.span_forward(x, hidden, generator, window)
    return [y, *kernels.span_backward(grad_y, x, hidden, generator, window)]


def exact(spec: LayerSpec, given: tuple[Any, ...]) -> list[Tensor]:
    """The same by plain formulas in float64."""
    grad_y, x, hidden, generator = given
    leaves = [t.double().requires_grad_() for t in (x, hidden, generator.span, generator.bias)]
    weight = torch.einsum("kr,nrhw->nkhw", leaves[2], leaves[1]) + leaves[3][:, None, None]
    y = naive.aggregate(leaves[0], weight.unflatten(1, (spec.G, -1)), spec)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y.double())]


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, reference in zip(found, expected, strict=True):
        error = (ours.double() - reference).abs().max() / reference.abs().max()
        assert error < 0.02


@pytest.mark.skipif(not triton_gpu.INTERPRETED, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("rank", [0, 2, 11])
def test_kernels_run_with_the_cut_that_they_are_told(rank: int, atomic: bool) -> None:
    spec = LayerSpec(C=32, K=3, G=2, stride=2)
    given = inputs(spec, 2, 5, 8, "cpu", torch.float16)
    tuner = Fixed(rank)
    assert_close(computed(TritonSpanKernels(atomic, tuner), spec, given), exact(spec, given))
    # Sums that have to repeat bit for bit are cut by default.
    spans = [(GRAD_SPAN, True)] if atomic else []
    assert [(task.kernel, task.atomic) for task in tuner.tasks] == [(FORWARD, False), *spans, (GRAD_X, False)]
    assert {(task.problem.H, task.problem.H_out, task.dtype) for task in tuner.tasks} == {(5, 3, torch.float16)}


def test_grad_hidden_has_nothing_to_choose() -> None:
    assert len(replace(TASK, kernel=GRAD_HIDDEN).candidates()) == 1


LATER = """
import sys
import torch
sys.path.insert(0, {tests!r})
import test_tuning as t
def measure(*_):
    raise SystemExit("measured again")
t.tuning._Race.run = measure
given = t.inputs(t.REAL, 16, 14, 64, "cuda", torch.bfloat16)
t.computed(t.TritonSpanKernels(), t.REAL, given)
"""
REAL = LayerSpec(C=256, K=7, G=16)


@pytest.mark.gpu
def test_tunes_for_real(tmp_path: Path) -> None:
    given = inputs(REAL, 16, 14, 64, "cuda", torch.bfloat16)
    expected = exact(REAL, given)
    for rank in range(tuning.MOST_CANDIDATES):
        for atomic in (False, True):
            assert_close(computed(TritonSpanKernels(atomic, Fixed(rank)), REAL, given), expected)
    tuner = Tuner()
    assert_close(computed(TritonSpanKernels(tuner=tuner), REAL, given), expected)
    assert {entry["key"]["kernel"] for entry in lines()} == {FORWARD, GRAD_X}
    assert all(entry["seconds"] > 0 for entry in lines())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = computed(TritonSpanKernels(tuner=Tuner()), REAL, given)  # which finds the choices on disk
    graph.replay()
    assert_close(captured, expected)
    source = LATER.format(tests=str(Path(__file__).parent))
    path = os.pathsep.join([str(Path(invbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(lines()) == 2


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that the process's own tuner, which knows nothing yet, measures."""
    monkeypatch.setattr(tuning.TUNER, "_chosen", {})
    found: list[str] = []
    run = tuning._Race.run

    def note_and_run(race: Any, candidates: list[Cut]) -> Any:
        found.append(candidates[0].kernel)
        return run(race, candidates)

    monkeypatch.setattr(tuning._Race, "run", note_and_run)
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", [True, False])
def test_a_backward_pass_on_a_gpu_knows_the_context(allowed: bool, races: list[str]) -> None:
    layer = invbench.Involution2d(64, 7, backend="triton").to("cuda", torch.bfloat16)
    x = torch.randn(4, 64, 14, 14, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with autotuning(allowed):
        layer(x.requires_grad_()).sum().backward()
    assert races == ([FORWARD, GRAD_X] if allowed else [])


@pytest.mark.gpu
@pytest.mark.parametrize("clock", ["eager", "device"])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_point_is_tuned_in_its_first_call(
    mode: Mode, clock: str, races: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_call = arms.Preparation._first_call
    inside: list[str] = []
    outside: list[str] = []

    def note_and_call(*arguments: Any) -> Any:
        outside.extend(races)
        found = first_call(*arguments)
        inside.extend(races)
        races.clear()
        return found

    monkeypatch.setattr(arms.Preparation, "_first_call", note_and_call)
    case = Case(
        4, 28, 28, LayerSpec(64, 7, 4), device="cuda", dtype="bfloat16", layout="channels_last", mode=mode, threads=1
    )  # fmt: skip
    point.measure_point(case, Settings(backends=("triton",), clock=clock, budget=Budget(seconds=1.0)))
    assert inside == ([FORWARD] if mode is Mode.FORWARD else [FORWARD, GRAD_X])
    assert not races
    assert not outside
