"""Register tiles: the inner loops of the Numba kernels, written as LLVM code so that nothing is left to its vectoriser.

A tile works on one or ``POSITIONS`` neighbouring output positions, for each of which one or two whole vectors of
channels lie side by side (a *slot*). Its sums stay in registers over all taps, and a run of taps shares what it loads
of the image: positions + taps - 1 slots instead of positions * taps. Each tile exists for every such choice; which one
runs is decided once a tile, by ``Shape``. How it walks over the window, ``x`` being a scratch copy of the image with
borders (see ``kernels``), is its *mode*:

* SEVEN: one run of 7 taps a row, for K=7 with stride and dilation 1.
* RUNS: runs of three taps, then single ones, for dilation 1. With a stride, the columns of a row lie sorted by their
  remainder (``x_phase`` apart), so that the taps of one remainder meet neighbouring slots.
* SINGLE: tap by tap, ``x_tap`` from one to the next and ``x_position`` between positions, for everything.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from invbench.ops.numba_cpu.simd import (
    REGISTERS,
    VECTOR_BYTES,
    broadcast,
    constant,
    count_to,
    element_bytes,
    load,
    multiply_add,
    none_of,
    prefetch,
    real_of,
    store,
    vector_of,
)

# Positions of a tile by the vectors of a slot: sums, a slot in hand and a factor have to fit the registers. The sides
# of RedNet's images are multiples of 7.
POSITIONS = {1: 7, 2: 7 if REGISTERS == 32 else 4}

# Positions by which x, y, and a weight that comes from memory, are asked for ahead: about two tiles. The processor does
# not see these streams by itself: K*K of them, or lines that are far apart.
AHEAD = 14

SINGLE, RUNS, SEVEN = range(3)
RUN = {SINGLE: 1, RUNS: 3, SEVEN: 7}


class Shape(NamedTuple):
    """Which tile: of one position (or several) with so many vectors, in a mode."""

    one: Any
    vectors: Any
    mode: Any


class Walk(NamedTuple):
    """Addresses and byte steps of a walk over the window: of the image's scratch copy, and of the weight or of its
    gradient. ``rows`` of the window are met, and ``K`` taps in each, with a stride of ``stride``. ``ahead``: from a
    weight to the one that is asked for meanwhile; 0 where the weight is in cache already."""

    x: Any
    x_row: Any
    x_phase: Any
    x_tap: Any
    x_position: Any
    weight: Any
    weight_row: Any
    weight_tap: Any
    weight_position: Any
    rows: Any
    K: Any
    stride: Any
    ahead: Any


SHAPE, WALK = types.UniTuple(types.int64, len(Shape._fields)), types.UniTuple(types.int64, len(Walk._fields))

# body(taps, x, weight, weight_tap): what is done for a run of taps of one row, whose first one is at x and weight.
Body = Callable[[int, Any, Any, Any], None]


def _fields(builder: Any, kind: Any, values: Any) -> Any:
    return kind(*(builder.extract_value(values, index) for index in range(len(kind._fields))))


def _each(builder: Any, zero: Any, shape: Shape, walk: Walk, emit: Callable[[int, int, int, Walk], None]) -> None:
    """Code for every shape, of which one is run: emit(positions, vectors, mode, walk)."""
    one, number = builder.icmp_signed("!=", shape.one, constant(0)), constant(element_bytes(zero))
    for vectors, mode in itertools.product(POSITIONS, RUN):
        fits = builder.icmp_signed("==", shape.vectors, constant(vectors))
        fits = builder.and_(fits, builder.icmp_signed("==", shape.mode, constant(mode)))
        with builder.if_then(fits), builder.if_else(one) as (single, several):
            with single:
                emit(1, vectors, mode, walk)
            with several:
                if mode != SEVEN:
                    emit(POSITIONS[vectors], vectors, mode, walk)
                    continue
                # Of 49 addresses, one for each run of neighbours is left, which the registers hold.
                by_position = builder.icmp_signed("==", walk.weight_position, number)
                with builder.if_else(by_position) as (positions_are_neighbours, taps_are_or_not):
                    with positions_are_neighbours:
                        emit(POSITIONS[vectors], vectors, mode, walk._replace(weight_position=number))
                    with taps_are_or_not:
                        by_tap = builder.icmp_signed("==", walk.weight_tap, number)
                        with builder.if_else(by_tap) as (taps_are_neighbours, nothing_is):
                            with taps_are_neighbours:
                                emit(POSITIONS[vectors], vectors, mode, walk._replace(weight_tap=number))
                            with nothing_is:
                                emit(POSITIONS[vectors], vectors, mode, walk)


def _walk(builder: Any, walk: Walk, mode: int, slot: int, body: Body) -> None:
    with count_to(builder, walk.rows) as row:
        x = builder.add(walk.x, builder.mul(row.index, walk.x_row))
        weight = builder.add(walk.weight, builder.mul(row.index, walk.weight_row))
        if mode == SEVEN:
            body(RUN[mode], x, weight, walk.weight_tap)
        elif mode == SINGLE:
            with count_to(builder, walk.K) as tap:
                x = builder.add(x, builder.mul(tap.index, walk.x_tap))
                body(1, x, builder.add(weight, builder.mul(tap.index, walk.weight_tap)), walk.weight_tap)
        else:
            _walk_phases(builder, walk, RUN[mode], slot, x, weight, body)


def _walk_phases(builder: Any, walk: Walk, unrolled: int, slot: int, x: Any, weight: Any, body: Body) -> None:
    step = builder.mul(walk.weight_tap, walk.stride)
    run = builder.mul(step, constant(unrolled))
    with count_to(builder, walk.stride) as phase:
        x = builder.add(x, builder.mul(phase.index, walk.x_phase))
        weight = builder.add(weight, builder.mul(phase.index, walk.weight_tap))
        last = builder.add(builder.sub(walk.K, phase.index), builder.sub(walk.stride, constant(1)))
        taps = builder.sdiv(last, walk.stride)
        runs = builder.sdiv(taps, constant(unrolled))
        with count_to(builder, runs) as index:
            at = builder.add(x, builder.mul(index.index, constant(unrolled * slot)))
            body(unrolled, at, builder.add(weight, builder.mul(index.index, run)), step)
        done = builder.mul(runs, constant(unrolled))
        with count_to(builder, builder.sub(taps, done)) as index:
            tap = builder.add(done, index.index)
            at = builder.add(x, builder.mul(tap, constant(slot)))
            body(1, at, builder.add(weight, builder.mul(tap, step)), step)


@contextlib.contextmanager
def in_registers(builder: Any, cells: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """The values of stack cells, to be changed in place; LLVM keeps such cells in registers."""
    values = [[builder.load(cell) for cell in row] for row in cells]
    yield values
    for row, changed in zip(cells, values, strict=True):
        for cell, value in zip(row, changed, strict=True):
            builder.store(value, cell)


def cells_of(builder: Any, kind: Any, rows: int, columns: int) -> list[list[Any]]:
    """Stack cells for vectors or numbers, with zeros in them."""
    zero = none_of(kind)
    cells = [[cgutils.alloca_once(builder, kind) for _ in range(columns)] for _ in range(rows)]
    for row in cells:
        for cell in row:
            builder.store(zero, cell)
    return cells


def slot_at(builder: Any, vector: Any, address: Any, vectors: int, offset: int = 0) -> list[Any]:
    """So many neighbouring vectors."""
    return [load(builder, vector, address, offset + index * VECTOR_BYTES) for index in range(vectors)]


def _columns(
    builder: Any, walk: Walk, x: Any, positions: int, taps: int, vectors: int, mode: int
) -> Iterator[tuple[Any, int, list[tuple[int, int]]]]:
    """The slots that a run of taps meets: address, offset, and the (position, tap) that meet it."""
    if mode == SINGLE:
        for p, step in enumerate(steps(builder, walk.x_position, positions)):
            yield builder.add(x, step), 0, [(p, 0)]
        return
    for column in range(positions + taps - 1):
        met = [(p, column - p) for p in range(positions) if 0 <= column - p < taps]
        yield x, column * vectors * VECTOR_BYTES, met


def each_size(
    builder: Any, sizes: tuple[Any, Any], choices: tuple[Iterable[int], Iterable[int]], emit: Callable[[int, int], None]
) -> None:
    """Code for every choice of two sizes, of which the one that is asked for is run: emit(first, second)."""
    for first, second in itertools.product(*choices):
        fits = builder.icmp_signed("==", sizes[0], constant(first))
        fits = builder.and_(fits, builder.icmp_signed("==", sizes[1], constant(second)))
        with builder.if_then(fits):
            emit(first, second)


def steps(builder: Any, step: Any, count: int) -> list[Any]:
    """0, step, 2 * step, ..."""
    return [builder.mul(step, constant(index)) for index in range(count)]


def _ask_ahead(builder: Any, walk: Walk, weight: Any, tap_at: list[Any], positions: int) -> None:
    """Ask for the weights that a tile further on will read where this one reads a run of taps. Of taps that are
    neighbours, as of positions that are, one stands for all."""
    with builder.if_then(builder.icmp_signed("!=", walk.ahead, constant(0))):
        weight = builder.add(weight, walk.ahead)
        by_position = builder.icmp_signed(">", walk.weight_position, walk.weight_tap)
        with builder.if_else(by_position) as (each_position, each_tap):
            with each_position:
                for step in steps(builder, walk.weight_position, positions):
                    prefetch(builder, builder.add(weight, step), writes=False)
            with each_tap:
                for at in tap_at:
                    prefetch(builder, builder.add(at, walk.ahead), writes=False)


@intrinsic
def aggregate_tile(typing_context: Any, zero: Any, shape: Any, walk: Any, y: Any, y_position: Any) -> Any:
    """y[position] = sum over the window of weight[tap, position] * x[position, tap], slots of y y_position apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shape, walk = _fields(builder, Shape, arguments[1]), _fields(builder, Walk, arguments[2])
        y, y_position = arguments[3:]
        vector, real = vector_of(zero), real_of(zero)

        def emit(positions: int, vectors: int, mode: int, walk: Walk) -> None:
            sums = cells_of(builder, vector, positions, vectors)
            y_ahead = builder.add(y, builder.mul(y_position, constant(AHEAD)))
            for step in steps(builder, y_position, positions):
                prefetch(builder, builder.add(y_ahead, step), writes=True)
            weight_at = steps(builder, walk.weight_position, positions)

            def body(taps: int, x: Any, weight: Any, weight_tap: Any) -> None:
                tap_at = [builder.add(weight, step) for step in steps(builder, weight_tap, taps)]
                _ask_ahead(builder, walk, weight, tap_at, positions)
                with in_registers(builder, sums) as values:
                    for at, offset, met in _columns(builder, walk, x, positions, taps, vectors, mode):
                        pixels = slot_at(builder, vector, at, vectors, offset)
                        for p, tap in met:
                            number = load(builder, real, builder.add(tap_at[tap], weight_at[p]))
                            factor = broadcast(builder, number, vector)
                            values[p] = [
                                multiply_add(builder, factor, pixel, value)
                                for pixel, value in zip(pixels, values[p], strict=True)
                            ]

            _walk(builder, walk, mode, vectors * VECTOR_BYTES, body)
            for row, step in zip(sums, steps(builder, y_position, positions), strict=True):
                for v, cell in enumerate(row):
                    store(builder, builder.load(cell), builder.add(y, step), v * VECTOR_BYTES)

        _each(builder, zero, shape, walk, emit)
        return context.get_dummy_value()

    return types.void(zero, SHAPE, WALK, types.int64, types.int64), generate


