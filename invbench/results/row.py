"""One row of a result document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from invbench.results.quantities import (
    Breakdown,
    Interval,
    Memory,
    Ratio,
    Samples,
    Training,
    Unit,
    interval_from_dict,
    interval_to_dict,
    quotient,
)
from invbench.spec import AnyCase, Case, Regime, TrainingCase, case_from_dict

# Fields that are stored as they are, and those that are left out of the document where they say nothing.
PLAIN = ("subject", "backend", "reason", "params", "macs", "flop", "bytes_min", "roofline_fraction", "error")
OPTIONAL = ("chosen_layout", "baseline", "peaks", "machine", "device", "node", "run")
NETWORK_FIELDS = ("params_trainable", "macs_mmcv", "activations", "published", "pair")


class Status(StrEnum):
    """How a row ended; anything but ``ok`` has a reason and no latency."""

    OK = "ok"
    UNAVAILABLE = "unavailable"
    MISMATCH = "mismatch"
    OOM = "oom"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Result:
    """One row: a subject computed by a backend at a point, or the reason why it was not.

    first_call: seconds of the first call, compilation included. params, macs (forward), flop (of the timed mode)
    and bytes_min are closed forms. error: largest relative difference from the float64 reference, and what it may be.
    roofline_fraction: the least time that the machine's peaks allow, over the latency.

    Documents of several points say in each row what a document of one point says once: baseline, what the ratio is to;
    peaks, of the run that measured the row; machine, a key of ``ResultSet.machines``; device, where several
    share the points; node, of a cluster, by name and ID; run, which document it is from, where several measured the
    same case on the same machine.

    Rows of networks count one image, and have besides: regime, how the network was run; params_trainable; macs_mmcv,
    as mmcv counts; activations, the numbers that its convolutions, involutions, attention and linear layers put out;
    published, what others say of it, with their source; ceiling, the time of the same network with its involutions for
    free over this one's; breakdown, where the time of a call goes.

    Rows of networks that were trained have besides: training, what came of it; pair, what the two sides of the
    comparison have in common: "report" (nothing), "params" or "macs"; of the side that is in several, joined by commas.
    Their latency is that of a training step, optimiser included, in blocks of an epoch.
    """

    subject: str
    backend: str
    case: AnyCase
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
    baseline: str | None = None
    peaks: Mapping[str, float] | None = None
    machine: str | None = None
    device: str | None = None
    node: str | None = None
    run: str | None = None
    regime: Regime | None = None
    params_trainable: int | None = None
    macs_mmcv: int | None = None
    activations: int | None = None
    published: Mapping[str, Any] | None = None
    ceiling: Interval | None = None
    breakdown: Breakdown | None = None
    training: Training | None = None
    pair: str | None = None

    @property
    def seconds(self) -> float | None:
        """The median latency."""
        return self.latency.interval.median if self.latency else None

    @property
    def name(self) -> tuple[str, ...]:
        """What tells the rows of a point apart."""
        return self.subject, self.backend, str(self.regime or "")

    @property
    def flop_per_s(self) -> float | None:
        """Closed-form FLOP of the whole batch over the median latency."""
        if self.flop is None or not self.seconds:
            return None
        return self.flop * (1 if isinstance(self.case, Case) else self.case.N) / self.seconds

    @property
    def images_per_s(self) -> float | None:
        """Images of the batch over the median latency."""
        return self.case.N / self.seconds if self.seconds else None

    @property
    def bytes_per_s(self) -> float | None:
        """Closed-form least bytes over the median latency."""
        return self.bytes_min / self.seconds if self.bytes_min is not None and self.seconds else None

    def over(self, base: Result) -> Ratio:
        """Subject over baseline; None where a side is missing."""
        one, other = (row.memory.peak if row.memory else None for row in (self, base))
        return Ratio(
            latency=self.latency.over(base.latency) if self.latency and base.latency else None,
            memory=quotient(one, other), params=quotient(self.params, base.params), flop=quotient(self.flop, base.flop),
        )  # fmt: skip

    def share_of_roofline(self, peaks: Mapping[str, float]) -> float | None:
        """The least time that the peaks allow for the closed-form FLOP and bytes, over the median latency."""
        if not self.seconds or self.flop is None or self.bytes_min is None:
            return None
        floor = max(self.flop / peaks["matmul_flop_per_s"], self.bytes_min / peaks["copy_bytes_per_s"])
        return floor / self.seconds

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
        optional = {name: getattr(self, name) for name in OPTIONAL}
        return {**row, **{n: value for n, value in optional.items() if value is not None}, **self._network_fields()}

    def _network_fields(self) -> dict[str, Any]:
        if isinstance(self.case, Case):
            return {}
        whole = {
            **{name: getattr(self, name) for name in ("params_trainable", "macs_mmcv", "activations", "images_per_s")},
            "published": self.published and dict(self.published),
        }
        if isinstance(self.case, TrainingCase):
            step = self.latency and {"unit": str(Unit.SECONDS), **interval_to_dict(self.latency.interval)}
            told = self.training.to_dict() if self.training else {"accuracy": None, "train_time": None}
            return {"pair": self.pair, **whole, **told, "step_time": step}
        return {
            "regime": self.regime and str(self.regime),
            **whole,
            "ceiling": self.ceiling and interval_to_dict(self.ceiling),
            "breakdown": self.breakdown and self.breakdown.to_dict(),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Result:
        """The inverse of ``to_dict``."""
        stored: dict[str, Any] = {name: row[name] for name in PLAIN}
        optional = {name: row.get(name) for name in (*OPTIONAL, *NETWORK_FIELDS)}
        memory, first_call = row["memory"], row["first_call"]
        return cls(
            case=case_from_dict(row["case"]),
            status=Status(row["status"]),
            latency=row["latency"] and Samples.from_dict(row["latency"]),
            first_call=first_call and first_call["value"],
            memory=memory and Memory(memory["peak"], memory["method"], memory.get("kept")),
            ratio=row["ratio"] and Ratio.from_dict(row["ratio"]),
            warnings=tuple(row["warnings"]),
            regime=Regime(row["regime"]) if row.get("regime") else None,
            ceiling=interval_from_dict(row["ceiling"]) if row.get("ceiling") else None,
            breakdown=Breakdown.from_dict(row["breakdown"]) if row.get("breakdown") else None,
            training=Training.from_dict(row) if row.get("accuracy") else None,
            **{**stored, **optional},
        )
