"""A case made runnable, and proved right: involution by every backend, and what it is compared with: convolutions,
and self-attention over the same window."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from invbench.attention.operators import OPERATORS
from invbench.harness.custom import resolve
from invbench.harness.settings import INVOLUTION, TORCH, Subject
from invbench.harness.steps import (
    MEMORY_FORMATS,
    Agreement,
    Step,
    gradient_differences,
    largest_difference,
    norm_difference,
    precision_of,
    random_normal,
    reference_device,
)
from invbench.ops import Involution2d, involution2d
from invbench.spec import Case, InvbenchError, LayerSpec, Mode, Scope

CHECKED_IMAGES = 4
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# The largest difference from the float64 reference, as a share of the reference's largest value. float32 leaves room
# for the reordered sums and Winograd transforms of convolutions; half types round each intermediate tensor.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}

# Gradients through a ReLU jump where its input crosses zero, so that rounding flips a few of them entirely. They are
# compared by their Euclidean norm: a handful of flips is small in it, an error in a border, a channel or a tap is not.
TOLERANCE_OVER_KINKS = {"float64": 1e-8, "float32": 1e-2, "float16": 1e-1, "bfloat16": 2e-1}
# The parameters of attention sum what nearly cancels, since a softmax's gradients are zero in sum, behind a ReLU for
# each tap: a flip weighs more (seen: 7e-3 in float32, by 8 flips of 5e6). In 16 bits single ones differ by all they are
# (0.9 of it in bfloat16), and are compared together.
PARAMETERS_OVER_KINKS = {**TOLERANCE_OVER_KINKS, "float32": 5e-2}
ROUNDS_A_LOT = ("float16", "bfloat16")


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
        if self.subject.name in OPERATORS:
            return self._placed(_attention(self.case, self.subject), randomise=False)
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
        # Attention's own images are contiguous, whatever x is; weights with channels last would convert each of them.
        if self.subject.name not in OPERATORS:
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
    reference = references[runnable.subject.name]
    for output, expected in zip(outputs, reference, strict=True):
        if output.shape != expected.shape:
            raise InvbenchError(
                f"y or a gradient has the wrong shape: got {tuple(output.shape)}, expected {tuple(expected.shape)}; "
                "mend the operator"
            )
    worst: Agreement | None = None
    for agreement in _agreements(runnable, outputs, reference):
        if math.isnan(agreement.relative):
            return agreement
        worst = agreement if worst is None or agreement.share > worst.share else worst
    return worst


def _agreements(runnable: Runnable, outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> Iterator[Agreement]:
    """Of y, and then of the gradients."""
    case, name = runnable.case, runnable.subject.name
    precision = precision_of(case.device, case.dtype) if runnable.module is not None else case.dtype
    pairs = list(zip(outputs, reference, strict=True))
    yield Agreement(largest_difference(*pairs[0]), TOLERANCE[precision])
    if name in OPERATORS:
        yield from _attentions_gradients(runnable, outputs[1:], reference[1:], precision)
        return
    has_kinks = runnable.module is not None and name == INVOLUTION
    difference, tolerance = (
        (norm_difference, TOLERANCE_OVER_KINKS) if has_kinks else (largest_difference, TOLERANCE)
    )  # fmt: skip
    yield from (Agreement(difference(*pair), tolerance[precision]) for pair in pairs[1:])


def _attentions_gradients(
    runnable: Runnable, outputs: Sequence[Tensor], reference: Sequence[Tensor], precision: str
) -> Iterator[Agreement]:
    """Of x, and of the parameters: one by one, but together where norms and ReLUs are computed in 16 bits."""
    if not outputs:
        return
    assert runnable.module is not None
    is_rough = any(isinstance(part, (nn.ReLU, *NORMS)) for part in runnable.module.modules())
    of_x, of_parameters = (TOLERANCE_OVER_KINKS, PARAMETERS_OVER_KINKS) if is_rough else (TOLERANCE, TOLERANCE)
    yield Agreement(norm_difference(outputs[0], reference[0]), of_x[precision])
    parameters = (outputs[1:], reference[1:])
    if is_rough and precision in ROUNDS_A_LOT:
        together = (torch.cat([each.flatten() for each in tensors]) for tensors in parameters)
        yield Agreement(norm_difference(*together), of_parameters[precision])
    else:
        yield from (Agreement(each, of_parameters[precision]) for each in gradient_differences(*parameters))


def _checked_images(runnable: Runnable) -> Tensor:
    case = runnable.case
    whole_batch = runnable.module is not None and case.mode is not Mode.FORWARD
    count = case.N if whole_batch else min(case.N, CHECKED_IMAGES)
    return torch.linspace(0, case.N - 1, count).round().long().to(case.device)


def _reference(runnable: Runnable, images: Tensor) -> list[Tensor]:
    """The same operator on the same bits in float64, by the naive backend, or in torch's own operators."""
    device = reference_device(runnable.case.device)
    reference = copy.copy(runnable)
    reference.inputs = [tensor.detach()[images].to(device, torch.float64) for tensor in runnable.inputs]
    if runnable.module is None:
        if runnable.subject.name == INVOLUTION:
            reference.function = _aggregate(runnable.case, "naive")
    elif runnable.subject.name == INVOLUTION:
        reference.module = _layer(runnable.case, "naive")
        reference.module.load_state_dict(runnable.module.state_dict())
    elif runnable.subject.name in OPERATORS:
        reference.module = OPERATORS[runnable.subject.name].backends[TORCH](runnable.case.layer)
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


def _attention(case: Case, subject: Subject) -> nn.Module:
    """By any backend with the numbers of the one in plain torch, which another may draw in another order."""
    backends = OPERATORS[subject.name].backends
    ours = backends[TORCH](case.layer)
    _randomise_statistics(ours)
    _move_kinks(ours)
    if subject.backend == TORCH:
        return ours
    other = backends[subject.backend](case.layer)
    other.load_state_dict(ours.state_dict())
    return other


def _random(size: tuple[int, ...], seed: int, case: Case, layout: str) -> Tensor:
    return random_normal(size, seed, case.device, case.dtype, layout)


def _randomise_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, NORMS):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 1.5)


def _move_kinks(module: nn.Module) -> None:
    """Draw the biases of norms, which are made as zeros: of a pixel's distance to itself, in a symmetric image,
    a norm would make zero everywhere, and rounding alone would tell what a ReLU does to it."""
    for part in module.modules():
        if isinstance(part, NORMS):
            nn.init.normal_(part.bias)


def require_fitting(case: Case, compare: str | None = None) -> None:
    """Refuse what a row of this point would refuse: one position to normalise, a 3x3 window's padding where K is 1.

    compare: what has rows besides, a key of ``COMPARISONS``.
    """
    normalises = case.scope is Scope.LAYER or compare is not None
    if normalises and case.mode is not Mode.FORWARD and case.positions == 1:
        remedy = "--scope aggregate" if compare is None else "--scope aggregate without --compare"
        raise InvbenchError(
            f"mode {case.mode} of the layer needs more than one position for its batch norm: got N*H_out*W_out=1; "
            f"use a larger --N, --H or --W, or {remedy}"
        )
    if case.layer.K < 3:
        replace(case.layer, K=3).check_size(case.H, case.W)
