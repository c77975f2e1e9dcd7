"""What only the Numba backend can get wrong: bit patterns, vectors beyond a row, its cache, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import TOLERANCE, relative_error

import invbench
from invbench.ops import naive
from invbench.ops.fused import Generator
from invbench.spec import LayerSpec

numba = pytest.importorskip("numba")
numba_cpu = pytest.importorskip("invbench.ops.numba_cpu")
running = pytest.importorskip("invbench.ops.numba_cpu.running")


def inputs(spec: LayerSpec, H: int, W: int, dtype: torch.dtype, channels_last: bool) -> tuple[torch.Tensor, ...]:
    """x [2, C, H, W] and weight [2, G, K*K, H_out, W_out] from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    weight_size = (2, spec.G, spec.taps, spec.out_size(H), spec.out_size(W))
    x = torch.randn((2, spec.C, H, W), generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(weight_size, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    return x, weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_bit_pattern_survives(dtype: torch.dtype) -> None:
    """Times one: subnormals, infinities and both zeros keep their bits, and NaN stays NaN."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 256, 256)
    y = numba_cpu.aggregate(x, torch.ones_like(x).unsqueeze(2), LayerSpec(1, K=1))
    same = torch.where(x.isnan(), y.isnan(), y == x)
    assert same.all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_as_torch_does(dtype: torch.dtype) -> None:
    """Products of two are exact in float32, and then rounded once: to nearest, ties to even, also to subnormals."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(-(2**15), 2**15, (2, 1, 1, 512, 512), generator=generator, dtype=torch.int16)
    x, weight = patterns.view(dtype)
    y = numba_cpu.aggregate(x, weight.unsqueeze(2), LayerSpec(1, K=1))
    expected = (x.float() * weight.float()).to(dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
def test_nan_and_infinity_stay_where_they_belong(stride: int, channels_last: bool) -> None:
    """Whole vectors are computed beyond the end of a row, which must not carry anything into its neighbours."""
    spec = LayerSpec(34, K=5, G=2, stride=stride)
    x, weight = inputs(spec, 6, 70, torch.float32, channels_last)
    expected = naive.aggregate(x, weight, spec)
    x[0, 3, 2, 66] = float("nan")
    x[1, 20, 4, 63] = float("inf")
    touched = naive.aggregate(x, weight, spec)
    y = numba_cpu.aggregate(x, weight, spec)
    torch.testing.assert_close(y, touched, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert y.isfinite().sum() > 0.9 * expected.numel()


@pytest.mark.parametrize(
    "spec", [LayerSpec(32, K=7, G=2), LayerSpec(40, K=3, G=1, stride=2), LayerSpec(40, K=3, G=20)], ids=str
)
def test_results_do_not_depend_on_the_number_of_threads(spec: LayerSpec) -> None:
    """Bit for bit: the operators and a layer in training, forward and all gradients, and a layer at inference."""
    x, weight = (t.requires_grad_() for t in inputs(spec, 31, 33, torch.float32, True))
    layer = invbench.Involution2d(spec.C, spec.K, spec.stride, groups=spec.G, backend="numba")
    layer.norm.momentum = 0.0  # so that inference knows nothing of how often it trained
    hidden = torch.randn(2, 8, spec.out_size(31), spec.out_size(33), requires_grad=True)
    generator = Generator(torch.randn(spec.G * spec.taps, 8, requires_grad=True), layer.span.bias, spec.G)

    def results() -> tuple[torch.Tensor, ...]:
        y, z = numba_cpu.aggregate(x, weight, spec), numba_cpu.fused_layer.span(x, hidden, generator, spec)
        with torch.no_grad():
            inferred = layer.eval()(x)
        trained = layer.train()(x)
        learned = torch.autograd.grad(trained.square().sum(), (x, *layer.parameters()))
        gradients = torch.autograd.grad(z.square().sum(), (x, hidden, generator.span, generator.bias))
        return y, z, inferred, trained, *learned, *torch.autograd.grad(y.square().sum(), (x, weight)), *gradients

    before = torch.get_num_threads()
    everything = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            everything.append(results())
    finally:
        torch.set_num_threads(before)
    for others in everything[1:]:
        assert [torch.equal(a, b) for a, b in zip(everything[0], others, strict=True)] == [True] * len(others)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "spec",
    [
        LayerSpec(512, K=7, G=32),
        LayerSpec(256, K=3, G=16, stride=2),
        LayerSpec(512, K=5, G=16, dilation=2),
        LayerSpec(128, K=3, G=128),
        LayerSpec(128, K=3, G=64, stride=2),
        LayerSpec(128, K=3, G=128, dilation=2),
    ],
    ids=str,
)
def test_units_of_many_groups(spec: LayerSpec, dtype: torch.dtype, channels_last: bool) -> None:
    """Enough groups that a thread works on several at once, whose weights lie side by side in channels_last."""
    x, weight = (t.requires_grad_() for t in inputs(spec, 10, 17, dtype, channels_last))
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    y, expected = numba_cpu.aggregate(x, weight, spec), naive.aggregate(exact[0], exact[1], spec)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    got = (y, *torch.autograd.grad(y, (x, weight), grad_y))
    wanted = (expected, *torch.autograd.grad(expected, exact, grad_y.double()))
    for actual, reference in zip(got, wanted, strict=True):
        assert relative_error(actual, reference.detach()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 2), (5, 3), (10, 17)], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 16, 19, 33])
