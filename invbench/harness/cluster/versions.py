"""What of a node decides what is measured there, asked before anything of invbench is run on it.

Ray sends this module's text to the nodes (everything else it imports there), so that a node with another version of
invbench, or with none, can say so. Nothing but the standard library may be used here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("invbench", "torch", "triton", "numba", "numpy")


def versions() -> dict[str, str | None]:
    """Python, the packages that measure or are measured, and a hash of invbench's own source; None for what is not
    there."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}, "source": _source()}


def answer() -> Iterator[dict[str, str | None]]:
    """``versions``, as a task yields it."""
    yield versions()


def _version(name: str) -> str | None:
    try:
        # Without the build: the driver's machine may have a torch for CPUs, and the nodes one for their GPUs.
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _source() -> str | None:
    found = importlib.util.find_spec("invbench")
    if found is None or not found.submodule_search_locations:
        return None
    package = Path(next(iter(found.submodule_search_locations)))
    text = b"".join(file.read_bytes() for file in sorted(package.rglob("*.py")))
    return hashlib.sha256(text).hexdigest()[:12]
