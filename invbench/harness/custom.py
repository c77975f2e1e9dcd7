"""Operators that users bring: ``--subject package.module:factory``, or a name of the entry-point group.

A factory takes the case (``invbench.spec.Case``) and returns an nn.Module or a callable. If it has the attribute
``is_involution = True``, it claims to compute involution, and is judged by our reference:

* scope ``aggregate``: the callable takes x [N, C, H, W] and weight [N, G, K*K, H_out, W_out] and returns
  y [N, C, H_out, W_out];
* scope ``layer``: the module takes x and has the parameters of ``Involution2d`` (it loads the same state_dict).

Otherwise it takes x and returns one tensor, and is an operator of its own, checked against itself in float64.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from invbench.attention import ATTENTION
from invbench.harness.settings import CONVOLUTION_NAMES, INVOLUTION, USER, Subject, describe_failure
from invbench.ops import BACKENDS
from invbench.spec import InvbenchError

GROUP = "invbench.subjects"


def target(name: str, option: str = "--subject") -> str:
    """``package.module:factory`` of an entry point of the group, or as it was given; InvbenchError if it is neither.

    option: where it was given, for errors.
    """
    found = next(iter(entry_points(group=GROUP, name=name)), None)
    where = found.value if found else name
    module, colon, path = where.partition(":")
    if not (module and colon and path):
        known = ", ".join(sorted(entry_points(group=GROUP).names)) or "none is installed here"
        raise InvbenchError(
            f"{option} takes package.module:factory or a name of the entry-point group {GROUP!r} ({known}): "
            f"got {name!r}"
        )
    return where


def resolve(name: str, option: str = "--subject") -> Callable[..., Any]:
    """The factory of that name: an entry point of the group, or ``package.module:factory``, also from this folder.

    option: where it was given, for errors.

    Raises InvbenchError if there is none, or if importing it fails.
    """
    module, _, path = target(name, option).partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, so that a file beside the user is found
    try:
        factory: Any = importlib.import_module(module)
        for part in path.split("."):
            factory = getattr(factory, part)
    except Exception as error:
        raise InvbenchError(f"{option} {name}: it cannot be imported ({describe_failure(error)})") from error
    if not callable(factory):
        raise InvbenchError(f"{option} {name}: a factory is something to call: got {type(factory).__name__}")
    made: Callable[..., Any] = factory
    return made


def home(name: str) -> str | None:
    """The folder from which the module of a factory, ``package.module:factory``, is imported; None if it has none."""
    package = sys.modules.get(name.partition(":")[0].partition(".")[0])
    where = next(iter(getattr(package, "__path__", [])), None) or getattr(package, "__file__", None)
    return str(Path(where).resolve().parent) if where else None


def is_missing(name: str) -> str | None:
    """What of a factory, ``package.module:factory``, is not there, but may be in another version; None if all is, or if
    it is broken."""
    try:
        resolve(name)
    except InvbenchError as error:
        module = name.partition(":")[0]
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
            return f"there is no module {module}"
        if isinstance(cause, AttributeError) and module in sys.modules:
            return f"there is no {name}"
    return None


def subject(name: str) -> Subject:
    """The subject of a factory; raises InvbenchError if it cannot be had."""
    if name in (*BACKENDS, *CONVOLUTION_NAMES, *ATTENTION, INVOLUTION):
        raise InvbenchError(f"--subject {name}: this is the name of a row of ours; give the entry point another")
    if getattr(resolve(name), "is_involution", False):
        return Subject(INVOLUTION, name, factory=name)
    return Subject(name, USER, factory=name)
