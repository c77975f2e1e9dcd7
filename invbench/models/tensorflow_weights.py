"""TensorFlow's names, layouts and batch norms, made ours; what ``tensorflow`` does before it reorders channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invbench.models.rednet import OFFICIAL_PREFIXES
from invbench.ops.layer import OFFICIAL_NAMES
from invbench.spec import InvbenchError

# From names to values: NumPy arrays, tensors, or anything that NumPy can read, such as a Keras variable.
Weights = Mapping[str, Any]

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# What an involution's parts may be called, without the dots of the state_dict.
_PARTS = {official[:-1]: own[:-1] for official, own in OFFICIAL_NAMES.items()}
_PARTS |= {own: own for own in _PARTS.values()}
# The last word of a convolution's name, and that of the batch norm behind it, in RedNet and in Involution2d.
_NORM_BEHIND = {"conv": "bn", "conv1": "bn1", "conv3": "bn3", "0": "1", "reduce": "norm"}


# --- Names ---


def read_weights(weights: Weights) -> dict[str, Tensor]:
    """Copies of the values, still in their layout, under names by "." that end as PyTorch's do."""
    tensors = {name: _tensor(name, value) for name, value in weights.items()}
    return renamed(tensors, {name: _torch_name(name) for name in tensors})


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    try:
        return torch.from_numpy(np.array(value, order="C"))
    except (TypeError, ValueError) as error:
        raise InvbenchError(
            f"weights must be arrays of numbers that PyTorch knows: got {name} as {type(value).__name__} "
            f"({next(iter(str(error).splitlines()), '')}); convert it by np.asarray(value, dtype=np.float32)"
        ) from error


