"""Networks proved right against float64: as a whole, and in 16 bits each involution by itself.

Rounding grows from layer to layer, and a rectifier whose input crosses zero flips a whole gradient. In float64 and
float32 a wrong tap or border stands out all the same. In 16 bits it does not: the gradients of a RedNet-50 that is
right differ from the reference by 0.6 of their size, and single ones by more than all of it; a wrong border changes
logits by less than rounding may. There the logits are compared, and each involution of a network as built is run once
more alone, on what it got in the network and with the gradient that it got there, where its rounding is its own.

What a detector puts out is several things in one row, such as scores and masks: each of them is judged by itself, as a
share of its own largest number, so that none that is wrong hides behind one that is large.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from invbench.harness import subjects
from invbench.harness.networks.build import Networks, Original
from invbench.harness.steps import Agreement, Step, gradient_differences, largest_difference, precision_of
from invbench.ops import Involution2d
from invbench.spec import Mode

CHECKED_IMAGES = 4

# The largest difference of the logits from the float64 reference, as a share of its largest logit, and of a parameter's
# gradient in Euclidean norm. Rounding grows through 50 to 150 layers (seen: float32 1e-6 to 8e-5 and 0.03, bfloat16
# 0.02 to 0.4); gradients jump besides where a ReLU's input crosses zero. A wrong tap or border is of the order of 1.
TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "float16": 1e-1, "bfloat16": 5e-1}
GRADIENT_TOLERANCE = {"float64": 1e-6, "float32": 1e-1, "float16": 3e-1}  # that of float16 is for TF32
ROUNDS_A_LOT = ("float16", "bfloat16")
DROPOUTS = (
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout,
)  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What the reference returned, and the lengths of the parts of its first tensor [N, sum of them], if it has any."""

    results: Sequence[Tensor]
    lengths: Sequence[int] = ()


def check(
    networks: Networks, original: Original, step: Step, results: Sequence[Tensor], known: dict[int, Reference]
) -> Agreement:
    """Compare logits and, where they are timed, all gradients with the float64 reference by the naive backend.

    results: what the step returned. known: references so far, by original; its rows share one. Up to
    ``CHECKED_IMAGES`` images are checked; a training step runs once more with so many, since its batch norms see the
    whole batch, and without dropout, which is drawn at random. So does inference in 16 bits, to see its involutions.
    """
    case = networks.case
    alone = case.dtype in ROUNDS_A_LOT
    count = min(case.N, CHECKED_IMAGES)
    if id(original) not in known:
        reference = networks.reference(original, count, Mode.FORWARD if alone else case.mode)
        lengths = _noted_lengths(reference.function) if original.model.suite else ()  # a user's means what it likes
        with _WithoutDropout():
            known[id(original)] = Reference(reference.results(), lengths)
    reference_of = known[id(original)]
    layers: list[_Seen] = []
    as_built = isinstance(step.function, nn.Module)
    if case.mode is Mode.FORWARD and not (alone and as_built):
        outputs = [results[0][:count]]
    else:
        with _WithoutDropout(), _watched(step.function if alone else None, layers):
            outputs = _first(step, count).results()
    whole = _worst(outputs[:1] if alone else outputs, reference_of, precision_of(case.device, case.dtype))
    return most_used([whole, *(_layer(seen, step.autocast, case.dtype) for seen in layers)])


def _first(step: Step, count: int) -> Step:
    """The step on its first images."""
    images, grad_y = step.inputs[0][:count], None if step.grad_y is None else step.grad_y[:count]
    return Step(step.mode, step.function, [images], step.differentiated, grad_y, step.autocast)


def _worst(outputs: Sequence[Tensor], reference: Reference, precision: str) -> Agreement:
    y, expected = outputs[0], reference.results[0]
    parts: Iterable[tuple[Tensor, Tensor]] = [(y, expected)]
    if reference.lengths:
        parts = zip(*(each.split(list(reference.lengths), 1) for each in (y, expected)), strict=True)
    logits = [Agreement(largest_difference(*part), TOLERANCE[precision]) for part in parts]
    differences = gradient_differences(outputs[1:], reference.results[1:])
    return most_used([*logits, *(Agreement(each, GRADIENT_TOLERANCE[precision]) for each in differences)])


def _noted_lengths(function: object) -> list[int]:
    """The lengths of what each row of a network's output is made of, once it has been called: of networks that join
    several ``outputs``, each [N, length]. Empty where the output is one thing."""
    found: list[int] = []
    outputs = getattr(function, "outputs", None)
    if outputs is not None:

        def noted(x: Tensor) -> list[Tensor]:
            parts: list[Tensor] = outputs(x)
            found[:] = [part.shape[1] for part in parts]
            return parts

        setattr(function, "outputs", noted)  # noqa: B010 -- of this one copy, which nobody else calls
    return found


def most_used(checks: Sequence[Agreement]) -> Agreement:
    """The first that is too large or NaN, or else the one that is nearest to it."""
    failed = next((check for check in checks if not check.is_close), None)
    return failed or max(checks, key=lambda check: check.share)


# --- Each involution by itself ---


@dataclass
class _Seen:
    """An involution as it was called in a network: what it got, and the gradient of what it gave."""

    layer: Involution2d
    x: Tensor
    grad_y: Tensor | None = None  # where nothing before it learns, none


@contextlib.contextmanager
def _watched(function: object, seen: list[_Seen]) -> Iterator[None]:
    """Note how each involution of a network is called while inside; of none where there is no network."""

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(layer, Involution2d)
        call = _Seen(layer, inputs[0].detach().clone())  # a rectifier may write over it
        seen.append(call)

        def keep(grad_y: Tensor) -> None:
            call.grad_y = grad_y.detach().clone()

        if y.requires_grad:
            y.register_hook(keep)

    parts = list(function.modules()) if isinstance(function, nn.Module) else []
    handles = [part.register_forward_hook(after) for part in parts if isinstance(part, Involution2d)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(seen: _Seen, autocast: torch.dtype | None, dtype: str) -> Agreement:
    """One involution against the naive one in float64, on the same bits: y and all gradients."""
    layer, reference = copy.deepcopy(seen.layer), copy.deepcopy(seen.layer)
    reference.backend = "naive"
    device = seen.x.device if seen.x.device.type == "cuda" else torch.device("cpu")
    reference = reference.to(device, torch.float64)
    grad_y = None if seen.grad_y is None else seen.grad_y.to(device)
    outputs = _called(layer, seen.x, seen.grad_y, autocast)
    references = _called(reference, seen.x.to(device, torch.float64), grad_y, None)
    y = Agreement(largest_difference(outputs[0], references[0]), subjects.TOLERANCE[dtype])
    differences = gradient_differences(outputs[1:], references[1:])
    return most_used([y, *(Agreement(each, subjects.TOLERANCE_OVER_KINKS[dtype]) for each in differences)])


def _called(layer: Involution2d, x: Tensor, grad_y: Tensor | None, autocast: torch.dtype | None) -> list[Tensor]:
    if grad_y is None:
        return Step(Mode.FORWARD, layer, [x], autocast=autocast).results()
    x = x.detach().requires_grad_()
    differentiated = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return Step(Mode.TRAIN, layer, [x], differentiated, grad_y, autocast).results()


class _WithoutDropout(TorchFunctionMode):
    """What is dropped is drawn at random, and by other numbers in another type: inside, modules and functions let all
    through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The first argument of what drops; anything else as it is."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)
