"""The backward pass: the gradients of x, of a weight that is given, and of the generator of one that is made.

A unit is a strip of rows of some images, for a chunk of groups. It packs what it needs of x, scatters grad_y into its
own sums of grad_x, and correlates grad_y with x to the gradient of the weight, a few rows at a time: where its taps are
neighbours, one position after the other (``taps``), else with positions in a vector (``columns``). Where the weight is
made, that gradient is used up at once, in two matrix products, and never reaches memory as a whole.
"""

from __future__ import annotations

from typing import Any

from invbench.ops.numba_cpu.columns import (
    correlate,
    pack_columns,
    pack_positions,
    write_offsets,
)
from invbench.ops.numba_cpu.elements import EXACT, read, write
from invbench.ops.numba_cpu.matmul import add_matmul, matmul
from invbench.ops.numba_cpu.record import UNIT, compiled, take, take_next, wait
from invbench.ops.numba_cpu.rows import met, scatter_row, weight_of
from invbench.ops.numba_cpu.seams import finish_strip
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, bytes_of
from invbench.ops.numba_cpu.slots import blocks_of, clear, image_rows, phase_bytes, phases_of, read_slots, write_slots
from invbench.ops.numba_cpu.small_groups import finish_small, gives_together, scatter_small
from invbench.ops.numba_cpu.sums import total_of
from invbench.ops.numba_cpu.taps import correlate_taps, goes_by_taps


@compiled
def _scatter(
    job: Any, zero: Any, sums: int, tile: int, row: int, n: int, g: int, top: int, first: int, last: int
) -> None:
    """Add what the output rows from first to last bring to grad_x. top: the first row of the strip."""
    size, slot = bytes_of(zero), job.vectors * VECTOR_BYTES
    blocks, most = blocks_of(job, zero)
    group_channels = job.C // job.G
    row_bytes = phases_of(job) * phase_bytes(job)
    block_bytes = image_rows(job, job.strip) * row_bytes
    weight, tap, weight_h, position = weight_of(job, zero, tile, n, g, first, last)
    for i in range(first, last):
        u, end = met(job, i)
        at = weight + (i - first) * weight_h + u * job.K * tap
        for block in range(blocks):
            channels = min(most, group_channels - block * most)
            grad_y, step = job.y + n * job.y_n + i * job.y_h + (g * group_channels + block * most) * job.y_c, job.y_w
            if not (job.y_element == EXACT and job.y_c == size and channels * size == slot):
                read_slots(zero, row, slot, grad_y, job.y_element, job.y_c, job.y_w, channels, job.W_out)
                grad_y, step = row, slot
            to = sums + block * block_bytes + (job.stride * (i - top) + job.dilation * u) * row_bytes
            scatter_row(job, zero, to, at, tap, position, end - u, grad_y, step)


@compiled
def _give(job: Any, zero: Any, gradient: int, n: int, g: int, taps: int, first: int, last: int) -> None:
    """Write grad_weight of the output rows from first to last, of a group or of as many taps as those of several."""
    size = bytes_of(zero)
    to = job.grad_weight + n * job.grad_weight_n + g * job.grad_weight_g + first * job.grad_weight_h
    lines, count = last - first, job.W_out
    if job.grad_weight_h == job.W_out * job.grad_weight_w:
        lines, count = 1, lines * count
    for line in range(lines):
        # Taps and positions take the places of positions and channels.
        write_slots(
            zero, gradient + line * job.W_out * size, job.tile_step, to + line * job.grad_weight_h,
            job.grad_weight_element, job.grad_weight_w, job.grad_weight_t, count, taps,
        )  # fmt: skip


