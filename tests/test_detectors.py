"""Detectors: the counts of the official table, what is frozen, fixed boxes, RoI-align, and that every part learns."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.models import SUBJECTS, create, regions
from invbench.models.counting import Counts, count
from invbench.models.detection import RCNN, BoxHead, MaskHead, ProposalHead, RetinaHead, RetinaNet
from invbench.models.necks import FPN
from invbench.models.regions import LEVELS, OURS, TORCHVISION, RegionFeatures, aligner, boxes, levels
from invbench.models.residual import Bottleneck
from invbench.ops import Involution2d
from invbench.spec import InvbenchError

# FACTS.md's COUNT figures at 800 x 1280 with 1000 proposals and 100 masked regions:
# params all and trained in millions, macs_mmcv with stem 7 in billions
COUNTS = {
    "faster_rcnn_resnet50": (41.75, 41.53, 207.06),
    "faster_rcnn_rednet50": (31.74, 31.60, 178.36),
    "faster_rcnn_rednet50_inv_neck": (29.65, 29.51, 135.01),
    "faster_rcnn_rednet50_inv_neck_head": (29.12, 28.99, 91.52),
    "mask_rcnn_resnet50": (44.40, 44.17, 260.10),
    "mask_rcnn_rednet50": (34.38, 34.24, 231.39),
    "mask_rcnn_rednet50_inv_neck": (32.29, 32.15, 188.04),
    "mask_rcnn_rednet50_inv_neck_head": (29.68, 29.54, 104.57),
    "retinanet_resnet50": (37.97, 37.74, 239.32),
    "retinanet_rednet50": (27.95, 27.81, 210.61),
    "retinanet_rednet50_inv_neck": (26.39, 26.25, 199.90),
}
# The rows from which the README leaves out the multiply-adds of the mask head's deconvolution and logits, 6.75 G.
MASK_HEAD_LEFT_OUT = ("mask_rcnn_resnet50", "mask_rcnn_rednet50", "mask_rcnn_rednet50_inv_neck")
NEWEST = ("faster_rcnn_rednet50_inv_neck_head", "mask_rcnn_rednet50_inv_neck_head", "retinanet_rednet50_inv_neck")
SIZES = [(64, 96), (33, 65), (97, 161), (1, 1)]


@functools.cache
def counts(name: str, stem: int = 7) -> Counts:
    with torch.device("meta"):
        return count(create(name, stem), 800, 1280)


def small(name: str, **options: Any) -> nn.Module:
    """The network with few regions."""
    model = SUBJECTS[name]
    if model.builder == "RCNN":
        options = {"proposals": 20, "mask_regions": 3, **options}
    if model.has_involution:
        options = {"backend": "naive", **options}
    return model.build(**options)


def test_all_detectors_are_here() -> None:
    assert set(COUNTS) == {name for name, model in SUBJECTS.items() if model.suite == "detection"}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    params, trained, macs_mmcv = COUNTS[name]
    found = counts(name)
    # Half-way cases are rounded either way in the table, as 28.985 is.
    assert found.params / 1e6 == pytest.approx(params, abs=0.0051)
    assert found.params_trainable / 1e6 == pytest.approx(trained, abs=0.0051)
    assert found.macs_mmcv / 1e9 == pytest.approx(macs_mmcv, rel=1e-3)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name: str) -> None:
    published = SUBJECTS[name].published
    found = counts(name, published.stem).macs_mmcv
    if name in MASK_HEAD_LEFT_OUT:
        found -= 100 * 14 * 14 * 4 * (256 * 256 + 256 * 80 + 80)
    assert found == pytest.approx(published.macs_mmcv, abs=6e7)  # mmcv's two digits are rounded to one


def test_transposed_convolutions_count_each_input_position() -> None:
    found = count(nn.ConvTranspose2d(6, 4, 3, 2, groups=2), 5, 7, channels=6)
    outputs = 4 * 11 * 15
    assert found.macs == 5 * 7 * 6 * 2 * 9
    assert (found.macs_mmcv, found.activations) == (found.macs + outputs, outputs)


# --- Boxes ---


@pytest.mark.parametrize("size", [(800, 1280), (1280, 800), (97, 161), (17, 400), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("number", [1, 100, 1000])
def test_boxes_are_inside_and_on_their_level(size: tuple[int, int], number: int) -> None:
    H, W = size
    found = boxes(number, H, W)
    assert sum(map(len, found)) == number
    for level, group in zip(LEVELS, found, strict=True):
        assert (group.dtype, group.device.type) == (torch.float64, "cpu")
        for left, top, right, bottom in group.tolist():
            assert 0 <= left < right <= W
            assert 0 <= top < bottom <= H
            side = math.sqrt((right - left) * (bottom - top))
            assert level == min(5, max(2, math.floor(4 + math.log2(side / 224))))


def test_levels_of_the_paper() -> None:
    sides = torch.tensor([1.0, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 4000.0], dtype=torch.float64)
    found = levels(torch.stack([torch.zeros(8), torch.zeros(8), sides * 2, sides / 2], 1))
    assert found.tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


def test_boxes_are_the_same_whatever_the_seed_and_spread_over_all_levels() -> None:
    torch.manual_seed(1)
    first = boxes(1000, 800, 1280)
    boxes.cache_clear()
    torch.manual_seed(2)
    with torch.device("meta"), torch.inference_mode():
        second = boxes(1000, 800, 1280)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(len(group) > 100 for group in first)
    assert torch.initial_seed() == 2


# --- RoI-align ---


def loops(x: Tensor, found: Tensor, scale: float, size: int) -> Tensor:
    """RoI-align sample by sample (He et al., ICCV 2017, section 3), one map [C, H, W]."""
    _, H, W = x.shape

    def at(row: float, column: float) -> Tensor:
        if not (-1 <= row <= H and -1 <= column <= W):
            return torch.zeros_like(x[:, 0, 0])
        row, column = min(max(row, 0.0), H - 1.0), min(max(column, 0.0), W - 1.0)
        top, left = int(row), int(column)
        bottom, right = min(top + 1, H - 1), min(left + 1, W - 1)
        down, across = row - top, column - left
        upper = (1 - across) * x[:, top, left] + across * x[:, top, right]
        lower = (1 - across) * x[:, bottom, left] + across * x[:, bottom, right]
        return (1 - down) * upper + down * lower

    rows = []
    for box in found.tolist():
        left, top, right, bottom = (scale * each - 0.5 for each in box)
        high, wide = (bottom - top) / size, (right - left) / size
        rows += [
            sum(at(top + (i + u) * high, left + (j + v) * wide) for u in (0.25, 0.75) for v in (0.25, 0.75)) / 4
            for i in range(size)
            for j in range(size)
        ]
    return torch.stack(rows).view(len(found), size, size, -1).permute(0, 3, 1, 2)


BOXES = [
    [0.0, 0.0, 40.0, 24.0], [3.3, 1.7, 11.1, 9.2], [10.0, 5.0, 10.5, 5.25], [30.0, 2.0, 40.0, 24.0],
    [-30.0, -9.0, 25.0, 60.0], [38.0, 22.0, 44.0, 29.0],
]  # fmt: skip


def roi_align(x: Tensor, found: Tensor, scale: float, size: int) -> Tensor:
    """The features [N, R, C, size, size] of boxes [R, 4] in each of N maps, as they are computed here."""
    return regions._Pixels(x).align(found, scale, size).movedim(-1, 2)


@pytest.mark.parametrize(("size", "shape"), [(7, (6, 10)), (2, (6, 10)), (3, (1, 1)), (1, (1, 9))], ids=str)
def test_roi_align_is_the_formula_with_its_gradient(size: int, shape: tuple[int, int]) -> None:
    found = torch.tensor(BOXES, dtype=torch.float64)
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    y = roi_align(x, found, 0.25, size)
    expected = torch.stack([loops(each, found, 0.25, size) for each in x])
    assert y.shape == (2, len(BOXES), 3, size, size)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad_y = torch.randn_like(y)
    one, other = (torch.autograd.grad(each, x, grad_y)[0] for each in (y, expected))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_roi_align_is_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    found = torch.tensor(BOXES, dtype=torch.float64)
    x = torch.randn(2, 5, 6, 10, dtype=torch.float64, requires_grad=True)
    y = roi_align(x, found, 0.25, 7)
    expected = ops.roi_align(x, [found, found], 7, 0.25, 2, True).view_as(y)
    torch.testing.assert_close(y, expected)
    grad_y = torch.randn_like(y)
    one, other = (torch.autograd.grad(each, x, grad_y)[0] for each in (y, expected))
    torch.testing.assert_close(one, other)


def pyramid(N: int, C: int, H: int, W: int, **where: Any) -> list[Tensor]:
    return [torch.randn(N, C, -(-H // 2**level), -(-W // 2**level), **where) for level in LEVELS]


def test_features_are_those_of_each_image_level_by_level() -> None:
    H, W = 500, 650
    maps = pyramid(2, 3, H, W, dtype=torch.float64)
    of_boxes, of_masks = RegionFeatures((30, 7), (5, 14))(maps, H, W)
    for y, number, size in ((of_boxes, 30, 7), (of_masks, 5, 14)):
        assert y.shape == (2 * number, 3, size, size)
        expected = [
            loops(x[image], group, 2.0**-level, size)
            for image in range(2)
            for level, x, group in zip(LEVELS, maps, boxes(number, H, W), strict=True)
            if len(group)
        ]
        torch.testing.assert_close(y, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_features_have_the_maps_type_and_layout(dtype: torch.dtype, layout: torch.memory_format) -> None:
    maps = [each.to(dtype).contiguous(memory_format=layout) for each in pyramid(2, 8, 64, 96)]
    (y,) = RegionFeatures((10, 7))(maps, 64, 96)
    (expected,) = RegionFeatures((10, 7))([each.double() for each in maps], 64, 96)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_what_inference_keeps_serves_training() -> None:
    features = RegionFeatures((12, 7))
    maps = [each.requires_grad_() for each in pyramid(1, 2, 41, 77)]
    with torch.inference_mode():
        (first,) = features(maps, 41, 77)
    (second,) = features(maps, 41, 77)
    second.sum().backward()
    assert torch.equal(first, second)
    assert maps[0].grad is not None
    assert maps[0].grad.sum().item() == pytest.approx(second.numel(), rel=1e-4)  # each bin's weights sum to 1


def test_torchvision_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = pyramid(2, 3, 400, 650, dtype=torch.float64)
    features = RegionFeatures((20, 3), (4, 5))
    expected = features(maps, 400, 650)

    def as_torchvision(x: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
        assert (rois.dtype, ratio, aligned) == (x.dtype, 2, True)
        return torch.cat([loops(x[int(roi[0])], roi[None, 1:], scale, size) for roi in rois])

    monkeypatch.setattr(regions, "aligner", lambda device: TORCHVISION)
    monkeypatch.setattr(regions, "_torchvision", lambda: as_torchvision)
    for one, other in zip(features(maps, 400, 650), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_aligns_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_installed, on_gpu in ((True, TORCHVISION), (False, OURS)):
        monkeypatch.setattr(regions, "_torchvision", lambda found=is_installed: loops if found else None)
        assert aligner(torch.device("cpu")) == aligner(torch.device("meta")) == OURS
        assert aligner(torch.device("cuda")) == on_gpu


# --- What they return, and what learns ---


def expected_length(name: str, H: int, W: int, number: int, masks: int) -> int:
    """Numbers in an image's row."""
    steps = range(3, 8) if name.startswith("retinanet") else range(2, 7)
    positions = sum(-(-H // 2**step) * -(-W // 2**step) for step in steps)
    if name.startswith("retinanet"):
        return positions * 9 * 84
    return positions * 15 + number * (81 + 320) + (masks * 80 * 28 * 28 if name.startswith("mask") else 0)


@pytest.mark.parametrize("name", COUNTS)
def test_rows_are_as_long_as_the_levels_say_and_all_that_is_trained_gets_a_gradient(name: str) -> None:
    network = small(name).to("meta").eval()
    with torch.no_grad():
        for H, W in SIZES:
            y = network(torch.randn(2, 3, H, W, device="meta"))
            assert y.shape == (2, expected_length(name, H, W, 20, 3))
    network.train()(torch.randn(2, 3, 65, 97, device="meta")).sum().backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize(
    "name", [name if name in NEWEST else pytest.param(name, marks=pytest.mark.slow) for name in COUNTS]
)
def test_runs_and_learns(name: str) -> None:
    torch.manual_seed(0)
    network = small(name)
    for part in network.modules():
        if isinstance(part, Bottleneck):
            nn.init.uniform_(part.bn3.weight, 0.1, 0.3)  # it begins as its shortcut, where nothing within learns
    before = {key: value.clone() for key, value in network.state_dict().items()}
    x = torch.randn(1, 3, 33, 65)
    with torch.inference_mode():
        y = network.eval()(x)
        assert torch.equal(network(x), y)
    assert y.shape == (1, expected_length(name, 33, 65, 20, 3))
    y = network.train()(x)
    assert torch.isfinite(y).all()
    assert 0.03 < y.std() < 10
    y.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if parameter.requires_grad:
            assert torch.isfinite(parameter.grad).all(), key
            assert parameter.grad.abs().max() > 0, key
    after = network.state_dict()
    for key, value in before.items():
        frozen = key.startswith("backbone.") or ("running" not in key and "num_batches" not in key)
        assert torch.equal(after[key], value) == frozen, key


def test_an_image_of_one_pixel() -> None:
    network = small("faster_rcnn_rednet50_inv_neck_head").eval()
    with torch.inference_mode():
        assert torch.isfinite(network(torch.randn(1, 3, 1, 1))).all()


@pytest.mark.parametrize("name", ["mask_rcnn_rednet50_inv_neck_head", "retinanet_resnet50"])
def test_frozen_parts(name: str) -> None:
    with torch.device("meta"):
        network = small(name)
    for mode in (True, False, True):
        network.train(mode)
        for key, part in network.named_modules():
            if isinstance(part, nn.BatchNorm2d):
                assert part.training == (mode and not key.startswith("backbone.")), key
    frozen = {key.split(".")[1] for key, value in network.named_parameters() if not value.requires_grad}
    assert frozen == ({"stem", "layer1"} if "rednet" in name else {"conv1", "bn1", "layer1"})
    assert all(value.requires_grad for value in network.backbone.layer2.parameters())
    assert not any(value.requires_grad for value in network.backbone.layer1.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_places_are_the_whole_network(name: str) -> None:
    with torch.device("meta"):
        network = small(name)
    parts = [part for place in network.places.values() for part in place]
    assert sum(each.numel() for part in parts for each in part.parameters()) == sum(
        each.numel() for each in network.parameters()
    )
    assert {"backbone", "neck"} < set(network.places)
    assert any(isinstance(part, RegionFeatures) for part in parts) == isinstance(network, RCNN)


# --- Involution in the neck and the heads ---


def involutions(network: nn.Module) -> set[str]:
    return {
        key.rpartition(".")[0]
        for key, part in network.named_modules()
        if isinstance(part, Involution2d) and not key.startswith("backbone.")
    }


def test_where_involutions_are() -> None:
    with torch.device("meta"):
        assert involutions(create("mask_rcnn_rednet50")) == set()
        assert involutions(create("retinanet_rednet50_inv_neck")) == {"neck.outputs"}
        network = create("mask_rcnn_rednet50_inv_neck_head", backend="unfold")
        assert involutions(network) == {"neck.outputs", "heads.proposal", "heads.mask.tower"}
    layers = [part for part in network.modules() if isinstance(part, Involution2d)]
    assert len(layers) == 17 + 4 + 1 + 4
    assert {part.backend for part in layers} == {"unfold"}


@pytest.mark.parametrize("backend", ["unfold", pytest.param("numba", marks=pytest.mark.slow)])
def test_backends_agree_in_a_neck(backend: str) -> None:
    maps = [torch.randn(2, 8 * 2**n, *size, dtype=torch.float64) for n, size in enumerate([(9, 17), (5, 9), (3, 5)])]
    results: list[Sequence[Tensor]] = []
    for name in ("naive", backend):
        torch.manual_seed(3)
        neck = FPN([8, 16, 32], pooled=True, inv=True, backend=name).double()
        found = neck(maps)
        assert [each.shape[2:] for each in found] == [(9, 17), (5, 9), (3, 5), (2, 3)]
        sum(each.square().sum() for each in found).backward()
        results.append([*found, *(each.grad for each in neck.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * one.abs().max().item())


# --- What they compute, part by part ---


def conv(layer: nn.Module, x: Tensor, stride: int = 1) -> Tensor:
    """A convolution by its parameters alone, or an involution, which has tests of its own."""
    if isinstance(layer, Involution2d):
        return layer(x)
    return F.conv2d(x, layer.weight, layer.bias, stride, layer.weight.shape[-1] // 2)


@pytest.mark.parametrize("inv", [False, True], ids=["convolution", "involution"])
@pytest.mark.parametrize(("pooled", "extra"), [(True, 0), (False, 2)])
def test_a_pyramid_is_laterals_nearest_sums_and_outputs(inv: bool, pooled: bool, extra: int) -> None:
    torch.manual_seed(0)
    neck = FPN([4, 6, 8], pooled, extra, inv, "naive").double().eval()
    for part in neck.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.normal_(part.bias)
    fine, middle, coarse = (
        torch.randn(2, 4 + 2 * n, *size, dtype=torch.float64) for n, size in enumerate([(9, 17), (5, 9), (3, 5)])
    )
    top = conv(neck.laterals[2], coarse)
    between = conv(neck.laterals[1], middle) + enlarged(top, 5, 9)
    bottom = conv(neck.laterals[0], fine) + enlarged(between, 9, 17)
    expected = [conv(layer, x) for layer, x in zip(neck.outputs, (bottom, between, top), strict=True)]
    if pooled:
        expected.append(expected[-1][..., ::2, ::2])
    if extra:
        first = conv(neck.extra[0], coarse, 2)
        expected += [first, conv(neck.extra[1], first, 2)]
    for one, other in zip(neck([fine, middle, coarse]), expected, strict=True):
        torch.testing.assert_close(one, other)


def enlarged(x: Tensor, H: int, W: int) -> Tensor:
    """The nearest pixel, by its index."""
    rows, columns = (torch.arange(size) * old // size for size, old in ((H, x.shape[2]), (W, x.shape[3])))
    return x[:, :, rows][..., columns]


@pytest.mark.parametrize("inv", [False, True], ids=["convolution", "involution"])
def test_heads_are_their_layers_one_after_another(inv: bool) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 256, *size, dtype=torch.float64) for size in ((3, 5), (2, 3))]
    with torch.no_grad():
        head = ProposalHead(inv, "naive").double().eval()
        seen = [conv(head.spatial, x).clamp(min=0) for x in maps]
        expected = [conv(layer, x).flatten(1) for x in seen for layer in (head.scores, head.deltas)]
        assert [each.shape[1] for each in expected] == [3 * 15, 12 * 15, 3 * 6, 12 * 6]
        for one, other in zip(head(maps), expected, strict=True):
            torch.testing.assert_close(one, other)

        mask = MaskHead(5, inv, "naive").double().eval()
        x = torch.randn(3, 256, 4, 4, dtype=torch.float64)
        y = x
        for layer in mask.tower[::2]:
            y = conv(layer, y).clamp(min=0)
        # A 2x2 window each 2 pixels: each pixel becomes four of its own, by one matrix for each of them.
        y = torch.einsum("nchw,cdij->ndhiwj", y, mask.upsample.weight).reshape(3, 256, 8, 8)
        y = (y + mask.upsample.bias[:, None, None]).clamp(min=0)
        torch.testing.assert_close(mask(x.clone()), conv(mask.logits, y))


def test_convolutional_heads_are_their_layers_one_after_another() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 256, *size) for size in ((3, 5), (2, 3))]
    with torch.no_grad():
        head = RetinaHead(2)
        expected = []
        for x in maps:
            for tower, last in ((head.score_tower, head.scores), (head.delta_tower, head.deltas)):
                y = x
                for layer in tower[::2]:
                    y = conv(layer, y).clamp(min=0)
                expected.append(conv(last, y).flatten(1))
        assert [each.shape[1] for each in expected] == [18 * 15, 36 * 15, 18 * 6, 36 * 6]
        for one, other in zip(head(maps), expected, strict=True):
            torch.testing.assert_close(one, other)

        box = BoxHead(4, size=2)
        x = torch.randn(3, 256, 2, 2)
        y = x.flatten(1)
        for layer in box.hidden[::2]:
            y = (y @ layer.weight.T + layer.bias).clamp(min=0)
        for one, layer, length in zip(box(x), (box.scores, box.deltas), (5, 16), strict=True):
            torch.testing.assert_close(one, y @ layer.weight.T + layer.bias)
            assert one.shape == (3, length)


def test_regions_are_of_the_pyramid_and_their_heads_follow_its_own() -> None:
    network = small("mask_rcnn_resnet50").eval()
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        maps = network.neck(network.backbone(x))
        assert [each.shape[2] for each in maps] == [17, 9, 5, 3, 2]
        of_boxes, of_masks = network.heads["regions"](maps[:4], 65, 97)
        scores, deltas = network.heads["box"](of_boxes)
        masks = network.heads["mask"](of_masks)
        of_images = [each.reshape(2, -1) for each in (scores, deltas, masks)]
        expected = torch.cat([*network.heads["proposal"](maps), *of_images], 1)
        torch.testing.assert_close(network(x), expected)

        network = small("retinanet_resnet50").eval()
        expected = torch.cat(network.head(network.neck(network.backbone(x)[1:])), 1)
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("is_settled", [False, True], ids=["fresh", "settled"])
def test_deep_heads_of_involutions_stay_in_range(is_settled: bool) -> None:
    torch.manual_seed(0)
    head = MaskHead(5, True, "naive").train(is_settled)
    with torch.no_grad():
        for scale in (0.3, 1.0, 2.0):
            assert 0.05 < head(scale * torch.randn(3, 256, 14, 14).relu()).std() < 100


# --- What is refused ---


@pytest.mark.parametrize(
    ("builder", "options", "message"),
    [
        (RCNN, {"masks": False, "proposals": 0}, "proposals must be a whole number of at least 1"),
        (RCNN, {"masks": True, "mask_regions": 0}, "mask_regions must be a whole number of at least 1"),
        (RCNN, {"masks": True, "backbone": "mnist-conv"}, "mnist-conv is fixed"),
        (RetinaNet, {"backbone": "resnet51"}, "model must be one of"),
    ],
)
def test_what_cannot_be_is_refused(builder: type[nn.Module], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvbenchError, match=message):
        builder(**{"backbone": "resnet50", **options})
