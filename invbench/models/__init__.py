"""Whole networks: RedNet (Li et al., CVPR 2021, table 1) and the ResNet it is made from, detectors and segmenters on
both, the self-attention networks that it is compared with, and the small networks of a report that trained both ways.

``SUBJECTS`` is the one place that knows them. Neither it nor this module needs torch: a network is built by
``create``, which imports what it needs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invbench.models import figures
from invbench.models.figures import Published
from invbench.ops import BACKENDS
from invbench.spec import InvbenchError, require_choice, require_positive

if TYPE_CHECKING:
    from torch import nn

# Blocks of the four stages; 26 and 38 are the paper's, the others He et al., CVPR 2016, table 1.
DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True, slots=True)
class Images:
    """What a network takes: images of so many channels, of sizes from ``least`` to ``most`` pixels a side.

    usual: height and width that its published counts are of, and the default. coarsest: the stride of its smallest
    map whose norms see the batch in a training step, which needs more than one position there; None where there is no
    such thing. batch: the least number of images in a training step.
    """

    channels: int = 3
    usual: tuple[int, int] = (224, 224)
    least: int = 1
    most: int | None = None
    coarsest: int | None = 32
    batch: int = 1

    @property
    def side(self) -> int | None:
        """Height and width, where it takes no others."""
        return self.least if self.least == self.most else None

    def takes(self, H: int, W: int) -> bool:
        """Whether images of this size are among them."""
        return self.least <= min(H, W) and (self.most is None or max(H, W) <= self.most)

    @property
    def range(self) -> str:
        """The sizes in words."""
        if self.side is not None:
            return f"{self.side}x{self.side} only"
        limits = [f"at least {self.least}"] * (self.least > 1)
        limits += [f"at most {self.most}"] if self.most is not None else []
        return f"{' and '.join(limits) or 'any number of'} pixels a side"


@dataclass(frozen=True, slots=True)
class Model:
    """One network: the module and class that build it, with which arguments, and what it is compared with.

    suite: the group that it is compared in, a row of ``SUITES``. counterpart: the name of the network with
    convolutions that it is measured against; its own where it is one. has_involution: whether ``backend``,
    ``stem_kernel_size`` and the like mean anything to it. classes: of the data set that it is for. is_compiled: whether
    it is measured as deployed, too: folded and compiled as one graph.
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
    classes: int = 1000
    is_compiled: bool = True

    def build(self, **options: Any) -> nn.Module:
        """A new network with random parameters; options as its class takes them."""
        builder = getattr(importlib.import_module(self.module), self.builder)
        network: nn.Module = builder(**self.arguments, **options)
        return network


def _imagenet() -> Iterator[Model]:
    for family, builder, published in (("rednet", "RedNet", figures.REDNETS), ("resnet", "ResNet", figures.RESNETS)):
        for depth, blocks in DEPTHS.items():
            yield Model(
                f"{family}{depth}", "imagenet", f"invbench.models.{family}", builder, {"blocks": blocks},
                f"resnet{depth}", family == "rednet", published[depth],
            )  # fmt: skip


def _only(channels: int, side: int) -> Images:
    return Images(channels, (side, side), side, side, coarsest=None)


@dataclass(frozen=True, slots=True)
class _SmallFamily:
    """The report's two networks for one data set, and the widths with which an involutional one matches the first."""

    images: Images
    widths: tuple[int, ...]
    equal_params: tuple[int, ...]
    equal_macs: tuple[int, ...]


# The widths of matched networks are multiples of 8, a group's channels, found by trying all up to 256: of those within
# 0.6 % of the convolutional network's parameters or multiply-adds, the ones shaped most like it. A test counts them.
_SMALL = {
    "mnist": _SmallFamily(_only(1, 28), (32, 64), (16, 64), (40, 80)),
    "fashion-mnist": _SmallFamily(_only(1, 28), (32, 64, 64), (64, 120, 72), (56, 112, 112)),
    "cifar10": _SmallFamily(_only(3, 32), (32, 64, 64), (56, 96, 72), (64, 112, 96)),
}


def _small() -> Iterator[Model]:
    for data_set, family in _SMALL.items():
        images = {"channels": family.images.channels, "side": family.images.side, "shallow": len(family.widths) == 2}
        layers = {"layers": len(family.widths)}
        rows: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("conv", "SmallConv", {"widths": family.widths}),
            ("inv", "SmallInv", layers),
            ("inv-params", "MatchedInv", {"widths": family.equal_params}),
            ("inv-macs", "MatchedInv", {"widths": family.equal_macs}),
        )
        for kind, builder, own in rows:
            name = f"{data_set}-{kind}"
            yield Model(
                name, "small", "invbench.models.small", builder, {**own, **images}, f"{data_set}-conv",
                kind != "conv", figures.SMALL.get(name), family.images, 10,
            )  # fmt: skip


# What comes behind the backbone of each detector with involution, by the end of its name: what is an involution there.
_PARTS: dict[str, dict[str, bool]] = {
    "": {},
    "_inv_neck": {"inv_neck": True},
    "_inv_neck_head": {"inv_neck": True, "inv_head": True},
}


