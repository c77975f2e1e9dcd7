"""Which networks are compared with which, at which sizes and in which regimes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from network_runs import DEPLOYED, EAGER, SETTINGS, SMALL

from invbench.harness import machine
from invbench.harness.networks import NetworkSettings, points_of, require_trainable
from invbench.harness.networks.comparing import compare_networks, complete
from invbench.ops import BACKENDS
from invbench.spec import InvbenchError, Mode, NetworkCase


def test_rows_are_each_network_by_each_backend_and_its_ceiling_in_both_regimes() -> None:
    assert [subject.label for subject in SETTINGS.subjects(Mode.FORWARD)] == [*EAGER, *DEPLOYED]
    assert [subject.label for subject in SETTINGS.subjects(Mode.TRAIN)] == EAGER


def test_baselines_that_were_not_asked_for_are_measured_too() -> None:
    settings = replace(SETTINGS, models=("rednet26", "rednet50", "resnet26"))
    assert settings.networks() == ["rednet26", "rednet50", "resnet26", "resnet50"]
    assert replace(settings, baseline="rednet38").networks() == ["rednet26", "rednet50", "resnet26", "rednet38"]


def test_baselines_are_of_the_same_regime() -> None:
    bases = SETTINGS.baselines(Mode.FORWARD)
    assert bases["rednet26 (free), eager"] == "resnet26, eager"
    assert bases["rednet26 (unfold), folded and compiled"] == "resnet26, folded and compiled"
    other = replace(SETTINGS, baseline="rednet26").baselines(Mode.TRAIN)
    assert set(other.values()) == {"rednet26 (unfold), eager"}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"N": 1, "H": 32, "W": 32, "mode": Mode.TRAIN}, "more than one position.*--image-size"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"threads": 4096}, "--threads 4096"),
    ],
)
def test_what_cannot_be_measured_is_refused(case: dict[str, Any], message: str) -> None:
    with pytest.raises(InvbenchError, match=message):
        compare_networks(replace(SMALL, **case), SETTINGS)


def test_auto_is_told_by_name() -> None:
    case, settings = complete(SMALL, replace(SETTINGS, backends=("auto", "naive", "auto")), "cpu", None)
    assert "auto" not in settings.backends
    assert set(settings.backends) <= set(BACKENDS)
    assert settings.backends[1:] in ((), ("naive",))
    assert case.threads == machine.usable_cores()


def test_networks_with_images_of_their_own_have_points_of_their_own() -> None:
    settings = NetworkSettings(("rednet26", "mnist-inv", "cifar10-inv"), ("unfold",))
    points = points_of(SMALL, settings, (1, 4), ((48, 48), (64, 64)), (Mode.FORWARD, Mode.TRAIN))
    assert len(points) == 2 * 2 * 4
    sides = {case.H: chosen.models for case, chosen in points}
    assert sides == {
        48: ("rednet26",), 64: ("rednet26",), 28: ("mnist-inv",), 32: ("cifar10-inv",),
    }  # fmt: skip
    assert {(case.N, case.mode) for case, _ in points} == {(n, m) for n in (1, 4) for m in (Mode.FORWARD, Mode.TRAIN)}


def test_a_baseline_that_takes_other_images_is_refused() -> None:
    settings = NetworkSettings(("mnist-inv",), ("unfold",), baseline="resnet26")
    with pytest.raises(InvbenchError, match=r"mnist-inv takes images of 1 channel\(s\) and its baseline resnet26 of 3"):
        points_of(SMALL, settings, (1,), ((48, 48),), (Mode.FORWARD,))


def test_without_a_size_each_network_has_its_usual_one() -> None:
    names = ("faster_rcnn_rednet50", "rednet26", "mnist-inv", "fpn_rednet50", "san10_pairwise", "retinanet_rednet50")
    points = points_of(SMALL, NetworkSettings(names, ("unfold",)), (1,), None, (Mode.FORWARD,))
    assert {(case.H, case.W): chosen.models for case, chosen in points} == {
        (800, 1280): ("faster_rcnn_rednet50", "retinanet_rednet50"), (224, 224): ("rednet26", "san10_pairwise"),
        (28, 28): ("mnist-inv",), (1024, 2048): ("fpn_rednet50",),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "baseline", "size", "message"),
    [
        ("san10_pairwise", None, (200, 64), "san10_pairwise takes images of at least 128 pixels a side: got 200x64"),
        ("axial26s", None, (224, 256), "axial26s takes images of at most 224 pixels a side: got 224x256"),
        (
            "rednet26",
            "san10_patchwise",
            (64, 64),
            "san10_patchwise, the baseline of rednet26, takes images of at least",
        ),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused(
    model: str, baseline: str | None, size: tuple[int, int], message: str
) -> None:
    settings = NetworkSettings((model,), ("unfold",), baseline=baseline)
    with pytest.raises(InvbenchError, match=message):
        points_of(SMALL, settings, (1,), (size,), (Mode.FORWARD,))
    assert points_of(SMALL, settings, (1,), ((160, 192),), (Mode.FORWARD,))


@pytest.mark.parametrize(
    ("model", "N", "size", "message"),
    [
        ("rednet26", 1, (32, 32), "coarsest map of rednet26.*--image-size 33"),
        ("rednet26", 2, (32, 32), None), ("rednet26", 1, (32, 33), None),
        ("faster_rcnn_resnet50", 1, (16, 16), None),  # whose norms are frozen
        ("faster_rcnn_rednet50_inv_neck", 1, (32, 32), "coarsest map of faster_rcnn_rednet50_inv_neck"),
        ("mask_rcnn_rednet50_inv_neck_head", 1, (64, 64), "--image-size 65"),
        ("mask_rcnn_rednet50_inv_neck_head", 1, (64, 96), None),
        ("upernet_resnet50", 1, (64, 64), "needs at least 2 images.*got N=1; use --N 2"),
        ("upernet_resnet50", 2, (32, 32), None), ("mnist-inv", 1, (28, 28), None),
    ],
)  # fmt: skip
def test_which_training_steps_have_something_to_normalise(
    model: str, N: int, size: tuple[int, int], message: str | None
) -> None:
    settings = NetworkSettings((model,), ("unfold",), baseline=model)
    case = NetworkCase(N, *size, mode=Mode.TRAIN)
    require_trainable(replace(case, mode=Mode.FORWARD), settings)
    if message is None:
        require_trainable(case, settings)
        return
    with pytest.raises(InvbenchError, match=message):
        require_trainable(case, settings)


def test_networks_that_are_not_deployed_have_rows_as_built_only() -> None:
    settings = NetworkSettings(("rednet26", "retinanet_rednet50"), ("unfold",))
    labels = [subject.label for subject in settings.subjects(Mode.FORWARD)]
    assert len(labels) == 6 + 3
    assert not any("retinanet" in label for label in labels if "compiled" in label)
    assert set(settings.baselines(Mode.FORWARD)) == set(labels)
    other = replace(settings, baseline="retinanet_resnet50").baselines(Mode.FORWARD)
    assert other["rednet26 (unfold), eager"] == "retinanet_resnet50, eager"
    compiled = "rednet26 (unfold), folded and compiled"
    assert other[compiled] == compiled  # whose baseline is not measured so
