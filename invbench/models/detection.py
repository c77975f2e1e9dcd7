"""Detectors: Faster R-CNN (Ren et al., 2015), Mask R-CNN (He et al., 2017) and RetinaNet (Lin et al., 2017) on an FPN.

As mmdetection's standard configurations build them (R50-FPN), with the official repository's involutions (d-li14/
involution, det). Second stages see fixed boxes (``regions``), and nothing is sorted or suppressed: that depends on
weights, and takes as long with convolution as with involution.

A detector returns one tensor, all that its heads say of an image in one row [N, M]: for each level of the pyramid class
scores and box deltas; then, of two-stage detectors, for all boxes class scores [R, classes + 1], for all box deltas
[R, 4 classes], and for all regions with a mask its logits [R, classes, 28, 28]; all as the last layers give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.models import create
from invbench.models.necks import FPN, KERNEL_SIZE, PYRAMID_CHANNELS, initialise
from invbench.models.regions import RegionFeatures
from invbench.models.residual import ResidualNetwork
from invbench.ops import Involution2d
from invbench.spec import InvbenchError, require_positive

FROZEN_STAGES = 1
HIDDEN = 1024  # of the box head
ANCHORS_PROPOSAL, ANCHORS_DENSE = 3, 9  # at each position


class DenseHead(nn.Module):
    """Class scores and box deltas at every position of every map, by the same layers, which a subclass makes.

    scores, deltas: the last layers, classes and 4 numbers of each anchor.
    """

    scores: nn.Module
    deltas: nn.Module

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[N, length] of maps [N, 256, H_l, W_l], level by level."""
        found = []
        for x in maps:
            of_scores, of_deltas = self.towers(x)
            found += [self.scores(of_scores).flatten(1), self.deltas(of_deltas).flatten(1)]
        return found

    def towers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layers see, of scores and of deltas."""
        raise NotImplementedError


class ProposalHead(DenseHead):
    """RPN (Ren et al., 2015): a 3x3 convolution, or an involution, with a ReLU; 1x1 to objectness and to deltas."""

    def __init__(self, inv: bool, backend: str) -> None:
        super().__init__()
        self.spatial = _spatial(inv, backend)
        self.scores = nn.Conv2d(PYRAMID_CHANNELS, ANCHORS_PROPOSAL, 1)
        self.deltas = nn.Conv2d(PYRAMID_CHANNELS, 4 * ANCHORS_PROPOSAL, 1)
        initialise(self)
        initialise(self.spatial, activated=True)

    def towers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same for both. The ReLU is a function in mmdetection, too, so that mmcv does not count it."""
        y = F.relu(self.spatial(x))
        return y, y


class RetinaHead(DenseHead):
    """Two towers of four 3x3 convolutions, each with a ReLU; 3x3 to classes and to deltas."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.score_tower, self.delta_tower = _tower(), _tower()
        self.scores = nn.Conv2d(PYRAMID_CHANNELS, num_classes * ANCHORS_DENSE, 3, padding=1)
        self.deltas = nn.Conv2d(PYRAMID_CHANNELS, 4 * ANCHORS_DENSE, 3, padding=1)
        initialise(self)
        initialise(self.score_tower, activated=True)
        initialise(self.delta_tower, activated=True)

    def towers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One of each."""
        return self.score_tower(x), self.delta_tower(x)


class BoxHead(nn.Module):
    """Two hidden layers of 1024; classes and the background, and a box for each class."""

    def __init__(self, num_classes: int, size: int = 7) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(PYRAMID_CHANNELS * size * size, HIDDEN), nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, HIDDEN), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.scores = nn.Linear(HIDDEN, num_classes + 1)
        self.deltas = nn.Linear(HIDDEN, 4 * num_classes)
        initialise(self)
        initialise(self.hidden, activated=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [R, classes + 1] and deltas [R, 4 classes] of region features [R, 256, 7, 7]."""
        y = self.hidden(x.flatten(1))
        return self.scores(y), self.deltas(y)


class MaskHead(nn.Module):
    """Four 3x3 convolutions or involutions and a transposed 2x2, each with a ReLU; a 1x1 convolution to classes."""

    def __init__(self, num_classes: int, inv: bool, backend: str) -> None:
        super().__init__()
        self.tower = _tower(inv, backend)
        self.upsample = nn.ConvTranspose2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 2, 2)
        self.relu = nn.ReLU(inplace=True)
        self.logits = nn.Conv2d(PYRAMID_CHANNELS, num_classes, 1)
        initialise(self, activated=True)
        initialise(self.logits)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [R, classes, 28, 28] of region features [R, 256, 14, 14]."""
        y: Tensor = self.logits(self.relu(self.upsample(self.tower(x))))
        return y


def _spatial(inv: bool, backend: str) -> nn.Module:
    if inv:
        return Involution2d(PYRAMID_CHANNELS, KERNEL_SIZE, backend=backend)
    return nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1)


