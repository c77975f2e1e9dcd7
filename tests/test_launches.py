"""Several launches of a point as one: their rows, their values, and what is told of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_journal import HEADER
from test_results import document, row, samples

from invbench.report.headline import method, nodes_of
from invbench.results import Result, ResultSet, Status
from invbench.results.journal import Entry, open_journal, read_document
from invbench.results.launches import together
from invbench.results.quantities import Interval, Memory, Samples
from invbench.spec import InvbenchError

PEAKS = {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}


def rounds(*medians: float, calls: int = 1, stop: str = "precision", **fields: Any) -> Samples:
    return Samples(tuple((median,) for median in medians), calls=calls, stop=stop, **fields)


# --- Samples ---


def test_each_process_is_a_value() -> None:
    merged = Samples.together([rounds(1.0, 2.0, 9.0), rounds(4.0), rounds(3.0, 5.0)])
    assert merged.processes == (3, 1, 2)
    assert merged.values == (2.0, 4.0, 4.0)
    assert merged.interval == Interval(4.0, 2.0, 4.0, 3)
    assert merged.mad == 0.0
    assert merged.block_medians == (1.0, 2.0, 9.0, 4.0, 3.0, 5.0)


def test_a_ratio_pairs_rounds_and_then_takes_each_process_for_one() -> None:
    subject = Samples.together([rounds(1.0, 2.0, 30.0), rounds(4.0, 4.0)])
    base = Samples.together([rounds(1.0, 1.0, 10.0), rounds(1.0, 2.0)])
    assert subject.over(base) == Interval(2.5, 2.0, 3.0, 2)
    assert base.over(base) == Interval(1.0, 1.0, 1.0, 2)


def test_a_ratio_to_nothing_is_none() -> None:
    one, zero = rounds(1.0, 2.0), rounds(0.0, 0.0)
    assert one.over(zero) is None
    assert Samples.together([one, one]).over(Samples.together([zero, zero])) is None
    assert Samples.together([one, one]).over(Samples.together([zero, one])) == Interval(1.0, 1.0, 1.0, 1)


blocks = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=7)


@given(st.lists(blocks, min_size=1, max_size=9))
def test_values_are_those_of_the_processes_alone(launches: list[list[float]]) -> None:
    merged = Samples.together([rounds(*own) for own in launches])
    assert merged.values == (
        tuple(statistics.median(own) for own in launches) if len(launches) > 1 else tuple(launches[0])
    )
    assert merged.interval == Interval.of(merged.values)
    stored = json.loads(json.dumps(merged.to_dict()))
    assert Samples.from_dict(stored) == merged
    assert stored["processes"] == [len(own) for own in launches]


def test_one_process_stores_nothing_of_processes() -> None:
    assert "processes" not in rounds(1.0).to_dict()


def test_of_what_differs_the_most_cautious_is_told() -> None:
    one = rounds(1.0, calls=7, floor=1e-7, discarded=2, power_capped=(True,), launches="graph")
    other = rounds(2.0, calls=3, stop="budget", floor=2e-7, discarded=1, power_capped=(False,), launches="queue")
    merged = Samples.together([one, other])
    assert (merged.calls, merged.stop, merged.floor, merged.discarded) == (3, "budget", 2e-7, 3)
    assert (merged.power_capped, merged.launches) == ((True, False), None)
    assert Samples.together([one, replace(other, power_capped=None)]).power_capped is None
    assert Samples.together([one, one]).launches == "graph"


@pytest.mark.parametrize("processes", [(1, 1), (3, 0), (), (4, -1)], ids=str)
def test_processes_have_all_the_blocks(processes: tuple[int, ...]) -> None:
    with pytest.raises(InvbenchError, match="each process measured some of the blocks"):
        Samples(((1.0,),) * 3, processes=processes)


# --- Rows ---


def by_number(launches: Sequence[Sequence[Result]]) -> dict[int, Sequence[Result]]:
    return dict(enumerate(launches))


def launch(number: int, subject: float = 2.0, base: float = 1.0, **fields: Any) -> tuple[Result, ...]:
    """Two rows of six rounds; the first launch measures peak memory."""
    memory, twice = (Memory(7, "vmhwm"), Memory(14, "vmhwm")) if number == 1 else (None, None)
    own = {
        "baseline": "conv2d",
        "machine": "abc",
        "peaks": PEAKS,
        "memory": memory,
        "flop": 10**9,
        "bytes_min": 10**6,
        "params": 6,
    }
    return (
        row("involution", "numba", **{**own, "latency": samples(*[subject] * 6), **fields}),
        row(
            "conv2d", "torch", latency=samples(*[base] * 6), **{**own, "memory": twice, "params": 24, "flop": 8 * 10**9}
        ),
    )


def test_rows_of_six_launches_are_one_with_an_interval_over_them() -> None:
    launches = [launch(n, subject=0.002 * (100 + n), base=0.001) for n in range(1, 7)]
    involution, base = together(by_number(launches), 6)
    assert involution.latency.interval == Interval(pytest.approx(0.207), 0.202, 0.212, 6)
    assert involution.ratio.latency == Interval(*(pytest.approx(value) for value in (207, 202, 212)), 6)
    assert base.ratio.latency == Interval(1.0, 1.0, 1.0, 6)
    assert (involution.ratio.memory, involution.ratio.params, involution.ratio.flop) == (0.5, 0.25, 0.125)
    assert (involution.memory, involution.status) == (Memory(7, "vmhwm"), Status.OK)
    assert involution.warnings == ()


def test_peaks_are_the_most_that_was_seen_and_the_roofline_follows() -> None:
    launches = [launch(n, peaks={**PEAKS, "matmul_flop_per_s": n * 1e9}) for n in (1, 2, 3)]
    involution, _ = together(by_number(launches), 3)
    assert involution.peaks == {**PEAKS, "matmul_flop_per_s": 3e9}
    assert involution.roofline_fraction == pytest.approx(1e9 / 3e9 / 2.0)


def test_the_worst_difference_from_the_reference_and_the_usual_layout_are_told() -> None:
    errors = [{"relative": 1e-7, "tolerance": 1e-4}, {"relative": 9e-6, "tolerance": 1e-4}]
    layouts = ["contiguous", "channels_last", "channels_last"]
    launches = [launch(n, error=errors[n == 2], chosen_layout=layouts[n - 1]) for n in (1, 2, 3)]
    involution, _ = together(by_number(launches), 3)
    assert involution.error == errors[1]
    assert involution.chosen_layout == "channels_last"


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_row_that_failed_once_is_not_ok(bad: int) -> None:
    how = {"status": Status.MISMATCH, "reason": "differs by 1e-2", "latency": None}
    launches = [launch(n, **(how if n == bad else {})) for n in (1, 2, 3)]
    involution, base = together(by_number(launches), 3)
    assert (involution.status, involution.latency) == (Status.MISMATCH, None)
    assert involution.reason == f"in launch {bad} of 3: differs by 1e-2"
    assert base.status is Status.OK
    assert involution.ratio.latency is None


def test_a_row_that_fails_alike_in_all_launches_says_it_once() -> None:
    how = {"status": Status.UNAVAILABLE, "reason": "it runs on GPUs", "latency": None}
    involution, _ = together(by_number([launch(n, **how) for n in (1, 2)]), 2)
    assert (involution.status, involution.reason) == (Status.UNAVAILABLE, "it runs on GPUs")


def test_without_a_baseline_there_is_no_ratio() -> None:
    launches = [tuple(replace(each, baseline=None) for each in launch(n)) for n in (1, 2)]
    assert {each.ratio for each in together(by_number(launches), 2)} == {None}


def test_a_baseline_that_failed_costs_the_ratios_only() -> None:
    launches = [launch(n) for n in (1, 2)]
    launches[1] = (launches[1][0], replace(launches[1][1], status=Status.ERROR, reason="it broke", latency=None))
    involution, base = together(by_number(launches), 2)
    assert (involution.status, involution.ratio.latency, involution.ratio.params) == (Status.OK, None, 0.25)
    assert base.status is Status.ERROR


def placed(number: int, node: str, device: str | None = None) -> tuple[Result, ...]:
    return tuple(replace(each, node=node, device=device) for each in launch(number))


def test_launches_on_several_nodes_are_one_point() -> None:
    launches = [placed(n, f"node{n % 2}") for n in (1, 2, 3)]
    failed = replace(launches[1][0], status=Status.ERROR, reason="lost", latency=None)
    rows = together(by_number([launches[0], (failed, launches[1][1]), launches[2]]), 3)
    assert {each.node for each in rows} == {"node0, node1"}
    assert len(document(*rows).points()) == 1


def test_nodes_and_their_devices_are_told_one_by_one_whatever_shared_a_point() -> None:
    one = together(by_number([placed(1, "b", "cuda:1"), placed(2, "a", "cuda:0")]), 2)
    other = together(by_number([placed(1, "a", "cuda:0"), placed(2, "a", "cuda:0")]), 2)
    assert {(each.node, each.device) for each in one} == {("a, b", "cuda:0, cuda:1")}
    assert {(each.node, each.device) for each in other} == {("a", "cuda:0")}
    assert nodes_of(document(*one, *other)) == ["measured on 2 nodes: a with cuda:0; b with cuda:1"]
    alike = together(by_number([placed(1, "b", "cuda:0"), placed(2, "a", "cuda:0")]), 2)
    assert nodes_of(document(*alike)) == ["measured on 2 nodes: a with cuda:0; b with cuda:0"]
    shared = together(by_number([placed(1, "a", "cuda:0"), placed(2, "a", "cuda:1")]), 2)
    assert nodes_of(document(*shared)) == ["measured on 1 node: a with cuda:0 and cuda:1"]
    three = together(by_number([*(placed(n, "a", f"cuda:{n}") for n in (0, 1)), placed(2, "b", "cuda:0")]), 3)
    assert nodes_of(document(*three)) == ["measured on 2 nodes: a with cuda:0 and cuda:1; b with cuda:0"]
    without = together(by_number([placed(1, "b"), placed(2, "a")]), 2)
    assert nodes_of(document(*without)) == ["measured on 2 nodes: a; b"]


def test_a_launch_of_which_nothing_came_costs_no_more_than_itself() -> None:
    gone = tuple(
        replace(each, status=Status.ERROR, reason="lost 2 times", latency=None, node="b") for each in launch(2)
    )
    launches = {0: placed(1, "a"), 1: gone, 3: placed(4, "a")}
    for each in together(launches, 4):
        assert (each.status, each.node, each.latency.processes) == (Status.OK, "a", (6, 6))
        assert "launch 2 of 4 came to nothing: lost 2 times" in each.warnings
        assert "only 3 of 4 launches are measured: --resume measures the others" in each.warnings
    everywhere = together({0: gone, 1: gone}, 2)
    assert {(each.status, each.reason) for each in everywhere} == {(Status.ERROR, "lost 2 times")}


def test_peak_memory_is_not_known_where_the_launch_that_measures_it_is_lost() -> None:
    gone = tuple(replace(each, status=Status.ERROR, reason="lost", latency=None, memory=None) for each in launch(1))
    involution, _ = together({0: gone, 1: launch(2), 2: launch(3)}, 3)
    assert involution.memory == Memory(None, None)
    assert involution.ratio.memory is None
    assert involution.warnings[-1] == "peak memory is not known: the launch that measures it came to nothing"
    assert together({1: launch(2), 2: launch(3)}, 3)[0].memory is None  # it is still to be measured


@pytest.mark.parametrize(
    ("rounds", "words"), [(7, "of its rounds"), (2, "of its rounds of 2 round(s), of which it is")]
)
def test_where_one_launch_is_left_its_rounds_are_told(rounds: int, words: str) -> None:
    gone = tuple(replace(each, status=Status.ERROR, reason="lost", latency=None) for each in launch(2))
    involution, _ = together({0: launch(1, latency=samples(*[1.0] * rounds)), 1: gone}, 2)
    assert involution.latency.is_of_one_process
    assert involution.latency.interval.count == rounds
    assert any(warning.startswith(f"only 1 launch: the interval is that {words}") for warning in involution.warnings)
    assert method(document(involution, settings={})).startswith(f"1 launch of {rounds} rounds")


def test_a_launch_that_differs_from_the_reference_throughout_is_no_lost_one() -> None:
    wrong = tuple(replace(each, status=Status.MISMATCH, reason="differs", latency=None) for each in launch(2))
    rows = together({0: launch(1), 1: wrong}, 2)
    assert {(each.status, each.reason) for each in rows} == {(Status.MISMATCH, "in launch 2 of 2: differs")}


def test_launches_are_told_by_their_own_numbers_and_reasons_without_theirs() -> None:
    how = {"status": Status.OOM, "latency": None}
    launches = {2: launch(3), 4: launch(5, reason="3.1 GiB are free", **how)}
    assert together(launches, 6)[0].reason == "in launch 5 of 6: 3.1 GiB are free"
    launches[2] = launch(3, reason="2.9 GiB are free", **how)
    assert together(launches, 6)[0].reason == "2.9 GiB are free"


def test_launches_that_chose_another_layout_say_so() -> None:
    layouts = ["contiguous", "channels_last", "channels_last"]
    rows = together(by_number([launch(n, chosen_layout=layouts[n - 1]) for n in (1, 2, 3)]), 3)
    assert any("was channels_last in 2, contiguous in 1 of 3 launches" in warning for warning in rows[0].warnings)


def test_one_launch_of_several_has_the_interval_of_its_rounds() -> None:
    (involution, _) = together({0: launch(1, latency=samples(1.0, 1.0, 2.0, 2.0, 3.0, 3.0))}, 6)
    assert involution.latency.processes == (6,)
    assert involution.latency.interval == Interval(2.0, 1.0, 3.0, 6)
    assert involution.ratio.latency.count == 6


@pytest.mark.parametrize(
    ("measured", "asked_for", "spread", "words"),
    [
        (3, 3, 0.0, ["only 3 launches: the interval is their range; from 6 on (--launches) it is one of 95%"]),
        (1, 6, 0.0, ["only 1 of 6 launches are measured: --resume"]),
        (6, 8, 0.0, ["only 6 of 8 launches are measured: --resume measures the others"]),
        (6, 6, 0.2, ["noisy: the interval over launches is wider than +-5%"]),
        (6, 6, 0.01, []),
    ],
)
def test_what_makes_an_interval_doubtful_is_told(
    measured: int, asked_for: int, spread: float, words: list[str]
) -> None:
    launches = [launch(n, subject=1 + spread * n) for n in range(1, measured + 1)]
    warnings = together(by_number(launches), asked_for)[0].warnings
    assert len(warnings) == len(words)
    for warning, expected in zip(warnings, words, strict=True):
        assert warning.startswith(expected)


def test_warnings_that_differ_in_numbers_alone_are_told_once() -> None:
    loads = ["load average 2.1 on 2 cores: stop other programs", "load average 3.4 on 2 cores: stop other programs"]
    launches = [launch(n, warnings=(loads[n % 2], "busy")) for n in range(1, 7)]
    assert together(by_number(launches), 6)[0].warnings == (loads[1], "busy")


# --- The journal ---


def entries(count: int, point: str = "point") -> list[Entry]:
    return [
        Entry(f"{point}-{n}", launch(n, subject=2.0 + n), {"wall": 1.0}, None, n - 1, point)
        for n in range(1, count + 1)
    ]


def write(path: Path, *own: Entry) -> None:
    with open_journal(path, resume=True) as kept:
        kept.add_header(replace(HEADER, settings={"launches": 3}))
        for each in own:
            kept.add(each)


def test_launches_are_lines_of_the_journal_and_one_point_of_its_document(tmp_path: Path) -> None:
    path, own = tmp_path / "sweep.jsonl", entries(3)
    write(path, *own)
    with open_journal(path, resume=True) as kept:
        assert list(kept.entries.values()) == own
    found = read_document(path)
    assert [each.latency.processes for each in found.results] == [(6, 6, 6)] * 2
    assert found.results == together({each.launch: each.results for each in own}, 3)
    assert ResultSet.from_json(found.to_json()) == found


def test_launches_that_a_resumed_run_adds_join_those_before_in_their_order(tmp_path: Path) -> None:
    path, own = tmp_path / "sweep.jsonl", entries(3)
    write(path, own[0], own[2], *entries(2, "other"))
    write(path, own[1])
    found = read_document(path)
    assert len(found.points()) == 2
    assert [each.latency.values for each in found.points()[0]] == [(3.0, 4.0, 5.0), (1.0, 1.0, 1.0)]
    assert "only 2 of 3 launches are measured: --resume measures the others" in found.points()[1][0].warnings


def test_the_table_says_how_many_launches_there_were() -> None:
    launches = document(*together(by_number([launch(n) for n in (1, 2, 3)]), 3), settings={})
    assert method(launches).startswith("3 launches of 6 rounds of interleaved blocks")
    assert method(document(*launch(1), settings={})).startswith("6 rounds of interleaved blocks")
