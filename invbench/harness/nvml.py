"""What NVIDIA's driver tells about a GPU; null where it does not tell, and nothing ever raises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar

_T = TypeVar("_T")  # the syntax of 3.12 is not for 3.11

# NVML_PERF_POLICY_*: why the driver held the clocks down, with how long it did so since it was loaded.
POLICIES = {"power": 0, "thermal": 1, "board_limit": 3, "reliability": 5}
# NVML's reasons for clocks below their maximum, by bit. Idle and clocks set by the user are no fault of the machine.
REASONS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by software",
    0x40: "thermal slowdown by hardware",
    0x80: "power brake",
}


def identity(uuid: object) -> dict[str, Any]:
    """What belongs into a fingerprint.

    uuid: the GPU's, without the prefix ``GPU-``. ``clock_mhz``, ``power_limit_w``: of this moment, MHz and watts.
    ``other_processes``: how many besides this one compute on it.
    """
    with _driver(uuid) as (nvml, handle):
        return {
            "driver": _told(lambda: str(nvml.nvmlSystemGetDriverVersion())),
            "other_processes": _told(
                lambda: sum(p.pid != os.getpid() for p in nvml.nvmlDeviceGetComputeRunningProcesses(handle))
            ),
            "clock_mhz": _told(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            "power_limit_w": _told(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        }


def settings(uuid: object) -> dict[str, Any]:
    """What an administrator has set: MHz, watts, degrees Celsius, and whether ECC, MIG and persistence are on."""
    with _driver(uuid) as (nvml, handle):
        return {
            "clock_most_mhz": _told(lambda: int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))),
            "power_limit_default_w": _told(lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1000),
            "slowdown_temperature_c": _told(
                lambda: int(nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN))
            ),
            "persistence": _told(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
            "ecc": _told(lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
            "mig": _told(lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
        }


def counters(uuid: object) -> dict[str, Any]:
    """What changes while a GPU works.

    ``clock_mhz``, ``temperature_c``, ``power_w``: of this moment. ``throttled_by``: the names in REASONS that hold now.
    ``violations``: by policy, the nanoseconds since the driver was loaded in which it held the clocks down.
    """
    with _driver(uuid) as (nvml, handle):
        return {
            "clock_mhz": _told(lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            "temperature_c": _told(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            "power_w": _told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            **_throttling(nvml, handle),
        }


def throttling(uuid: object) -> dict[str, Any]:
    """The part of ``counters`` that tells whether clocks are held down; cheap enough for every block."""
    with _driver(uuid) as (nvml, handle):
        return _throttling(nvml, handle)


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """The driver's library stays open, so that asking it takes microseconds: opening it takes milliseconds."""
    with _driver("of any GPU"):
        yield


def _throttling(nvml: Any, handle: Any) -> dict[str, Any]:
    return {
        "throttled_by": _told(lambda: _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))),
        "violations": {name: _violation(nvml, handle, policy) for name, policy in POLICIES.items()},
    }


def _reasons(bits: int) -> list[str]:
    return [name for bit, name in REASONS.items() if bits & bit]


def _violation(nvml: Any, handle: Any, policy: int) -> int | None:
    return _told(lambda: int(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime))


def _told(ask: Callable[[], _T]) -> _T | None:
    """The driver's answer; None for whatever this driver, this GPU or this library does not know."""
    with contextlib.suppress(Exception):
        return ask()
    return None


@contextlib.contextmanager
def _driver(uuid: object) -> Iterator[tuple[Any, Any]]:
    """The library and the GPU's handle, or two objects that answer nothing."""
    nvml: ModuleType | None = None
    handle = None
    with contextlib.suppress(Exception):
        import pynvml  # noqa: TID251 -- this is the harness

        pynvml.nvmlInit()
        nvml = pynvml
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    try:
        yield nvml, handle
    finally:
        if nvml is not None:
            with contextlib.suppress(Exception):
                nvml.nvmlShutdown()
