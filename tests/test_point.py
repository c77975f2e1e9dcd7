"""One point from nothing to rows: once for real and tiny, otherwise with a clock of our own and real tensors."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_results import ROW, differences, document
from torch import Tensor

from invbench.harness import arms, blocks, machine, memory, point, server, throttling, timing
from invbench.harness.blocks import Budget
from invbench.harness.point import Point, measure_point
from invbench.harness.settings import Settings, check_clock
from invbench.harness.subjects import CONVOLUTIONS, Runnable
from invbench.ops import Fusing, naive, unfold
from invbench.results import Result, Status, find
from invbench.results.quantities import Memory, Samples
from invbench.spec import BackendUnavailableError, Case, InvbenchError, LayerSpec, Mode, Scope

TINY = Case(1, 9, 9, LayerSpec(16, 3, 4), threads=1)
SETTINGS = Settings(backends=("naive", "unfold"), budget=Budget(seconds=0.5))
LABELS = ["naive", "unfold", *CONVOLUTIONS]


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Put torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def label(result: Result) -> str:
    return result.backend if result.subject == "involution" else result.subject


# --- For real ---


@pytest.fixture(scope="module")
def measured() -> tuple[Point, list[str]]:
    told: list[str] = []
    settings = Settings(backends=("naive", "numba"), budget=Budget(seconds=0.3))
    return measure_point(TINY, settings, told.append), told


def test_a_real_point_has_all_rows_in_order(measured: tuple[Point, list[str]]) -> None:
    found, _ = measured
    assert [label(r) for r in found.results] == ["naive", "numba", *CONVOLUTIONS]
    assert {r.backend for r in found.results if r.subject != "involution"} == {"torch"}
    assert [(r.status, r.reason) for r in found.results] == [(Status.OK, None)] * 6
    assert {r.case for r in found.results} == {TINY}  # K=3 also where the row's own kernel differs
    assert not found.interrupted


def test_a_real_point_makes_a_document_of_schema_1(measured: tuple[Point, list[str]]) -> None:
    found, _ = measured
    text = document(*found.results, environment=found.environment, peaks=found.peaks).to_json()
    for row in json.loads(text)["results"]:
        assert list(differences(row, ROW)) == []


def test_a_real_rows_numbers_fit_together(measured: tuple[Point, list[str]]) -> None:
    found, _ = measured
    assert len({len(r.latency.blocks) for r in found.results}) == 1
    for r in found.results:
        assert 0 < r.latency.interval.low <= r.seconds <= r.latency.interval.high
        assert (r.latency.clock, r.latency.cache) == ("eager", "hot")
        assert (r.latency.launches, r.latency.discarded, r.latency.power_capped) == (None, None, None)
        assert 0 < r.latency.floor == found.environment["floor"]["seconds"] < 1e-4
        assert r.latency.stop in ("precision", "noise", "budget")
        assert r.first_call > 0
        assert r.error["relative"] <= r.error["tolerance"]
        assert r.roofline_fraction > 0
        assert r.ratio.latency.count == len(r.latency.blocks)
        assert (r.chosen_layout in ("contiguous", "channels_last")) == (r.subject != "involution")
        assert all(isinstance(warning, str) for warning in r.warnings)
    base = find(found.results, "conv2d").ratio
    assert (base.latency.low, base.latency.median, base.latency.high) == (1.0, 1.0, 1.0)
    assert (base.params, base.flop) == (1.0, 1.0)
    assert all(value > 0 for value in found.peaks.values())


def test_a_real_peak_is_not_below_the_output(measured: tuple[Point, list[str]]) -> None:
    found, _ = measured
    for r in found.results:
        assert r.memory.peak is None or r.memory.peak >= 4 * 16 * 81, label(r)


def test_a_real_point_says_what_it_waits_for(measured: tuple[Point, list[str]]) -> None:
    told = " ".join(measured[1])
    for words in (
        "preparing naive",
        "preparing numba (compiled",
        "peaks",
        "warming up",
        "measuring: round 1",
        "memory",
    ):
        assert words in told


def test_a_row_says_that_its_weight_is_made_in_memory(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a backend that makes it on the way otherwise refuses the layer."""
    monkeypatch.setitem(arms.BACKENDS, "naive", replace(arms.BACKENDS["naive"], fused=Fusing(dtypes=("float16",))))
    row = row_of(measure_point(TINY, replace(SETTINGS, backends=("naive",))), "naive")
    assert row.status is Status.OK
    assert "its weight is made in memory: the fused kernels take float16: got float32" in row.warnings


