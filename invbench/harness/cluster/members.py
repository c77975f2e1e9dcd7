"""Which nodes of a cluster take part in a sweep: those that have our versions, by the class of their machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from invbench.harness.cluster import node as work
from invbench.harness.cluster import versions
from invbench.harness.cluster.engine import Call, Demand, Engine, Gone, Node
from invbench.harness.cluster.node import Greeting, Job, Started
from invbench.harness.messages import Hello, Plan, Refusal, Welcome
from invbench.harness.sweep import START_SECONDS
from invbench.harness.tasks import Task
from invbench.results import machine_class
from invbench.spec import InvbenchError

TICK = 0.5
POLL_SECONDS = 2.0  # between looks at which nodes there are
CPU, CUDA = "cpu", "cuda"
MOST_LOSSES = 2  # of a node that says hello, or of a point: then it is given up
# What rows of one class must have in common, since it belongs to the key of a point.
ALIKE: dict[str, Callable[[Any], Any]] = {
    "Python": lambda found: found.get("python"),
    "versions": lambda found: found.get("versions"),
    "source of invbench": lambda found: found.get("source"),
    "environment": lambda found: found.get("threads", {}).get("variables"),
    "allocator": lambda found: found.get("allocator"),
}


@dataclass
class Group:
    """The nodes of one class of machine, which share its points; welcome: what each of them has."""

    kind: str
    machine: str
    welcome: Welcome
    nodes: dict[str, Node] = field(default_factory=dict)


@dataclass
class _Newcomer:
    """A node that is being asked; kinds: the types of device that it has not said hello for."""

    node: Node
    kinds: list[str]


@dataclass
class Members:
    """The nodes of a cluster that take part, those that come, and those that go.

    kinds: types of device to measure on, in turn. variables: of the environment of measuring processes. gpu_type: words
    of the GPUs' name, or "". notes: what there is to know of those that were asked first.
    """

    engine: Engine
    kinds: Sequence[str]
    hello: Hello
    variables: dict[str, str]
    gpu_type: str = ""
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _newcomers: dict[Call, _Newcomer] = field(default_factory=dict)
    _refused: set[str] = field(default_factory=set)
    _losses: dict[str, int] = field(default_factory=dict)
    _other_gpus: set[str] = field(default_factory=set)
    _next_look: float = 0.0
    _has_begun: bool = False

    # --- Coming and going ---

    def gather(self, tell: Callable[[str], None]) -> None:
        """Ask every node of the cluster; raises InvbenchError if one must not take part, or if none has a type of
        device that is asked for.

        Waits for nodes that others keep busy, but after some minutes only until there is one of each type.
        """
        deadline = time.monotonic() + START_SECONDS
        self.look()
        while self._newcomers and (self._lacking() or time.monotonic() < deadline):
            waiting = ", ".join(each.node.label for each in self._newcomers.values())
            tell(f"asking the nodes of the cluster, of which busy ones answer later: {waiting}")
            for call, message in self.engine.hear(self.calls, TICK):
                note = self.hear(call, message)
                self.notes += [note] if note else []
        self._has_begun = True
        lacking = self._lacking()
        if not lacking:
            return
        if self._other_gpus and CUDA in lacking:
            raise InvbenchError(
                f"--gpu-type {self.gpu_type}: no node has such a GPU; there is: {', '.join(sorted(self._other_gpus))}"
            )
        why = f" ({'; '.join(self.notes)})" if self.notes else ""
        raise InvbenchError(
            f"--device {','.join(lacking)}: no node of the cluster that answers offers one to Ray{why}; look at it "
            "with: ray status"
        )

    def _lacking(self) -> list[str]:
        """The types of device that no member has."""
        return [kind for kind in self.kinds if all(group.kind != kind for group in self.groups.values())]

    @property
    def calls(self) -> list[Call]:
        """What is being asked."""
        return list(self._newcomers)

    @property
    def newcomers(self) -> list[Node]:
        """The nodes that are being asked."""
        return [each.node for each in self._newcomers.values()]

    def look(self) -> None:
        """See which nodes there are, every now and then: those that have gone are no members, new ones are asked."""
        if time.monotonic() < self._next_look:
            return
        alive = {node.id: node for node in self.engine.nodes()}
        for group in self.groups.values():
            group.nodes = {name: node for name, node in group.nodes.items() if name in alive}
        known = {name for group in self.groups.values() for name in group.nodes} | self._refused
        known |= {each.node.id for each in self._newcomers.values()}
        for node in alive.values():
            kinds = [kind for kind in self.kinds if _offers(node, kind)]
            if node.id not in known and kinds:
                self.engine.send_text_of(versions)
                # Even this waits for the device: a process that starts would disturb what others measure.
                call = self.engine.start(node, self.demand(node, kinds[0]), versions.answer)
                self._newcomers[call] = _Newcomer(node, kinds)
        self._next_look = time.monotonic() + POLL_SECONDS

    def drop(self, node: Node) -> None:
        """A node has lost a task: it is asked again before it gets another one."""
        for group in self.groups.values():
            group.nodes.pop(node.id, None)
        self._next_look = 0.0

    def hear(self, call: Call, message: object) -> str | None:
        """Take what a node answers; a line for the user where there is one. InvbenchError if it must not take part."""
        newcomer = self._newcomers[call]
        node = newcomer.node
        if isinstance(message, Started):
            return None
        del self._newcomers[call]
        if isinstance(message, Gone):
            self._losses[node.id] = self._losses.get(node.id, 0) + 1
            if self._losses[node.id] >= MOST_LOSSES:
                self._refused.add(node.id)
            return f"{node.label} does not answer: {message.reason}"
        try:
            return self._take(newcomer, message)
        except InvbenchError:
            self._refused.add(node.id)
            raise

    def _take(self, newcomer: _Newcomer, message: object) -> str | None:
        node, kinds, note = newcomer.node, newcomer.kinds, None
        if isinstance(message, Refusal):
            raise InvbenchError(f"{node.label}: {message.reason}")
        if isinstance(message, Greeting):
            notes = [*message.notes, *self._adopt(node, kinds.pop(0), message.welcome)]
            note = "; ".join(notes) or None
        else:
            check_versions(node.label, message, versions.versions())  # type: ignore[arg-type]  # what it was asked for
        if kinds:
            call = self.engine.start(node, self.demand(node, kinds[0]), work.greeting, self.job(kinds[0]))
            self._newcomers[call] = newcomer
        return f"{node.label}: {note}" if note else None

    def _adopt(self, node: Node, kind: str, welcome: Welcome) -> list[str]:
        """Count a node in; what to know of it."""
        (device,) = welcome.devices
        found = welcome.environments[device]
        name = (found.get("gpu") or {}).get("name") or node.gpu_type
        if kind == CUDA and self.gpu_type and not _is_of(self.gpu_type, f"{node.gpu_type} {name}"):
            self._other_gpus.add(name)
            self._refused.add(node.id)
            return []
        if kind == CPU:  # what Ray has of a node is all that a point there may use
            welcome = replace(welcome, threads=min(welcome.threads, node.cpus), cores=min(welcome.cores, node.cpus))
        is_late = self._has_begun and (kind, machine_class(found)) not in self.groups
        group = self.groups.setdefault((kind, machine_class(found)), Group(kind, machine_class(found), welcome))
        self._check_alike(group, node, welcome)
        group.nodes[node.id] = node
        self._losses.pop(node.id, None)
        return ["it is of another class of machine: measured there by the same command with --resume"] * is_late

    def _check_alike(self, group: Group, node: Node, welcome: Welcome) -> None:
        """Refuse a node whose rows would not be those that the class's keys promise."""
        (expected,), (got,) = group.welcome.environments.values(), welcome.environments.values()
        others = ", ".join(each.label for each in group.nodes.values()) or "before"
        for what, of in ALIKE.items():
            if of(expected) != of(got):
                raise InvbenchError(
                    f"{node.label} differs from {others} in its {what}: got {of(got)}, expected {of(expected)}; "
                    "install the same on every node"
                )
        if welcome.cores != group.welcome.cores:  # more, too: keys must not depend on who answers first
            raise InvbenchError(
                f"{node.label} offers {welcome.cores} core(s) to Ray, and {others} {group.welcome.cores}: start Ray "
                "on both with as many --num-cpus"
            )

    # --- What tasks need ---

    def job(self, kind: str, timeout: float = START_SECONDS) -> Job:
        """What a task on that type of device is told."""
        return Job(replace(self.hello, devices=(kind,)), self.variables, timeout)

    def demand(self, node: Node, kind: str) -> Demand:
        """What a point has for itself: every core of the node, or a whole GPU and its share of the cores."""
        return Demand(node.cpus) if kind == CPU else Demand(node.cpus // node.gpus, 1)

    def group_of(self, task: Task) -> Group:
        """The nodes that may measure a point."""
        return self.groups[task.point.case.device, task.machine]

    @property
    def welcomes(self) -> list[Welcome]:
        """What there is, once for each class of machine."""
        order = {kind: place for place, kind in enumerate(self.kinds)}
        return [group.welcome for group in sorted(self.groups.values(), key=lambda group: order[group.kind])]

    def plans(self, tasks: Sequence[Task], tell: Callable[[str], None]) -> list[Plan]:
        """``sweep.plans_of``, each on a node of its class."""
        found: dict[str, Plan] = {}
        for group in self.groups.values():
            own = [task for task in tasks if self.group_of(task) is group]
            answer: object = Gone("no node of this class is left to plan on")
            where = group.machine
            while isinstance(answer, Gone) and group.nodes:
                node = next(iter(group.nodes.values()))
                where = node.label
                tell(f"planning: on {where}")
                call = self.engine.start(node, self.demand(node, group.kind), work.plans, self.job(group.kind), own)
                answer = self._answer(call)
                if isinstance(answer, Gone):
                    self.drop(node)
            if isinstance(answer, Refusal | Gone):
                raise InvbenchError(f"{where}: {answer.reason}")
            found |= {task.key: plan for task, plan in zip(own, answer, strict=True)}  # type: ignore[call-overload]
        return [found[task.key] for task in tasks]

    def _answer(self, call: Call) -> object:
        """What a task answers after it has started."""
        answer: object = Started()
        while isinstance(answer, Started):
            answer = next((message for _, message in self.engine.hear([call], TICK)), answer)
        return answer


def check_versions(node: str, got: dict[str, str | None], expected: dict[str, str | None]) -> None:
    """Refuse a node whose versions are not those of the machine that drives the sweep."""
    for name, wanted in expected.items():
        if got.get(name) == wanted:
            continue
        what = "another source of invbench" if name == "source" else f"{name} {got.get(name) or 'missing'}"
        raise InvbenchError(
            f"{node} has {what}, and this machine {wanted or 'none'}: a sweep is measured by one version; install the "
            "same invbench, torch, Triton, Numba and NumPy on every node and here"
        )


def _offers(node: Node, kind: str) -> bool:
    return node.cpus > 0 if kind == CPU else node.gpus > 0


def _is_of(gpu_type: str, name: str) -> bool:
    """Whether all words of a type of GPU are in a GPU's name: "h200" in "NVIDIA H200"."""
    wanted, found = (set(text.lower().replace("-", " ").split()) for text in (gpu_type, name))
    return wanted <= found
