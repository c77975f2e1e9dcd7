"""What an operator costs on paper: parameters, multiply-adds, FLOP and least bytes in closed form.

1 MAC = 2 FLOP; papers' "FLOPs" are MACs. MACs count convolutions and the involution's generator and application;
norm, activation, pooling and bias additions are left out. Least bytes are what has to cross the memory bus if every
tensor that exists before or after is touched once: inputs, parameters and outputs, and no intermediate. With r =
hidden channels, P = N * H_out * W_out, e the element size:

    aggregate       MACs P*C*K*K                    bytes e*(N*C*H*W + P*K*K*G + P*C)
    layer           MACs P*(C*r + r*K*K*G + C*K*K)  bytes e*(N*C*H*W + params + P*C)
    conv2d          MACs P*C*C*K*K                  bytes likewise
    depthwise       MACs P*C*K*K                    bytes likewise
    separable       MACs P*(C*K*K + C*C)            bytes likewise

The backward pass does twice the work: it reads the inputs, the parameters and the gradient of the output, and writes
the gradients of inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from invbench.ops import BACKENDS
from invbench.spec import Case, LayerSpec, Mode, Scope

ELEMENT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Cost:
    """params; macs of the forward pass, flop and bytes_min of the timed mode, for the whole batch."""

    params: int
    macs: int
    flop: int
    bytes_min: int


@dataclass(frozen=True, slots=True)
class _Work:
    """Parameters, MACs for one output position, and generated weights given as input for one output position."""

    params: int
    macs_per_position: int
    weights_per_position: int = 0


def _involution_layer(s: LayerSpec) -> _Work:
    r, spanned = s.hidden_channels, s.taps * s.G
    # reduce, the norm's scale and shift, span and its bias
    params = s.C * r + 2 * r + r * spanned + spanned
    return _Work(params, s.C * r + r * spanned + s.C * s.taps)


def _aggregate(s: LayerSpec) -> _Work:
    return _Work(0, s.C * s.taps, s.taps * s.G)


def _conv2d(s: LayerSpec) -> _Work:
    return _Work(s.C * s.C * s.taps, s.C * s.C * s.taps)


def _conv2d_3x3(s: LayerSpec) -> _Work:
    return _Work(s.C * s.C * 9, s.C * s.C * 9)


def _depthwise(s: LayerSpec) -> _Work:
    return _Work(s.C * s.taps, s.C * s.taps)


def _separable(s: LayerSpec) -> _Work:
    return _Work(s.C * s.taps + s.C * s.C, s.C * s.taps + s.C * s.C)


WORK: dict[tuple[str, Scope], Callable[[LayerSpec], _Work]] = {
    ("involution", Scope.LAYER): _involution_layer,
    ("involution", Scope.AGGREGATE): _aggregate,
    **{("conv2d", scope): _conv2d for scope in Scope},
    **{("conv2d-3x3", scope): _conv2d_3x3 for scope in Scope},
    **{("depthwise", scope): _depthwise for scope in Scope},
    **{("separable", scope): _separable for scope in Scope},
}


def cost_of(subject: str, case: Case) -> Cost:
    """The closed-form cost of a subject (a key of ``WORK``) at a point."""
    work = WORK[subject, case.scope](case.layer)
    macs = case.positions * work.macs_per_position
    inputs = case.N * case.layer.C * case.H * case.W + work.params + case.positions * work.weights_per_position
    output = case.positions * case.layer.C
    forward = inputs + output
    backward = 2 * inputs + output
    elements = {Mode.FORWARD: forward, Mode.BACKWARD: backward, Mode.TRAIN: forward + backward}[case.mode]
    return Cost(work.params, macs, case.mode.flop_per_mac * macs, elements * ELEMENT_BYTES[case.dtype])


def held_bytes(subject: str, backend: str, case: Case) -> int:
    """About how much memory a row needs at once: inputs, outputs, and what the backend is known to write besides.

    Used to refuse what cannot fit before it is tried, so it is a lower estimate, not a measurement.
    """
    e = ELEMENT_BYTES[case.dtype]
    s = case.layer
    passes = 1 if case.mode is Mode.FORWARD else 2
    # Involution by these backends, and padding modes other than zeros, read an image extended by its border.
    extended = (subject == "involution" and backend in ("naive", "unfold", "compiled")) or s.padding_mode != "zeros"
    border = 2 * s.padding if extended else 0
    images = case.N * s.C * (case.H + border) * (case.W + border) + case.positions * s.C
    elements = images + WORK[subject, case.scope](s).params
    if subject == "involution" and not _makes_weight_on_the_way(backend, case):
        elements += case.positions * s.taps * s.G
        if backend == "unfold":
            elements += 2 * case.positions * s.C * s.taps
    return passes * elements * e


def _makes_weight_on_the_way(backend: str, case: Case) -> bool:
    fused = BACKENDS[backend].fused if backend in BACKENDS else None
    if case.scope is not Scope.LAYER or fused is None:
        return False
    return not fused.refusal(case.layer, case.dtype, case.layer.hidden_channels, case.H, case.W)


def reference_bytes(case: Case) -> int:
    """About how much memory the float64 reference of a point needs at once."""
    s = case.layer
    passes = 1 if case.mode is Mode.FORWARD else 2
    weights = case.positions * s.taps * s.G
    extended = case.N * s.C * (case.H + 2 * s.padding) * (case.W + 2 * s.padding)
    return passes * 8 * (2 * case.N * s.C * case.H * case.W + extended + 2 * case.positions * s.C + weights)
