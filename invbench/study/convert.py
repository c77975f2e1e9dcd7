"""Values of a profile's keys, from TOML: each function converts one, or refuses it with an InvbenchError.

The message says what the key takes and what it got; who calls knows the file, the line and the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from invbench.ops import BACKENDS
from invbench.spec import InvbenchError, require_choice
from invbench.study.expression import Expression
from invbench.study.grid import FIELDS, NUMBERS, Values, check_value, parse_axis

MOST_SECONDS = 1e9

Converter = Callable[[Any], Any]


def number(value: Any) -> float:
    """A number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_SECONDS:
        raise InvbenchError(f"it takes a number above 0 and below {MOST_SECONDS:g}: got {value!r}")
    return float(value)


def count(value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvbenchError(f"it takes a whole number of at least 1: got {value!r}")
    return value


def text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise InvbenchError(f"it takes text: got {value!r}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of some."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(each, str) for each in values):
        raise InvbenchError(f"it takes text or a list of texts: got {value!r}")
    return tuple(values)


def expression(value: Any) -> Expression:
    """A condition over the fields of a point, or a definition of one."""
    return Expression(text(value), FIELDS)


def expressions(value: Any) -> tuple[Expression, ...]:
    """What constraints are: one or a list."""
    return tuple(map(expression, texts(value)))


def backends(value: Any) -> tuple[str, ...]:
    """The names of backends, none twice."""
    names = texts(value)
    for name in names:
        require_choice("backend", name, tuple(BACKENDS))
    return tuple(dict.fromkeys(names))


def word(*choices: str) -> Callable[[Any], str]:
    """A converter that takes one of these words."""

    def convert(value: Any) -> str:
        require_choice("it", text(value), choices)
        return str(value)

    return convert


def table(value: Any) -> dict[str, Any]:
    """A table, whose values are converted one by one."""
    if not isinstance(value, dict):
        raise InvbenchError(f"it takes a table: got {value!r}")
    return value


def tables(header: str) -> Callable[[Any], list[dict[str, Any]]]:
    """A converter that takes tables under a header in double brackets."""

    def convert(value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            raise InvbenchError(f"it takes [[{header}]] tables: got {value!r}")
        return value

    return convert


def axis(name: str) -> Callable[[Any], Values]:
    """A converter that takes the values of an axis."""

    def convert(value: Any) -> Values:
        items = value if isinstance(value, list) else [value]
        if not items:
            raise InvbenchError("it takes at least one value: got []")
        found: list[int | str] = []
        for item in items:
            if isinstance(item, str):
                found += parse_axis(name, item)
            elif name in NUMBERS:
                found.append(check_value(name, item))
            else:
                raise InvbenchError(f"it takes words: got {item!r}")
        return tuple(dict.fromkeys(found))

    return convert
