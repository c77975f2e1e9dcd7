"""What only the Triton backend can get wrong: its tiles, its addresses, and the machine code it becomes.

The shared correctness matrix runs it like every other backend. Kernels are compiled for GPUs that need not be there, by
processes of their own.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from invbench.ops import naive, triton_gpu
from invbench.ops.library import Window, empty_weight
from invbench.ops.triton_gpu import aggregate_kernels, aggregate_launching, compiling, inspection
from invbench.ops.triton_gpu.launching import Launch
from invbench.spec import InvbenchError, LayerSpec

DEVICE = "cpu" if triton_gpu.INTERPRETED else "cuda"
KERNELS = ("forward", "grad_x", "grad_weight")
needs_device = pytest.mark.skipif(
    triton_gpu.unavailable(DEVICE) is not None, reason="needs a GPU, or TRITON_INTERPRET=1 before triton is imported"
)


@dataclass(frozen=True)
class Build:
    """One kernel compiled for one GPU, as a launch for these inputs would specialise it."""

    kernel: str
    dtype: str
    layout: str
    K: int
    target: int = 90
    aligned: bool = True

    def __str__(self) -> str:
        return "-".join(map(str, (*vars(self).values(),)))


BUILDS = [
    Build(kernel, dtype, layout, 7)
    for kernel in KERNELS
    for dtype in ("float32", "bfloat16")
    for layout in ("contiguous", "channels_last")
]
MORE_BUILDS = [
    Build(kernel, dtype, layout, K, aligned=aligned)
    for kernel in KERNELS
    for layout in ("contiguous", "channels_last")
    for dtype, K, aligned in (
        ("bfloat16", 3, True),
        ("bfloat16", 11, True),
        ("float16", 3, True),
        ("float16", 7, True),
        ("float32", 11, True),
        ("float64", 7, True),
        ("float32", 7, False),
    )
]


@dataclass(frozen=True)
class Tensors:
    """The six tensors of one aggregate; launches read some and write one."""

    x: Tensor
    weight: Tensor
    y: Tensor
    grad_x: Tensor
    grad_weight: Tensor
    grad_y: Tensor

    def launch(self, kernel: str, window: Window) -> Launch:
        """The launch of one kernel on these tensors."""
        if kernel == "forward":
            return aggregate_launching.forward_launch(self.x, self.weight, self.y, window)
        if kernel == "grad_x":
            return aggregate_launching.grad_x_launch(self.grad_y, self.weight, self.grad_x, window)
        return aggregate_launching.grad_weight_launch(self.grad_y, self.x, self.grad_weight, window)


def stage_one(build: Build) -> Launch:
    """RedNet-50's first stage, 16 channels a group, on the meta device; not aligned: sliced from a larger image."""
    memory_format = torch.channels_last if build.layout == "channels_last" else torch.contiguous_format
    image = torch.empty(
        (256, 65, 57, 57), dtype=getattr(torch, build.dtype), device="meta", memory_format=memory_format
    )
    x = image[:, 1:, 1:, 1:]
    if build.aligned:
        x = x.contiguous(memory_format=memory_format)
    weight = empty_weight(x, 4, build.K**2, build.layout == "channels_last")
    return Tensors(x, weight, x, x, weight, x).launch(build.kernel, Window(build.K, 1, 1, build.K // 2))


def code_of_build(build: Build) -> inspection.Code:
    """What the compiler makes of it, without a word of warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return inspection.code_of(stage_one(build), build.target)


def check_code(builds: list[Build]) -> None:
    """They fit the registers, and the shared memory that any launch may have; channels are loaded as vectors where they
    are aligned, positions, which ADJACENT says to lie side by side, never."""
    for build, code in zip(builds, compiling.in_compilers(code_of_build, builds), strict=True):
        assert code.spilled_bytes == 0, build
        assert code.registers <= 255, build
        assert code.shared_bytes <= 48 * 1024, build
        if build.K == 7:
            assert (code.wide_accesses > 0) == (build.layout == "channels_last" and build.aligned), build
        # At the shape that matters most, weights reach their lanes without shared memory.
        if build in (Build(kernel, "bfloat16", "channels_last", 7) for kernel in ("forward", "grad_x")):
            assert code.shared_bytes == 0, build


# In one test each, for each process that shares the tests would compile what a fixture of theirs holds.


def test_plain_kernels_compile_as_meant() -> None:
    check_code(BUILDS)


@pytest.mark.slow
def test_more_plain_kernels_compile_as_meant() -> None:
    """Sizes and layouts that the table of what is shipped does not have."""
    check_code(MORE_BUILDS)


def random_aggregate(
    spec: LayerSpec, H: int, W: int, N: int = 2, dtype: torch.dtype = torch.float64, channels_last: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and grad_y, the weight with its taps last if channels_last."""
    generator = torch.Generator().manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    size = (spec.out_size(H), spec.out_size(W))
    x = torch.randn(N, spec.C, H, W, dtype=dtype, generator=generator)
    weight = torch.randn(N, spec.G, spec.taps, *size, dtype=dtype, generator=generator)
    grad_y = torch.randn(N, spec.C, *size, dtype=dtype, generator=generator)
    if channels_last:
        weight = weight.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    return tuple(
        t.to(DEVICE) for t in (x.to(memory_format=memory_format), weight, grad_y.to(memory_format=memory_format))
    )


def with_gradients(aggregate: Any, x: Tensor, weight: Tensor, grad_y: Tensor, spec: LayerSpec) -> tuple[Tensor, ...]:
    """y, grad_x and grad_weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = aggregate(x, weight, spec)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad_y)


def assert_agrees(x: Tensor, weight: Tensor, grad_y: Tensor, spec: LayerSpec) -> None:
    """Forward and gradients are the reference's, in float64 exactly but for rounding."""
    expected = with_gradients(naive.aggregate, x, weight, grad_y, spec)
    for ours, reference in zip(with_gradients(triton_gpu.aggregate, x, weight, grad_y, spec), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@needs_device
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("spec", "H", "W"),
    [
        (LayerSpec(C=4, K=3, G=4), 3, 70),  # one channel a group; more positions than one block
        (LayerSpec(C=3, K=3, G=1), 5, 4),
        (LayerSpec(C=10, K=3, G=2, stride=2), 5, 7),
        (LayerSpec(C=40, K=3, G=2, dilation=2), 4, 3),  # two blocks of channels where positions are fast
        (LayerSpec(C=160, K=1, G=1, stride=3), 4, 4),  # three and two blocks where channels are fast
        (LayerSpec(C=260, K=3, G=1), 1, 2),
        (LayerSpec(C=4, K=9, G=1), 2, 3),
        (LayerSpec(C=4, K=3, G=2, stride=4, dilation=3), 9, 6),
    ],
    ids=str,
)
def test_tiles_agree_with_the_reference(spec: LayerSpec, H: int, W: int, channels_last: bool) -> None:
    assert_agrees(*random_aggregate(spec, H, W, channels_last=channels_last), spec)


@needs_device
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("spec", "H", "W"),
    [
        (LayerSpec(C=4, K=3, G=2), 9, 10),  # two runs, of which the last repeats positions
        (LayerSpec(C=6, K=3, G=2, stride=2), 13, 11),
        (LayerSpec(C=8, K=5, G=1, stride=3), 10, 19),
        (LayerSpec(C=4, K=3, G=2, dilation=2), 17, 9),
        (LayerSpec(C=4, K=5, G=1, stride=2, dilation=3), 19, 20),  # places that no tap meets
        (LayerSpec(C=16, K=3, G=1), 17, 17),
        (LayerSpec(C=2, K=3, G=1, stride=9), 20, 20),  # positions that share nothing
        (LayerSpec(C=2, K=3, G=1, dilation=40), 3, 50),
        (LayerSpec(C=1, K=33, G=1), 2, 3),  # more taps in a row than are unrolled
        (LayerSpec(C=1, K=33, G=1, stride=2), 3, 2),
    ],
    ids=str,
)
def test_runs_agree_with_the_reference(
    spec: LayerSpec, H: int, W: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as they are where there are programs enough."""
    monkeypatch.setattr(aggregate_launching, "FILLING_WARPS", 0)
    assert_agrees(*random_aggregate(spec, H, W, channels_last=channels_last), spec)


def test_runs_share_the_image_equally() -> None:
    """No position is computed twice at RedNet's sizes; where programs are few, runs are shorter."""
    for size, C, run in ((56, 64, 8), (28, 128, 7), (14, 256, 7), (7, 512, 7)):
        x = torch.empty(256, C, size, size, device="meta")
        weight = empty_weight(x, C // 16, 49, taps_last=False)
        assert aggregate_launching.forward_launch(x, weight, x, Window(7, 1, 1, 3)).constants["RUN"] == run
    x = torch.empty(1, 16, 7, 7, device="meta")
    weight = empty_weight(x, 1, 49, taps_last=False)
    assert aggregate_launching.forward_launch(x, weight, x, Window(7, 1, 1, 3)).constants["RUN"] == 2


@needs_device
@pytest.mark.parametrize("taps_last", [False, True])
@pytest.mark.parametrize("x_channels_last", [False, True])
def test_each_tensor_has_its_own_layout(x_channels_last: bool, taps_last: bool) -> None:
    """x, weight and grad_y may each lie differently from what the tile was chosen for."""
    spec = LayerSpec(C=8, K=3, G=2)
    x, _, grad_y = random_aggregate(spec, 4, 5, channels_last=x_channels_last)
    _, weight, _ = random_aggregate(spec, 4, 5, channels_last=taps_last)
    assert_agrees(x, weight, grad_y, spec)
    assert_agrees(x, weight, grad_y[:1, :1, :1, :1].expand_as(grad_y), spec)
    wider = torch.cat([x, x, x], dim=1).repeat(1, 1, 2, 2)
    assert_agrees(wider[:, 5:13, 1::2, 3:8][:, :, :4], weight, grad_y, spec)


PAIRS_OF_GROUPS = LayerSpec(C=4, K=3, G=2)
# A layer, the side of its image, which tensor, along which dimension, and how many times as far.
STRIDE_CASES = [
    *((PAIRS_OF_GROUPS, 2, name, dim, 1) for name, dims in (("image", 4), ("weight", 5)) for dim in range(dims)),
    # What is multiplied by more than one: by taps along a run, by vectors of channels, by a dilation.
    (PAIRS_OF_GROUPS, 2, "weight", 2, 4),
    (LayerSpec(C=8, K=3, G=1), 2, "image", 1, 2),
    *((LayerSpec(C=4, K=3, G=2, dilation=2), 3, "image", dim, 1) for dim in (2, 3)),
]


@needs_device
@pytest.mark.skipif(DEVICE != "cpu", reason="memory that is never touched costs nothing on the CPU only")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("spec", "side", "far", "dim", "times"), STRIDE_CASES, ids=lambda value: str(value))
def test_offsets_beyond_32_bits(kernel: str, spec: LayerSpec, side: int, far: str, dim: int, times: int) -> None:
    """Along each dimension in turn, the last element of what is read and written lies beyond 2**31 elements."""
    x, weight, grad_y = (t.to(torch.float16) for t in random_aggregate(spec, side, side))
    expected = with_gradients(naive.aggregate, x, weight, grad_y, spec)

    def place(t: Tensor) -> Tensor:
        if (t.ndim == 4) != (far == "image"):
            return t.clone()
        steps = list(torch.empty(t.shape, device="meta").stride())
        # The step as such may still fit 32 bits: then only its multiple does not.
        steps[dim] = times * 2**31 // (t.shape[dim] - 1) + t.numel()
        last = sum(step * (size - 1) for step, size in zip(steps, t.shape, strict=True))
        # Not torch.empty, which conftest fills: only a few pages of this are ever touched.
        storage = torch.UntypedStorage((last + 1) * t.element_size())
        return t.new_empty(0).set_(storage, 0, t.shape, steps).copy_(t)

    tensors = Tensors(
        place(x), place(weight), place(torch.full_like(x, torch.nan)), place(torch.full_like(x, torch.nan)),
        place(torch.full_like(weight, torch.nan)), place(grad_y),
    )  # fmt: skip
    tensors.launch(kernel, Window(3, 1, spec.dilation, spec.padding)).run(torch.device(DEVICE))
    written = {"forward": tensors.y, "grad_x": tensors.grad_x, "grad_weight": tensors.grad_weight}[kernel]
    torch.testing.assert_close(written.clone(), expected[KERNELS.index(kernel)].reshape(written.shape))


@triton.jit
def _positions_kernel(n_ptr, row_ptr, column_ptr, block, height, width, INDEX: triton.language.constexpr):
    n, row, column = aggregate_kernels.positions_of(block, height, width, 16, INDEX)
    lanes = triton.language.arange(0, 16)
    triton.language.store(n_ptr + lanes, n)
    triton.language.store(row_ptr + lanes, row)
    triton.language.store(column_ptr + lanes, column)


@needs_device
@pytest.mark.parametrize(("H", "W"), [(3, 5), (2**16, 2**16), (2**31 - 8, 1), (1, 2**31 - 8)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_positions_beyond_32_bits(H: int, W: int, share: float) -> None:
    """Images and batches of more than 2**31 positions are counted rightly, also where a block crosses images."""
    block = int(share * 2**31) if H * W < 2**20 else int((1 + share) * H * W) // 16
    index = triton.language.int32 if H * W + 16 <= 2**31 - 1 else triton.language.int64
    n, row, column = (torch.zeros(16, dtype=torch.int64, device=DEVICE) for _ in range(3))
    _positions_kernel[(1,)](n, row, column, block, H, W, INDEX=index)
    positions = [block * 16 + lane for lane in range(16)]
    assert n.tolist() == [p // (H * W) for p in positions]
    assert row.tolist() == [p % (H * W) // W for p in positions]
    assert column.tolist() == [p % W for p in positions]


@needs_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_in_float32(dtype: torch.dtype) -> None:
    """Half-precision results are the float64 results, rounded once."""
    spec = LayerSpec(C=32, K=5, G=2)
    x, weight, grad_y = (t.to(dtype) for t in random_aggregate(spec, 5, 3, channels_last=True))
    ours = with_gradients(triton_gpu.aggregate, x, weight, grad_y, spec)
    exact = with_gradients(naive.aggregate, x.double(), weight.double(), grad_y.double(), spec)
    for result, reference in zip(ours, exact, strict=True):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-4)


@needs_device
def test_borders_read_nothing() -> None:
    """What surrounds a slice in memory never reaches the result, not even as NaN times zero."""
    spec = LayerSpec(C=6, K=5, G=2, stride=2)
    x, weight, grad_y = random_aggregate(spec, 5, 5)
    around = torch.full((4, 8, 9, 9), torch.nan, dtype=x.dtype, device=DEVICE)
    inner = around[1:3, 1:7, 2:7, 2:7].copy_(x)
    assert_agrees(inner, weight, grad_y, spec)


@needs_device
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_empty_batch(channels_last: bool) -> None:
    spec = LayerSpec(C=4, K=3, G=2)
    x, weight, grad_y = random_aggregate(spec, 3, 4, N=0, channels_last=channels_last)
    y, grad_x, grad_weight = with_gradients(triton_gpu.aggregate, x, weight, grad_y, spec)
    assert (y.shape, grad_x.shape, grad_weight.shape) == (x.shape, x.shape, weight.shape)


@needs_device
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
def test_gradcheck(padding_mode: str) -> None:
    spec = LayerSpec(C=2, K=3, G=1, padding_mode=padding_mode)
    x, weight, _ = random_aggregate(spec, 2, 2, N=1)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda *args: triton_gpu.aggregate(*args, spec), inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *args: triton_gpu.aggregate(*args, spec), inputs, fast_mode=True)


@needs_device
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_opcheck(channels_last: bool) -> None:
    spec = LayerSpec(C=4, K=3, G=2, stride=2)
    x, weight, grad_y = random_aggregate(spec, 3, 4, N=1, channels_last=channels_last)
    x, weight, grad_y = (t.requires_grad_() for t in (x, weight, grad_y))
    geometry = (3, 2, 1, 1)
    torch.library.opcheck(triton_gpu.aggregate.forward, (x, weight, *geometry))
    torch.library.opcheck(triton_gpu.aggregate.grad_x, (grad_y, weight, *geometry, 3, 4, channels_last))
    torch.library.opcheck(triton_gpu.aggregate.grad_weight, (grad_y, x, *geometry, 2, channels_last))


def test_refuses_a_window_beyond_32_bits() -> None:
    x = torch.empty(1, 1, 2, 2, device="meta")
    weight = torch.empty(1, 1, 9, 2, 2, device="meta")
    with pytest.raises(InvbenchError, match=r"2\*\*31; use a smaller stride"):
        aggregate_launching.forward_launch(x, weight, x, Window(3, 1, 2**30, 2**30))


@pytest.mark.parametrize(("kind", "words"), [("mps", "it runs on GPUs: got mps"), ("xpu", "finds no xpu device")])
def test_says_why_it_cannot_run(kind: str, words: str) -> None:
    if kind == "xpu" and torch.xpu.is_available():
        pytest.skip("this machine has one")
    reason = triton_gpu.unavailable(kind)
    assert reason is not None
    assert words in reason
    assert "TRITON_INTERPRET=1" in reason
