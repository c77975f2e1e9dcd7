"""``involution2d`` among PyTorch's transformations: what it refuses, whom it chooses, and how it is differentiated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from cases import (
    TOLERANCE,
    Inputs,
    Problem,
    Variant,
    is_slow,
    make_inputs,
    reference,
    relative_error,
    require,
    run,
    targets,
)
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import opcheck

from invbench import Involution2d, involution2d
from invbench.ops import BACKENDS
from invbench.ops.functional import choose_backend
from invbench.spec import BackendUnavailableError, InvbenchError

PROBLEM = Problem("functional", 2, 4, 5, 4, 3, 2, 2)
DOUBLE, SINGLE = Variant(PROBLEM), Variant(PROBLEM, torch.float32)
by_target = pytest.mark.parametrize(("backend", "device"), list(targets()))
by_quick_target = pytest.mark.parametrize(("backend", "device"), list(targets(slow=False)))
by_opaque_target = pytest.mark.parametrize(
    ("backend", "device"), [target for target in targets() if target[0] in ("numba", "triton")]
)


def operator(backend: str, problem: Problem = PROBLEM) -> Callable[[Tensor, Tensor], Tensor]:
    def function(x: Tensor, weight: Tensor) -> Tensor:
        return involution2d(x, weight, **problem.options, backend=backend)

    return function


# --- Validation ---

X, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(2, 2, 9, 5, 6)
# What is asked, and in order: what is wrong, what was got, and the remedy.
REFUSALS = {
    "x without batch": ({"x": X[0]}, r"takes x \[N, C, H, W\].*got 3 and 5 dimensions.*unsqueeze"),
    "weight of a convolution": ({"weight": WEIGHT[:, 0]}, r"weight \[N, G, .*got 4 and 4 dimensions; add"),
    "no channels": ({"x": X[:, :0]}, r"at least 1: got x \[2, 0, 5, 6\]; only N may be 0"),
    "no rows": ({"x": X[:, :, :0]}, r"at least 1: got x \[2, 4, 0, 6\]; only N may be 0"),
    "taps not square": ({"weight": WEIGHT[:, :, :8]}, r"K\*K.*got \[2, 2, 8, 5, 6\]; K\*K=8 must be 1, 9, 25"),
    "even K": ({"weight": WEIGHT[:, :, :4]}, r"K must be odd.*got K=2; try K=1 or K=3"),
    "no taps": ({"weight": WEIGHT[:, :, :0]}, r"got.*0.*; |got K=0; try K=1"),
    "no groups": ({"weight": WEIGHT[:, :0]}, r"G at least 1: got \[2, 0, 9, 5, 6\]; "),
    "G over C": ({"weight": WEIGHT.repeat(1, 4, 1, 1, 1)}, r"G must divide C: got C=4 and G=8; try G=4"),
    "G not a divisor": ({"weight": WEIGHT.repeat(1, 2, 1, 1, 1)[:, :3]}, r"G must divide C: got C=4 and G=3; try G="),
    "another N": ({"weight": WEIGHT[:1]}, r"expected \[2, 2, 9, 5, 6\], got \[1, 2, 9, 5, 6\]; H_out = ceil"),
    "stride forgotten": ({"stride": 2}, r"with stride=2: expected \[2, 2, 9, 3, 3\], got \[2, 2, 9, 5, 6\]; H_out"),
    "H and W swapped": ({"weight": WEIGHT.mT}, r"expected \[2, 2, 9, 5, 6\], got \[2, 2, 9, 6, 5\]; H_out = ceil"),
    "stride 0": ({"stride": 0}, r"stride must be a whole number of at least 1: got stride=0; try stride=1"),
    "stride not whole": ({"stride": 1.5}, r"stride must be.*got stride=1.5; try stride=1"),
    "stride a pair": ({"stride": (2, 2)}, r"stride must be.*got stride=\(2, 2\); try stride=1"),
    "dilation -1": ({"dilation": -1}, r"dilation must be.*got dilation=-1; try dilation=1"),
    "padding mode": ({"padding_mode": "same"}, r"padding_mode must be one of zeros.*got 'same'; try '?zeros'?"),
    "reflect too far": ({"padding_mode": "reflect", "dilation": 5}, r"at least 6: got H=5 and W=6; use '?zeros'?"),
    "circular too far": ({"padding_mode": "circular", "dilation": 6}, r"at least 6: got H=5 and W=6; use '?zeros'?"),
    "two dtypes": ({"weight": WEIGHT.double()}, r"one dtype and one device: got torch.float32.*torch.float64.*; conv"),
    "two devices": ({"weight": WEIGHT.to("meta")}, r"one dtype and one device: got .*cpu and .*meta; convert"),
    "sparse": ({"x": X.to_sparse()}, r"takes strided tensors: got torch.sparse_coo.*; use .to_dense"),
    "integers": ({"x": X.int(), "weight": WEIGHT.int()}, r"float32.*: got int32; convert x and weight"),
    "complex": ({"x": X.cfloat(), "weight": WEIGHT.cfloat()}, r"float32.*: got complex64; convert x and weight"),
    "unknown backend": ({"backend": "cupy"}, r"backend must be one of auto, .*: got 'cupy'; try auto"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSALS.values(), ids=REFUSALS)
@pytest.mark.parametrize("backend", ["auto", "naive"])
def test_bad_input_is_refused_in_one_line(backend: str, changes: dict, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        involution2d(**{"x": X, "weight": WEIGHT, "backend": backend, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_refuses_integers(backend: str) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"{backend!r} cannot run: .*got int64; convert") as caught:
        involution2d(X.long(), WEIGHT.long(), backend=backend)
    assert "\n" not in str(caught.value)


# --- Which backend ---


def test_auto_takes_the_fastest_that_runs() -> None:
    assert choose_backend(X) == "numba"
    assert choose_backend(X.to("meta")) == "naive"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none")
def test_auto_takes_triton_on_a_gpu() -> None:
    assert choose_backend(X.cuda()) == "triton"


def test_explicit_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles_only = dataclasses.replace(BACKENDS["numba"], dtypes=("float64",))
    monkeypatch.setitem(BACKENDS, "numba", doubles_only)
    with pytest.raises(BackendUnavailableError, match="'numba' cannot run: it computes float64: got float32; convert"):
        involution2d(X, WEIGHT, backend="numba")
    assert choose_backend(X) != "numba"
    assert choose_backend(X.double(), "numba") == "numba"


def test_a_broken_library_costs_only_its_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(BACKENDS["numba"], module="invbench.ops.not_there")
    monkeypatch.setitem(BACKENDS, "numba", broken)
    with pytest.raises(BackendUnavailableError, match=r"'numba' cannot run: .*ModuleNotFoundError.*; reinstall"):
        involution2d(X, WEIGHT, backend="numba")
    assert involution2d(X, WEIGHT).shape == X.shape


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_kernels_refuse_the_meta_device(backend: str) -> None:
    with pytest.raises(BackendUnavailableError, match=f"'{backend}' cannot run: .*got meta; "):
        involution2d(X.to("meta"), WEIGHT.to("meta"), backend=backend)


@pytest.mark.parametrize("backend", ["naive", "unfold"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_meta_tensors_have_the_right_shape(backend: str, memory_format: torch.memory_format) -> None:
    x = torch.zeros(2, 4, 5, 6, device="meta").to(memory_format=memory_format)
    y = involution2d(x, WEIGHT.to("meta"), backend=backend)
    assert y.shape == X.shape
    assert y.is_contiguous(memory_format=memory_format)


# --- Autocast ---


@by_target
def test_autocast_casts_both_inputs(backend: str, device: str) -> None:
    require(backend, device, torch.bfloat16)
    x, weight, grad_y = make_inputs(SINGLE, device)
    x, weight = x.requires_grad_(), weight.bfloat16().requires_grad_()  # as behind an autocast convolution
    with torch.autocast(device, torch.bfloat16):
        y = involution2d(x, weight, stride=2, backend=backend)
        double = involution2d(x.detach().double(), weight.detach().double(), stride=2, backend="naive")
    assert (y.dtype, double.dtype) == (torch.bfloat16, torch.float64)
    rounded = involution2d(x.detach().bfloat16().double(), weight.detach().double(), stride=2, backend="naive")
    assert relative_error(y, rounded.cpu()) <= TOLERANCE[torch.bfloat16]
    grads = torch.autograd.grad(y, (x, weight), grad_y.bfloat16())
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16]


@by_quick_target
def test_autocast_leaves_float64_alone(backend: str, device: str) -> None:
    require(backend, device, torch.float64)
    x, weight, _ = make_inputs(DOUBLE, device)
    with torch.autocast(device, torch.bfloat16):
        y = involution2d(x, weight, stride=2, backend=backend)
    assert y.dtype == torch.float64
    assert relative_error(y, reference(DOUBLE).y) <= TOLERANCE[torch.float64]


@by_quick_target
def test_autocast_to_float16_through_the_layer(backend: str, device: str) -> None:
    require(backend, device, torch.float16)
    layer = Involution2d(4, 3, backend=backend).to(device)
    with torch.autocast(device, torch.float16):
        assert layer(torch.randn(2, 4, 5, 5, device=device)).dtype == torch.float16


# --- torch.compile and torch.export ---


def check_compiled(name: str, device: str, compiler: str) -> None:
    torch.compiler.reset()
    inputs = make_inputs(SINGLE, device)
    compiled = torch.compile(operator(name), fullgraph=True, backend=compiler)
    x, weight = (tensor.requires_grad_() for tensor in inputs[:2])
    y = compiled(x, weight)
    results = (y, *torch.autograd.grad(y, (x, weight), inputs.grad_y))
    for result, expected in zip(results, reference(SINGLE), strict=True):
        assert relative_error(result, expected) <= TOLERANCE[torch.float32]


@by_target
def test_torch_compile_captures_one_graph(backend: str, device: str) -> None:
    require(backend, device)
    # aot_eager is torch.compile without the C++ or Triton compiler, which has nothing of ours to find out
    check_compiled(backend, device, "aot_eager")


def test_torch_compile_by_default() -> None:
    check_compiled("auto", "cpu", "inductor")


@pytest.mark.slow
@by_target
def test_torch_compile_generates_right_code(backend: str, device: str) -> None:
    require(backend, device)
    check_compiled(backend, device, "inductor")


@by_quick_target
def test_torch_compile_with_dynamic_shapes(backend: str, device: str) -> None:
    require(backend, device)
    torch.compiler.reset()
    compiled = torch.compile(operator(backend), fullgraph=True, dynamic=True, backend="aot_eager")
    for N, H, W in ((2, 5, 4), (3, 7, 9)):
        variant = Variant(Problem("dynamic", N, 4, H, W, 3, 2, 2), torch.float32)
        inputs = make_inputs(variant, device)
        assert relative_error(compiled(inputs.x, inputs.weight), reference(variant).y) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", ["numba", "naive"])
def test_torch_compile_of_the_layer_in_training(backend: str) -> None:
    torch.compiler.reset()
    layer = Involution2d(4, 3, stride=2, backend=backend, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    wanted = (x, *layer.parameters())
    grads = [torch.autograd.grad(module(x).square().sum(), wanted) for module in (compiled, layer)]
    for one, other in zip(*grads, strict=True):
        assert relative_error(one, other) <= 1e-12


def test_torch_compile_reports_a_backend_that_cannot_run() -> None:
    torch.compiler.reset()
    compiled = torch.compile(operator("cupy"), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="cupy"):
        compiled(*make_inputs(SINGLE)[:2])


class Exported(nn.Module):
    """The operator as torch.export wants it."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return involution2d(x, weight, **PROBLEM.options, backend=self.backend)


