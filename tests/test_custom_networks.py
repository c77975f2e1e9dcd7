"""Networks that users bring, package.module:factory."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from network_runs import SETTINGS, SHORT, SMALL, FakeClock, label

from invbench.harness.networks import NetworkSettings
from invbench.harness.networks.comparing import compare_networks, complete, count_networks
from invbench.results import Status
from invbench.spec import FREE, InvbenchError, Mode


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("networks_of_tests", None)


MINE = """
import torch
from torch import nn
from invbench import Involution2d

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def involving():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), Involution2d(8, kernel_size=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )

involving.counterpart = "networks_of_tests:plain"

def frozen():
    network = plain()
    network[0].requires_grad_(False)
    return network

def number():
    return 3

def broken():
    raise RuntimeError("no such file")

class Two(nn.Module):
    def forward(self, x):
        return x, x

def numbered():
    return plain()

numbered.counterpart = 5

def lonely():
    return plain()

lonely.counterpart = "resnet51"

def of_numbers():
    return nn.Linear(10, 3)

class Odd(nn.Module):
    # One involution has two names, another is frozen with all before it; some things are no modules.

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.frozen, self.first = Involution2d(8, kernel_size=3), Involution2d(8, kernel_size=3)
        self.second = self.first
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        with torch.no_grad():
            x = self.frozen(self.norm(self.stem(x)))
        x = nn.functional.dropout(x, 0.5, self.training)
        x = self.second(self.first(x)) + torch.arange(x.shape[-1])
        return self.last(x.mean((2, 3)))

class Namesake(nn.Module):
    # What our detectors mean by these names, it does not; and it gives one number an image.

    def __init__(self):
        super().__init__()
        self.outputs = nn.Linear(3, 1)
        self.places = {"first": 3, "second": [4]}

    def forward(self, x):
        return self.outputs(x.mean((2, 3))).squeeze(1)

def odd():
    network = Odd()
    for part in (network.stem, network.frozen):
        part.requires_grad_(False)
    return network
"""


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_a_users_network_is_measured_against_its_counterpart(mode: Mode, clock: FakeClock) -> None:
    asked = NetworkSettings(("networks_of_tests:involving", "networks_of_tests:frozen"), ("unfold",), budget=SHORT)
    case, settings = complete(replace(SMALL, N=2, mode=mode), asked, "cpu", 1)
    assert [model.name.partition(":")[2] for model in settings.custom] == ["involving", "frozen", "plain"]
    rows = {(row.subject.partition(":")[2], row.backend): row for row in compare_networks(case, settings).results}
    for row in rows.values():
        assert (row.status, row.reason) == (Status.OK, None), label(row)
    assert set(rows) == {("involving", "unfold"), ("involving", FREE), ("frozen", "torch"), ("plain", "torch")}
    ours = rows["involving", "unfold"]
    assert ours.baseline == "networks_of_tests:plain"
    assert ours.ratio.latency.median == pytest.approx(1)
    frozen = rows["frozen", "torch"]
    assert frozen.params - frozen.params_trainable == 8 * 27 + 8
    static = count_networks(case, settings).results
    assert [row.params for row in static] == [ours.params, frozen.params, rows["plain", "torch"].params]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("networks_of_tests:number", "a factory returns an nn.Module: got int"),
        ("networks_of_tests:broken", r"it cannot be made \(RuntimeError: no such file\)"),
        ("networks_of_tests:missing", "--models networks_of_tests:missing: it cannot be imported"),
        ("no_such_module:x", "it cannot be imported"),
        (":x", "--models takes package.module:factory"),
        ("networks_of_tests:numbered", "its counterpart is a network of ours or package.module:factory: got 5"),
        ("networks_of_tests:lonely", "its counterpart is a network of ours .* got 'resnet51'"),
    ],
)
def test_a_users_network_that_cannot_be_had_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        complete(SMALL, replace(SETTINGS, models=(name,)), "cpu", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("mine")
def test_a_users_network_that_returns_two_tensors_is_a_row_with_its_reason(clock: FakeClock) -> None:
    case, settings = complete(SMALL, replace(SETTINGS, models=("networks_of_tests:Two",)), "cpu", 1)
    row = compare_networks(case, settings).results[0]
    assert row.status is Status.ERROR
    assert "a network returns one tensor: got tuple" in row.reason


@pytest.mark.usefixtures("mine")
def test_a_users_network_that_takes_no_images_is_one_line_where_it_is_counted() -> None:
    case, settings = complete(SMALL, replace(SETTINGS, models=("networks_of_tests:of_numbers",)), "cpu", 1)
    with pytest.raises(InvbenchError, match="--models networks_of_tests:of_numbers: it cannot be counted on an image"):
        count_networks(case, settings)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_users_network_may_be_odd(dtype: str, clock: FakeClock) -> None:
    asked = NetworkSettings(("networks_of_tests:odd",), ("unfold",), budget=SHORT)
    case, settings = complete(replace(SMALL, N=2, dtype=dtype, mode=Mode.TRAIN), asked, "cpu", 1)
    for row in compare_networks(case, settings).results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_a_users_network_may_have_parts_of_any_name_and_one_number_an_image(mode: Mode, clock: FakeClock) -> None:
    asked = NetworkSettings(("networks_of_tests:Namesake",), ("unfold",), budget=SHORT, breakdown=True)
    case, settings = complete(replace(SMALL, N=2, mode=mode), asked, "cpu", 1)
    for row in compare_networks(case, settings).results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)
        assert row.breakdown is not None
        assert row.breakdown.places is None
