"""What is found out about a sweep over a cluster by comparing it with one without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_journal import HEADER
from test_results import CASE, row

from invbench.harness.cluster import agreement
from invbench.results.journal import Entry, Span, open_journal
from invbench.results.quantities import Interval, Ratio

NODES = ("a" * 56, "b" * 56)


def entry(N: int, ratio: tuple[float, float], span: Span | None = None, wall: float = 1.0) -> Entry:
    low, high = ratio
    found = Interval((low + high) / 2, low, high, 6)
    case = replace(CASE, N=N)
    rows = (
        row("involution", "numba", *[1e-3] * 6, case=case, ratio=Ratio(latency=found)),
        row("conv2d", "torch", *[1e-3] * 6, case=case, ratio=Ratio(latency=Interval(1, 1, 1, 6))),
        row("separable", "torch", case=case),
    )
    return Entry(f"key{N}", rows, {"wall": wall}, span)


def journal(path: Path, *entries: Entry) -> str:
    with open_journal(path, resume=False) as kept:
        kept.add_header(HEADER)
        for each in entries:
            kept.add(each)
    return str(path)


def test_what_ray_adds_is_what_lies_between_the_ends_of_a_nodes_points() -> None:
    a, b = NODES
    entries = [
        entry(1, (1, 2), Span(a, 100.0, 107.0), wall=2.0),  # the first of its node starts the measuring process
        entry(3, (1, 2), Span(a, 109.3, 111.5), wall=2.0),
        entry(2, (1, 2), Span(a, 107.1, 109.25), wall=2.0),
        entry(4, (1, 2), Span(b, 100.0, 101.0)),
        entry(5, (1, 2)),  # without Ray
    ]
    assert agreement.overheads(entries) == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize(
    ("ratio", "second", "code", "words"),
    [
        ((1.9, 3.0), 102.1, 0, "in 1 of 1 rows (100.0%)"),
        ((2.1, 3.0), 102.1, 1, "in 0 of 1 rows (0.0%)"),
        ((1.9, 3.0), 103.1, 1, "at most 1.100 s, of 1 on warm workers"),
    ],
)
def test_agreement_and_overhead_decide(
    ratio: tuple[float, float], second: float, code: int, words: str, tmp_path: Path, capsys: Any
) -> None:
    plain = journal(tmp_path / "plain.jsonl", entry(1, (1.0, 2.0)))
    spans = [Span(NODES[0], 100.0, 101.0), Span(NODES[0], 101.0, second)]
    measured = journal(tmp_path / "ray.jsonl", entry(1, ratio, spans[0]), entry(2, (1, 2), spans[1]))
    assert agreement.main([plain, measured]) == code
    out = capsys.readouterr().out
    assert words in out
    assert ("N=1 C=" in out) == (ratio[0] > 2)
    assert agreement.main([plain, plain]) == 0  # without Ray both times
    assert "besides measuring" not in capsys.readouterr().out
    other = journal(tmp_path / "other.jsonl", entry(3, (1.0, 2.0)))
    assert agreement.main([plain, other]) == 2
