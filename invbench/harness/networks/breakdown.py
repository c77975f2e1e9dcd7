"""Where the time of one call goes, by kind of layer and by place in the network, as torch.profiler sees it.

Each operator that the call runs is of one kind, or none; what an Involution2d runs is all involution, and what a layer
of ``invbench.attention`` runs is all self-attention. Of a backward
pass, each function of the autograd graph is of the kind of the operator that recorded it, which share a sequence
number. What belongs to no kind is the rest: Python, dispatch, allocation, and operators that the table does not know.

Places are the parts of a network that have names: its attribute ``places`` has the modules of each, such as those of
its neck. All that runs while one of them is called is there, Python included, and the functions of the graph that were
recorded there.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from invbench.attention.operators import MODULES
from invbench.harness.steps import Step
from invbench.ops import Involution2d
from invbench.results.quantities import Breakdown

CALL = "invbench::call"
RANGE = "invbench::kind::"
PLACE = "invbench::place::"
BACKWARD = "autograd::engine::evaluate_function: "

POINTWISE, SPATIAL = "1x1 convolutions", "other convolutions"
INVOLUTION, ATTENTION = "involution", "self-attention"
NORM, ACTIVATION, POOLING, RESIZING = "normalisation", "activation", "pooling", "resizing"
ADDITION, LINEAR, GENERATED = "additions", "linear", "generated kernels"
KINDS = (
    POINTWISE, SPATIAL, INVOLUTION, ATTENTION, NORM, ACTIVATION, POOLING, RESIZING, ADDITION, LINEAR, GENERATED,
)  # fmt: skip

# Operators by the beginning of their name; convolutions are told apart by the shape of their weight.
CONVOLUTIONS = ("aten::conv", "aten::mkldnn_convolution", "mkldnn::_convolution_pointwise", "aten::_convolution")
OPERATORS = {
    "invbench::": INVOLUTION,
    "aten::batch_norm": NORM, "aten::native_batch_norm": NORM,
    "aten::relu": ACTIVATION,
    "aten::max_pool": POOLING, "aten::avg_pool": POOLING, "aten::adaptive_avg_pool": POOLING, "aten::mean": POOLING,
    "aten::embedding_bag": POOLING, "aten::upsample": RESIZING,
    "aten::linear": LINEAR, "aten::addmm": LINEAR, "aten::mm": LINEAR, "mkldnn::_linear_pointwise": LINEAR,
}  # fmt: skip
EXACT = {"aten::add": ADDITION, "aten::add_": ADDITION}
# What torch.compile makes of a network. What is not spent in operators is its loops, which do several things at once,
# and its calls. It could name the loops for the profiler, but would then compile others than those that were timed.
COMPILED = "## Call CompiledFxGraph"
METHOD = "torch.profiler, of the call whose length is nearest to the median latency"
NO_NUMBER = 2**63  # of what no operator recorded, such as the ends of the graph
SECONDS = 0.5  # about how long each row is looked into
CALLS = (3, 5)


def break_down(step: Step, seconds: float) -> Breakdown:
    """The parts of a call that is as long as calls are when nobody looks, of some.

    seconds: the median latency. A network as built has its involutions watched as a whole; of one that torch.compile
    has taken apart, the 1x1 convolutions that make an involution's weight count as such, unless its backend has them
    inside.
    """
    network = step.function if isinstance(step.function, nn.Module) else None
    places = places_of(network)
    calls = min(CALLS[1], max(CALLS[0], round(SECONDS / seconds)))
    watched = _watched(network, places)
    with step.context(), watched, profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        for _ in range(calls):
            with record_function(CALL):
                step.timed(step.before())
    events = seen.events()
    assert events is not None
    call = min((e for e in events if e.name == CALL), key=lambda event: abs(1e-6 * event.cpu_time_total - seconds))
    kinds, where = _Split(KINDS), _Split(places)
    _add_up(call, kinds, where)
    return Breakdown(1e-6 * call.cpu_time_total, kinds.found(), METHOD, where.found() if places else None)


def places_of(network: nn.Module | None) -> dict[str, tuple[nn.Module, ...]]:
    """The modules of each place that a network names; none where it names none, or means something else by it."""
    named = getattr(network, "places", None)
    if not isinstance(named, Mapping):
        return {}
    found = {name: parts if isinstance(parts, tuple) else () for name, parts in named.items()}
    are_modules = all(parts and all(isinstance(part, nn.Module) for part in parts) for parts in found.values())
    return found if are_modules else {}


@dataclass
class _Split:
    """The seconds of a call by something that each event is of, or not.

    recorded: what the operators of the forward pass were of, None included, by sequence number and start.
    """

    names: Iterable[str]
    seconds: dict[str, float] = field(default_factory=dict)
    recorded: list[tuple[int, float, str | None]] = field(default_factory=list)

    def add(self, name: str, microseconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + 1e-6 * microseconds

    def found(self) -> dict[str, float]:
        """In the order of the names, what takes time."""
        return {name: self.seconds[name] for name in self.names if self.seconds.get(name)}

    def add_backward(self, functions: Iterable[Any]) -> None:
        """The time of functions of the graph, each for what recorded it: the last that began at its number or before,
        since one operator may record several."""
        self.recorded.sort(key=lambda each: each[:2])
        for function in functions:
            after = bisect_right(self.recorded, function.sequence_nr, key=lambda each: each[0])
            name = self.recorded[after - 1][2] if after and function.sequence_nr < NO_NUMBER else None
            if name:
                self.add(name, function.cpu_time_total)


def _add_up(call: Any, kinds: _Split, places: _Split) -> None:
    """What one call's tree of events says; its times are in microseconds."""
    backward = []

    def attribute(event: Any, within: str | None, place: str | None) -> None:
        if event.name.startswith(BACKWARD):
            backward.append(event)
            return
        if event.name.startswith(PLACE) and place is None:
            place = event.name.removeprefix(PLACE)
            places.add(place, event.cpu_time_total)
        kind = within or _kind(event)
        if kind and not within:
            kinds.add(kind, event.cpu_time_total)
        if event.name.startswith(COMPILED):
            kinds.add(GENERATED, event.self_cpu_time_total)
        if event.sequence_nr >= 0:
            places.recorded.append((event.sequence_nr, event.time_range.start, place))
            if kind:
                kinds.recorded.append((event.sequence_nr, event.time_range.start, kind))
        for child in event.cpu_children:
            attribute(child, kind, place)

    for child in call.cpu_children:
        attribute(child, None, None)
    for split in (kinds, places):
        split.add_backward(backward)


