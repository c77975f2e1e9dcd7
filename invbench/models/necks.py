"""Feature pyramid network (Lin et al., CVPR 2017): maps of the same width at every stride, from a backbone's stages.

    P_l = out_l(M_l),   M_l = lateral_l(C_l) + nearest(M_l+1),   the coarsest M without a sum

lateral: 1x1 convolution. out: 3x3 convolution, or with ``inv`` an involution 7x7 (d-li14/involution). Neither has a
norm or an activation behind it, as in mmdetection.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from invbench.ops import Involution2d

PYRAMID_CHANNELS = 256
KERNEL_SIZE = 7  # of every involution outside the backbone


class FPN(nn.Module):
    """Maps [N, C_l, H_l, W_l] to as many [N, 256, H_l, W_l] and further, coarser ones; sizes need not be multiples.

    channels: C_l, from the finest map on. pooled: whether every second pixel of the coarsest output is another one, as
    region proposals want. extra: number of 3x3 convolutions with stride 2, the first from the coarsest input, each a
    further output, as RetinaNet wants them; they stay convolutions. inv: involutions for the output convolutions.
    """

    def __init__(
        self, channels: Sequence[int], pooled: bool = False, extra: int = 0, inv: bool = False, backend: str = "auto"
    ) -> None:
        super().__init__()
        width = PYRAMID_CHANNELS
        self.pooled = pooled
        self.laterals = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.outputs = nn.ModuleList(
            Involution2d(width, KERNEL_SIZE, backend=backend) if inv else nn.Conv2d(width, width, 3, padding=1)
            for _ in channels
        )
        self.extra = nn.ModuleList(
            nn.Conv2d(channels[-1] if number == 0 else width, width, 3, 2, 1) for number in range(extra)
        )
        initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The pyramid's maps, the finest first."""
        found: list[Tensor] = []
        merged: Tensor | None = None
        for index in reversed(range(len(maps))):
            lateral = self.laterals[index](maps[index])
            merged = lateral if merged is None else lateral + F.interpolate(merged, lateral.shape[2:], mode="nearest")
            found.insert(0, self.outputs[index](merged))
        if self.pooled:
            found.append(F.max_pool2d(found[-1], 1, 2))
        coarsest = maps[-1]
        for convolution in self.extra:
            coarsest = convolution(coarsest)
            found.append(coarsest)
        return found


def initialise(part: nn.Module, activated: bool = False) -> None:
    """Random parameters with which numbers stay of the size that they are, whatever the depth (He et al., ICCV 2015).

    Training starts detectors from outputs near zero, which would hide whether they are right. activated: whether
    each layer's output goes through a ReLU. What an involution makes of its input is quadratic in it: nine tenths of
    its weight's variance are in the bias of ``span``, which no input changes, so that deep heads stay in range also
    where norms have seen no images.
    """
    gain = 2.0 if activated else 1.0
    inner = {id(each) for layer in part.modules() if isinstance(layer, Involution2d) for each in layer.modules()}
    for layer in part.modules():
        if isinstance(layer, Involution2d):
            _initialise_involution(layer, gain)
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and id(layer) not in inner:
            _initialise_linear(layer, gain)


def _initialise_linear(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, gain: float) -> None:
    fan_in = layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):  # [C_in, C_out, K, K]; its stride is K, so that windows do not overlap
        fan_in = layer.in_channels
    nn.init.normal_(layer.weight, std=(gain / fan_in) ** 0.5)
    biased: Tensor | None = layer.bias  # torch's stubs know no layer without
    if biased is not None:
        nn.init.zeros_(biased)


def _initialise_involution(layer: Involution2d, gain: float) -> None:
    reduce, span = layer.reduce, layer.span
    variance = gain / layer.spec.taps  # of the weight, for y to have gain times the mean square of x
    assert isinstance(reduce, nn.Conv2d)
    assert span.bias is not None
    _initialise_linear(reduce, 2.0)
    # Half of the mean square of a normalised number is left by the ReLU before span.
    nn.init.normal_(span.weight, std=(0.1 * variance * 2 / span.in_channels) ** 0.5)
    nn.init.normal_(span.bias, std=(0.9 * variance) ** 0.5)
