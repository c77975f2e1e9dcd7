"""Whether a GPU was slowed down while a block ran, by its driver's cumulative counters (MEASURING.md, rule 9)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from invbench.harness import nvml
from invbench.harness.blocks import Slowdown

# A policy's counter tells of a whole block; what holds at this moment tells of slowdowns that no policy counts.
SPOILING_POLICIES = ("thermal",)
CAPPING_POLICIES = ("power", "board_limit")
POWER_CAP = nvml.REASONS[0x04]


@dataclass(frozen=True, slots=True)
class GpuThrottling:
    """``blocks.Throttling`` of one GPU. uuid: without the prefix ``GPU-``."""

    uuid: str

    def look(self) -> Mapping[str, Any]:
        """The counters of this moment."""
        return nvml.throttling(self.uuid)

    def between(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> Slowdown:
        """What happened from one look to the next; None where the driver tells too little to say."""
        grown = {
            name: None if count is None or after["violations"][name] is None else after["violations"][name] > count
            for name, count in before["violations"].items()
        }
        reasons = None
        if before["throttled_by"] is not None and after["throttled_by"] is not None:
            reasons = {*before["throttled_by"], *after["throttled_by"]}
        return Slowdown(
            spoiled=_any(
                *(grown[name] for name in SPOILING_POLICIES), None if reasons is None else bool(reasons - {POWER_CAP})
            ),
            capped=_any(*(grown[name] for name in CAPPING_POLICIES), None if reasons is None else POWER_CAP in reasons),
        )


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[GpuThrottling | None]:
    """The throttling of a CUDA device, with its driver's library kept open; None for other devices."""
    if device.type != "cuda":
        yield None
        return
    with nvml.kept_open():
        yield GpuThrottling(str(getattr(torch.cuda.get_device_properties(device), "uuid", "not told")))


def _any(*told: bool | None) -> bool | None:
    """Whether one of them is true; None where nothing was told."""
    known = [each for each in told if each is not None]
    return any(known) if known else None
