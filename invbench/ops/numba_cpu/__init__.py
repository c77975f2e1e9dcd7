"""Parallel CPU kernels written in Numba: the aggregate, its gradient for x and its gradient for the weight.

    y[n, c, i, j]        = sum over (u, v)              weight[n, g(c), (u, v), i, j] * x[n, c, h, q]
    grad_x[n, c, h, q]   = sum over (u, v, i, j) at h, q  weight[n, g(c), (u, v), i, j] * grad_y[n, c, i, j]
    grad_weight[n, g, (u, v), i, j] = sum over c in group g    grad_y[n, c, i, j] * x[n, c, h, q]
    h = stride*i + dilation*u - padding,  q = stride*j + dilation*v - padding

The first two visit the same triples (position, tap, input pixel) and differ in the side that is summed, so one kernel
does both; ``transposed`` means that the sum is over positions. There are two loop nests:

* *by channels*, where the channels of the source are neighbours in memory and a group has some: one parallel unit is
  one row of the result for up to LANES channels of a group; the inner loop runs over the channels.
* *by columns*, for everything else: one unit is a strip of ROWS rows for up to LANES channels; each source row is
  packed once for the strip, so that the inner loop runs over columns that are neighbours whatever the memory steps.

``grad_weight`` has the second form only: its inner loop runs over columns, so that a sum over channels needs no
reduction across a vector. One unit is a strip of ROWS rows for one group.

Every unit owns what it writes, and sums in an order that the number of threads does not change. Taps outside the image
are left out, so that no NaN or infinity of the weight can reach y from there. float32 and float64 are summed as they
are; float16 and bfloat16 are read and written as bit patterns and summed in float32. Tensors are read and written
where they lie: the scratch of a unit is a few rows of a group, never a copy of x or of the weight.

The kernels use ``numba.get_num_threads()`` threads. Limits: plain loops, which LLVM vectorises at best in runs of
LANES; no fusion with the convolution that generates the weight.
"""

from __future__ import annotations

import numba
from torch import Tensor

from invbench.ops import library
from invbench.ops.library import Window, empty_grad_x, empty_weight, empty_y
from invbench.ops.numba_cpu.kernels import Steps, aggregate_by_channels, aggregate_by_columns, weight_by_columns
from invbench.ops.numba_cpu.running import launch

# Below so many channels a group, the loop over channels is too short to be the inner one.
LEAST_CHANNELS = 16


def unavailable(device: str) -> str | None:
    """Numba's CPU target is the only one here."""
    if numba.config.DISABLE_JIT:
        return "Numba is told not to compile: got NUMBA_DISABLE_JIT=1; unset it"
    return None if device == "cpu" else f"it runs on cpu: got {device}; use backend triton"


class NumbaKernels:
    """The aggregate and its gradients as ``library.Kernels``."""

    def forward(self, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        """y [N, C, H_out, W_out] in x's memory format, from x [N, C, H, W], weight [N, G, K*K, H_out, W_out]."""
        y = empty_y(x, weight)
        _aggregate(x, weight, y, _geometry(x, weight, window), transposed=False)
        return y

    def grad_x(
        self, grad_y: Tensor, weight: Tensor, window: Window, size: tuple[int, int], channels_last: bool
    ) -> Tensor:
        """grad_x [N, C, H, W] with (H, W) = size, contiguous or channels_last, from grad_y [N, C, H_out, W_out]."""
        grad_x = empty_grad_x(grad_y, size, channels_last)
        _aggregate(grad_y, weight, grad_x, _geometry(grad_x, weight, window), transposed=True)
        return grad_x

    def grad_weight(self, grad_y: Tensor, x: Tensor, window: Window, G: int, taps_last: bool) -> Tensor:
        """grad_weight [N, G, K*K, H_out, W_out] as ``empty_weight`` makes it, from grad_y and x [N, C, H, W]."""
        grad_weight = empty_weight(grad_y, G, window.K**2, taps_last)
        launch(weight_by_columns, (grad_y, x, grad_weight), _geometry(x, grad_weight, window))
        return grad_weight


def _geometry(x: Tensor, weight: Tensor, window: Window) -> Steps:
    """N, C, G, H, W, H_out, W_out, K, stride, dilation, padding: what every kernel starts with."""
    N, C, H, W = x.shape
    _, G, _, H_out, W_out = weight.shape
    return N, C, G, H, W, H_out, W_out, window.K, window.stride, window.dilation, window.padding


def _aggregate(source: Tensor, weight: Tensor, result: Tensor, geometry: Steps, transposed: bool) -> None:
    """Fill result from source by the loop nest that suits the source's memory steps."""
    group_channels = source.shape[1] // weight.shape[1]
    by_channels = source.stride(1) == 1 and group_channels >= LEAST_CHANNELS
    kernel = aggregate_by_channels if by_channels else aggregate_by_columns
    launch(kernel, (source, weight, result), geometry, transposed)


aggregate = library.Aggregate("numba", NumbaKernels())
