"""Residual networks whose spatial layer is self-attention (``invbench.attention``), as involution was compared with.

    SAN          1x1 conv, BN, ReLU; five stages of max-pool 2, 1x1 conv, blocks, BN, ReLU (Zhao et al., CVPR 2020)
    StandAlone   ResNet with 7x7 local attention of 8 heads in its blocks (Ramachandran et al., NeurIPS 2019)
    LRNet        1x1 conv and a local relation layer as stem, and one in each block (Hu et al., ICCV 2019)
    AxialResNet  ResNet with height and then width attention in its blocks (Wang et al., ECCV 2020)

Where papers leave a detail open, the counts of parameters and multiply-adds decide. They leave open how parameters
start, too; here they start so that a fresh network is finite, and so that rounding does not grow with its depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from invbench.attention.axial import AxialAttention2d
from invbench.attention.local import LocalAttention2d
from invbench.attention.local_relation import LocalRelation2d
from invbench.attention.operators import MODULES
from invbench.attention.san import PairwiseAttention2d, PatchwiseAttention2d
from invbench.models.residual import ResidualNetwork
from invbench.models.resnet import ResNet
from invbench.spec import InvbenchError, require_choice

KERNEL_SIZE = 7
HEADS = 8

fx.wrap("_checked")


class StandAlone(ResNet):
    """Images [N, 3, H, W] to logits [N, num_classes]; without classes to the features of four stages."""

    def __init__(self, blocks: Sequence[int], num_classes: int | None = 1000) -> None:
        super().__init__(blocks, num_classes, _local_attention)
        _restart(self)


def _local_attention(channels: int, stride: int) -> nn.Module:
    """Attention at the stride of its input, and an average pool (Ramachandran et al., section 3.2)."""
    layer = LocalAttention2d(channels, KERNEL_SIZE, HEADS)
    return layer if stride == 1 else nn.Sequential(layer, _pool(stride))


class LRNet(ResidualNetwork):
    """Images [N, 3, H, W] to logits [N, num_classes]; without classes to the features of four stages."""

    mid_channels = (100, 200, 400, 800)

    def __init__(self, blocks: Sequence[int], num_classes: int | None = 1000) -> None:
        super().__init__()
        # No norm between the two, nor a bias anywhere but in the prior: so it is that 2.392 G are counted for 26.
        self.conv1 = nn.Conv2d(3, self.stem_channels, 1, bias=False)
        self.relation = LocalRelation2d(self.stem_channels, KERNEL_SIZE, stride=2)
        self.bn1 = nn.BatchNorm2d(self.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_stages(blocks, num_classes, lambda mid, stride: LocalRelation2d(mid, KERNEL_SIZE, stride=stride))
        _restart(self)

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, 64, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        y: Tensor = self.maxpool(self.relu(self.bn1(self.relation(self.conv1(x)))))
        return y


class AxialResNet(ResNet):
    """Images [N, 3, H, W] of up to 224 a side to logits [N, num_classes]; without classes to features.

    width: times the channels of the paper's largest network.

    Raises InvbenchError for larger images, which have distances that there is no embedding for.
    """

    largest = 224

    def __init__(self, blocks: Sequence[int], width: float, num_classes: int | None = 1000) -> None:
        self.stem_channels = int(64 * width)
        self.mid_channels = tuple(int(mid * width) for mid in (128, 256, 512, 1024))
        self.feature_channels = tuple(2 * mid for mid in self.mid_channels)
        super().__init__(blocks, num_classes, self._attention)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage.children():
                # Attention ends with a norm of its own. With another, 26s would have 5.949 M parameters, not 5.945.
                block.bn2 = nn.Identity()
        _restart(self)

    def _attention(self, mid: int, stride: int) -> nn.Module:
        """Of the span that maps have at this place for the largest images; the pool comes after the attention."""
        span = 56 >> self.mid_channels.index(mid)
        return AxialAttention2d(mid, HEADS, stride * span, stride)

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, C, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        return super().stem_forward(_checked(x, "AxialResNet", 1, self.largest))


class SAN(ResidualNetwork):
    """Images [N, 3, H, W] of at least 128 a side to logits [N, num_classes]; without classes to features.

    blocks: of the five stages. kind: "pairwise" or "patchwise".

    Raises InvbenchError for smaller images, whose last map has too few pixels to reflect.
    """

    layer0: nn.Module
    least = 128

    def __init__(self, blocks: Sequence[int], kind: str, num_classes: int | None = 1000) -> None:
        super().__init__()
        require_choice("kind", kind, tuple(_SAN_LAYERS))
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        channels = self.stem_channels
        for index, (count, out) in enumerate(zip(blocks, (self.stem_channels, *self.feature_channels), strict=True)):
            K = KERNEL_SIZE if index else 3
            stage = nn.Sequential(
                nn.MaxPool2d(2),
                nn.Conv2d(channels, out, 1, bias=False),
                *(SANBlock(out, K, kind) for _ in range(count)),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            )
            self.add_module(f"layer{index}", stage)
            channels = out
        # Convolutions start as torch starts them, as in the official code: so small that patchwise attention, which is
        # quadratic in its input, stays finite also where no batch has passed through the norms.
        self.add_classifier(num_classes)

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, 64, H // 2, W // 2] from [N, 3, H, W], the first stage among it."""
        y: Tensor = self.layer0(self.stem(_checked(x, "SAN", self.least, None)))
        return y


_SAN_LAYERS = {"pairwise": PairwiseAttention2d, "patchwise": PatchwiseAttention2d}


class SANBlock(nn.Module):
    """x + conv(relu(bn2(attention(relu(bn1(x)))))), all [N, channels, H, W]."""

    def __init__(self, channels: int, kernel_size: int, kind: str) -> None:
        super().__init__()
        mid = channels // 4
        self.bn1 = nn.BatchNorm2d(channels)
        self.attention = _SAN_LAYERS[kind](channels, kernel_size, mid, share=8)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv = nn.Conv2d(mid, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        # A block begins near its shortcut. A mean over nearly equal pixels hardly differs from place to place, and what
        # bn2 makes of that is mostly rounding: SAN19's logits in bfloat16 were off by 24 times their size, now by 0.1.
        with torch.no_grad():
            self.conv.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y: Tensor = self.conv(self.relu(self.bn2(self.attention(self.relu(self.bn1(x))))))
        return x + y


def _pool(stride: int) -> nn.Module:
    return nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)


def _restart(network: nn.Module) -> None:
    """Torch's own random numbers for the convolutions inside attention, and no larger ones: a softmax of large scores
    is a maximum, which learns nothing of the others and jumps where rounding changes it."""
    for part in network.modules():
        if isinstance(part, MODULES):
            for conv in part.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.reset_parameters()


def _checked(x: Tensor, name: str, least: int, most: int | None) -> Tensor:
    H, W = x.shape[2:]
    if min(H, W) < least or (most is not None and max(H, W) > most):
        limit = f"at least {least}" if most is None else f"at most {most}"
        raise InvbenchError(f"{name} takes images of {limit} pixels a side: got H={H} and W={W}; resize them")
    return x
