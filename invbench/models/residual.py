"""What RedNet and ResNet share: bottleneck blocks in four stages, and a linear classifier (He et al., CVPR 2016).

    block   y = relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x))

conv1 and conv3 are 1x1 convolutions; conv2 is the one spatial layer, with the block's stride. Names are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor, nn

EXPANSION = 4
STEM_CHANNELS = 64
MID_CHANNELS = (64, 128, 256, 512)

# The spatial layer of a block: from its channels and its stride.
Spatial = Callable[[int, int], nn.Module]


class Bottleneck(nn.Module):
    """[N, channels, H, W] to [N, out, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, channels: int, mid: int, out: int, stride: int, spatial: Spatial) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = spatial(mid, stride)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The norm whose output is added to the shortcut."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class ResidualNetwork(nn.Module):
    """Four stages, and a classifier unless only features are wanted; a family adds its stem, and then these.

    feature_channels, feature_strides: of the stages' outputs. stem_channels, mid_channels: of the stem's output, and of
    the spatial layers in the stages; a family may have others.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module
    stem_channels: int = STEM_CHANNELS
    mid_channels: tuple[int, ...] = MID_CHANNELS
    feature_channels: tuple[int, ...] = tuple(EXPANSION * mid for mid in MID_CHANNELS)
    feature_strides = (4, 8, 16, 32)
    has_frozen_norms = False

    def add_stages(self, blocks: Sequence[int], num_classes: int | None, spatial: Spatial) -> None:
        """``layer1`` to ``layer4``, ``avgpool`` and ``fc``.

        blocks: their number in each stage. num_classes: None for no classifier. spatial: makes the middle layer of a
        block.
        """
        channels = self.stem_channels
        widths = zip(blocks, self.mid_channels, self.feature_channels, strict=True)
        for index, (count, mid, out) in enumerate(widths):
            stage = []
            for block in range(count):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(Bottleneck(channels, mid, out, stride, spatial))
                channels = out
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.add_classifier(num_classes)
        _initialise(self)

    def add_classifier(self, num_classes: int | None) -> None:
        """``avgpool`` and ``fc``, which is None where there are no classes."""
        self.fc: nn.Module | None = None
        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(self.feature_channels[-1], num_classes)

    def freeze(self, stages: int) -> None:
        """As detectors train their backbone: the parameters of the stem and of the first ``stages`` stages stay as they
        are, and so do the statistics of all norms, whose scales and shifts are trained in the other stages."""
        trained = {*(f"layer{number}" for number in range(stages + 1, len(MID_CHANNELS) + 1)), "fc"}
        for name, part in self.named_children():
            if name not in trained:
                part.requires_grad_(False)
        self.has_frozen_norms = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but norms that are frozen stay in eval mode."""
        super().train(mode)
        if self.has_frozen_norms:
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.eval()
        return self

    def stem_forward(self, x: Tensor) -> Tensor:
        """What comes before the stages: [N, 64, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        raise NotImplementedError

    def features(self, x: Tensor) -> list[Tensor]:
        """The stages' outputs [N, 256, ceil(H / 4), ceil(W / 4)] to [N, 2048, ceil(H / 32), ceil(W / 32)]."""
        found = []
        x = self.stem_forward(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits [N, num_classes] from images [N, 3, H, W], or the features where there is no classifier."""
        found = self.features(x)
        if self.fc is None:
            return found
        logits: Tensor = self.fc(self.avgpool(found[-1]).flatten(1))
        return logits

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.fc is None:  # the weights of a classifier are those of a backbone, and two more
            for name in ("fc.weight", "fc.bias"):
                state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _initialise(network: nn.Module) -> None:
    """The official code's start (mmcls): He et al.'s random numbers, and blocks that begin as their shortcut.

    Without the latter the output of a fresh RedNet overflows in eval mode: an involution is quadratic in its input,
    and statistics that no batch has passed through normalise nothing.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, Bottleneck):
            nn.init.zeros_(part.bn3.weight)
