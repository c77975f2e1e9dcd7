"""What would spoil a measurement here, and what to do about it: rules over what the machine told.

Pure. Each rule looks at one thing and yields findings; what was not told (None, or missing) is nobody's guilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from invbench.diagnosis import TOO_NOISY, Finding, Noise, Observed, State

STEAL = 0.01  # of the processors' time
CPU_PRESSURE = 0.1  # of the time somebody waited for a core
MEMORY_PRESSURE = 0.01
CLOCK_CHANGE = 0.05  # between the lowest and the highest clock seen
GPU_CLOCK = 0.9  # of the highest clock, while it works
LITTLE_MEMORY = 2 * 2**30  # bytes; less does not hold one point with its reference
FEW_ROUNDS = 6  # fewer have no 95 % interval
GPU_MARGIN_C = 5  # degrees below the slowdown's temperature

Environment = Mapping[str, Any]
Findings = Iterator[Finding]

# Milliseconds for which threads may wait awake: a small part of a block.
SPIN_MS = 10


def caution(topic: str, seen: str, remedy: str) -> Finding:
    """A finding that matters for some numbers."""
    return Finding(topic, State.CAUTION, seen, remedy)


def percent(share: float) -> str:
    """``1.8 %``; as many digits as are true."""
    return f"{100 * share:.{0 if share >= 0.1 else 1 if share >= 0.001 else 2}f} %"


# --- The fingerprint, before anything was measured ---


def _governor(environment: Environment) -> Findings:
    governor = environment["cpu"].get("governor")
    if governor not in (None, "performance"):
        yield caution("governor", f"CPU governor is {governor!r}", "set it to 'performance' for steady clocks")


def _load(environment: Environment) -> Findings:
    cpu = environment["cpu"]
    load, usable = cpu.get("load"), cpu.get("usable")
    if load is not None and usable is not None and load > usable:
        remedy = "stop other programs, or trust only the ratios"
        yield caution("load", f"load average {load} on {usable} cores", remedy)


def _quota(environment: Environment) -> Findings:
    cpu = environment["cpu"]
    quota, affinity = cpu.get("quota"), cpu.get("affinity")
    if quota is None:
        return
    if quota != int(quota):
        remedy = "give the container whole cores, so that no thread is stopped in the middle of a block"
        yield caution("quota", f"the container's quota is {quota:g} cores", remedy)
    if affinity and quota < len(affinity):
        remedy = "pin it to as many (docker run --cpuset-cpus), so that threads do not wander"
        yield caution("quota", f"a quota of {quota:g} cores on {len(affinity)} that may be used", remedy)


def _siblings(environment: Environment) -> Findings:
    cpu, threads = environment["cpu"], environment.get("threads", {}).get("torch")
    cores, logical, affinity = cpu.get("cores"), cpu.get("logical"), cpu.get("affinity")
    if not cores or not logical or not threads or cores >= logical or threads <= cores:
        return
    if affinity is None or len(affinity) == logical:  # otherwise somebody has chosen the cores
        seen = f"{threads} threads on {cores} cores, each of which shows up as {logical // cores}"
        yield caution("threads", seen, f"use --threads {cores}: two threads of one core measure each other")


def _spinning(environment: Environment) -> Findings:
    variables = environment.get("threads", {}).get("variables", {})
    policy, blocktime = variables.get("OMP_WAIT_POLICY", ""), variables.get("KMP_BLOCKTIME", "0")
    remedy = "unset it, so that waiting threads soon sleep instead of taking the cores of the next measurement"
    if policy.lower() == "active":
        yield caution("threads", f"OMP_WAIT_POLICY={policy}", remedy)
    if not blocktime.isdigit() or int(blocktime) > SPIN_MS:
        yield caution("threads", f"KMP_BLOCKTIME={blocktime}", remedy)


def _subnormals(environment: Environment) -> Findings:
    if environment.get("torch", {}).get("flush_denormal"):
        remedy = "unset torch.set_flush_denormal; it changes results and hides slow inputs"
        yield caution("subnormals", "the CPU flushes subnormal numbers to zero", remedy)


def _gpu_processes(environment: Environment) -> Findings:
    others = (environment.get("gpu") or {}).get("other_processes")
    if others:
        yield caution("gpu", f"{others} other process(es) on the GPU", "stop them, or measure on another GPU")


def _gpu_arithmetic(environment: Environment) -> Findings:
    if (environment.get("gpu") or {}).get("tf32_matmul"):
        remedy = "set torch.backends.cuda.matmul.allow_tf32 = False to compare like with like"
        yield caution("gpu", "float32 matrix products are rounded to TF32", remedy)


ENVIRONMENT_RULES: tuple[Callable[[Environment], Findings], ...] = (
    _governor, _load, _quota, _siblings, _spinning, _subnormals, _gpu_processes, _gpu_arithmetic,
)  # fmt: skip


def of_environment(environment: Environment) -> list[Finding]:
    """What the fingerprint shows."""
    return [finding for rule in ENVIRONMENT_RULES for finding in rule(environment)]


# --- The time of the measurement ---


def _steal(observed: Observed) -> Findings:
    if observed.steal is not None and observed.steal > STEAL:
        remedy = "a noisy neighbour: use a machine of your own, or measure at a quieter time"
        yield caution("steal", f"other virtual machines took {percent(observed.steal)} of the processors' time", remedy)


def _pressure(observed: Observed) -> Findings:
    if observed.cpu_pressure is not None and observed.cpu_pressure > CPU_PRESSURE:
        seen = f"somebody waited for a core {percent(observed.cpu_pressure)} of the time"
        yield caution("load", seen, "stop other programs, or use fewer --threads")
    if observed.throttled:
        seen = f"the container's quota stopped us {percent(observed.throttled)} of the time"
        yield caution("quota", seen, "raise the quota, or use fewer --threads")


def _memory(observed: Observed) -> Findings:
    if observed.swapped_bytes:
        seen = f"{observed.swapped_bytes / 2**20:.0f} MiB were swapped meanwhile"
        yield caution("memory", seen, "stop other programs, or turn swap off (swapoff -a)")
    if observed.memory_pressure is not None and observed.memory_pressure > MEMORY_PRESSURE:
        seen = f"somebody waited for memory {percent(observed.memory_pressure)} of the time"
        yield caution("memory", seen, "stop other programs, or raise the container's limit")
    if observed.memory_free_bytes is not None and observed.memory_free_bytes < LITTLE_MEMORY:
        seen = f"{observed.memory_free_bytes / 2**30:.1f} GiB of memory are free"
        yield caution("memory", seen, "stop other programs, or raise the container's limit")


def _clocks(observed: Observed) -> Findings:
    if observed.clock_mhz is None:
        return
    low, high = observed.clock_mhz
    if low < (1 - CLOCK_CHANGE) * high:
        remedy = "turn turbo off and fix the frequency (cpupower frequency-set), or trust only the ratios"
        yield caution("clocks", f"CPU clocks between {low:.0f} and {high:.0f} MHz", remedy)


def _variables(observed: Observed) -> Findings:
    if observed.variables.get("TRITON_INTERPRET", "0") not in ("", "0"):
        remedy = "unset it to measure the backend triton; the interpreter is thousands of times slower"
        yield caution("triton", f"TRITON_INTERPRET={observed.variables['TRITON_INTERPRET']}", remedy)
    if observed.gpu is not None and observed.variables.get("CUDA_LAUNCH_BLOCKING", "0") not in ("", "0"):
        yield caution("gpu", "CUDA_LAUNCH_BLOCKING is set", "unset it: every kernel is waited for")


def _gpu(observed: Observed) -> Findings:
    gpu = observed.gpu or {}
    held = {name: seconds for name, seconds in (gpu.get("held_down_s") or {}).items() if seconds}
    thermal = held.pop("thermal", 0)
    reasons = [reason for reason in gpu.get("throttled_by") or () if reason != "power cap"]
    if thermal or reasons:
        seen = f"the GPU was slowed down ({', '.join(reasons) or f'{thermal:.2g} s for its temperature'})"
        yield Finding("gpu", State.UNFIT, seen, "cool it, wait, or cap its power (nvidia-smi -pl), and run this again")
    if held.pop("power", 0) or "power cap" in (gpu.get("throttled_by") or ()):
        remedy = "trust ratios of subjects that were measured together, or lock lower clocks (nvidia-smi -lgc)"
        yield caution("gpu", "the power cap held the GPU's clocks down", remedy)
    for name, seconds in held.items():
        yield caution("gpu", f"{name.replace('_', ' ')} held the GPU's clocks down for {seconds:.2g} s",
                      "look at nvidia-smi -q -d PERFORMANCE")  # fmt: skip


def _gpu_settings(observed: Observed) -> Findings:
    gpu = observed.gpu or {}
    clocks, most = gpu.get("clock_mhz"), gpu.get("clock_most_mhz")
    if clocks and most and clocks[1] < GPU_CLOCK * most:
        seen = f"the GPU reached {clocks[1]:.0f} of {most:.0f} MHz"
        yield caution("gpu", seen, "raise or unlock its clocks (nvidia-smi -rgc), or expect lower peaks")
    temperature, slowdown = gpu.get("temperature_c"), gpu.get("slowdown_temperature_c")
    if temperature is not None and slowdown is not None and temperature > slowdown - GPU_MARGIN_C:
        seen = f"the GPU is at {temperature} C and slows down at {slowdown} C"
        yield caution("gpu", seen, "cool it, or cap its power (nvidia-smi -pl)")
    if gpu.get("persistence") is False:
        remedy = "turn it on (nvidia-smi -pm 1), so that first calls do not wait for the driver"
        yield caution("gpu", "persistence mode is off", remedy)
    if gpu.get("mig"):
        remedy = "expect the peaks of the slice, and other work on the rest of the GPU"
        yield caution("gpu", "this GPU is divided (MIG)", remedy)
    limit, usual = gpu.get("power_limit_w"), gpu.get("power_limit_default_w")
    if limit and usual and limit < usual:
        seen = f"the GPU may take {limit:.0f} W of its usual {usual:.0f} W"
        yield caution("gpu", seen, f"raise it (nvidia-smi -pl {usual:.0f}), or say so beside the numbers")


OBSERVED_RULES: tuple[Callable[[Observed], Findings], ...] = (
    _steal, _pressure, _memory, _clocks, _variables, _gpu, _gpu_settings,
)  # fmt: skip


def of_observed(observed: Observed) -> list[Finding]:
    """What happened while the machine was measured."""
    return [finding for rule in OBSERVED_RULES for finding in rule(observed)]


def of_noise(noise: Noise) -> list[Finding]:
    """What can be seen here: the one finding that is always there."""
    effect = noise.smallest_effect
    if effect is None:
        why = "; ".join(noise.problems) or "no reason was told"
        return [Finding("noise", State.UNFIT, f"the noise could not be measured ({why})", "see invbench backends")]
    if effect > TOO_NOISY:
        seen = f"differences under {percent(effect)} cannot be seen here"
        remedy = f"stop other programs, see below, or raise --budget; up to {100 * TOO_NOISY:g} % is fit to measure"
        found = [Finding("noise", State.UNFIT, seen, remedy)]
    else:
        found = [Finding("noise", State.FIT, f"differences of {percent(effect)} and more can be seen here")]
    rounds = min(launch.ratio.count for subject in noise.subjects for launch in subject.launches)
    if rounds < FEW_ROUNDS:
        found.append(caution("noise", f"only {rounds} round(s), whose range is no 95 % interval", "raise --budget"))
    apart = max((subject.launch_spread or 0.0 for subject in noise.subjects), default=0.0)
    if apart > TOO_NOISY:
        seen = f"processes of identical code read up to {percent(apart)} apart"
        found.append(caution("noise", seen, "trust intervals over several processes: invbench sweep --launches 6"))
    remedy = "the noise is that of what remained; see invbench backends"
    return found + [caution("noise", problem, remedy) for problem in noise.problems]
