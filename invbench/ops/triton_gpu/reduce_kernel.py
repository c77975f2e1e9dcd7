"""Hidden channels for inference: ``reduce``, its folded norm and its activation as one product.

    hidden[n, k, i, j] = activation((sum over c  reduce[k, c] * image[n, c, i, j] + bias[k] - mean[k])
                                    * scale[k] / sqrt(variance[k] + epsilon) + shift[k])

A program computes BLOCK positions, counted through the whole batch, for all hidden channels. Products are in 16 bits
with sums in float32; what the norm does to a sum is computed in float32, where nothing overflows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from invbench.ops.fused import Reducer
from invbench.ops.triton_gpu.aggregate_kernels import SIZES, offsets_of, positions_of
from invbench.ops.triton_gpu.band import product
from invbench.ops.triton_gpu.launching import INT32_MAX, INTERPRETED, Launch

BLOCK = 64  # positions of a program
BLOCK_C = 64  # channels that it sums over at a time


@triton.jit
def _channelwise(ptr, k, r: tl.constexpr):
    """A number for each hidden channel k [1, R], in float32."""
    return tl.load(ptr + k, mask=k < r, other=0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    image_ptr,  # [N, C, H, W]
    reduce_ptr,  # [r, C], dense
    bias_ptr, mean_ptr, variance_ptr, scale_ptr, shift_ptr,  # [r] each, or None: bias, or the other four
    hidden_ptr,  # [N, r, H, W]
    N, H, W, epsilon,
    image_stride_n, image_stride_c, image_stride_h, image_stride_w,
    hidden_stride_n, hidden_stride_c, hidden_stride_h, hidden_stride_w,
    C: tl.constexpr, r: tl.constexpr, R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    RECTIFIES: tl.constexpr, INDEX: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Write hidden."""
    DTYPE: tl.constexpr = image_ptr.dtype.element_ty
    n, i, j = positions_of(tl.program_id(0), H, W, BLOCK_P, INDEX)
    is_position = (n < N)[:, None]
    offsets = offsets_of(n, i, j, image_stride_n, image_stride_h, image_stride_w, BLOCK_P, False)
    k = tl.arange(0, R)[None, :]
    hidden = tl.zeros([BLOCK_P, R], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        image_ptrs = image_ptr + offsets[:, None] + c[None, :].to(tl.int64) * image_stride_c
        image = tl.load(image_ptrs, mask=is_position & (c < C)[None, :], other=0)
        reduce = tl.load(reduce_ptr + k * C + c[:, None], mask=(k < r) & (c < C)[:, None], other=0)
        hidden = product(image, reduce.to(DTYPE), hidden, EXACT)
    if bias_ptr is not None:
        hidden += _channelwise(bias_ptr, k, r)
    if scale_ptr is not None:
        factor = _channelwise(scale_ptr, k, r) / tl.sqrt(_channelwise(variance_ptr, k, r) + epsilon)
        hidden = (hidden - _channelwise(mean_ptr, k, r)) * factor + _channelwise(shift_ptr, k, r)
    if RECTIFIES:  # and NaN stays NaN
        hidden = tl.where(hidden < 0, 0.0, hidden)
    hidden_ptrs = hidden_ptr + k.to(tl.int64) * hidden_stride_c
    hidden_ptrs += offsets_of(n, i, j, hidden_stride_n, hidden_stride_h, hidden_stride_w, BLOCK_P, False)[:, None]
    tl.store(hidden_ptrs, hidden.to(hidden_ptr.dtype.element_ty), mask=is_position & (k < r))


def reduce_launch(image: Tensor, reducer: Reducer, hidden: Tensor) -> Launch:
    """Write hidden [N, r, H, W] from an image [N, C, H, W]; a norm has its statistics."""
    (N, C, H, W), r = image.shape, hidden.shape[1]
    mean, variance, scale, shift, epsilon = reducer.norm or (None, None, None, None, 0.0)
    parts = [None if part is None else part.contiguous() for part in (reducer.bias, mean, variance, scale, shift)]
    return Launch(
        kernel=reduce_kernel,
        programs=triton.cdiv(N * H * W, BLOCK),
        arguments=(
            image, reducer.weight.contiguous(), *parts, hidden, N, H, W, epsilon, *image.stride(), *hidden.stride(),
        ),
        constants={
            "C": C, "r": r, "R": max(16, triton.next_power_of_2(r)), "BLOCK_P": BLOCK, "BLOCK_C": BLOCK_C,
            "RECTIFIES": reducer.rectifies, "INDEX": tl.int32 if H * W + BLOCK <= INT32_MAX else tl.int64,
            "EXACT": INTERPRETED,
        },
        num_warps=4,
    )  # fmt: skip


def empty_hidden(image: Tensor, r: int) -> Tensor:
    """An uninitialised [N, r, H, W] for an image [N, C, H, W]: with neighbouring channels, as the span is summed."""
    N, _, H, W = image.shape
    return image.new_empty((N, H, W, r)).permute(0, 3, 1, 2)
