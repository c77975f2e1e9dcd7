"""Whether operators may choose by trying how they compute: in a context, never for the whole process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch

_NAME = "invbench_autotuning"
_allowed: ContextVar[bool | None] = ContextVar(_NAME, default=None)


@contextlib.contextmanager
def autotuning(allowed: bool) -> Iterator[None]:
    """Inside, operators may or may not choose by trying; without any such context they may.

    The innermost context counts. It holds for this thread and for the backward passes that it starts, which run in
    threads of PyTorch's own; a thread that somebody else starts begins with the default. Tasks of asyncio share their
    thread's: a context must not be left open while another task runs.
    """
    token, outside = _allowed.set(allowed), _handed_on()
    torch._C._stash_obj_in_tls(_NAME, allowed)  # noqa: SLF001 -- autograd hands on this, and no context variables
    try:
        yield
    finally:
        torch._C._stash_obj_in_tls(_NAME, outside)  # noqa: SLF001
        _allowed.reset(token)


def is_allowed() -> bool:
    """Whether operators may choose by trying here."""
    allowed = _allowed.get()
    return _handed_on() if allowed is None else allowed


def _handed_on() -> bool:
    """What autograd has handed on to this thread; True where it has not."""
    return bool(torch._C._get_obj_in_tls(_NAME)) if torch._C._is_key_in_tls(_NAME) else True  # noqa: SLF001