def test_a_few_rounds_carry_a_warning(measured: tuple[Point, list[str]]) -> None:
    for r in measured[0].results:
        few = len(r.latency.blocks) < 6
        assert any("round(s)" in warning and "raise --budget" in warning for warning in r.warnings) == few


# --- With a clock of our own: real tensors are made and checked, but time passes as we say ---


class FakeClock:
    """Every call takes as long as its subject's label says; ``on_sample`` sees each sample before it is taken."""

    way = None

    def __init__(self) -> None:
        self.time = 0.0
        self.samples = itertools.count()
        self.on_sample: Callable[[int], None] = lambda index: None

    def now(self) -> float:
        return self.time

    def sample(self, before: Callable[[], Any], timed: Callable[[Any], Any], calls: int) -> float:
        self.on_sample(next(self.samples))
        timed(before())
        self.time += 0.01 * calls
        return 0.01


PEAKS = {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(timing, "clock_for", lambda *_: fake)
    monkeypatch.setattr(timing, "measure", functools.partial(blocks.measure, now=fake.now))
    monkeypatch.setattr(arms, "TRIAL_SECONDS", 0.0)  # the fewest trials of layouts
    monkeypatch.setattr(machine, "measure_peaks", lambda dtype, device: dict(PEAKS))
    monkeypatch.setattr(server, "start", lambda backends: None)
    monkeypatch.setattr(
        memory, "cpu_peaks", lambda jobs, workers, beat: {job.subject: Memory(7, "fake") for job in jobs}
    )
    return fake


def row_of(found: Point, name: str) -> Result:
    return next(r for r in found.results if label(r) == name)


def assert_others_are_ok(found: Point, *names: str) -> None:
    for r in found.results:
        if label(r) not in names:
            assert r.status is Status.OK, (label(r), r.reason)
            assert r.latency is not None


def test_fake_point(clock: FakeClock) -> None:
    found = measure_point(TINY, SETTINGS)
    assert [label(r) for r in found.results] == LABELS
    assert_others_are_ok(found)
    for r in found.results:
        assert r.seconds == 0.01
        assert r.latency.stop in ("precision", "budget")
        assert r.memory == Memory(7, "fake")
        assert r.ratio.latency.median == 1.0
        assert r.ratio.memory == 1.0


def test_a_launch_has_its_share_of_the_budget(clock: FakeClock) -> None:
    """And says nothing of its own interval, which is not the row's."""
    spent = []
    for launches in (1, 4):
        settings = replace(SETTINGS, launches=launches, budget=Budget(4.0, precision=-1))
        found = measure_point(TINY, settings)
        spent.append(sum(sum(map(sum, r.latency.blocks)) for r in found.results))
        few = [warning for r in found.results for warning in r.warnings if "round(s)" in warning or "noisy" in warning]
        assert (launches == 1) or not few
    assert 3.0 < spent[0] / spent[1] < 5.0


def test_each_launch_draws_an_order_of_its_own_over_the_same_inputs(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs before a subject is part of what is measured: launches that share it would agree for that alone."""
    seeds: list[int] = []

    def measure(samplers: Any, budget: Any, seed: int, *rest: Any, **more: Any) -> Any:
        seeds.append(seed)
        return blocks.measure(samplers, budget, seed, *rest, now=clock.now, **more)

    monkeypatch.setattr(timing, "measure", measure)
    inputs = []
    monkeypatch.setattr(
        arms,
        "Runnable",
        lambda *given: inputs.append(given[2]) or Runnable(*given),  # type: ignore[func-returns-value]
    )
    for launch in range(3):
        measure_point(TINY, replace(SETTINGS, launches=3, seed=7), launch=launch)
    assert seeds == [7, 8, 9]
    assert set(inputs) == {7}


def test_peak_memory_is_measured_by_the_first_launch(clock: FakeClock) -> None:
    settings = replace(SETTINGS, launches=2)
    first, second = (measure_point(TINY, settings, launch=launch) for launch in (0, 1))
    assert {r.memory for r in first.results} == {Memory(7, "fake")}
    assert {r.memory for r in second.results} == {None}
    assert "memory" not in second.seconds
    assert not any("peak memory" in warning for r in second.results for warning in r.warnings)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("scope", Scope)
def test_every_mode_and_scope(clock: FakeClock, mode: Mode, scope: Scope) -> None:
    found = measure_point(replace(TINY, mode=mode, scope=scope), SETTINGS)
    assert_others_are_ok(found)
    assert (row_of(found, "naive").params == 0) == (scope is Scope.AGGREGATE)


def broken(value: float) -> Callable[[Tensor, Tensor, LayerSpec], Tensor]:
    def aggregate(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        y = naive.aggregate(x, weight, spec)
        mask = torch.zeros_like(y, dtype=torch.bool)
        mask[0, 0, 0, 0] = True
        return y.masked_fill(mask, value)

    return aggregate


@pytest.mark.parametrize("value", [123.0, math.nan, math.inf], ids=str)
def test_a_mismatch_is_a_row_without_latency(clock: FakeClock, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfold, "aggregate", broken(value))
    found = measure_point(TINY, SETTINGS)
    wrong = row_of(found, "unfold")
    assert wrong.status is Status.MISMATCH
    assert wrong.latency is None
    assert wrong.roofline_fraction is None
    assert "float64 reference" in wrong.reason
    assert_others_are_ok(found, "unfold")
    json.loads(document(*found.results).to_json())  # whatever the difference was, the document is JSON


FAILURES: dict[str, tuple[Exception, Status, str]] = {
    "error": (RuntimeError("it broke\nwith details"), Status.ERROR, "RuntimeError: it broke"),
    "no memory": (MemoryError("32 GiB"), Status.OOM, "MemoryError: 32 GiB"),
    "torch's": (torch.OutOfMemoryError("CUDA out of memory. Tried to"), Status.OOM, "OutOfMemoryError: CUDA out of"),
    "allocator": (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"), Status.OOM, "can't allocate"),
}


@pytest.mark.parametrize("call", [1, 2, 12], ids=["first call", "check", "timed"])
@pytest.mark.parametrize(("error", "status", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failure_is_a_row_and_the_others_go_on(
    clock: FakeClock, error: Exception, status: Status, reason: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)

    def aggregate(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
        if next(calls) >= call:
            raise error
        return naive.aggregate(x, weight, spec)

    monkeypatch.setattr(unfold, "aggregate", aggregate)
    found = measure_point(TINY, SETTINGS)
    failed = row_of(found, "unfold")
    assert failed.status is status
    assert reason in failed.reason
    assert "\n" not in failed.reason
    assert failed.latency is None
    assert_others_are_ok(found, "unfold")


def test_a_failing_baseline_costs_the_ratios_only(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_convolution(spec: LayerSpec) -> Any:
        raise RuntimeError("no kernel")

    monkeypatch.setitem(CONVOLUTIONS, "conv2d", no_convolution)
    found = measure_point(TINY, SETTINGS)
    assert row_of(found, "conv2d").status is Status.ERROR
    assert row_of(found, "naive").ratio.latency is None
    assert_others_are_ok(found, "conv2d")


def test_no_baseline(clock: FakeClock) -> None:
    found = measure_point(TINY, replace(SETTINGS, baseline=None))
    assert {r.ratio for r in found.results} == {None}
    assert [label(r) for r in found.results] == LABELS  # convolutions are always shown


@pytest.mark.parametrize("baseline", ["conv2d-3x3", "depthwise"])
def test_another_baseline(clock: FakeClock, baseline: str) -> None:
    found = measure_point(TINY, replace(SETTINGS, baseline=baseline))
    assert row_of(found, baseline).ratio.params == 1.0


def test_an_unavailable_backend_among_the_defaults_is_a_row(clock: FakeClock) -> None:
    found = measure_point(TINY, replace(SETTINGS, backends=("naive", "triton"), asked_for=("naive",)))
    triton = row_of(found, "triton")
    # TRITON_INTERPRET=1, which these tests may run under, makes it available.
    assert triton.status in (Status.UNAVAILABLE, Status.OK)
    if triton.status is Status.UNAVAILABLE:
        assert triton.reason
    assert_others_are_ok(found, "triton")


# --- Interrupted ---


def interrupt(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("after", "timed"), [(0.0, False), (3.0, True)], ids=["warming up", "measuring"])
def test_ctrl_c_keeps_the_rows_so_far(clock: FakeClock, after: float, timed: bool) -> None:
    def tell(line: str) -> None:
        if line == "warming up":
            deadline = clock.time + after
            clock.on_sample = lambda _: interrupt() if clock.time > deadline else None

    found = measure_point(TINY, replace(SETTINGS, budget=Budget(100.0, precision=-1)), tell)
    assert found.interrupted
    assert [label(r) for r in found.results] == LABELS
    for r in found.results:
        if timed:
            assert r.latency.stop == "interrupted"
            assert r.ratio.latency is not None
        else:
            assert (r.status, r.latency) == (Status.ERROR, None)
            assert "interrupted" in r.reason


def test_ctrl_c_while_memory_is_measured_costs_the_peaks_only(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "cpu_peaks", interrupt)
    found = measure_point(TINY, SETTINGS)
    assert found.interrupted
    assert_others_are_ok(found)
    assert {r.memory.peak for r in found.results} == {None}


def test_ctrl_c_while_the_peaks_are_measured_again_keeps_the_rows(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = itertools.count()
    monkeypatch.setattr(machine, "measure_peaks", lambda *_: interrupt() if next(times) else dict(PEAKS))
    try:
        found = measure_point(TINY, SETTINGS)
    except KeyboardInterrupt:  # would end the whole session of tests
        pytest.fail("the rows are lost")
    assert found.interrupted
    assert_others_are_ok(found)


def test_ctrl_c_before_anything_was_timed_is_passed_on(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfold, "aggregate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_point(TINY, SETTINGS)


# --- Refused before anything is allocated ---


@pytest.mark.parametrize(
    ("case", "settings", "words"),
    [
        (replace(TINY, N=10**9), SETTINGS, "not enough memory: .*GiB.*use a smaller"),
        (replace(TINY, H=10**7, W=10**7), SETTINGS, "not enough memory"),
        (replace(TINY, threads=10_000), SETTINGS, r"--threads 10000: .*core\(s\)"),
        (replace(TINY, device="cuda:99"), SETTINGS, "--device cuda:99"),
        (replace(TINY, device="tpu"), SETTINGS, "--device"),
        (TINY, replace(SETTINGS, clock="device"), "--clock device: .*--clock eager"),
        (Case(1, 1, 1, LayerSpec(4, 1, padding_mode="reflect"), threads=1), SETTINGS, "reflect"),
    ],
    ids=["many images", "large images", "threads", "no such GPU", "no such device", "device clock", "3x3 does not fit"],
)
def test_refusals(case: Case, settings: Settings, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((torch, "randn"), (torch, "empty"), (torch, "set_num_threads"), (server, "start")):
        monkeypatch.setattr(module, name, pytest.fail)
    with pytest.raises(InvbenchError, match=words) as refusal:
        measure_point(case, settings)
    assert str(refusal.value).isprintable()


def test_a_named_backend_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(point.BACKENDS["triton"]), "refusal", lambda self, device, dtype: f"no {self.name} here")
    settings = replace(SETTINGS, backends=("triton",), asked_for=("triton",))
    with pytest.raises(BackendUnavailableError, match="--backend triton: no triton here"):
        measure_point(TINY, settings)


def test_a_row_that_does_not_fit_is_oom_and_the_others_go_on(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2 MiB are plenty for this point, except for unfold's patches.
    case = replace(TINY, H=40, W=40, layer=LayerSpec(16, 9, 4))
    monkeypatch.setattr(machine, "free_bytes", lambda device: 12 * 2**20)
    found = measure_point(case, SETTINGS)
    unfold_row = row_of(found, "unfold")
    assert unfold_row.status is Status.OOM
    assert "GiB are free" in unfold_row.reason
    assert_others_are_ok(found, "unfold")


@pytest.mark.parametrize("autotune", [True, False])
def test_cudnn_setting_is_put_back(clock: FakeClock, autotune: bool) -> None:
    before = torch.backends.cudnn.benchmark
    measure_point(TINY, replace(SETTINGS, autotune=autotune))
    assert torch.backends.cudnn.benchmark is before


@pytest.mark.parametrize("clock_name", ["cpu", "cpu:0"])
def test_the_cpu_by_its_other_name(clock: FakeClock, clock_name: str) -> None:
    # Refused in words or measured; not six rows of errors.
    try:
        found = measure_point(replace(TINY, device=clock_name), SETTINGS)
    except InvbenchError:
        return
    assert_others_are_ok(found)


# --- What makes a latency doubtful ---


def timed(clock: str = "eager", device: str = "cuda", **latency: Any) -> Result:
    case = replace(TINY, device=device)
    blocks_of_one = ((1e-4,),) * 6
    return Result("involution", "triton", case, latency=Samples(blocks_of_one, clock=clock, **latency))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (timed(floor=None), []),
        (timed(floor=5e-6), []),
        (timed(floor=5.1e-6), ["shorter than 20 times", "5.1 us", "eager clock", "--clock device, or a larger --N"]),
        (timed("device", floor=6e-6), ["device clock", "use a larger --N"]),
        (timed(device="cpu", floor=6e-6), ["eager clock", "use a larger --N"]),
        (timed(discarded=0, power_capped=(False,) * 6), []),
        (timed(discarded=2), ["2 round(s) were discarded, and repeated", "cool it"]),
        (timed(discarded=6, stop="throttled"), ["6 round(s)", "ended the measurement early", "cool it"]),
        (timed(power_capped=(True, True, False, False, False, False)), ["2 of 6 blocks", "nvidia-smi -lgc"]),
    ],
)
def test_a_doubtful_latency_carries_a_warning_that_says_what_to_do(row: Result, words: list[str]) -> None:
    warnings = timing.with_warnings(row, {"cpu": {}}).warnings
    assert len(warnings) == bool(words), warnings
    for word in words:
        assert word in warnings[0]


@pytest.mark.parametrize("kept", [0, 3])
def test_a_gpu_that_is_slowed_down_ends_the_point_with_what_there_is(
    clock: FakeClock, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()

    class Hot:
        def look(self) -> int:
            return next(looks)

        def between(self, before: int, after: int) -> blocks.Slowdown:
            return blocks.Slowdown(spoiled=after > 2 * kept * len(LABELS), capped=False)

    monkeypatch.setattr(throttling, "watched", lambda device: contextlib.nullcontext(Hot()))
    found = measure_point(TINY, replace(SETTINGS, budget=Budget(1000.0, precision=-1)))
    for r in found.results:
        if kept:
            assert (len(r.latency.blocks), r.latency.stop, r.latency.discarded) == (3, "throttled", 6)
            assert any("nvidia-smi -pl" in warning for warning in r.warnings)
        else:
            assert (r.status, r.latency) == (Status.ERROR, None)
            assert r.reason.startswith("all 6 rounds were discarded: the GPU was slowed down")


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_only_cuda_has_a_device_clock(device: str) -> None:
    check_clock("device", "cuda")
    check_clock("eager", device)
    with pytest.raises(InvbenchError, match=r"--clock device: .* has only the eager clock; use --clock eager"):
        check_clock("device", device)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["hot", "cold"])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_real_point_by_the_device_clock(mode: Mode, cache: str) -> None:
    case = Case(4, 28, 28, LayerSpec(64, 7, 4), device="cuda", layout="channels_last", mode=mode, threads=1)
    settings = Settings(
        backends=("naive", "unfold", "triton"), clock="device", cache=cache, budget=Budget(seconds=2.0)
    )  # fmt: skip
    found = measure_point(case, settings)
    assert found.environment["floor"]["seconds"] > 0
    for r in found.results:
        assert r.status is Status.OK, (label(r), r.reason)
        assert (r.latency.clock, r.latency.cache, r.latency.launches) == ("device", cache, "graph"), label(r)
