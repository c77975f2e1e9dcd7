"""What is stored: exact intervals, and a document of schema 1 that survives writing and refuses damage."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invbench.results import Result, ResultSet, Status, find
from invbench.results.quantities import Interval, Memory, Ratio, Samples
from invbench.spec import DTYPES, LAYOUTS, PADDING_MODES, Case, InvbenchError, LayerSpec, Mode, Scope

# --- Rows and documents that the other tests of telling use, too ---

CASE = Case(8, 28, 28, LayerSpec(256, 7, 16), threads=2)


def samples(*medians: float, stop: str = "precision") -> Samples:
    """A latency with one block of three samples for each median."""
    return Samples(tuple((0.9 * m, m, 1.2 * m) for m in medians), calls=1, stop=stop)


def row(subject: str = "involution", backend: str = "numba", *medians: float, **fields: Any) -> Result:
    """An ok row whose counts are easy to recognise, or one that is not ok where ``status`` says so."""
    if fields.get("status", Status.OK) is Status.OK:
        fields.setdefault("latency", samples(*(medians or [1e-3] * 6)))
        fields.setdefault("first_call", 0.5)
        fields.setdefault("memory", Memory(3 * 2**20, "vmhwm"))
        fields.setdefault("error", {"relative": 2e-7, "tolerance": 1e-4})
    counts = {"params": 60_000, "macs": 400_000_000, "flop": 800_000_000, "bytes_min": 13_000_000}
    return Result(subject, backend, **{"case": CASE, **counts, **fields})


def document(*rows: Result, **fields: Any) -> ResultSet:
    """A result set around rows."""
    defaults: dict[str, Any] = {
        "command": "invbench op --K 7",
        "created": "2026-01-02T03:04:05+00:00",
        "tool_version": "0.1.0",
        "environment": {
            "versions": {"torch": "2.13.0", "numba": "0.68.1"},
            "cpu": {"model": "A CPU", "usable": 2, "capability": "AVX512"},
            "gpu": None,
        },
        "settings": {"seed": 0},
        "peaks": {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10},
        "baseline": "conv2d",
    }
    return ResultSet(results=rows, **{**defaults, **fields})


# --- The order-statistic interval ---


def brute_force_rank(n: int) -> int:
    """The largest k for which [v(k), v(n+1-k)] holds the median with at least 95 %, at least 1, in exact numbers."""
    best = 1
    for k in range(1, n // 2 + 1):
        below = Fraction(sum(math.comb(n, successes) for successes in range(k)), 2**n)
        if 1 - 2 * below >= Fraction(95, 100):
            best = k
    return best


@pytest.mark.parametrize("n", range(1, 61))
def test_interval_is_exact(n: int) -> None:
    values = list(range(1, n + 1))
    interval = Interval.of(values[::-1])
    k = brute_force_rank(n)
    assert (interval.low, interval.high, interval.count) == (k, n + 1 - k, n)
    assert interval.median == (n + 1) / 2


@pytest.mark.parametrize(
    ("n", "ranks"), [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (12, (3, 10)), (20, (6, 15))]
)
def test_interval_ranks_of_the_tables(n: int, ranks: tuple[int, int]) -> None:
    interval = Interval.of(range(1, n + 1))
    assert (interval.low, interval.high) == ranks


@pytest.mark.parametrize("n", [1000, 1100, 3000])
def test_interval_of_very_many_values(n: int) -> None:
    # A long budget for one subject makes thousands of rounds, where 0.5**n underflows and comb(n, k) is no float.
    interval = Interval.of(range(1, n + 1))
    k = interval.low
    assert interval.high == n + 1 - k
    # The normal approximation is good to a rank or two here.
    assert abs(k - (n / 2 - 1.96 * math.sqrt(n) / 2)) <= 2


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(Interval(2.0, 1.9, 2.3, 6), 0.1), (Interval(2.0, 2.0, 2.0, 6), 0.0), (Interval(0.0, 0.0, 1.0, 6), math.inf)],
    ids=["some", "none", "zero median"],
)
def test_half_width_is_a_share_of_the_median(interval: Interval, expected: float) -> None:
    assert interval.half_width == pytest.approx(expected)


def test_samples_are_summarised_by_their_blocks_medians() -> None:
    found = Samples(((1.0, 9.0, 2.0), (4.0,), (3.0, 3.0), (8.0, 6.0)))
    assert found.block_medians == (2.0, 4.0, 3.0, 7.0)
    assert found.interval == Interval(3.5, 2.0, 7.0, 4)
    assert found.mad == 1.0  # of 1.5, 0.5, 0.5, 3.5
    assert found.to_dict()["samples"] == 8
    assert found.to_dict()["blocks"] == [[1.0, 9.0, 2.0], [4.0], [3.0, 3.0], [8.0, 6.0]]


# --- The document ---

NUMBER, WHOLE, NULL = (int, float), int, type(None)
# CLI.md, "A result document (schema 1)", with a type where the value varies. Written out, not derived from the code.
RATIO: dict[str, Any] = {
    "latency": {"median": NUMBER, "low": NUMBER, "high": NUMBER, "pairs": WHOLE},
    "memory": (int, float, NULL),
    "params": (int, float, NULL),
    "flop": (int, float, NULL),
}
ROW: dict[str, Any] = {
    "subject": str, "backend": str, "status": "ok", "reason": None,
    "case": {
        "N": WHOLE, "C": WHOLE, "H": WHOLE, "W": WHOLE, "K": WHOLE, "G": WHOLE, "stride": WHOLE, "dilation": WHOLE,
        "reduction": WHOLE, "padding_mode": str, "device": str, "dtype": str, "layout": str, "mode": str,
        "scope": str, "threads": WHOLE,
    },
    "latency": {
        "unit": "s", "median": NUMBER, "mad": NUMBER, "low": NUMBER, "high": NUMBER, "blocks": [[NUMBER]],
        "samples": WHOLE, "clock": str, "cache": str, "stop": str,
    },
    "first_call": {"unit": "s", "value": NUMBER},
    "memory": {"unit": "B", "peak": (int, NULL), "method": (str, NULL)},
    "params": WHOLE, "macs": WHOLE, "flop": WHOLE, "bytes_min": WHOLE,
    "flop_per_s": NUMBER, "bytes_per_s": NUMBER, "roofline_fraction": (int, float, NULL),
    "error": {"relative": NUMBER, "tolerance": NUMBER},
    "ratio": RATIO,
    "warnings": [str],
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "schema": 1, "tool": {"name": "invbench", "version": str}, "command": str, "created": str,
    "environment": dict, "settings": dict, "peaks": {"matmul_flop_per_s": NUMBER, "copy_bytes_per_s": NUMBER},
    "baseline": (str, NULL), "results": [ROW],
}  # fmt: skip


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where a JSON value departs from a structure of types, literals, fields (others may stand beside) and lists."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            yield f"{where}: {found!r} is no object"
            return
        for name, inner in expected.items():
            if name in found:
                yield from differences(found[name], inner, f"{where}.{name}")
            else:
                yield f"{where}.{name}: missing"
    elif isinstance(expected, list):
        if not isinstance(found, list):
            yield f"{where}: {found!r} is no list"
            return
        for index, element in enumerate(found):
            yield from differences(element, expected[0], f"{where}[{index}]")
    elif isinstance(expected, type | tuple):
        if not isinstance(found, expected) or isinstance(found, bool):
            yield f"{where}: {found!r} is no {expected}"
    elif found != expected:
        yield f"{where}: {found!r} is not {expected!r}"


def full_document() -> ResultSet:
    ratio = Ratio(Interval(0.5, 0.4, 0.6, 6), 0.25, 0.1, None)
    return document(
        row(ratio=ratio, roofline_fraction=0.4, warnings=("noisy: stop other programs",), case=CASE),
        row("conv2d", "torch", ratio=Ratio(Interval(1.0, 1.0, 1.0, 6), 1.0, 1.0, 1.0), chosen_layout="contiguous"),
    )


def test_document_has_every_field_of_schema_1() -> None:
    assert list(differences(json.loads(full_document().to_json()), DOCUMENT)) == []


def test_what_a_gpu_told_survives() -> None:
    latency = replace(
        samples(1e-3, 2e-3), clock="device", launches="graph", floor=2e-6, discarded=3, power_capped=(True, False)
    )  # fmt: skip
    written = document(row(latency=latency)).to_json()
    stored = json.loads(written)["results"][0]["latency"]
    assert stored["power_capped"] == [True, False]
    assert ResultSet.from_json(written).results[0].latency == latency
    for name in ("launches", "floor", "discarded", "power_capped"):  # documents from before there were such fields
        del stored[name]
    assert Samples.from_dict(stored) == replace(
        latency, launches=None, floor=None, discarded=None, power_capped=None
    )  # fmt: skip


def test_structure_check_notices_what_is_wrong() -> None:
    stored = json.loads(full_document().to_json())
    del stored["created"]
    stored["results"][0]["latency"]["unit"] = "ms"
    stored["results"][1]["params"] = 2.5
    assert len(list(differences(stored, DOCUMENT))) == 3


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_a_row_that_is_not_ok_keeps_its_reason_and_has_no_latency(status: Status) -> None:
    stored = json.loads(document(row(status=status, reason="why: so")).to_json())["results"][0]
    assert stored["status"] == status.value
    assert stored["reason"] == "why: so"
    for name in ("latency", "first_call", "memory", "flop_per_s", "bytes_per_s", "roofline_fraction", "error"):
        assert stored[name] is None, name
    assert stored["case"] == CASE.to_dict()
    assert [stored[name] for name in ("params", "macs", "flop")] == [60_000, 400_000_000, 800_000_000]


def test_rates_follow_from_counts_and_the_median() -> None:
    stored = row(flop=6, bytes_min=3, latency=samples(0.5)).to_dict()
    assert (stored["flop_per_s"], stored["bytes_per_s"]) == (12.0, 6.0)


def test_rates_of_a_zero_latency_are_null() -> None:
    stored = row(latency=samples(0.0)).to_dict()
    assert (stored["flop_per_s"], stored["bytes_per_s"]) == (None, None)


def test_find_takes_the_first_row_of_a_subject() -> None:
    rows = [row(backend="naive"), row(), row("conv2d", "torch")]
    assert find(rows, "involution") is rows[0]
    assert find(rows, "conv2d") is rows[2]
    assert find(rows, "separable") is None


whole = st.integers(0, 2**62)
seconds = st.floats(1e-9, 1e4)
share = st.none() | st.floats(0, 1e9)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    G = draw(st.integers(1, 8))
    small = st.integers(1, 64)
    layer = LayerSpec(
        G * draw(small), 2 * draw(st.integers(0, 4)) + 1, G, draw(st.integers(1, 3)), draw(st.integers(1, 3)),
        draw(st.integers(1, 8)), draw(st.sampled_from(PADDING_MODES)),
    )  # fmt: skip
    image = st.integers(layer.padding + 1, 99)  # whatever the padding mode
    return Case(
        draw(small), draw(image), draw(image), layer, draw(st.sampled_from(["cpu", "cuda", "cuda:1"])),
        draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(Mode)),
        draw(st.sampled_from(Scope)), draw(small),
    )  # fmt: skip


blocks = st.lists(st.lists(seconds, min_size=1, max_size=4).map(tuple), min_size=1, max_size=8).map(tuple)
intervals = st.builds(Interval, seconds, seconds, seconds, st.integers(1, 60))
rows = st.builds(
    Result, subject=st.text(), backend=st.text(), case=cases(), status=st.sampled_from(Status),
    reason=st.none() | st.text(), first_call=st.none() | seconds, chosen_layout=st.none() | st.sampled_from(LAYOUTS),
    latency=st.none() | st.builds(Samples, blocks, calls=st.integers(1, 99), stop=st.sampled_from(["noise", "budget"])),
    memory=st.none() | st.builds(Memory, st.none() | whole, st.none() | st.text()),
    params=st.none() | whole, macs=st.none() | whole, flop=st.none() | whole, bytes_min=st.none() | whole,
    roofline_fraction=share, error=st.none() | st.fixed_dictionaries({"relative": seconds, "tolerance": seconds}),
    ratio=st.none() | st.builds(Ratio, st.none() | intervals, share, share, share),
    warnings=st.lists(st.text(), max_size=2).map(tuple),
)  # fmt: skip


@given(
    st.builds(
        ResultSet,
        results=st.lists(rows, max_size=3).map(tuple),
        command=st.text(),
        created=st.text(),
        tool_version=st.text(),
        environment=st.dictionaries(st.text(), st.none() | st.text()),
        settings=st.dictionaries(st.text(), whole),
        baseline=st.none() | st.text(),
        interrupted=st.booleans(),
        peaks=st.none() | st.fixed_dictionaries({"matmul_flop_per_s": seconds, "copy_bytes_per_s": seconds}),
    )
)
def test_document_survives_writing_and_reading(written: ResultSet) -> None:
    text = written.to_json()
    assert ResultSet.from_json(text) == written
    assert ResultSet.from_json(text).to_json() == text


NOT_A_NUMBER = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)


@NOT_A_NUMBER
@pytest.mark.parametrize(
    "make",
    [
        lambda value: document(row(roofline_fraction=value)),
        lambda value: document(row(error={"relative": value, "tolerance": 1e-4})),
        lambda value: document(row(latency=samples(1.0, value))),
        lambda value: document(row(), environment={"load": value}),
    ],
    ids=["roofline", "error", "latency", "environment"],
)
def test_json_never_holds_nan_or_infinity(make: Callable[[float], ResultSet], value: float) -> None:
    # Written as null or refused: either keeps the document JSON.
    try:
        text = make(value).to_json()
    except ValueError:
        return
    assert not {"NaN", "Infinity", "-Infinity"} & set(text.replace(",", " ").split())


# --- Damage ---


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "1", "[]", "{}", '"text"', "no JSON at all", '{"schema": 1', "\x00\xff\x1b[31m", "<html>\n</html>",
        '{"schema": 1}', '{"schema": 0}', '{"schema": 2, "results": []}', '{"schema": "1"}', '{"schema": null}',
        '{"schema": [1]}',
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvbenchError) as refusal:
        ResultSet.from_json(text)
    assert str(refusal.value).isprintable()


def test_an_unknown_schema_is_refused_by_its_number() -> None:
    stored = json.loads(full_document().to_json())
    stored["schema"] = 7
    with pytest.raises(InvbenchError, match=r"got 7.*version that wrote it"):
        ResultSet.from_json(json.dumps(stored))


def paths(structure: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """All fields of a structure."""
    if isinstance(structure, dict):
        for name, inner in structure.items():
            yield (*path, name)
            yield from paths(inner, (*path, name))
    elif isinstance(structure, list):
        yield from paths(structure[0], (*path, 0))


# The summary of a latency and what is divided out of it are computed again from the raw samples; units are fixed by
# the schema, and tool.name says nothing new.
COMPUTED_AGAIN = {"unit", "median", "mad", "low", "high", "samples", "flop_per_s", "bytes_per_s", "name"}
NEEDED = [
    path
    for path in paths(DOCUMENT)
    if path[-1] not in COMPUTED_AGAIN or "ratio" in path
    if "error" not in path[:-1]  # read as it is
    if path[:2] != ("peaks", "matmul_flop_per_s") and path[:2] != ("peaks", "copy_bytes_per_s")
]


@pytest.mark.parametrize("path", NEEDED, ids=lambda path: ".".join(map(str, path)))
def test_a_document_without_a_field_is_refused(path: tuple[str | int, ...]) -> None:
    # A default that stands in for a lost field would invent a measurement.
    stored = json.loads(full_document().to_json())
    place = stored
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    with pytest.raises(InvbenchError) as refusal:
        ResultSet.from_json(json.dumps(stored))
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results",), None),
        (("results",), 5),
        (("results", 0), "a row"),
        (("environment",), None),
        (("results", 0, "status"), "great"),
        (("results", 0, "case"), None),
        (("results", 0, "case", "mode"), "sideways"),
        (("results", 0, "case", "N"), "8"),
        (("results", 0, "case", "K"), 4),
        (("results", 0, "case", "surprise"), 1),
        (("results", 0, "latency"), 0.5),
        (("results", 0, "latency", "blocks"), []),
        (("results", 0, "latency", "blocks"), [[]]),
        (("results", 0, "latency", "blocks"), [["fast"]]),
        (("results", 0, "ratio"), 2),
        (("results", 0, "memory"), "much"),
        (("results", 0, "warnings"), None),
    ],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else repr(part),
)
def test_a_document_with_a_damaged_field_is_refused(path: tuple[str | int, ...], value: Any) -> None:
    stored = copy.deepcopy(json.loads(full_document().to_json()))
    place = stored
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InvbenchError) as refusal:
        ResultSet.from_json(json.dumps(stored))
    assert str(refusal.value).isprintable()
