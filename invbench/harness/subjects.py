"""A case made runnable, and proved right: involution by every backend, and the convolutions it is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from invbench.harness.custom import resolve
from invbench.harness.settings import INVOLUTION, Subject
from invbench.harness.steps import (
    MEMORY_FORMATS,
    Agreement,
    Step,
    largest_difference,
    norm_difference,
    precision_of,
    random_normal,
    reference_device,
)
from invbench.ops import Involution2d, involution2d
from invbench.spec import Case, InvbenchError, LayerSpec, Mode, Scope

CHECKED_IMAGES = 4

# The largest difference from the float64 reference, as a share of the reference's largest value. float32 leaves room
# for the reordered sums and Winograd transforms of convolutions; half types round each intermediate tensor.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

# Gradients through a ReLU jump where its input crosses zero, so that rounding flips a few of them entirely. They are
# compared by their Euclidean norm: a handful of flips is small in it, an error in a border, a channel or a tap is not.
TOLERANCE_OVER_KINKS = {"float64": 1e-8, "float32": 1e-2, "float16": 1e-1, "bfloat16": 2e-1}


def _convolution(s: LayerSpec, kernel_size: int, groups: int = 1) -> nn.Module:
    padding = s.dilation * (kernel_size // 2)
    mode: Any = s.padding_mode  # a Literal to torch's stubs; LayerSpec has checked it
    return nn.Conv2d(s.C, s.C, kernel_size, s.stride, padding, s.dilation, groups, bias=False, padding_mode=mode)


CONVOLUTIONS: dict[str, Callable[[LayerSpec], nn.Module]] = {
    "conv2d": lambda s: _convolution(s, s.K),
    "conv2d-3x3": lambda s: _convolution(s, 3),
    "depthwise": lambda s: _convolution(s, s.K, groups=s.C),
    "separable": lambda s: nn.Sequential(_convolution(s, s.K, groups=s.C), nn.Conv2d(s.C, s.C, 1, bias=False)),
}


class Runnable(Step):
    """A subject at a point, ready to be called: random normal inputs, the same bits for every subject of a seed."""

    def __init__(self, subject: Subject, case: Case, seed: int, layout: str | None = None) -> None:
        self.subject, self.case = subject, case
        self.layout = layout or case.layout
        s = case.layer
        random = partial(_random, case=case, layout=self.layout)
        self.mode, self.inputs = case.mode, [random((case.N, s.C, case.H, case.W), seed)]
        H_out, W_out = s.out_size(case.H), s.out_size(case.W)
        self.module: nn.Module | None = None
        if subject.name == INVOLUTION and case.scope is Scope.AGGREGATE:
            # The channels of a 1x1 convolution, seen as groups of taps, as the layer's span writes them.
            self.inputs.append(random((case.N, s.G * s.taps, H_out, W_out), seed + 1).unflatten(1, (s.G, s.taps)))
            self.function: Callable[..., Tensor] = (
                self._build_custom() if subject.factory else _aggregate(case, subject.backend)
            )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1)
                self.function = self._build_custom() if subject.factory else self._build_module()
            self.module = self.function if isinstance(self.function, nn.Module) else None
        self.differentiated: list[Tensor] = []
        self.grad_y: Tensor | None = None
        if case.mode is not Mode.FORWARD:
            self.inputs = [tensor.detach().requires_grad_() for tensor in self.inputs]
            parameters = [] if self.module is None else _parameters(self.module)
            self.differentiated = [*self.inputs, *parameters]
            self.grad_y = random(self._output_size(), seed + 2)

    def _output_size(self) -> tuple[int, ...]:
        case, s = self.case, self.case.layer
        if self.subject.factory and self.subject.name != INVOLUTION:
            with torch.no_grad():
                return tuple(self.function(*self.inputs).shape)
        return case.N, s.C, s.out_size(case.H), s.out_size(case.W)

    def _build_module(self) -> nn.Module:
        if self.subject.name == INVOLUTION:
            return self._placed(_layer(self.case, self.subject.backend))
        return self._placed(CONVOLUTIONS[self.subject.name](self.case.layer))

    def _build_custom(self) -> Callable[..., Tensor]:
        """What the user's factory makes; an involution layer gets the parameters that ours has."""
        assert self.subject.factory is not None
        claims_layer = self.subject.name == INVOLUTION and self.case.scope is Scope.LAYER
        ours = _layer(self.case, "naive") if claims_layer else None
        if ours is not None:  # before the factory draws anything, so that it has the numbers of every backend
            _randomise_statistics(ours)
        made: Callable[..., Tensor] = resolve(self.subject.factory)(self.case)
        if ours is not None:
            if not isinstance(made, nn.Module):
                raise InvbenchError(
                    "an involution layer is an nn.Module with the parameters of Involution2d: "
                    f"got {type(made).__name__}; see the README"
                )
            made.load_state_dict(ours.state_dict())
            return self._placed(made, randomise=False)
        if not callable(made):
            raise InvbenchError(
                f"a factory returns an nn.Module or a callable: got {type(made).__name__}; see the README"
            )
        return self._placed(made) if isinstance(made, nn.Module) else made

    def _placed(self, module: nn.Module, randomise: bool = True) -> nn.Module:
        if randomise:
            _randomise_statistics(module)
        where: dict[str, Any] = {"device": self.case.device, "dtype": getattr(torch, self.case.dtype)}
        where["memory_format"] = MEMORY_FORMATS[self.layout]  # not in torch's stubs
        return module.to(**where).train(self.case.mode is not Mode.FORWARD)


