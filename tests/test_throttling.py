"""What a driver's counters say of a block: spoiled, capped, neither, or not told."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_doctor import Driver

from invbench.harness import nvml, throttling
from invbench.harness.blocks import Slowdown
from invbench.harness.throttling import GpuThrottling

GPU = GpuThrottling("1234")


def look(reasons: list[str] | None = None, **violations: int | None) -> dict[str, Any]:
    """A look at a driver that tells all counters but the reasons of the moment, unless they are given."""
    return {"throttled_by": reasons, "violations": dict.fromkeys(nvml.POLICIES, 7) | violations}


def untold() -> dict[str, Any]:
    return {"throttled_by": None, "violations": dict.fromkeys(nvml.POLICIES)}


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        (look(), look(), Slowdown(spoiled=False, capped=False)),
        (look(), look(thermal=8), Slowdown(spoiled=True, capped=False)),
        (look(), look(power=8), Slowdown(spoiled=False, capped=True)),
        (look(), look(board_limit=8), Slowdown(spoiled=False, capped=True)),
        # Many GPUs always run at the voltage's limit: that is their highest clock.
        (look(), look(reliability=8), Slowdown(spoiled=False, capped=False)),
        (look([]), look(["power cap"]), Slowdown(spoiled=False, capped=True)),
        (look(["hardware slowdown"]), look([]), Slowdown(spoiled=True, capped=False)),
        (look([]), look(["thermal slowdown by software"]), Slowdown(spoiled=True, capped=False)),
        (look([]), look(["power brake", "power cap"]), Slowdown(spoiled=True, capped=True)),
        (look(thermal=None), look(power=8), Slowdown(spoiled=None, capped=True)),
        (look(thermal=None), look(thermal=3), Slowdown(spoiled=None, capped=False)),
        (untold(), untold(), Slowdown(spoiled=None, capped=None)),
        (untold(), look(thermal=9), Slowdown(spoiled=None, capped=None)),
        (look(thermal=9), look(thermal=1), Slowdown(spoiled=False, capped=False)),  # set back: nobody knows, none grown
    ],
)
def test_what_happened_between_two_looks(before: dict[str, Any], after: dict[str, Any], found: Slowdown) -> None:
    assert GPU.between(before, after) == found


def test_every_reason_but_the_power_cap_spoils() -> None:
    for reason in nvml.REASONS.values():
        assert GPU.between(look([]), look([reason])).spoiled == (reason != "power cap")


def test_other_devices_have_none() -> None:
    with throttling.watched(torch.device("cpu")) as watched:
        assert watched is None


def test_the_driver_is_opened_once_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    driver = Driver(
        Init=lambda: opened.append(1), Shutdown=lambda: opened.pop(),
        DeviceGetCurrentClocksThrottleReasons=0x04,
        DeviceGetViolationStatus=lambda handle, policy: SimpleNamespace(violationTime=5),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    with throttling.watched(torch.device("cuda")) as watched:
        assert watched is not None
        seen = watched.look()
        assert seen == {"throttled_by": ["power cap"], "violations": dict.fromkeys(nvml.POLICIES, 5)}
        assert len(opened) == 1
        assert watched.between(seen, watched.look()) == Slowdown(spoiled=False, capped=True)
    assert opened == []


def test_a_machine_without_a_driver_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(Init=lambda: 1 / 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    with throttling.watched(torch.device("cuda")) as watched:
        assert watched is not None
        assert watched.between(watched.look(), watched.look()) == Slowdown(None, None)


@pytest.mark.gpu
def test_a_real_gpu_is_looked_at_quickly() -> None:
    with throttling.watched(torch.device("cuda")) as watched:
        assert watched is not None
        before = watched.look()
        assert set(before["violations"]) == set(nvml.POLICIES)
        assert isinstance(watched.between(before, watched.look()), Slowdown)
