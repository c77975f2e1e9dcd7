"""Detectors compared: rows, places, frozen norms, memory; with a clock of our own."""

from __future__ import annotations

import pytest
import torch
from network_runs import SHORT, FakeClock, label
from torch import nn

from invbench.harness.networks import NetworkSettings, NetworkSubject, build
from invbench.harness.networks.build import NetworkJob, Networks
from invbench.harness.networks.comparing import compare_networks
from invbench.models import SUBJECTS, Images, Model
from invbench.results import Status
from invbench.spec import Mode, NetworkCase, Regime


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A detector of few regions and classes, and its counterpart."""
    names = {"resnet26": "tiny_resnet26", "rednet26": "tiny_rednet26"}
    for backbone, name in names.items():
        own = {"backbone": backbone, "masks": True, "proposals": 6, "mask_regions": 3}
        own |= {"inv_neck": True, "inv_head": True} if backbone == "rednet26" else {}
        images = Images(usual=(64, 96), coarsest=64 if backbone == "rednet26" else None)
        monkeypatch.setitem(SUBJECTS, name, Model(
            name, "detection", "invbench.models.detection", "RCNN", own, "tiny_resnet26", backbone == "rednet26",
            images=images, classes=3, is_compiled=False,
        ))  # fmt: skip
    return names["rednet26"]


@pytest.mark.parametrize(
    ("mode", "dtype", "autocast"),
    [
        (Mode.FORWARD, "float32", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (Mode.TRAIN, "float32", False), (Mode.FORWARD, "bfloat16", False), (Mode.TRAIN, "bfloat16", True)
            )
        ),
    ],
)  # fmt: skip
def test_detectors_are_compared_as_built(mode: Mode, dtype: str, autocast: bool, tiny: str, clock: FakeClock) -> None:
    case = NetworkCase(1, 64, 96, threads=1, mode=mode, dtype=dtype, autocast=autocast)
    found = compare_networks(case, NetworkSettings((tiny,), ("unfold",), budget=SHORT, breakdown=True))
    assert [label(row) for row in found.results] == [
        "tiny_rednet26 (unfold), eager", "tiny_rednet26 (free), eager", "tiny_resnet26, eager"
    ]  # fmt: skip
    for row in found.results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)
        assert row.params_trainable < row.params
        places = row.breakdown.places
        assert list(places) == ["backbone", "neck", "RPN head", "region features", "box head", "mask head"]
        assert sum(places.values()) + row.breakdown.elsewhere == pytest.approx(row.breakdown.total)
        assert 0 <= row.breakdown.elsewhere < 0.5 * row.breakdown.total


def test_a_detectors_frozen_norms_have_statistics_too(tiny: str) -> None:
    case = NetworkCase(1, 64, 96, threads=1, mode=Mode.TRAIN)
    network = Networks(case, 0).original(SUBJECTS[tiny], free=False).network
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked > 0 for norm in norms)  # several where maps of all strides share a layer
    assert not any(torch.equal(norm.running_var, torch.ones_like(norm.running_var)) for norm in norms)
    frozen = {norm for norm in network.backbone.modules() if isinstance(norm, nn.BatchNorm2d)}
    assert all(norm.training == (norm not in frozen) for norm in norms)
    assert network.heads["regions"].wanted == ((6, 7), (3, 14))


def test_memory_is_that_of_a_network_that_has_seen_no_images(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_settle", None)
    case = NetworkCase(1, 64, 96, threads=1)
    job = NetworkJob(NetworkSubject(tiny, "unfold", Regime.EAGER), Networks(case, 0), SUBJECTS[tiny])
    (y,) = job.step().results()
    assert torch.isfinite(y).all()
