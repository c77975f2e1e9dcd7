"""Stand-alone self-attention by torch's flex_attention: the same sums and parameters, scores never in memory.

A query attends to keys of the extended image, numbered row by row. The window is a block mask: blocks of keys that no
query of a block sees are skipped. Relative embeddings are a score modification, which adds q . rows[u] and
q . columns[v], computed before.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, fx

from invbench.attention.local import LocalAttention2d, refusal, relative_products
from invbench.attention.window import extended, like
from invbench.spec import LayerSpec

DEVICES = ("cuda", "xpu")
DTYPES = ("float32", "float16", "bfloat16")
BLOCK = 128  # positions in a block of the mask, torch's own choice
LEAST_HEAD = 16  # what a GPU's matrix units take

fx.wrap("flex_local_attention")


class FlexLocalAttention2d(LocalAttention2d):
    """``LocalAttention2d`` in another order of computation: same arguments, parameters and result.

    Compiled on GPUs. Elsewhere torch computes it unfused, which is right and slow; ``flex_refusal`` says so before.
    """

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W]."""
        return flex_local_attention(self.query(x), self.key(x), self.value(x), self.rows, self.columns, self.spec)


def flex_refusal(device_type: str, dtype: str, layer: LayerSpec) -> str | None:
    """Why flex_attention does not compute a layer's local attention on this type of device, and the remedy, or None."""
    reason = _unavailable() or refusal(layer)
    if reason:
        return reason
    if device_type not in DEVICES:
        return f"flex_attention is fused on {' and '.join(DEVICES)} only: got {device_type}; use backend torch"
    if not getattr(torch, device_type).is_available():
        return f"flex_attention needs a device: torch finds no {device_type}; use backend torch"
    if dtype not in DTYPES:
        return f"flex_attention computes {', '.join(DTYPES)}: got {dtype}; use backend torch"
    if layer.group_channels < LEAST_HEAD:
        return (
            f"flex_attention takes {LEAST_HEAD} channels a head at least: got C/G={layer.group_channels}; "
            "use fewer heads, or backend torch"
        )
    return None


@cache
def _unavailable() -> str | None:
    try:
        from torch.nn.attention.flex_attention import BlockMask
    except ImportError:
        return f"torch {torch.__version__} has no flex_attention; install torch 2.7 or newer, or use backend torch"
    if "seq_lengths" not in inspect.signature(BlockMask.from_kv_blocks).parameters:
        return (
            f"flex_attention of torch {torch.__version__} has no block masks of any size; install torch 2.7 or newer, "
            "or use backend torch"
        )
    return None


def flex_local_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, C, H_out, W_out] from q of the same shape, k and v [N, C, H, W], and the embeddings [C/G/2, K]."""
    heads = (spec.G, spec.group_channels)
    H_out, W_out = q.shape[2], q.shape[3]
    by_row, by_column = (
        part.flatten(3).transpose(2, 3).contiguous()  # [N, G, P, K]
        for part in relative_products(q.unflatten(1, heads), rows, columns)
    )
    key_image = extended(k, spec)
    width = key_image.shape[3]
    stride, dilation, last = spec.stride, spec.dilation, spec.K - 1

    def with_embeddings(score: Tensor, n: Tensor, g: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, column = _offsets(query, key, stride, W_out, width)
        # What is outside the window is masked, but is still an index.
        u, v = (row // dilation).clamp(0, last), (column // dilation).clamp(0, last)
        return score + by_row[n, g, query, u] + by_column[n, g, query, v]

    queries, key_line, values = (
        image.flatten(2).unflatten(1, heads).transpose(2, 3)  # [N, G, positions, C/G]
        for image in (q, key_image, extended(v, spec))
    )
    mask = _window_mask(spec, (H_out, W_out), (key_image.shape[2], width), q.device)
    attend = _function(q.device.type, (spec, q.shape, k.shape, q.dtype, v.dtype, q.device))
    y = attend(queries, key_line, values, score_mod=with_embeddings, block_mask=mask, scale=1.0)
    return like(y.transpose(2, 3).flatten(1, 2).unflatten(2, (H_out, W_out)), v, v.dtype)


def _offsets(query: Tensor, key: Tensor, stride: int, W_out: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns from the window's first tap to a key, dilation * (u, v) where it is in the window."""
    return key // width - stride * (query // W_out), key % width - stride * (query % W_out)


def _window_mask(spec: LayerSpec, size: tuple[int, int], extended_size: tuple[int, int], device: torch.device) -> Any:
    """Which keys are in the window, by blocks, without asking for each pair of a query and a key."""
    from torch.nn.attention.flex_attention import BlockMask

    (H_out, W_out), (height, width) = size, extended_size
    stride, dilation, reach = spec.stride, spec.dilation, spec.dilation * (spec.K - 1)

    def in_window(_n: Tensor, _g: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row, column = _offsets(query, key, stride, W_out, width)
        inside = (row >= 0) & (row <= reach) & (column >= 0) & (column <= reach)
        return inside & (row % dilation == 0) & (column % dilation == 0)

    # The first tap of a query comes later with each query, and so does the last one: a block of queries sees no key
    # before the first tap of its first query, nor behind the last tap of its last one.
    P, Q = H_out * W_out, height * width
    first = torch.arange(0, P, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp(max=P - 1)
    from_block = stride * (first // W_out * width + first % W_out) // BLOCK
    to_block = (stride * (last // W_out * width + last % W_out) + reach * (width + 1)) // BLOCK
    count = to_block - from_block + 1
    key_blocks = torch.arange(-(-Q // BLOCK), device=device)
    indices = (from_block.unsqueeze(1) + key_blocks).clamp(max=len(key_blocks) - 1)  # those behind count are not read
    return BlockMask.from_kv_blocks(
        count.to(torch.int32)[None, None],
        indices.to(torch.int32)[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=in_window,
        seq_lengths=(P, Q),
    )


def _function(device_type: str, problem: Hashable) -> Callable[..., Tensor]:
    """flex_attention for a problem, what its code depends on: compiled where that fuses it."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type not in DEVICES or torch.compiler.is_compiling():
        return cast(Callable[..., Tensor], flex_attention)
    return _compiled(problem)


@cache
def _compiled(_problem: Hashable) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def call(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        return cast(Tensor, flex_attention(q, k, v, **how))

    # A code object of its own for each problem: torch.compile gives up on one that it has compiled too often.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
