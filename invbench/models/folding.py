"""Batch norm folded away for inference: what a deployed network runs.

In eval mode a batch norm is one scale and one shift a channel, which the convolution before it can have in its own
weight and bias (Jacob et al., CVPR 2018, section 3.2). An involution's weight is generated from the image, so the norm
behind one has nowhere to go: it stays.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from invbench.ops import Involution2d
from invbench.spec import InvbenchError


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy of an eval network with each batch norm folded into the convolution before it, equal up to rounding.

    Also the norm inside each Involution2d, into its ``reduce``. Norms that are gone are nn.Identity, so that the
    structure stays; state_dicts of the original no longer load.

    Raises InvbenchError for a network in train mode, where a norm depends on the batch, or one whose forward pass
    torch.fx cannot trace, so that nothing says which norm follows which convolution.
    """
    if any(part.training for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        raise InvbenchError("batch norm can be folded in eval mode only: got a network in train mode; call eval()")
    folded = copy.deepcopy(network)
    for before, norm in list(_pairs(folded)):
        _fold(folded, before, norm)
    for layer in folded.modules():
        if isinstance(layer, Involution2d) and isinstance(layer.reduce, nn.Conv2d):
            _fold(layer, "reduce", "norm")
    return folded


def _fold(network: nn.Module, before: str, norm_name: str) -> None:
    """Fold a norm into the part before it, by their names, where that part can take it."""
    part, norm = network.get_submodule(before), network.get_submodule(norm_name)
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return
    if isinstance(part, nn.Conv2d):
        _replace(network, before, fuse_conv_bn_eval(part, norm))
    else:
        # An Involution2d: its output is the place for the scale and shift, once a backend can apply them on the way.
        return
    _replace(network, norm_name, nn.Identity())


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, part)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Involution2d) or super().is_leaf_module(m, module_qualified_name)


def _pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of each convolution or involution whose output goes into one batch norm and nowhere else."""
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise InvbenchError(
            f"batch norm cannot be folded: torch.fx cannot trace {type(network).__name__} "
            f"({type(error).__name__}: {next(iter(str(error).splitlines()), '')}); measure it as built"
        ) from error
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        shared = any(calls[name] > 1 for name in names)
        part, norm = (network.get_submodule(name) for name in names)
        if not shared and isinstance(part, nn.Conv2d | Involution2d) and isinstance(norm, nn.BatchNorm2d):
            yield names
