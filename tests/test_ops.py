"""The operator: every backend against the float64 reference, and the reference against the equation."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from cases import (
    DTYPES,
    FACTORS,
    GRAD_LAYOUTS,
    PAIRWISE,
    PROBLEMS,
    SMALL,
    TOLERANCE,
    WEIGHT_LAYOUTS,
    X_LAYOUTS,
    Inputs,
    Problem,
    Results,
    Variant,
    assert_close,
    few_variants,
    is_slow,
    make_inputs,
    pairwise,
    reference,
    relative_error,
    require,
    run,
    targets,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invbench.ops import BACKENDS, involution2d
from invbench.spec import PADDING_MODES, LayerSpec

SLOW_TARGETS = tuple(target for target in targets() if is_slow(*target))
by_quick_target = pytest.mark.parametrize(("backend", "device"), list(targets(slow=False)))


def matrix() -> list[object]:
    """Every target with every pairwise variant, or with the few where it is slow."""
    rows = [(*target, variant) for variant, target in itertools.product(PAIRWISE, targets(slow=False))]
    rows += [(*target, variant) for target in SLOW_TARGETS for variant in few_variants(target[0])]
    return [pytest.param(*row, id="-".join((*row[:2], row[2].id))) for row in rows]


def small_problem(name: str, **changes: object) -> Problem:
    """The small problem of most single checks, changed."""
    row = {"N": 2, "C": 4, "H": 5, "W": 4, "K": 3, "G": 2, "stride": 2}
    return Problem(name, **{**row, **changes})  # type: ignore[arg-type]


# --- The tables themselves ---


def test_the_table_has_the_shapes_it_must_have() -> None:
    assert len({problem.name for problem in PROBLEMS}) == len(PROBLEMS) >= 40
    stride2 = {(problem.H, problem.W) for problem in PROBLEMS if problem.stride == 2}
    assert stride2 >= {(7, 7), (13, 13), (225, 223)}
    assert {problem.K for problem in PROBLEMS} >= {1, 3, 5, 7, 9, 11, 13}
    assert {problem.padding_mode for problem in PROBLEMS} == set(PADDING_MODES)


def test_pairwise_covers_all_pairs() -> None:
    rows = list(pairwise(*FACTORS))
    for i, j in itertools.combinations(range(len(FACTORS)), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(FACTORS[i], FACTORS[j]))
    assert len(rows) < 1.1 * len(FACTORS[0]) * len(X_LAYOUTS)  # nearly as few as there can be


def test_few_variants_use_every_dtype_and_layout() -> None:
    variants = list(few_variants("triton"))
    assert {variant.dtype for variant in variants} == set(DTYPES)
    for field, layouts in (("x_layout", X_LAYOUTS), ("weight_layout", WEIGHT_LAYOUTS), ("grad_layout", GRAD_LAYOUTS)):
        assert {getattr(variant, field) for variant in variants} == set(layouts)


def test_layouts_are_what_they_are_called() -> None:
    variant = Variant(small_problem("layouts"))
    values = make_inputs(variant).x
    strides = {name: build(values).stride() for name, build in X_LAYOUTS.items()}
    assert len(set(strides.values())) == len(X_LAYOUTS)
    assert strides["channels_last"][1] == strides["channels_last_sliced"][1] == 1
    assert strides["expanded"][:2] == (0, 0)
    assert WEIGHT_LAYOUTS["taps_last"](make_inputs(variant).weight).stride(2) == 1


@pytest.mark.parametrize("make", [lambda *size: torch.empty(size), lambda *size: torch.zeros(1).new_empty(size)])
def test_uninitialised_memory_is_nan(make) -> None:
    assert make(2, 3).isnan().all()


def test_backends_that_must_run_here_do() -> None:
    """A backend that fails to import would otherwise only skip its tests."""
    for name in ("naive", "unfold", "numba"):
        assert BACKENDS[name].unavailable("cpu") is None
    if find_spec("triton") and os.environ.get("TRITON_INTERPRET") == "1":
        assert BACKENDS["triton"].unavailable("cpu") is None


# --- The reference ---


def source_index(index: int, size: int, padding_mode: str) -> int | None:
    """Where the extended image takes the value at an index from; None where it is zero."""
    if 0 <= index < size:
        return index
    if padding_mode == "replicate":
        return min(max(index, 0), size - 1)
    if padding_mode == "circular":
        return index % size
    if padding_mode == "reflect":
        return -index if index < 0 else 2 * (size - 1) - index
    return None


def equation(inputs: Inputs, problem: Problem) -> Results:
    """The equation of DESIGN.md and its two derivatives, one product at a time."""
    x, weight, grad_y = (tensor.double().numpy() for tensor in inputs)
    y, grad_x, grad_weight = np.zeros(problem.y_shape), np.zeros_like(x), np.zeros_like(weight)
    s, d, K = problem.stride, problem.dilation, problem.K
    for n, c, i, j in np.ndindex(*problem.y_shape):
        g = c // (problem.C // problem.G)
        for u, v in np.ndindex(K, K):
            row = source_index(s * i + d * (u - K // 2), problem.H, problem.padding_mode)
            column = source_index(s * j + d * (v - K // 2), problem.W, problem.padding_mode)
            if row is None or column is None:
                continue
            tap = u * K + v
            y[n, c, i, j] += weight[n, g, tap, i, j] * x[n, c, row, column]
            grad_x[n, c, row, column] += weight[n, g, tap, i, j] * grad_y[n, c, i, j]
            grad_weight[n, g, tap, i, j] += grad_y[n, c, i, j] * x[n, c, row, column]
    return Results(*(torch.from_numpy(array) for array in (y, grad_x, grad_weight)))


@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)
def test_reference_is_the_equation(problem: Problem) -> None:
    variant = Variant(problem)
    assert_close(reference(variant), equation(make_inputs(variant), problem), torch.float64)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_reference_is_depthwise_convolution_if_weights_are_shared(problem: Problem) -> None:
    x, weight, grad_y = make_inputs(Variant(problem, weight_layout="expanded"))
    conv = nn.Conv2d(
        problem.C, problem.C, problem.K, problem.stride, problem.spec.padding, problem.dilation,
        groups=problem.C, bias=False, padding_mode=problem.padding_mode, dtype=torch.float64,
    )  # fmt: skip
    # One image at a time: each has kernels of its own, the same at all its positions.
    for n in range(problem.N):
        kernels = weight[n, :, :, 0, 0].repeat_interleave(problem.spec.group_channels, 0)  # [C, K*K]
        conv.weight.data = kernels.view(problem.C, 1, problem.K, problem.K)
        image = x[n : n + 1].requires_grad_()
        y = conv(image)
        grad_x, grad_kernels = torch.autograd.grad(y, (image, conv.weight), grad_y[n : n + 1])
        ours = run(Inputs(image, weight[n : n + 1], grad_y[n : n + 1]), problem, "naive")
        assert relative_error(ours.y, y.detach()) <= TOLERANCE[torch.float64]
        assert relative_error(ours.grad_x, grad_x) <= TOLERANCE[torch.float64]
        # Sums over thousands of positions, in another order.
        shared = grad_kernels.view(problem.G, -1, problem.K**2).sum(1)
        assert relative_error(ours.grad_weight.sum((0, 3, 4)), shared) <= 1e-12


# --- Every backend against the reference ---


@pytest.mark.parametrize(("backend", "device", "variant"), matrix())
def test_backend_matches_reference(backend: str, device: str, variant: Variant) -> None:
    require(backend, device, variant.dtype)
    actual = run(make_inputs(variant, device), variant.problem, backend)
    assert_close(actual, reference(variant), variant.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@by_quick_target
def test_backend_matches_reference_full_product(backend: str, device: str, problem: Problem) -> None:
    require(backend, device)
    for factors in itertools.product(*FACTORS[1:]):
        variant = Variant(problem, *factors)
        actual = run(make_inputs(variant, device), problem, backend)
        assert_close(actual, reference(variant), variant.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("problem", SMALL, ids=lambda problem: problem.name)
@pytest.mark.parametrize(("backend", "device"), SLOW_TARGETS)
def test_slow_backend_matches_reference(backend: str, device: str, problem: Problem) -> None:
    require(backend, device)
    variants = Variant(problem, torch.float32), Variant(problem, torch.float32, "channels_last", "taps_last")
    # The compiler takes up to half a minute for one: problems take turns with the layouts.
    chosen = variants[SMALL.index(problem) % 2 :][:1] if backend == "compiled" else variants
    for variant in chosen:
        assert_close(run(make_inputs(variant, device), problem, backend), reference(variant), variant.dtype)


@pytest.mark.parametrize("wanted", ["x", "weight", "neither"])
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last"])
@by_quick_target
def test_gradients_that_nobody_wants(backend: str, device: str, x_layout: str, wanted: str) -> None:
    require(backend, device)
    variant = Variant(small_problem("wanted"), torch.float32, x_layout)
    x, weight, grad_y = make_inputs(variant, device)
    tensors = {"x": x, "weight": weight}
    if wanted in tensors:
        tensors[wanted].requires_grad_()
    y = involution2d(x, weight, **variant.problem.options, backend=backend)
    assert relative_error(y, reference(variant).y) <= TOLERANCE[torch.float32]
    assert y.requires_grad == (wanted in tensors)
    if wanted in tensors:
        (grad,) = torch.autograd.grad(y, tensors[wanted], grad_y)
        expected = getattr(reference(variant), f"grad_{wanted}")
        assert relative_error(grad, expected) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "problem",
    [
        small_problem("zeros", N=1, H=4, W=3, dilation=2),
        small_problem("reflect", N=1, H=4, W=3, padding_mode="reflect"),
        small_problem("replicate", N=1, H=4, W=3, padding_mode="replicate", stride=1),
        small_problem("circular", N=1, H=4, W=3, padding_mode="circular", dilation=2),
    ],
    ids=lambda problem: problem.padding_mode,
)
@by_quick_target
def test_gradcheck(backend: str, device: str, problem: Problem) -> None:
    require(backend, device)
    x, weight, _ = make_inputs(Variant(problem), device)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return involution2d(x, weight, **problem.options, backend=backend)

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize(("backend", "device"), [target for target in SLOW_TARGETS if target[0] == "triton"])
def test_gradcheck_in_one_direction(backend: str, device: str) -> None:
    # Not for compiled: gradcheck keeps the graph, which torch.compile refuses. The matrix compares its gradients.
    require(backend, device)
    problem = small_problem("gradcheck", N=1, C=2, H=3, W=2)
    x, weight, _ = make_inputs(Variant(problem), device)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return involution2d(x, weight, stride=2, backend=backend)

    # fast_mode: one random direction each, instead of one call for each element
    assert torch.autograd.gradcheck(function, (x.requires_grad_(), weight.requires_grad_()), fast_mode=True)


REPLICATED_PIXEL, WRAPPED = (
    next(problem for problem in PROBLEMS if problem.name == name) for name in ("replicate_pixel", "circular")
)


@st.composite
def variants(draw: st.DrawFn) -> Variant:
    """Any valid spec on any image that its padding mode can extend."""
    group_channels, G = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    K, dilation = draw(st.sampled_from((1, 3, 5, 7))), draw(st.integers(1, 3))
    mode = draw(st.sampled_from(PADDING_MODES))
    least = {"reflect": dilation * (K // 2) + 1, "circular": dilation * (K // 2)}.get(mode, 1)
    H, W = (draw(st.integers(max(1, least), max(1, least) + 9)) for _ in "HW")
    N, stride = draw(st.integers(0, 2)), draw(st.integers(1, 4))
    problem = Problem("drawn", N, G * group_channels, H, W, K, G, stride, dilation, mode)
    return Variant(problem, *(draw(st.sampled_from(factor)) for factor in FACTORS[1:]))


@by_quick_target
@given(variant=variants())
@example(variant=Variant(small_problem("drawn", H=7, W=7, K=7)))
# Many border pixels fall back on one, whose gradient must not be rounded before.
@example(variant=Variant(REPLICATED_PIXEL, torch.bfloat16, "channels_last", "contiguous", "channels_last"))
@example(variant=Variant(WRAPPED, torch.float16, "expanded", "expanded", "expanded"))
# derandomize: a failure in CI is a failure at home
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors])
def test_any_valid_spec(backend: str, device: str, variant: Variant) -> None:
    require(backend, device, variant.dtype)
    actual = run(make_inputs(variant, device), variant.problem, backend)
    assert_close(actual, reference(variant), variant.dtype)


# --- What a result is ---


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("x_layout", X_LAYOUTS)
@by_quick_target
def test_output_has_dtype_and_memory_format_of_x(backend: str, device: str, x_layout: str, padding_mode: str) -> None:
    require(backend, device)
    variant = Variant(small_problem("format", padding_mode=padding_mode), torch.float16, x_layout)
    x, weight, _ = make_inputs(variant, device)
    y = involution2d(x, weight, **variant.problem.options, backend=backend)
    memory_format = torch.channels_last if x_layout.startswith("channels_last") else torch.contiguous_format
    assert y.dtype == torch.float16
    assert y.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("problem", [small_problem("alias"), small_problem("alias_k1", K=1, stride=1)])
@by_quick_target
def test_inputs_are_left_alone(backend: str, device: str, problem: Problem) -> None:
    require(backend, device)
    inputs = make_inputs(Variant(problem), device)
    before = [tensor.clone() for tensor in inputs]
    results = run(inputs, problem, backend)
    for result, tensor in itertools.product(results, inputs):
        assert result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    assert all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@by_quick_target
def test_nan_and_infinity_reach_the_windows_that_see_them(backend: str, device: str, value: float) -> None:
    require(backend, device)
    x, weight = torch.ones(1, 2, 7, 7, device=device), torch.ones(1, 1, 9, 7, 7, device=device)
    x[0, 1, 3, 4] = value
    y = involution2d(x, weight, backend=backend).cpu()
    expected = torch.zeros(1, 2, 7, 7, dtype=torch.bool)
    expected[0, 1, 2:5, 3:6] = True
    assert torch.equal(~y.isfinite(), expected)


@by_quick_target
def test_calls_from_several_threads(backend: str, device: str) -> None:
    require(backend, device)
    variants = [Variant(problem) for problem in SMALL[:8]]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, make_inputs(variant, device), variant.problem, backend) for variant in variants * 4]
        for job, variant in zip(jobs, variants * 4, strict=True):
            assert_close(job.result(), reference(variant), torch.float64)


# --- Indices above 2**31 ---


def far_apart(values: Tensor, axis: int) -> Tensor:
    """The same values, with the first and the last along an axis over 2**31 elements apart in memory.

    Pages that nobody touches cost no memory on the CPU; NumPy, because torch.empty is filled with NaN here.
    """
    strides = list(values.contiguous().stride())
    strides[axis] = 2**31 // (values.shape[axis] - 1) + 1
    size = 2**31 + 2 * values.numel()
    if values.device.type == "cpu":
        buffer = torch.from_numpy(np.empty(size, np.float16)).view(values.dtype)
    else:
        buffer = torch.zeros(size, dtype=values.dtype, device=values.device)
    return buffer.as_strided(values.shape, strides).copy_(values)


# Axes of x [N, C, H, W], weight [N, G, K*K, H_out, W_out] and grad_y [N, C, H_out, W_out]
@pytest.mark.parametrize(
    ("tensor", "axis"),
    [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (2, 2), (2, 3)],
)
@pytest.mark.parametrize(("backend", "device"), [target for target in targets() if target[0] != "compiled"])
def test_strides_above_2_to_the_31(backend: str, device: str, tensor: int, axis: int) -> None:
    require(backend, device)
    # Two elements along every axis but K*K, so that most steps are themselves over 2**31.
    variant = Variant(small_problem("far", C=2, G=2, H=2, W=2, stride=1), torch.float16)
    inputs = list(make_inputs(variant, device))
    inputs[tensor] = far_apart(inputs[tensor], axis)
    assert_close(run(Inputs(*inputs), variant.problem, backend), reference(variant), torch.float16)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
# unfold and compiled copy x K*K times, which does not fit.
@pytest.mark.parametrize(
    ("backend", "device"), [target for target in targets() if target[1] != "cpu" and target[0] in ("naive", "triton")]
)
def test_more_than_2_to_the_31_elements(backend: str, device: str, layout: str) -> None:
    require(backend, device)
    memory_format = getattr(torch, {"contiguous": "contiguous_format"}.get(layout, layout))
    x = torch.zeros((1, 66, 5793, 5793), dtype=torch.float16, device=device).to(memory_format=memory_format)
    corner = torch.randn(1, 66, 4, 4, device=device).half()
    x[..., -4:, -4:] = corner
    weight = torch.ones((1, 1, 9, 1, 1), dtype=torch.float16, device=device).expand(-1, -1, -1, 5793, 5793)
    y = involution2d(x, weight, backend=backend)
    expected = involution2d(corner.double(), weight[..., :4, :4].double(), backend="naive")
    # The first row and column of the corner see zeros outside it, as the padding shows.
    assert relative_error(y[..., -4:, -4:], expected.cpu()) <= TOLERANCE[torch.float16]
    assert not y[..., :-5, :].any()


def test_numba_makes_the_weight_on_the_way_for_every_layer() -> None:
    """Also where a stride skips pixels."""
    fused = BACKENDS["numba"].fused
    assert fused is not None
    for spec in (LayerSpec(C=4, K=3, G=4, stride=4), LayerSpec(C=512, K=15, G=1, stride=2, dilation=3)):
        assert fused.refusal(spec, "float64", 512, 9, 9) is None
