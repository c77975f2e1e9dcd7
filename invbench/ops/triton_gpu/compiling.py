"""Launches compiled for GPUs that need not be there: Triton needs neither a GPU nor a driver for it.

Only a process whose kernels are not interpreted can compile them: ``in_compilers`` starts such processes.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import triton
import triton.backends.compiler
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from invbench.ops.triton_gpu.launching import Launch
from invbench.spec import InvbenchError

Item = TypeVar("Item")
Found = TypeVar("Found")
Target = int | str  # an NVIDIA compute capability, 90 for sm_90, or the name of an AMD architecture
TARGETS: tuple[Target, ...] = (80, 90, 100, "gfx942")
OLD_TRITON = hasattr(triton.backends.compiler, "AttrsDescriptor")  # until 3.2
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip


def compile_launch(launch: Launch, target: Target) -> Any:
    """Triton's compiled kernel, with the argument types and specialisations that this launch would have.

    The launch's tensors may be on the meta device. Refused with InvbenchError where kernels are interpreted.
    """
    if not isinstance(launch.kernel, triton.runtime.JITFunction):
        raise InvbenchError("kernels are interpreted in this process and cannot be compiled: unset TRITON_INTERPRET")
    gpu = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget("hip", target, 64)
    options = {"num_warps": launch.num_warps, "num_stages": getattr(launch, "num_stages", None)}
    return triton.compile(
        source_of(launch, gpu.backend), target=gpu, options={name: n for name, n in options.items() if n is not None}
    )


def source_of(launch: Launch, backend: str) -> Any:
    """What Triton compiles, specialised by the rules of its own launcher."""
    parameters = [parameter for parameter in launch.kernel.params if parameter.name not in launch.constants]
    signature = dict.fromkeys(launch.kernel.arg_names, "constexpr")
    constants, attributes = dict(launch.constants), {}
    for parameter, value in zip(parameters, launch.arguments, strict=True):
        specialised = not parameter.do_not_specialize and not isinstance(value, float)
        if value is None or (specialised and not isinstance(value, Tensor) and value == 1):
            constants[parameter.name] = value
            continue
        signature[parameter.name], known = _type_of(value), []
        multiple = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
        if specialised and not parameter.do_not_specialize_on_alignment and multiple % 16 == 0:
            known.append(["tt.divisibility", 16])
        # Offsets from such a pointer fit 32 bits, as the AMD compiler's buffer instructions want them.
        if specialised and backend == "hip" and _is_small(value) and not OLD_TRITON:
            known.append(["tt.pointer_range", 32])
        if known:
            attributes[(parameter.num,)] = known
    if OLD_TRITON:
        signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        properties = {"tt.divisibility": [index for (index,) in attributes]}
        descriptor = triton.backends.compiler.AttrsDescriptor
        attributes = descriptor.from_dict({"arg_properties": properties, "cls": "AttrsDescriptor"})
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type_of(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    is_real = isinstance(value, float)
    return "fp32" if is_real else "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_small(value: Tensor | float) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage().nbytes() < 2**31


def in_compilers(function: Callable[[Item], Found], items: Iterable[Item]) -> list[Found]:
    """``function`` of each item, from processes that compile kernels even where this one interprets them.

    They keep what they compile in a directory of their own, which need not be under a home that can be written to.
    """
    with (
        tempfile.TemporaryDirectory() as cache,
        _environment(TRITON_CACHE_DIR=cache, TRITON_INTERPRET=None),
        ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        return list(pool.map(function, items))


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Environment variables as given for a while, None for those to leave out."""
    before = {name: os.environ.get(name) for name in values}
    try:
        _set_environment(values)
        yield
    finally:
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
