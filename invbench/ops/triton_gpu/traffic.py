"""How many bytes a launch asks of memory, counted while Triton's interpreter runs it.

Counted is what each program's loads and stores ask for under their masks, an element as often as it is asked for:
what reaches the caches, before they serve any of it. An element that a program loads once and broadcasts counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpreterBuilder

from invbench.ops.triton_gpu.launching import Launch
from invbench.spec import InvbenchError

ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes ``loaded`` and ``stored`` by the name of the tensor, ``ELSEWHERE`` for those that are in none."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)


def requested_bytes(launch: Launch) -> Traffic:
    """Run a launch on CPU tensors, and count the bytes that it asks for by the kernel's argument names.

    Slow, like all that is interpreted: for small shapes. Refused with InvbenchError where kernels are not interpreted.
    """
    if isinstance(launch.kernel, JITFunction):
        raise InvbenchError(
            "traffic is counted by Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported"
        )
    names = [name for name in launch.kernel.arg_names if name not in launch.constants]
    arguments = zip(names, launch.arguments, strict=True)
    tensors = {name: value for name, value in arguments if isinstance(value, Tensor)}
    with counted_traffic(tensors) as traffic:
        launch.run(next(iter(tensors.values())).device)
    return traffic


@contextmanager
def counted_traffic(tensors: Mapping[str, Tensor]) -> Iterator[Traffic]:
    """Count what all kernels that are interpreted meanwhile ask of these CPU tensors.

    An address belongs to the first tensor between whose first and last element it lies. Atomics are
    refused with InvbenchError.
    """
    traffic = Traffic()
    extents = {name: _extent(tensor) for name, tensor in tensors.items() if tensor.numel()}

    def count(bytes_of: Counter[str], pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.atleast_1d(pointers.data)
        addresses = addresses[np.broadcast_to(np.atleast_1d(mask.data).astype(bool), addresses.shape)]
        for name, (first, end) in extents.items():
            inside = (addresses >= first) & (addresses < end)
            if asked := int(inside.sum()):
                bytes_of[name] += asked * size
            addresses = addresses[~inside]
        if addresses.size:
            bytes_of[ELSEWHERE] += addresses.size * size

    builder: Any = InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def counting_load(self: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        count(traffic.loaded, pointers, mask)
        return load(self, pointers, mask, *args, **kwargs)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        count(traffic.stored, pointers, mask)
        return store(self, pointers, value, mask, *args, **kwargs)

    def refusing(*_: Any, **__: Any) -> Any:
        raise InvbenchError("the traffic of atomics is not counted")

    # All other ways to memory that the builder has lead through these.
    replacements = {
        "create_masked_load": counting_load,
        "create_masked_store": counting_store,
        "create_atomic_rmw": refusing,
        "create_atomic_cas": refusing,
    }
    originals = {name: getattr(builder, name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            setattr(builder, name, replacement)
        yield traffic
    finally:
        for name, original in originals.items():
            setattr(builder, name, original)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The addresses of the tensor's first byte and of the one behind its last."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
