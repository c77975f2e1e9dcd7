"""Launches, stages and findings of a check, with workers that are made up: what is asked of whom, in which order, and
what becomes of workers that are lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from invbench.harness.gate.counting import IN_MEMORY, counts, state
from invbench.harness.gate.launching import Plan, launch
from invbench.harness.gate.running import Alone, Judging, Measured, Yardstick, arms, as_baseline, findings, measure
from invbench.harness.gate.stored import Stored
from invbench.harness.gate.workers import RefusedError, Version, WorkerLostError
from invbench.results.check import AGAIN, BASE, HEAD, LATENCY, Check, Finding, Row, Side, Verdict
from invbench.spec import Case, LayerSpec, Mode

SECONDS = 0.001
NONE = {"params": 0.0, "flop": 0.0, "kept": 0.0, "memory": 0.0, LATENCY: 0.05}


def row(C: int = 64, subject: str = "involution", backend: str = "numba", is_control: bool = False) -> Row:
    case = Case(N=1, H=8, W=8, layer=LayerSpec(C=C, K=3, G=4), mode=Mode.TRAIN, threads=2)
    return Row(case, subject, backend, is_control)


ROWS = (row(), row(subject="conv2d-3x3", backend="torch", is_control=True))


def plan(*rows: Row, quads: int = 6, **more: Any) -> Plan:
    values = {"row_seconds": 1.0, "block_seconds": 0.004, "timeout": 1.0, "seed": 0, **more}
    return Plan(tuple((each, None) for each in rows or ROWS), {"device": "cpu"}, quads, **values)


@dataclass
class FakeWorker:
    """A worker whose rows take the seconds that its version's name says, give or take a little."""

    version: Version
    log: list[tuple[str, Mapping[str, Any]]]
    trouble: Callable[[str, Mapping[str, Any]], object] = lambda _side, _request: None
    rows: dict[int, Row] = field(default_factory=dict)
    extra: float = 0.0
    stopped: bool = False
    waiting: list[Mapping[str, Any]] = field(default_factory=list)
    noise: random.Random = field(default_factory=lambda: random.Random(0))

    def send(self, request: Mapping[str, Any]) -> None:
        self.log.append((self.version.side.name, request))
        self.waiting.append(request)

    def answer(self, timeout: float) -> dict[str, Any]:
        request = self.waiting.pop(0)
        if error := self.trouble(self.version.side.name, request):
            raise error  # type: ignore[misc]
        return getattr(self, request["do"])(request)  # type: ignore[no-any-return]

    def stop(self) -> None:
        self.stopped = True

    def hello(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"environment": {"python": "3"}}

    def prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "status": "ok", "reason": None, "layout": request["layout"] or "channels_last", "inputs": "same",
            "counts": {"params": 10, "flop": 20, "kept": 30, "memory": None},
            "backends": {"backend": "numba", "automatic": "numba"}, "first_call": 0.1,
        }  # fmt: skip

    def warm(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"seconds": SECONDS, "calls": 1, "samples": 4, "asleep": 0.0}

    def slow(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.extra = request["seconds"]
        return {}

    def block(self, request: Mapping[str, Any]) -> dict[str, Any]:
        seconds = SECONDS * float(self.version.side.name.partition(" ")[0]) + self.extra
        samples = [seconds * self.noise.uniform(0.99, 1.01) for _ in range(request["samples"])]
        return {"seconds": samples, "spoiled": None, "capped": None, "asleep": 0.0}


class Crew:
    """Makes workers, and remembers them and all that they were asked."""

    def __init__(self, trouble: Callable[[str, Mapping[str, Any]], object] = lambda _side, _request: None) -> None:
        self.workers: list[FakeWorker] = []
        self.log: list[tuple[str, Mapping[str, Any]]] = []
        self.trouble = trouble

    def __call__(self, version: Version) -> Any:
        noise = random.Random(len(self.workers))
        self.workers.append(FakeWorker(version, self.log, self.trouble, noise=noise))
        return self.workers[-1]


def version(speed: str, slowdown: float = 0.0) -> Version:
    return Version(Side(speed), folder=Path(), slowdown=slowdown)


BASE_VERSION, SAME = version("1 base"), version("1 head")
JUDGING = Judging(3, 0.2, dict.fromkeys(range(4), NONE))


def run(head: Version = SAME, crew: Crew | None = None, plan: Plan = plan()) -> Measured:  # noqa: B008 -- frozen
    return measure(arms(BASE_VERSION, head), plan, JUDGING, Yardstick(), lambda _: None, spawn=crew or Crew())


def latencies(measured: Measured) -> list[Finding]:
    return [each for each in findings(measured, JUDGING, Yardstick()) if each.metric == LATENCY]


def test_a_quad_is_mirrored_and_every_arm_has_two_blocks_of_the_size_that_the_base_chose() -> None:
    crew = Crew()
    found = launch(arms(BASE_VERSION, SAME), plan(), [0, 1], 0, {}, lambda _: None, spawn=crew)
    blocks = [(side, request) for side, request in crew.log if request["do"] == "block"]
    assert len(blocks) == 2 * 6 * 6
    for quads in found.quads.values():
        assert len(quads) == 6
        assert all(set(quad.order) == {BASE, HEAD, AGAIN} for quad in quads)
        assert all(len(of_arm) == 2 and len(of_arm[0]) == 4 for quad in quads for of_arm in quad.blocks.values())
    for start in range(0, len(blocks), 6):
        sides = [side for side, _ in blocks[start : start + 6]]
        assert sides == sides[::-1]
        assert len({request["row"] for _, request in blocks[start : start + 6]}) == 1
    assert len({quad.order for quads in found.quads.values() for quad in quads}) > 1
    assert all(worker.stopped for worker in crew.workers)


def test_rows_are_prepared_in_one_process_after_the_other_and_the_base_chooses_layouts() -> None:
    crew = Crew()
    layouts: dict[int, str] = {}
    launch(arms(BASE_VERSION, SAME), plan(), [0, 1], 0, layouts, lambda _: None, spawn=crew)
    asked = [(side, request["number"], request["layout"]) for side, request in crew.log if request["do"] == "prepare"]
    assert asked[:2] == [("1 base", 0, None), ("1 base", 1, None)]
    assert all(layout == "channels_last" for _, _, layout in asked[2:])
    assert layouts == {0: "channels_last", 1: "channels_last"}


def test_long_calls_have_fewer_quads_but_enough_for_a_launch() -> None:
    slow = plan(quads=40, row_seconds=0.1)
    found = launch(arms(BASE_VERSION, SAME), slow, [0], 0, {}, lambda _: None, spawn=Crew())
    assert len(found.quads[0]) == 5
    quick = plan(quads=40, row_seconds=2.0)
    found = launch(arms(BASE_VERSION, SAME), quick, [0], 0, {}, lambda _: None, spawn=Crew())
    assert len(found.quads[0]) == 40


def test_identical_code_passes_in_one_stage() -> None:
    crew = Crew()
    measured = run(crew=crew)
    assert [each.verdict for each in latencies(measured)] == [Verdict.PASS] * 2
    assert [len(stage) for stage in measured.stages] == [3, 0]
    assert [worker.version.side.name for worker in crew.workers] == ["1 base", "1 head", "1 base"] * 3


def test_a_slower_head_is_confirmed_by_fresh_processes_in_the_other_order() -> None:
    crew = Crew()
    measured = run(version("1.3 head"), crew)
    assert [each.verdict for each in latencies(measured)] == [Verdict.FAIL] * 2
    assert [len(stage) for stage in measured.stages] == [3, 3]
    assert [worker.version.side.name for worker in crew.workers[9:12]] == ["1.3 head", "1 base", "1 base"]
    assert latencies(measured)[0].ratio is not None
    assert 1.28 < latencies(measured)[0].ratio.median < 1.32


def test_a_slowdown_on_purpose_is_a_share_of_what_the_base_takes() -> None:
    crew = Crew()
    measured = run(version("1 head", slowdown=0.25), crew)
    assert {request["seconds"] for _, request in crew.log if request["do"] == "slow"} == {0.25 * SECONDS}
    assert [each.verdict for each in latencies(measured)] == [Verdict.FAIL] * 2


def test_a_process_that_was_started_before_is_slowed_down_like_the_later_ones() -> None:
    crew = Crew()
    started = {HEAD: crew(SAME)}
    head = version("1 head", slowdown=0.25)
    plan_of_one = plan(ROWS[0])
    measured = measure(arms(BASE_VERSION, head), plan_of_one, JUDGING, Yardstick(), lambda _: None, started, spawn=crew)
    asked = [request for _, request in crew.log if request["do"] == "slow"]
    assert len(asked) == 6  # once a launch, in both stages
    assert latencies(measured)[0].verdict is Verdict.FAIL


def test_what_is_seen_only_once_is_inconclusive() -> None:
    crew = Crew()
    original = FakeWorker.block

    def at_first(self: FakeWorker, request: Mapping[str, Any]) -> dict[str, Any]:
        found = original(self, request)
        is_early = crew.workers.index(self) < 9
        scale = 1.3 if is_early and self.version.side.name == "1 head" else 1.0
        return {**found, "seconds": [scale * each for each in found["seconds"]]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeWorker, "block", at_first)
        measured = run(crew=crew)
    assert [each.verdict for each in latencies(measured)] == [Verdict.INCONCLUSIVE] * 2
    assert "does not confirm it" in str(latencies(measured)[0].reason)


def loses(row: int, do: str, arm: str, times: int = 10**6) -> Callable[[str, Mapping[str, Any]], object]:
    left = [times]

    def trouble(side: str, request: Mapping[str, Any]) -> object:
        number = request.get("row") if do != "prepare" else request.get("number")
        if request["do"] == do and number == row and arm in side and left[0]:
            left[0] -= 1
            return WorkerLostError("it crashed its process (SIGSEGV)")
        return None

    return trouble


@pytest.mark.parametrize("do", ["prepare", "warm", "block"])
@pytest.mark.parametrize("arm", ["head", "base"])
def test_a_row_that_takes_a_process_down_is_an_error_and_the_others_are_measured(do: str, arm: str) -> None:
    crew = Crew(loses(0, do, arm))
    measured = run(crew=crew)
    lost, other = latencies(measured)
    assert lost.verdict is Verdict.ERROR
    assert str(lost.reason).endswith("it crashed its process (SIGSEGV)")
    assert other.verdict is Verdict.PASS
    assert all(worker.stopped for worker in crew.workers)


def test_a_row_that_raises_while_it_is_measured_is_an_error_and_costs_no_process() -> None:
    def trouble(side: str, request: Mapping[str, Any]) -> object:
        is_it = request["do"] == "block" and request["row"] == 0 and "head" in side
        return RefusedError("RuntimeError: no luck") if is_it else None

    crew = Crew(trouble)
    lost, other = latencies(run(crew=crew))
    assert (lost.verdict, lost.reason) == (Verdict.ERROR, "head: RuntimeError: no luck")
    assert other.verdict is Verdict.PASS
    assert len(crew.workers) == 9


def test_a_process_that_cannot_be_had_at_all_ends_the_check_and_a_later_one_keeps_what_there_is() -> None:
    def at_once(side: str, request: Mapping[str, Any]) -> object:
        return WorkerLostError("no torch") if request["do"] == "hello" else None

    with pytest.raises(WorkerLostError, match=r"base .* cannot measure: no torch"):
        run(crew=Crew(at_once))

    crew = Crew()

    def later(side: str, request: Mapping[str, Any]) -> object:
        return WorkerLostError("no memory") if request["do"] == "hello" and len(crew.workers) > 3 else None

    crew.trouble = later
    measured = run(crew=crew)
    assert [each.verdict for each in latencies(measured)] == [Verdict.ERROR] * 2
    assert len(measured.series()[0].stages[0]) == 1


def test_blocks_that_the_device_spoiled_are_measured_again_but_not_for_ever() -> None:
    original = FakeWorker.block
    count = [0]

    def spoiled(times: int) -> Callable[[FakeWorker, Mapping[str, Any]], dict[str, Any]]:
        def block(self: FakeWorker, request: Mapping[str, Any]) -> dict[str, Any]:
            count[0] += 1
            return {**original(self, request), "spoiled": count[0] <= times}

        return block

    for times, expected in ((3, 6), (10**9, 0)):
        count[0] = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FakeWorker, "block", spoiled(times))
            found = launch(arms(BASE_VERSION, SAME), plan(), [0, 1], 0, {}, lambda _: None, spawn=Crew())
        assert [len(quads) for quads in found.quads.values()] == [expected] * 2


