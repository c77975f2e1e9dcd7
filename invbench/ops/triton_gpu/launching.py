"""A launch of a kernel: what it is given, and on which device it runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from invbench.ops.triton_gpu.band import product

INT32_MAX = 2**31 - 1
# The largest offset within an image that kernels read and write by rows: up to 15 rows above and below an image, which
# are not loaded, and their sums with rows that are, then fit 32 bits, too, for images of any height.
ROWS_MAX = 2**27 - 1

# Triton's major and minor version.
TRITON_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])

# How kernels were decorated, whatever the environment says by now.
INTERPRETED = not isinstance(product, triton.runtime.JITFunction)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel: its arguments in order, and all that its code depends on besides their types."""

    kernel: Any
    programs: int
    arguments: tuple[Tensor | float | None, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3  # Triton's own default

    @property
    def named(self) -> dict[str, Tensor | float | None]:
        """The arguments by the kernel's names for them."""
        names = (name for name in self.kernel.arg_names if name not in self.constants)
        return dict(zip(names, self.arguments, strict=True))

    def run(self, device: torch.device) -> None:
        """Queue it on the device's current stream."""
        with _device_guard(device):
            self.kernel[(self.programs,)](
                *self.arguments, **self.constants, num_warps=self.num_warps, num_stages=self.num_stages
            )


def _device_guard(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if device.type == "cpu":
        return nullcontext()
    return torch.get_device_module(device).device(device)
