"""RedNet: ResNet whose 3x3 convolutions are involutions (Li et al., CVPR 2021, section 3.4, and d-li14/involution).

stem    3x3 conv stride 2, 3 -> 32, BN, ReLU; involution(32), BN, ReLU; 3x3 conv 32 -> 64, BN, ReLU; max-pool 3 stride 2
stages  bottlenecks with involution(mid, 7, stride) in the middle
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from invbench.models.residual import STEM_CHANNELS, ResidualNetwork
from invbench.ops import Involution2d

# A checkpoint of the official repository is that of mmcls' classifier around the backbone.
OFFICIAL_PREFIXES = {"backbone.": "", "head.fc.": "fc."}


class RedNet(ResidualNetwork):
    """Images [N, 3, H, W] to logits [N, num_classes]; see ``invbench.models.create`` for the options.

    State_dict names are the official ones, but for the parts of an involution, which have the names of
    ``Involution2d``; those of the official repository load.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        num_classes: int | None = 1000,
        stem_kernel_size: int = 7,
        backend: str = "auto",
        kernel_size: int = 7,
        **involution: Any,
    ) -> None:
        def layer(channels: int, K: int, stride: int = 1) -> nn.Module:
            return Involution2d(channels, kernel_size=K, stride=stride, backend=backend, **involution)

        super().__init__()
        half = STEM_CHANNELS // 2
        self.stem = nn.Sequential(
            _conv_norm_act(3, half, stride=2),
            layer(half, stem_kernel_size),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            _conv_norm_act(half, STEM_CHANNELS),
        )
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_stages(blocks, num_classes, lambda channels, stride: layer(channels, kernel_size, stride))

    def stem_forward(self, x: Tensor) -> Tensor:
        """[N, 64, ceil(H / 4), ceil(W / 4)] from [N, 3, H, W]."""
        y: Tensor = self.maxpool(self.stem(x))
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called before any part loads, so that renaming here is seen by all of them.
        for official, own in OFFICIAL_PREFIXES.items():
            for name in [name for name in state_dict if name.startswith(prefix + official)]:
                state_dict[prefix + own + name.removeprefix(prefix + official)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _conv_norm_act(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, norm and ReLU, under the names of mmcv's ConvModule."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
    parts["bn"] = nn.BatchNorm2d(out)
    parts["activate"] = nn.ReLU(inplace=True)
    return nn.Sequential(parts)
