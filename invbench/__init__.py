"""invbench: is involution really cheaper than convolution, on your hardware, today?

``involution2d``, ``Involution2d`` and ``models`` are imported when first used, so that importing invbench imports no
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invbench import models as models
    from invbench.ops import Involution2d as Involution2d
    from invbench.ops import involution2d as involution2d

__version__ = "0.1.0"
__all__ = ["Involution2d", "__version__", "involution2d", "models"]


def __getattr__(name: str) -> Any:
    if name in ("Involution2d", "involution2d"):
        return getattr(importlib.import_module("invbench.ops"), name)
    if name == "models":
        return importlib.import_module("invbench.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
