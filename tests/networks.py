"""Made-up documents of whole networks, measured and trained, for the tests of telling."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from test_results import document, samples

from invbench.results import Result, ResultSet
from invbench.results.quantities import Breakdown, Memory, Samples, Training
from invbench.spec import FREE, Mode, NetworkCase, Regime, TrainingCase
from invbench.verdict.networks import with_network_ratios

README, FIGURES = "README of the official repository d-li14/involution", "figures of it, read off to +-0.1"
REPORT = "Table 1 of Salem et al., Involution: Inverting the Inference of Convolution for Visual Recognition"
# Params, macs and top-1 of an involutional and a convolutional network, by depth.
DEPTHS = {
    26: (9_233_000, 1_710_000_000, 75.96, 13_697_000, 2_360_000_000, 73.6),
    50: (15_541_000, 2_690_000_000, 78.35, 25_557_000, 4_120_000_000, 76.8),
    101: (25_653_000, 4_719_000_000, 78.92, 44_549_000, 7_850_000_000, 78.5),
}


def folded(text: str) -> bool:
    """Whether a cell of a terminal's tables goes on in a second line, where the name is blank; headings may."""
    body = blank = False
    for line in text.splitlines():
        if "───" in line:
            body = True
        elif (line and not line.startswith(" ")) or (blank and not line):
            body = False
        elif body and line.startswith(" " * 10):
            return True
        blank = not line
    return False


def rounds(median: float) -> Samples:
    """Six rounds around a median."""
    return samples(*(median * (1 + 0.01 * step) for step in (-2, -1, 0, 0, 1, 2)))


def imagenet(
    N: Sequence[int] = (1,), sides: Sequence[int] = (224,), modes: Sequence[Mode] = (Mode.FORWARD,),
    depths: Sequence[int] = tuple(DEPTHS), regimes: Sequence[Regime] = tuple(Regime), static: bool = False,
    **fields: Any,
) -> ResultSet:  # fmt: skip
    """RedNets against ResNets at every combination."""
    found: list[Result] = []
    for images, side, mode in itertools.product(N, sides, modes):
        case = NetworkCase(images, side, side, mode=mode, threads=2)
        rows = []
        for depth in depths:
            rows += [row for regime in regimes for row in _of_depth(depth, case, regime)]
        if static:
            kept = [row for row in rows if row.regime is regimes[0] and row.backend != FREE]
            rows = [replace(row, latency=None, memory=None, regime=None) for row in kept]
        found += with_network_ratios(rows)
    return document(
        *found, command="invbench compare-models", baseline=None, **{"peaks": None, "settings": {"seed": 0}, **fields}
    )


