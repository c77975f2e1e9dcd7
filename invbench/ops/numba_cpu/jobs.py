"""From tensors to a kernel's job: addresses, byte steps, and how the work is cut for threads and caches."""

from __future__ import annotations

import functools
import threading
from array import array
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invbench.ops.numba_cpu.elements import BFLOAT16, EXACT, FLOAT16
from invbench.ops.numba_cpu.hidden import CHUNK
from invbench.ops.numba_cpu.problem import Problem, matrix_width, whole_vectors
from invbench.ops.numba_cpu.record import INDEX
from invbench.ops.numba_cpu.simd import VECTOR_BYTES

# The packed image rows of a unit should stay in the second-level cache, those of one group and of several; and the
# weight that is made at once in the first.
IMAGE_BYTES, IMAGES_BYTES = 144 * 2**10, 640 * 2**10
TILE_POSITIONS = 112
# A given weight of more bytes than this is not in a core's own caches, or in none, and is worth asking for ahead.
OWN_CACHE_BYTES, CACHES_BYTES = 512 * 2**10, 8 * 2**20
# Units that there should be for each thread, so that none waits long for the last one.
UNITS_PER_THREAD = 4
# In a backward pass, where the cut may not depend on the threads, lest the sums do: units, blocks of images that have
# sums of their own for the span, and bytes of what a unit packs for one group and for all its groups.
BACKWARD_UNITS = 16
UNITS_OF_GROUPS = 64  # where only longer pieces of memory speak for fewer
PARTS = 8
GROUP_BYTES, CHUNK_BYTES = 256 * 2**10, 512 * 2**10
# Less work than so many multiply-adds is done before another thread is awake.
ALONE = 20_000

