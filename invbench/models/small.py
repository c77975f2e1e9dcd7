"""The small networks of "Involution: Inverting the Inference of Convolution for Visual Recognition" (Salem, Garçon,
Salem and Waldura), and involutional ones that match them.

    SmallConv     each layer a 3x3 convolution to a width, ReLU
    SmallInv      each layer an involution on the channels that the image has
    MatchedInv    each layer a 1x1 convolution to a width, an involution, ReLU

Shallow ones, for MNIST, have two layers with a max-pool of 2 after each, then dropout and one linear layer; their
convolutions are not padded, and the report's involutions have no rectifier. The others, for Fashion-MNIST and CIFAR-10,
have three layers with a max-pool after the first two, all padded and rectified, then two linear layers.

The report's involutions see one or three channels, since an involution does not change how many there are, and have one
hidden channel: 24 to 66 times fewer parameters than the convolutions beside them. The matched networks have as many
channels as a convolution makes for itself, in widths for which all parameters, or all multiply-adds, are the same to
within 0.6 %.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invbench.ops import Involution2d

KERNEL_SIZE = 3
GROUP_CHANNELS = 8  # of matched networks: RedNet's 16 would be all that a narrow layer has
DROPOUT = 0.5
DENSE = 64


class SmallNetwork(nn.Module):
    """Images [N, channels, side, side] to logits [N, num_classes]: ``features``, then ``head``.

    layers: the parts of each. flat: how many numbers of an image reach the head.
    """

    def __init__(self, layers: Sequence[list[nn.Module]], flat: int, num_classes: int, shallow: bool) -> None:
        super().__init__()
        pooled = _pooled(len(layers), shallow)
        self.features = nn.Sequential()
        for index, layer in enumerate(layers):
            self.features.extend([*layer, *([nn.MaxPool2d(2)] if index < pooled else [])])
        if shallow:
            self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(flat, num_classes))
        else:
            self.head = nn.Sequential(nn.Linear(flat, DENSE), nn.ReLU(), nn.Linear(DENSE, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


class SmallConv(SmallNetwork):
    """The report's convolutional network: 3x3 convolutions to the widths."""

    def __init__(self, widths: Sequence[int], channels: int, side: int, shallow: bool, num_classes: int = 10) -> None:
        padding = 0 if shallow else KERNEL_SIZE // 2
        layers: list[list[nn.Module]] = [
            [nn.Conv2d(before, width, KERNEL_SIZE, padding=padding), nn.ReLU()]
            for before, width in zip((channels, *widths), widths, strict=False)
        ]
        for index in range(len(widths)):
            side -= 0 if padding else KERNEL_SIZE - 1
            side //= 2 if index < _pooled(len(widths), shallow) else 1
        super().__init__(layers, side**2 * widths[-1], num_classes, shallow)


class SmallInv(SmallNetwork):
    """The report's involutional network: a number of involutions in one group with one hidden channel."""

    def __init__(
        self, layers: int, channels: int, side: int, shallow: bool, num_classes: int = 10, backend: str = "auto"
    ) -> None:
        made: list[list[nn.Module]] = [
            [
                Involution2d(channels, KERNEL_SIZE, groups=1, hidden_channels=1, reduce_bias=True, backend=backend),
                *([] if shallow else [nn.ReLU()]),
            ]
            for _ in range(layers)
        ]
        super().__init__(made, _left(side, layers, shallow) ** 2 * channels, num_classes, shallow)


class MatchedInv(SmallNetwork):
    """An involutional network with the channels that a convolutional one has: each layer goes to its width first."""

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        side: int,
        shallow: bool,
        num_classes: int = 10,
        backend: str = "auto",
    ) -> None:
        made: list[list[nn.Module]] = [
            [
                nn.Conv2d(before, width, 1),
                Involution2d(width, KERNEL_SIZE, group_channels=GROUP_CHANNELS, backend=backend),
                nn.ReLU(),
            ]
            for before, width in zip((channels, *widths), widths, strict=False)
        ]
        super().__init__(made, _left(side, len(widths), shallow) ** 2 * widths[-1], num_classes, shallow)


def _pooled(layers: int, shallow: bool) -> int:
    """After how many layers there is a pool."""
    return layers if shallow else layers - 1


def _left(side: int, layers: int, shallow: bool) -> int:
    """The side of what padded layers leave of an image."""
    return int(side // 2 ** _pooled(layers, shallow))
