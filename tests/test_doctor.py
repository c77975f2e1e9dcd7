"""The doctor: what counts as noise, what each finding advises, what is not told, and one real examination."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from invbench import cli
from invbench.cli.interrupts import held_back
from invbench.diagnosis import (
    TOO_NOISY,
    Diagnosis,
    Finding,
    Floor,
    Launch,
    Noise,
    Observed,
    Peak,
    State,
    SubjectNoise,
    advice,
)
from invbench.harness import clock as clocks
from invbench.harness import doctor, floors, machine, noise, nvml, vitals
from invbench.report.diagnosis import render_diagnosis, verdict

CPU = torch.device("cpu")
QUIET_LAUNCH = Launch((1.0,) * 9, (1.01,) * 9)
LOUD_LAUNCH = Launch((1.0,) * 9, (1.0, 1.2) * 4 + (1.0,))


def noise_of(*launches: Launch, problems: tuple[str, ...] = ()) -> Noise:
    return Noise("a point", (SubjectNoise("conv2d-3x3", launches),) if launches else (), problems)


def environment(cpu: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    usual = {
        "model": "A CPU", "capability": "AVX2", "cores": 4, "logical": 4, "usable": 4, "affinity": [0, 1, 2, 3],
        "quota": None, "governor": None, "load": 0.5, "memory": 2**34,
    }  # fmt: skip
    threads = {"torch": 4, "numba": 4, "numba_layer": "torch's OpenMP", "variables": {"OMP_WAIT_POLICY": "passive"}}
    return {
        "versions": {"torch": "2.13"}, "cpu": usual | (cpu or {}), "threads": threads | more.pop("threads", {}),
        "torch": {"flush_denormal": False}, "gpu": None, **more,
    }  # fmt: skip


GPU = {"name": "A GPU", "driver": None, "other_processes": None, "tf32_matmul": False, "tf32_cudnn": True}


def diagnosis(found: Noise | None = None, observed: Observed | None = None, **env: Any) -> Diagnosis:
    measured, seen = found or noise_of(QUIET_LAUNCH), observed or Observed(1.0)
    floors = (Floor("host", "hot", "nothing", 3e-7), Floor("host", "cold", "nothing", None, "no memory"))
    peaks = (Peak("float32", 1e11, 2e10), Peak("float16", reason="not implemented for 'Half'"))
    findings = (*advice.of_noise(measured), *advice.of_observed(seen), *advice.of_environment(environment(**env)))
    return Diagnosis("cpu", 4, environment(**env), floors, peaks, measured, seen, findings, "1.0", "invbench doctor")


# --- Noise ---


@pytest.mark.parametrize(
    ("launch", "reach"),
    [(QUIET_LAUNCH, 0.01), (Launch((2.0,) * 9, (2.0,) * 9), 0), (Launch((1.0,) * 9, (0.9,) * 9), 0.1),
     (LOUD_LAUNCH, 0.2)],
    ids=["bias", "none", "faster", "spread"],
)  # fmt: skip
def test_what_can_be_seen_is_bias_and_half_width_together(launch: Launch, reach: float) -> None:
    assert launch.reach == pytest.approx(reach)


def test_sequential_noise_and_launches() -> None:
    drifting = Launch((1.0, 1.0, 1.0, 1.1, 1.1, 1.1, 1.2, 1.2, 1.2), (1.0,) * 9)
    subject = SubjectNoise("x", (drifting, Launch((2.2,) * 9, (2.2,) * 9)))
    assert subject.drift == pytest.approx(0.2)
    assert subject.block_worst == pytest.approx(0.1 / 1.1)
    assert subject.launch_spread == pytest.approx(1.0)
    assert subject.smallest_effect == drifting.reach  # a measurement is one launch, and could be that one
    assert SubjectNoise("x", (drifting,)).launch_spread is None


@pytest.mark.parametrize(
    ("found", "state", "code", "words"),
    [
        (noise_of(QUIET_LAUNCH), State.FIT, 0, "fit to measure: differences of 1.0 % and more can be seen"),
        (noise_of(LOUD_LAUNCH), State.UNFIT, 3, "too noisy to measure: differences under 20 % cannot be seen here"),
        (noise_of(QUIET_LAUNCH, LOUD_LAUNCH), State.UNFIT, 3, "too noisy"),
        (noise_of(problems=("conv2d: OutOfMemoryError",)), State.UNFIT, 4, "could not be measured"),
    ],
    ids=["quiet", "loud", "one launch of two", "nothing measured"],
)
def test_verdict_and_exit_code(found: Noise, state: State, code: int, words: str) -> None:
    whole = diagnosis(found)
    assert advice.of_noise(found)[0].state is state
    assert whole.exit_code == code
    assert words in verdict(whole)
    assert words in render_diagnosis(whole, as_json=False, width=100).splitlines()[0]


def test_the_limit_is_where_it_is_said_to_be() -> None:
    at = Launch((1.0,) * 9, (1 + TOO_NOISY * 0.999,) * 9)
    above = Launch((1.0,) * 9, (1 + TOO_NOISY * 1.001,) * 9)
    assert diagnosis(noise_of(at)).is_fit
    assert not diagnosis(noise_of(above)).is_fit


def test_few_rounds_and_failed_launches_are_told() -> None:
    short = advice.of_noise(noise_of(Launch((1.0,) * 3, (1.0,) * 3), problems=("a fresh process could not start",)))
    assert [finding.state for finding in short] == [State.FIT, State.CAUTION, State.CAUTION]
    assert "3 round(s)" in short[1].seen
    assert "fresh process" in short[2].seen


@pytest.mark.parametrize(("slower", "is_told"), [(1.04, False), (1.06, True)])
def test_processes_that_differ_are_told_with_what_to_do(slower: float, is_told: bool) -> None:
    """Each of them quiet by itself, so that nothing else says so."""
    launches = QUIET_LAUNCH, Launch((slower,) * 9, (slower * 1.01,) * 9)
    found = [finding for finding in advice.of_noise(noise_of(*launches)) if "processes" in finding.seen]
    assert [finding.seen for finding in found] == ["processes of identical code read up to 6.0 % apart"] * is_told
    assert [finding.state for finding in found] == [State.CAUTION] * is_told
    assert diagnosis(noise_of(*launches)).exit_code == 0


# --- Advice ---

ENVIRONMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing wrong": ({}, []),
    "nothing told": ({"cpu": {"quota": None, "cores": None, "logical": None, "affinity": None, "governor": None}}, []),
    "performance": ({"cpu": {"governor": "performance"}}, []),
    "powersave": ({"cpu": {"governor": "powersave"}}, ["'powersave'"]),
    "load": ({"cpu": {"load": 7.5}}, ["load average 7.5 on 4"]),
    "half a core": ({"cpu": {"quota": 2.5}}, ["2.5 cores", "on 4 that may"]),
    "whole quota": ({"cpu": {"quota": 4.0}}, []),
    "siblings": ({"cpu": {"logical": 4, "cores": 2}}, ["4 threads on 2 cores"]),
    "siblings left out": ({"cpu": {"logical": 8, "cores": 4}}, []),
    "cores chosen": ({"cpu": {"logical": 8, "cores": 2}}, []),
    "no numba": ({"threads": {"numba": None, "numba_layer": None}}, []),
    "spinning": ({"threads": {"variables": {"OMP_WAIT_POLICY": "ACTIVE"}}}, ["OMP_WAIT_POLICY=ACTIVE"]),
    "sleeping": ({"threads": {"variables": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "1"}}}, []),
    "spinning for ever": ({"threads": {"variables": {"KMP_BLOCKTIME": "infinite"}}}, ["KMP_BLOCKTIME=infinite"]),
    "subnormals": ({"torch": {"flush_denormal": True}}, ["subnormal"]),
    "gpu, nothing told": ({"gpu": GPU}, []),
    "gpu shared": ({"gpu": GPU | {"other_processes": 2}}, ["2 other process"]),
    "tf32": ({"gpu": GPU | {"tf32_matmul": True}}, ["TF32"]),
}


@pytest.mark.parametrize(("told", "words"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_advice_on_the_environment(told: dict[str, Any], words: list[str]) -> None:
    check_findings(advice.of_environment(environment(**told)), words)
    assert len(machine.advice(environment(**told))) == len(words)  # what each row of a point is warned of


OBSERVATIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing told": ({}, []),
    "nothing happened": ({"steal": 0.0, "cpu_pressure": 0.0, "throttled": 0.0, "swapped_bytes": 0}, []),
    "steal": ({"steal": 0.03}, ["took 3.0 %"]),
    "little steal": ({"steal": 0.005}, []),
    "cpu pressure": ({"cpu_pressure": 0.4}, ["waited for a core 40 %"]),
    "throttled": ({"throttled": 0.02}, ["quota stopped us 2.0 %"]),
    "swapping": ({"swapped_bytes": 3 * 2**20}, ["3 MiB were swapped"]),
    "swap in use, quietly": ({"swapped_bytes": 0, "swap_used_bytes": 2**30}, []),
    "memory pressure": ({"memory_pressure": 0.2}, ["waited for memory 20 %"]),
    "little memory": ({"memory_free_bytes": 2**29}, ["0.5 GiB of memory"]),
    "steady clocks": ({"clock_mhz": (3000.0, 3010.0)}, []),
    "turbo": ({"clock_mhz": (2600.0, 3900.0)}, ["2600 and 3900 MHz"]),
    "interpreter": ({"variables": {"TRITON_INTERPRET": "1"}}, ["TRITON_INTERPRET=1"]),
    "no interpreter": ({"variables": {"TRITON_INTERPRET": "0"}}, []),
    "blocking launches": ({"gpu": {}, "variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, ["CUDA_LAUNCH_BLOCKING"]),
    "gpu, nothing told": ({"gpu": dict.fromkeys(("clock_mhz", "mig", "throttled_by", "held_down_s"))}, []),
    "thermal now": ({"gpu": {"throttled_by": ["thermal slowdown by hardware"]}}, ["thermal slowdown by hardware"]),
    "thermal before": ({"gpu": {"held_down_s": {"thermal": 0.5, "power": None}}}, ["0.5 s for its temperature"]),
    "power cap": ({"gpu": {"held_down_s": {"power": 0.5}}}, ["power cap"]),
    "reliability": ({"gpu": {"held_down_s": {"board_limit": 0.5}}}, ["board limit"]),
    "low clocks": ({"gpu": {"clock_mhz": (300, 1000), "clock_most_mhz": 1980}}, ["1000 of 1980 MHz"]),
    "full clocks": ({"gpu": {"clock_mhz": (300, 1980), "clock_most_mhz": 1980}}, []),
    "hot": ({"gpu": {"temperature_c": 85, "slowdown_temperature_c": 87}}, ["85 C"]),
    "switches": ({"gpu": {"persistence": False, "mig": True, "ecc": True}}, ["persistence", "MIG"]),
    "power limit": ({"gpu": {"power_limit_w": 300.0, "power_limit_default_w": 700.0}}, ["300 W of its usual 700 W"]),
}


@pytest.mark.parametrize(("told", "words"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_advice_on_what_happened(told: dict[str, Any], words: list[str]) -> None:
    check_findings(advice.of_observed(Observed(1.0, **told)), words)


def check_findings(found: list[Finding], words: list[str]) -> None:
    """As many findings as words, each with what to do about it."""
    assert len(found) == len(words), [finding.line for finding in found]
    for finding, word in zip(found, words, strict=True):
        assert word in finding.seen
        assert len(finding.remedy) > 10
        assert finding.line.isprintable()
        assert finding.state is not State.FIT


def test_only_a_slowed_gpu_and_noise_are_unfit() -> None:
    slowed = Observed(1.0, gpu={"throttled_by": ["hardware slowdown"]})
    assert diagnosis(observed=slowed, gpu=GPU).exit_code == 3
    assert diagnosis(observed=Observed(1.0, steal=0.5, cpu_pressure=0.9), cpu={"load": 99}).exit_code == 0


# --- What the system tells ---


class Times(NamedTuple):
    """The processors' time, in seconds."""

    user: float
    steal: float