_ELEMENTS = {torch.float32: EXACT, torch.float64: EXACT, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


class Plan(NamedTuple):
    """All of a job but its tensors: int64 fields, and memory that it needs while it runs, which ``places`` (fields,
    offsets) lie in."""

    fields: array[int]
    places: tuple[tuple[int, int], ...] = ()
    size: int = 0


def _plan(values: Mapping[str, int], workspace: Mapping[str, int] | None = None) -> Plan:
    """values: fields by name. workspace: bytes by the name of the field that says where they lie."""
    fields, places, size = array("q", [0] * len(INDEX)), [], 0
    for name, value in values.items():
        fields[INDEX[name]] = value
    for name, needed in (workspace or {}).items():
        places.append((INDEX[name], size))
        size += rounded(needed)
    return Plan(fields, tuple(places), size)


def rounded(size: int) -> int:
    """Bytes up to a whole cache line."""
    return -(-size // 64) * 64


@functools.lru_cache(maxsize=1024)
def forward_plan(problem: Problem, threads: int, r: int = 0) -> Plan:
    """Of a forward pass; of a whole layer, if r hidden channels are to be made."""
    wanted = threads * UNITS_PER_THREAD if threads > 1 else 1
    # Of twice the groups that fill a vector, a longer piece of a given weight is read at once.
    most = min(problem.G, 2 * problem.together) if problem.by_columns else 1
    strips = -(-wanted // max(1, problem.N * -(-problem.G // most)))
    within = problem.strip_within(IMAGES_BYTES // most if problem.by_columns else IMAGE_BYTES)
    # Below a few rows, a strip mostly copies what its neighbours copy, too.
    strip = max(min(-(-problem.H_out // strips), within), min(4, problem.H_out))
    strips = -(-problem.H_out // strip)
    values = _cut(problem, -(-problem.H_out // strips))
    if not problem.by_columns:
        # Groups are neighbours in memory: a unit of several reads and writes longer pieces of it.
        most = min(problem.N * strips * problem.G // wanted, IMAGES_BYTES // values["image_bytes"], problem.G)
    chunk = -(-problem.G // -(-problem.G // max(1, most)))
    row, tile = values["row_bytes"], values["tile_bytes"]
    if problem.by_columns:
        tile *= chunk  # some are turned together; scratch that is not used takes no memory
        row = values["rows"] * chunk * (problem.C // problem.G) * problem.positions_bytes
    values |= {"chunk": chunk, "row_bytes": row, "tile_bytes": tile}
    values["scratch_bytes"] = rounded(chunk * values["image_bytes"] + tile + row)
    if not r:
        return _plan(values)
    row = matrix_width(r, problem.size) * problem.size
    scratch = max(values["scratch_bytes"], rounded(CHUNK * (problem.C * problem.size + row)))
    values |= {"matrix_row": row, "scratch_bytes": scratch, **_hidden_steps(problem, r)}
    return _plan(values, {"hidden": _hidden_bytes(problem, r), "matrix": (problem.C + 2) * row})


@functools.lru_cache(maxsize=1024)
def backward_plan(
    problem: Problem, *, wants_x: bool = True, taps_last: bool = False, r: int = 0, is_layer: bool = False
) -> Plan:
    """Of a backward pass, whose cut does not depend on the number of threads.

    wants_x: whether the gradient of x is wanted. taps_last: whether groups are neighbours in the weight that is read or
    in its gradient, of which units of more groups read and write longer pieces. r: the hidden channels where the
    gradients of a generator are wanted, for which units of more groups and images are better: there are fewer partial
    sums. is_layer: whether those of what makes hidden are wanted, too.
    """
    w, size = problem.window, problem.size
    by_units = -(-BACKWARD_UNITS // max(1, problem.N * problem.G))
    row_bytes = problem.row_bytes * problem.blocks + problem.columns_bytes(1) // problem.image_rows(1)
    within = max(1, (GROUP_BYTES // row_bytes - problem.image_rows(1)) // w.stride + 1)
    # A strip may share rows of grad_x with its two neighbours, but with no other.
    least = max(1, -(-(w.dilation * (w.K - 1) + 1) // w.stride) - 1)
    strips = max(1, min(max(by_units, -(-problem.H_out // within)), problem.H_out // least))
    if problem.by_columns:
        strips = 1
    strip = -(-problem.H_out // strips)
    strips = -(-problem.H_out // strip)
    images = chunk = 1
    if problem.by_columns:
        chunk = max(1, min(problem.together, problem.N * problem.G // BACKWARD_UNITS))
    if r:
        images = max(1, -(-problem.N // PARTS))
    if r or (taps_last and not problem.by_columns):
        units = -(-problem.N // images) * strips
        group_bytes = problem.image_rows(strip) * row_bytes
        most = problem.G * units // (BACKWARD_UNITS if r else UNITS_OF_GROUPS)
        most = max(chunk, min(most, CHUNK_BYTES // group_bytes, problem.G))
        chunk = -(-problem.G // -(-problem.G // most))
    values = _cut(problem, strip)
    values |= {"images": images, "chunk": chunk, "columns_bytes": problem.columns_bytes(strip)}
    tile, positions = values["tile_bytes"], problem.positions_bytes
    scratch = chunk * (values["image_bytes"] + values["columns_bytes"] + 2 * tile) + values["row_bytes"]
    scratch += values["offsets_bytes"] + values["rows"] * chunk * (problem.C // problem.G) * positions
    scratch += values["rows"] * problem.W_out * matrix_width(r, size) * size
    if problem.by_columns:
        scratch += w.K**2 * positions
    values["scratch_bytes"] = rounded(scratch)
    shared = max(0, w.dilation * (w.K - 1) - w.stride + 1)
    workspace = {}
    if wants_x and strips > 1:
        workspace["seams"] = problem.N * problem.G * (strips - 1) * problem.blocks * 2 * shared * problem.row_bytes
    if r:
        _sum_apart(problem, r, values, workspace)
    if is_layer:
        _reduce_apart(problem, r, values, workspace)
    return _plan(values, workspace)


def _sum_apart(problem: Problem, r: int, values: dict[str, int], workspace: dict[str, int]) -> None:
    """Add where the units of a backward pass sum the gradients of hidden, of the span and of its bias, each apart."""
    strip, size, taps = values["strip"], problem.size, problem.G * problem.window.K**2
    strips, parts = -(-problem.H_out // strip), -(-problem.N // values["images"])
    # Each strip with room for the vector that begins with its last position.
    room = (strip * problem.W_out + VECTOR_BYTES // size) * size
    row = matrix_width(r, size) * size
    values |= {
        "grad_hidden_strip": room, "grad_hidden_step": strips * room, "grad_hidden_n": r * strips * room,
        "grad_hidden_part": problem.N * r * strips * room,
        "grad_span_row": row, "grad_span_part": taps * row, "grad_bias_part": taps * size,
    }  # fmt: skip
    workspace |= {
        "grad_hidden": -(-problem.G // values["chunk"]) * values["grad_hidden_part"],
        "grad_span": parts * strips * taps * row, "grad_bias": parts * strips * taps * size,
    }  # fmt: skip


def _reduce_apart(problem: Problem, r: int, values: dict[str, int], workspace: dict[str, int]) -> None:
    """Add where hidden and the gradient of raw lie, and where the sums for reduce are made."""
    positions = problem.H_out * problem.W_out
    runs = -(-positions // CHUNK)
    # Of one image so many runs together that about BACKWARD_UNITS sums for reduce are left to be added.
    together = min(runs, max(1, -(-problem.N * runs // BACKWARD_UNITS)))
    row = matrix_width(problem.C, problem.size) * problem.size
    values |= {
        "runs": together, "matrix_row": row, "grad_reduce_row": row, "grad_reduce_part": r * row,
        "scratch_bytes": max(values["scratch_bytes"], rounded(2 * CHUNK * row)), **_hidden_steps(problem, r),
    }  # fmt: skip
    workspace |= {
        "hidden": _hidden_bytes(problem, r), "grad_raw": problem.N * r * positions * problem.size,
        "grad_reduce": problem.N * -(-runs // together) * r * row,
    }  # fmt: skip


def _hidden_steps(problem: Problem, r: int) -> dict[str, int]:
    # Rows of positions with room for the vector that begins with the last one.
    step = (problem.H_out * problem.W_out + VECTOR_BYTES // problem.size) * problem.size
    return {"hidden_step": step, "hidden_n": r * step}


def _hidden_bytes(problem: Problem, r: int) -> int:
    return problem.N * _hidden_steps(problem, r)["hidden_n"]


def _cut(problem: Problem, strip: int) -> dict[str, int]:
    """Fields of a pass over strips of so many rows."""
    window, taps, size = problem.window, problem.window.K**2, problem.size
    rows = min(strip, max(1, -(-TILE_POSITIONS // problem.W_out)))
    # With room for the vector that begins with the last position, and an odd number of vectors, so that the taps of a
    # position do not all fall into the same set of a cache.
    tile_step = whole_vectors(rows * problem.W_out * size + VECTOR_BYTES) | VECTOR_BYTES
    image = problem.image_rows(strip) * problem.row_bytes * problem.blocks
    return {
        **dict(zip(Problem._fields[:7], problem[:7], strict=True)),
        "K": window.K, "stride": window.stride, "dilation": window.dilation, "padding": window.padding,
        "vectors": problem.vectors, "strip": strip, "rows": rows, "by_columns": int(problem.by_columns),
        "image_bytes": problem.columns_bytes(strip) if problem.by_columns else image,
        "tile_step": tile_step, "tile_bytes": taps * tile_step, "row_bytes": rounded(problem.W_out * problem.slot),
        "remainder_bytes": problem.remainder_bytes, "positions_bytes": problem.positions_bytes,
        "margin_bytes": problem.margin_bytes, "offsets_bytes": rounded(8 * window.K),
    }  # fmt: skip


class Job:
    """The fields of one call, in the order of ``record.FIELDS``."""

    def __init__(self, plan: Plan) -> None:
        self.fields = plan.fields[:]
        if plan.size:
            # The room behind it is for aligning it.
            self.workspace = torch.empty(plan.size + 64, dtype=torch.uint8)
            start = rounded(self.workspace.data_ptr())
            for index, offset in plan.places:
                self.fields[index] = start + offset

    def __getitem__(self, name: str) -> int:
        return self.fields[INDEX[name]]

    def put(self, **tensors: Tensor | None) -> None:
        """Say where tensors lie; None is left out."""
        for name, tensor in tensors.items():
            if tensor is not None:
                start, size = INDEX[name], tensor.element_size()
                steps = [stride * size for stride in tensor.stride()]
                place = array("q", [tensor.data_ptr(), _ELEMENTS[tensor.dtype], *steps])
                self.fields[start : start + len(place)] = place

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