def _detection() -> Iterator[Model]:
    """Detectors as in the official repository: what is involution grows from the backbone to the neck and the heads."""
    for family, builder, arguments, ends in (
        ("faster_rcnn", "RCNN", {"masks": False}, tuple(_PARTS)),
        ("mask_rcnn", "RCNN", {"masks": True}, tuple(_PARTS)),
        ("retinanet", "RetinaNet", {}, ("", "_inv_neck")),
    ):
        for backbone, end in (("resnet50", ""), *(("rednet50", end) for end in ends)):
            # Norms of the backbone are frozen as they are; an involution's own in the neck and the heads are not.
            coarsest = {"": None, "_inv_neck": 32, "_inv_neck_head": 64}[end]
            name = f"{family}_{backbone}{end}"
            yield Model(
                name, "detection", "invbench.models.detection", builder,
                {"backbone": backbone, **arguments, **_PARTS[end]}, f"{family}_resnet50", backbone == "rednet50",
                figures.DETECTORS[name], Images(usual=(800, 1280), coarsest=coarsest), 80, is_compiled=False,
            )  # fmt: skip


def _segmentation() -> Iterator[Model]:
    for family, builder, batch, ends in (
        ("fpn", "SegmentationFPN", 1, ("", "_inv_neck")),
        ("upernet", "UPerNet", 2, ("",)),
    ):
        for backbone, end in (("resnet50", ""), *(("rednet50", end) for end in ends)):
            name = f"{family}_{backbone}{end}"
            yield Model(
                name, "segmentation", "invbench.models.segmentation", builder,
                {"backbone": backbone, **_PARTS[end]}, f"{family}_resnet50", backbone == "rednet50",
                figures.SEGMENTERS[name], Images(usual=(1024, 2048), batch=batch), 19, is_compiled=False,
            )  # fmt: skip


def _attention() -> Iterator[Model]:
    """The self-attention networks that the paper compares involution with, and the ResNet of the same size."""
    module = "invbench.models.attending"
    rows: list[tuple[str, str, dict[str, Any], int, Images]] = []
    for depth, blocks, residual in ((10, (2, 1, 2, 4, 1), 26), (15, (3, 2, 3, 5, 2), 38), (19, (3, 3, 4, 6, 3), 50)):
        for kind in ("pairwise", "patchwise"):
            own = {"blocks": blocks, "kind": kind}
            rows.append((f"san{depth}_{kind}", "SAN", own, residual, Images(least=128)))
    rows += [(f"stand_alone{n}", "StandAlone", {"blocks": DEPTHS[n]}, n, Images()) for n in (26, 38, 50)]
    for depth, stages in ((26, (2, 2, 2, 2)), (50, DEPTHS[50]), (101, DEPTHS[101])):
        rows.append((f"lrnet{depth}", "LRNet", {"blocks": stages}, depth, Images()))
    for name, depth, width in (("26s", 26, 0.5), ("50s", 50, 0.5), ("50m", 50, 0.75), ("50l", 50, 1.0)):
        sizes = {"blocks": DEPTHS[depth], "width": width}
        rows.append((f"axial{name}", "AxialResNet", sizes, depth, Images(most=224)))
    for name, builder, arguments, depth, images in rows:
        yield Model(
            name, "attention", module, builder, arguments, f"resnet{depth}", False, figures.ATTENTION.get(name), images
        )


SUBJECTS: dict[str, Model] = {
    model.name: model for model in (*_imagenet(), *_small(), *_detection(), *_segmentation(), *_attention())
}

SUITES = {
    "imagenet": "RedNet and ResNet at five depths",
    "small": "the networks of the report that trained both ways, and involutional ones of equal size",
    "detection": "Faster R-CNN, Mask R-CNN and RetinaNet, with involution in the backbone, the neck and the heads",
    "segmentation": "FPN and UPerNet",
    "attention": "RedNet and the self-attention networks that it was compared with: SAN, stand-alone, LR-Net and Axial",
}
# What a suite compares besides its own networks: involution, at the depths that the others have.
BESIDE = {"attention": ("rednet26", "rednet38", "rednet50", "rednet101")}


def of_suite(suite: str) -> tuple[str, ...]:
    """The networks that a row of ``SUITES`` compares, by name."""
    return (*BESIDE.get(suite, ()), *(name for name, model in SUBJECTS.items() if model.suite == suite))


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

    Segmenters give logits of every pixel's class, detectors all that their heads say, in one row an image.

    stem_kernel_size: K of the involution in RedNet's stem. The official figures are for 7, the official code and its
    weights have 3; ResNets have no such layer. num_classes: by default that of the data set: 1000, 10 of the small
    networks, which take images of their own size, 80 of detectors (COCO), 19 of segmenters (Cityscapes). backend: of
    every involution, as in ``involution2d``. features_only: no classifier; returns the outputs of the four stages, at
    strides 4, 8, 16 and 32 (``feature_strides``) with ``feature_channels``, as a list. involution: for
    ablations, of the involutions in RedNet's blocks (``kernel_size``) and of all of them (``groups``,
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
    if model.suite != "imagenet":
        if involution or features_only:
            given = ", ".join([*involution, *["features_only"] * features_only])
            raise InvbenchError(f"{name} is fixed as it is: got {given}; drop it, or create rednet26")
    elif involution and not model.has_involution:
        raise InvbenchError(
            f"{name} has no involution: got {', '.join(involution)}; drop it, or create {name.replace('res', 'red')}"
        )
    elif features_only:
        options["num_classes"] = None
    if model.has_involution and model.suite != "small":
        options |= {"stem_kernel_size": stem_kernel_size, **involution}
    return model.build(**options)


ABLATIONS = ("kernel_size", "groups", "group_channels", "reduction", "generator")
