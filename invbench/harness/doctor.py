"""The machine examined: clock floors, peaks by dtype, A/A noise, and what else went on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from invbench.diagnosis import Diagnosis, Peak
from invbench.diagnosis.advice import of_environment, of_noise, of_observed
from invbench.harness import machine, vitals
from invbench.harness.floors import measure_floors
from invbench.harness.noise import POINT, measure_noise
from invbench.harness.settings import describe_failure
from invbench.spec import DTYPES, Case

Tell = Callable[[str], None]


def diagnose(device_name: str | None, threads: int | None, budget: float, tell: Tell = lambda _: None) -> Diagnosis:
    """Examine the machine.

    device_name, threads: None for the defaults of the measuring commands. budget: seconds of measuring noise.
    Raises InvbenchError for a device that is not there or more threads than cores.
    """
    case = machine.complete(POINT, device_name, threads)
    device = machine.check_device(case.device)
    machine.check_threads(case.threads)
    machine.settle(case.threads)
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


def _peak(case: Case, device: torch.device, tell: Tell) -> Peak:
    tell(f"measuring peaks in {case.dtype}")
    try:
        peaks = machine.measure_peaks(case.dtype, device)
    except Exception as error:  # noqa: BLE001 -- told as this dtype's reason: a device may lack it
        return Peak(case.dtype, reason=describe_failure(error))
    return Peak(case.dtype, peaks["matmul_flop_per_s"], peaks["copy_bytes_per_s"])