def _kind(event: Any) -> str | None:
    name: str = event.name
    if name.startswith(RANGE):
        return name.removeprefix(RANGE)
    if name.startswith(PLACE):  # else it would be an operator of ours
        return None
    if name.startswith(CONVOLUTIONS):
        weight = event.input_shapes[1] if len(event.input_shapes) > 1 else []
        return POINTWISE if all(size == 1 for size in weight[2:]) else SPATIAL
    if name in EXACT:
        return EXACT[name]
    return next((kind for start, kind in OPERATORS.items() if name.startswith(start)), None)


@contextlib.contextmanager
def _watched(network: nn.Module | None, places: Mapping[str, Iterable[nn.Module]]) -> Iterator[None]:
    """Each involution and each norm, which counts its batches, opens a range of its kind, each place one of its own."""
    opened: list[Any] = []

    def watch(part: nn.Module, name: str) -> list[Any]:
        def before(_part: nn.Module, _inputs: Any) -> None:
            opened.append(record_function(name))
            opened[-1].__enter__()

        def after(_part: nn.Module, _inputs: Any, _output: Any) -> None:
            opened.pop().__exit__(None, None, None)

        # The place's range is around that of the kind, where a part has both: it opens first and closes last.
        outer = name.startswith(PLACE)
        return [
            part.register_forward_pre_hook(before, prepend=outer),
            part.register_forward_hook(after, prepend=not outer),
        ]

    handles = []
    for part, kind in _kinds_of(network) if network else ():
        handles += watch(part, RANGE + kind)
    for name, parts in places.items():
        for part in parts:
            handles += watch(part, PLACE + name)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kinds_of(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Layers that are of one kind with all that they run, and norms, which run more than one operator."""
    found: dict[nn.Module, str] = {}
    inner: set[nn.Module] = set()
    for part in network.modules():  # a layer comes before its parts
        kind = _kind_of_layer(part)
        # A hook on a part of an involution would keep its backend from taking the whole layer at once.
        if kind and part not in inner:
            found[part] = kind
            inner |= set(part.modules())
    yield from found.items()


def _kind_of_layer(part: nn.Module) -> str | None:
    if isinstance(part, Involution2d):
        return INVOLUTION
    if isinstance(part, MODULES):
        return ATTENTION
    return NORM if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) else None


def is_possible(device: torch.device) -> bool:
    """Whether the profiler's times are the work's: where launches run ahead of it, they are not."""
    return device.type == "cpu"
