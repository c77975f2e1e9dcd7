"""ResNet with bottlenecks (He et al., CVPR 2016), the stride in the 3x3 convolution as in torchvision.

stem    7x7 conv stride 2, 3 -> 64, BN, ReLU; max-pool 3 stride 2
stages  bottlenecks with a 3x3 convolution in the middle

ResNet v1c, which segmenters are built on, has three 3x3 convolutions in its stem (He et al., Bag of Tricks, CVPR 2019,
section 4.2, there "ResNet-C").
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invbench.models.residual import ResidualNetwork, Spatial


def _convolution(channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride, 1, bias=False)


class ResNet(ResidualNetwork):
    """Images [N, 3, H, W] to logits [N, num_classes]; state_dict names are torchvision's.

    spatial: the middle layer of a block, for networks that differ in nothing else.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int | None = 1000, spatial: Spatial = _convolution) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, self.stem_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_stages(blocks, num_classes, spatial)

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, 64, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        y: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return y


class DeepStemResNet(ResidualNetwork):
    """ResNet v1c: the stem is 3x3 conv stride 2, 3 -> 32; 3x3, 32 -> 32; 3x3, 32 -> 64, with BN and ReLU after each."""

    def __init__(self, blocks: Sequence[int], num_classes: int | None = 1000) -> None:
        super().__init__()
        half = self.stem_channels // 2
        stem: list[nn.Module] = []
        for channels, out, stride in ((3, half, 2), (half, half, 1), (half, self.stem_channels, 1)):
            stem += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_stages(blocks, num_classes, _convolution)

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, 64, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        y: Tensor = self.maxpool(self.stem(x))
        return y
