"""Slots: the one layout that tiles work on, and the way from tensors into it and back.

A *block* is the channels that fill a slot of ``job.vectors`` vectors; a group has one or more of them. The scratch copy
of an image is rows of slots with the borders included, so that the tiles meet one layout, one type and no border,
whatever the tensors are like. Without a dilation, the columns of a row are sorted by their remainder by the stride.
"""

from __future__ import annotations

from typing import Any

from invbench.ops.numba_cpu.elements import BFLOAT16, EXACT, FLOAT16, read, write
from invbench.ops.numba_cpu.moves import copy_numbers, square_side, transpose
from invbench.ops.numba_cpu.record import compiled, inlined
from invbench.ops.numba_cpu.simd import VECTOR_BYTES, ask_for, bytes_of, clear_vector, copy_vector
from invbench.ops.numba_cpu.tiles import AHEAD


@compiled
def convert(
    zero: Any, to: int, target: int, target_step: int, source: int, element: int, step: int, count: int
) -> None:
    """Numbers from one place and element to another."""
    size = bytes_of(zero)
    if element == EXACT and to == EXACT and step == size and target_step == size:
        copy_numbers(zero, target, source, count)
    elif element == EXACT and to == EXACT:
        for m in range(count):
            write(EXACT, zero, read(EXACT, zero, source + m * step), target + m * target_step)
    elif element == FLOAT16:
        for m in range(count):
            write(EXACT, zero, read(FLOAT16, zero, source + m * step), target + m * target_step)
    elif element == BFLOAT16:
        for m in range(count):
            write(EXACT, zero, read(BFLOAT16, zero, source + m * step), target + m * target_step)
    elif to == FLOAT16:
        for m in range(count):
            write(FLOAT16, zero, read(EXACT, zero, source + m * step), target + m * target_step)
    else:
        for m in range(count):
            write(BFLOAT16, zero, read(EXACT, zero, source + m * step), target + m * target_step)


@inlined
def clear(address: int, size: int) -> None:
    """Zeros for so many bytes, whole vectors of them."""
    for offset in range(0, size, VECTOR_BYTES):
        clear_vector(address + offset)


@inlined
def _element_bytes(zero: Any, element: int) -> int:
    return bytes_of(zero) if element == EXACT else 2


@compiled
def read_slots(
    zero: Any, target: int, slot: int, source: int, element: int, c_step: int, w_step: int, channels: int, count: int
) -> None:
    """Slots of so many channels each, from numbers that are c_step and w_step apart; zeros behind the channels."""
    size = bytes_of(zero)
    if element == EXACT and c_step == size and channels * size == slot:
        for m in range(count):
            for offset in range(0, slot, VECTOR_BYTES):
                ask_for(source + (m + AHEAD) * w_step + offset)
                copy_vector(target + m * slot + offset, source + m * w_step + offset)
        return
    if channels * size < slot:
        clear(target, count * slot)
    turn(zero, target, slot, source, element, c_step, w_step, channels, count)


@compiled
def turn(
    zero: Any, target: int, slot: int, source: int, element: int, c_step: int, w_step: int, channels: int, count: int
) -> None:
    """As ``read_slots``, but what is behind the channels stays as it is."""
    size = bytes_of(zero)
    if c_step == _element_bytes(zero, element):
        for m in range(count):
            convert(zero, EXACT, target + m * slot, size, source + m * w_step, element, c_step, channels)
        return
    side = square_side(zero, channels, count)
    if element == EXACT and w_step == size and side > 0:
        for c in range(0, channels, side):
            c_at = min(c, channels - side)  # the last squares overlap those before them
            for m in range(0, count, side):
                at = min(m, count - side)
                square = source + c_at * c_step + at * w_step
                for row in range(side):
                    ask_for(square + (side + row) * c_step)
                transpose(zero, side, target + at * slot + c_at * size, slot, square, c_step)
        return
    for c in range(channels):
        convert(zero, EXACT, target + c * size, slot, source + c * c_step, element, w_step, count)


