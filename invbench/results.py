"""What was measured, and the versioned JSON document it is stored in (schema 1). Seconds, bytes and FLOP inside."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Any

from invbench.spec import Case, InvbenchError

SCHEMA = 1
CONFIDENCE = 0.95


class Status(StrEnum):
    """How a row ended; anything but ``ok`` has a reason and no latency."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    MISMATCH = "mismatch"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"


class Unit(StrEnum):
    """What a stored number counts."""

    SECONDS = "s"
    BYTES = "B"


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and an order-statistic interval for it, from ``count`` independent values."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
        """The median of values with its exact binomial interval; fewer than 6 values give their whole range.

        The interval [v(k), v(n+1-k)] of sorted values holds the median with probability 1 - 2 P(B(n, 1/2) < k);
        k is the largest for which that is at least ``confidence`` (David and Nagaraja, Order Statistics, 7.1).
        """
        ordered = sorted(values)
        n = len(ordered)
        limit = Fraction((1 - confidence) / 2) * 2**n  # in outcomes of 2**n, which floats cannot count
        k, tail = 1, 1
        while tail + math.comb(n, k) <= limit:
            tail += math.comb(n, k)
            k += 1
        return cls(statistics.median(ordered), ordered[k - 1], ordered[n - k], n)

    @property
    def half_width(self) -> float:
        """Half the interval's width as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else math.inf


@dataclass(frozen=True)
class Samples:
    """Raw timings in blocks; each block is summarised by its median, and no sample is ever dropped.

    blocks: one tuple of seconds per call for each round. calls: how many calls one sample averages over.
    clock: eager or device. cache: hot or cold. stop: precision, noise, budget or interrupted.
    """

    blocks: tuple[tuple[float, ...], ...]
    calls: int = 1
    clock: str = "eager"
    cache: str = "hot"
    stop: str = "budget"

    def __post_init__(self) -> None:
        if not self.blocks or not all(self.blocks):
            raise InvbenchError("a latency needs at least one block of at least one sample: got none; measure again")
        if not all(isinstance(value, int | float) for block in self.blocks for value in block):
            raise InvbenchError(f"samples are numbers of seconds: got {self.blocks[0]!r}; measure again")

    @cached_property
    def block_medians(self) -> tuple[float, ...]:
        """One value a round."""
        return tuple(statistics.median(block) for block in self.blocks)

    @cached_property
    def interval(self) -> Interval:
        """The latency: the median over blocks and its interval, in seconds."""
        return Interval.of(self.block_medians)

    @property
    def mad(self) -> float:
        """Median absolute deviation of the blocks, in seconds."""
        return statistics.median(abs(value - self.interval.median) for value in self.block_medians)

    def to_dict(self) -> dict[str, Any]:
        """The ``latency`` object of the document."""
        return {
            "unit": str(Unit.SECONDS),
            "median": self.interval.median,
            "mad": self.mad,
            "low": self.interval.low,
            "high": self.interval.high,
            "blocks": [list(block) for block in self.blocks],
            "samples": sum(map(len, self.blocks)),
            "calls": self.calls,
            "clock": self.clock,
            "cache": self.cache,
            "stop": self.stop,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Samples:
        """The inverse of ``to_dict``; the summary is computed again from the raw samples."""
        blocks = tuple(tuple(block) for block in stored["blocks"])
        return cls(blocks, stored.get("calls", 1), stored["clock"], stored["cache"], stored["stop"])


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes above inputs and parameters, the output included; None where the method cannot tell."""

    peak: int | None
    method: str | None