@pytest.mark.parametrize("strict", [False, True], ids=["non_strict", "strict"])
@by_target
def test_torch_export(backend: str, device: str, strict: bool) -> None:
    require(backend, device)
    x, weight, _ = make_inputs(SINGLE, device)
    program = torch.export.export(Exported(backend), (x, weight), strict=strict)
    assert relative_error(program.module()(x, weight), reference(SINGLE).y) <= TOLERANCE[torch.float32]


def test_torch_export_of_the_layer_with_any_batch() -> None:
    layer = Involution2d(4, 3, stride=2).eval()
    x = torch.randn(3, 4, 7, 5)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},))
    for batch in (x, torch.randn(5, 4, 7, 5)):
        assert torch.equal(program.module()(batch), layer(batch))


# --- The registered operators ---

GEOMETRY = (3, 2, 1, 1)  # K, stride, dilation, padding


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@by_opaque_target
def test_opcheck(backend: str, device: str, layout: str) -> None:
    require(backend, device, torch.float64)
    weight_layout = "taps_last" if layout == "channels_last" else layout
    inputs = make_inputs(Variant(PROBLEM, torch.float64, layout, weight_layout, layout), device)
    x, weight, grad_y = (tensor.requires_grad_() for tensor in inputs)
    namespace = torch.ops.invbench
    last = layout == "channels_last"
    opcheck(getattr(namespace, f"{backend}_forward").default, (x, weight, *GEOMETRY))
    opcheck(getattr(namespace, f"{backend}_grad_x").default, (grad_y, weight, *GEOMETRY, *x.shape[2:], last))
    opcheck(getattr(namespace, f"{backend}_grad_weight").default, (grad_y, x, *GEOMETRY, weight.shape[1], last))


