"""Registering functions as PyTorch operators ``invbench::NAME``.

``torch.library.custom_op`` imports torch.compile's machinery at an operator's first call, which takes longer than most
first calls; the steps below are those that it takes, without that one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, cast

import torch

_LIBRARY = torch.library.Library("invbench", "FRAGMENT")

Function = Callable[..., Any]


def register(
    name: str,
    function: Function,
    fake: Function,
    backward: Function | None = None,
    setup_context: Function | None = None,
) -> Function:
    """The operator ``invbench::NAME`` for every device, with its schema from the function's annotations.

    fake: makes results of the right sizes, strides and dtypes without computing anything. backward, setup_context: as
    ``torch.library.register_autograd`` takes them.
    """
    qualified = f"invbench::{name}"
    schema = torch.library.infer_schema(function, mutates_args=())
    # torch.compile may neither look for errors of ours nor hand over tensors with other strides than eager code does.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    torch.library.define(qualified, schema, lib=_LIBRARY, tags=tags)
    torch.library.impl(qualified, "CompositeExplicitAutograd", _unseen(function), lib=_LIBRARY)
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
    return cast(Function, getattr(torch.ops.invbench, name).default)


def _unseen(function: Function) -> Function:
    """The function, into which torch.compile does not look; where it is not imported, nothing can."""

    @functools.cache
    def disabled() -> Function:
        return cast(Function, torch.compiler.disable(function))

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*arguments)

    return call