def told_by(monkeypatch: pytest.MonkeyPatch, *files: dict[str, str]) -> None:
    """The system's files, one after the other for each snapshot; the last one stays."""
    queue = list(files)
    reads = vitals._snapshot

    def snapshot() -> Any:
        contents = queue.pop(0) if len(queue) > 1 else queue[0]
        monkeypatch.setattr(vitals, "_read", lambda path: contents.get(path))
        return reads()

    monkeypatch.setattr(vitals, "_snapshot", snapshot)


def pressure(seconds: float) -> str:
    return f"some avg10=1.00 avg60=0.00 avg300=0.00 total={seconds * 1e6:.0f}\nfull avg10=0.00 total=7\n"


@pytest.mark.parametrize(
    ("path", "line", "unit"),
    [("/sys/fs/cgroup/cpu.stat", "throttled_usec", 1e6), ("/sys/fs/cgroup/cpu/cpu.stat", "throttled_time", 1e9)],
    ids=["cgroup 2", "cgroup 1"],
)
def test_counters_are_shares_of_the_time(path: str, line: str, unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"/proc/pressure/cpu": pressure(5), path: f"nr_throttled 1\n{line} 0\n"}
    after = {"/proc/pressure/cpu": pressure(7), path: f"nr_throttled 1\n{line} {unit:.0f}\n"}
    told_by(monkeypatch, before, after)
    times = iter([10.0, 14.0])
    monkeypatch.setattr(vitals.time, "perf_counter", lambda: next(times))
    cpu = iter([Times(1.0, 0.0), Times(7.0, 2.0)])
    monkeypatch.setattr(vitals.psutil, "cpu_times", lambda: next(cpu))
    observed = vitals.Watch(CPU).finish(threads=2)
    assert observed.seconds == 4
    assert observed.cpu_pressure == pytest.approx(0.5)
    assert observed.throttled == pytest.approx(1 / 8)
    assert observed.steal == pytest.approx(2 / 8)
    assert observed.memory_pressure is None


