"""Segmenters: Semantic FPN (Kirillov et al., CVPR 2019) and UPerNet (Xiao et al., ECCV 2018).

As mmsegmentation's standard configurations build them, on ResNet-50 v1c, with the official repository's involutions
(d-li14/involution, seg). They return logits [N, classes, ceil(H / 4), ceil(W / 4)], as the decode head gives them;
what enlarges those to the image is no part of the network. No strides are traded for dilation. The heads' dropout of
whole channels (0.1) is left out: it takes as long with convolution as with involution, and is drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.models import DEPTHS, create
from invbench.models.necks import FPN, PYRAMID_CHANNELS, initialise
from invbench.models.residual import ResidualNetwork
from invbench.models.resnet import DeepStemResNet
from invbench.spec import InvbenchError, require_choice

POOL_SCALES = (1, 2, 3, 6)
AUXILIARY_WEIGHT = 0.4  # of the auxiliary head's loss in mmsegmentation's configurations


class SegmentationFPN(nn.Module):
    """Semantic FPN: a pyramid, each map brought to stride 4 by convolutions and upsampling by 2, their sum classified.

    backbone: a RedNet of ``SUBJECTS``, or "resnet50" for ResNet-50 v1c. inv_neck: involutions in the pyramid's outputs.
    options: ``backend`` and ``stem_kernel_size``, where something is an involution.
    """

    def __init__(
        self, backbone: str, inv_neck: bool = False, num_classes: int = 19, backend: str = "auto", **options: Any
    ) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, backend, **options)
        self.neck = FPN(self.backbone.feature_channels, inv=inv_neck, backend=backend)
        self.head = PyramidHead(num_classes)

    @property
    def places(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """What the network is made of, by the names that its time is told by."""
        return {"backbone": (self.backbone,), "neck": (self.neck,), "decode head": (self.head,)}

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes, ceil(H / 4), ceil(W / 4)] of images [N, 3, H, W]."""
        y: Tensor = self.head(self.neck(self.backbone(x)))
        return y


class PyramidHead(nn.Module):
    """Maps [N, 256, H_l, W_l], the finest first, to logits of the finest one's size; 128 channels within."""

    channels = 128

    def __init__(self, num_classes: int, count: int = 4) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.ModuleList(
                _conv_norm_act(self.channels if step else PYRAMID_CHANNELS, self.channels, 3)
                for step in range(max(1, level))
            )
            for level in range(count)
        )
        self.logits = nn.Conv2d(self.channels, num_classes, 1)
        initialise(self, activated=True)
        initialise(self.logits)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[N, classes, H_0, W_0]."""
        total: Tensor | None = None
        for level, (x, convolutions) in enumerate(zip(maps, self.scales, strict=True)):
            assert isinstance(convolutions, nn.ModuleList)
            for step, convolution in enumerate(convolutions):
                x = convolution(x)
                if level:
                    x = _resize(x, maps[level - step - 1])
            total = x if total is None else total + x
        y: Tensor = self.logits(total)
        return y


class UPerNet(nn.Module):
    """A pyramid with pooling at several scales on its top, all maps brought to stride 4, fused and classified.

    backbone, options: as of ``SegmentationFPN``. In training, logits of an auxiliary head on the third stage, enlarged,
    are added with the weight that their loss has, so that one tensor has the gradients of both.

    Raises InvbenchError for one image in training: pooled to one position, it has nothing to be normalised by.
    """

    channels = 512

    def __init__(self, backbone: str, num_classes: int = 19, backend: str = "auto", **options: Any) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, backend, **options)
        self.neck = PooledPyramid(self.backbone.feature_channels, self.channels)
        count = len(self.backbone.feature_channels)
        self.head = nn.Sequential(
            _conv_norm_act(count * self.channels, self.channels, 3), nn.Conv2d(self.channels, num_classes, 1)
        )
        self.auxiliary = nn.Sequential(
            _conv_norm_act(self.backbone.feature_channels[2], 256, 3), nn.Conv2d(256, num_classes, 1)
        )
        for each in (self.head, self.auxiliary):
            initialise(each[0], activated=True)
            initialise(each[1])

    @property
    def places(self) -> Mapping[str, tuple[nn.Module, ...]]:
        """What the network is made of, by the names that its time is told by."""
        return {
            "backbone": (self.backbone,), "neck": (self.neck,), "decode head": (self.head,),
            "auxiliary head": (self.auxiliary,),
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes, ceil(H / 4), ceil(W / 4)] of images [N, 3, H, W]."""
        if self.training and len(x) == 1:
            raise InvbenchError(
                "UPerNet trains on at least 2 images, since its batch norms see one position of each: got 1; use --N 2"
            )
        maps = self.backbone(x)
        y: Tensor = self.head(self.neck(maps))
        if self.training:
            y = y + AUXILIARY_WEIGHT * _resize(self.auxiliary(maps[2]), y)
        return y


class PooledPyramid(nn.Module):
    """Maps [N, C_l, H_l, W_l], the finest first, to one [N, 4 * width, H_0, W_0]: all that a pyramid has, concatenated.

    Laterals are 1x1 and outputs 3x3 convolutions, each with BN and ReLU; the coarsest lateral is that of pyramid
    pooling (Zhao et al., CVPR 2017), and it has no output. Maps are enlarged bilinearly.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), *_conv_norm_act(channels[-1], width, 1)) for scale in POOL_SCALES
        )
        self.top = _conv_norm_act(channels[-1] + len(POOL_SCALES) * width, width, 3)
        self.laterals = nn.ModuleList(_conv_norm_act(each, width, 1) for each in channels[:-1])
        self.outputs = nn.ModuleList(_conv_norm_act(width, width, 3) for _ in channels[:-1])
        initialise(self, activated=True)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The pyramid as one map of the finest one's size."""
        coarsest = maps[-1]
        merged = self.top(torch.cat([coarsest, *(_resize(pool(coarsest), coarsest) for pool in self.pooled)], 1))
        found = [merged]
        for lateral, output, x in reversed(list(zip(self.laterals, self.outputs, maps[:-1], strict=True))):
            merged = lateral(x) + _resize(merged, x)
            found.insert(0, output(merged))
        return torch.cat([found[0], *(_resize(each, found[0]) for each in found[1:])], 1)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinearly to the size of another map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def _conv_norm_act(channels: int, out: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, size, padding=size // 2, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
    )


def _backbone(name: str, backend: str, **options: Any) -> ResidualNetwork:
    require_choice("backbone", name, ("resnet50", "rednet50"))
    if name == "resnet50":
        return DeepStemResNet(DEPTHS[50], num_classes=None)
    network = create(name, backend=backend, features_only=True, **options)
    assert isinstance(network, ResidualNetwork)
    return network