@pytest.mark.parametrize("K", [3, 5, 7])
def test_gradient_of_taps_that_are_neighbours(K: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Everything in channels_last, where a vector of the gradient of the weight holds taps, if a group is small."""
    spec = LayerSpec(3 * channels, K=K, G=3)
    x, weight = (t.requires_grad_() for t in inputs(spec, *size, dtype, channels_last=True))
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    grad_y = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    grad_y = grad_y.contiguous(memory_format=torch.channels_last)
    got = torch.autograd.grad(numba_cpu.aggregate(x, weight, spec), (x, weight), grad_y)
    wanted = torch.autograd.grad(naive.aggregate(exact[0], exact[1], spec), exact, grad_y.double())
    (alone,) = torch.autograd.grad(numba_cpu.aggregate(x.detach(), weight, spec), weight, grad_y)
    for actual, reference in zip((*got, alone), (*wanted, wanted[1]), strict=True):
        assert relative_error(actual, reference) <= TOLERANCE[dtype]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_rows_outside_the_image_take_nothing_from_a_gradient(channels_last: bool) -> None:
    """Where a whole row of the window is outside, the weight has no gradient, not even from infinity."""
    x, weight = inputs(LayerSpec(32, K=5, G=2), 6, 9, torch.float32, channels_last)
    grad_y = torch.ones_like(x)
    grad_y[0, 3, 0, 4], grad_y[1, 20, 5, 0] = float("inf"), float("nan")
    y = numba_cpu.aggregate(x, weight.requires_grad_(), LayerSpec(32, K=5, G=2))
    (grad_weight,) = torch.autograd.grad(y, weight, grad_y)
    by_rows = grad_weight.unflatten(2, (5, 5))
    assert (by_rows[0, 0, :2, :, 0, 4] == 0).all()
    assert (by_rows[1, 1, 3:, :, 5, 0] == 0).all()
    assert not by_rows[0, 0, 2:, :, 0, 4].isfinite().any()
    assert not by_rows[1, 1, :3, :, 5, 0].isfinite().any()


@pytest.mark.parametrize("advises", [True, False])
def test_large_results(advises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results for which the system is asked for huge pages, where it can be asked and where not."""
    pages = pytest.importorskip("invbench.ops.numba_cpu.pages")
    if not advises:
        monkeypatch.setattr(pages, "_madvise", lambda: None)
    x = torch.randn(1, 3, 1700, 1700, generator=torch.Generator().manual_seed(0))
    weight = torch.full((1, 3, 1, 1700, 1700), 2.0)
    assert x.nbytes > pages.FRESH_BYTES
    y = numba_cpu.aggregate(x, weight.requires_grad_(), LayerSpec(3, K=1, G=3))
    (grad_weight,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    assert torch.equal(y, 2 * x)
    assert torch.equal(grad_weight.squeeze(2), x)


@pytest.mark.parametrize("threads", ["openmp", "python"])
def test_python_threads_may_call_at_once(threads: str) -> None:
    """Each has its own scratch and its own units; on the threads of torch's OpenMP, and where there is none."""
    program = """
import threading, torch
from invbench.ops import naive, numba_cpu
from invbench.ops.numba_cpu import running
from invbench.spec import LayerSpec
if {without}:
    running._openmp = lambda: None
assert running.threads_of() == {name!r}
torch.set_num_threads(2)
spec = LayerSpec(40, K=3, G=2)
def call(seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 40, 9, 30, generator=generator), torch.randn(2, 2, 9, 9, 30, generator=generator)
    expected = naive.aggregate(x, weight, spec)
    for _ in range(50):
        torch.testing.assert_close(numba_cpu.aggregate(x, weight, spec), expected)
    done.append(seed)
done = []
threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 4
"""
    without = threads == "python"
    run_python(program.format(without=without, name="Python" if without else "torch's OpenMP"))


def test_torch_keeps_its_number_of_threads() -> None:
    """Also on the first call, when a pool of threads may start."""
    program = """
import torch
from invbench.ops import numba_cpu
from invbench.spec import LayerSpec
torch.set_num_threads(1)
numba_cpu.aggregate(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 4, 4), LayerSpec(1, K=1))
assert torch.get_num_threads() == 1
"""
    run_python(program)


CALL = """
import torch
from invbench.ops import numba_cpu
from invbench.ops.numba_cpu import running
from invbench.spec import LayerSpec
y = numba_cpu.aggregate(torch.ones(1, 16, 4, 4), torch.ones(1, 1, 1, 4, 4), LayerSpec(16, K=1))
assert y.eq({expected}).all()
compiled = [compiled for _, compiled in running._ready.values()]
print(sum(c.cache_hits for c in compiled), sum(1 - c.cache_hits for c in compiled))
"""


LAYERS = """
import torch
from invbench import Involution2d
from invbench.ops.numba_cpu import running
torch.manual_seed(0)
for C, K, stride in ((32, 3, 1), (16, 7, 1), (64, 5, 2), (96, 3, 1)):
    layer = Involution2d(C, K, stride, backend="numba").eval()
    x = torch.randn(2, C, 9, 11)
    with torch.no_grad():
        y = layer(x)
        layer.backend = "naive"
        torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-4)
print(*(compiled.cache_hits for _, compiled in running._ready.values()))
"""


def run_python(program: str, root: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program in a fresh process that imports invbench from root."""
    root = root or Path(invbench.__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )


def test_cache_is_used_and_renewed_with_the_source(tmp_path: Path) -> None:
    """The second process compiles nothing; an edited intrinsic is compiled again.

    What is loaded is other machine code than what ran where it was compiled: there each function is also compiled by
    itself, and that comes first. So a third process computes whole layers.
    """
    source = Path(invbench.__file__).parent
    shutil.copytree(source, tmp_path / "invbench", ignore=shutil.ignore_patterns("__pycache__"))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run_python(CALL.format(expected=1), tmp_path, **cache).stdout.split() == ["0", "1"]
    assert run_python(CALL.format(expected=1), tmp_path, **cache).stdout.split() == ["1", "0"]
    assert run_python(LAYERS, tmp_path, **cache).stdout.split() == ["1"]
    edited = tmp_path / "invbench" / "ops" / "numba_cpu" / "tiles.py"
    text = edited.read_text()
    now = text.replace("number = load(", "number = builder.fadd(*[load(").replace(
        "weight_at[p]))", "weight_at[p]))] * 2)"
    )
    assert now != text
    edited.write_text(now)  # the weight counts twice
    assert run_python(CALL.format(expected=2), tmp_path, **cache).stdout.split() == ["0", "1"]


def test_sources_are_hashed_as_they_were_imported(tmp_path: Path) -> None:
    """What is edited under a running process is not what that compiles, nor what it may cache that as."""
    shutil.copytree(Path(invbench.__file__).parent, tmp_path / "invbench", ignore=shutil.ignore_patterns("__pycache__"))
    program = """
from pathlib import Path
from invbench.ops.numba_cpu import running, tiles
with Path(tiles.__file__).open("a") as source:
    source.write({added!r})
running.kernels.entries = lambda version, size: print(version) or exit()
running._prepare("forward", 4)
"""
    first, while_edited, then = (
        run_python(program.format(added=added), tmp_path).stdout for added in ("", "# edited", "")
    )
    assert first
    assert first == while_edited != then


def test_no_address_is_taken_for_null() -> None:
    """Wherever an integer becomes a pointer, also in what was inlined, LLVM is told that null may be read."""
    binding = pytest.importorskip("llvmlite.binding")
    numba_cpu.aggregate(torch.ones(1, 16, 4, 4), torch.ones(1, 1, 1, 4, 4), LayerSpec(16, K=1))
    _, compiled = running._ready["forward", 4]
    module = binding.parse_assembly(str(compiled._library._get_module_for_linking()))
    converting = {f.name: b" ".join(f.attributes) for f in module.functions if "inttoptr" in str(f)}
    assert converting
    assert [name for name, attributes in converting.items() if b"null_pointer_is_valid" not in attributes] == []


def test_runs_uncached_with_a_warning_where_nothing_can_be_written(tmp_path: Path) -> None:
    """Files where Numba wants directories stand for a read-only home, which would not stop root."""
    source = Path(invbench.__file__).parent
    shutil.copytree(source, tmp_path / "invbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cache", "home", "invbench/ops/numba_cpu/__pycache__"):
        (tmp_path / name).write_text("")
    places = {name: str(tmp_path / "home") for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA")}
    environment = {**places, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    finished = run_python(CALL.format(expected=1), tmp_path, **environment)
    assert finished.stderr.count("RuntimeWarning") == 1
    assert "set NUMBA_CACHE_DIR to a writable directory" in finished.stderr