def test_ctrl_c_in_a_later_launch_keeps_the_earlier_ones() -> None:
    crew = Crew()

    def interrupt(side: str, request: Mapping[str, Any]) -> object:
        return KeyboardInterrupt() if len(crew.workers) > 3 and request["do"] == "block" else None

    crew.trouble = interrupt
    measured = run(crew=crew)
    assert measured.interrupted
    assert [each.verdict for each in latencies(measured)] == [Verdict.INCONCLUSIVE] * 2
    assert all(worker.stopped for worker in crew.workers)


def prepared(**more: Any) -> dict[str, Any]:
    found = FakeWorker(SAME, []).prepare({"layout": None})
    return {**found, **more}


@pytest.mark.parametrize(
    ("base", "head", "verdict"),
    [
        ({}, {}, None),
        ({"status": "missing"}, {}, Verdict.NEW),
        ({"status": "unavailable"}, {}, Verdict.NEW),
        ({}, {"status": "missing"}, Verdict.MISSING),
        ({}, {"status": "unavailable"}, Verdict.MISSING),
        ({"status": "missing"}, {"status": "unavailable"}, None),
        ({}, {"status": "mismatch"}, Verdict.ERROR),
        ({}, {"status": "oom"}, Verdict.ERROR),
        ({"status": "mismatch"}, {}, Verdict.NOT_COMPARABLE),
        ({}, {"inputs": "other"}, Verdict.NOT_COMPARABLE),
    ],
)
def test_states_of_a_row(base: dict[str, Any], head: dict[str, Any], verdict: Verdict | None) -> None:
    found = state(row(), {BASE: prepared(**base), HEAD: prepared(**head), AGAIN: prepared(**base)})
    assert (found and found.verdict) == verdict


