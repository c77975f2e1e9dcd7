"""A cluster of our own, for the tests of sweeps over nodes: it does at once what Ray would do in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fake_workers import CPU, GPU, SETTINGS, measured

from invbench.harness.cluster import ClusterSweep, node, versions
from invbench.harness.cluster.engine import Demand, Gone, Node
from invbench.harness.cluster.members import Members
from invbench.harness.cluster.node import Greeting, Job, Started
from invbench.harness.messages import Hello, Plan, PointJob, Welcome
from invbench.harness.tasks import Task, tasks_of
from invbench.results.journal import Span
from invbench.study.grid import Grid

OTHER_CPU = {**CPU, "cpu": {"model": "Another CPU", "usable": 8}}
OTHER_GPU = {**GPU, "gpu": {"name": "NVIDIA H200", "capability": "9.0", "power_limit_w": 700}}


@dataclass(eq=False)
class FakeCall:
    """A task: on which node, with what, and what it will yield."""

    node: Node
    demand: Demand
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    messages: deque[object] = field(default_factory=deque)


def cores(name: str, cpus: int = 2, **fields: Any) -> Node:
    return Node(f"{name:0<56}", name, cpus, **{"gpus": 0, **fields})


@dataclass
class FakeEngine:
    """Nodes by their names, with the fingerprint of each; ``measure`` says what comes of a point on a node."""

    machines: dict[Node, Mapping[str, Any]]
    measure: Callable[[FakeEngine, FakeCall, Task], list[object]] = lambda engine, call, task: engine.rows(call, task)
    versions: dict[str, dict[str, str | None]] = field(default_factory=dict)
    greetings: dict[str, list[object]] = field(default_factory=dict)
    log: list[FakeCall] = field(default_factory=list)
    cancelled: list[FakeCall] = field(default_factory=list)
    clock: float = 0.0

    def nodes(self) -> list[Node]:
        return list(self.machines)

    def send_text_of(self, module: Any) -> None:
        assert module is versions

    def start(self, where: Node, demand: Demand, function: Callable[..., Iterator[Any]], *arguments: Any) -> FakeCall:
        call = FakeCall(where, demand, function, arguments)
        self.log.append(call)
        if where not in self.machines:
            call.messages.append(Gone("its node is gone"))
        elif function is versions.answer:
            call.messages.append(self.versions.get(where.name, versions.versions()))
        elif function is node.greeting:
            call.messages.extend(
                [Started(), self.greetings[where.name].pop(0)]
                if self.greetings.get(where.name)
                else [Started(), Greeting(self.welcome(where, arguments[0]))]
            )
        elif function is node.plans:
            call.messages.extend([Started(), [Plan({}, 2**20, 2**30) for _ in arguments[1]]])
        else:
            call.messages.extend(self.measure(self, call, arguments[1]))
        return call

    def hear(self, calls: Sequence[FakeCall], timeout: float) -> list[tuple[FakeCall, object]]:
        return [(call, call.messages.popleft()) for call in calls if call.messages]

    def cancel(self, calls: Sequence[FakeCall]) -> None:
        self.cancelled += calls

    def welcome(self, where: Node, job: Job) -> Welcome:
        (device,) = job.hello.devices
        environment = self.machines[where]
        environment = {**environment, "gpu": None} if device == "cpu" else environment
        usable = environment["cpu"]["usable"]
        return Welcome((device,), usable, usable, {device: environment}, ())

    def rows(self, call: FakeCall, task: Task) -> list[object]:
        """A point that nothing happens to; each takes a second."""
        name, identity = call.arguments[2]
        answer = measured(PointJob(task.point.case, task.settings))
        rows = tuple(replace(row, machine=task.machine, node=name) for row in answer.results)
        start, self.clock = self.clock, self.clock + 1
        return [Started(), replace(task.entry(rows, {"wall": 1.0}), span=Span(identity, start, self.clock))]

    # --- What a test asks for ---

    def members(self, *kinds: str, gpu_type: str = "") -> Members:
        """The nodes, after they have said hello."""
        found = Members(self, kinds or ("cpu",), Hello(kinds or ("cpu",)), {}, gpu_type)  # type: ignore[arg-type]
        found.gather(lambda line: None)
        return found

    def sweep(self, kept: Any, *kinds: str) -> ClusterSweep:
        return ClusterSweep(kept, self.members(*kinds), 100.0)

    def points(self) -> list[tuple[str, int]]:
        """Which node was given which point."""
        return [(call.node.name, call.arguments[1].point.case.N) for call in self.log if call.function is node.measure]


def tasks(members: Members, count: int = 4, launches: int = 1) -> list[Task]:
    """So many points on each class."""
    found = []
    for welcome in members.welcomes:
        points, _ = Grid({"N": tuple(range(1, count + 1)), "C": (16,)}).points(welcome.devices, welcome.threads)
        found += tasks_of(points, replace(SETTINGS, launches=launches), welcome)
    return found
