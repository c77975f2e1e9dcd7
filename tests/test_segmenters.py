"""Segmenters: the counts of the official table, logits of any image, and that every part learns."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.models import DEPTHS, SUBJECTS, create
from invbench.models.counting import Counts, count
from invbench.models.residual import Bottleneck
from invbench.models.resnet import DeepStemResNet
from invbench.models.segmentation import AUXILIARY_WEIGHT, PooledPyramid, PyramidHead, SegmentationFPN, UPerNet
from invbench.ops import Involution2d
from invbench.spec import InvbenchError

# FACTS.md at 1024 x 2048: params in millions; macs_mmcv with stem 3 in billions, re-counted and as published. That
# interpolation counts nothing, and the auxiliary head neither, is what the re-counted figures say: with it the
# pyramid's upsampling would add 0.06, and the auxiliary head 19.
COUNTS = {
    "fpn_resnet50": (28.50, 363.8, 362.8),
    "fpn_rednet50": (18.46, 293.8, 293.9),
    "fpn_rednet50_inv_neck": (16.37, 205.1, 205.2),
    "upernet_resnet50": (66.42, 1895.9, 1894),
    "upernet_rednet50": (56.38, 1826.0, 1825.6),
}
SIZES = [(64, 96), (33, 65), (97, 161), (1, 1)]


@functools.cache
def counts(name: str) -> Counts:
    with torch.device("meta"):
        return count(create(name, 3), 1024, 2048)


def naive(name: str, **options: Any) -> nn.Module:
    return create(name, backend="naive", **options)


def test_all_segmenters_are_here() -> None:
    assert set(COUNTS) == {name for name, model in SUBJECTS.items() if model.suite == "segmentation"}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    params, macs_mmcv, published = COUNTS[name]
    found = counts(name)
    # Half-way cases are rounded either way in the table, as 66.415 is.
    assert found.params / 1e6 == pytest.approx(params, abs=0.0051)
    assert found.params_trainable == found.params
    assert round(found.macs_mmcv / 1e9, 1) == macs_mmcv
    assert found.output == (19, 256, 512)
    told = SUBJECTS[name].published
    assert (told.macs_mmcv, told.params) == (round(published * 1e9), round(params * 1e6))
    # Nobody says what the published figures of the ResNets leave out: up to 0.28 % of them.
    assert found.macs_mmcv == pytest.approx(told.macs_mmcv, rel=3e-3 if "resnet" in name else 7e-4)


def test_the_auxiliary_head_is_among_the_parameters_and_not_in_the_macs() -> None:
    with torch.device("meta"):
        network = create("upernet_rednet50", 3)
    assert sum(each.numel() for each in network.auxiliary.parameters()) == 256 * 1024 * 9 + 512 + 19 * 257
    network.auxiliary = nn.Identity()
    assert count(network, 1024, 2048).macs_mmcv == counts("upernet_rednet50").macs_mmcv


# --- What they return, and what learns ---


@pytest.mark.parametrize("name", COUNTS)
def test_logits_of_any_image_and_all_that_is_trained_gets_a_gradient(name: str) -> None:
    network = naive(name, num_classes=7).to("meta").eval()
    with torch.no_grad():
        for H, W in SIZES:
            assert network(torch.randn(2, 3, H, W, device="meta")).shape == (2, 7, -(-H // 4), -(-W // 4))
    y = network.train()(torch.randn(2, 3, 65, 97, device="meta"))
    assert y.shape == (2, 7, 17, 25)
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("fpn_rednet50_inv_neck", "upernet_rednet50") else pytest.param(name, marks=pytest.mark.slow)
        for name in COUNTS
    ],
)
def test_runs_and_learns(name: str) -> None:
    torch.manual_seed(0)
    network = naive(name)
    for part in network.modules():
        if isinstance(part, Bottleneck):
            nn.init.uniform_(part.bn3.weight, 0.1, 0.3)  # it begins as its shortcut, where nothing within learns
    x = torch.randn(2, 3, 33, 65)
    with torch.inference_mode():
        first = network.eval()(x)
        assert 0.03 < first.std() < 30
    y = network.train()(x)
    assert all(part.training for part in network.modules())
    assert torch.isfinite(y).all()
    assert 0.03 < y.std() < 30
    y.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key
    with torch.inference_mode():
        assert not torch.equal(network.eval()(x), first)  # norms have learned


@pytest.mark.parametrize("name", ["fpn_rednet50_inv_neck", "upernet_resnet50"])
def test_an_image_of_one_pixel(name: str) -> None:
    with torch.inference_mode():
        y = naive(name).eval()(torch.randn(1, 3, 1, 1))
    assert y.shape == (1, 19, 1, 1)
    assert torch.isfinite(y).all()


def test_the_auxiliary_head_speaks_in_training_alone() -> None:
    network = naive("upernet_resnet50", num_classes=3).eval()
    x = torch.randn(2, 3, 33, 65)
    with torch.inference_mode():
        maps = network.backbone(x)
        head = network.head(network.neck(maps))
        torch.testing.assert_close(network(x), head)
        network.training = True  # the parts keep their statistics
        auxiliary = F.interpolate(network.auxiliary(maps[2]), (9, 17), mode="bilinear")
        torch.testing.assert_close(network(x), head + AUXILIARY_WEIGHT * auxiliary)


def test_upsampling_ends_at_the_finest_maps_size() -> None:
    # With sizes that are multiples, each step is by exactly 2, as in mmsegmentation.
    head = PyramidHead(3).eval()
    maps = [torch.randn(1, 256, 32 // 2**level, 16 // 2**level) for level in range(4)]
    with torch.inference_mode():
        total = 0
        for level, convolutions in enumerate(head.scales):
            x = maps[level]
            for convolution in convolutions:
                x = convolution(x)
                x = F.interpolate(x, scale_factor=2, mode="bilinear") if level else x
            total = total + x
        torch.testing.assert_close(head(maps), head.logits(total))


def normed(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A convolution without bias, a norm in eval mode and a ReLU, by their parameters."""
    convolution, norm, _ = layers
    x = F.conv2d(x, convolution.weight, None, 1, convolution.weight.shape[-1] // 2)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).clamp(min=0)


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def test_a_pooled_pyramid_is_its_formula() -> None:
    torch.manual_seed(0)
    neck = PooledPyramid([4, 6, 8, 10], 5).double().eval()
    for part in neck.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            part.running_mean.normal_()
    maps = [
        torch.randn(2, 4 + 2 * n, *size, dtype=torch.float64)
        for n, size in enumerate([(33, 50), (17, 25), (9, 13), (7, 8)])
    ]
    pooled = [F.adaptive_avg_pool2d(maps[3], side) for side in (1, 2, 3, 6)]
    with torch.no_grad():
        scenes = [resized(normed(part[1:], x), maps[3]) for part, x in zip(neck.pooled, pooled, strict=True)]
        top = normed(neck.top, torch.cat([maps[3], *scenes], 1))
        merged = [top]
        for level in (2, 1, 0):
            merged.insert(0, normed(neck.laterals[level], maps[level]) + resized(merged[0], maps[level]))
        found = [*(normed(neck.outputs[level], merged[level]) for level in range(3)), top]
        expected = torch.cat([resized(each, maps[0]) for each in found], 1)
        torch.testing.assert_close(neck(maps), expected)


@pytest.mark.parametrize("name", ["fpn_rednet50_inv_neck", "upernet_resnet50"])
def test_segmenters_are_their_parts_one_after_another(name: str) -> None:
    network = naive(name, num_classes=3).eval()
    x = torch.randn(1, 3, 33, 65)
    with torch.inference_mode():
        maps = network.neck(network.backbone(x))
        torch.testing.assert_close(network(x), network.head(maps))
        if name.startswith("upernet"):
            logits = network.head[1]
            expected = F.conv2d(normed(network.head[0], maps), logits.weight, logits.bias)
            torch.testing.assert_close(network(x), expected)


def test_a_deep_stem_is_three_convolutions_and_a_pool() -> None:
    network = DeepStemResNet(DEPTHS[26], None).eval()
    x = torch.randn(1, 3, 33, 50)
    with torch.inference_mode():
        y = x
        for first, stride in ((0, 2), (3, 1), (6, 1)):
            y = F.conv2d(y, network.stem[first].weight, None, stride, 1)
            y = network.stem[first + 1](y).clamp(min=0)
        torch.testing.assert_close(network.stem_forward(x), F.max_pool2d(y, 3, 2, 1))


@pytest.mark.parametrize("name", COUNTS)
def test_places_are_the_whole_network(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    parts = [part for place in network.places.values() for part in place]
    sizes = [sum(each.numel() for each in part.parameters()) for part in (nn.ModuleList(parts), network)]
    assert sizes[0] == sizes[1]
    assert {"backbone", "neck", "decode head"} <= set(network.places)


def test_backbones() -> None:
    with torch.device("meta"):
        convolutional, involutional = create("fpn_resnet50"), create("upernet_rednet50", 5, backend="unfold")
        plain = create("resnet50", features_only=True)
    stem = convolutional.backbone.stem
    shapes = [tuple(part.weight.shape) for part in stem if isinstance(part, nn.Conv2d)]
    assert shapes == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    kept = {key for key in plain.state_dict() if key.startswith("layer")}
    assert kept == {key for key in convolutional.backbone.state_dict() if not key.startswith("stem")}
    layers = [part for part in involutional.modules() if isinstance(part, Involution2d)]
    assert ({part.backend for part in layers}, layers[0].spec.K, len(layers)) == ({"unfold"}, 5, 17)
    assert DeepStemResNet(DEPTHS[26], 4).eval()(torch.zeros(2, 3, 40, 50)).shape == (2, 4)


# --- What is refused ---


def test_one_image_is_too_few_to_train_upernet() -> None:
    network = UPerNet("resnet50").to("meta").train()
    with pytest.raises(InvbenchError, match=r"at least 2 images.*got 1; use --N 2"):
        network(torch.zeros(1, 3, 64, 64, device="meta"))


@pytest.mark.parametrize("builder", [SegmentationFPN, UPerNet])
def test_unknown_backbones_are_refused(builder: type[nn.Module]) -> None:
    with pytest.raises(InvbenchError, match="backbone must be one of resnet50, rednet50: got 'rednet26'"):
        builder("rednet26")