def test_a_counter_that_was_set_back_has_not_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    told_by(monkeypatch, {"/proc/pressure/cpu": pressure(5)}, {"/proc/pressure/cpu": pressure(1)})
    assert vitals.Watch(CPU).finish(threads=1).cpu_pressure == 0


@pytest.mark.parametrize("error", [NotImplementedError, FileNotFoundError("no sysfs"), AttributeError, RuntimeError])
def test_whatever_is_not_told_is_none(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    for name in ("cpu_freq", "cpu_times", "swap_memory", "virtual_memory"):
        monkeypatch.setattr(vitals.psutil, name, broken)
    monkeypatch.setattr(vitals, "_read", lambda path: None)
    observed = vitals.Watch(CPU).finish(threads=1)
    untold = replace(observed, seconds=0, variables={})
    assert untold == Observed(0)
    assert "not told" in render_diagnosis(diagnosis(observed=observed), as_json=False, width=100)


@pytest.mark.parametrize("text", ["", "garbage", "some total=x", "full total=7", "\0"])
def test_odd_files_are_not_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "_read", lambda path: text)
    observed = vitals.Watch(CPU).finish(threads=1)
    assert (observed.cpu_pressure, observed.throttled, observed.memory_limit_bytes) == (None, None, None)


@pytest.mark.parametrize(("text", "limit"), [("max", None), ("9223372036854771712", None), ("1000", 1000)])
def test_memory_limit(text: str, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "_read", lambda path: text if path in vitals.MEMORY_LIMITS else None)
    assert vitals.Watch(CPU).finish(threads=1).memory_limit_bytes == limit


