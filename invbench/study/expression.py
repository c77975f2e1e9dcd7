"""Arithmetic and conditions over a point's fields, as profiles and ``--filter`` write them: ``G = C / 16``."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from invbench.spec import BASELINES, DEVICE_TYPES, DTYPES, LAYOUTS, PADDING_MODES, InvbenchError, Mode, Scope

WORDS = {
    *DTYPES, *LAYOUTS, *PADDING_MODES, *map(str, Mode), *map(str, Scope), *BASELINES, *DEVICE_TYPES,
}  # fmt: skip

LONGEST = 80  # characters of a text that a message repeats

_EXAMPLE = "try H = W, G = C / 16, or C >= 64 and mode = train"
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.Not: operator.not_,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max}


@dataclass(frozen=True)
class Expression:
    """Names of fields, whole numbers, words, ``+ - * / // %``, comparisons, ``in``, ``and or not``, ``a if b else c``,
    ``min`` and ``max``; ``=`` means ``==``. Raises InvbenchError for anything else, when it is made."""

    text: str
    names: tuple[str, ...]
    """The fields it may use."""

    def __post_init__(self) -> None:
        called = {id(node.func) for node in ast.walk(self._tree) if isinstance(node, ast.Call)}
        for node in ast.walk(self._tree):
            known = (*self.names, *WORDS, *(_FUNCTIONS if id(node) in called else ()))
            if isinstance(node, ast.Name) and node.id not in known:
                raise InvbenchError(
                    f"{self._shown} names {node.id!r}, which is no field: take {', '.join(self.names)}; {_EXAMPLE}"
                )
        self._compiled  # noqa: B018 -- refuses what it cannot evaluate

    @property
    def _shown(self) -> str:
        """The text in a message, of which a person sees the beginning."""
        return repr(self.text if len(self.text) <= LONGEST else f"{self.text[:LONGEST]}...")

    @cached_property
    def _tree(self) -> ast.expr:
        text = re.sub(r"(?<![=!<>])=(?!=)", "==", self.text).strip()
        for word in BASELINES:
            if not word.isidentifier():
                text = re.sub(rf"""(?<!['"\w]){word}(?!['"\w])""", repr(word), text)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what Python merely doubts would be a line more on standard error
                return ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError, Warning) as error:
            raise InvbenchError(f"{self._shown} cannot be read as a condition; {_EXAMPLE}") from error

    @cached_property
    def _compiled(self) -> Callable[[Mapping[str, Any]], Any]:
        try:
            return self._build(self._tree)
        except RecursionError as error:
            raise InvbenchError(f"{self._shown} has too many parts; {_EXAMPLE}") from error

    @cached_property
    def definition(self) -> tuple[str, Callable[[Mapping[str, Any]], Any]] | None:
        """For ``NAME = ...``: the field, and what it is to be."""
        tree = self._tree
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq):
            left = tree.left
            if isinstance(left, ast.Name) and left.id in self.names:
                return left.id, self._guarded(self._build(tree.comparators[0]))
        return None

    @property
    def is_condition(self) -> bool:
        """Whether its value is true or false: that of ``G = C / 16`` is, also where that could be a definition."""
        return _is_condition(self._tree)

    def __call__(self, fields: Mapping[str, Any]) -> Any:
        """Its value; raises InvbenchError where there is none (a division by zero, a number compared with a word)."""
        return self._guarded(self._compiled)(fields)

    def _guarded(self, function: Callable[[Mapping[str, Any]], Any]) -> Callable[[Mapping[str, Any]], Any]:
        def evaluate(fields: Mapping[str, Any]) -> Any:
            try:
                return function(fields)
            except (ArithmeticError, TypeError, ValueError, MemoryError, RecursionError) as error:
                reason = str(error) or "it is too large"
                raise InvbenchError(f"{self._shown} has no value here ({reason}); {_EXAMPLE}") from error

        return evaluate

    def _build(self, node: ast.expr) -> Callable[[Mapping[str, Any]], Any]:
        """A function of the fields for a node of the syntax tree."""
        build = self._build
        match node:
            case ast.Constant(value=int() | float() | str() as value):
                return lambda _: value
            case ast.Name(id=name):
                return lambda fields: fields[name] if name in self.names else name
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                parts = [build(element) for element in elements]
                return lambda fields: [part(fields) for part in parts]
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                function, inner = _OPERATORS[type(op)], build(operand)
                return lambda fields: function(inner(fields))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                function, a, b = _OPERATORS[type(op)], build(left), build(right)
                return lambda fields: function(a(fields), b(fields))
            case ast.BoolOp(op=op, values=values):
                parts, whole = [build(value) for value in values], all if isinstance(op, ast.And) else any
                return lambda fields: whole(part(fields) for part in parts)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                condition, yes, no = build(test), build(body), build(orelse)
                return lambda fields: yes(fields) if condition(fields) else no(fields)
            case ast.Compare(left=left, ops=ops, comparators=right) if all(type(op) in _OPERATORS for op in ops):
                terms, functions = [build(left), *map(build, right)], [_OPERATORS[type(op)] for op in ops]
                return lambda fields: _chain([term(fields) for term in terms], functions)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                parts = [build(argument) for argument in arguments]
                return lambda fields: _FUNCTIONS[name](*(part(fields) for part in parts))
        raise InvbenchError(f"{self._shown} has a part that is not allowed: {ast.unparse(node)!r}; {_EXAMPLE}")


def _is_condition(node: ast.expr) -> bool:
    match node:
        case ast.Compare() | ast.UnaryOp(op=ast.Not()) | ast.Constant(value=bool()):
            return True
        case ast.BoolOp(values=parts):
            return all(map(_is_condition, parts))
        case ast.IfExp(body=body, orelse=orelse):
            return _is_condition(body) and _is_condition(orelse)
    return False


def _chain(values: list[Any], functions: list[Callable[[Any, Any], Any]]) -> bool:
    return all(function(left, right) for function, left, right in zip(functions, values, values[1:], strict=False))