@pytest.mark.parametrize(
    ("change", "threshold", "verdicts"),
    [
        ({}, 0.0, {}),
        ({"params": 11}, 0.0, {"params": Verdict.FAIL}),
        ({"params": 11}, 0.2, {}),
        ({"params": 9}, 0.0, {"params": Verdict.IMPROVED}),
        ({"kept": None}, 0.0, {"kept": Verdict.MISSING}),
        ({"memory": 5}, 0.0, {"memory": Verdict.NEW}),
    ],
)
def test_counts_are_compared_exactly(change: dict[str, Any], threshold: float, verdicts: dict[str, Verdict]) -> None:
    base = prepared()
    head = prepared(counts={**base["counts"], **change})
    found = counts(row(), base, head, dict.fromkeys(NONE, threshold), (base, base))
    assert {each.metric: each.verdict for each in found if each.verdict is not Verdict.PASS} == verdicts


def test_what_differs_between_processes_of_identical_code_is_not_exact() -> None:
    base, head = prepared(), prepared(counts={"params": 10, "flop": 20, "kept": 31, "memory": None})
    found = counts(row(), base, head, NONE, (base, head))
    assert "kept" not in {each.metric for each in found}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("numba", "numba", Verdict.PASS),
        ("numba", "naive", Verdict.FAIL),
        ("naive", "numba", Verdict.IMPROVED),
        ("numba", f"numba{IN_MEMORY}", Verdict.FAIL),
        (f"numba{IN_MEMORY}", "numba", Verdict.IMPROVED),
        ("one that is gone", "numba", Verdict.IMPROVED),
    ],
)
def test_who_computes_may_not_become_worse(before: str, after: str, verdict: Verdict) -> None:
    base, head = (prepared(backends={"backend": name}) for name in (before, after))
    found = [each for each in counts(row(), base, head, NONE, (base, base)) if each.metric == "backend"]
    assert [each.verdict for each in found] == [verdict]