def test_clocks_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    frequencies = iter([2600.0, 3900.0, 3000.0])
    monkeypatch.setattr(vitals.psutil, "cpu_freq", lambda: SimpleNamespace(current=next(frequencies)))
    watch = vitals.Watch(CPU)
    watch.look()
    assert watch.finish(threads=1).clock_mhz == (2600, 3900)
    monkeypatch.setattr(
        vitals.psutil, "cpu_freq", lambda: SimpleNamespace(current=0.0)
    )  # what some systems say for unknown
    assert vitals.Watch(CPU).finish(threads=1).clock_mhz is None


# --- A GPU ---


class Driver(types.ModuleType):
    """A pynvml whose answers are in a table; it raises for all others, as an old driver does."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1, 0, 1

    def __init__(self, **answers: Any) -> None:
        super().__init__("pynvml")
        self.answers = {"Init": 0, "Shutdown": 0, "DeviceGetHandleByUUID": "handle"} | answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answers = self.__dict__.get("answers", {})
        if not name.startswith("nvml") or name[4:] not in answers:
            raise AttributeError(name)
        answer = answers[name[4:]]
        return lambda *arguments: answer(*arguments) if callable(answer) else answer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Observed]:
    """What a watch sees of a GPU whose driver gives these answers."""

    def see(**answers: Any) -> Observed:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
        monkeypatch.setitem(sys.modules, "pynvml", Driver(**answers))
        return vitals.Watch(torch.device("cuda")).finish(threads=1)

    return see


def test_a_gpu_that_tells_everything(gpu: Callable[..., Observed]) -> None:
    growing = iter(range(0, 10**12, 10**8))
    observed = gpu(
        SystemGetDriverVersion="550.1",
        DeviceGetClockInfo=1410,
        DeviceGetMaxClockInfo=1980,
        DeviceGetTemperature=88,
        DeviceGetTemperatureThreshold=90,
        DeviceGetPowerUsage=650_000,
        DeviceGetEnforcedPowerLimit=700_000,
        DeviceGetPowerManagementDefaultLimit=700_000,
        DeviceGetPersistenceMode=1,
        DeviceGetEccMode=[1, 1],
        DeviceGetMigMode=[0, 0],
        DeviceGetComputeRunningProcesses=[],
        DeviceGetCurrentClocksThrottleReasons=0x04 | 0x01,
        DeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(
            violationTime=next(growing) if policy == nvml.POLICIES["power"] else 5
        ),
    )
    seen = observed.gpu
    assert seen is not None
    assert seen["clock_mhz"] == (1410, 1410)
    assert seen["throttled_by"] == ["power cap"]  # idle, the lowest bit, is no fault
    assert seen["held_down_s"] == {"power": pytest.approx(0.1), "thermal": 0, "board_limit": 0, "reliability": 0}
    assert (seen["ecc"], seen["mig"], seen["persistence"]) == (True, False, True)
    words = [finding.seen for finding in advice.of_observed(observed) if finding.topic == "gpu"]
    assert len(words) == 3, words  # the power cap, the low clocks, the temperature
    page = render_diagnosis(diagnosis(observed=observed, gpu=GPU | {"driver": "550.1"}), as_json=False, width=140)
    assert "1410 MHz throughout of 1980 MHz, 650 W of 700 W, 88 C" in page


@pytest.mark.parametrize("answers", [{"Init": lambda: 1 / 0}, {}, {"DeviceGetHandleByUUID": lambda uuid: 1 / 0}])
def test_a_gpu_that_tells_nothing(answers: dict[str, Any], gpu: Callable[..., Observed]) -> None:
    observed = gpu(**answers)
    assert observed.gpu is not None
    assert set(observed.gpu.pop("held_down_s").values()) == {None}  # type: ignore[attr-defined]
    assert set(observed.gpu.values()) == {None}
    assert not advice.of_observed(replace(observed, memory_free_bytes=None, variables={}))
    page = render_diagnosis(diagnosis(observed=observed, gpu=GPU), as_json=False, width=140)
    assert "throttled: not told" in page


def test_a_torch_that_does_not_tell_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pynvml", Driver(DeviceGetHandleByUUID=lambda uuid: 1 / 0))
    observed = vitals.Watch(torch.device("cuda")).finish(threads=1)
    assert observed.gpu is not None
    assert observed.gpu["clock_mhz"] is None


# --- Floors, peaks, launches ---


def test_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "FLUSH_BYTES", 2**20)
    found = floors.measure_floors(CPU)
    assert [(floor.timer, floor.cache, floor.call) for floor in found] == [
        ("host", "hot", "nothing"), ("host", "cold", "nothing"), ("host", "hot", "one element")
    ]  # fmt: skip
    for floor in found:
        assert floor.seconds is not None
        assert 0 < floor.seconds < 0.01
        assert floor.shortest == 20 * floor.seconds


def test_a_floor_that_fails_is_null_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "FLUSH_BYTES", 2**60)
    hot, cold, _ = floors.measure_floors(CPU)
    assert hot.seconds is not None
    assert (cold.seconds, cold.shortest) == (None, None)
    assert cold.reason


def test_a_dtype_that_cannot_be_multiplied_is_null_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError('"addmm" not implemented for Half\nmore')

    monkeypatch.setattr(machine, "measure_peaks", refuse)
    peak = doctor._peak(replace(noise.POINT, dtype="float16"), CPU, lambda _: None)
    assert peak == Peak("float16", None, None, 'RuntimeError: "addmm" not implemented for Half')


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, plain PyTorch, short peaks."""
    monkeypatch.setattr(
        noise, "POINT", replace(noise.POINT, N=1, H=5, W=5, layer=replace(noise.POINT.layer, C=16, G=1))
    )
    monkeypatch.setattr(noise, "choose_backend", lambda x: "naive")
    monkeypatch.setattr(machine, "PEAK_SECONDS", 0.001)
    monkeypatch.setattr(machine, "COPY_BYTES", 2**20)
    monkeypatch.setattr(clocks, "FLUSH_BYTES", 2**20)


