"""What the memory server imports besides torch; what is missing or broken costs its own backend, not the server."""

from __future__ import annotations

import contextlib
import importlib
import os

from invbench.harness.server import PRELOAD

for _name in filter(None, os.environ.get(PRELOAD, "").split(",")):
    with contextlib.suppress(Exception):
        importlib.import_module(_name)
