"""What ``invbench doctor`` found: clock floors, peaks, noise, what happened meanwhile, and what to do about it.

Plain data and its arithmetic: the standard library only. Seconds, bytes and FLOP inside; None is "not told", never 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from invbench.results.quantities import Interval

TRUSTED_FLOORS = 20  # a point shorter than this many floors of its clock is mostly the clock (MEASURING.md, rule 8)
TOO_NOISY = 0.05  # where smaller effects cannot be seen, ratios of everyday kernels cannot be told apart


class State(StrEnum):
    """How much a finding matters: not at all, for some numbers, or for all of them."""

    FIT = "fit"
    CAUTION = "caution"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the machine: its topic, what was seen and, unless the state is FIT, what to do about it."""

    topic: str
    state: State
    seen: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """Both in one line."""
        return f"{self.seen}: {self.remedy}" if self.remedy else self.seen


@dataclass(frozen=True, slots=True)
class Floor:
    """What a clock reads for next to nothing.

    timer: whose time it is (host, cuda events). cache: hot or cold. call: what was timed (nothing, one element).
    seconds: the median, or None with the reason.
    """

    timer: str
    cache: str
    call: str
    seconds: float | None
    reason: str | None = None

    @property
    def shortest(self) -> float | None:
        """The shortest sample that this clock can be trusted with, in seconds."""
        return None if self.seconds is None else TRUSTED_FLOORS * self.seconds


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was reached in a dtype: FLOP/s of a matrix product, bytes/s read plus written; None, and why."""

    dtype: str
    matmul_flop_per_s: float | None = None
    copy_bytes_per_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """One process's rounds of a subject and of the same subject again, interleaved: seconds per call, by round."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> Interval:
        """The paired ratio of the two, which would be 1 on a quiet machine."""
        return Interval.of([b / a for a, b in zip(self.first, self.second, strict=True)])

    @property
    def reach(self) -> float:
        """How far from 1 the interval goes: its half-width and its bias together."""
        return max(abs(self.ratio.low - 1), abs(self.ratio.high - 1))

    @property
    def median(self) -> float:
        """Seconds per call."""
        return statistics.median(self.first)

    @property
    def deviations(self) -> list[float]:
        """How far each block lies from the median, as a share of it."""
        return [abs(value / self.median - 1) for value in self.first]

    @property
    def drift(self) -> float:
        """The last third of the rounds over the first third, less 1."""
        third = max(1, len(self.first) // 3)
        return statistics.median(self.first[-third:]) / statistics.median(self.first[:third]) - 1


@dataclass(frozen=True, slots=True)
class SubjectNoise:
    """One subject against itself, in at least one launch; ``label`` says which, by which backend."""

    label: str
    launches: tuple[Launch, ...]

    @property
    def smallest_effect(self) -> float:
        """The smallest difference that could be seen here, as a share: a measurement is any one of the launches."""
        return max(launch.reach for launch in self.launches)

    @property
    def worst(self) -> Launch:
        """The launch whose interval goes farthest from 1."""
        return max(self.launches, key=lambda launch: launch.reach)

    @property
    def block_mad(self) -> float:
        """The median deviation of one block from its launch's median, as a share: what no pairing would leave."""
        return statistics.median(value for launch in self.launches for value in launch.deviations)

    @property
    def block_worst(self) -> float:
        """The largest such deviation."""
        return max(value for launch in self.launches for value in launch.deviations)

    @property
    def drift(self) -> float:
        """The largest change from the beginning to the end of a launch, as a share."""
        return max((launch.drift for launch in self.launches), key=abs)

    @property
    def launch_spread(self) -> float | None:
        """How far apart launches of identical code read, as a share; None where there was one."""
        medians = [launch.median for launch in self.launches]
        return max(medians) / min(medians) - 1 if len(medians) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """The subject's object of the document, raw values included."""
        launches = [
            {"unit": "s", "first": list(each.first), "second": list(each.second), "ratio": asdict(each.ratio)}
            for each in self.launches
        ]
        return {
            "subject": self.label, "latency": statistics.median(launch.median for launch in self.launches),
            "smallest_effect": self.smallest_effect, "block_mad": self.block_mad, "block_worst": self.block_worst,
            "drift": self.drift, "launch_spread": self.launch_spread, "launches": launches,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Noise:
    """The A/A noise of the machine; ``problems``: launches or subjects that failed, and why."""

    point: str
    subjects: tuple[SubjectNoise, ...]
    problems: tuple[str, ...] = ()

    @property
    def smallest_effect(self) -> float | None:
        """The smallest difference that can be seen with every subject, as a share; None if none was measured."""
        return max((subject.smallest_effect for subject in self.subjects), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The ``noise`` object of the document."""
        return {
            "point": self.point, "smallest_effect": self.smallest_effect, "limit": TOO_NOISY,
            "subjects": [subject.to_dict() for subject in self.subjects], "problems": list(self.problems),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Observed:
    """What the system told about the time of the measurement, as shares of it unless the name has a unit.

    steal: of the processors' time, what other virtual machines took. cpu_pressure, memory_pressure: how long
    somebody waited for a core or for memory. throttled: how long a container's quota stopped us, summed over cores.
    swapped_bytes: moved in or out. clock_mhz: the lowest and the highest seen. gpu: the same of the GPU, its
    settings, and by policy the seconds in which the driver held its clocks down; None where there is none.
    """

    seconds: float
    steal: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    throttled: float | None = None
    swapped_bytes: int | None = None
    swap_used_bytes: int | None = None
    memory_limit_bytes: int | None = None
    memory_free_bytes: int | None = None
    clock_mhz: tuple[float, float] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    gpu: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole answer; ``created`` in ISO 8601."""

    device: str
    threads: int
    environment: Mapping[str, Any]
    floors: tuple[Floor, ...]
    peaks: tuple[Peak, ...]
    noise: Noise
    observed: Observed
    findings: tuple[Finding, ...]
    tool_version: str = ""
    command: str = ""
    created: str = ""

    @property
    def is_fit(self) -> bool:
        """Whether measurements here mean something."""
        return all(finding.state is not State.UNFIT for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 fit to measure, 3 too noisy, 4 the noise could not be measured (CLI.md)."""
        if self.noise.smallest_effect is None:
            return 4
        return 0 if self.is_fit else 3

    def to_dict(self) -> dict[str, Any]:
        """The document, in the style of schema 1."""
        return {
            "schema": 1,
            "tool": {"name": "invbench", "version": self.tool_version},
            "command": self.command,
            "created": self.created,
            "device": self.device,
            "threads": self.threads,
            "environment": dict(self.environment),
            "floors": [{**asdict(floor), "shortest": floor.shortest} for floor in self.floors],
            "peaks": [asdict(peak) for peak in self.peaks],
            "noise": self.noise.to_dict(),
            "observed": asdict(self.observed),
            "findings": [asdict(finding) for finding in self.findings],
            "fit": self.is_fit,
        }