def test_fresh_launches(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "LEAST_SECONDS", 0.05)
    fresh = {"involution (naive)": QUIET_LAUNCH, "conv2d-3x3": QUIET_LAUNCH}
    monkeypatch.setattr(noise, "_fresh_launch", lambda plan: fresh)
    monkeypatch.setattr(noise, "PATIENCE", 1000)
    looks: list[int] = []
    found = noise.measure_noise(CPU, 1, 0.2, look=lambda: looks.append(1))
    assert [subject.label for subject in found.subjects] == list(fresh)
    assert {len(subject.launches) for subject in found.subjects} == {noise.LAUNCHES}
    assert looks
    monkeypatch.setattr(noise, "PATIENCE", 0)  # a machine where preparing takes long
    assert {len(subject.launches) for subject in noise.measure_noise(CPU, 1, 0.2).subjects} == {1}


def test_a_fresh_launch_that_fails_costs_only_itself(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "LEAST_SECONDS", 0.05)
    monkeypatch.setattr(noise, "PATIENCE", 1000)
    monkeypatch.setattr(noise.sys, "executable", "/nowhere/python")
    found = noise.measure_noise(CPU, 1, 0.1)
    assert found.smallest_effect is not None
    assert len(found.problems) == 1
    assert "fresh process" in found.problems[0]


