"""Explicit SIMD for Numba: the vectors of this processor, elements in memory, and what works on whole vectors.

Every address is an int64 that counts bytes, so that one compiled kernel serves every layout and dtype. ``zero``, an
argument of many functions, is a zero of the type in which is computed: float32 or float64. A vector holds
``VECTOR_BYTES`` of them; a register tile is sized by the number of vector registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# No nnan and no ninf: those would let LLVM assume NaN and infinity away. No reassoc: the same tile could be summed in
# another order at another place. "contract" allows a fused multiply-add.
FLAGS = ("contract", "nsz")
OPTIONS: dict[str, Any] = {"fastmath": set(FLAGS), "error_model": "numpy"}


def _registers() -> tuple[int, int]:
    """Bytes of a vector register, and how many there are, of the processor that Numba compiles for."""
    told = numba.config.CPU_FEATURES  # "" for a processor without any, None for this one
    names = told.split(",") if told is not None else llvmlite.binding.get_host_cpu_features().flatten().split(",")
    features = {name[1:] for name in names if name.startswith("+")}
    if "avx512f" in features:
        return 64, 32
    if "avx" in features:
        return 32, 16
    return 16, 32 if "neon" in features else 16


VECTOR_BYTES, REGISTERS = _registers()

INT64 = ir.IntType(64)


def constant(value: int) -> Any:
    """An int64 in LLVM's terms."""
    return ir.Constant(INT64, value)


def real_of(zero: Any) -> Any:
    """LLVM's type for Numba's type of ``zero``."""
    return ir.DoubleType() if zero == types.float64 else ir.FloatType()


