"""Writing grad_x: strips of rows are summed apart, and the rows that two of them share are added afterwards.

So no two threads add to one place, and each sum has one order, whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

from invbench.ops.numba_cpu.record import SEAM, compiled, inlined, take, take_next, wait
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, add_vector, copy_vector
from invbench.ops.numba_cpu.slots import blocks_of, image_rows, phase_bytes, phases_of, unpack


@inlined
def _seam_rows(job: Any) -> int:
    """Image rows to which a strip and the next one both add."""
    return max(0, job.dilation * (job.K - 1) - job.stride + 1)


@inlined
def _seam(job: Any, zero: Any, n: int, g: int, strip: int, block: int, side: int) -> int:
    """Where the sums lie of the rows shared by a strip and the next one: side 0 is the strip's, 1 the next one's."""
    blocks, _ = blocks_of(job, zero)
    strips = -(-job.H_out // job.strip)
    index = (((n * job.G + g) * (strips - 1) + strip) * blocks + block) * 2 + side
    return job.seams + index * _seam_rows(job) * phases_of(job) * phase_bytes(job)


@compiled
def finish_strip(job: Any, zero: Any, sums: int, n: int, g: int, strip: int) -> None:
    """Write the rows of grad_x that belong to one strip alone, and keep those that it shares."""
    blocks, most = blocks_of(job, zero)
    group_channels = job.C // job.G
    row_bytes = phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    strips = -(-job.H_out // job.strip)
    top = strip * job.strip
    rows = image_rows(job, min(job.strip, job.H_out - top))
    first_row, shared = job.stride * top - job.padding, _seam_rows(job)
    skipped, kept = shared if strip > 0 else 0, shared if strip < strips - 1 else 0
    for block in range(blocks):
        channels = min(most, group_channels - block * most)
        target = job.grad_x + n * job.grad_x_n + (g * group_channels + block * most) * job.grad_x_c
        source = sums + block * block_bytes
        own = source + skipped * row_bytes
        unpack(job, zero, own, target, channels, first_row + skipped, rows - skipped - kept)
        if skipped:
            to = _seam(job, zero, n, g, strip - 1, block, 1)
            for offset in range(0, shared * row_bytes, VECTOR_BYTES):
                copy_vector(to + offset, source + offset)
        if kept:
            to, last = _seam(job, zero, n, g, strip, block, 0), source + (rows - shared) * row_bytes
            for offset in range(0, shared * row_bytes, VECTOR_BYTES):
                copy_vector(to + offset, last + offset)


@compiled
def add_seams(job: Any, zero: Any) -> None:
    """The rows of grad_x that two strips share. A unit is one seam of one group of one image."""
    blocks, most = blocks_of(job, zero)
    group_channels, shared = job.C // job.G, _seam_rows(job)
    seams = -(-job.H_out // job.strip) - 1
    unit = take(job, SEAM)
    while unit < job.N * job.G * seams:
        strip, g, n = unit % seams, unit // seams % job.G, unit // seams // job.G
        first_row = job.stride * (strip + 1) * job.strip - job.padding
        for block in range(blocks):
            channels = min(most, group_channels - block * most)
            target = job.grad_x + n * job.grad_x_n + (g * group_channels + block * most) * job.grad_x_c
            left, right = _seam(job, zero, n, g, strip, block, 0), _seam(job, zero, n, g, strip, block, 1)
            for offset in range(0, shared * phases_of(job) * phase_bytes(job), VECTOR_BYTES):
                add_vector(zero, left + offset, right + offset)
            unpack(job, zero, left, target, channels, first_row, shared)
        unit = take_next(job, SEAM)
    wait(job, SEAM, job.N * job.G * seams)
