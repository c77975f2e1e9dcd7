"""A sweep over nodes: who measures what, what is lost and measured again, and who must not take part. Without Ray; with
it: test_cluster_processes.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import OTHER_CPU, OTHER_GPU, FakeCall, FakeEngine, cores, tasks
from fake_workers import CPU, GPU, Kept, Machine, welcome

from invbench import cli
from invbench.harness import cluster
from invbench.harness.cluster import members as membership
from invbench.harness.cluster import node, versions
from invbench.harness.cluster.engine import Demand, Gone, Node
from invbench.harness.cluster.node import Greeting, Job, Started, Unlike
from invbench.harness.messages import Hello, Refusal
from invbench.harness.sweep import CutShortError
from invbench.harness.tasks import Task
from invbench.results import Status, machine_class
from invbench.results.journal import read_document
from invbench.results.launches import together
from invbench.spec import InvbenchError

pytestmark = pytest.mark.usefixtures("environment_is_put_back")

A, B = cores("a"), cores("b")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "GRACE_SECONDS", 0.05)


def run(engine: FakeEngine, *kinds: str, count: int = 4, kept: Kept | None = None) -> tuple[Kept, list[Any]]:
    kept = kept or Kept()
    sweep = engine.sweep(kept, *kinds)
    return kept, list(sweep.run(tasks(sweep.members, count)))


# --- Who measures what ---


def test_nodes_share_the_points_and_each_is_measured_once() -> None:
    engine = FakeEngine({A: CPU, B: CPU})
    kept, events = run(engine)
    assert sorted(N for _, N in engine.points()) == [1, 2, 3, 4]
    assert {name for name, _ in engine.points()} == {"a", "b"}
    assert len(kept.added) == 4
    done = [event for event in events if event.entry]
    assert all({row.node for row in event.entry.results} == {event.device} for event in done)
    assert engine.cancelled == []


def test_a_point_on_the_cpu_has_all_cores_and_a_node_has_one_at_a_time() -> None:
    busy: set[str] = set()

    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        assert call.node.name not in busy
        assert call.demand == Demand(cpus=call.node.cpus)
        busy.add(call.node.name)
        return engine.rows(call, task)

    big = cores("b", cpus=2)
    engine = FakeEngine({A: CPU, big: CPU}, measure)
    sweep = engine.sweep(Kept())
    for event in sweep.run(tasks(sweep.members)):
        if event.entry:
            busy.discard(event.device.partition("/")[0])


def test_a_gpu_has_one_point_and_its_share_of_the_cores() -> None:
    node = cores("a", cpus=9, gpus=2)
    most = []

    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        assert call.demand == Demand(cpus=4, gpus=1)
        most.append(sum(bool(each.messages) for each in engine.log) + 1)
        return engine.rows(call, task)

    kept, _ = run(FakeEngine({node: GPU}, measure), "cuda")
    assert (len(kept.added), max(most)) == (4, 2)


def test_types_of_device_take_turns() -> None:
    kept, _ = run(FakeEngine({cores("a", gpus=1): GPU}), "cpu", "cuda", count=2)
    cases = [kept.entries[key].results[0].case.device for key in kept.added]
    assert cases == ["cpu", "cpu", "cuda", "cuda"]


def test_every_class_of_machine_measures_every_point() -> None:
    engine = FakeEngine({A: CPU, B: OTHER_CPU})
    kept, _ = run(engine, count=3)
    assert sorted(engine.points()) == [(name, N) for name in "ab" for N in (1, 2, 3)]
    machines = {kept.entries[key].results[0].machine for key in kept.added}
    assert machines == {machine_class(CPU), machine_class(OTHER_CPU)}


def test_what_the_journal_has_is_not_measured_again() -> None:
    engine = FakeEngine({A: CPU})
    kept, _ = run(engine)
    again, _ = run(engine, kept=kept)
    assert len(again.added) == 4


def test_keys_are_those_of_a_sweep_without_a_cluster() -> None:
    import fake_workers

    here = fake_workers.tasks(4)
    assert [task.key for task in tasks(FakeEngine({A: CPU}).members())] == [task.key for task in here]


def test_a_point_uses_no_more_cores_than_ray_has_of_a_node() -> None:
    (found,) = FakeEngine({cores("a", cpus=1): CPU}).members().welcomes
    assert (found.threads, found.cores) == (1, 1)
    (found,) = FakeEngine({cores("a", cpus=64): CPU}).members().welcomes
    assert (found.threads, found.cores) == (2, 2)


def test_progress_says_who_measures_and_how_many_wait() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        answer = engine.rows(call, task)
        return answer if call.node is A else []  # others keep the second node busy

    engine = FakeEngine({A: CPU, B: CPU}, measure)
    sweep = engine.sweep(Kept())
    states = []
    for event in sweep.run(tasks(sweep.members)):
        if event.running is not None:
            states.append(([where for where, _ in event.running], event.waiting))
        if len(states) == 4:
            break
    assert states == [([A.label], 3), ([A.label], 2), ([A.label], 1), ([], 1)]


@pytest.mark.parametrize(("kind", "demand"), [("cpu", Demand(8)), ("cuda", Demand(4, 1))])
def test_whatever_is_asked_of_a_node_waits_for_a_device(kind: str, demand: Demand) -> None:
    """Another driver's measurement is not disturbed by ours."""
    engine = FakeEngine({cores("a", cpus=8, gpus=2): GPU})
    engine.members(kind)
    assert [call.demand for call in engine.log] == [demand, demand]
    assert [call.function for call in engine.log] == [versions.answer, node.greeting]


