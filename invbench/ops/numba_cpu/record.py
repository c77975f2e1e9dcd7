"""The record through which a kernel is told what to do, and how its functions are compiled."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from invbench.ops.numba_cpu.simd import OPTIONS, fetch, fetch_add

# What a kernel is told. Addresses and steps are in bytes; steps are those of [N, C, H, W], for a weight those of
# [N, G, K*K, H_out, W_out]; ``*_element`` says how an element lies in memory. An address of 0 means: not wanted.
TENSORS = {
    "x": ("element", "n", "c", "h", "w"),
    "y": ("element", "n", "c", "h", "w"),  # in a backward pass its gradient, which is read
    "grad_x": ("element", "n", "c", "h", "w"),
    "weight": ("element", "n", "g", "t", "h", "w"),
    "grad_weight": ("element", "n", "g", "t", "h", "w"),
    "pooled": ("element", "n", "c", "h", "w"),  # what is reduced, [N, C, H_out, W_out]
    "grad_pooled": ("element", "n", "c", "h", "w"),
    # Of reduce [r, C] and the batch norm behind it, each [r] but the first; 0 for those that there are not.
    "reduce": ("element", "r", "c"),
    "reduce_bias": ("element", "r"),
    "norm_mean": ("element", "r"),
    "norm_variance": ("element", "r"),
    "norm_scale": ("element", "r"),
    "norm_shift": ("element", "r"),
}
# The steps of a launch that wait for one another. Each has two counters: units that were taken, and units done.
STEPS = ("fold", "reduce", "norm", "unit", "seam", "grad_hidden", "grad_reduce", "total")
FIELDS = (
    # Counters, each an int64 of this record, whose own address follows: the next slot of scratch, and those of steps.
    "next_slot", *(f"{step}_{counter}" for step in STEPS for counter in ("taken", "done")), "address",
    "N", "C", "G", "H", "W", "H_out", "W_out", "K", "stride", "dilation", "padding",
    *(f"{tensor}{field}" for tensor, fields in TENSORS.items() for field in ("", *(f"_{f}" for f in fields))),
    # The generator of the weight, in the type that is computed with: hidden [N, r, positions], span [G*K*K, r] and its
    # bias; and what makes hidden: matrix [C, r] in whole vectors, then a row of biases and one of zeros. In a backward
    # pass, matrix is [r, C].
    "hidden", "hidden_n", "hidden_step", "span", "span_row", "bias", "bias_step", "r",
    "matrix", "matrix_row", "rectifies", "norm_epsilon",  # the bits of a float64
    # Where gradients will be wanted, hidden before its norm: raw [N, r, positions], dense; and the norm's mean and
    # variance [2, r], which are the batch's or given ones.
    "raw", "statistics",
    # What a backward pass through the generator sums, each unit in a part of its own: the gradients of hidden [r,
    # positions] for each chunk of groups, strips apart, and of span [G*K*K, r] and bias for each block of images and
    # strip; and for reduce [r, C] for each of its units. Then the totals: grad_raw is that of raw where there is one,
    # else of hidden, dense; grad_norm [2, r] is that of the norm's scale and shift, then that of reduce's bias.
    "grad_hidden", "grad_hidden_part", "grad_hidden_n", "grad_hidden_step", "grad_hidden_strip",
    "grad_span", "grad_span_part", "grad_span_row", "grad_bias", "grad_bias_part",
    "grad_reduce", "grad_reduce_part", "grad_reduce_row",
    "grad_raw", "grad_norm", "total_span", "total_bias", "total_reduce",
    "zeros",  # an address where there is one
    # How the work is cut: groups of a unit; in a backward pass images of a unit, too, runs of positions of a unit of
    # reduce, and a group's part of the scratch for columns.
    "images", "chunk", "runs", "columns_bytes",
    # And in any pass: vectors of a slot, output rows of a unit, output rows for which the weight is made at
    # once, and the bytes from one tap to the next of that weight; by how many positions a given one is asked for ahead
    # (by columns: by some rows); 0 where it is in cache.
    # by_columns: whether positions are neighbours in a vector, not channels.
    "vectors", "strip", "rows", "tile_step", "ahead", "by_columns",
    # By columns: the columns of one remainder of one channel, with room for the vector that begins with the last; the
    # output positions of a row of one channel, and the zeros that these begin with; and where taps find their columns.
    "remainder_bytes", "positions_bytes", "margin_bytes", "offsets_bytes",
    # The scratch of a thread, and its parts; the sums of rows that two strips share.
    "scratch", "scratch_bytes", "image_bytes", "tile_bytes", "row_bytes", "seams",
)  # fmt: skip
INDEX = {name: index for index, name in enumerate(FIELDS)}
COUNTERS = INDEX["address"]
NEXT_SLOT = 8 * INDEX["next_slot"]  # bytes from the beginning of the record
FOLD, REDUCE, NORM, UNIT, SEAM, GRAD_HIDDEN, GRAD_REDUCE, TOTAL = (8 * INDEX[f"{step}_taken"] for step in STEPS)
JOB = np.dtype([(name, np.int64) for name in FIELDS])
SIGNATURE = types.void(types.CPointer(numba.from_dtype(JOB)))

inlined = numba.njit(forceinline=True, **OPTIONS)
compiled = numba.njit(**OPTIONS)


@inlined
def take(job: Any, step: int) -> int:
    """The next unit of a step, which no other thread takes."""
    return fetch_add(job.address + step, 1)


@inlined
def take_next(job: Any, step: int) -> int:
    """As ``take``, after a unit that is done."""
    fetch_add(job.address + step + 8, 1)
    return take(job, step)


@compiled
def wait(job: Any, step: int, units: int) -> None:
    """Wait until so many units of a step are done, which other threads may be at; then all that they wrote is there."""
    while fetch(job.address + step + 8) < units:
        pass
