"""What every test runs under: Triton's interpreter where there is no GPU, uninitialised memory full of NaN, and kernels
that are not tuned, since there are thousands of small problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

# Triton reads this once, while it is imported; torch._dynamo imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# It learns torch's functions while it is imported: before the fixture below replaces some.
import torch._dynamo
from network_runs import clock  # noqa: F401 -- a fixture; a module may have a clock of its own

from invbench.ops.autotuning import autotuning

# Thousands of tiny operations: on shared cores, starting two threads for each costs more than they save.
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Put torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on a GPU, before pytest applies ``-m``."""
    for item in items:
        device = item.callspec.params.get("device") if getattr(item, "callspec", None) else None
        # A module whose kernels are interpreted where there is no GPU says so by its DEVICE.
        if (device or getattr(getattr(item, "module", None), "DEVICE", None)) in ("cuda", "xpu"):
            item.add_marker(pytest.mark.gpu)


def nan_filled(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``make``, whose floating-point results are full of NaN."""

    def make_nan(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = make(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    return make_nan


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """An element that a kernel forgets to write, or reads before it is written, shows.

    Not by torch.use_deterministic_algorithms, which also changes what torch.compile generates, and makes some GPU
    operators warn.
    """
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, nan_filled(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, nan_filled(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True, scope="session")
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is kept in the user's."""
    os.environ["INVBENCH_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def nothing_is_tuned() -> Iterator[None]:
    """Until a test or the harness allows it."""
    with autotuning(False):
        yield


@pytest.fixture
def bfloat16_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter converts float32 to bfloat16 as GPUs do: it cuts bits off where they round to even."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    language, convert = interpreter.tl, interpreter._convert_float

    def rounding(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (language.bfloat16, language.float32):
            return np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16
        if (source, target) != (language.float32, language.bfloat16):
            return convert(values, source, target, mode)
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)


@pytest.fixture
def environment_is_put_back() -> Iterator[None]:
    """For what changes the variables of this process's environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