# --- What is lost ---


def dies(*names: str, at: int = 2, started: bool = True) -> Any:
    """Nodes that die as they measure a point."""

    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        if call.node.name in names and at == task.point.case.N:
            del engine.machines[call.node]
            return [Started()] * started + [Gone("its node died")]
        return engine.rows(call, task)

    return measure


def test_a_point_whose_node_dies_is_measured_elsewhere() -> None:
    engine = FakeEngine({A: CPU, B: CPU}, dies("a", at=1))
    kept, events = run(engine)
    assert len(kept.added) == len(set(kept.added)) == 4
    assert {row.status for key in kept.added for row in kept.entries[key].results} == {Status.OK}
    (line,) = [event.line for event in events if event.stays]
    assert line == "lost: its node died; it is measured again"
    assert engine.points()[-1][0] == "b"


def test_a_point_that_is_lost_twice_is_a_row_and_the_others_are_measured() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        lost = [Started(), Gone("its worker process of Ray's died")]
        return lost if task.point.case.N == 2 else engine.rows(call, task)

    engine = FakeEngine({A: CPU, B: CPU}, measure)
    kept, _ = run(engine)
    assert sorted(N for _, N in engine.points()) == [1, 2, 2, 3, 4]
    assert {name for name, N in engine.points() if N == 2} == {"a", "b"}  # the second time elsewhere
    (bad,) = [e for e in kept.entries.values() if e.results[0].case.N == 2]
    for row in bad.results:
        assert (row.status, row.baseline, row.machine) == (Status.ERROR, "conv2d", machine_class(CPU))
        assert row.reason.startswith("lost 2 times (")
        assert row.reason.count("its worker process of Ray's died") == 2


def test_the_only_node_gets_a_lost_point_again_after_it_has_said_hello_again() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        first = len([N for _, N in engine.points() if N == 2]) == 1
        return [Started(), Gone("x")] if task.point.case.N == 2 and first else engine.rows(call, task)

    engine = FakeEngine({A: CPU}, measure)
    kept, _ = run(engine)
    assert {row.status for e in kept.entries.values() for row in e.results} == {Status.OK}
    assert sum(call.function is node.greeting for call in engine.log) == 2


def test_a_node_that_dies_before_the_point_begins_is_not_the_points_fault() -> None:
    engine = FakeEngine({A: CPU, B: CPU, cores("c"): CPU}, dies("a", "b", at=2, started=False))
    kept, _ = run(engine)
    assert {row.status for e in kept.entries.values() for row in e.results} == {Status.OK}


@pytest.mark.parametrize("nodes", [(A,), (A, B), (A, B, cores("c"))], ids=len)
def test_a_point_that_never_begins_is_given_up_in_the_end(nodes: tuple[Node, ...]) -> None:
    engine = FakeEngine(dict.fromkeys(nodes, CPU), lambda engine, call, task: [Gone("no room")])
    kept, _ = run(engine, count=1)
    (entry,) = kept.entries.values()
    assert entry.results[0].reason.startswith("lost 6 times")


