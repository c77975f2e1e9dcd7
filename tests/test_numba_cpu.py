"""What only the Numba backend can get wrong: bit patterns, vectors beyond a row, its cache, threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import invbench
from invbench.ops import naive
from invbench.spec import LayerSpec

numba = pytest.importorskip("numba")
numba_cpu = pytest.importorskip("invbench.ops.numba_cpu")


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


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    """Bit for bit, forward and both gradients."""
    spec = LayerSpec(32, K=3, G=2)
    x, weight = (t.requires_grad_() for t in inputs(spec, 11, 13, torch.float32, True))

    def results() -> tuple[torch.Tensor, ...]:
        y = numba_cpu.aggregate(x, weight, spec)
        return y, *torch.autograd.grad(y.square().sum(), (x, weight))

    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        alone = results()
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, results(), strict=True))


def test_python_threads_may_call_at_once() -> None:
    """Also under the workqueue layer, which ends the process when its kernels are called concurrently."""
    program = """
import threading, torch, numba
from invbench.ops import numba_cpu
from invbench.spec import LayerSpec
x, weight = torch.ones(1, 4, 8, 8), torch.ones(1, 1, 9, 8, 8)
def call():
    for _ in range(50):
        assert numba_cpu.aggregate(x, weight, LayerSpec(4, K=3))[0, 0, 4, 4] == 9
threads = [threading.Thread(target=call) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert numba.threading_layer() == "workqueue"
"""
    run_python(program, NUMBA_THREADING_LAYER="workqueue")


def test_torch_keeps_its_number_of_threads() -> None:
    """Numba's OpenMP layer sets the number of threads of the OpenMP that it shares with torch."""
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
y = numba_cpu.aggregate(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 4, 4), LayerSpec(1, K=1))
assert y.eq({expected}).all()
stats = [kernel.stats for kernel in running._ready.values()]
print(sum(s.cache_hits.total() for s in stats), sum(s.cache_misses.total() for s in stats))
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
    """The second process compiles nothing; an edited intrinsic is compiled again."""
    source = Path(invbench.__file__).parent
    shutil.copytree(source, tmp_path / "invbench", ignore=shutil.ignore_patterns("__pycache__"))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run_python(CALL.format(expected=1), tmp_path, **cache).stdout.split() == ["0", "1"]
    assert run_python(CALL.format(expected=1), tmp_path, **cache).stdout.split() == ["1", "0"]
    edited = tmp_path / "invbench" / "ops" / "numba_cpu" / "kernels.py"
    text = edited.read_text()
    now = text.replace("convert(builder, value) if convert else value,", "builder.fadd(value, value),")
    assert now != text
    edited.write_text(now)  # Both factors, the sum and the result are stored: doubled four times.
    assert run_python(CALL.format(expected=16), tmp_path, **cache).stdout.split() == ["0", "1"]


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