# --- Higher derivatives and forward mode ---


@by_quick_target
def test_double_backward(backend: str, device: str) -> None:
    require(backend, device, torch.float64)
    inputs = make_inputs(Variant(Problem("double", 1, 2, 4, 3, 3, 1, 2)), device)
    x, weight, grad_y = (tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradgradcheck(operator(backend), (x, weight), grad_y)


@pytest.mark.parametrize(("backend", "device"), [target for target in targets() if is_slow(*target)])
def test_double_backward_works_or_raises(backend: str, device: str) -> None:
    require(backend, device, torch.float64)
    x, weight, _ = make_inputs(DOUBLE, device)

    def second(backend: str) -> Tensor:
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        (grad_x,) = torch.autograd.grad(operator(backend)(*leaves).square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(grad_x.square().sum(), leaves[1])[0]

    if backend == "compiled":
        with pytest.raises(RuntimeError, match=r"create_graph|double backward"):
            second(backend)
    else:
        assert relative_error(second(backend), second("naive").cpu()) <= 1e-12


def expected_tangent(inputs: Inputs, x_tangent: Tensor, weight_tangent: Tensor) -> Tensor:
    """The derivative of a product, by the reference."""
    function = operator("naive")
    x, weight, x_tangent, weight_tangent = (t.cpu().double() for t in (*inputs[:2], x_tangent, weight_tangent))
    return function(x_tangent, weight) + function(x, weight_tangent)


def dual_numbers(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    with forward_ad.dual_level():
        y = function(*(forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)))
        tangent = forward_ad.unpack_dual(y).tangent
        return torch.zeros_like(y) if tangent is None else tangent.clone()


def func_jvp(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    return torch.func.jvp(function, primals, tangents)[1]


def compiled_jvp(function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    torch.compiler.reset()

    def both(primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(function, primals, tangents)

    return torch.compile(both, backend="aot_eager")(primals, tangents)[1]


def jvp_of_compiled(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> Tensor:
    torch.compiler.reset()
    return func_jvp(torch.compile(function, backend="aot_eager"), primals, tangents)


def duals_of_compiled(
    function: Callable[..., Tensor], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> Tensor:
    torch.compiler.reset()
    return dual_numbers(torch.compile(function, backend="aot_eager"), primals, tangents)


@pytest.mark.parametrize("way", [dual_numbers, func_jvp, compiled_jvp, jvp_of_compiled, duals_of_compiled])
@by_target
def test_forward_mode_is_right_or_raises(backend: str, device: str, way: Callable[..., Tensor]) -> None:
    require(backend, device, torch.float64)
    inputs = make_inputs(DOUBLE, device)
    tangents = (torch.randn_like(inputs.x), torch.randn_like(inputs.weight))
    may_raise = () if way is dual_numbers and backend != "compiled" else (RuntimeError, NotImplementedError)
    try:
        actual = way(operator(backend), inputs[:2], tangents)
    except may_raise:
        return
    assert relative_error(actual, expected_tangent(inputs, *tangents)) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@by_quick_target
def test_forward_mode_of_one_input(backend: str, device: str, padding_mode: str) -> None:
    require(backend, device, torch.float64)
    problem = dataclasses.replace(PROBLEM, padding_mode=padding_mode)
    x, weight, _ = make_inputs(Variant(problem), device)
    function, tangent = operator(backend, problem), torch.randn_like(x)
    actual = dual_numbers(lambda x: function(x, weight), (x,), (tangent,))
    expected = operator("naive", problem)(tangent, weight)
    assert relative_error(actual, expected.cpu()) <= TOLERANCE[torch.float64]


@by_quick_target
def test_vmap_is_right_or_raises(backend: str, device: str) -> None:
    require(backend, device, torch.float64)
    x, weight, _ = make_inputs(DOUBLE, device)
    try:
        actual = torch.func.vmap(operator(backend))(torch.stack((x, 2 * x)), torch.stack((weight, weight)))
    except (RuntimeError, NotImplementedError):
        return
    expected = reference(DOUBLE).y
    assert relative_error(actual, torch.stack((expected, 2 * expected))) <= TOLERANCE[torch.float64]


@by_quick_target
def test_func_grad_is_right_or_raises(backend: str, device: str) -> None:
    require(backend, device, torch.float64)
    x, weight, grad_y = make_inputs(DOUBLE, device)
    try:
        actual = torch.func.grad(lambda x, weight: (operator(backend)(x, weight) * grad_y).sum())(x, weight)
    except (RuntimeError, NotImplementedError):
        return
    assert relative_error(actual, reference(DOUBLE).grad_x) <= TOLERANCE[torch.float64]


# --- Memory ---


def largest_allocation(backend: str, inputs: Inputs, problem: Problem) -> int:
    """Bytes of the largest block that PyTorch's allocator hands out in forward and backward."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run(inputs, problem, backend)
    return max(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("backend", ["naive", "numba", "triton", "unfold"])
def test_x_is_never_copied_for_each_tap(backend: str, padding_mode: str) -> None:
    require(backend, "cpu")
    # 32 channels a group make the weight K*K / 32 times as large as x, and K*K copies of x stand out.
    problem = Problem("memory", 1, 64, 8, 8, 5, 2, padding_mode=padding_mode)
    inputs = make_inputs(Variant(problem, torch.float32))
    largest, x_bytes = largest_allocation(backend, inputs, problem), inputs.x.nbytes
    if backend == "unfold":
        assert largest >= 25 * x_bytes  # the measure sees what it should
    else:
        assert largest <= 3 * x_bytes  # x extended by two pixels on each side is 2.25 times as large
