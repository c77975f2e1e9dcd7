"""Compiling, caching and running the Numba kernels."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numba
import numpy as np
import torch
from torch import Tensor

from invbench.ops.numba_cpu.kernels import OPTIONS, Flat

Kernel = Callable[..., None]

# Kernels that have run in this process, by themselves and the dtypes of their tensors.
_ready: dict[tuple[object, ...], Kernel] = {}
_one_at_a_time = threading.Lock()
_has_warned = False


def launch(kernel: Kernel, tensors: tuple[Tensor, Tensor, Tensor], *arguments: object) -> None:
    """Run a kernel on tensors, the last of which it fills."""
    if tensors[-1].numel() == 0:
        return
    signature = (kernel, *(tensor.dtype for tensor in tensors))
    arguments = (*map(_flat, tensors), *(tensor.stride() for tensor in tensors), *arguments)
    if signature in _ready and _takes_concurrent_calls():
        _ready[signature](*arguments)
        return
    with _one_at_a_time:
        if signature in _ready:
            _ready[signature](*arguments)
        else:
            _ready[signature] = _first_run(kernel, arguments)


def _takes_concurrent_calls() -> bool:
    """Whether two Python threads may run kernels at once: Numba's workqueue layer ends the process when they do."""
    try:
        return bool(numba.threading_layer() != "workqueue")
    except ValueError:  # No kernel has run, so that none has been chosen.
        return False


def _first_run(kernel: Kernel, arguments: tuple[object, ...]) -> Kernel:
    """Load the compiled kernel from Numba's cache, or compile and cache it; run it and return it.

    Numba keeps the cache in NUMBA_CACHE_DIR, beside the kernels' file or in the user's cache directory, and renews it
    when that file, Numba or the processor is another one.
    """
    torch_threads = torch.get_num_threads()
    try:
        dispatcher = numba.njit(kernel, parallel=True, cache=True, **OPTIONS)
        with _only_process_in(dispatcher.stats.cache_path):
            dispatcher(*arguments)
    # RuntimeError: there is no directory to write to. OSError: there was one, but the disk is full or forbids it.
    except (RuntimeError, OSError) as error:
        _warn_uncached(error)
        dispatcher = numba.njit(kernel, parallel=True, **OPTIONS)
        dispatcher(*arguments)
    finally:
        # Numba's OpenMP layer, when it starts, sets the number of threads of the OpenMP that it may share with torch.
        torch.set_num_threads(torch_threads)
    return cast(Kernel, dispatcher)


@contextlib.contextmanager
def _only_process_in(directory: str) -> Iterator[None]:
    """Hold a directory of the cache: of two processes that save different signatures at once, one could otherwise
    find the other's machine code under its own signature. Others wait, and then need not compile."""
    with contextlib.ExitStack() as stack:
        # Without locks (Windows, some network file systems) that is as unlikely as it is in Numba itself.
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(stack.enter_context(Path(directory, "invbench.lock").open("wb")), fcntl.LOCK_EX)
        yield


def _warn_uncached(error: Exception) -> None:
    """Say once that each process will compile for itself, and what helps."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        warnings.warn(
            f"Numba's compiled kernels cannot be cached, so that each process compiles them again ({error}); "
            "set NUMBA_CACHE_DIR to a writable directory",
            RuntimeWarning,
            stacklevel=2,
        )


def _flat(tensor: Tensor) -> Flat:
    """The tensor's memory from its first element to its last as one dimension, so that a kernel has one signature a
    dtype whatever the layout; float16 as int16 and bfloat16 as uint16."""
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.detach().as_strided((extent if tensor.numel() else 0,), (1,))
    if tensor.dtype in (torch.float16, torch.bfloat16):
        bits: Flat = flat.view(torch.int16).numpy()
        return bits if tensor.dtype == torch.float16 else bits.view(np.uint16)
    values: Flat = flat.numpy()
    return values
