"""Conditions over a point's fields: what they mean, and one line for everything that is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invbench.spec import InvbenchError
from invbench.study.expression import Expression
from invbench.study.grid import FIELDS

POINT: dict[str, Any] = {
    "N": 8, "C": 64, "H": 28, "W": 14, "K": 7, "G": 4, "stride": 1, "mode": "train", "dtype": "float16",
    "device": "cuda", "baseline": "conv2d-3x3", "group_channels": 16,
}  # fmt: skip


def value(text: str) -> Any:
    return Expression(text, FIELDS)(POINT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C = 64", True),
        ("C == 64", True),
        ("C=64 and N=8", True),
        ("C != 64", False),
        ("H >= W", True),
        ("H <= W", False),
        ("7 <= W < H", True),
        ("7 <= H < W", False),
        ("C / 16", 4.0),
        ("C // 3 % 4", 1),
        ("-C + 2 * H", -8),
        ("mode = train", True),
        ("mode = 'train'", True),
        ("mode in (forward, backward)", False),
        ("K not in [3, 5]", True),
        ("not stride = 1 or device = cuda", True),
        ("not (stride = 1 or device = cuda)", False),
        ("max(H, W) / min(H, W)", 2.0),
        ("C * 2 if dtype = float16 else C", 128),
        ("baseline = conv2d-3x3", True),
        ("baseline = 'conv2d-3x3'", True),
        ("baseline in (conv2d, depthwise, none)", False),
        ("G = 0 or C / G > 1", True),
        ("N = 8 or C / (N - 8) > 1", True),  # the division by zero is never reached
        ("  C = 64\t", True),
    ],
)
def test_value(text: str, expected: Any) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [("G = C / 16", "G", 4.0), ("H == W", "H", 14), ("mode = forward", "mode", "forward"), ("W = H - 1", "W", 27)],
)
def test_a_definition_gives_a_field_its_value(text: str, name: str, expected: Any) -> None:
    definition = Expression(text, FIELDS).definition
    assert definition is not None
    assert (definition[0], definition[1](POINT)) == (name, expected)


@pytest.mark.parametrize("text", ["H >= W", "H = W = C", "16 = C", "C / 2 = 32", "H = W and C = 64", "not H = W", "C"])
def test_anything_else_defines_nothing(text: str) -> None:
    assert Expression(text, FIELDS).definition is None


BAD: dict[str, tuple[str, str]] = {
    # what: the text, and words of the message
    "empty": ("", "cannot be read"),
    "blank": ("  ", "cannot be read"),
    "half": ("C >=", "cannot be read"),
    "two": ("C = 1; H = 2", "cannot be read"),
    "lines": ("C =\n64", "cannot be read"),
    "NUL": ("C = \0", "cannot be read"),
    "what Python doubts": ("1or H", "cannot be read"),
    "what Python doubts in text": ("mode = '\\d'", "cannot be read"),
    "walrus": ("(C := 3)", "cannot be read"),
    "typo of a field": ("c = 64", "names 'c'"),
    "typo of a word": ("mode = trian", "names 'trian'"),
    "function of nobody": ("__import__('os')", "names '__import__'"),
    "function as a word": ("H = min", "names 'min'"),
    "method": ("mode.upper() = 3", "not allowed"),
    "attribute": ("C.real = 3", "not allowed"),
    "index": ("mode[0] = 't'", "not allowed"),
    "power": ("C ** C", "not allowed"),
    "lambda": ("(lambda: 3)()", "not allowed"),
    "keyword": ("min(H, W, key=C)", "names 'key'|not allowed"),
    "unpacked": ("min(*H)", "not allowed"),
    "comprehension": ("[C for C in (1, 2)]", "not allowed"),
    "identity": ("C is 64", "not allowed"),
    "bytes": ("mode = b'train'", "not allowed"),
    "nothing": ("mode = None", "names|not allowed"),
    "too deep": ("not " * 50_000 + "C", "cannot be read|too many"),
    "too many brackets": ("(" * 5000 + "C" + ")" * 5000, "cannot be read"),
    "too long": (" + ".join(["C"] * 20_000), "cannot be read|too many"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_no_condition_is_refused_in_a_short_line(text: str, words: str) -> None:
    with pytest.raises(InvbenchError, match=words) as refused:
        Expression(text, FIELDS)
    message = str(refused.value)
    assert "H = W" in message  # the remedy
    assert len(message) < 500
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["C / (N - 8)", "C % 0", "C // 0 = 1", "C > mode", "min()", "min(3)", "-mode", "99999999999 * mode", "3 in C",
     "'%99999999999d' % C"],
)  # fmt: skip
def test_no_value_here_is_told(text: str) -> None:
    expression = Expression(text, FIELDS)
    with pytest.raises(InvbenchError, match="has no value here") as refused:
        expression(POINT)
    assert text in str(refused.value)


def test_a_definition_without_a_value_is_told() -> None:
    definition = Expression("G = C / (N - 8)", FIELDS).definition
    assert definition is not None
    with pytest.raises(InvbenchError, match="division by zero"):
        definition[1](POINT)


@settings(deadline=None)
@given(st.text(alphabet="CHN=<>!+-*/%()[],'\" 0123456789.andortif", max_size=30))
def test_any_text_has_a_value_or_a_reason(text: str) -> None:
    try:
        value(text)
    except InvbenchError as refused:
        assert "\n" not in str(refused)  # noqa: PT017 -- it may be refused, but only so


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C = 64", True), ("mode = train", True), ("G = C / 16", True), ("7 <= W < H", True), ("K in (3, 5)", True),
        ("not C", True), ("True", True), ("C = 64 and (N = 8 or H = W)", True), ("C = 3 if N = 8 else C = 4", True),
        ("C", False), ("C / 16", False), ("train", False), ("1", False), ("'C = 3'", False), ("-C", False),
        ("C and N = 8", False), ("min(C, N)", False), ("C = 3 if N = 8 else C", False), ("(C, N)", False),
    ],
)  # fmt: skip
def test_what_is_a_condition(text: str, expected: bool) -> None:
    assert Expression(text, FIELDS).is_condition is expected
