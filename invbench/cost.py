"""What an operator costs on paper: parameters, multiply-adds, FLOP and least bytes in closed form.

1 MAC = 2 FLOP; papers' "FLOPs" are MACs. MACs count convolutions, the involution's generator and application, and the
products of attention; norm, activation, softmax, pooling and bias additions are left out. Least bytes are what has to
cross the memory bus if every tensor that exists before or after is touched once: inputs, parameters and outputs, and no
intermediate. With r = hidden channels, P = N * H_out * W_out, I = N * H * W, e the element size:

    aggregate       MACs P*C*K*K                    bytes e*(N*C*H*W + P*K*K*G + P*C)
    layer           MACs P*(C*r + r*K*K*G + C*K*K)  bytes e*(N*C*H*W + params + P*C)
    conv2d          MACs P*C*C*K*K                  bytes likewise
    depthwise       MACs P*C*K*K                    bytes likewise
    separable       MACs P*(C*K*K + C*C)            bytes likewise

    local-attention MACs (P + 2*I)*C*C + 2*P*C*K*K
    san-pairwise    MACs P*C*R + I*C*(R + C) + P*K*K*((R + 2)*R + R*G + C) + 4*H*W
    san-patchwise   MACs P*C*R + I*C*(R + C) + P*((K*K + 1)*R*G + G*G*K*K + C*K*K)
    axial-attention MACs I*(4*C*C + 7*C/2*(taps of a column + of a row))
    local-relation  MACs (P + I)*C*G + P*C*K*K + P*C*C + K*K*(2 + G)*G/2

R = C/16 are SAN's channels of relation. Attention is counted as in the modules of ``invbench.attention``, whose whole
layers these are; what does not depend on images is counted once a batch.

The backward pass does twice the work: it reads the inputs, the parameters and the gradient of the output, and writes
the gradients of inputs and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from invbench.ops import BACKENDS
from invbench.spec import Case, Mode, Scope

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
    """Parameters; of the whole batch, MACs of the forward pass, and generated weights that are given as input."""

    params: int
    macs: int
    weights: int = 0


def _involution_layer(case: Case) -> _Work:
    s = case.layer
    r, spanned = s.hidden_channels, s.taps * s.G
    # reduce, the norm's scale and shift, span and its bias
    params = s.C * r + 2 * r + r * spanned + spanned
    return _Work(params, case.positions * (s.C * r + r * spanned + s.C * s.taps))


def _aggregate(case: Case) -> _Work:
    s = case.layer
    return _Work(0, case.positions * s.C * s.taps, case.positions * s.taps * s.G)


def _weights_alone(params: int, case: Case) -> _Work:
    """A convolution without bias: each parameter is used once at each position."""
    return _Work(params, case.positions * params)


def _conv2d(case: Case) -> _Work:
    return _weights_alone(case.layer.C * case.layer.C * case.layer.taps, case)


def _conv2d_3x3(case: Case) -> _Work:
    return _weights_alone(case.layer.C * case.layer.C * 9, case)


def _depthwise(case: Case) -> _Work:
    return _weights_alone(case.layer.C * case.layer.taps, case)


def _separable(case: Case) -> _Work:
    return _weights_alone(case.layer.C * case.layer.taps + case.layer.C * case.layer.C, case)


def _pixels(case: Case) -> int:
    return case.N * case.H * case.W


def _local_attention(case: Case) -> _Work:
    s, P, pixels = case.layer, case.positions, _pixels(case)
    # query, key and value; embeddings of rows and columns
    params = 3 * s.C * s.C + 2 * (s.group_channels // 2) * s.K
    return _Work(params, P * s.C * s.C + 2 * pixels * s.C * s.C + 2 * P * s.C * s.taps)


def _san(case: Case) -> _Work:
    """What both kinds have: three projections with bias, to r, r and C channels."""
    s, r = case.layer, case.layer.C // 16
    params = 2 * (s.C * r + r) + s.C * s.C + s.C
    return _Work(params, case.positions * s.C * r + _pixels(case) * s.C * (r + s.C))


def _san_pairwise(case: Case) -> _Work:
    s, r, both = case.layer, case.layer.C // 16, _san(case)
    # the positions' projection; norm, 1x1 without bias, norm, 1x1
    params = 6 + 2 * (r + 2) + (r + 2) * r + 2 * r + r * s.G + s.G
    places = 4 * case.H * case.W  # once a batch
    macs = places + case.positions * s.taps * ((r + 2) * r + r * s.G + s.C)
    return _Work(both.params + params, both.macs + macs)


def _san_patchwise(case: Case) -> _Work:
    s, r, both = case.layer, case.layer.C // 16, _san(case)
    seen, made = r * (s.taps + 1), s.G * s.taps
    params = 2 * seen + seen * s.G + 2 * s.G + s.G * made + made
    return _Work(both.params + params, both.macs + case.positions * (seen * s.G + s.G * made + s.C * s.taps))


def _axial_attention(case: Case) -> _Work:
    """Twice, along columns and along rows; a stride is a pool afterwards."""
    s = case.layer
    # queries and keys of half the channels, values; their norm; embeddings for all three; norms of scores and sums
    line = 2 * s.C * s.C + 4 * s.C + 2 * s.group_channels * s.K + 6 * s.G + 4 * s.C
    # Short lines are seen whole; of longer ones K positions, of which some may be outside.
    seen = sum(n if n <= s.K // 2 + 1 else s.K for n in (case.H, case.W))
    return _Work(2 * line, _pixels(case) * (4 * s.C * s.C + 7 * s.C * seen // 2))


def _local_relation(case: Case) -> _Work:
    s, P = case.layer, case.positions
    hidden = max(1, s.G // 2)
    prior = 2 * hidden + hidden * s.G  # and once a batch for each tap
    params = 2 * s.C * s.G + s.C * s.C + prior + hidden + s.G
    macs = (P + _pixels(case)) * s.C * s.G + s.taps * prior + P * s.C * s.taps + P * s.C * s.C
    return _Work(params, macs)


ANY_SCOPE: dict[str, Callable[[Case], _Work]] = {
    "conv2d": _conv2d,
    "conv2d-3x3": _conv2d_3x3,
    "depthwise": _depthwise,
    "separable": _separable,
    "local-attention": _local_attention,
    "san-pairwise": _san_pairwise,
    "san-patchwise": _san_patchwise,
    "axial-attention": _axial_attention,
    "local-relation": _local_relation,
}
WORK: dict[tuple[str, Scope], Callable[[Case], _Work]] = {
    ("involution", Scope.LAYER): _involution_layer,
    ("involution", Scope.AGGREGATE): _aggregate,
    **{(name, scope): work for name, work in ANY_SCOPE.items() for scope in Scope},
}


# Numbers that the plain forms write at least: a score, or a weight, of each tap.
ATTENTION_SCORES: dict[str, Callable[[Case], int]] = {
    **dict.fromkeys(
        ("local-attention", "san-pairwise", "san-patchwise", "local-relation"),
        lambda case: case.positions * case.layer.taps * case.layer.G,
    ),
    "axial-attention": lambda case: _pixels(case) * case.layer.K * case.layer.G,
}


def cost_of(subject: str, case: Case) -> Cost:
    """The closed-form cost of a subject (a key of ``WORK``) at a point."""
    work = WORK[subject, case.scope](case)
    inputs = case.N * case.layer.C * case.H * case.W + work.params + work.weights
    output = case.positions * case.layer.C
    forward = inputs + output
    backward = 2 * inputs + output
    elements = {Mode.FORWARD: forward, Mode.BACKWARD: backward, Mode.TRAIN: forward + backward}[case.mode]
    return Cost(work.params, work.macs, case.mode.flop_per_mac * work.macs, elements * ELEMENT_BYTES[case.dtype])


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
    elements = images + WORK[subject, case.scope](case).params
    if subject in ATTENTION_SCORES and backend != "flex":
        elements += ATTENTION_SCORES[subject](case)
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
