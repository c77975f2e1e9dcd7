"""``Involution2d`` with the weight made where it is used, against the reference and against its own parts."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPES, pairwise
from fused_layers import CHANGES, LAYOUTS, Calls, check, error, make, naive, randn, results
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity

import invbench

pytest.importorskip("numba")

by_grad = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])


ROWS = pairwise(
    ((1, 1), (5, 5), (8, 2), (15, 1), (17, 1), (32, 2), (34, 2), (36, 3), (64, 4), (64, 1), (80, 2)),  # C, G
    (1, 3, 5, 7, 9, 11),  # K
    ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2), (3, 2), (2, 3)),  # stride, dilation
    ((1, 1), (2, 3), (7, 7), (1, 19), (23, 2), (13, 9), (33, 40)),
    ("zeros", "reflect", "replicate", "circular"),
    ((), (("reduction", 1), ("reduce_bias", True)), (("reduction", 80),), (("generator", "linear"),)),
    DTYPES, tuple(LAYOUTS), ("train", "train_no_grad", "eval", "eval_no_grad", "eval_inference"),
    (None, 0, 1, 2, 3), (False, True), ("nothing", "reduce", "norm", "span"),  # N or no batch, autocast, frozen
)  # fmt: skip


@pytest.mark.parametrize("row", list(ROWS), ids=lambda row: "-".join(str(value) for value in row))
def test_any_two_features_meet(row: tuple[Any, ...]) -> None:
    (C, G), K, (stride, dilation), size, padding_mode, generator, dtype, layout, mode, N, autocast, frozen = row
    reach, least = dilation * (K // 2), min(size)
    if (padding_mode == "reflect" and reach >= least) or (padding_mode == "circular" and reach > least):
        padding_mode = "replicate"
    layer = make(C, K, stride, dilation, G, padding_mode=padding_mode, dtype=dtype, **dict(generator))
    if (1 if N is None else N) * layer.spec.out_size(size[0]) * layer.spec.out_size(size[1]) < 2:
        mode = mode.replace("train", "eval")  # batch norm refuses to train on that
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    x = LAYOUTS[layout](randn(1 if N is None else N, C, *size, dtype=dtype))
    # parameters of 16 bits are no part of autocast
    check(layer, x[0] if N is None else x, mode, autocast and dtype in (torch.float32, torch.float64))


@pytest.mark.parametrize("mode", ["eval", "eval_no_grad"])
def test_odd_addresses_and_strides_beyond_32_bits(mode: str, tmp_path: Path) -> None:
    layer, memory = make(16, 3), randn(90_000)[3:]
    for strides in ((144, 9, 3, 1), (5760, 1, 120, 40), (100, 7, 3, 1)):
        check(layer, memory.as_strided((2, 16, 3, 3), strides), mode)
    holes = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 * 2**29, dtype=torch.float32)  # 6 GiB
    x = holes.as_strided((2, 16, 3, 3), (2**30 - 100, 2**24, 2**21 + 1, 2**17 + 3)).copy_(randn(2, 16, 3, 3))
    check(layer, x, mode)


@by_grad
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_changed_parts_are_called_as_they_are(name: str, change: Callable[[Any], Any], grad: bool) -> None:
    ys = []
    for backend in ("numba", "naive"):  # each anew, since a copy of a patched part still calls the first
        torch.manual_seed(0)
        layer = make(16, 3, 2).eval()
        if isinstance(part := change(getattr(layer, name)), nn.Module):
            setattr(layer, name, part)
        layer.backend = backend
        with torch.set_grad_enabled(grad):
            ys.append(layer(randn(2, 16, 7, 6)))
    assert error(*ys) <= 1e-5


@by_grad
def test_a_pool_may_change_the_channels(grad: bool) -> None:
    ys = []
    for backend in ("numba", "naive"):
        torch.manual_seed(0)
        layer = make(16, 3, 2).eval()
        layer.pool, layer.reduce, layer.backend = nn.Conv2d(16, 8, 2, 2), nn.Conv2d(8, 4, 1), backend
        with torch.set_grad_enabled(grad):
            ys.append(layer(randn(2, 16, 8, 6)))
    assert error(*ys) <= 1e-5


@pytest.mark.parametrize("attributes", [{"momentum": None}, {"num_batches_tracked": None}, {"momentum": 0.7}], ids=str)
def test_statistics_are_learned_as_batch_norm_learns_them(attributes: dict[str, Any]) -> None:
    layer = make(16, 3)
    for name, value in attributes.items():
        setattr(layer.norm, name, value)
    check(layer, randn(3, 16, 5, 4), "train")


def test_one_column_with_an_odd_stride() -> None:
    check(make(16, 3), randn(2, 16, 1, 8).transpose(2, 3), "train")


def test_a_batch_far_from_its_mean() -> None:
    layer = make(16, 3, reduce_bias=True)
    with torch.no_grad():
        layer.reduce.bias.fill_(3000)
    check(layer, randn(2, 16, 9, 7), "train")


MISFITS = (
    *(("span", nn.Conv2d(*channels, 1)) for channels in ((4, 12), (4, 5), (8, 9), (3, 9))),
    *(("reduce", nn.Conv2d(*channels, 1)) for channels in ((1, 4), (16, 1))), ("reduce", nn.Conv2d(16, 4, 1).double()),
    ("activation", nn.AdaptiveAvgPool2d(1)), ("pool", nn.MaxPool2d(2)), ("pool", nn.Identity()),
)  # fmt: skip


@by_grad
@pytest.mark.parametrize(("name", "part"), MISFITS)
def test_parts_that_do_not_fit_are_refused(name: str, part: nn.Module, grad: bool) -> None:
    """Never read beyond their end, or broadcast."""
    layer = make(16, 3, 2).eval()
    setattr(layer, name, part)
    for module in (naive(layer), layer):
        with torch.set_grad_enabled(grad), pytest.raises((RuntimeError, ValueError)):
            module(randn(2, 16, 7, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layout", "padding_mode"), [("contiguous", "reflect"), ("channels_last", "zeros")])
def test_opcheck(layout: str, padding_mode: str, dtype: torch.dtype) -> None:
    layer = make(8, 3, 2, groups=2, padding_mode=padding_mode, dtype=dtype)
    with Calls() as calls:
        for mode in ("train", "eval_no_grad"):
            results(layer, LAYOUTS[layout](randn(2, 8, 5, 6, dtype=dtype)), mode)
        layer.activation = nn.GELU()
        results(layer, LAYOUTS[layout](randn(2, 8, 5, 6, dtype=dtype)), "train")
    assert len(calls.made) == 5
    for operator, arguments in calls.made.items():
        if dtype == torch.float64 and operator.name().endswith(("span_forward", "layer_forward")):
            arguments = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments]
        torch.library.opcheck(operator, tuple(arguments))


@pytest.mark.parametrize("mode", ["train", "eval", "eval_no_grad"])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_captures_one_graph(compiler: str, mode: str) -> None:
    torch.compiler.reset()
    layer, x = make(16, 3, 2, dtype=torch.float64), randn(2, 16, 7, 5, dtype=torch.float64)
    expected = results(naive(layer), x, mode)
    layer.forward = torch.compile(layer.forward, fullgraph=True, backend=compiler)
    for name, actual in results(layer, x, mode).items():
        assert error(actual, expected[name]) <= 1e-10, name


@by_grad
def test_torch_export_and_the_derivatives_of_what_was_exported(grad: bool) -> None:
    """A program that was exported without gradients has none afterwards, and says so."""
    layer, x = make(8, 3, dtype=torch.float64).eval(), randn(3, 8, 5, 6, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},)).module()
        assert error(program(x[:2]), naive(layer)(x[:2])) <= 1e-12
    with contextlib.nullcontext() if grad else pytest.raises((RuntimeError, NotImplementedError)):
        program(x.clone().requires_grad_()).sum().backward()
    with torch.set_grad_enabled(grad), forward_ad.dual_level(), pytest.raises(NotImplementedError):
        program(forward_ad.make_dual(x, x))


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding_mode": "reflect", "dilation": 2}], ids=str)
def test_first_and_second_derivatives(options: dict[str, Any]) -> None:
    layer = make(2, 3, hidden_channels=2, dtype=torch.float64, **options).eval()
    layer.activation = nn.Softplus()
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (randn(2, 2, 4, 3, dtype=torch.float64).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives_of_a_whole_layer_with_frozen_parts(training: bool) -> None:
    layer = make(2, 3, hidden_channels=2, dtype=torch.float64).train(training)
    layer.activation = nn.Identity()  # a rectifier has kinks
    layer.norm.momentum = 0.0
    layer.span.bias.requires_grad_(False)
    x = randn(2, 2, 4, 3, dtype=torch.float64)

    def penalty(x: Tensor) -> Tensor:
        wanted = [tensor for tensor in (x, *layer.parameters()) if tensor.requires_grad]
        return sum(g.square().sum() for g in torch.autograd.grad(layer(x).square().sum(), wanted, create_graph=True))

    penalty(x).backward()  # x needs no gradient
    assert layer.reduce.weight.grad is not None
    assert torch.autograd.gradcheck(penalty, x.clone().requires_grad_())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("window", [(16, 7, 1, 1, 1), (34, 3, 2, 1, 2), (5, 3, 1, 1, 1), (48, 5, 1, 1, 1)])
@pytest.mark.parametrize("place", ["x", "reduce.weight", "norm.bias", "norm.running_var", "span.weight", "span.bias"])
def test_nan_and_infinity_are_where_the_parts_have_them(place: str, window: tuple[int, ...], bad: float) -> None:
    """With replicated borders, so that no tap is left out, and after a call that left NaN in all the scratch."""
    layer, x = make(*window, padding_mode="replicate"), randn(2, window[0], 9, 23)
    {"x": x, **layer.state_dict()}[place].flatten()[-1] = bad
    for mode, dtype in itertools.product(("eval", "eval_no_grad"), (torch.float32, torch.float16)):
        module = copy.deepcopy(layer).to(dtype)
        results(copy.deepcopy(module), torch.full_like(x, torch.nan, dtype=dtype), mode)
        actual, expected = results(module, x.to(dtype), mode), results(naive(module), x.to(dtype), mode)
        for name in ("y", "x", "span.weight", "span.bias") if mode == "eval" else ("y",):
            assert torch.equal(actual[name].isfinite(), expected[name].isfinite()), (mode, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("variance", "eps", "mean"), [(0.0, 1e-8, 0.0), (0.0, 1e-5, 250.0), (1e-7, 1e-7, 0.0)])
def test_folding_a_norm_does_not_overflow(dtype: torch.dtype, variance: float, eps: float, mean: float) -> None:
    """A channel that hardly varies: neither 1 / sqrt(eps) nor its product with the mean needs to fit 16 bits."""
    layer = make(16, 3, dtype=dtype, reduce_bias=True)
    layer.norm.eps, state = eps, layer.state_dict()
    for name, value in (("norm.running_var", variance), ("norm.running_mean", mean), ("reduce.bias", mean)):
        state[name].fill_(value)
    state["reduce.weight"].mul_(1e-3)
    check(layer, randn(2, 16, 6, 6, dtype=dtype), "eval_no_grad")


def run_python(program: str, **environment: str) -> None:
    path = os.pathsep.join((str(Path(invbench.__file__).parents[1]), str(Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=True, timeout=300)


def test_threads_and_forked_workers() -> None:
    """Any number of torch's, and several callers; then in a child with one, as a DataLoader starts it."""
    run_python("""
from concurrent.futures import ThreadPoolExecutor
from test_fused import *
layers = [make(16 * groups, K, stride).eval() for groups, K, stride in ((1, 3, 1), (2, 7, 2), (3, 5, 1), (4, 7, 1))]
def call(i):
    return torch.no_grad()(layers[i % 4])(randn(2, layers[i % 4].spec.C, 31, 29))
expected = [call(i) for i in range(4)]
for threads in (1, 2, 3, 4):
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as callers:
        assert all(torch.equal(y, expected[i % 4]) for i, y in enumerate(callers.map(call, range(32))))
if not (child := os.fork()):
    torch.set_num_threads(1)
    os._exit(not all(torch.equal(call(i), expected[i]) for i in range(4)))
assert os.waitpid(child, 0)[1] == 0
""")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("haswell", 32), ("x86-64", 16)])
def test_other_vector_widths(name: str, width: int, tmp_path: Path) -> None:
    without = ("avx512", "avx10", "amx")
    if width == 16:
        without += ("avx", "fma", "f16c", "vaes", "vpclmul", "xop", "sse3", "ssse3", "sse4", "gfni")
    host = pytest.importorskip("llvmlite.binding").get_host_cpu_features()
    if not host.get("avx2"):
        pytest.skip("needs an x86 processor with AVX2")
    features = ",".join(("+" if on and not each.startswith(without) else "-") + each for each, on in host.items())
    program = f"""
from test_fused import *
from invbench.ops.numba_cpu.simd import VECTOR_BYTES
assert VECTOR_BYTES == {width}
windows = (32, 7, 1, 1, 2), (34, 5, 2, 1, 2), (5, 3, 1, 2, 1), (48, 9, 1, 1, 1), (6, 1, 3, 1, 1)
for dtype, (C, *window), mode, layout in itertools.product(DTYPES, windows, ("eval", "eval_no_grad"), LAYOUTS):
    check(make(C, *window, dtype=dtype), LAYOUTS[layout](randn(2, C, 11, 23, dtype=dtype)), mode)
"""
    run_python(program, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_is_never_whole_in_memory(dtype: torch.dtype) -> None:
    layer, x = make(64, 7, dtype=dtype).eval(), randn(8, 64, 56, 56, dtype=dtype)
    with torch.no_grad(), torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        y = layer(x)
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in changes)) - y.nbytes
    assert peak <= 0.35 * 8 * layer.span.out_channels * 56 * 56 * dtype.itemsize