def _tower(inv: bool = False, backend: str = "auto") -> nn.Sequential:
    return nn.Sequential(*(each for _ in range(4) for each in (_spatial(inv, backend), nn.ReLU(inplace=True))))


class RCNN(nn.Module):
    """Faster R-CNN, and with ``masks`` Mask R-CNN: images [N, 3, H, W] to one row each (see the module).

    backbone: a network of ``SUBJECTS``. inv_neck, inv_head: involutions in the pyramid's outputs; in the heads for
    proposals and masks. proposals, mask_regions: boxes of each image; the same for all images of a size.
    options: ``backend`` and ``stem_kernel_size``, where something is an involution.
    """

    def __init__(
        self,
        backbone: str,
        masks: bool,
        inv_neck: bool = False,
        inv_head: bool = False,
        num_classes: int = 80,
        proposals: int = 1000,
        mask_regions: int = 100,
        backend: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        require_positive("proposals", proposals)
        require_positive("mask_regions", mask_regions)
        self.backbone = _backbone(backbone, backend, **options)
        self.neck = FPN(self.backbone.feature_channels, pooled=True, inv=inv_neck, backend=backend)
        self.heads = nn.ModuleDict({
            "proposal": ProposalHead(inv_head, backend),
            "regions": RegionFeatures((proposals, 7), *(((mask_regions, 14),) if masks else ())),
            "box": BoxHead(num_classes),
        })  # fmt: skip
        if masks:
            self.heads["mask"] = MaskHead(num_classes, inv_head, backend)

    @property
    def places(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """What the network is made of, by the names that its time is told by."""
        heads = self.heads
        found: dict[str, tuple[nn.Module, ...]] = {
            "backbone": (self.backbone,),
            "neck": (self.neck,),
            "RPN head": (heads["proposal"],),
            "region features": (heads["regions"],),
            "box head": (heads["box"],),
        }
        return found | ({"mask head": (heads["mask"],)} if "mask" in heads else {})

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What the row is made of, each [N, length]."""
        N, _, H, W = x.shape
        maps = self.neck(self.backbone(x))
        of_boxes, *of_masks = self.heads["regions"](maps, H, W)
        found = [*self.heads["box"](of_boxes), *(self.heads["mask"](each) for each in of_masks)]
        return [*self.heads["proposal"](maps), *(each.reshape(N, -1) for each in found)]

    def forward(self, x: Tensor) -> Tensor:
        """[N, M] of images [N, 3, H, W]."""
        return torch.cat(self.outputs(x), 1)


class RetinaNet(nn.Module):
    """Images [N, 3, H, W] to one row each (see the module), from maps at strides 8 to 128.

    backbone, inv_neck, options: as of ``RCNN``; the head is of convolutions.
    """

    def __init__(
        self, backbone: str, inv_neck: bool = False, num_classes: int = 80, backend: str = "auto", **options: Any
    ) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, backend, **options)
        self.neck = FPN(self.backbone.feature_channels[1:], extra=2, inv=inv_neck, backend=backend)
        self.head = RetinaHead(num_classes)

    @property
    def places(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """What the network is made of, by the names that its time is told by."""
        return {"backbone": (self.backbone,), "neck": (self.neck,), "head": (self.head,)}

    def outputs(self, x: Tensor) -> list[Tensor]:
        """What the row is made of, each [N, length]."""
        found: list[Tensor] = self.head(self.neck(self.backbone(x)[1:]))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[N, M] of images [N, 3, H, W]."""
        return torch.cat(self.outputs(x), 1)


def _backbone(name: str, backend: str, **options: Any) -> ResidualNetwork:
    """The stages' outputs, the stem and the first stage frozen, and all norms, as mmdetection trains detectors."""
    network = create(name, backend=backend, features_only=True, **options)
    if not isinstance(network, ResidualNetwork):
        raise InvbenchError(f"backbone must be a ResNet or RedNet: got {name!r}; try 'rednet50'")
    network.freeze(FROZEN_STAGES)
    return network
