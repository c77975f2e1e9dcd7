"""What a network costs on paper: parameters and multiply-adds by type of module, in two conventions.

The shapes come from a forward pass on the meta device, where nothing is computed. With P = output positions and
P_in = input positions:

    module           macs                                macs_mmcv: macs and besides
    Conv2d           P*C_out*K*K*C_in/groups             P*C_out with a bias
    ConvTranspose2d  P_in*C_in*K*K*C_out/groups          P*C_out with a bias
    Linear           in*out                              out with a bias
    Involution2d     P*C*K*K, and its parts              nothing
    attention        products of pixels, and its parts   P*K*K*(C/16 + 2) differences in PairwiseAttention2d
    BatchNorm2d      0                                   2 * elements of its input
    ReLU             0                                   elements of its input
    pooling          0                                   elements of its input

``macs`` is what papers mean; ``macs_mmcv`` is what mmcv's get_model_complexity_info prints, which the official README
quotes. Sums of two tensors count nothing in either, nor do interpolation, region features, and functions that are no
module: mmcv sees modules of torch's own types alone. ``activations`` are the numbers that come out of the first five
kinds (Radosavovic et al., Designing Network Design Spaces, CVPR 2020, section 3.1, and the linear layers), an
involution's generated weight among them, whether or not a backend ever writes it to memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invbench.attention.axial import AxialAttention1d, keys
from invbench.attention.local import LocalAttention2d
from invbench.attention.local_relation import LocalRelation2d
from invbench.attention.operators import MODULES
from invbench.attention.san import PairwiseAttention2d, PatchwiseAttention2d
from invbench.ops import Involution2d
from invbench.spec import InvbenchError


@dataclass(frozen=True, slots=True)
class Counts:
    """params: all, and those that are trained. macs, macs_mmcv, activations: of the forward pass of one image.

    output: the shape of what an image becomes, without N.
    """

    params: int
    params_trainable: int
    macs: int
    macs_mmcv: int
    activations: int
    output: tuple[int, ...]


def _convolution(layer: nn.Conv2d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = y.numel() * layer.weight[0].numel()
    return macs, macs + (y.numel() if layer.bias is not None else 0)


def _transposed_convolution(layer: nn.ConvTranspose2d, x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = x.numel() * layer.weight[0].numel()  # weight: [C_in, C_out / groups, K, K]
    return macs, macs + (y.numel() if layer.bias is not None else 0)


def _linear(layer: nn.Linear, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = y.numel() * layer.in_features
    biased: object = layer.bias  # torch's stubs know no layer without
    return macs, macs + (y.numel() if biased is not None else 0)


def _involution(layer: Involution2d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = y.numel() * layer.spec.taps  # reduce, norm, activation and span are modules of their own
    return macs, macs


def _aggregation(layer: LocalRelation2d | PatchwiseAttention2d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = y.numel() * layer.spec.taps
    return macs, macs


def _local_attention(layer: LocalAttention2d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = 2 * y.numel() * layer.spec.taps  # q . k, and the sum of values
    return macs, macs


def _pairwise(layer: PairwiseAttention2d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    macs = y.numel() * layer.spec.taps
    return macs, macs + y[:, 0].numel() * layer.spec.taps * (layer.rel + 2)


def _axial(layer: AxialAttention1d, _x: Tensor, y: Tensor) -> tuple[int, int]:
    length = y.shape[2] if layer.axis == "height" else y.shape[3]
    # q . k, q . r and k . r of C/2 channels, and the sums of values and embeddings
    macs = 7 * y.numel() * keys(length, layer.span) // 2
    return macs, macs


def _norm(_layer: nn.Module, x: Tensor, _y: Tensor) -> tuple[int, int]:
    return 0, 2 * x.numel()


def _elementwise(_layer: nn.Module, x: Tensor, _y: Tensor) -> tuple[int, int]:
    return 0, x.numel()


WORK: dict[type[nn.Module], Callable[..., tuple[int, int]]] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _transposed_convolution,
    nn.Linear: _linear,
    Involution2d: _involution,
    LocalAttention2d: _local_attention,
    PairwiseAttention2d: _pairwise,
    PatchwiseAttention2d: _aggregation,
    AxialAttention1d: _axial,
    LocalRelation2d: _aggregation,
    nn.BatchNorm2d: _norm,
    nn.ReLU: _elementwise,
    nn.MaxPool2d: _elementwise,
    nn.AvgPool2d: _elementwise,
    nn.AdaptiveAvgPool2d: _elementwise,
}


ACTIVE = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, Involution2d, *MODULES)


def count(network: nn.Module, H: int, W: int, channels: int = 3) -> Counts:
    """The counts of a network for one image [1, channels, H, W]; modules that ``WORK`` does not know count nothing."""
    parameters = list(network.parameters())
    found: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        found.append((*WORK[type(layer)](layer, inputs[0], y), y.numel() if isinstance(layer, ACTIVE) else 0))

    shadow = copy.deepcopy(network).to("meta").eval()
    for part in shadow.modules():
        if isinstance(part, Involution2d):
            part.backend = "naive"  # any that runs on the meta device
        if type(part) in WORK:
            part.register_forward_hook(note)
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
    with torch.no_grad(), torch.device("meta"):  # also for what a network makes while it runs
        y = shadow(torch.empty(1, channels, H, W, device="meta", dtype=dtype))
    if not isinstance(y, Tensor):
        raise InvbenchError(f"a network returns one tensor: got {type(y).__name__}; return the logits alone")
    macs, macs_mmcv, activations = (sum(numbers) for numbers in zip(*found, strict=True)) if found else (0, 0, 0)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return Counts(sum(p.numel() for p in parameters), trainable, macs, macs_mmcv, activations, tuple(y.shape[1:]))
