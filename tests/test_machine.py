"""The machine: what its fingerprint records and hides, its cores and memory, and broken libraries."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import re
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from invbench.harness import machine, nvml
from invbench.ops import BACKENDS
from invbench.spec import Case, InvbenchError, LayerSpec

CPU = torch.device("cpu")
CASE = Case(1, 9, 9, LayerSpec(16, 3))


@pytest.fixture
def threads() -> Iterator[None]:
    """Put torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    """These files and no others."""
    monkeypatch.setattr(machine, "_read", lambda path: contents.get(str(path)))


# --- Fingerprint ---


def test_fingerprint_has_every_key_of_rule_10() -> None:
    found = json.loads(json.dumps(machine.fingerprint(CPU), allow_nan=False))
    assert found.keys() >= {"python", "platform", "versions", "commit", "cpu", "threads", "torch", "gpu"}
    assert found["versions"].keys() >= {"invbench", "torch", "triton", "numba", "numpy"}
    assert found["cpu"].keys() >= {"model", "capability", "cores", "usable", "affinity", "quota", "governor", "load"}
    assert found["threads"].keys() >= {"torch", "numba", "numba_layer", "variables"}
    assert found["allocator"].keys() >= {"library", "keeps_freed", "variables"}
    assert found["torch"].keys() >= {"flush_denormal", "matmul_precision"}
    assert found["gpu"] is None
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        assert found["cpu"]["affinity"] == sorted(os.sched_getaffinity(0))


def test_fingerprint_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/petra-mustermann")
    monkeypatch.setenv("USER", "petra-mustermann")
    text = json.dumps(machine.fingerprint(CPU))
    private = {socket.gethostname(), os.uname().nodename, "petra-mustermann", str(Path(machine.__file__).parents[2])}
    private |= {getpass.getuser(), str(Path.home())} - {"root", "/root", "user"}
    for name in private:
        assert not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), name


def test_fingerprint_follows_the_number_of_threads(threads: None) -> None:
    machine.set_threads(1)
    found = machine.fingerprint(CPU)["threads"]
    assert (found["torch"], found["numba"]) == (1, 1)


@pytest.mark.parametrize("name", machine.THREAD_VARIABLES)
def test_fingerprint_records_thread_variables(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    assert machine.fingerprint(CPU)["threads"]["variables"][name] == "7"
    monkeypatch.delenv(name)
    assert name not in machine.fingerprint(CPU)["threads"]["variables"]


def test_fingerprint_sees_flushed_subnormals() -> None:
    # Subnormals make CPU convolutions tens of times slower, so that it matters who flushes them.
    before = machine.fingerprint(CPU)["torch"]["flush_denormal"]
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        assert machine.fingerprint(CPU)["torch"]["flush_denormal"] is True
    finally:
        torch.set_flush_denormal(before)
    assert machine.fingerprint(CPU)["torch"]["flush_denormal"] is before


class Driver(types.ModuleType):
    """A pynvml that works, or does not."""

    NVML_CLOCK_SM = 1

    def __init__(self, works: bool) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.works = works

    def nvmlInit(self) -> None:
        if not self.works:
            raise OSError("no driver")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return "handle"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "550.1"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1410

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 300_000

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=1)]


