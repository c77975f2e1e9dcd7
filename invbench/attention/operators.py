"""The table of attention operators: how each is built for a ``LayerSpec``, and where it has no meaning.

C, K and G are those of the involution that it stands beside: G is the number of heads of local and axial attention, and
of weights that SAN's and LR-Net's channels share. ``reduction`` means nothing to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from invbench.attention import axial, local, san
from invbench.attention.flex import FlexLocalAttention2d, flex_refusal
from invbench.attention.local_relation import LocalRelation2d
from invbench.spec import InvbenchError, LayerSpec

__all__ = ["MODULES", "OPERATORS", "Operator", "flex_refusal"]

# What computes attention in one piece; AxialAttention2d is two of them.
MODULES = (
    local.LocalAttention2d,
    san.PairwiseAttention2d,
    san.PatchwiseAttention2d,
    axial.AxialAttention1d,
    LocalRelation2d,
)

Builder = Callable[[LayerSpec], nn.Module]


@dataclass(frozen=True, slots=True)
class Operator:
    """A row: backends, by name, from a layer to a module [N, C, H, W] -> [N, C, H_out, W_out]; refuses: which layers it
    has no meaning for, and why."""

    name: str
    backends: Mapping[str, Builder]
    refuses: Callable[[LayerSpec], str | None]

    def refusal(self, layer: LayerSpec, H: int, W: int) -> str | None:
        """Why there is no such operator for a layer on [N, C, H, W], with the remedy, or None."""
        try:
            layer.check_size(H, W)
        except InvbenchError as error:
            return str(error)
        return self.refuses(layer)


def _local(s: LayerSpec) -> nn.Module:
    return local.LocalAttention2d(s.C, s.K, s.G, s.stride, s.dilation, s.padding_mode)


def _flex(s: LayerSpec) -> nn.Module:
    return FlexLocalAttention2d(s.C, s.K, s.G, s.stride, s.dilation, s.padding_mode)


def _pairwise(s: LayerSpec) -> nn.Module:
    return san.PairwiseAttention2d(s.C, s.K, s.C, s.group_channels, s.stride, s.dilation, s.padding_mode)


def _patchwise(s: LayerSpec) -> nn.Module:
    return san.PatchwiseAttention2d(s.C, s.K, s.C, s.group_channels, s.stride, s.dilation, s.padding_mode)


def _axial(s: LayerSpec) -> nn.Module:
    """With a column, then a row, of K positions, so that it sees K x K pixels as the others do."""
    return axial.AxialAttention2d(s.C, s.G, s.K // 2 + 1, s.stride)


def _local_relation(s: LayerSpec) -> nn.Module:
    return LocalRelation2d(s.C, s.K, s.group_channels, s.stride, s.dilation, s.padding_mode)


def _san_refuses(s: LayerSpec) -> str | None:
    return san.refusal(s.C)


def _axial_refuses(s: LayerSpec) -> str | None:
    if s.K == 1:
        return "axial attention to one pixel normalises what is the same everywhere: got K=1; use K=3 or more"
    if s.dilation != 1:
        return f"axial attention sees every position of a line: got dilation={s.dilation}; use dilation 1"
    if s.padding_mode != "zeros":
        return (
            f"axial attention sees nothing outside the image: got padding_mode {s.padding_mode!r}; use padding_mode "
            "'zeros'"
        )
    return axial.refusal(s.C, s.G)


def _nothing(_s: LayerSpec) -> str | None:
    return None


OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        Operator("local-attention", {"torch": _local, "flex": _flex}, local.refusal),
        Operator("san-pairwise", {"torch": _pairwise}, _san_refuses),
        Operator("san-patchwise", {"torch": _patchwise}, _san_refuses),
        Operator("axial-attention", {"torch": _axial}, _axial_refuses),
        Operator("local-relation", {"torch": _local_relation}, _nothing),
    )
}