def test_where_nobody_is_left_the_sweep_ends_and_says_so() -> None:
    engine = FakeEngine({A: CPU}, dies("a", at=3))
    sweep = engine.sweep(kept := Kept())
    with pytest.raises(CutShortError, match=r"no node is left with A CPU: 2 point\(s\) are not measured"):
        list(sweep.run(tasks(sweep.members)))
    assert len(kept.added) == 2


def test_where_a_class_has_nobody_left_the_others_are_measured_first() -> None:
    engine = FakeEngine({A: CPU, B: OTHER_CPU}, dies("a", at=1))
    sweep = engine.sweep(kept := Kept())
    with pytest.raises(CutShortError, match=r"no node is left with A CPU: 4 point\(s\)"):
        list(sweep.run(tasks(sweep.members)))
    assert {row.machine for e in kept.entries.values() for row in e.results} == {machine_class(OTHER_CPU)}
    assert len(kept.added) == 4


def test_what_a_node_cannot_do_any_more_is_done_elsewhere() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        return [Started(), Refusal("no space is left")] if call.node is A else engine.rows(call, task)

    engine = FakeEngine({A: CPU, B: CPU}, measure)
    kept, _ = run(engine)
    assert {row.status for e in kept.entries.values() for row in e.results} == {Status.OK}


def test_a_node_that_comes_later_takes_part() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        engine.machines[B] = CPU
        return engine.rows(call, task)

    engine = FakeEngine({A: CPU}, measure)
    run(engine, count=6)
    assert {name for name, _ in engine.points()} == {"a", "b"}


def test_a_late_node_of_another_class_or_version_is_told_and_left_out() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        engine.machines |= {B: OTHER_CPU, cores("c"): CPU}
        return engine.rows(call, task)

    engine = FakeEngine({A: CPU}, measure, versions={"c": {**versions.versions(), "torch": "1.0"}})
    _, events = run(engine, count=8)
    told = [event.line for event in events if event.stays]
    assert any("b/b0000000" in line and "another class" in line for line in told)
    assert any("c/c0000000 has torch 1.0" in line and "left out" in line for line in told)
    assert {name for name, _ in engine.points()} == {"a"}


def test_what_runs_is_cancelled_where_the_sweep_stops() -> None:
    engine = FakeEngine({A: CPU, B: CPU})
    sweep = engine.sweep(Kept())
    events = sweep.run(tasks(sweep.members))
    next(events)
    events.close()
    assert len(engine.cancelled) == 2


def test_devices_that_differ_end_the_sweep() -> None:
    engine = FakeEngine({A: CPU}, lambda *_: [Started(), Unlike("a: its devices differ")])
    with pytest.raises(CutShortError, match="a: its devices differ"):
        run(engine)


def test_a_launch_that_is_lost_twice_is_a_launch_that_came_to_nothing() -> None:
    def measure(engine: FakeEngine, call: FakeCall, task: Task) -> list[object]:
        return [Started(), Gone("its node died")] if task.launch == 1 else engine.rows(call, task)

    engine = FakeEngine({A: CPU, B: CPU}, measure)
    sweep = engine.sweep(kept := Kept())
    list(sweep.run(tasks(sweep.members, 1, launches=3)))
    assert sorted(entry.launch for entry in kept.entries.values()) == [0, 1, 2]
    found = together({entry.launch: entry.results for entry in kept.entries.values()}, 3)
    assert {row.status for row in found} == {Status.OK}
    assert all("launch 2 of 3 came to nothing: lost 2 times" in row.warnings[-1] for row in found)


def test_points_that_nobody_is_left_for_are_counted_once_whatever_their_launches() -> None:
    engine = FakeEngine({A: CPU}, dies("a", at=2))
    sweep = engine.sweep(Kept())
    with pytest.raises(CutShortError, match=r"no node is left with A CPU: 3 point\(s\)"):
        list(sweep.run(tasks(sweep.members, 3, launches=2)))


# --- Who takes part ---


