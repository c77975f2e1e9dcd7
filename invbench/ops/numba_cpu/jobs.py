"""From tensors to a kernel's job: addresses, byte steps, and how the work is cut for threads and caches."""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invbench.ops.library import Window
from invbench.ops.numba_cpu.elements import BFLOAT16, EXACT, FLOAT16
from invbench.ops.numba_cpu.hidden import CHUNK
from invbench.ops.numba_cpu.record import INDEX
from invbench.ops.numba_cpu.simd import VECTOR_BYTES

# The packed image rows of a unit should stay in the second-level cache, with the weight that is made at once beside
# them; and the weight in the first.
IMAGE_BYTES = 256 * 2**10
TILE_POSITIONS = 112
# A given weight of more bytes than this is not in cache, and is worth asking for ahead.
CACHED_BYTES = 8 * 2**20
# Units that there should be for each thread, so that none waits long for the last one.
UNITS_PER_THREAD = 4
# In a backward pass, where the cut may not depend on the threads, lest the sums do: units, blocks of images that have
# sums of their own for the span, and bytes of what a unit packs for all its groups.
BACKWARD_UNITS = 16
PARTS = 8
CHUNK_BYTES = 512 * 2**10
# Less work than so many multiply-adds is done before another thread is awake.
ALONE = 20_000

