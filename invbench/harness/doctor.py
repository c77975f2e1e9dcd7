"""The machine examined: clock floors, peaks by dtype, A/A noise, and what else went on meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from invbench.diagnosis import Diagnosis, Floor, Peak
from invbench.diagnosis.advice import of_environment, of_noise, of_observed
from invbench.harness import machine, vitals
from invbench.harness.clock import ColdClock, HostClock, clock_for
from invbench.harness.noise import POINT, measure_noise
from invbench.harness.settings import describe_failure
from invbench.spec import DTYPES, Case

FLOOR_SAMPLES = {"hot": 1001, "cold": 15}  # a cold one writes 256 MiB before

Tell = Callable[[str], None]


def diagnose(device_name: str | None, threads: int | None, budget: float, tell: Tell = lambda _: None) -> Diagnosis:
    """Examine the machine.

    device_name, threads: None for the defaults of the measuring commands. budget: seconds of measuring noise.
    Raises InvbenchError for a device that is not there or more threads than cores.
    """
    case = machine.complete(POINT, device_name, threads)
    device = machine.check_device(case.device)
    machine.check_threads(case.threads)
    machine.set_threads(case.threads)
    load = machine.load()  # before our own work counts
    watch = vitals.Watch(device)
    tell("measuring the floors of the clocks")
    floors = measure_floors(device)
    peaks = tuple(_peak(replace(case, dtype=dtype), device, tell) for dtype in DTYPES)
    watch.look()
    noise = measure_noise(device, case.threads, budget, tell, watch.look)
    observed = watch.finish(case.threads)
    environment = machine.fingerprint(device)
    environment["cpu"]["load"] = load
    findings = (*of_noise(noise), *of_observed(observed), *of_environment(environment))
    return Diagnosis(str(device), case.threads, environment, floors, peaks, noise, observed, findings)


def measure_floors(device: torch.device) -> tuple[Floor, ...]:
    """What each clock of the device reads for nothing, hot and cold, and for one element."""
    eager = {"cuda": "cuda events"}.get(device.type, "host")
    found = [_floor(eager, cache, "nothing", device) for cache in FLOOR_SAMPLES]
    found.append(_floor(eager, "hot", "one element", device))
    if eager != "host":
        found.append(_floor("host", "hot", "nothing", device))
    return tuple(found)


def _floor(timer: str, cache: str, call: str, device: torch.device) -> Floor:
    try:
        clock = clock_for(device)
        if timer == "host" and device.type == "cuda":
            clock = HostClock(lambda: torch.cuda.synchronize(device))
        clock = ColdClock(clock, device) if cache == "cold" else clock
        timed = _one_element(device) if call == "one element" else _nothing
        values = [clock.sample(lambda: None, timed, 1) for _ in range(FLOOR_SAMPLES[cache])]
    except Exception as error:  # noqa: BLE001 -- told as this floor's reason; the others are measured
        return Floor(timer, cache, call, None, describe_failure(error))
    return Floor(timer, cache, call, statistics.median(values))


def _nothing(_state: Any) -> None:
    """What a clock should read 0 for."""


def _one_element(device: torch.device) -> Callable[[Any], object]:
    """The least that an operator costs: its dispatch and, on a GPU, its launch."""
    element = torch.zeros(1, device=device)
    return lambda _state: element.add_(1)


def _peak(case: Case, device: torch.device, tell: Tell) -> Peak:
    tell(f"measuring peaks in {case.dtype}")
    try:
        peaks = machine.measure_peaks(case.dtype, device)
    except Exception as error:  # noqa: BLE001 -- told as this dtype's reason: a device may lack it
        return Peak(case.dtype, reason=describe_failure(error))
    return Peak(case.dtype, peaks["matmul_flop_per_s"], peaks["copy_bytes_per_s"])
