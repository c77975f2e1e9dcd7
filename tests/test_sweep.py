"""A sweep: every point once, whatever its workers do. With workers of our own; real ones: test_sweep_processes.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_workers import CPU, CRASH, GPU, LABELS, SETTINGS, FakeWorker, Kept, Machine, crashes, measured, tasks, welcome
from hypothesis import given, settings
from hypothesis import strategies as st

from invbench.harness import allocator, machine, point, service
from invbench.harness import sweep as scheduler
from invbench.harness.blocks import Budget
from invbench.harness.messages import Hello, Lost, Plan, PlanJob, PointJob, Refusal
from invbench.harness.point import Point
from invbench.harness.settings import Settings, Subject
from invbench.harness.sweep import greet, plans_of
from invbench.harness.tasks import check_alike, shuffled, tasks_of
from invbench.report.plan import point_line, render_plan
from invbench.results import Status, machine_class
from invbench.results.journal import Entry
from invbench.results.launches import together
from invbench.spec import InvbenchError
from invbench.study.grid import Grid, Refused


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TICK", 0.001)


def statuses(entry: Entry) -> dict[str, str]:
    return {Subject(row.subject, row.backend).label: str(row.status) for row in entry.results}


def only_bad(entry: Entry) -> dict[str, str]:
    return {label: status for label, status in statuses(entry).items() if status != "ok"}


# --- The scheduler ---


def test_every_point_is_measured_once_and_kept_before_it_is_told() -> None:
    kept, machine, wanted = Kept(), Machine(), tasks(4)
    told = []
    for event in machine.sweep(kept).run(wanted):
        if event.entry is None:
            assert event.line == "preparing naive"
        else:
            assert kept.entries[event.entry.key] is event.entry
            told.append(event.task.key)
    assert told == kept.added == [task.key for task in wanted]
    assert [len(worker.jobs) for worker in machine.workers] == [4]  # one worker does them all
    assert len(machine.workers[0].stopped) == 1
    for task in wanted:
        rows = kept.entries[task.key].results
        assert {row.case for row in rows} == {task.point.case}
        assert {(row.baseline, row.machine) for row in rows} == {("conv2d", machine_class(CPU))}
        assert rows[0].peaks == {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}
        assert set(kept.entries[task.key].seconds) == {"wall", "timed"}


THRICE = replace(SETTINGS, launches=3)


def test_all_points_come_before_any_comes_again_and_each_time_in_a_fresh_worker() -> None:
    kept, machine, wanted = Kept(), Machine(), tasks(2, given=THRICE)
    list(machine.sweep(kept).run(wanted, machine.spawn()))
    assert kept.added == [task.key for task in wanted]
    assert [(task.point.case.N, task.launch) for task in wanted] == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]
    jobs = [[(job.case.N, job.launch) for job in worker.jobs] for worker in machine.workers]
    assert jobs == [[(1, n), (2, n)] for n in range(3)]
    assert all(len(worker.stopped) == 1 for worker in machine.workers)
    found = [kept.entries[task.key] for task in wanted]
    assert [entry.launch for entry in found] == [0, 0, 1, 1, 2, 2]
    assert len({entry.point for entry in found}) == 2
    assert len({entry.key for entry in found} | {entry.point for entry in found}) == 8


def test_launches_measure_the_machines_peaks_once() -> None:
    machine = Machine()
    list(machine.sweep(Kept()).run(tasks(2, given=THRICE)))
    peaks = [job.peaks for worker in machine.workers for job in worker.jobs]
    assert peaks == [None, *[{"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}] * 5]


def test_what_took_a_worker_down_is_not_run_again_by_the_points_other_launches() -> None:
    kept, machine, wanted = Kept(), Machine(crashes("unfold")), tasks(3, given=THRICE)
    list(machine.sweep(kept).run(wanted))
    assert len(machine.workers) == 4
    bad = [only_bad(kept.entries[task.key]) for task in wanted]
    assert bad == [{}, {"unfold": "error"}, {}] * 3


def test_a_launch_that_is_lost_is_kept_with_its_reason_and_the_point_has_the_others() -> None:
    def second_dies(worker: FakeWorker, job: PointJob) -> None:
        if job.launch == 1:
            worker.crash()
        else:
            worker.answer(measured(job))

    kept, machine, wanted = Kept(), Machine(second_dies), tasks(1, given=THRICE)
    list(machine.sweep(kept).run(wanted))
    assert len(machine.workers) == 3
    found = together({entry.launch: entry.results for entry in kept.entries.values()}, 3)
    assert {(row.status, row.latency.processes) for row in found} == {(Status.OK, (6, 6))}
    assert {row.warnings[-1] for row in found} == {f"launch 2 of 3 came to nothing: {CRASH[1]}"}


def test_two_devices_share_the_launches_of_a_point_and_never_a_process() -> None:
    """A launch that was lost comes again on whichever device is free, also one that is ahead by a launch."""
    seen: dict[tuple[int, int], set[int]] = {}

    def measure(worker: FakeWorker, job: PointJob) -> None:
        assert id(worker) not in seen.setdefault((job.case.N, id(worker)), set())
        seen[job.case.N, id(worker)].add(id(worker))
        if (job.launch, job.case.N) == (0, 3) and "unfold" not in job.skipped:
            worker.crash("unfold")
        else:
            worker.answer(measured(job))

    kept, machine = Kept(), Machine(measure)
    wanted = tasks(3, "cuda:0", "cuda:1", given=THRICE)
    list(machine.sweep(kept, "cuda:0", "cuda:1").run(wanted))
    assert sorted(kept.added) == sorted(task.key for task in wanted)
    for launch in range(3):
        entries = [kept.entries[task.key] for task in wanted if task.launch == launch]
        assert [only_bad(entry) for entry in entries] == [{}, {}, {"unfold": "error"}]


def test_shuffled_tasks_keep_their_launches_apart() -> None:
    wanted = tasks(5, given=THRICE)
    drawn = shuffled(wanted, 1)
    assert [task.launch for task in drawn] == [0] * 5 + [1] * 5 + [2] * 5
    assert {task.key for task in drawn} == {task.key for task in wanted}
    orders = [[task.point.case.N for task in drawn if task.launch == n] for n in range(3)]
    assert len({tuple(order) for order in orders}) > 1


def test_one_launch_is_no_launch() -> None:
    kept = Kept()
    list(Machine().sweep(kept).run(tasks(1)))
    (entry,) = kept.entries.values()
    assert (entry.launch, entry.point) == (0, None)
    assert not {"launch", "point"} & entry.to_line().keys()


def test_what_the_journal_has_is_not_measured_again() -> None:
    kept, machine, wanted = Kept(), Machine(), tasks(4)
    for task in wanted[::2]:
        kept.entries[task.key] = Entry(task.key, ())
    list(machine.sweep(kept).run(wanted))
    assert kept.added == [task.key for task in wanted[1::2]]


def test_nothing_to_do_starts_nothing() -> None:
    machine = Machine()
    assert list(machine.sweep(Kept()).run([])) == []
    assert machine.workers == []


def test_the_worker_that_runs_already_is_used_and_ended() -> None:
    kept, machine = Kept(), Machine()
    first = machine.spawn()
    list(machine.sweep(kept).run(tasks(2), first))
    assert (machine.workers, len(first.jobs), len(first.stopped)) == ([first], 2, 1)


def test_devices_of_one_type_share_its_points_one_at_a_time_each() -> None:
    kept, busy = Kept(), {}

    def in_pairs(worker: FakeWorker, job: PointJob) -> None:
        assert job.case.device not in busy
        busy[job.case.device] = worker, job
        if len(busy) == 2:  # each device waits for the other: neither is kept waiting by the sweep
            for device in list(busy):
                one, its_job = busy.pop(device)
                one.answer(measured(its_job))

    machine = Machine(in_pairs)
    events = list(machine.sweep(kept, "cuda:0", "cuda:1").run(tasks(6, "cuda:0", "cuda:1")))
    assert len(events) == len(kept.entries) == 6
    assert {event.device for event in events} == {"cuda:0", "cuda:1"}
    assert [len(worker.jobs) for worker in machine.workers] == [3, 3]
    for event in events:
        assert {(row.case.device, row.device) for row in event.entry.results} == {("cuda", event.device)}


def test_a_slow_device_does_not_hold_up_the_other() -> None:
    def one_is_slow(worker: FakeWorker, job: PointJob) -> None:
        if job.case.device == "cuda:0":
            slow.append((worker, job))
        else:
            worker.answer(measured(job))
        if sum(len(each.jobs) for each in machine.workers) == 6:
            for each, its_job in slow:
                each.answer(measured(its_job))

    slow: list[tuple[FakeWorker, PointJob]] = []
    kept, machine = Kept(), Machine(one_is_slow)
    list(machine.sweep(kept, "cuda:0", "cuda:1").run(tasks(6, "cuda:0", "cuda:1")))
    assert sorted(len(worker.jobs) for worker in machine.workers) == [1, 5]
    assert len(kept.entries) == 6


def test_types_of_device_take_turns() -> None:
    kept, machine = Kept(), Machine()
    list(machine.sweep(kept, "cpu", "cuda:0").run(tasks(2, "cpu", "cuda:0")))
    cases = [row.case.device for key in kept.added for row in kept.entries[key].results[:1]]
    assert cases == ["cpu", "cpu", "cuda", "cuda"]


@pytest.mark.parametrize("labels", [["unfold"], ["conv2d"], ["naive", "unfold", "separable"]], ids=len)
def test_a_subject_that_crashes_is_a_row_and_the_others_are_measured(labels: list[str]) -> None:
    kept, machine, wanted = Kept(), Machine(crashes(*labels)), tasks(3)
    events = list(machine.sweep(kept).run(wanted))
    assert kept.added == [task.key for task in wanted]
    assert [only_bad(kept.entries[task.key]) for task in wanted] == [{}, dict.fromkeys(labels, "error"), {}]
    assert {row.reason for row in kept.entries[wanted[1].key].results if row.status is not Status.OK} == {CRASH[1]}
    assert len(machine.workers) == len(labels) + 1
    assert all(worker.stopped for worker in machine.workers)
    lines = [event.line for event in events if "without it" in event.line]
    assert lines == [f"{label}: {CRASH[1]}; measuring the point without it" for label in labels]


def test_a_worker_that_memory_ran_out_for_is_oom() -> None:
    def measure(worker: FakeWorker, job: PointJob) -> None:
        worker.end = (Status.OOM, "its process was killed by the system")
        crashes("unfold")(worker, job)

    kept, wanted = Kept(), tasks(2)
    list(Machine(measure).sweep(kept).run(wanted))
    assert only_bad(kept.entries[wanted[1].key]) == {"unfold": "oom"}


@pytest.mark.parametrize("label", ["", "unfold"], ids=["nobody", "one that was left out"])
def test_a_crash_that_no_subject_is_known_for_costs_the_point(label: str) -> None:
    def measure(worker: FakeWorker, job: PointJob) -> None:
        worker.crash(label) if job.case.N == 2 else worker.answer(measured(job))

    kept, wanted = Kept(), tasks(3)
    list(Machine(measure).sweep(kept).run(wanted))
    assert kept.added == [task.key for task in wanted]
    assert only_bad(kept.entries[wanted[1].key]) == dict.fromkeys(LABELS, "error")
    assert only_bad(kept.entries[wanted[2].key]) == {}


def test_a_lost_point_has_the_device_that_lost_it() -> None:
    kept = Kept()
    machine = Machine(lambda worker, job: worker.crash())
    for event in machine.sweep(kept, "cuda:0", "cuda:1").run(tasks(4, "cuda:0", "cuda:1")):
        assert event.entry is not None
        assert {(row.case.device, row.device) for row in event.entry.results} == {("cuda", event.device)}
    assert len(kept.entries) == 4


def test_a_poisoned_device_costs_its_worker_and_the_subject() -> None:
    def measure(worker: FakeWorker, job: PointJob) -> None:
        poisoned = job.case.N == 1 and "unfold" not in job.skipped
        worker.answer(Lost("unfold", "AcceleratorError: illegal address") if poisoned else measured(job))

    kept, machine, wanted = Kept(), Machine(measure), tasks(2, "cuda:0")
    list(machine.sweep(kept, "cuda:0").run(wanted))
    assert only_bad(kept.entries[wanted[0].key]) == {"unfold": "error"}
    (reason,) = {row.reason for row in kept.entries[wanted[0].key].results} - {None}
    assert reason == "AcceleratorError: illegal address; the device had to be reset"
    assert [len(worker.jobs) for worker in machine.workers] == [1, 2]


@pytest.mark.parametrize(
    ("label", "seconds", "gone", "limit"),
    [
        ("unfold", 101.0, {"unfold": "timeout"}, "100"),
        ("unfold", 99.0, {}, ""),
        ("", 299.0, {}, ""),  # between subjects: memory and peaks have limits of their own
        ("", 301.0, dict.fromkeys(LABELS, "timeout"), "300"),
    ],
    ids=["too long", "long", "long between subjects", "too long between subjects"],
)
def test_a_subject_that_hangs(label: str, seconds: float, gone: dict[str, str], limit: str) -> None:
    looks: list[float] = []

    def measure(worker: FakeWorker, job: PointJob) -> None:
        if job.case.N != 1 or job.skipped:
            worker.answer(measured(job))
            return
        worker.hang(label, seconds)

        def stuck_for() -> float:
            looks.append(seconds)
            if len(looks) == 3:  # it comes to an end, if it is left alone
                worker.hang("", 0.0)
                worker.answer(measured(job))
            return worker.seconds

        worker.stuck_for = stuck_for  # type: ignore[method-assign]

    kept, machine, wanted = Kept(), Machine(measure), tasks(2)
    list(machine.sweep(kept).run(wanted))
    assert only_bad(kept.entries[wanted[0].key]) == gone
    reasons = {row.reason for row in kept.entries[wanted[0].key].results if row.status is Status.TIMEOUT}
    assert reasons == ({f"no sign of life for {limit} s; raise --timeout"} if limit else set())
    assert only_bad(kept.entries[wanted[1].key]) == {}
    assert len(machine.workers) == (2 if gone else 1)


FATES = st.one_of(
    st.just(("fine",)), st.just(("mystery",)),
    st.tuples(st.sampled_from(["crash", "hang", "lost"]), st.lists(st.sampled_from(LABELS), min_size=1, unique=True)),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(FATES, min_size=1, max_size=5), st.integers(1, 3))
def test_whatever_happens_to_points_each_is_kept_once(fates: list[Any], devices: int) -> None:
    def measure(worker: FakeWorker, job: PointJob) -> None:
        fate, *labels = fates[job.case.N - 1]
        left = [label for label in (labels[0] if labels else []) if label not in job.skipped]
        if fate == "mystery":
            worker.crash()
        elif not left:
            worker.answer(measured(job))
        elif fate == "lost":
            worker.answer(Lost(left[0], "poisoned"))
        elif fate == "crash":
            worker.crash(left[0])
        else:
            worker.hang(left[0])

    names = [f"cuda:{index}" for index in range(devices)]
    kept, machine, wanted = Kept(), Machine(measure), tasks(len(fates), *names)
    list(machine.sweep(kept, *names).run(wanted))
    assert sorted(kept.added) == sorted(task.key for task in wanted)
    for task, (fate, *labels) in zip(wanted, fates, strict=True):
        gone = LABELS if fate == "mystery" else labels[0] if labels else []
        status = "timeout" if fate == "hang" else "error"
        assert only_bad(kept.entries[task.key]) == dict.fromkeys(gone, status)
    assert all(worker.stopped for worker in machine.workers)


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt, InvbenchError("full"), GeneratorExit], ids=["Ctrl-C", "disk", "left"]
)
def test_however_a_sweep_ends_no_worker_is_left(end: Any) -> None:
    busy: list[FakeWorker] = []
    machine = Machine(lambda worker, job: busy.append(worker) if job.case.N > 2 else worker.answer(measured(job)))
    running = machine.sweep(Kept(), "cuda:0", "cuda:1").run(tasks(4, "cuda:0", "cuda:1"))
    next(running)
    if end is GeneratorExit:
        running.close()
    else:
        with pytest.raises(type(end) if isinstance(end, Exception) else end):
            running.throw(end)
    assert len(machine.workers) == 2
    assert all(worker.stopped for worker in machine.workers)
    assert all(worker.stopped == [0.0] for worker in busy)  # who is busy is not waited for


def test_a_full_disk_ends_the_sweep() -> None:
    class Full(Kept):
        def add(self, entry: Entry) -> None:
            if self.entries:
                raise InvbenchError("--journal cannot be written")
            super().add(entry)

    kept, machine = Full(), Machine()
    with pytest.raises(InvbenchError, match="cannot be written"):
        list(machine.sweep(kept).run(tasks(3)))
    assert len(kept.entries) == 1
    assert machine.workers[0].stopped


# --- Tasks and keys ---


def key(environment: Mapping[str, Any] = CPU, given: Settings = SETTINGS, **axes: Any) -> str:
    points, _ = Grid({"C": (16,), **{name: (value,) for name, value in axes.items()}}).points(("cpu",), 2)
    return tasks_of(points, given, replace(welcome(), environments={"cpu": environment}))[0].key


@pytest.mark.parametrize(
    "other",
    [
        lambda: key(N=1),
        lambda: key(mode="train"),
        lambda: key(baseline="none"),
        lambda: key(given=replace(SETTINGS, seed=1)),
        lambda: key(given=replace(SETTINGS, budget=Budget(seconds=0.2))),
        lambda: key(given=replace(SETTINGS, backends=("naive",))),
        lambda: key(given=replace(SETTINGS, cache="cold")),
        lambda: key({**CPU, "versions": {"torch": "2.14.0"}}),
        lambda: key({**CPU, "cpu": {"model": "Another CPU"}}),
        lambda: key({**CPU, "source": "abc"}),
    ],
    ids=["point", "mode", "baseline", "seed", "budget", "backends", "cache", "versions", "machine", "source"],
)
def test_a_key_is_of_the_point_the_settings_the_versions_and_the_machine(other: Callable[[], str]) -> None:
    assert other() != key()


def test_a_key_is_not_of_who_asks() -> None:
    assert key(given=replace(SETTINGS, asked_for=("naive",))) == key()
    assert key({**CPU, "load": 3.5}) == key()


def test_a_users_operators_are_part_of_the_key_and_of_the_rows() -> None:
    own = Subject("mine:make", "user", "mine:make")
    points, _ = Grid({"C": (16,)}).points(("cpu",), 2)
    (task,) = tasks_of(points, SETTINGS, welcome(custom=(own,)))
    assert task.key != key()
    assert own in task.settings.subjects()


def test_shuffled_is_the_same_points_in_an_order_of_the_seed() -> None:
    wanted = tasks(20)
    assert shuffled(wanted, 0) == shuffled(wanted, 0) != shuffled(wanted, 1)
    assert sorted(shuffled(wanted, 0), key=wanted.index) == wanted


def test_devices_that_share_points_have_to_be_alike() -> None:
    check_alike(welcome("cpu", "cuda:0", "cuda:1"))
    other = {**GPU, "gpu": {**GPU["gpu"], "name": "Another GPU"}}  # type: ignore[dict-item]
    mixed = replace(welcome("cuda:0", "cuda:1"), environments={"cuda:0": GPU, "cuda:1": other})
    with pytest.raises(InvbenchError, match=r"cuda:0 A GPU, cuda:1 Another GPU; sweep each in a run"):
        check_alike(mixed)


# --- Greeting ---


def silent(_: str) -> None:
    """Tell nobody."""


def test_greet_hands_over_a_worker_that_runs() -> None:
    machine = Machine(answers={Hello: welcome()})
    worker, found = greet(Hello(None), silent, machine.spawn)
    assert (worker, found) == (machine.workers[0], welcome())
    assert machine.workers[0].stopped == []


@pytest.mark.parametrize(
    ("answer", "label", "words"),
    [
        (Refusal("--device cuda: none here"), "", "^--device cuda: none here$"),
        (None, "mine:make", "^--subject mine:make: it cannot be imported: it crashed"),
        (None, "", "^the measuring process could not start: it crashed"),
    ],
    ids=["refused", "an import crashed", "no process"],
)
def test_a_worker_that_cannot_be_had_is_told_and_ended(answer: object, label: str, words: str) -> None:
    machine = Machine(answers={Hello: answer})

    def spawn() -> Any:
        worker = machine.spawn()
        worker.beacon.label = label
        return worker

    with pytest.raises(InvbenchError, match=words):
        greet(Hello(None), silent, spawn)
    assert machine.workers[0].stopped


@pytest.mark.parametrize("answer", [Refusal("it crashed its process"), None], ids=["refused", "gone"])
def test_a_plan_that_cannot_be_had_is_told(answer: object) -> None:
    machine = Machine(answers={PlanJob: answer})
    with pytest.raises(InvbenchError, match="it crashed its process"):
        plans_of(tasks(1), machine.spawn())


# --- The plan, and a point in a line ---


def test_the_plan_as_a_table_and_as_json() -> None:
    points, _ = Grid({"N": (1, 2), "C": (16,), "mode": ("forward", "train")}).points(("cpu",), 2)
    plans = [Plan({"unfold": "it refuses"}, 2**30, 2**31), *[Plan({}, 2**31, 2**30)] * 3]
    refused = [Refused({"C": 10}, "G must divide C"), Refused({"C": 11}, "G must divide C")]
    table = render_plan(points, plans, refused, SETTINGS, "table")
    assert [word in table.splitlines()[0].split() for word in ("N", "mode", "memory", "dtype")] == [True] * 3 + [False]
    assert (table.count("too much"), table.count("G must divide C"), table.count("unfold: it refuses")) == (3, 1, 1)
    assert "4 points, about 1 min" in table
    assert all(line.isprintable() for line in table.splitlines())
    found = json.loads(render_plan(points, plans, refused, SETTINGS, "json"))
    assert [point["backends"] for point in found["points"]] == [["naive"], *[["naive", "unfold"]] * 3]
    assert [point["case"]["N"] for point in found["points"]] == [1, 1, 2, 2]
    assert found["left_out"][1] == {"fields": {"C": 11}, "reason": "G must divide C"}


def test_the_plan_of_compiled_takes_longer_the_first_time() -> None:
    points, _ = Grid({"N": (1, 2)}).points(("cpu",), 2)
    with_compiled = replace(SETTINGS, backends=("compiled",))
    found = json.loads(render_plan(points, [Plan({}, 1, None)] * 2, [], with_compiled, "json"))
    assert found["seconds"]["high"] > found["seconds"]["low"] > 0
    assert "cached nothing yet" in render_plan(points, [Plan({}, 1, None)] * 2, [], with_compiled, "table")


def test_a_point_in_a_line() -> None:
    (task,) = tasks(1)
    assert point_line(task.point) == "N=1 C=16 H=28 W=28 K=7 G=1 threads=2"
    job = PointJob(task.point.case, task.settings, {"unfold": (Status.TIMEOUT, "no sign of life")})
    line = point_line(task.point, measured(job).results)
    assert line.startswith("N=1 C=16 H=28 W=28 K=7 G=1 threads=2: naive 1.00 ms")
    assert line.endswith("unfold timeout")
    gone = [replace(row, status=Status.OOM, latency=None) for row in measured(job).results]
    assert "naive oom" in point_line(task.point, gone)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("fails", [None, InvbenchError("not enough memory"), RuntimeError("it broke")], ids=repr)
def test_what_a_point_has_taken_is_given_back_whatever_came_of_it(
    device: str, fails: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle worker on a GPU would keep from others what it no longer uses."""
    given: list[str] = []

    def measure_point(*_: Any) -> Point:
        assert not given
        if fails is not None:
            raise fails
        return Point((), {}, {}, False, {})

    monkeypatch.setattr(point, "measure_point", measure_point)
    monkeypatch.setattr(allocator, "give_back", lambda: given.append("cpu"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append("cuda"))
    worker = service._Service(None, SimpleNamespace(set=lambda label: None))  # type: ignore[arg-type]
    (task,) = tasks(1)
    with pytest.raises(RuntimeError) if isinstance(fails, RuntimeError) else nullcontext():
        worker.answer(PointJob(replace(task.point.case, device=device), task.settings))
    assert given == ["cpu", *["cuda"] * (device != "cpu")]


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_device_that_does_not_answer_costs_what_it_costs_and_no_row_of_others(
    is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the point has blamed a subject, that is the answer; where it has its rows, these are."""

    def measure_point(*_: Any) -> Point:
        if is_lost:
            raise service.DeviceLostError("triton", "illegal memory access")
        return Point((), {"copy_bytes_per_s": 1.0}, {}, False, {})

    def empty_cache() -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(point, "measure_point", measure_point)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    worker = service._Service(None, SimpleNamespace(set=lambda label: None))  # type: ignore[arg-type]
    (task,) = tasks(1)
    job = PointJob(replace(task.point.case, device="cuda:0"), task.settings)
    if is_lost:
        assert worker.reply(job) == Lost("triton", "illegal memory access")
    else:
        assert worker.reply(job).peaks == {"copy_bytes_per_s": 1.0}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("answers", [True, False])
def test_a_point_that_ends_in_an_error_costs_the_process_where_its_device_does_not_answer(
    device: str, answers: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Otherwise every later point of that process would fail, and be kept in the journal as if it were its fault."""

    def measure_point(*_: Any) -> Point:
        raise RuntimeError("CUDA error")

    def synchronize(name: str) -> None:
        if not answers:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(point, "measure_point", measure_point)
    monkeypatch.setattr(machine, "give_back", lambda device: None)
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    worker = service._Service(None, SimpleNamespace(set=lambda label: None))  # type: ignore[arg-type]
    (task,) = tasks(1)
    found = worker.reply(PointJob(replace(task.point.case, device=device), task.settings))
    if device == "cpu" or answers:
        assert {(row.status, row.reason) for row in found.results} == {(Status.ERROR, "RuntimeError: CUDA error")}
    else:
        assert found == Lost("", "RuntimeError: CUDA error")


@pytest.mark.parametrize("autotune", [True, False])
def test_the_fingerprint_tells_how_cudnn_chooses_while_points_are_measured(
    autotune: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "check_device", torch.device)
    monkeypatch.setattr(machine, "set_threads", lambda threads: None)
    monkeypatch.setattr(machine, "fingerprint", lambda device: {"benchmark": torch.backends.cudnn.benchmark})
    worker = service._Service(None, SimpleNamespace(set=lambda label: None))  # type: ignore[arg-type]
    found = worker.answer(Hello(("cuda",), autotune=autotune))
    assert found.environments == {"cuda": {"benchmark": autotune}}