@compiled
def _learn(
    job: Any, zero: Any, gradient: int, by_position: int, n: int, chunk: int, part: int, strip: int, first: int,
    last: int, groups: int,
) -> None:  # fmt: skip
    """What the gradient of the weight of some groups brings to those of hidden, of the span and of its bias.

    by_position: scratch for hidden [positions, r] in whole vectors.
    """
    size, taps = bytes_of(zero), job.K * job.K
    rows, position, count = groups * taps, first * job.W_out, (last - first) * job.W_out
    row, strips = chunk * job.chunk * taps, -(-job.H_out // job.strip)
    vectors = -(-count * size // VECTOR_BYTES)
    hidden = job.grad_hidden + chunk * job.grad_hidden_part + n * job.grad_hidden_n + strip * job.grad_hidden_strip
    hidden += (first - strip * job.strip) * job.W_out * size
    # The last vector reaches beyond the last position, into the next rows of the strip or into room behind it.
    matmul(
        zero, job.r, vectors, job.span + row * job.span_row, size, job.span_row, gradient, job.tile_step, rows,
        job.zeros, 0, hidden, job.grad_hidden_step,
    )  # fmt: skip
    source, width = job.hidden + n * job.hidden_n + position * size, job.grad_span_row
    read_slots(zero, by_position, width, source, EXACT, job.hidden_step, size, job.r, count)
    add_matmul(
        zero, rows, width // VECTOR_BYTES, gradient, job.tile_step, size, by_position, width, count,
        job.grad_span + (part * strips + strip) * job.grad_span_part + row * job.grad_span_row, job.grad_span_row,
    )  # fmt: skip
    bias = job.grad_bias + (part * strips + strip) * job.grad_bias_part + row * size
    for k in range(rows):
        total = total_of(zero, gradient + k * job.tile_step, count)
        write(EXACT, zero, read(EXACT, zero, bias + k * size) + total, bias + k * size)


@compiled
def _start_sums(job: Any, zero: Any, part: int, first: int, count: int) -> None:
    """Zeros where a unit sums the gradients of some rows of the span and of their biases."""
    size, row = bytes_of(zero), job.grad_span_row
    clear(job.grad_span + part * job.grad_span_part + first * row, count * row)
    for k in range(first, first + count):
        write(EXACT, zero, zero, job.grad_bias + part * job.grad_bias_part + k * size)


@compiled
def run_units(job: Any, zero: Any, scratch: int) -> None:
    """grad_x but for the rows that strips share, grad_weight, and the parts of the generator's gradients."""
    taps, group_channels, row = job.K * job.K, job.C // job.G, scratch
    pitch, channel_bytes = job.positions_bytes, job.stride * job.remainder_bytes
    offsets = row + job.row_bytes
    tile = offsets + job.offsets_bytes
    padded = tile + job.chunk * job.tile_bytes
    gradients = padded + (taps * pitch if job.by_columns else 0)
    by_taps = goes_by_taps(job, zero)
    are_kept = job.grad_span or (not by_taps and gives_together(job, zero))
    sums = gradients + job.chunk * job.tile_bytes
    columns = sums + job.chunk * job.image_bytes
    grad_y = columns + job.chunk * job.columns_bytes
    by_position = grad_y + job.rows * job.chunk * group_channels * pitch
    strips, chunks, parts = -(-job.H_out // job.strip), -(-job.G // job.chunk), -(-job.N // job.images)
    wants_weight = job.grad_weight or job.grad_span
    write_offsets(job, zero, offsets)
    if job.by_columns:
        clear(padded, taps * pitch)
    unit = take(job, UNIT)
    while unit < parts * strips * chunks:
        chunk, strip, part = unit % chunks, unit // chunks % strips, unit // chunks // strips
        groups = range(chunk * job.chunk, min((chunk + 1) * job.chunk, job.G))
        top = strip * job.strip
        bottom = min(top + job.strip, job.H_out)
        if job.grad_span:
            _start_sums(job, zero, part * strips + strip, chunk * job.chunk * taps, len(groups) * taps)
        for n in range(part * job.images, min((part + 1) * job.images, job.N)):
            if job.grad_x:
                clear(sums, job.chunk * job.image_bytes)
            if wants_weight:
                pack_columns(job, zero, columns, n, groups, top, bottom)
            for first in range(top, bottom, job.rows):
                last = min(first + job.rows, bottom)
                if (wants_weight and not by_taps) or (job.grad_x and job.by_columns):
                    pack_positions(job, zero, grad_y, n, groups, first, last)
                if job.grad_x and job.by_columns:
                    scatter_small(job, zero, sums, padded, tile, grad_y, n, groups, top, first, last)
                for g in groups:
                    index = g - groups.start
                    channel = index * group_channels
                    if job.grad_x and not job.by_columns:
                        _scatter(job, zero, sums + index * job.image_bytes, tile, row, n, g, top, first, last)
                    if by_taps:
                        correlate_taps(job, zero, columns + channel * channel_bytes, n, g, top, first, last)
                    elif wants_weight:
                        # Those of all groups are kept only where they are used up together.
                        gradient = gradients + (index * taps * job.tile_step if are_kept else 0)
                        at = columns + channel * channel_bytes
                        correlate(job, zero, at, offsets, grad_y + channel * pitch, gradient, top, first, last)
                        if job.grad_weight and not are_kept:
                            _give(job, zero, gradient, n, g, taps, first, last)
                if job.grad_weight and are_kept:
                    _give(job, zero, gradients, n, groups.start, len(groups) * taps, first, last)
                if job.grad_span:
                    _learn(job, zero, gradients, by_position, n, chunk, part, strip, first, last, len(groups))
            if job.grad_x and job.by_columns:
                finish_small(job, zero, sums, n, groups)
            elif job.grad_x:
                for g in groups:
                    finish_strip(job, zero, sums + (g - groups.start) * job.image_bytes, n, g, strip)
        unit = take_next(job, UNIT)
    wait(job, UNIT, parts * strips * chunks)