def _torch_name(name: str) -> str:
    part, dot, leaf = name.replace("/", ".").removesuffix(":0").rpartition(".")
    return part + dot + _LEAVES.get(leaf, leaf)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under other names; raises InvbenchError where two get the same."""
    result: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        name = names[old]
        if name in result:
            raise InvbenchError(f"each weight must be there once: got {name} twice, also as {old}; leave one out")
        result[name] = tensor
    return result


def involution_names(names: Collection[str]) -> dict[str, str]:
    """From the names of one involution's weights, of which ``read_weights`` made the ends ours, to all ours.

    Parts with names of their own are known by what they have and, where both have a kernel, by their order.
    """
    part_of = {name: name.rpartition(".")[0] for name in names}
    leaf_of = {name: name.rpartition(".")[2] for name in names}
    parts = list(dict.fromkeys(part_of.values()))
    roles = {part: own for part in parts for known, own in _PARTS.items() if f".{part}".endswith(f".{known}")}
    if len(roles) < len(parts):
        norms = [part_of[name] for name in names if leaf_of[name] == "running_mean"]
        kernels = [part_of[name] for name in names if leaf_of[name] == "weight" and part_of[name] not in norms]
        if (len(kernels), len(norms), len(parts)) != (2, 1, 3):
            raise InvbenchError(
                f"an involution has 2 kernels and 1 moving mean in 3 parts: got {len(kernels)}, {len(norms)} and "
                f"{len(parts)} ({_few(parts)}); give the weights of one layer, or call its parts reduce, norm and span"
            )
        roles = dict(zip((*kernels, *norms), ("reduce", "span", "norm"), strict=True))
    return {name: f"{roles[part_of[name]]}.{leaf_of[name]}" for name in names}


def rednet_name(name: str, involutions: Iterable[str]) -> str:
    """Our name for a weight of a RedNet, from ours or the official one; involutions are known by their names."""
    for official, own in OFFICIAL_PREFIXES.items():
        if name.startswith(official):
            name = own + name.removeprefix(official)
    for layer in involutions:
        for official, own in OFFICIAL_NAMES.items():
            if name.startswith(f"{layer}.{official}"):
                return f"{layer}.{own}" + name.removeprefix(f"{layer}.{official}")
    return name


# --- Values ---


def adopt(found: dict[str, Tensor], target: nn.Module, epsilon: float) -> dict[str, Tensor]:
    """The target's state_dict, but for the order of channels.

    found: TensorFlow's values under the target's names, and perhaps biases of convolutions that have none here, each
        in front of a batch norm. Such a bias is taken off the norm's mean.
    epsilon: that of TensorFlow's norms. By what it exceeds that of the norms here, their variances grow.

    Raises InvbenchError for names that are missing or unknown, shapes that do not fit, and an epsilon below ours.
    """
    norms = {name: part for name, part in target.named_modules() if isinstance(part, nn.BatchNorm2d)}
    for norm in norms.values():
        if not epsilon >= norm.eps:  # also NaN
            raise InvbenchError(
                f"epsilon must be at least {norm.eps}, that of the norms here: got epsilon={epsilon}; "
                "pass that of the Keras batch norms, 1e-3 unless they say otherwise"
            )
    expected = target.state_dict()
    mean_of = {  # from a bias without a place of its own to the mean that takes it
        f"{name}.bias": f"{_norm_behind(name)}.running_mean"
        for name, part in target.named_modules()
        if isinstance(part, nn.Conv2d) and part.bias is None
    }
    scales = {f"{name}.weight" for name in norms}
    required = [name for name in expected if name not in scales and not name.endswith((".bias", "num_batches_tracked"))]
    _check_names(found, required, {*expected, *mean_of})
    for name, tensor in found.items():
        _check_shape(name, tensor, expected[mean_of.get(name, name)].shape)

    kernel = found[required[0]]
    state = {}
    for name, own in expected.items():
        if name in found:
            state[name] = found[name].permute(_torch_axes(own.ndim)).contiguous()
        else:
            dtype = kernel.dtype if own.is_floating_point() else own.dtype  # num_batches_tracked is a whole number
            state[name] = kernel.new_full(own.shape, int(name in scales), dtype=dtype)
    for bias, mean in mean_of.items():
        if bias in found:
            state[mean] = state[mean] - found[bias]
    for name, norm in norms.items():
        state[f"{name}.running_var"] = state[f"{name}.running_var"] + (epsilon - norm.eps)
    return state


def _norm_behind(convolution: str) -> str:
    part, dot, leaf = convolution.rpartition(".")
    return part + dot + _NORM_BEHIND[leaf]


def _torch_axes(ndim: int) -> tuple[int, ...]:
    """[out, in, rows, columns] from [rows, columns, in, out], [out, in] from [in, out]; a vector stays."""
    return {4: (3, 2, 0, 1), 2: (1, 0)}.get(ndim, tuple(range(ndim)))


def _check_names(found: Collection[str], required: Collection[str], known: Collection[str]) -> None:
    missing = [name for name in required if name not in found]
    if missing:
        raise InvbenchError(
            f"weights lack {_few(missing)}: got {len(found)} names ({_few(found)}); "
            "add what is missing, under our state_dict's names or the official ones"
        )
    unknown = [name for name in found if name not in known]
    if unknown:
        raise InvbenchError(
            f"weights must be those of the target, which has no {_few(unknown)}; "
            "leave it out, or make the target as deep and with the same options"
        )


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    # From ours to TensorFlow's layout, the inverse of _torch_axes.
    expected = [shape[2], shape[3], shape[1], shape[0]] if len(shape) == 4 else list(reversed(shape))
    if list(tensor.shape) != expected:
        layout = {4: "[rows, columns, in, out]", 2: "[in, out]"}.get(len(shape), "one number a channel")
        raise InvbenchError(
            f"{name} must be {expected}, in TensorFlow's layout {layout}: got {list(tensor.shape)}; "
            "check G, K and the classes of the target, and leave values as TensorFlow has them"
        )


def _few(names: Collection[str]) -> str:
    """The first names, and how many there are besides."""
    first = list(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
