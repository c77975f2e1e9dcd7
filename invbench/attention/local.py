"""Stand-alone self-attention: each pixel attends to its window (Ramachandran et al., NeurIPS 2019, section 3.1).

    y[n, c, i, j] = sum over t of  softmax over t of (q[o] . (k[o + t] + r[t])) * v[n, c, o + t]    in each of G heads
    r[(u, v)] = (rows[:, u], columns[:, v])

q, k and v are 1x1 convolutions without bias; the relative embeddings r are shared by heads, half of a head's channels
for rows, half for columns. The products are not scaled. Where x is extended by zeros, so are its keys and values: they
take part in the softmax with q . r, as a convolution's padding takes part in its sum. The paper does not say; its
public implementations do so.

With P output positions and I = N*H*W input positions:

    params    3*C*C + (C/G)*K
    macs      P*C*C (q) + 2*I*C*C (k, v) + 2*P*C*K*K

The products with r count nothing: r is thought to be added to the keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from invbench.attention.window import extended, like, products, taps, weighted_sum
from invbench.spec import InvbenchError, LayerSpec

fx.wrap("local_attention")  # its shapes are not for torch.fx to know


class LocalAttention2d(nn.Module):
    """x [N, C, H, W] to y [N, C, ceil(H / stride), ceil(W / stride)], C = channels, in the memory format of x.

    kernel_size: K, odd. heads: G, divide C; each has an even number of channels. stride, dilation: of the window.
    padding_mode: zeros, reflect, replicate or circular, of the keys and values.

    Raises InvbenchError for sizes below 1, an even kernel_size, and heads that C has none of or that are of odd size.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        heads: int = 8,
        stride: int = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.spec = LayerSpec(channels, kernel_size, heads, stride, dilation, padding_mode=padding_mode)
        reason = refusal(self.spec)
        if reason:
            raise InvbenchError(reason)
        self.query = nn.Conv2d(channels, channels, 1, stride, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        half = self.spec.group_channels // 2
        self.rows = nn.Parameter(torch.randn(half, kernel_size) * self.spec.group_channels**-0.5)
        self.columns = nn.Parameter(torch.randn(half, kernel_size) * self.spec.group_channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W]."""
        return local_attention(self.query(x), self.key(x), self.value(x), self.rows, self.columns, self.spec)

    def extra_repr(self) -> str:
        """The spec, for print(layer)."""
        s = self.spec
        return f"{s.C}, kernel_size={s.K}, heads={s.G}, stride={s.stride}, dilation={s.dilation}, {s.padding_mode}"


def refusal(spec: LayerSpec) -> str | None:
    """Why there is no such attention, and the remedy, or None."""
    if spec.group_channels % 2:
        return (
            "local attention gives half of a head's channels to rows, half to columns: got "
            f"C/G={spec.C}/{spec.G}={spec.group_channels}; choose G so that C/G is even"
        )
    return None


def relative_products(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """q . r, whose two halves are summed for each tap: each [N, G, K, H_out, W_out].

    q: [N, G, C/G, H_out, W_out]. rows, columns: [C/G/2, K].
    """
    q_rows, q_columns = q.chunk(2, 2)
    return tuple(torch.einsum("ngdij,dk->ngkij", q, r) for q, r in ((q_rows, rows), (q_columns, columns)))  # type: ignore[return-value]


def local_attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, spec: LayerSpec) -> Tensor:
    """y [N, C, H_out, W_out] from q of the same shape, k and v [N, C, H, W], and the embeddings [C/G/2, K]."""
    heads = (spec.G, spec.group_channels)
    size = (q.shape[2], q.shape[3])
    queries = q.contiguous().unflatten(1, heads)  # [N, G, C/G, H_out, W_out]
    scores = products(queries, taps(extended(k, spec).unflatten(1, heads), spec, size))
    by_row, by_column = relative_products(queries, rows, columns)
    window = scores.unflatten(2, (spec.K, spec.K)) + by_row.unsqueeze(3) + by_column.unsqueeze(2)
    seen = taps(extended(v, spec).unflatten(1, heads), spec, size)
    y = weighted_sum(seen, window.flatten(2, 3).softmax(2))
    return like(y.flatten(1, 2), v, v.dtype)
