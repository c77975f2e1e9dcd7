"""The sizes of a call, and what follows from them: how many bytes packed rows, columns and positions take."""

from __future__ import annotations

from typing import NamedTuple

import torch

from invbench.ops.library import Window
from invbench.ops.numba_cpu.simd import VECTOR_BYTES


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
    def exact(self) -> torch.dtype:
        """The type that is computed with."""
        return torch.float64 if self.size == 8 else torch.float32

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

    @property
    def by_columns(self) -> bool:
        """Whether neighbours in a vector are positions, since a group's channels would fill little of one."""
        return self.C // self.G * self.size * 4 <= VECTOR_BYTES

    @property
    def together(self) -> int:
        """Groups that are packed together, so that their channels fill a vector of memory."""
        return min(self.G, max(1, VECTOR_BYTES // (self.C // self.G * self.size)))

    @property
    def columns(self) -> int:
        """Columns of one remainder by the stride that the windows of a row meet, borders included."""
        w = self.window
        return -(-(w.stride * (self.W_out - 1) + w.dilation * (w.K - 1) + 1) // w.stride)

    @property
    def remainder_bytes(self) -> int:
        """Those of a channel, with room for a vector behind the last."""
        return whole_vectors(self.columns * self.size) + VECTOR_BYTES

    @property
    def margin_bytes(self) -> int:
        """Zeros before a row of output positions, from which columns gather; none where they do not."""
        w = self.window
        return whole_vectors(w.dilation * (w.K - 1) // w.stride * self.size) if self.by_columns else 0

    @property
    def positions_bytes(self) -> int:
        """A row of output positions of a channel; with zeros around it where columns gather from it."""
        return self.margin_bytes + whole_vectors((self.columns if self.by_columns else self.W_out) * self.size)

    def columns_bytes(self, strip: int) -> int:
        """The image rows of a strip of one group, packed as columns; with room for making each row's vectors odd."""
        row = (self.C // self.G) * self.window.stride * self.remainder_bytes
        return self.image_rows(strip) * (row + VECTOR_BYTES)

    def image_rows(self, strip: int) -> int:
        """Image rows that the windows of so many output rows meet."""
        w = self.window
        return w.stride * (strip - 1) + w.dilation * (w.K - 1) + 1

    def strip_within(self, size: int) -> int:
        """The most output rows whose packed image takes so many bytes; at least 1."""
        w = self.window
        row = self.columns_bytes(1) // self.image_rows(1) if self.by_columns else self.row_bytes * self.blocks
        rows = size // row
        return max(1, (rows - w.dilation * (w.K - 1) - 1) // w.stride + 1)


def whole_vectors(size: int) -> int:
    """Bytes up to a whole vector."""
    return -(-size // VECTOR_BYTES) * VECTOR_BYTES


def matrix_width(r: int, size: int) -> int:
    """Columns of a matrix of whole vectors that has r columns of use."""
    lanes = VECTOR_BYTES // size
    return -(-r // lanes) * lanes
