"""What others say of networks: counts, accuracies and times as published, each with its source. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

REPORT = "Table 1 of Salem et al., Involution: Inverting the Inference of Convolution for Visual Recognition"
README = "README of the official repository d-li14/involution"
FIGURES = "figures of the official repository d-li14/involution, read off to +-0.1"


@dataclass(frozen=True, slots=True)
class Published:
    """What others say of a network: top-1 in percent, params, and macs: plain ones, or as mmcv counts them.

    scores: other accuracies by name, in percent ("box AP"). data_set: what the accuracies are on. size: height and
    width of the images that the macs are of; stem: K of the involution in the stem there. notes: where a figure is not
    what it seems, why. elsewhere: another top-1 that somebody else gives, by who it is. train_seconds: of the whole
    training, by type of device. None where it is not told. The source is part of the figure.
    """

    source: str
    top1: float | None = None
    params: int | None = None
    macs_mmcv: int | None = None
    macs: int | None = None
    data_set: str = "ImageNet"
    scores: Mapping[str, float] | None = None
    size: tuple[int, int] = (224, 224)
    stem: int = 7
    notes: tuple[str, ...] = ()
    elsewhere: Mapping[str, float] | None = None
    train_seconds: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object ``published`` of a row, as JSON gives it back."""
        return {**asdict(self), "size": list(self.size), "notes": list(self.notes)}


_readme = partial(Published, README)
_figure = partial(Published, FIGURES)
M, G = 1_000_000, 1_000_000_000

REDNETS = {
    26: _readme(75.96, 9_230_000, 1_730_000_000),
    38: _readme(77.48, 12_390_000, 2_220_000_000),
    50: _readme(78.35, 15_540_000, 2_710_000_000),
    101: _readme(78.92, 25_650_000, 4_740_000_000),
    152: _readme(79.12, 33_990_000, 6_790_000_000),
}
RESNETS = {26: _figure(73.6), 38: _figure(76.0), 50: _figure(76.8), 101: _figure(78.5), 152: _figure(79.3)}


def _report(data_set: str, top1: float, params: int, gpu: float, cpu: float) -> Published:
    side = 32 if data_set == "CIFAR-10" else 28
    seconds = {"gpu": gpu, "cpu": cpu}
    return Published(REPORT, top1, params, data_set=data_set, size=(side, side), train_seconds=seconds)


SMALL = {
    "mnist-conv": _report("MNIST", 98.97, 34_826, 65.26, 502.75),
    "mnist-inv": _report("MNIST", 88.82, 544, 73.35, 323.23),
    "fashion-mnist-conv": _report("Fashion-MNIST", 91.91, 257_162, 86.23, 982.03),
    "fashion-mnist-inv": _report("Fashion-MNIST", 82.34, 3_916, 479.08, 621.97),
    "cifar10-conv": _report("CIFAR-10", 64.78, 319_178, 142.44, 1077.86),
    "cifar10-inv": _report("CIFAR-10", 31.10, 13_074, 203.27, 922.53),
}

_STEM_3 = "the published table counts this row with a 3x3 stem, others of it with a 7x7 one"
_MASK_HEAD = "the published macs leave out the mask head's deconvolution and logits (6.75 G)"


def _detector(macs: float, box: float, mask: float | None = None, stem: int = 7, *notes: str) -> Published:
    scores = {"box AP": box} | ({} if mask is None else {"mask AP": mask})
    return Published(
        README, macs_mmcv=round(macs * G), data_set="COCO", scores=scores, size=(800, 1280), stem=stem, notes=notes
    )


DETECTORS = {
    "faster_rcnn_resnet50": _detector(207.07, 37.7),
    "faster_rcnn_rednet50": _detector(177.9, 39.5, None, 3, _STEM_3),
    "faster_rcnn_rednet50_inv_neck": _detector(135.0, 40.2),
    "faster_rcnn_rednet50_inv_neck_head": _detector(91.5, 39.2),
    "mask_rcnn_resnet50": _detector(253.4, 38.4, 35.1, 7, _MASK_HEAD),
    "mask_rcnn_rednet50": _detector(224.2, 39.9, 35.7, 3, _STEM_3, _MASK_HEAD),
    "mask_rcnn_rednet50_inv_neck": _detector(181.3, 40.8, 36.4, 7, _MASK_HEAD),
    "mask_rcnn_rednet50_inv_neck_head": _detector(104.6, 39.6, 35.1),
    "retinanet_resnet50": _detector(239.3, 36.6),
    "retinanet_rednet50": _detector(210.1, 38.2, None, 3, _STEM_3),
    "retinanet_rednet50_inv_neck": _detector(199.9, 38.2),
}


def _segmenter(params: float, macs: float, miou: float) -> Published:
    return Published(
        README, params=round(params * M), macs_mmcv=round(macs * G), data_set="Cityscapes", scores={"mIoU": miou},
        size=(1024, 2048), stem=3,
    )  # fmt: skip


SEGMENTERS = {
    "fpn_resnet50": _segmenter(28.50, 362.8, 74.4),
    "fpn_rednet50": _segmenter(18.46, 293.9, 78.0),
    "fpn_rednet50_inv_neck": _segmenter(16.37, 205.2, 79.1),
    "upernet_resnet50": _segmenter(66.42, 1894, 78.2),
    "upernet_rednet50": _segmenter(56.38, 1825.6, 80.6),
}


def _san(top1: float, own: float) -> Published:
    return _figure(top1, elsewhere={"SAN's own repository": own})


ATTENTION = {
    "san10_pairwise": _san(75.5, 74.9),
    "san15_pairwise": _san(77.1, 76.6),
    "san19_pairwise": _san(77.4, 76.9),
    "san10_patchwise": _san(77.1, 77.1),
    "san15_patchwise": _san(78.2, 78.0),
    "san19_patchwise": _san(78.5, 78.2),
    "stand_alone26": _figure(75.8),
    "stand_alone38": _figure(77.1),
    "stand_alone50": _figure(77.4, macs=3_500_000_000),
    "lrnet26": _figure(75.7, 14_700_000, 2_600_000_000),
    "lrnet50": _figure(77.3, 23_300_000, 4_300_000_000),
    "lrnet101": _figure(78.5, 42_000_000, 8_000_000_000),
    "axial50s": _figure(77.5, macs=2_800_000_000),
    "axial50m": _figure(78.6, macs=5_700_000_000),
    "axial50l": _figure(79.0, macs=9_600_000_000),
}