@dataclass(frozen=True, slots=True)
class Ratio:
    """Subject over baseline: under 1 means faster or smaller. None where a side is missing or zero."""

    latency: Interval | None = None
    memory: float | None = None
    params: float | None = None
    flop: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The ``ratio`` object of the document."""
        latency = self.latency
        return {
            "latency": latency
            and {"median": latency.median, "low": latency.low, "high": latency.high, "pairs": latency.count},
            "memory": self.memory,
            "params": self.params,
            "flop": self.flop,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Ratio:
        """The inverse of ``to_dict``."""
        latency = stored["latency"]
        interval = latency and Interval(latency["median"], latency["low"], latency["high"], latency["pairs"])
        return cls(interval, stored["memory"], stored["params"], stored["flop"])


@dataclass(frozen=True)
class Result:
    """One row: a subject computed by a backend at a point, or the reason why it was not.

    first_call: seconds of the first call, compilation included. params, macs (forward), flop (of the timed mode)
    and bytes_min are closed forms. error: largest relative difference from the float64 reference, and what it may be.
    roofline_fraction: the least time that the machine's peaks allow, over the latency.
    """

    subject: str
    backend: str
    case: Case
    status: Status = Status.OK
    reason: str | None = None
    latency: Samples | None = None
    first_call: float | None = None
    memory: Memory | None = None
    params: int | None = None
    macs: int | None = None
    flop: int | None = None
    bytes_min: int | None = None
    roofline_fraction: float | None = None
    error: Mapping[str, float | None] | None = None
    ratio: Ratio | None = None
    chosen_layout: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """The median latency."""
        return self.latency.interval.median if self.latency else None

    @property
    def flop_per_s(self) -> float | None:
        """Closed-form FLOP over the median latency."""
        return self.flop / self.seconds if self.flop is not None and self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """Closed-form least bytes over the median latency."""
        return self.bytes_min / self.seconds if self.bytes_min is not None and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """One element of the document's ``results``."""
        row: dict[str, Any] = {
            "subject": self.subject,
            "backend": self.backend,
            "status": str(self.status),
            "reason": self.reason,
            "case": self.case.to_dict(),
            "latency": self.latency and self.latency.to_dict(),
            "first_call": None if self.first_call is None else {"unit": str(Unit.SECONDS), "value": self.first_call},
            "memory": self.memory and {"unit": str(Unit.BYTES), **asdict(self.memory)},
            **{name: getattr(self, name) for name in ("params", "macs", "flop", "bytes_min")},
            **{name: getattr(self, name) for name in ("flop_per_s", "bytes_per_s", "roofline_fraction")},
            "error": self.error and dict(self.error),
            "ratio": self.ratio and self.ratio.to_dict(),
            "warnings": list(self.warnings),
        }
        if self.chosen_layout is not None:
            row["chosen_layout"] = self.chosen_layout
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """The inverse of ``to_dict``."""
        memory, first_call = row["memory"], row["first_call"]
        return cls(
            case=Case.from_dict(row["case"]),
            status=Status(row["status"]),
            latency=row["latency"] and Samples.from_dict(row["latency"]),
            first_call=first_call and first_call["value"],
            memory=memory and Memory(memory["peak"], memory["method"]),
            ratio=row["ratio"] and Ratio.from_dict(row["ratio"]),
            chosen_layout=row.get("chosen_layout"),
            warnings=tuple(row["warnings"]),
            **{
                name: row[name]
                for name in (
                    "subject", "backend", "reason", "params", "macs", "flop", "bytes_min", "roofline_fraction", "error",
                )
            },
        )  # fmt: skip


@dataclass(frozen=True)
class ResultSet:
    """A result document: rows, and everything needed to read or repeat them.

    environment: the machine's fingerprint. settings: how it was measured. peaks: ``matmul_flop_per_s`` and
    ``copy_bytes_per_s`` of the same run. interrupted: the run was stopped, and holds what was measured until then.
    """

    results: tuple[Result, ...]
    command: str
    created: str
    tool_version: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    peaks: Mapping[str, float] | None = None
    baseline: str | None = None
    interrupted: bool = False

    def to_json(self) -> str:
        """The document, with one line a row's field so that diffs stay readable."""
        document = {
            "schema": SCHEMA,
            "tool": {"name": "invbench", "version": self.tool_version},
            "command": self.command,
            "created": self.created,
            "environment": dict(self.environment),
            "settings": dict(self.settings),
            "peaks": self.peaks and dict(self.peaks),
            "baseline": self.baseline,
            "interrupted": self.interrupted,
            "results": [result.to_dict() for result in self.results],
        }
        return json.dumps(document, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ResultSet:
        """Read a document; raises InvbenchError if it is not one that this version understands."""
        try:
            document = json.loads(text)
            schema = document["schema"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InvbenchError(
                f"not a result document: got {text[:40]!r}; expected JSON written by invbench --format json"
            ) from error
        if schema != SCHEMA:
            raise InvbenchError(
                f"result schema must be {SCHEMA}: got {schema!r}; read it with the version that wrote it"
            )
        try:
            if not all(isinstance(document[name], dict) for name in ("environment", "settings")):
                raise TypeError("environment and settings must be objects")
            return cls(
                results=tuple(Result.from_dict(row) for row in document["results"]),
                tool_version=document["tool"]["version"],
                interrupted=document.get("interrupted", False),
                **{
                    name: document[name]
                    for name in ("command", "created", "environment", "settings", "peaks", "baseline")
                },
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvbenchError(
                f"incomplete result document ({type(error).__name__}: {error}); expected every field of schema {SCHEMA}"
            ) from error


def find(results: Iterable[Result], subject: str) -> Result | None:
    """The first row of a subject, if there is one."""
    return next((result for result in results if result.subject == subject), None)