def check(
    runnable: Runnable, references: dict[str, list[Tensor]], results: list[Tensor] | None = None
) -> Agreement | None:
    """Compare y and, where they are timed, all gradients with the float64 reference; the worst of them.

    results: what ``runnable.results()`` returned, if it was called before.
    references: computed so far, by operator name; all backends of an operator share one.
    Gradients of parameters sum over the batch, so they are checked on all of it; otherwise up to ``CHECKED_IMAGES``
    images, spread over the batch, stand for the rest. None for a user's own operator that does not run in float64.
    """
    case = runnable.case
    images = _checked_images(runnable)
    outputs = [tensor[images] if tensor.shape[:1] == (case.N,) else tensor for tensor in results or runnable.results()]
    if runnable.subject.name not in references:
        try:
            references[runnable.subject.name] = _reference(runnable, images)
        except Exception:
            if runnable.subject.name == INVOLUTION or runnable.subject.factory is None:
                raise
            return None
    has_kinks = runnable.module is not None and runnable.subject.name == INVOLUTION
    precision = precision_of(case.device, case.dtype) if runnable.module is not None else case.dtype
    worst = Agreement(0.0, TOLERANCE[precision])
    for index, (output, reference) in enumerate(zip(outputs, references[runnable.subject.name], strict=True)):
        if output.shape != reference.shape:
            got, expected = tuple(output.shape), tuple(reference.shape)
            raise InvbenchError(
                f"y or a gradient has the wrong shape: got {got}, expected {expected}; mend the operator"
            )
        if index > 0 and has_kinks:  # y comes first, then the gradients
            agreement = Agreement(norm_difference(output, reference), TOLERANCE_OVER_KINKS[precision])
        else:
            agreement = Agreement(largest_difference(output, reference), TOLERANCE[precision])
        if math.isnan(agreement.relative):
            return agreement
        worst = max(worst, agreement, key=lambda each: each.share)
    return worst


def _checked_images(runnable: Runnable) -> Tensor:
    case = runnable.case
    whole_batch = runnable.module is not None and case.mode is not Mode.FORWARD
    count = case.N if whole_batch else min(case.N, CHECKED_IMAGES)
    return torch.linspace(0, case.N - 1, count).round().long().to(case.device)


def _reference(runnable: Runnable, images: Tensor) -> list[Tensor]:
    """The same operator on the same bits in float64, by the naive backend or torch's own convolution."""
    device = reference_device(runnable.case.device)
    reference = copy.copy(runnable)
    reference.inputs = [tensor.detach()[images].to(device, torch.float64) for tensor in runnable.inputs]
    if runnable.module is None:
        if runnable.subject.name == INVOLUTION:
            reference.function = _aggregate(runnable.case, "naive")
    elif runnable.subject.name == INVOLUTION:
        reference.module = _layer(runnable.case, "naive")
        reference.module.load_state_dict(runnable.module.state_dict())
    else:
        reference.module = copy.deepcopy(runnable.module)
    if reference.module is not None:
        reference.function = reference.module.to(device, torch.float64).train(runnable.case.mode is not Mode.FORWARD)
    if runnable.grad_y is not None:
        reference.grad_y = runnable.grad_y[images].to(device, torch.float64)
        reference.inputs = [tensor.requires_grad_() for tensor in reference.inputs]
        parameters = [] if reference.module is None else _parameters(reference.module)
        reference.differentiated = [*reference.inputs, *parameters]
    return [tensor.detach() for tensor in reference.results()]


def _aggregate(case: Case, backend: str) -> Callable[..., Tensor]:
    s = case.layer
    return partial(
        involution2d, stride=s.stride, dilation=s.dilation, padding_mode=s.padding_mode, backend=backend
    )  # fmt: skip


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """By name, since a user's layer may make them in another order than ours."""
    return [parameter for _, parameter in sorted(module.named_parameters())]


def _layer(case: Case, backend: str) -> Involution2d:
    s = case.layer
    return Involution2d(
        s.C, s.K, s.stride, s.dilation, s.G, reduction=s.reduction, padding_mode=s.padding_mode, backend=backend
    )


def _random(size: tuple[int, ...], seed: int, case: Case, layout: str) -> Tensor:
    return random_normal(size, seed, case.device, case.dtype, layout)


def _randomise_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 1.5)


def require_fitting(case: Case) -> None:
    """Refuse what a row of this point would refuse: one position to normalise, a 3x3 window's padding where K is 1."""
    if case.scope is Scope.LAYER and case.mode is not Mode.FORWARD and case.positions == 1:
        raise InvbenchError(
            f"mode {case.mode} of the layer needs more than one position for its batch norm: got N*H_out*W_out=1; "
            "use a larger --N, --H or --W, or --scope aggregate"
        )
    if case.layer.K < 3:
        replace(case.layer, K=3).check_size(case.H, case.W)