def vector_of(zero: Any) -> Any:
    """LLVM's type of a whole vector of ``zero``'s type."""
    return ir.VectorType(real_of(zero), VECTOR_BYTES // element_bytes(zero))


def element_bytes(zero: Any) -> int:
    """Bytes of ``zero``'s type."""
    return 8 if zero == types.float64 else 4


# --- For code generators: builder calls that the tiles are written with ---


def load(builder: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    """A number or vector, aligned as one number is."""
    return builder.load(_pointer_at(builder, kind, address, offset), align=_alignment(kind))


def store(builder: Any, value: Any, address: Any, offset: int = 0) -> None:
    """The inverse of ``load``."""
    builder.store(value, _pointer_at(builder, value.type, address, offset), align=_alignment(value.type))


def _pointer_at(builder: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    """A pointer to a kind of value at an address; every access to memory is through one.

    The function is marked as one in which null may be read. Where an address is a sum of integers, LLVM's code
    generator may take any of them for the pointer and the address proper for what is added to it. Numba inlines code
    into callers after that, and optimises it again; and there a path on which the pointer is null, because an offset
    is zero on it, would be taken for one that is never run.
    """
    set.add(builder.function.attributes, "null_pointer_is_valid")  # llvmlite's own ``add`` does not know it
    moved = builder.add(address, constant(offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def _alignment(kind: Any) -> int:
    kind = getattr(kind, "element", kind)
    if isinstance(kind, ir.IntType):
        return int(kind.width) // 8
    return 8 if isinstance(kind, ir.DoubleType) else 4


def prefetch(builder: Any, address: Any, writes: bool) -> None:
    """Ask for a cache line that will be read or written; an address that is none does no harm."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
    near, data = ir.Constant(flag, 3), ir.Constant(flag, 1)
    builder.call(function, [_pointer_at(builder, ir.IntType(8), address), ir.Constant(flag, int(writes)), near, data])


def broadcast(builder: Any, number: Any, vector: Any) -> Any:
    """A vector whose lanes are all the number; the number itself where a number is wanted."""
    if not isinstance(vector, ir.VectorType):
        return number
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


def shuffle(builder: Any, left: Any, right: Any, lanes: list[int]) -> Any:
    """The lanes of two vectors, those of the second counted on from the first's, in the order given."""
    order = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(left, right, order)


def multiply_add(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """left * right + addend; one instruction where the processor has it."""
    return builder.fadd(builder.fmul(left, right, flags=FLAGS), addend, flags=FLAGS)


def count_to(builder: Any, count: Any) -> Any:
    """A context in which ``.index`` runs from 0 to below count."""
    return cgutils.for_range(builder, count, intp=INT64)


def none_of(kind: Any) -> Any:
    """Zero, as a number or vector."""
    return ir.Constant(kind, None if isinstance(kind, ir.VectorType) else 0.0)


def each_number(builder: Any, zero: Any, count: Any) -> Iterator[tuple[Any, Any]]:
    """Loops over so many neighbouring numbers, by vectors and then one by one: kind of what is met, its offset in
    bytes."""
    vector = vector_of(zero)
    vectors = builder.sdiv(count, constant(vector.count))
    with count_to(builder, vectors) as index:
        yield vector, builder.mul(index.index, constant(VECTOR_BYTES))
    done = builder.mul(vectors, constant(vector.count))
    with count_to(builder, builder.sub(count, done)) as index:
        yield real_of(zero), builder.mul(builder.add(done, index.index), constant(element_bytes(zero)))


# --- Whole vectors, for kernels ---


@intrinsic
def bytes_of(typing_context: Any, zero: Any) -> Any:
    """Bytes of ``zero``'s type, as a constant."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return constant(element_bytes(signature.args[0]))

    return types.int64(zero), generate


@intrinsic
def copy_vector(typing_context: Any, target: Any, source: Any) -> Any:
    """VECTOR_BYTES from one address to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        store(builder, load(builder, ir.VectorType(ir.FloatType(), VECTOR_BYTES // 4), arguments[1]), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def ask_for(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which will be read; one that is none does no harm."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        prefetch(builder, arguments[0], writes=False)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def add_vector(typing_context: Any, zero: Any, target: Any, source: Any) -> Any:
    """Add the vector at one address to the one at another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, source = arguments
        left, right = (load(builder, vector_of(zero), address) for address in (target, source))
        store(builder, builder.fadd(left, right, flags=FLAGS), target)
        return context.get_dummy_value()

    return types.void(zero, types.int64, types.int64), generate


@intrinsic
def finish_vector(typing_context: Any, zero: Any, target: Any, bias: Any, rectifies: Any) -> Any:
    """Add a vector of biases to the vector at an address, and rectify the sum if asked for; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, bias, rectifies = arguments
        vector = vector_of(zero)
        total = builder.fadd(load(builder, vector, target), load(builder, vector, bias), flags=FLAGS)
        none = ir.Constant(vector, None)
        rectified = builder.select(builder.fcmp_ordered("<", total, none), none, total)
        store(builder, builder.select(builder.icmp_signed("!=", rectifies, constant(0)), rectified, total), target)
        return context.get_dummy_value()

    return types.void(zero, types.int64, types.int64, types.int64), generate


@intrinsic
def clear_vector(typing_context: Any, target: Any) -> Any:
    """Zeros for VECTOR_BYTES from an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        store(builder, ir.Constant(ir.VectorType(ir.FloatType(), VECTOR_BYTES // 4), None), arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def fetch_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """The int64 at an address, to which the amount is added at once for all threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer_at(builder, INT64, arguments[0])
        return builder.atomic_rmw("add", pointer, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def write_integer(typing_context: Any, value: Any, address: Any) -> Any:
    """An int64 to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        store(builder, arguments[0], arguments[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def fetch(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, as other threads have left it, and all that they wrote before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer_at(builder, INT64, arguments[0])
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def float_of(typing_context: Any, zero: Any, bits: Any) -> Any:
    """The float64 with these bits, in ``zero``'s type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        double = builder.bitcast(arguments[1], ir.DoubleType())
        return double if real_of(zero) == ir.DoubleType() else builder.fptrunc(double, real_of(zero))

    return zero(zero, types.int64), generate


@intrinsic
def multiply_vector(typing_context: Any, zero: Any, target: Any, source: Any) -> Any:
    """Multiply the vector at one address by the one at another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, target, source = arguments
        left, right = (load(builder, vector_of(zero), address) for address in (target, source))
        store(builder, builder.fmul(left, right, flags=FLAGS), target)
        return context.get_dummy_value()

    return types.void(zero, types.int64, types.int64), generate
