"""Networks proved right: what is wrong shows, whatever the type of number; statistics are settled before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from network_runs import DEPLOYED, EAGER, SETTINGS, SMALL, FakeClock, by_label
from torch import Tensor, nn

from invbench.harness.networks import proving
from invbench.harness.networks.build import Networks
from invbench.harness.networks.comparing import compare_networks
from invbench.models import SUBJECTS
from invbench.ops import naive, unfold
from invbench.results import Status
from invbench.spec import Mode, NetworkCase


def test_a_wrong_backend_is_a_mismatch_and_is_not_timed(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    right = unfold.aggregate
    monkeypatch.setattr(unfold, "aggregate", lambda x, weight, spec: 1.2 * right(x, weight, spec))
    rows = by_label(compare_networks(SMALL, SETTINGS))
    for name in (EAGER[0], DEPLOYED[0]):
        assert rows[name].status is Status.MISMATCH
        assert rows[name].latency is None
        assert "float64 reference" in rows[name].reason
    assert rows[EAGER[1]].status is rows[EAGER[2]].status is Status.OK


@pytest.mark.parametrize(("dtype", "autocast"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_a_wrong_gradient_is_a_mismatch(
    dtype: str, autocast: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(SMALL, N=4, dtype=dtype, autocast=autocast)
    train = replace(case, mode=Mode.TRAIN)
    assert by_label(compare_networks(train, SETTINGS))[EAGER[0]].status is Status.OK
    right = unfold.aggregate

    def wrong(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        y = right(x, weight, spec)
        return y + 0.5 * (right(x, weight, spec) - y.detach())  # the same value, one and a half times its gradient

    monkeypatch.setattr(unfold, "aggregate", wrong)
    assert by_label(compare_networks(case, SETTINGS))[EAGER[0]].status is Status.OK
    assert by_label(compare_networks(train, SETTINGS))[EAGER[0]].status is Status.MISMATCH


@pytest.mark.parametrize("wrong", ["tap", "group", "border"])
@pytest.mark.parametrize("autocast", [False, True])
def test_inference_in_16_bits_shows_what_is_wrong(
    wrong: str, autocast: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aggregate(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        if wrong == "border":
            y = naive.aggregate(x, weight, spec).clone()
            y[..., -1] *= spec.stride == 1
            return y
        changed = weight.flip(1) if wrong == "group" else weight.clone()
        changed[:, :, 0] *= wrong != "tap"
        return naive.aggregate(x, changed, spec)

    monkeypatch.setattr(unfold, "aggregate", aggregate)
    found = by_label(compare_networks(replace(SMALL, dtype="bfloat16", autocast=autocast), SETTINGS))
    assert found[EAGER[0]].status is Status.MISMATCH


def test_several_images_are_checked_as_a_few(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    right = naive.aggregate

    def watch(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        if x.dtype == torch.float64:
            seen.append(len(x))
        return right(x, weight, spec)

    monkeypatch.setattr(naive, "aggregate", watch)
    for mode in (Mode.FORWARD, Mode.TRAIN):
        found = compare_networks(replace(SMALL, N=6, mode=mode), SETTINGS)
        assert {row.status for row in found.results} == {Status.OK}
    assert set(seen) == {proving.CHECKED_IMAGES}


def test_settled_networks_have_finite_logits_that_depend_on_their_involutions() -> None:
    network = Networks(SMALL, 0).original(SUBJECTS["rednet26"], free=False).network
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        y = network(x)
        network.layer1[0].conv2.span.bias.add_(0.5)
        assert torch.isfinite(y).all()
        assert not torch.equal(network(x), y)


def test_statistics_are_those_of_images_that_are_not_too_large() -> None:
    networks = Networks(NetworkCase(1, 800, 1280), 0)
    assert networks._settling_images(SUBJECTS["resnet26"]).shape == (2, 3, 256, 256)
    assert Networks(SMALL, 0)._settling_images(SUBJECTS["resnet26"]).shape == (8, 3, 48, 48)
    assert Networks(NetworkCase(1, 8, 1), 0)._settling_images(SUBJECTS["resnet26"]).shape == (64, 3, 8, 1)


def test_statistics_of_small_images_are_not_of_a_handful_of_positions(clock: FakeClock) -> None:
    # With two images the norms of the last stage saw four positions, and bfloat16's rounding was amplified to 1.8.
    case = replace(SMALL, N=2, H=32, W=64, dtype="bfloat16")
    settings = replace(SETTINGS, models=("rednet50",), baseline="rednet50")
    row = by_label(compare_networks(case, settings))["rednet50 (unfold), eager"]
    assert (row.status, row.reason) == (Status.OK, None)
    assert row.error["relative"] < 0.25


class Joined(nn.Module):
    """Large scores, and small deltas that a test makes wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.wrong = 0.0

    def outputs(self, x: Tensor) -> list[Tensor]:
        return [1e4 * x[:, :5] * self.scale, x[:, 5:] * self.scale + self.wrong]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.outputs(x), 1)


def test_a_wrong_part_does_not_hide_behind_a_larger_one() -> None:
    network, x = Joined(), torch.randn(2, 8, dtype=torch.float64)
    lengths = proving._noted_lengths(network)
    reference = proving.Reference([network(x).detach()], lengths)
    assert lengths == [5, 3]
    other = Joined()
    assert proving._worst([other(x)], reference, "float32").is_close
    other.wrong = 0.5
    assert not proving._worst([other(x)], reference, "float32").is_close
    assert proving._worst([other(x)], proving.Reference(reference.results), "float32").is_close  # as one, it would be