def _of_depth(depth: int, case: NetworkCase, regime: Regime) -> list[Result]:
    inv_params, inv_macs, inv_top1, conv_params, conv_macs, conv_top1 = DEPTHS[depth]
    scale = (case.H / 224) ** 2
    train = case.mode is Mode.TRAIN
    rows = []
    for subject, backend, params, macs, speed, top1, source in (
        (f"rednet{depth}", "numba", inv_params, inv_macs, 4e-11, inv_top1, README),
        (f"rednet{depth}", FREE, inv_params - 500_000, int(inv_macs * 0.9), 3e-11, None, None),
        (f"resnet{depth}", "torch", conv_params, conv_macs, 3e-11, conv_top1, FIGURES),
    ):
        whole = source == README
        said = top1 and {
            "source": source, "top1": top1, "params": params // 10_000 * 10_000 if whole else None,
            "macs_mmcv": macs if whole else None, "data_set": "ImageNet", "train_seconds": None,
        }  # fmt: skip
        counts = {"macs": int(macs * scale), "macs_mmcv": int(macs * 1.01 * scale), "params": params}
        slower = (1.0 if regime is Regime.EAGER else 0.8) * (3.3 if train else 1)
        peak = int(case.N * scale * (90e6 if train else 20e6) * depth**0.4)
        rows.append(Result(
            subject, backend, case, latency=rounds(speed * macs * scale * case.N**0.9 * slower), regime=regime,
            baseline=f"resnet{depth}", flop=counts["macs"] * case.mode.flop_per_mac, params_trainable=params,
            memory=Memory(peak, "vmhwm", peak * 3 // 4 if train else None), published=said or None,
            activations=int(11e6 * scale * depth**0.5), **counts,
        ))  # fmt: skip
    return rows


def detection(static: bool = False, stem: int = 7, size: tuple[int, int] = (800, 1280)) -> ResultSet:
    """Detectors with and without involution, as built only: what is published of them, and where their time goes."""
    case = NetworkCase(1, *size, stem_kernel_size=stem, threads=2)
    mixed = "the table counts this row with another stem"
    rows = []
    for family, inv_macs, conv_macs, mask in (("faster_rcnn", 178, 207, None), ("mask_rcnn", 231, 260, 35.1)):
        notes = ["the macs leave out the mask head's logits"] if mask else []
        for subject, backend, macs, params in (
            (f"{family}_rednet50", "numba", inv_macs, 31_740_000),
            (f"{family}_rednet50", FREE, inv_macs - 9, 31_000_000),
            (f"{family}_resnet50", "torch", conv_macs, 41_750_000),
        ):  # fmt: skip
            scores = {"box AP": 39.5 if backend == "numba" else 37.7} | ({"mask AP": mask} if mask else {})
            own = [*notes, *([mixed] if backend == "numba" else [])]
            said = {
                "source": README, "top1": None, "params": None, "macs_mmcv": macs * 10**9, "macs": None,
                "data_set": "COCO", "scores": scores,
                "size": [800, 1280], "stem": 3 if backend == "numba" else 7, "notes": own, "elsewhere": None,
                "train_seconds": None,
            }  # fmt: skip
            seconds = macs * 2.2e-2
            parts = {"1x1 convolutions": 0.2 * seconds, "other convolutions": 0.6 * seconds}
            places = {"backbone": 0.3 * seconds, "neck": 0.25 * seconds, "RPN head": 0.4 * seconds}
            rows.append(Result(
                subject, backend, case, latency=None if static else rounds(seconds), baseline=f"{family}_resnet50",
                regime=None if static else Regime.EAGER, params=params, params_trainable=params - 10**5,
                macs=macs * 10**9, macs_mmcv=macs * 10**9 + 4 * 10**8, flop=2 * macs * 10**9, activations=3 * 10**8,
                published=None if backend == FREE else said,
                memory=None if static else Memory(10**9, "vmhwm"),
                breakdown=None if static else Breakdown(1.02 * seconds, parts, "a profiler", places),
            ))  # fmt: skip
    kept = [row for row in rows if not static or row.backend != FREE]
    return document(
        *with_network_ratios(kept), command="invbench compare-models --suite detection", baseline=None, peaks=None
    )


def attention() -> ResultSet:
    """Self-attention beside RedNets of the same size."""
    case = NetworkCase(1, 224, 224, threads=2)
    rows = []
    for subject, backend, seconds, base, top1, elsewhere in (
        ("rednet26", "numba", 0.05, "resnet26", 75.96, None), ("rednet50", "numba", 0.08, "resnet50", 78.35, None),
        ("san10_pairwise", "torch", 0.40, "resnet26", 75.5, 74.9),
        ("san19_pairwise", "torch", 0.70, "resnet50", 77.4, 76.9),
        ("axial26s", "torch", 0.09, "resnet26", None, None), ("axial50s", "torch", 0.20, "resnet50", 77.5, None),
        ("resnet26", "torch", 0.04, "resnet26", 73.6, None), ("resnet50", "torch", 0.07, "resnet50", 76.8, None),
    ):  # fmt: skip
        said = top1 and {
            "source": FIGURES, "top1": top1, "params": None, "macs_mmcv": None, "data_set": "ImageNet", "scores": None,
            "macs": 2_800_000_000 if subject == "axial50s" else None, "size": [224, 224], "stem": 7, "notes": [],
            "elsewhere": elsewhere and {"somebody": elsewhere},
        }  # fmt: skip
        rows += [
            Result(
                subject, backend, case, latency=rounds(seconds * scale), baseline=base, regime=regime, params=10**7,
                params_trainable=10**7, macs=int(3e10 * seconds), macs_mmcv=int(3.1e10 * seconds),
                flop=int(6e10 * seconds), published=said or None,
            )
            for regime, scale in ((Regime.EAGER, 1.0), (Regime.COMPILED, 0.8))
        ]  # fmt: skip
    return document(
        *with_network_ratios(rows), command="invbench compare-models --suite attention", baseline=None, peaks=None
    )


# Trained networks: params, macs, last accuracy, seconds a step, the pair, top-1 and params published, its seconds.
SMALL = {
    "conv": (34_826, 4_500_000, 97.1, 0.0200, "report,params,macs", (98.97, 34_826, 65.26, 502.75)),
    "inv": (544, 60_000, 87.2, 0.0039, "report", (88.82, 544, 73.35, 323.23)),
    "inv-params": (34_780, 9_100_000, 96.2, 0.0310, "params", None),
    "inv-macs": (21_000, 4_490_000, 95.8, 0.0201, "macs", None),
}
NAMES = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
TITLE = "scikit-learn's handwritten digits, upscaled to 28x28: not MNIST"


def small(data_sets: Sequence[str] = tuple(NAMES), N: int = 128) -> ResultSet:
    """The same networks measured: those of each data set beside their convolution, which only two have figures for."""
    found: list[Result] = []
    for number, data_set in enumerate(data_sets):
        case = NetworkCase(N, 32 if data_set == "cifar10" else 28, 32 if data_set == "cifar10" else 28, threads=2)
        rows = []
        for kind, (params, macs, _, step, _, told) in SMALL.items():
            counts = {"params": params, "params_trainable": params, "macs": macs * 4**number}
            rows.append(Result(
                f"{data_set}-{kind}", "torch" if kind == "conv" else "numba", case, latency=rounds(step * 3**number),
                regime=Regime.EAGER, baseline=f"{data_set}-conv", published=_said(data_set, told), flop=2 * macs,
                memory=Memory(10**7, "vmhwm"), **counts,
            ))  # fmt: skip
        found += with_network_ratios(rows)
    return document(*found, command="invbench compare-models --suite small", baseline=None, peaks=None)


def _said(data_set: str, told: tuple[float, int, float, float] | None) -> dict[str, Any] | None:
    if told is None:
        return None
    seconds = {"gpu": told[2], "cpu": told[3]}
    return {
        "source": REPORT, "top1": told[0], "params": told[1], "macs_mmcv": None, "data_set": NAMES[data_set],
        "train_seconds": seconds,
    }  # fmt: skip


def trained(
    data_set: str = "digits", networks: str = "mnist", seeds: int = 5, epochs: int = 15, done: int | None = None,
    **fields: Any,
) -> ResultSet:  # fmt: skip
    """The report's two networks and the matched ones; done: epochs until an interrupt, of the last seed if others."""
    case = TrainingCase(data_set, 128, 28, 28, epochs, threads=2)
    rows = []
    for n, (kind, (params, macs, last, step, pair, told)) in enumerate(SMALL.items()):
        curves = [_curve(last, seed + n, epochs) for seed in range(seeds)]
        losses = [_loss(seed + 5 * n, epochs) for seed in range(seeds)]
        if done is not None:
            curves[-1], losses[-1] = curves[-1][:done], losses[-1][:done]
        ended = seeds - (done is not None)
        training = Training(tuple(curves), tuple(losses), tuple(step * 12 * epochs for _ in range(ended)), epochs)
        rows.append(Result(
            f"{networks}-{kind}", "torch" if kind == "conv" else "numba", case, latency=rounds(step),
            memory=Memory(int(3e7 + params * 900), "vmhwm", None), params=params, params_trainable=params, macs=macs,
            flop=6 * macs, baseline=f"{networks}-conv", training=training, pair=pair,
            published=_said(networks, told),
        ))  # fmt: skip
    settings = {"data_set_title": TITLE} if data_set == "digits" else {"data_set_title": f"{data_set} as published"}
    return document(
        *with_network_ratios(rows), command=f"invbench train --data-set {data_set}", baseline=None, settings=settings,
        **{"peaks": None, **fields},
    )  # fmt: skip


def _loss(seed: int, epochs: int) -> tuple[float, ...]:
    return tuple(2.3 * 0.8**epoch * (1 + 0.04 * seed) + 0.02 * seed for epoch in range(epochs))


def _curve(last: float, seed: int, epochs: int) -> tuple[float, ...]:
    return tuple(last * (1 - 0.6 * 0.7 ** (epoch + 1)) + 0.4 * ((seed * 7 + epoch) % 5 - 2) for epoch in range(epochs))
