"""``Involution2d`` on the Triton kernels that make the weight where it is used: that it takes them, and rightly."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import pairwise
from fused_layers import CHANGES, LAYOUTS, Calls, check, error, make, naive, randn, results
from torch import Tensor, nn
from torch.autograd import forward_ad

from invbench import Involution2d
from invbench.ops import BACKENDS, triton_gpu

pytestmark = [
    pytest.mark.usefixtures("bfloat16_is_rounded"),
    pytest.mark.skipif(
        triton_gpu.unavailable("cpu") is not None, reason="needs TRITON_INTERPRET=1 before triton is imported"
    ),
]
HALVES = (torch.bfloat16, torch.float16)
by_grad = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
SPAN, INFERENCE, IN_MEMORY = (
    "invbench::triton_span_forward",
    "invbench::triton_layer_inference",
    "invbench::triton_forward",
)


def triton_layer(*arguments: Any, **options: Any) -> Involution2d:
    return make(*arguments, **{"backend": "triton", "dtype": torch.bfloat16, **options})


def operators(call: Callable[[], Any]) -> list[str]:
    """The operators of invbench that a call calls, each once, first called first."""
    calls = Calls()
    with calls:
        call()
    return [operator.name() for operator in getattr(calls, "made", {})]


def forward_operators(layer: Involution2d, x: Tensor, mode: str, autocast: bool = False) -> list[str]:
    """Those of ``results`` that compute y."""
    layer = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        names = operators(lambda: results(layer, x, mode))
    return [name for name in names if name in (SPAN, INFERENCE, IN_MEMORY)]


ROWS = pairwise(
    ((4, 1), (10, 2), (16, 2), (16, 1), (17, 1), (40, 1)),  # C, G
    (1, 3, 5, 7, 11), ((1, 1), (2, 1), (1, 2)),  # K; stride, dilation
    ((1, 1), (2, 3), (5, 4), (1, 18)),
    ((), (("reduction", 1), ("reduce_bias", True)), (("generator", "linear"),)),
    ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True)),  # autocast
    tuple(LAYOUTS), ("train", "train_no_grad", "eval", "eval_no_grad", "eval_inference"),
    (None, 0, 1, 2), ("nothing", "reduce", "norm", "span"),  # N or no batch; frozen
)  # fmt: skip


@pytest.mark.parametrize("row", list(ROWS), ids=lambda row: "-".join(str(value) for value in row))
def test_any_two_features_meet(row: tuple[Any, ...]) -> None:
    (C, G), K, (stride, dilation), size, options, (dtype, autocast), layout, mode, N, frozen = row
    layer = triton_layer(C, K, stride if K > 1 else 1, dilation, G, dtype=dtype, **dict(options))
    if (1 if N is None else N) * layer.spec.out_size(size[0]) * layer.spec.out_size(size[1]) < 2:
        mode = mode.replace("train", "eval")  # batch norm refuses to train on that
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    x = LAYOUTS[layout](randn(1 if N is None else N, C, *size, dtype=dtype))
    x = x[0] if N is None else x
    check(layer, x, mode, autocast, roundings=2)
    # Hidden channels that no product makes, or a norm by the batch's statistics, are not for the kernel that infers.
    infers = mode in ("eval_no_grad", "eval_inference") and "generator" not in dict(options)
    assert forward_operators(layer, x, mode, autocast) == [INFERENCE if infers else SPAN]


REFUSED = [
    ((16, 3), {"dtype": torch.float32}),
    ((16, 3), {"padding_mode": "reflect"}), ((16, 3), {"padding_mode": "replicate"}),
    ((16, 3), {"padding_mode": "circular"}),
    ((16, 5, 3), {}), ((16, 3, 2, 2), {}), ((16, 1, 2), {}), ((4, 17), {"hidden_channels": 2}),
    ((4, 3), {"groups": 4}), ((6, 3), {"groups": 2}), ((8, 3), {"hidden_channels": 200}),
    ((200, 1), {"groups": 1, "generator": "linear"}),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["eval", "eval_no_grad", "train"])
@pytest.mark.parametrize(("arguments", "options"), REFUSED, ids=str)
def test_what_is_refused_has_its_weight_in_memory(
    arguments: tuple[int, ...], options: dict[str, Any], mode: str
) -> None:
    layer = triton_layer(*arguments, **options)
    x = randn(2, arguments[0], 4, 5, dtype=layer.span.weight.dtype)
    check(layer, x, mode, roundings=2)
    assert forward_operators(layer, x, mode) == [IN_MEMORY]


LIMITS = [
    ((16, 3), {}, True), ((4, 15), {"hidden_channels": 2}, True),
    ((4, 17), {"hidden_channels": 2}, False), ((8, 3), {"hidden_channels": 128}, True),
    ((8, 3), {"hidden_channels": 129}, False), ((8, 3), {"groups": 2}, True), ((8, 3, 2), {"groups": 2}, True),
    ((8, 3, 1, 3), {"groups": 2}, True),
]  # fmt: skip


@by_grad
@pytest.mark.parametrize(("arguments", "options", "fused"), LIMITS, ids=str)
def test_what_is_just_taken(arguments: tuple[int, ...], options: dict[str, Any], fused: bool, grad: bool) -> None:
    layer, mode = triton_layer(*arguments, **options), "eval" if grad else "eval_no_grad"
    x = randn(1, arguments[0], 3, 2, dtype=torch.bfloat16)
    check(layer, x, mode, roundings=2)
    assert forward_operators(layer, x, mode) == [(SPAN if grad else INFERENCE) if fused else IN_MEMORY]


@pytest.mark.parametrize(("C", "hidden", "H"), [(64, 128, 2**13), (128, 64, 2**13)])
def test_no_image_is_taken_whose_offsets_do_not_fit_32_bits(C: int, hidden: int, H: int) -> None:
    """Neither x nor the hidden channels."""
    spec, fusing = triton_layer(C, 3).spec, BACKENDS["triton"].fused
    assert fusing is not None
    assert "numbers an image" in (fusing.refusal(spec, "bfloat16", hidden, H, 2**27 // 128 // H) or "")
    assert fusing.refusal(spec, "bfloat16", hidden, H, 2**27 // 128 // H - 1) is None


@by_grad
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_changed_parts_are_called_as_they_are(name: str, change: Callable[[Any], Any], grad: bool) -> None:
    ys = []
    for backend in ("triton", "naive"):  # each anew, since a copy of a patched part still calls the first
        torch.manual_seed(0)
        layer = triton_layer(16, 3, 2).eval()
        if isinstance(part := change(getattr(layer, name)), nn.Module):
            setattr(layer, name, part)
        layer.to(torch.bfloat16).backend = backend
        with torch.set_grad_enabled(grad):
            ys.append(layer(randn(2, 16, 5, 4, dtype=torch.bfloat16)))
    assert error(ys[0], ys[1].double()) <= 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("name", "part", "operator"), [
    ("span", nn.Conv2d(4, 9, 1, bias=False), IN_MEMORY), ("activation", nn.GELU(), SPAN),
    ("norm", nn.BatchNorm2d(4, track_running_stats=False), SPAN), ("norm", nn.Identity(), INFERENCE),
    ("activation", nn.Identity(), INFERENCE), ("norm", nn.GroupNorm(2, 4), SPAN),
])  # fmt: skip
def test_replaced_parts_leave_what_they_can_to_the_kernels(name: str, part: nn.Module, operator: str) -> None:
    layer, x = triton_layer(16, 3), randn(2, 16, 3, 4, dtype=torch.bfloat16)
    setattr(layer, name, copy.deepcopy(part).to(torch.bfloat16))
    check(layer, x, "eval_no_grad", roundings=2)
    assert forward_operators(layer, x, "eval_no_grad") == [operator]


@by_grad
def test_parameters_of_mixed_dtypes(grad: bool) -> None:
    """A norm in float32 within a layer in 16 bits, as converters leave it."""
    layer, x = triton_layer(16, 3), randn(2, 16, 3, 4, dtype=torch.bfloat16)
    layer.norm.float()
    check(layer, x, "eval" if grad else "eval_no_grad", roundings=2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("variance", "eps", "mean"), [(0.0, 1e-8, 0.0), (0.0, 1e-5, 250.0), (1e-7, 1e-7, 0.0)])
def test_folding_a_norm_does_not_overflow(dtype: torch.dtype, variance: float, eps: float, mean: float) -> None:
    """A channel that hardly varies: neither 1 / sqrt(eps) nor its product with the mean needs to fit 16 bits."""
    layer = triton_layer(16, 3, dtype=dtype, reduce_bias=True)
    layer.norm.eps, state = eps, layer.state_dict()
    for name, value in (("norm.running_var", variance), ("norm.running_mean", mean), ("reduce.bias", mean)):
        state[name].fill_(value)
    state["reduce.weight"].mul_(1e-3)
    check(layer, randn(2, 16, 6, 6, dtype=dtype), "eval_no_grad")


@pytest.mark.parametrize(
    ("layout", "stride", "size"), [("contiguous", 1, (1, 1)), ("channels_last", 2, (3, 3)), ("sliced", 1, (2, 3))]
)
def test_opcheck(layout: str, stride: int, size: tuple[int, int]) -> None:
    layer = triton_layer(8, 3, stride, groups=2)
    with Calls() as calls:
        for mode in ("eval", "eval_no_grad"):
            results(layer, LAYOUTS[layout](randn(2, 8, *size, dtype=torch.bfloat16)), mode)
    assert [operator.name() for operator in calls.made] == [SPAN, "invbench::triton_span_backward", INFERENCE]
    for operator, arguments in calls.made.items():
        if operator.name() == SPAN:
            arguments = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
        utilities = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, tuple(arguments), test_utils=utilities)


@pytest.mark.parametrize("mode", ["train", "eval", "eval_no_grad"])
def test_torch_compile_captures_one_graph(mode: str) -> None:
    torch.compiler.reset()
    layer, x = triton_layer(8, 3, 2, groups=2), randn(2, 8, 3, 4, dtype=torch.bfloat16)
    expected = results(copy.deepcopy(layer), x, mode)
    layer.forward = torch.compile(layer.forward, fullgraph=True, backend="aot_eager")
    for name, actual in results(layer, x, mode).items():
        assert error(actual, expected[name].double()) <= 2 * torch.finfo(torch.bfloat16).eps, name


@by_grad
def test_torch_export_and_the_derivatives_of_what_was_exported(grad: bool) -> None:
    """A program that was exported without gradients has none afterwards, and says so."""
    layer, x = triton_layer(8, 3).eval(), randn(3, 8, 2, 4, dtype=torch.bfloat16)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},)).module()
        assert error(program(x[:2]), naive(layer)(x[:2]).double()) <= 4 * torch.finfo(torch.bfloat16).eps
    with contextlib.nullcontext() if grad else pytest.raises((RuntimeError, NotImplementedError)):
        program(x.clone().requires_grad_()).sum().backward()
    with torch.set_grad_enabled(grad), forward_ad.dual_level(), pytest.raises(NotImplementedError):
        program(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("stride", [1, 2])
def test_second_derivatives(stride: int) -> None:
    """Through the weight in memory."""
    layer, x = triton_layer(8, 3, stride, groups=2).eval(), randn(2, 8, 3, 4, dtype=torch.bfloat16)

    def second(layer: Involution2d, x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        inputs = (x, *(parameter for parameter in layer.parameters()))
        first = torch.autograd.grad(layer(x).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)

    exact = second(naive(layer, torch.float64), x.double())
    for ours, parts, wanted in zip(second(layer, x), second(naive(layer), x), exact, strict=True):
        assert error(ours, wanted) <= 4 * error(parts, wanted) + 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward_mode_is_right(mode: str) -> None:
    """It takes the weight in memory, which is differentiable so."""
    layer, x = triton_layer(8, 3).train(mode == "train"), randn(2, 8, 3, 4, dtype=torch.bfloat16)
    tangents = []
    for module, image in ((layer, x), (naive(layer), x), (naive(layer, torch.float64), x.double())):
        with forward_ad.dual_level():
            y = module(forward_ad.make_dual(image, randn(*x.shape, dtype=image.dtype, seed=3).to(image.dtype)))
            tangents.append(forward_ad.unpack_dual(y).tangent)
    ours, parts, wanted = tangents
    assert error(ours, wanted) <= 4 * error(parts, wanted) + 4 * torch.finfo(torch.bfloat16).eps


def test_the_operators_refuse_tangents() -> None:
    layer = triton_layer(8, 3)
    with Calls() as calls:
        for mode in ("eval", "eval_no_grad"):
            results(layer, randn(2, 8, 2, 3, dtype=torch.bfloat16), mode)
    for operator, arguments in calls.made.items():
        with torch.no_grad(), forward_ad.dual_level(), pytest.raises(NotImplementedError):
            operator(forward_ad.make_dual(arguments[0], arguments[0]), *arguments[1:])