@compiled
def write_slots(
    zero: Any, source: int, slot: int, target: int, element: int, c_step: int, w_step: int, channels: int, count: int
) -> None:
    """The inverse of ``read_slots``."""
    size = bytes_of(zero)
    if element == EXACT and c_step == size and channels * size == slot:
        for m in range(count):
            for offset in range(0, slot, VECTOR_BYTES):
                copy_vector(target + m * w_step + offset, source + m * slot + offset)
        return
    if c_step == _element_bytes(zero, element):
        for m in range(count):
            convert(zero, element, target + m * w_step, c_step, source + m * slot, EXACT, size, channels)
        return
    side = square_side(zero, channels, count)
    if element == EXACT and w_step == size and side > 0:
        for c in range(0, channels, side):
            c_at = min(c, channels - side)
            for m in range(0, count, side):
                at = min(m, count - side)
                square = source + at * slot + c_at * size
                transpose(zero, side, target + c_at * c_step + at * w_step, c_step, square, slot)
        return
    for c in range(channels):
        convert(zero, element, target + c * c_step, w_step, source + c * size, EXACT, slot, count)


# --- The scratch copy of the image: rows of slots, sorted by the remainder of their column ---


@inlined
def phases_of(job: Any) -> int:
    """How many sorts of columns the scratch copy has: without a dilation, one for each remainder by the stride."""
    return job.stride if job.dilation == 1 else 1


@inlined
def columns_of(job: Any) -> int:
    """Columns that the windows of a row meet, borders included."""
    return job.stride * (job.W_out - 1) + job.dilation * (job.K - 1) + 1


@inlined
def phase_bytes(job: Any) -> int:
    """Bytes of the columns of one sort in a row of the scratch copy."""
    return -(-columns_of(job) // phases_of(job)) * job.vectors * VECTOR_BYTES


@inlined
def image_rows(job: Any, rows: int) -> int:
    """Image rows that the windows of so many output rows meet, borders included."""
    return job.stride * (rows - 1) + job.dilation * (job.K - 1) + 1


@inlined
def inside(job: Any, phase: int, phases: int) -> tuple[int, int]:
    """Of the columns that windows meet, sorted by their remainder by phases, those of one remainder that lie in the
    image: from, to."""
    count = (columns_of(job) - phase + phases - 1) // phases
    start = min(count, max(0, -((phase - job.padding) // phases)))
    return start, max(start, min(count, (job.W - 1 + job.padding - phase) // phases + 1))


@compiled
def pack(job: Any, zero: Any, target: int, source: int, channels: int, first_row: int, rows: int) -> None:
    """Rows of the image from first_row on; those outside it are left as they are."""
    slot, phases, phase_size = job.vectors * VECTOR_BYTES, phases_of(job), phase_bytes(job)
    for row in range(rows):
        h, at = first_row + row, target + row * phases * phase_size
        if not 0 <= h < job.H:
            continue
        for phase in range(phases):
            start, stop = inside(job, phase, phases)
            to = at + phase * phase_size
            clear(to, start * slot)
            clear(to + stop * slot, phase_size - stop * slot)
            column = phase + phases * start - job.padding
            pixels = source + h * job.x_h + column * job.x_w
            read_slots(
                zero, to + start * slot, slot, pixels, job.x_element, job.x_c, phases * job.x_w, channels, stop - start
            )


@compiled
def unpack(job: Any, zero: Any, source: int, target: int, channels: int, first_row: int, rows: int) -> None:
    """The inverse of ``pack``, into grad_x."""
    slot, phases, phase_size = job.vectors * VECTOR_BYTES, phases_of(job), phase_bytes(job)
    for row in range(rows):
        h, at = first_row + row, source + row * phases * phase_size
        if not 0 <= h < job.H:
            continue
        for phase in range(phases):
            start, stop = inside(job, phase, phases)
            column = phase + phases * start - job.padding
            pixels = target + h * job.grad_x_h + column * job.grad_x_w
            write_slots(
                zero, at + phase * phase_size + start * slot, slot, pixels, job.grad_x_element, job.grad_x_c,
                phases * job.grad_x_w, channels, stop - start,
            )  # fmt: skip


@inlined
def blocks_of(job: Any, zero: Any) -> tuple[int, int]:
    """Blocks of a group, and the most channels of one."""
    channels = job.vectors * VECTOR_BYTES // bytes_of(zero)
    return -(-(job.C // job.G) // channels), channels