def test_a_subject_that_fails_leaves_the_other(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "choose_backend", lambda x: "triton" if x.device.type != "cpu" else "nothing")
    found = noise.measure_noise(CPU, 1, 0.05)
    assert [subject.label for subject in found.subjects] == ["conv2d-3x3"]
    assert found.problems


def test_a_launch_prints_what_its_parent_reads(small: None, capsys: Any) -> None:
    noise.main(json.dumps({"device": "cpu", "threads": 1, "seconds": 0.05, "seed": 1}))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"involution (naive)", "conv2d-3x3"}
    assert len(found["conv2d-3x3"]["first"]) == len(found["conv2d-3x3"]["second"]) > 0


@pytest.mark.slow
def test_a_real_fresh_launch() -> None:
    found = noise._fresh_launch(noise.Plan("cpu", 1, 0.5))
    assert all(launch.median > 0 for launch in found.values())


# --- The page and the document ---


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("gpu_told", [None, GPU], ids=["cpu", "gpu"])
def test_page_fits(width: int, gpu_told: dict[str, Any] | None) -> None:
    observed = Observed(1.0, steal=0.02, cpu_pressure=0.5, clock_mhz=(2000.0, 3000.0), gpu=gpu_told and {})
    page = render_diagnosis(diagnosis(noise_of(LOUD_LAUNCH), observed, gpu=gpu_told), as_json=False, width=width)
    assert all(len(line) <= width and line.isprintable() for line in page.splitlines())
    for words in ("not implemented", "caution", "unfit", "no memory"):
        assert words in " ".join(page.split())