@pytest.mark.parametrize("works", [True, False], ids=["driver", "no driver"])
def test_fingerprint_of_a_gpu(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="A GPU", total_memory=2**34, multi_processor_count=80, uuid="1234", L2_cache_size=2**25
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    driver = Driver(works)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    gpu = json.loads(json.dumps(machine.fingerprint(torch.device("cuda"))))["gpu"]
    settings = {"tf32_matmul", "tf32_cudnn", "cudnn_benchmark", "cudnn_deterministic"}
    assert gpu.keys() >= {"name", "other_processes", "driver"} | settings
    assert all(isinstance(gpu[name], bool) for name in settings)
    assert (gpu["name"], gpu["l2"]) == ("A GPU", 2**25)
    # What the driver does not tell is null, never 0.
    expected = ("550.1", 1, 1410, 300.0) if works else (None, None, None, None)
    assert tuple(gpu[name] for name in ("driver", "other_processes", "clock_mhz", "power_limit_w")) == expected
    assert driver.open == 0


def test_a_driver_that_tells_half_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(works=True)
    monkeypatch.setattr(driver, "nvmlDeviceGetClockInfo", lambda handle, kind: 1 / 0)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert nvml.identity("1234") == {
        "driver": "550.1", "other_processes": 1, "clock_mhz": None, "power_limit_w": 300.0
    }  # fmt: skip
    assert set(nvml.settings("1234").values()) == {None}
    assert nvml.counters("1234")["violations"] == dict.fromkeys(nvml.POLICIES)
    assert driver.open == 0


# --- Libraries that are missing or broken ---


def test_a_missing_numba_costs_only_itself(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    broken = dataclasses.replace(BACKENDS["numba"], module="invbench.ops.not_there")
    monkeypatch.setitem(BACKENDS, "numba", broken)
    machine.set_threads(1)
    found = machine.fingerprint(CPU)["threads"]
    assert (found["torch"], found["numba"], found["numba_layer"]) == (1, None, None)


# --- Cores and memory ---


@pytest.mark.parametrize(
    ("cpu_max", "cores", "usable"),
    [
        (None, 8, 8),
        ("max 100000", 8, 8),
        ("400000 100000", 8, 4),
        ("250000 100000", 8, 2),
        ("50000 100000", 8, 1),
        ("1600000 100000", 8, 8),
        ("", 8, 8),
    ],
    ids=str,
)
def test_usable_cores(cpu_max: str | None, cores: int, usable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {} if cpu_max is None else {"/sys/fs/cgroup/cpu.max": cpu_max})
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert machine.usable_cores() == usable


@pytest.mark.parametrize(("quota", "usable"), [("-1", 8), ("250000", 2)])
def test_quota_of_the_first_version_of_cgroups(quota: str, usable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "/sys/fs/cgroup/cpu"
    files(monkeypatch, {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"})
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.usable_cores() == usable


@pytest.mark.parametrize(("cpu_max", "quota"), [("150000 100000", 1.5), ("max 100000", None), (None, None)])
def test_quota_in_the_fingerprint(cpu_max: str | None, quota: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {} if cpu_max is None else {"/sys/fs/cgroup/cpu.max": cpu_max})
    found = machine.fingerprint(CPU)["cpu"]
    assert found["quota"] == quota
    assert found["governor"] is None  # not readable here: null


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        (None, None, 1000),
        ("max", "10", 1000),
        ("500", "100", 400),
        ("5000", "100", 1000),
        ("500", "600", 0),
    ],
)
def test_free_bytes(limit: str | None, used: str | None, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"/sys/fs/cgroup/memory.max": limit, "/sys/fs/cgroup/memory.current": used}
    files(monkeypatch, {path: text for path, text in pairs.items() if text is not None})
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert machine.free_bytes(CPU) == free


def test_free_bytes_do_not_count_the_page_cache_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel gives cached files back when somebody asks for memory; memory.current holds them.
    files(
        monkeypatch,
        {
            "/sys/fs/cgroup/memory.max": "500",
            "/sys/fs/cgroup/memory.current": "450",
            "/sys/fs/cgroup/memory.stat": "anon 50\nfile 400\ninactive_file 300\nactive_file 100",
        },
    )
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert machine.free_bytes(CPU) >= 350


def test_free_bytes_are_unknown_where_nobody_tells() -> None:
    assert machine.free_bytes(torch.device("mps")) is None


# --- Devices and threads ---


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:-1", "meta", "cpu cpu", ""])
def test_check_device_refuses(name: str) -> None:
    with pytest.raises(InvbenchError, match="--device"):
        machine.check_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_check_device_refuses_a_gpu_that_is_not_there(name: str) -> None:
    with pytest.raises(InvbenchError, match=f"--device {name}.*--device cpu"):
        machine.check_device(name)


def test_check_device_counts_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.ACCELERATORS, "cuda", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert machine.check_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InvbenchError, match="cuda:2"):
        machine.check_device("cuda:2")


@pytest.mark.parametrize(
    ("asked", "threads", "has_cuda", "expected"),
    [(None, None, False, ("cpu", 3)), (None, None, True, ("cuda", 3)), ("cpu", 2, True, ("cpu", 2))],
)
def test_complete(
    asked: str | None, threads: int | None, has_cuda: bool, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    case = machine.complete(CASE, asked, threads)
    assert (case.device, case.threads) == expected


@pytest.mark.parametrize("name", ["cpu:0", "cpu"])
def test_the_cpu_has_one_name(name: str) -> None:
    # Rows of one machine must have one case, and device checks compare names.
    assert machine.complete(CASE, name, 1).device == "cpu"


def test_a_refused_number_of_threads_changes_nothing(threads: None) -> None:
    before = torch.get_num_threads()
    with pytest.raises(InvbenchError):
        machine.check_threads(100_000)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("cpu", "gpu", "words"),
    [
        ({"governor": None, "load": 0.5, "usable": 2}, None, []),
        ({"governor": "performance", "load": 0.5, "usable": 2}, None, []),
        ({"governor": "powersave", "load": 0.5, "usable": 2}, None, ["powersave"]),
        ({"governor": None, "load": 3.5, "usable": 2}, None, ["load average 3.5"]),
        ({"governor": None, "load": 0.5, "usable": 2}, {"other_processes": None}, []),
        ({"governor": None, "load": 0.5, "usable": 2}, {"other_processes": 2}, ["2 other process"]),
    ],
)
def test_advice_says_what_to_do(cpu: dict[str, Any], gpu: dict[str, Any] | None, words: list[str]) -> None:
    found = machine.advice({"cpu": cpu, "gpu": gpu})
    assert len(found) == len(words)
    for line, word in zip(found, words, strict=True):
        assert word in line
        assert re.search(r": (set|stop) ", line)


def test_backends_here_gives_a_reason_for_each_device() -> None:
    for row in machine.backends_here():
        assert row.keys() >= {"name", "summary", "available", "unavailable", "devices", "dtypes"}
        assert set(row["available"]) | set(row["unavailable"]) >= {"cpu"}
        assert not set(row["available"]) & set(row["unavailable"])
        assert all(reason.isprintable() for reason in row["unavailable"].values())
        json.dumps(row)
