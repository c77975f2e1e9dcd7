"""What else happens on the machine while it is measured: the system's counters before and after, clocks in between.

Linux tells most of it; elsewhere, and in containers that hide it, it is None.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil  # noqa: TID251 -- this is the harness
import torch

from invbench.diagnosis import Observed
from invbench.harness import machine, nvml

_T = TypeVar("_T")

CGROUP = "/sys/fs/cgroup"
# Version 2 in microseconds, version 1 in nanoseconds.
THROTTLED = ((f"{CGROUP}/cpu.stat", "throttled_usec", 1e-6), (f"{CGROUP}/cpu/cpu.stat", "throttled_time", 1e-9))
MEMORY_LIMITS = (f"{CGROUP}/memory.max", f"{CGROUP}/memory/memory.limit_in_bytes")
VARIABLES = ("TRITON_INTERPRET", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class _Snapshot:
    """Counters that only grow, in seconds or bytes; ``at`` is when they were read."""

    at: float
    steal: float | None = None
    processors: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    throttled: float | None = None
    swapped: int | None = None


class Watch:
    """Looks at a device's machine from its making to ``finish``; ``look`` is cheap, and belongs between blocks."""

    def __init__(self, device: torch.device) -> None:
        self._uuid: str | None = None
        if device.type == "cuda":
            self._uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", "not told"))
        self._clocks: list[float] = []
        self._gpu: list[dict[str, Any]] = []
        self._before = _snapshot()
        self.look()

    def look(self) -> None:
        """Note the clocks of this moment."""
        frequency = _told(psutil.cpu_freq)
        if frequency is not None and frequency.current:
            self._clocks.append(float(frequency.current))
        if self._uuid is not None:
            self._gpu.append(nvml.counters(self._uuid))

    def finish(self, threads: int) -> Observed:
        """What was seen; threads: how many of ours a quota could stop."""
        self.look()
        before, after = self._before, _snapshot()
        seconds = after.at - before.at
        swap, swapped = _told(psutil.swap_memory), _growth(before.swapped, after.swapped)
        return Observed(
            seconds=seconds,
            steal=_share(before.steal, after.steal, _growth(before.processors, after.processors)),
            cpu_pressure=_share(before.cpu_pressure, after.cpu_pressure, seconds),
            memory_pressure=_share(before.memory_pressure, after.memory_pressure, seconds),
            throttled=_share(before.throttled, after.throttled, seconds * threads),
            swapped_bytes=None if swapped is None else int(swapped),
            swap_used_bytes=None if swap is None else int(swap.used),
            memory_limit_bytes=_memory_limit(),
            memory_free_bytes=_told(lambda: machine.free_bytes(torch.device("cpu"))),
            clock_mhz=(min(self._clocks), max(self._clocks)) if self._clocks else None,
            variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
            gpu=self._gpu_seen(),
        )

    def _gpu_seen(self) -> dict[str, Any] | None:
        if self._uuid is None:
            return None
        clocks = [look["clock_mhz"] for look in self._gpu if look["clock_mhz"] is not None]
        reasons = [look["throttled_by"] for look in self._gpu if look["throttled_by"] is not None]
        first, last = self._gpu[0], self._gpu[-1]
        growth = {name: _growth(first["violations"][name], last["violations"][name]) for name in nvml.POLICIES}
        return {
            **nvml.identity(self._uuid),
            **nvml.settings(self._uuid),
            "clock_mhz": (min(clocks), max(clocks)) if clocks else None,
            "temperature_c": _most(look["temperature_c"] for look in self._gpu),
            "power_w": _most(look["power_w"] for look in self._gpu),
            "throttled_by": sorted({name for names in reasons for name in names}) if reasons else None,
            "held_down_s": {name: None if ns is None else ns * 1e-9 for name, ns in growth.items()},
        }


def _snapshot() -> _Snapshot:
    times = _told(psutil.cpu_times)
    swap = _told(psutil.swap_memory)
    return _Snapshot(
        at=time.perf_counter(),
        steal=None if times is None else getattr(times, "steal", None),
        # guest and guest_nice are part of user and nice already.
        processors=None if times is None else sum(times) - sum(getattr(times, n, 0) for n in ("guest", "guest_nice")),
        cpu_pressure=_pressure("cpu"),
        memory_pressure=_pressure("memory"),
        throttled=_throttled(),
        swapped=None if swap is None else int(swap.sin + swap.sout),
    )


def _pressure(resource: str) -> float | None:
    """Seconds in which at least one task waited for the resource, since the machine started."""
    for line in (_read(f"/proc/pressure/{resource}") or "").splitlines():
        words = dict(word.split("=", 1) for word in line.split()[1:] if "=" in word)
        if line.startswith("some ") and words.get("total", "").isdigit():
            return int(words["total"]) * 1e-6
    return None


def _throttled() -> float | None:
    """Seconds in which the quota stopped a processor, summed over processors; None where nobody counts them."""
    for path, name, unit in THROTTLED:
        for line in (_read(path) or "").splitlines():
            key, _, value = line.partition(" ")
            if key == name and value.strip().isdigit():
                return int(value) * unit
    return None


def _memory_limit() -> int | None:
    """Bytes that the container may use; None without a limit, which the first version of cgroups writes as 2**63."""
    for path in MEMORY_LIMITS:
        text = (_read(path) or "").strip()
        if text.isdigit() and int(text) < 2**60:
            return int(text)
    return None


def _growth(before: float | None, after: float | None) -> float | None:
    """After less before; None where one of them was not told. A counter that was set back has not grown."""
    return None if before is None or after is None else max(0, after - before)


def _share(before: float | None, after: float | None, whole: float | None) -> float | None:
    growth = _growth(before, after)
    return None if growth is None or not whole else growth / whole


def _most(values: Any) -> Any:
    return max((value for value in values if value is not None), default=None)


def _told(ask: Callable[[], _T]) -> _T | None:
    """What psutil says; None where this system has no such thing (it raises a different error on each)."""
    with contextlib.suppress(Exception):
        return ask()
    return None


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text()
    return None
