"""Whole networks, involution and convolution: RedNet (Li et al., CVPR 2021, table 1) and the ResNet it is made from,
and the small networks of a report that trained both ways.

``SUBJECTS`` is the one place that knows them. Neither it nor this module needs torch: a network is built by
``create``, which imports what it needs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from invbench.ops import BACKENDS
from invbench.spec import InvbenchError, require_choice, require_positive

if TYPE_CHECKING:
    from torch import nn

# Blocks of the four stages; 26 and 38 are the paper's, the others He et al., CVPR 2016, table 1.
DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

REPORT = "Table 1 of Salem et al., Involution: Inverting the Inference of Convolution for Visual Recognition"


@dataclass(frozen=True, slots=True)
class Published:
    """What others say of a network: params, macs as mmcv counts them (at 224 x 224, stem 7), top-1 in percent.

    data_set: what the accuracy is on. train_seconds: of the whole training, by type of device. None where it is not
    told. The source is part of the figure: others give other accuracies.
    """

    source: str
    top1: float
    params: int | None = None
    macs_mmcv: int | None = None
    data_set: str = "ImageNet"
    train_seconds: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Images:
    """What a network takes: images of so many channels, and of height and width ``side`` where it takes no others."""

    channels: int = 3
    side: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One network: the module and class that build it, with which arguments, and what it is compared with.

    suite: the group that it is compared in, a row of ``SUITES``. counterpart: the name of the network with
    convolutions that it is measured against; its own where it is one. has_involution: whether ``backend``,
    ``stem_kernel_size`` and the like mean anything to it.
    """

    name: str
    suite: str
    module: str
    builder: str
    arguments: Mapping[str, Any]
    counterpart: str
    has_involution: bool
    published: Published | None = None
    images: Images = Images()

    @property
    def classes(self) -> int:
        """Of the data set that the network is for."""
        return 10 if self.suite == "small" else 1000

    def build(self, **options: Any) -> nn.Module:
        """A new network with random parameters; options as its class takes them."""
        builder = getattr(importlib.import_module(self.module), self.builder)
        network: nn.Module = builder(**self.arguments, **options)
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


def _imagenet() -> Iterator[Model]:
    for family, builder, published in (("rednet", "RedNet", _REDNETS), ("resnet", "ResNet", _RESNETS)):
        for depth, blocks in DEPTHS.items():
            yield Model(
                f"{family}{depth}", "imagenet", f"invbench.models.{family}", builder, {"blocks": blocks},
                f"resnet{depth}", family == "rednet", published[depth],
            )  # fmt: skip


def _report(data_set: str, top1: float, params: int, gpu: float, cpu: float) -> Published:
    return Published(REPORT, top1, params, data_set=data_set, train_seconds={"gpu": gpu, "cpu": cpu})


@dataclass(frozen=True, slots=True)
class _SmallFamily:
    """The report's two networks for one data set, and the widths with which an involutional one matches the first."""

    images: Images
    widths: tuple[int, ...]
    equal_params: tuple[int, ...]
    equal_macs: tuple[int, ...]
    conv: Published
    inv: Published


# The widths of matched networks are multiples of 8, a group's channels, found by trying all up to 256: of those within
# 0.6 % of the convolutional network's parameters or multiply-adds, the ones shaped most like it. A test counts them.
_SMALL = {
    "mnist": _SmallFamily(
        Images(1, 28), (32, 64), (16, 64), (40, 80),
        _report("MNIST", 98.97, 34_826, 65.26, 502.75), _report("MNIST", 88.82, 544, 73.35, 323.23),
    ),
    "fashion-mnist": _SmallFamily(
        Images(1, 28), (32, 64, 64), (64, 120, 72), (56, 112, 112),
        _report("Fashion-MNIST", 91.91, 257_162, 86.23, 982.03), _report("Fashion-MNIST", 82.34, 3_916, 479.08, 621.97),
    ),
    "cifar10": _SmallFamily(
        Images(3, 32), (32, 64, 64), (56, 96, 72), (64, 112, 96),
        _report("CIFAR-10", 64.78, 319_178, 142.44, 1077.86), _report("CIFAR-10", 31.10, 13_074, 203.27, 922.53),
    ),
}  # fmt: skip


