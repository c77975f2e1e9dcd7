"""Where the time of one call goes, by kind of layer, as torch.profiler sees it.

Each operator that the call runs is of one kind, or none; what an Involution2d runs is all involution. Of a backward
pass, each function of the autograd graph is of the kind of the operator that recorded it, which share a sequence
number. What belongs to no kind is the rest: Python, dispatch, allocation, and operators that the table does not know.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from invbench.harness.steps import Step
from invbench.ops import Involution2d
from invbench.results.quantities import Breakdown

CALL = "invbench::call"
RANGE = "invbench::kind::"
BACKWARD = "autograd::engine::evaluate_function: "

POINTWISE, SPATIAL, INVOLUTION = "1x1 convolutions", "other convolutions", "involution"
NORM, ACTIVATION, POOLING = "normalisation", "activation", "pooling"
ADDITION, LINEAR, GENERATED = "additions", "linear", "generated kernels"
KINDS = (POINTWISE, SPATIAL, INVOLUTION, NORM, ACTIVATION, POOLING, ADDITION, LINEAR, GENERATED)

# Operators by the beginning of their name; convolutions are told apart by the shape of their weight.
CONVOLUTIONS = ("aten::conv", "aten::mkldnn_convolution", "mkldnn::_convolution_pointwise", "aten::_convolution")
OPERATORS = {
    "invbench::": INVOLUTION,
    "aten::batch_norm": NORM, "aten::native_batch_norm": NORM,
    "aten::relu": ACTIVATION,
    "aten::max_pool": POOLING, "aten::avg_pool": POOLING, "aten::adaptive_avg_pool": POOLING, "aten::mean": POOLING,
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
    calls = min(CALLS[1], max(CALLS[0], round(SECONDS / seconds)))
    with step.context(), _watched(network), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        for _ in range(calls):
            with record_function(CALL):
                step.timed(step.before())
    events = seen.events()
    assert events is not None
    found = [event for event in events if event.name == CALL]
    return _parts(min(found, key=lambda event: abs(1e-6 * event.cpu_time_total - seconds)))


def _parts(call: Any) -> Breakdown:
    """What one call's tree of events says; its times are in microseconds."""
    parts = dict.fromkeys(KINDS, 0.0)
    recorded: list[tuple[int, float, str]] = []  # sequence number, start, kind
    backward = []

    def attribute(event: Any, within: str | None) -> None:
        if event.name.startswith(BACKWARD):
            backward.append(event)
            return
        kind = within or _kind(event)
        if kind and not within:
            parts[kind] += 1e-6 * event.cpu_time_total
        if event.name.startswith(COMPILED):
            parts[GENERATED] += 1e-6 * event.self_cpu_time_total
        if kind and event.sequence_nr >= 0:
            recorded.append((event.sequence_nr, event.time_range.start, kind))
        for child in event.cpu_children:
            attribute(child, kind)

    for child in call.cpu_children:
        attribute(child, None)
    recorded.sort()
    for event in backward:
        kind = _recorded_by(event.sequence_nr, recorded)
        if kind:
            parts[kind] += 1e-6 * event.cpu_time_total
    return Breakdown(1e-6 * call.cpu_time_total, {kind: value for kind, value in parts.items() if value}, METHOD)


def _kind(event: Any) -> str | None:
    name: str = event.name
    if name.startswith(RANGE):
        return name.removeprefix(RANGE)
    if name.startswith(CONVOLUTIONS):
        weight = event.input_shapes[1] if len(event.input_shapes) > 1 else []
        return POINTWISE if all(size == 1 for size in weight[2:]) else SPATIAL
    if name in EXACT:
        return EXACT[name]
    return next((kind for start, kind in OPERATORS.items() if name.startswith(start)), None)


def _recorded_by(number: int, recorded: list[tuple[int, float, str]]) -> str | None:
    """The kind of the operator that recorded a function of the graph: the last that began at its number or before,
    since one operator may record several."""
    after = bisect_right(recorded, number, key=lambda each: each[0])
    return recorded[after - 1][2] if after and number < NO_NUMBER else None


@contextlib.contextmanager
def _watched(network: nn.Module | None) -> Iterator[None]:
    """Each involution and each norm, which counts its batches, opens a range of its kind."""
    kinds = {Involution2d: INVOLUTION, nn.BatchNorm2d: NORM}
    opened: list[Any] = []

    def before(part: nn.Module, _inputs: Any) -> None:
        opened.append(record_function(RANGE + kinds[type(part)]))
        opened[-1].__enter__()

    def after(_part: nn.Module, _inputs: Any, _output: Any) -> None:
        opened.pop().__exit__(None, None, None)

    handles = []
    inner = [layer.norm for layer in network.modules() if isinstance(layer, Involution2d)] if network else []
    for part in network.modules() if network else ():
        # A hook on a part of an involution would keep its backend from taking the whole layer at once.
        if type(part) in kinds and not any(part is norm for norm in inner):
            handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def is_possible(device: torch.device) -> bool:
    """Whether the profiler's times are the work's: where launches run ahead of it, they are not."""
    return device.type == "cpu"