@intrinsic
def scatter_tile(typing_context: Any, zero: Any, shape: Any, walk: Any, grad_y: Any, grad_position: Any) -> Any:
    """grad_x[position, tap] += weight[tap, position] * grad_y[position]; ``walk.x`` is where grad_x is summed."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shape, walk = _fields(builder, Shape, arguments[1]), _fields(builder, Walk, arguments[2])
        grad_y, grad_position = arguments[3:]
        vector, real = vector_of(zero), real_of(zero)

        def emit(positions: int, vectors: int, mode: int, walk: Walk) -> None:
            grad_at = steps(builder, grad_position, positions)
            gradients = [slot_at(builder, vector, builder.add(grad_y, step), vectors) for step in grad_at]
            weight_at = steps(builder, walk.weight_position, positions)

            def body(taps: int, x: Any, weight: Any, weight_tap: Any) -> None:
                tap_at = [builder.add(weight, step) for step in steps(builder, weight_tap, taps)]
                _ask_ahead(builder, walk, weight, tap_at, positions)
                for at, offset, met in _columns(builder, walk, x, positions, taps, vectors, mode):
                    values = slot_at(builder, vector, at, vectors, offset)
                    for p, tap in met:
                        number = load(builder, real, builder.add(tap_at[tap], weight_at[p]))
                        factor = broadcast(builder, number, vector)
                        values = [
                            multiply_add(builder, factor, gradient, value)
                            for gradient, value in zip(gradients[p], values, strict=True)
                        ]
                    for v, value in enumerate(values):
                        store(builder, value, at, offset + v * VECTOR_BYTES)

            _walk(builder, walk, mode, vectors * VECTOR_BYTES, body)

        _each(builder, zero, shape, walk, emit)
        return context.get_dummy_value()

    return types.void(zero, SHAPE, WALK, types.int64, types.int64), generate