def test_document() -> None:
    found = json.loads(render_diagnosis(diagnosis(), as_json=True))
    assert list(found) == [
        "schema", "tool", "command", "created", "device", "threads", "environment", "floors", "peaks", "noise",
        "observed", "findings", "fit",
    ]  # fmt: skip
    assert (found["schema"], found["fit"]) == (1, True)
    assert found["peaks"][1]["matmul_flop_per_s"] is None
    assert found["peaks"][1]["reason"]
    assert found["floors"][0]["shortest"] == pytest.approx(6e-6)
    assert found["noise"]["smallest_effect"] == pytest.approx(0.01)
    assert found["noise"]["subjects"][0]["launches"][0]["first"] == [1.0] * 9
    assert found["observed"]["steal"] is None
    assert found["findings"][0].keys() == {"topic", "state", "seen", "remedy"}


def test_telling_needs_no_torch() -> None:
    modules = "invbench.diagnosis.advice, invbench.report.diagnosis, invbench.cli.doctor"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- The command ---


def test_the_whole_command(small: None, capsys: Any) -> None:
    before = torch.get_num_threads()
    try:
        code = cli._run(["doctor", "--device=cpu", "--threads=1", "--budget=0.1", "--format=json"])
    finally:
        torch.set_num_threads(before)
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert code == (0 if found["fit"] else 3)
    assert {peak["dtype"] for peak in found["peaks"]} == {"float32", "float16", "bfloat16", "float64"}
    assert len(found["noise"]["subjects"]) == 2
    assert "measuring noise" in captured.err
    assert all(line.startswith("invbench: ") for line in captured.err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format=csv"], ["--format", "csv", "json"]),
        (["--budget=0"], ["--budget", "0"]),
        (["--budget=nan"], ["--budget"]),
        (["--threads=0"], ["--threads", "0"]),
        (["--threads=9999"], ["--threads 9999", "at most"]),
        (["--device=gpu"], ["--device", "gpu", "--device cpu"]),
        (["--nonsense"], ["--nonsense"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line(arguments: list[str], words: list[str], capsys: Any) -> None:
    assert cli._run(["doctor", "--quiet", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in words)


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", interrupt)
    assert cli._run(["doctor", "--quiet"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "invbench: interrupted: a diagnosis is whole or none; run it again to have one\n"


def test_ctrl_c_while_torch_is_imported_waits() -> None:
    done: list[int] = []

    def interrupt() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            done.append(1)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_held_back_in_a_thread_or_where_ctrl_c_is_ignored() -> None:
    def enter() -> None:
        with held_back():
            done.append(1)

    done: list[int] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_back():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done


def test_ctrl_c_between_blocks_ends_it(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "measure", lambda *_, **__: SimpleNamespace(interrupted=True))
    with pytest.raises(KeyboardInterrupt):
        noise.measure_noise(CPU, 1, 0.1)
