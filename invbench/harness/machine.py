"""The machine: its fingerprint, its usable cores and memory, and its peaks."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil  # noqa: TID251 -- this is the harness
import torch

from invbench.diagnosis.advice import of_environment
from invbench.harness import THREAD_VARIABLES, allocator, nvml
from invbench.harness.clock import eager_clock, l2_bytes
from invbench.harness.settings import require_cores
from invbench.ops import BACKENDS
from invbench.spec import Case, InvbenchError

PACKAGES = ("invbench", "triton", "numba", "numpy")
COPY_BYTES = 128 * 2**20
PEAK_SECONDS = 0.15
# Sides of the square matrices. Where a processor lacks a dtype, as many lack float16, a side of 1024 takes a second.
MATMUL_LEAST, MATMUL_MOST = 256, 8192
ACCELERATORS: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "xpu": torch.xpu.is_available,
}


def usable_cores() -> int:
    """Cores that this process may use: its affinity and, in a container, its CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpus()
    return max(1, min(cores, int(quota))) if quota else cores


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(psutil.getloadavg()[0], 2)


def free_bytes(device: torch.device) -> int | None:
    """Memory that a new tensor could take on the device, in bytes; None where the device cannot tell."""
    if device.type == "cuda":
        # What the caching allocator keeps for reuse is free, too, though the driver counts it as used.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type != "cpu":
        return None
    free = int(psutil.virtual_memory().available)
    limit = _read_number("/sys/fs/cgroup/memory.max")
    used = _read_number("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return free
    return max(0, min(free, limit - used + _reclaimable()))


def settle(threads: int) -> None:
    """Get this process ready to be measured in: so many threads, and an allocator that keeps what is freed."""
    set_threads(threads)
    allocator.keep_freed()


def give_back(device: str) -> None:
    """Give what this process keeps of a point's memory back: to its next point, which begins like the first, and to
    others that use the same GPU meanwhile."""
    allocator.give_back()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def set_threads(threads: int) -> None:
    """Give torch so many threads; the Numba kernels run on the same ones."""
    torch.set_num_threads(threads)


def check_threads(threads: int) -> None:
    """Refuse, with an InvbenchError, more threads than this process may use cores."""
    require_cores(threads, usable_cores())


def check_device(name: str) -> torch.device:
    """The torch device of that name; raises InvbenchError with the reason if it cannot be used here."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvbenchError(f"--device takes cpu, cuda, cuda:1, mps or xpu: got {name!r}; try --device cpu") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type not in ACCELERATORS:
        raise InvbenchError(f"--device takes cpu, cuda, cuda:1, mps or xpu: got {name!r}; try --device cpu")
    if not ACCELERATORS[device.type]():
        raise InvbenchError(
            f"--device {name}: torch {torch.__version__} finds no {device.type} device on this machine; "
            f"use --device cpu, or a machine and a torch build with {device.type}"
        )
    index: int | None = device.index
    count = torch.accelerator.device_count()
    if index is not None and index >= count:
        raise InvbenchError(
            f"--device {name}: this machine has {count} {device.type} device(s), counted from 0; use one of them"
        )
    return device


def complete(case: Case, device: str | None, threads: int | None) -> Case:
    """The case with what was left open: cuda where there is one, else cpu; all usable cores."""
    return replace(case, device=full_name(device), threads=threads or usable_cores())


def full_name(device: str | None) -> str:
    """The device asked for, or cuda where there is one, else cpu."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "cpu" if name.startswith("cpu:") else name  # there is one, and rows of one point have one name for it


def backends_here() -> list[dict[str, Any]]:
    """For each backend, what it is, the types of device here that it runs on, and why not on the others."""
    devices = ["cpu", *(name for name, is_available in ACCELERATORS.items() if is_available())]
    rows = []
    for backend in BACKENDS.values():
        reasons = {device: backend.unavailable(device) for device in devices}
        row = {**asdict(backend), "devices": list(backend.devices), "dtypes": list(backend.dtypes)}
        row["fused"] = backend.fused is not None
        row["available"] = [device for device, reason in reasons.items() if reason is None]
        row["unavailable"] = {device: reason for device, reason in reasons.items() if reason is not None}
        rows.append(row)
    return rows


def fingerprint(device: torch.device) -> dict[str, Any]:
    """What a reader has to know to repeat or distrust a measurement; no host or user names."""
    layer = _numba_layer()
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"torch": torch.__version__, **{name: _version(name) for name in PACKAGES}},
        "commit": _commit(),
        "source": _source(),
        "cpu": {
            "model": _cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": psutil.cpu_count(logical=False),
            "logical": psutil.cpu_count(),
            "usable": usable_cores(),
            "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "quota": _cgroup_cpus(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "load": load(),
            "memory": psutil.virtual_memory().total,
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "numba": torch.get_num_threads() if layer else None,
            "numba_layer": layer,
            "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        },
        "allocator": allocator.describe(),
        "torch": {
            "flush_denormal": _flushes_subnormals(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "mkldnn": torch.backends.mkldnn.is_available(),
        },
        "gpu": None,
    }
    if device.type == "cuda":
        found["gpu"] = _gpu(device)
    return found


def measure_peaks(dtype_name: str, device: torch.device) -> dict[str, float]:
    """The matrix product rate (FLOP/s, in that dtype) and copy bandwidth (read plus write, bytes/s)."""
    dtype = getattr(torch, dtype_name)
    source = torch.ones(COPY_BYTES // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    clock = eager_clock(device)

    def best(call: Any) -> float:
        call(None)
        started = time.perf_counter()
        times: list[float] = []
        while time.perf_counter() - started < PEAK_SECONDS or len(times) < 3:
            times.append(clock.sample(lambda: None, call, 1))
        return min(times)

    def matmul_rate(n: int) -> float:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        seconds = best(lambda _: torch.mm(a, b, out=product))
        rate = 2 * n**3 / seconds
        # A larger product comes closer to the peak, as long as one takes no noticeable time.
        return max(rate, matmul_rate(2 * n)) if 8 * seconds < PEAK_SECONDS and n < MATMUL_MOST else rate

    with torch.inference_mode():
        return {
            "matmul_flop_per_s": matmul_rate(MATMUL_LEAST),
            "copy_bytes_per_s": 2 * COPY_BYTES / best(lambda _: target.copy_(source)),
        }


def advice(environment: dict[str, Any]) -> list[str]:
    """Settings of the machine that would spoil a measurement, each with what to do."""
    return [finding.line for finding in of_environment(environment)]


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": list(torch.cuda.get_device_capability(device)),
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2": l2_bytes(device) or None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        **nvml.identity(getattr(properties, "uuid", None)),
    }


def _numba_layer() -> str | None:
    """Whose threads the Numba kernels run on; None where they cannot run at all."""
    if BACKENDS["numba"].unavailable("cpu") is not None:
        return None
    return str(importlib.import_module("invbench.ops.numba_cpu.running").threads_of())


def _flushes_subnormals() -> bool:
    tiny = torch.tensor([1e-310], dtype=torch.float64)
    return bool((tiny * 1.0).item() == 0.0)


def _cpu_model() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cgroup_cpus() -> float | None:
    """The container's share of the cores, by the second version of cgroups or the first; None without a limit."""
    folder = "/sys/fs/cgroup/cpu"
    words = (_read(f"{folder}.max") or "").split()
    words = words or [_read(f"{folder}/cpu.cfs_quota_us") or "-1", _read(f"{folder}/cpu.cfs_period_us") or "0"]
    has_limit = len(words) == 2 and words[0].isdigit() and int(words[1]) > 0
    return int(words[0]) / int(words[1]) if has_limit else None


def _source() -> str:
    """A hash of the code that measures and of what it measures, which a commit is not while files differ from it."""
    package = Path(__file__).parents[1]
    files = [
        package / "spec.py",
        package / "cost.py",
        *(package / "ops").rglob("*.py"),
        *(package / "models").glob("*.py"),
        *Path(__file__).parent.rglob("*.py"),
    ]
    text = b"".join(file.read_bytes() for file in sorted(files))
    return hashlib.sha256(text).hexdigest()[:12]


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``-dirty`` where files differ; None elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        # `git describe --dirty` would write what it has refreshed into the user's index; `status` can be told not to.
        done = subprocess.run(  # noqa: S603
            ["git", "--no-optional-locks", "-C", str(root), *arguments],  # noqa: S607 -- the user's git
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        return done.stdout.strip()

    try:
        is_dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return f"{git('rev-parse', '--short=12', 'HEAD')}{'-dirty' * is_dirty}"
    except (OSError, subprocess.SubprocessError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _reclaimable() -> int:
    """Bytes of file cache that the container's limit counts as used and the kernel gives back when asked."""
    lines = (_read("/sys/fs/cgroup/memory.stat") or "").splitlines()
    counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return sum(int(counts.get(name, 0)) for name in ("active_file", "inactive_file"))


def _read_number(path: str) -> int | None:
    text = _read(path)
    return int(text) if text and text.isdigit() else None
