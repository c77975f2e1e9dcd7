"""Where the time of a call goes: by kind of layer and by place in the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from network_runs import SETTINGS, SMALL, FakeClock, by_label
from torch import Tensor, nn

from invbench.attention.local import LocalAttention2d
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, NetworkSubject, build, comparing
from invbench.harness.networks.breakdown import KINDS, break_down
from invbench.harness.networks.build import Networks
from invbench.harness.networks.comparing import compare_networks
from invbench.models import SUBJECTS
from invbench.ops import Involution2d
from invbench.results import Status
from invbench.spec import Mode, Regime

# What a call is said to take: the shortest of those that were looked into is told of, which nothing else slowed down.
SHORTEST = 1e-9


@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_parts_and_rest_are_the_whole(mode: Mode) -> None:
    networks = Networks(replace(SMALL, mode=mode), 0)
    original = networks.original(SUBJECTS["rednet26"], free=False)
    step = networks.step(original, NetworkSubject("rednet26", "unfold", Regime.EAGER))
    step.call()
    found = break_down(step, SHORTEST)
    assert set(found.parts) == {
        "1x1 convolutions", "other convolutions", "involution", "normalisation", "activation", "pooling", "additions",
        "linear",
    }  # fmt: skip
    assert all(value > 0 for value in found.parts.values())
    assert 0 <= found.rest < 0.5 * found.total
    assert sum(found.parts.values()) + found.rest == pytest.approx(found.total)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in step.function.modules())


def test_each_kind_is_told_from_the_others() -> None:
    class Slow(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(6):
                x = self.layer(x)
            return x

    layers: dict[str, nn.Module] = {
        "1x1 convolutions": nn.Conv2d(16, 16, 1),
        "other convolutions": nn.Conv2d(16, 16, 3, padding=1),
        "involution": Involution2d(16, kernel_size=3, backend="naive"),
        "normalisation": nn.BatchNorm2d(16),
        "activation": nn.ReLU(),
        "pooling": nn.MaxPool2d(3, 1, 1),
        "linear": nn.Linear(32, 32),
    }
    for kind, layer in layers.items():
        network = Slow(layer)
        for mode, differentiated in ((Mode.FORWARD, ()), (Mode.TRAIN, (True,))):
            x = torch.randn(1, 16, 32, 32, requires_grad=mode is Mode.TRAIN)
            grad = torch.randn_like(x) if differentiated else None
            step = build.Step(mode, network, [x], [x] if differentiated else [], grad)
            parts = break_down(step, SHORTEST).parts
            assert max(parts, key=parts.__getitem__) == kind, (kind, mode, parts)


def test_attention_is_one_kind() -> None:
    layer = LocalAttention2d(32, 5, 4)
    network = nn.Sequential(nn.Conv2d(32, 32, 1), layer, nn.BatchNorm2d(32))
    x = torch.randn(1, 32, 24, 24, requires_grad=True)
    for mode, differentiated in ((Mode.FORWARD, []), (Mode.TRAIN, [x])):
        step = build.Step(mode, network, [x], differentiated, torch.randn(1, 32, 24, 24) if differentiated else None)
        parts = break_down(step, SHORTEST).parts
        assert max(parts, key=parts.__getitem__) == "self-attention", (mode, parts)
        assert set(parts) <= {"self-attention", "1x1 convolutions", "normalisation"}


def test_places_share_the_backward_pass() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 7, padding=3)
            self.places = {"small": (self.small,), "large": (self.large, nn.Identity())}

        def forward(self, x: Tensor) -> Tensor:
            return self.large(self.small(x).relu()) * 2

    network = Placed()
    x = torch.randn(1, 8, 96, 96, requires_grad=True)
    step = build.Step(Mode.TRAIN, network, [x], [x, *network.parameters()], torch.randn(1, 8, 96, 96))
    forward = break_down(build.Step(Mode.FORWARD, network, [x]), SHORTEST)
    found = break_down(step, SHORTEST)
    for each in (forward, found):
        assert set(each.places) == {"small", "large"}
        assert each.places["large"] > each.places["small"] > 0
        assert 0 < each.elsewhere < each.total
        assert {"1x1 convolutions", "other convolutions"} <= set(each.parts) < set(KINDS) - {"involution"}
    assert found.elsewhere < 0.3 * found.total  # the backward pass would be half of it
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_a_run_with_a_breakdown(clock: FakeClock) -> None:
    settings = replace(SETTINGS, breakdown=True)
    told: list[str] = []
    found = compare_networks(replace(SMALL, mode=Mode.TRAIN), settings, told.append)
    assert all(row.breakdown is not None and row.breakdown.total > 0 for row in found.results)
    assert "involution" not in by_label(found)["rednet26 (free), eager"].breakdown.parts
    assert "looking where the time goes" in told


def test_no_breakdown_where_the_profiler_would_see_launches_only(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "is_possible", lambda device: False)
    found = compare_networks(replace(SMALL, mode=Mode.TRAIN), replace(SETTINGS, breakdown=True))
    for row in found.results:
        assert row.breakdown is None
        assert any("no breakdown" in warning for warning in row.warnings)


@pytest.mark.slow
def test_a_real_run_in_both_regimes() -> None:
    settings = NetworkSettings(("rednet26",), ("naive",), budget=Budget(seconds=2, warm_up=0.1), breakdown=True)
    found = compare_networks(replace(SMALL, H=64, W=64), settings)
    assert [(row.status, row.reason) for row in found.results] == [(Status.OK, None)] * 6
    for row in found.results:
        assert row.breakdown.total == pytest.approx(sum(row.breakdown.parts.values()) + row.breakdown.rest)
    compiled = by_label(found)["resnet26, folded and compiled"].breakdown.parts
    assert compiled["generated kernels"] > 0
    assert "normalisation" not in compiled