def _small() -> Iterator[Model]:
    for data_set, family in _SMALL.items():
        images = {"channels": family.images.channels, "side": family.images.side, "shallow": len(family.widths) == 2}
        layers = {"layers": len(family.widths)}
        rows: tuple[tuple[str, str, dict[str, Any], Published | None], ...] = (
            ("conv", "SmallConv", {"widths": family.widths}, family.conv),
            ("inv", "SmallInv", layers, family.inv),
            ("inv-params", "MatchedInv", {"widths": family.equal_params}, None),
            ("inv-macs", "MatchedInv", {"widths": family.equal_macs}, None),
        )
        for kind, builder, own, published in rows:
            yield Model(
                f"{data_set}-{kind}", "small", "invbench.models.small", builder, {**own, **images}, f"{data_set}-conv",
                kind != "conv", published, family.images,
            )  # fmt: skip


SUBJECTS: dict[str, Model] = {model.name: model for model in (*_imagenet(), *_small())}

SUITES = {
    "imagenet": "RedNet and ResNet at five depths",
    "small": "the networks of the report that trained both ways, and involutional ones of equal size",
}


def require_model(name: str) -> Model:
    """The row of ``SUBJECTS``; raises InvbenchError with the nearest name if there is none."""
    if name not in SUBJECTS:
        near = difflib.get_close_matches(name, SUBJECTS, n=1, cutoff=0)[0]
        raise InvbenchError(f"model must be one of {', '.join(SUBJECTS)}: got {name!r}; try {near}")
    return SUBJECTS[name]


def create(
    name: str,
    stem_kernel_size: int = 7,
    num_classes: int | None = None,
    backend: str = "auto",
    features_only: bool = False,
    **involution: Any,
) -> nn.Module:
    """A network of ``SUBJECTS`` with random parameters: images [N, 3, H, W] to logits [N, num_classes].

    stem_kernel_size: K of the involution in RedNet's stem. The official figures are for 7, the official code and its
    weights have 3; ResNets have no such layer. num_classes: by default 1000, and 10 of the small networks, which take
    images of their own size. backend: of every involution, as in ``involution2d``. features_only: for detectors, no
    classifier; returns the outputs of the four stages, at strides 4, 8, 16 and 32 (``feature_strides``) with
    ``feature_channels``, as a list.
    involution: for ablations, of the involutions in RedNet's blocks (``kernel_size``) and of all of them (``groups``,
    ``group_channels``, ``reduction``, ``generator``), as ``Involution2d`` takes them.

    Loads state_dicts with the official repository's names (RedNet) or torchvision's (ResNet); without a classifier
    also those of networks that have one. On another device: ``with torch.device("meta"): create(...)``.

    Raises InvbenchError for a name, size or backend that there is not, and for options that the network does not have.
    """
    model = require_model(name)
    classes = model.classes if num_classes is None else num_classes
    require_positive("num_classes", classes)
    require_positive("stem_kernel_size", stem_kernel_size)
    require_choice("backend", backend, ("auto", *BACKENDS))
    unknown = [option for option in involution if option not in ABLATIONS]
    if unknown:
        raise InvbenchError(f"create takes {', '.join(ABLATIONS)} for ablations: got {', '.join(unknown)}; drop it")
    options: dict[str, Any] = {"num_classes": classes}
    if model.has_involution:
        options["backend"] = backend
    if model.suite == "small":
        if involution or features_only:
            given = ", ".join([*involution, *["features_only"] * features_only])
            raise InvbenchError(f"{name} is fixed as it is: got {given}; drop it, or create rednet26")
    elif features_only:
        options["num_classes"] = None
    if model.has_involution and model.suite != "small":
        options |= {"stem_kernel_size": stem_kernel_size, **involution}
    elif involution:
        raise InvbenchError(
            f"{name} has no involution: got {', '.join(involution)}; drop it, or create {name.replace('res', 'red')}"
        )
    return model.build(**options)


ABLATIONS = ("kernel_size", "groups", "group_channels", "reduction", "generator")