@pytest.mark.parametrize(
    ("name", "got", "words"),
    [
        ("torch", "1.0", "has torch 1.0, and this machine"),
        ("triton", None, "has triton missing, and this machine"),
        ("invbench", None, "has invbench missing, and this machine"),
        ("source", "0123", "has another source of invbench, and this machine"),
        ("python", "3.10.0", "has python 3.10.0, and this machine"),
    ],
)
def test_other_versions_are_refused_before_anything_is_measured(name: str, got: str | None, words: str) -> None:
    engine = FakeEngine({A: CPU, B: CPU}, versions={"b": {**versions.versions(), name: got}})
    with pytest.raises(InvbenchError, match=words) as caught:
        engine.members()
    assert str(caught.value).startswith("b/b0000000 has")
    assert "install the same" in str(caught.value)


def test_the_versions_are_those_of_this_machine() -> None:
    found = next(versions.answer())
    assert found == versions.versions()
    assert found["python"].count(".") == 2
    assert "+" not in found["torch"]
    assert len(found["source"]) == 12


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({**CPU, "versions": {"torch": "2.13.0+cu130"}}, r"b/b0000000 differs from a/a0000000 in its versions"),
        ({**CPU, "source": "0123"}, "source of invbench"),
        ({**CPU, "threads": {"variables": {"OMP_NUM_THREADS": "1"}}}, "environment"),
    ],
)
def test_nodes_of_a_class_have_to_be_alike(other: Any, words: str) -> None:
    with pytest.raises(InvbenchError, match=words):
        FakeEngine({A: CPU, B: other}).members()


@pytest.mark.parametrize("cpus", [(2, 1), (1, 2)])
def test_nodes_of_a_class_have_to_offer_as_many_cores(cpus: tuple[int, int]) -> None:
    """Whoever answers first: the number of threads is part of the keys."""
    first, second = cpus
    with pytest.raises(InvbenchError, match=rf"b/b0000000 offers {second} core\(s\) to Ray, and a/a0000000 {first}"):
        FakeEngine({cores("a", cpus=first): CPU, cores("b", cpus=second): CPU}).members()


def test_what_a_node_refuses_is_told_with_its_name() -> None:
    engine = FakeEngine({A: CPU}, greetings={"a": [Refusal("--subject mine:make: it cannot be imported")]})
    with pytest.raises(InvbenchError, match="a/a0000000: --subject mine:make: it cannot be imported"):
        engine.members()


def test_a_node_that_does_not_answer_twice_is_left_out() -> None:
    engine = FakeEngine({A: CPU, B: CPU}, greetings={"b": [Gone("its worker process of Ray's died")] * 9})
    found = engine.members()
    kept = Kept()
    list(cluster.ClusterSweep(kept, found, 9.0).run(tasks(found, 8)))
    assert {name for name, _ in engine.points()} == {"a"}
    assert sum(call.node is B and call.function is node.greeting for call in engine.log) == 2


@pytest.mark.parametrize(("gpu_type", "node_type"), [("h200", ""), ("NVIDIA-H200", ""), ("A100-80G", "A100-80G")])
def test_a_kind_of_gpu(gpu_type: str, node_type: str) -> None:
    wanted, other = cores("a", gpus=1, gpu_type=node_type), cores("b", gpus=1)
    engine = FakeEngine({wanted: OTHER_GPU, other: GPU})
    (group,) = engine.members("cuda", gpu_type=gpu_type).groups.values()
    assert list(group.nodes.values()) == [wanted]


def test_what_there_is_to_know_of_a_node_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    greeting = Greeting(welcome("cpu"), ("Ray measures with a low priority here",))
    engine = FakeEngine({A: CPU}, greetings={"a": [greeting]})
    assert command(engine, monkeypatch, *TINY, "--ray=auto") == 0
    assert "invbench: a/a0000000: Ray measures with a low priority here\n" in capsys.readouterr().err


@pytest.mark.parametrize("kinds", [("cuda",), ("cpu", "cuda")])
def test_a_kind_of_gpu_that_nobody_has(kinds: tuple[str, ...]) -> None:
    engine = FakeEngine({cores("a", gpus=1): GPU, cores("b", gpus=1): OTHER_GPU})
    with pytest.raises(InvbenchError, match="--gpu-type H100: no node has such a GPU; there is: A GPU, NVIDIA H200"):
        engine.members(*kinds, gpu_type="H100")


