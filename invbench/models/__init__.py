"""Whole networks, involution and convolution: RedNet (Li et al., CVPR 2021, table 1) and the ResNet it is made from.

``SUBJECTS`` is the one place that knows them. Neither it nor this module needs torch: a network is built by
``create``, which imports what it needs.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from invbench.ops import BACKENDS
from invbench.spec import InvbenchError, require_choice, require_positive

if TYPE_CHECKING:
    from torch import nn

# Blocks of the four stages; 26 and 38 are the paper's, the others He et al., CVPR 2016, table 1.
DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True, slots=True)
class Published:
    """What others say of a network at 224 x 224: params, macs as mmcv counts them (stem 7), ImageNet top-1 in percent.

    None where it is not told. The source is part of the figure: others give other accuracies.
    """

    source: str
    top1: float
    params: int | None = None
    macs_mmcv: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One network: the module and class that build it, its depth, and what it is compared with.

    counterpart: the name of the network with convolutions that it is measured against; its own where it is one.
    has_involution: whether ``backend``, ``stem_kernel_size`` and the like mean anything to it.
    """

    name: str
    module: str
    builder: str
    depth: int
    counterpart: str
    has_involution: bool
    published: Published | None = None

    def build(self, num_classes: int, **options: Any) -> nn.Module:
        """A new network with random parameters; options as ``create`` takes them."""
        builder = getattr(importlib.import_module(self.module), self.builder)
        network: nn.Module = builder(DEPTHS[self.depth], num_classes=num_classes, **options)
        return network


_README = partial(Published, "README of the official repository d-li14/involution")
_FIGURE = partial(Published, "figures of the official repository d-li14/involution, read off to +-0.1")

_REDNETS = {
    26: _README(75.96, 9_230_000, 1_730_000_000),
    38: _README(77.48, 12_390_000, 2_220_000_000),
    50: _README(78.35, 15_540_000, 2_710_000_000),
    101: _README(78.92, 25_650_000, 4_740_000_000),
    152: _README(79.12, 33_990_000, 6_790_000_000),
}
_RESNETS = {26: _FIGURE(73.6), 38: _FIGURE(76.0), 50: _FIGURE(76.8), 101: _FIGURE(78.5), 152: _FIGURE(79.3)}

SUBJECTS: dict[str, Model] = {
    **{
        f"rednet{depth}": Model(
            f"rednet{depth}", "invbench.models.rednet", "RedNet", depth, f"resnet{depth}", True, published
        )
        for depth, published in _REDNETS.items()
    },
    **{
        f"resnet{depth}": Model(
            f"resnet{depth}", "invbench.models.resnet", "ResNet", depth, f"resnet{depth}", False, published
        )
        for depth, published in _RESNETS.items()
    },
}


def require_model(name: str) -> Model:
    """The row of ``SUBJECTS``; raises InvbenchError with the nearest name if there is none."""
    if name not in SUBJECTS:
        near = difflib.get_close_matches(name, SUBJECTS, n=1, cutoff=0)[0]
        raise InvbenchError(f"model must be one of {', '.join(SUBJECTS)}: got {name!r}; try {near}")
    return SUBJECTS[name]


def create(
    name: str, stem_kernel_size: int = 7, num_classes: int = 1000, backend: str = "auto", **involution: Any
) -> nn.Module:
    """A network of ``SUBJECTS`` with random parameters: images [N, 3, H, W] to logits [N, num_classes].

    stem_kernel_size: K of the involution in RedNet's stem. The official figures are for 7, the official code and its
    weights have 3; ResNets have no such layer. backend: of every involution, as in ``involution2d``.
    involution: for ablations, of the involutions in RedNet's blocks (``kernel_size``) and of all of them (``groups``,
    ``group_channels``, ``reduction``, ``generator``), as ``Involution2d`` takes them.

    Loads state_dicts with the official repository's names (RedNet) or torchvision's (ResNet). On another device:
    ``with torch.device("meta"): create(...)``.

    Raises InvbenchError for a name, size or backend that there is not, and for options that the network does not have.
    """
    model = require_model(name)
    require_positive("num_classes", num_classes)
    require_positive("stem_kernel_size", stem_kernel_size)
    require_choice("backend", backend, ("auto", *BACKENDS))
    unknown = [option for option in involution if option not in ABLATIONS]
    if unknown:
        raise InvbenchError(f"create takes {', '.join(ABLATIONS)} for ablations: got {', '.join(unknown)}; drop it")
    if model.has_involution:
        return model.build(num_classes, stem_kernel_size=stem_kernel_size, backend=backend, **involution)
    if involution:
        raise InvbenchError(
            f"{name} has no involution: got {', '.join(involution)}; drop it, or create {name.replace('res', 'red')}"
        )
    return model.build(num_classes)


ABLATIONS = ("kernel_size", "groups", "group_channels", "reduction", "generator")