_ELEMENTS = {torch.float32: EXACT, torch.float64: EXACT, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


class Problem(NamedTuple):
    """x [N, C, H, W], weight [N, G, K*K, H_out, W_out], computed in a type of ``size`` bytes."""

    N: int
    C: int
    G: int
    H: int
    W: int
    H_out: int
    W_out: int
    window: Window
    size: int

    @property
    def vectors(self) -> int:
        """Vectors of a slot: two where a group fills more than one."""
        return 2 if self.C // self.G * self.size > VECTOR_BYTES else 1

    @property
    def slot(self) -> int:
        """Bytes of a slot."""
        return self.vectors * VECTOR_BYTES

    @property
    def blocks(self) -> int:
        """Slots that a group's channels fill."""
        return -(-self.C // self.G * self.size // self.slot)

    @property
    def row_bytes(self) -> int:
        """A row of the packed image, for one block."""
        w = self.window
        columns = w.stride * (self.W_out - 1) + w.dilation * (w.K - 1) + 1
        phases = w.stride if w.dilation == 1 else 1
        return phases * -(-columns // phases) * self.slot

    def columns_bytes(self, strip: int) -> int:
        """The image rows of a strip, packed as columns."""
        w = self.window
        columns = -(-(w.stride * (self.W_out - 1) + w.dilation * (w.K - 1) + 1) // w.stride)
        remainder = (-(-columns * self.size // VECTOR_BYTES) + 1) * VECTOR_BYTES
        return self.image_rows(strip) * (self.C // self.G) * w.stride * remainder

    def image_rows(self, strip: int) -> int:
        """Image rows that the windows of so many output rows meet."""
        w = self.window
        return w.stride * (strip - 1) + w.dilation * (w.K - 1) + 1

    def strip_within(self, size: int) -> int:
        """The most output rows whose packed image takes so many bytes; at least 1."""
        w = self.window
        rows = size // (self.row_bytes * self.blocks)
        return max(1, (rows - w.dilation * (w.K - 1) - 1) // w.stride + 1)


@functools.lru_cache(maxsize=1024)
def forward_plan(problem: Problem, threads: int) -> tuple[int, ...]:
    """The fields of a forward job, but for its tensors."""
    wanted = -(-threads * UNITS_PER_THREAD // max(1, problem.N * problem.G)) if threads > 1 else 1
    strip = min(-(-problem.H_out // wanted), problem.strip_within(IMAGE_BYTES))
    # Below a few rows, a strip mostly copies what its neighbours copy, too.
    strips = -(-problem.H_out // min(problem.H_out, max(strip, 4)))
    return _plan(problem, -(-problem.H_out // strips))


@functools.lru_cache(maxsize=1024)
def backward_plan(problem: Problem, r: int = 0) -> tuple[int, ...]:
    """The fields of a backward job, but for its tensors; its cut does not depend on the number of threads.

    r: the hidden channels where the gradients of a generator are wanted, for which units of more groups and images are
    better: there are fewer partial sums.
    """
    w = problem.window
    by_units = -(-BACKWARD_UNITS // max(1, problem.N * problem.G))
    row_bytes = problem.row_bytes * problem.blocks + problem.columns_bytes(1) // problem.image_rows(1)
    within = max(1, (IMAGE_BYTES // row_bytes - problem.image_rows(1)) // w.stride + 1)
    # A strip may share rows of grad_x with its two neighbours, but with no other.
    least = max(1, -(-(w.dilation * (w.K - 1) + 1) // w.stride) - 1)
    strips = max(1, min(max(by_units, -(-problem.H_out // within)), problem.H_out // least))
    strip = -(-problem.H_out // strips)
    strips = -(-problem.H_out // strip)
    images, chunk = 1, 1
    if r:
        images = max(1, -(-problem.N // PARTS))
        units = max(1, -(-problem.N // images)) * strips
        group_bytes = problem.image_rows(strip) * row_bytes
        chunk = min(max(1, problem.G * units // BACKWARD_UNITS), max(1, CHUNK_BYTES // group_bytes), problem.G)
    fields = list(_plan(problem, strip, VECTOR_BYTES // problem.size))
    parts = {
        "images": images, "chunk": chunk,
        "image_bytes": problem.image_rows(strip) * problem.row_bytes * problem.blocks,
        "columns_bytes": problem.columns_bytes(strip),
    }  # fmt: skip
    for name, value in parts.items():
        fields[INDEX[name]] = value
    positions_bytes = -(-problem.W_out * problem.size // VECTOR_BYTES) * VECTOR_BYTES
    row = _rounded(max(problem.W_out * problem.slot, problem.C // problem.G * positions_bytes))
    tile = fields[INDEX["tile_bytes"]]
    scratch = chunk * (parts["image_bytes"] + parts["columns_bytes"] + tile) + tile + row + _rounded(8 * w.K)
    scratch += fields[INDEX["rows"]] * problem.W_out * matrix_width(r, problem.size) * problem.size
    fields[INDEX["scratch_bytes"]] = _rounded(scratch)
    return tuple(fields)


def _plan(problem: Problem, strip: int, room: int = 0) -> tuple[int, ...]:
    """room: positions for which a tile has room behind the last one."""
    window, taps, size = problem.window, problem.window.K**2, problem.size
    rows = min(strip, max(1, -(-TILE_POSITIONS // problem.W_out)))
    # An odd number of vectors, so that the taps of a position do not all fall into the same set of a cache.
    tile_step = (-(-(rows * problem.W_out + room) * size // VECTOR_BYTES) | 1) * VECTOR_BYTES
    parts = {
        "image_bytes": problem.image_rows(strip) * problem.row_bytes * problem.blocks,
        "tile_bytes": taps * tile_step,
        "row_bytes": _rounded(problem.W_out * problem.slot),
    }
    values = {
        **dict(zip(Problem._fields[:7], problem[:7], strict=True)),
        "K": window.K, "stride": window.stride, "dilation": window.dilation, "padding": window.padding,
        "vectors": problem.vectors, "strip": strip, "rows": rows, "tile_step": tile_step,
        **parts,
        "scratch_bytes": _rounded(sum(parts.values())),
    }  # fmt: skip
    return _fields(values)


def _rounded(size: int) -> int:
    return -(-size // 64) * 64


@functools.lru_cache(maxsize=1024)
def layer_plan(problem: Problem, r: int, threads: int) -> tuple[int, ...]:
    """The fields of a forward job that makes r hidden channels before, but for its tensors."""
    fields = list(forward_plan(problem, threads))
    width = matrix_width(r, problem.size) * problem.size
    fields[INDEX["matrix_row"]] = width
    scratch = CHUNK * (problem.C * problem.size + width)
    fields[INDEX["scratch_bytes"]] = max(fields[INDEX["scratch_bytes"]], _rounded(scratch))
    return tuple(fields)


@functools.lru_cache(maxsize=1024)
def reduce_plan(problem: Problem, r: int) -> tuple[int, ...]:
    """The fields of a job that reduces, or of its backward pass, but for its tensors; K is 1, as for any 1x1 layer."""
    size, positions = problem.size, problem.H_out * problem.W_out
    runs = -(-positions // CHUNK)
    width, back = matrix_width(r, size) * size, matrix_width(problem.C, size) * size
    values = {
        **dict(zip(Problem._fields[:7], problem[:7], strict=True)), "K": 1, "r": r, "matrix_row": width,
        # Of one image so many runs together that about BACKWARD_UNITS sums for the weight are left to be added.
        "chunk": min(runs, max(1, -(-problem.N * runs // BACKWARD_UNITS))),
        "scratch_bytes": _rounded(CHUNK * max(problem.C * size + width, 2 * back)),
    }  # fmt: skip
    return _fields(values)


def matrix_width(r: int, size: int) -> int:
    """Columns of a matrix of whole vectors that has r columns of use."""
    lanes = VECTOR_BYTES // size
    return -(-r // lanes) * lanes


def _fields(values: dict[str, int]) -> tuple[int, ...]:
    fields = [0] * len(INDEX)
    for name, value in values.items():
        fields[INDEX[name]] = value
    return tuple(fields)


class Job:
    """The fields of one call, in the order of ``record.FIELDS``."""

    def __init__(self, plan: tuple[int, ...]) -> None:
        self.fields = list(plan)

    def __getitem__(self, name: str) -> int:
        return self.fields[INDEX[name]]

    def put(self, **tensors: Tensor | None) -> None:
        """Say where tensors lie; None is left out."""
        for name, tensor in tensors.items():
            if tensor is not None:
                start, size = INDEX[name], tensor.element_size()
                steps = [stride * size for stride in tensor.stride()]
                self.fields[start : start + 2 + len(steps)] = [tensor.data_ptr(), _ELEMENTS[tensor.dtype], *steps]

    def put_values(self, **values: int) -> None:
        """Set fields by name."""
        for name, value in values.items():
            self.fields[INDEX[name]] = value

    def threads(self) -> int:
        """On how many threads to run: torch's number, or one for very little work."""
        work = self["N"] * self["C"] * self["H_out"] * self["W_out"] * self["K"] ** 2
        return torch.get_num_threads() if work > ALONE else 1

    def put_scratch(self, threads: int) -> None:
        """Give each thread its scratch."""
        self.put_values(scratch=_reused(self["scratch_bytes"] * threads))


class _Scratch(threading.local):
    """Memory that each Python thread keeps from call to call, since fresh pages cost more than what is done in them."""

    def __init__(self) -> None:
        self.buffer = np.empty(0, np.uint8)
        self.address = 0


_scratch = _Scratch()


def _reused(size: int) -> int:
    """The address of so many bytes, which the next call will use, too."""
    if _scratch.buffer.size < size + 64:
        _scratch.buffer = np.empty(size + 64, np.uint8)
        start = _scratch.buffer.ctypes.data
        _scratch.address = start + -start % 64
    return _scratch.address