@pytest.mark.parametrize("kinds", [("cuda",), ("cpu", "cuda")])
def test_a_cluster_without_what_is_asked_for(kinds: tuple[str, ...]) -> None:
    with pytest.raises(InvbenchError, match="--device cuda: no node"):
        FakeEngine({A: CPU}).members(*kinds)


def test_why_nobody_takes_part_is_told() -> None:
    engine = FakeEngine({A: CPU}, greetings={"a": [Gone("ImportError: no psutil")]})
    with pytest.raises(InvbenchError, match=r"\(a/a0000000 does not answer: ImportError: no psutil\); look at it"):
        engine.members()


def test_plans_for_a_class_that_has_nobody_left() -> None:
    engine = FakeEngine({A: CPU})
    found = engine.members()
    wanted = tasks(found, 1)
    found.drop(A)
    with pytest.raises(InvbenchError, match="no node of this class is left to plan on"):
        found.plans(wanted, lambda _: None)


def test_plans_come_from_a_node_of_the_class() -> None:
    engine = FakeEngine({A: CPU, B: OTHER_CPU})
    found = engine.members()
    wanted = tasks(found, 3)
    assert len(found.plans(wanted, lambda _: None)) == 6
    assert {call.node.name for call in engine.log if call.function is node.plans} == {"a", "b"}


# --- What a node does ---


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(answers={Hello: welcome("cpu")})

    def spawn() -> Any:
        worker = machine.spawn()
        worker.process = type("Process", (), {"is_alive": lambda self: not worker.stopped})()
        return worker

    monkeypatch.setattr(node, "Worker", spawn)
    monkeypatch.setattr(node, "_warm", [])
    return machine


JOB = Job(Hello(("cpu",)), {"KMP_BLOCKTIME": "7"})


def one_task() -> Task:
    return tasks(FakeEngine({A: CPU}).members(), 1)[0]


def test_a_node_measures_in_one_process_and_says_where_and_when(workers: Machine) -> None:
    greeting = list(node.greeting(JOB))
    assert greeting == [Started(), Greeting(welcome("cpu"))]
    for _ in range(2):
        started, entry = node.measure(JOB, one_task(), ("a/0", "0" * 56))
        assert started == Started()
        assert {(row.node, row.device, row.machine) for row in entry.results} == {("a/0", None, machine_class(CPU))}
        assert entry.span.node == "0" * 56
        assert entry.span.start <= entry.span.end
    assert len(workers.workers) == 1
    assert os.environ["KMP_BLOCKTIME"] == "7"


def test_each_launch_of_a_point_is_another_process(workers: Machine) -> None:
    for launch in (0, 0, 1, 2, 2):
        list(node.greeting(JOB))
        _, entry = node.measure(JOB, replace(one_task(), launch=launch, point_key="point"), ("a/0", "0"))
        assert (entry.launch, entry.point) == (launch, "point")
    assert [len(worker.jobs) for worker in workers.workers] == [2, 1, 2]
    assert [bool(worker.stopped) for worker in workers.workers] == [True, True, False]


def test_another_environment_is_another_process(workers: Machine) -> None:
    list(node.greeting(JOB))
    list(node.greeting(replace(JOB, variables={"KMP_BLOCKTIME": "1"})))
    assert [bool(worker.stopped) for worker in workers.workers] == [True, False]


def test_a_process_that_has_died_meanwhile_is_replaced(workers: Machine) -> None:
    list(node.greeting(JOB))
    workers.workers[0].stop()
    _, entry = node.measure(JOB, one_task(), ("a/0", "0"))
    assert {row.status for row in entry.results} == {Status.OK}


def test_a_node_refuses_a_point_of_another_class(workers: Machine) -> None:
    _, answer = node.measure(JOB, replace(one_task(), machine="another"), ("a/0", "0"))
    assert isinstance(answer, Unlike)
    assert "a/0 is not what it was" in answer.reason


# --- The command ---


TINY = ["sweep", "--N=1,2,3", "--C=16", "--H=6", "--K=3", "--device=cpu"]