ENVIRONMENT = {"cpu": {"model": "a processor", "usable": 2}}


def stored(measured: Measured) -> Stored:
    check = Check("baseline", SAME.side, SAME.side, as_baseline(measured), measured.series())
    return Stored(Check.from_dict(check.to_dict()), ENVIRONMENT)


def alone(speed: str, yardstick: Yardstick, machine: float = 1.0, plan: Plan = plan()) -> Measured:  # noqa: B008
    """Head alone on a machine that is so many times as slow as usual; the convolution is always its own."""
    original = FakeWorker.block

    def block(self: FakeWorker, request: Mapping[str, Any]) -> dict[str, Any]:
        found = original(self, request)
        is_control = plan.rows[request["row"]][0].is_control
        scale = machine / (float(speed) if is_control else 1.0)
        return {**found, "seconds": [scale * each for each in found["seconds"]]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeWorker, "block", block)
        versions = arms(None, version(f"{speed} head"))
        return measure(versions, plan, JUDGING, yardstick, lambda _: None, spawn=Crew())


@pytest.mark.parametrize(
    ("speed", "machine", "verdict"),
    [
        ("1", 1.0, Verdict.PASS),
        ("1", 1.5, Verdict.PASS),  # the machine's, and so the convolution's
        ("1.3", 1.0, Verdict.FAIL),
        ("1.3", 0.7, Verdict.FAIL),
        ("0.7", 1.5, Verdict.IMPROVED),
    ],
)
def test_a_file_is_compared_by_the_ratio_to_the_convolution(speed: str, machine: float, verdict: Verdict) -> None:
    kept = stored(alone("1", Alone()))
    found = [e for e in findings(alone(speed, kept, machine), JUDGING, kept) if e.metric == LATENCY]
    assert [each.verdict for each in found] == [verdict, Verdict.PASS]


def test_a_file_says_what_is_missing_and_what_it_cannot_tell() -> None:
    kept = stored(alone("1", Alone()))
    assert [(e.verdict, e.row) for e in kept.missing([ROWS[0]])] == [(Verdict.MISSING, ROWS[1])]
    assert not list(kept.missing(ROWS))
    assert kept.apart(ENVIRONMENT, {}) is None
    other = {"cpu": {"model": "another", "usable": 2}}
    assert kept.apart(other, {}) == (
        "the file was measured on another class of machine: a processor, 2 cores, and this is another, 2 cores"
    )
    assert "with clock None, and this is device" in str(kept.apart(ENVIRONMENT, {"clock": "device"}))
    assert kept.layouts(ROWS) == dict.fromkeys(ROWS, "channels_last")
    elsewhere = [replace(each, case=replace(each.case, threads=7)) for each in ROWS]
    assert not list(kept.missing(elsewhere))  # how many threads there are is the machine's
    assert kept.prepared(elsewhere[0], {}) is not None


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