def command(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, *arguments: str, after: Callable[[], object] = lambda: None
) -> int:
    """Run it; after: what happens when Ray is left."""

    @contextmanager
    def connected(address: str) -> Iterator[FakeEngine]:
        yield engine
        after()

    monkeypatch.setattr(cluster, "connected", connected)
    monkeypatch.setattr(sys, "argv", ["invbench", *arguments])
    return cli._run(list(arguments))


def test_the_command_over_two_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine({A: CPU, B: OTHER_CPU})
    assert command(engine, monkeypatch, *TINY, "--ray=auto", "--format=json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert set(found["machines"]) == {machine_class(CPU), machine_class(OTHER_CPU)}
    assert {row["node"] for row in found["results"]} == {A.label, B.label}
    assert f"on {A.label}" in captured.err
    assert "[6/6] " in captured.err
    assert len(read_document(tmp_path / "sweep.jsonl").points()) == 6
    assert command(engine, monkeypatch, *TINY, "--ray=auto", "--resume", "--quiet") == 0
    assert len(engine.points()) == 6


def test_a_plan_for_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(FakeEngine({A: CPU}), monkeypatch, *TINY, "--ray=auto", "--dry-run", "--format=json") == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) == 3
    assert not (tmp_path / "sweep.jsonl").exists()


def test_ctrl_c_while_something_is_told_cancels_before_ray_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """Ray, asked to cancel after that, would start another cluster."""
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine({A: CPU, B: CPU})

    def interrupt(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("invbench.cli.following.point_line", interrupt)
    before_the_end: list[FakeCall] = []
    interrupted = command(
        engine, monkeypatch, *TINY, "--ray=auto", after=lambda: before_the_end.extend(engine.cancelled)
    )
    assert interrupted == 130
    assert before_the_end
    assert before_the_end == engine.cancelled
    assert "of 3 points are in sweep.jsonl; go on with: invbench sweep" in capsys.readouterr().err


def test_where_nobody_is_left_it_is_4_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = FakeEngine({A: CPU}, dies("a", at=2))
    assert command(engine, monkeypatch, *TINY, "--ray=auto", "--quiet", "--format=json") == 4
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["results"]) > 0
    (line,) = captured.err.splitlines()
    assert "no node is left with A CPU" in line
    assert "1 of 3 points are in sweep.jsonl; go on with: invbench sweep" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-type=H200"], "--gpu-type chooses among the nodes of --ray"),
        (["--ray=auto", "--gpu-type=H200"], "needs --device cuda"),
        (["--ray=auto", "--device=cuda:1"], "--device with --ray takes cpu or cuda: got 'cuda:1'"),
        (["--ray=auto", "--device=mps"], "--device with --ray takes cpu or cuda: got 'mps'"),
        (["--ray=auto", "--device=cuda", "--gpu-type= "], "--gpu-type takes a kind of GPU"),
        (["--ray=nonsense"], "--ray takes local, auto or HOST:PORT"),
        (["--ray=ray://127.0.0.1:10001"], "--ray takes local, auto or HOST:PORT"),
        (["--ray=127.0.0.1:1"], "--ray 127.0.0.1:1: nobody answers there"),
    ],
)
def test_what_cannot_be_is_2_and_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["invbench", *TINY, *arguments])
    monkeypatch.setitem(sys.modules, "ray", object())
    assert cli._run([*TINY, *arguments, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert words in line
    assert not (tmp_path / "sweep.jsonl").exists()


@pytest.mark.parametrize("address", ["local", "auto", "127.0.0.1:6379"])
@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')", "which is not installed"),
        (
            "raise ImportError('libray.so: cannot open\\nmore')",
            "which cannot be imported (libray.so: cannot open more)",
        ),
    ],
    ids=["missing", "broken"],
)
def test_without_ray_it_says_what_to_install(address: str, statement: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text(statement)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "invbench", *TINY, f"--ray={address}", "--quiet"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"invbench: --ray {address} needs Ray, {words}: pip install 'invbench[cluster]'\n"


def test_nothing_else_imports_ray() -> None:
    program = (
        "import sys, invbench.cli.sweep, invbench.harness.cluster, invbench.harness.cluster.node; "
        "print('ray' in sys.modules, 'torch' in sys.modules)"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (done.stdout.strip(), done.stderr) == ("False False", "")
