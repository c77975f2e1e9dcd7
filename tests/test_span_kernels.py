"""The Triton kernels that make the weight where it is used, each by its own launch, cut in every way there is.

With small integers for numbers, all sums are exact in float32, and a result is the reference's, rounded once: every
bit of it is known. With normally distributed ones, errors are within the table's tolerance, or twice those of the parts
one by one in the same dtype.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from cases import GRAD_LAYOUTS, TOLERANCE, X_LAYOUTS, pairwise, relative_error
from torch import Tensor

from invbench.ops import naive, triton_gpu
from invbench.ops.fused import Generator
from invbench.ops.layout import empty_image, memory_format_of
from invbench.ops.library import Window
from invbench.ops.triton_gpu import span_launching, tiling, traffic
from invbench.ops.triton_gpu.band import (
    band_in_thirds,
    band_of,
    both_of,
    kept_row,
    kept_row_transposed,
    row_of,
    taps_of,
    transposed_row_of,
    two_of,
)
from invbench.ops.triton_gpu.launching import ROWS_MAX
from invbench.ops.triton_gpu.tiling import KERNELS, Chip, Cut, Tile
from invbench.spec import InvbenchError, LayerSpec

DEVICE = "cpu" if triton_gpu.INTERPRETED else "cuda"
HALVES = (torch.bfloat16, torch.float16)
pytestmark = [
    pytest.mark.usefixtures("bfloat16_is_rounded"),
    pytest.mark.skipif(
        triton_gpu.unavailable(DEVICE) is not None,
        reason="needs a GPU, or TRITON_INTERPRET=1 before triton is imported",
    ),
]
needs_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="only the CPU has memory for nothing, and an interpreter")


# --- The band ---


@triton.jit
def _at(B: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr):
    batch, row = tl.arange(0, B)[:, None, None], tl.arange(0, M)[None, :, None]
    return (batch * M + row) * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]


@triton.jit
def _band_kernel(
    taps_ptr,  # [B, M, SLOTS] int16
    shift_ptr, odd_ptr,  # [M] int32
    band_ptr,  # [B, M, Q] int16
    B: tl.constexpr, M: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    shift, odd = tl.load(shift_ptr + tl.arange(0, M)), tl.load(odd_ptr + tl.arange(0, M))
    taps = tl.load(taps_ptr + _at(B, M, SLOTS)).to(DTYPE, bitcast=True)
    tl.store(band_ptr + _at(B, M, Q), band_of(taps, shift, odd, Q, DTYPE, False).to(tl.int16, bitcast=True))


@triton.jit
def _taps_kernel(
    band_ptr,  # [B, M, Q] int16, or float32
    shift_ptr, odd_ptr,  # [M] int32
    taps_ptr,  # [B, M, SLOTS] int16
    B: tl.constexpr, M: tl.constexpr, SLOTS: tl.constexpr, Q: tl.constexpr, K: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    shift, odd = tl.load(shift_ptr + tl.arange(0, M)), tl.load(odd_ptr + tl.arange(0, M))
    band = tl.load(band_ptr + _at(B, M, Q))
    if band.dtype == tl.int16:
        band = band.to(DTYPE, bitcast=True)
    tl.store(taps_ptr + _at(B, M, SLOTS), taps_of(band, shift, odd, K, SLOTS, DTYPE, False).to(tl.int16, bitcast=True))


TL_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# -0, the smallest subnormal, its negative, infinities, NaN quiet and signalling of both signs, and the largest: bits of
# bfloat16, then of float16.
SPECIAL = {
    torch.bfloat16: (0x8000, 0x0001, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFC1, 0xFFFF, 0x7F7F),
    torch.float16: (0x8000, 0x0001, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE01, 0xFFFF, 0x7BFF),
}


def random_bits(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any 16 bits, a third of them special ones: int16."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2**16, shape, generator=generator)
    special = torch.tensor(SPECIAL[dtype])[torch.randint(0, len(SPECIAL[dtype]), shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 1 / 3, special, bits).to(torch.int16)


def columns_of_band(Q: int) -> list[int]:
    """In the order in which a band has them: of each 16, 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15."""
    of_16 = [pair + column for pair in (0, 2, 4, 6) for column in (0, 1, 8, 9)]
    return [first + column for first in range(0, Q, 16) for column in of_16]


def expected_band(taps: Tensor, shift: Tensor, odd: Tensor, K: int, Q: int) -> Tensor:
    """By plain loops: tap v of row m in column 2*shift[m] + odd[m] + v, where there is such a column."""
    band = taps.new_zeros((*taps.shape[:2], Q))
    for m, v in itertools.product(range(taps.shape[1]), range(K)):
        column = 2 * int(shift[m]) + int(odd[m]) + v
        if 0 <= column < Q:
            band[:, m, column] = taps[:, m, v]
    return band[..., columns_of_band(Q)]


BAND_SIZES = [(slots, Q) for slots in (8, 16) for Q in (16, 32, 64)]
band_sizes = pytest.mark.parametrize(("slots", "Q"), BAND_SIZES)
halves = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


@band_sizes
@halves
def test_bands_are_what_loops_make(dtype: torch.dtype, slots: int, Q: int) -> None:
    """Every bit pattern, for all K; rows that begin left of the band, in it, and right of it, also out of its sight."""
    M, B, least = 32, 2, -64 * slots
    for K in range(1, slots):
        taps = random_bits(B, M, slots, dtype=dtype, seed=K)
        taps[..., K:] = 0
        shift = torch.tensor([least, -slots, -1, 0, Q // 2 - 1, Q // 2, 1000, *range(-12, 13)], dtype=torch.int32)
        for odd in (torch.arange(M, dtype=torch.int32) % 2, 1 - torch.arange(M, dtype=torch.int32) % 2):
            band = torch.full((B, M, Q), -1, dtype=torch.int16, device=DEVICE)
            on_device = [tensor.to(DEVICE) for tensor in (taps, shift, odd)]
            _band_kernel[(1,)](*on_device, band, B, M, slots, Q, TL_DTYPES[dtype])
            assert torch.equal(band.cpu(), expected_band(taps, shift, odd, K, Q)), K


@band_sizes
@halves
def test_taps_are_read_from_a_full_matrix(dtype: torch.dtype, slots: int, Q: int) -> None:
    """All of the matrix holds something, of which the band is taken, and nothing beside it."""
    B = 2
    for K in range(1, slots):
        places = [(shift, odd) for shift in range(Q // 2) for odd in (0, 1) if 2 * shift + odd + K <= Q]
        M = triton.next_power_of_2(len(places))
        places = (places * 64)[:M]
        shift, odd = torch.tensor(places, dtype=torch.int32).T.contiguous()
        band = random_bits(B, M, Q, dtype=dtype, seed=K)
        expected = torch.zeros(B, M, slots, dtype=torch.int16)
        for m, (pairs, one) in enumerate(places):
            expected[:, m, :K] = band[:, m, 2 * pairs + one :][:, :K]
        finite = torch.where(band.view(dtype).isfinite(), band.view(dtype), 1.0)
        sources = ((band, expected), (finite.float(), None))
        for source, wanted in sources:
            taps = torch.full((B, M, slots), -1, dtype=torch.int16, device=DEVICE)
            on_device = [tensor.to(DEVICE) for tensor in (source, shift, odd)]
            _taps_kernel[(1,)](*on_device, taps, B, M, slots, Q, K, TL_DTYPES[dtype])
            if wanted is None:
                bad = ~expected.view(dtype).isfinite()
                wanted = torch.where(bad, torch.ones((), dtype=dtype).view(torch.int16), expected)
            assert torch.equal(taps.cpu(), wanted), K


@band_sizes
@halves
def test_taps_of_is_the_inverse_of_band_of(dtype: torch.dtype, slots: int, Q: int) -> None:
    for K in range(1, slots):
        last = (Q - K) // 2  # pairs by which the band moves and still lies inside
        M = 16
        shift = torch.arange(M, dtype=torch.int32) % (last + 1)
        odd = torch.where(2 * shift + 1 + K <= Q, (torch.arange(M) // (last + 1) + 1) % 2, 0).to(torch.int32)
        taps = random_bits(1, M, slots, dtype=dtype, seed=K)
        taps[..., K:] = 0
        taps, shift, odd = (tensor.to(DEVICE) for tensor in (taps, shift, odd))
        band = torch.empty(1, M, Q, dtype=torch.int16, device=DEVICE)
        found = torch.full_like(taps, -1)
        _band_kernel[(1,)](taps, shift, odd, band, 1, M, slots, Q, TL_DTYPES[dtype])
        in_order = torch.empty_like(band)
        in_order[..., columns_of_band(Q)] = band
        _taps_kernel[(1,)](in_order, shift, odd, found, 1, M, slots, Q, K, TL_DTYPES[dtype])
        assert torch.equal(found, taps), K


@triton.jit
def _thirds_kernel(
    taps_ptr,  # [B, M, 8] int16
    shift_ptr, odd_ptr,  # [M] int32
    begin_ptr,  # [B, M, 16] int16
    third_ptr,  # [B, M, 8] int16
    B: tl.constexpr, M: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    shift, odd = tl.load(shift_ptr + tl.arange(0, M)), tl.load(odd_ptr + tl.arange(0, M))
    taps = tl.load(taps_ptr + _at(B, M, 8)).to(DTYPE, bitcast=True)
    begin, third = band_in_thirds(taps, shift, odd, DTYPE, False)
    tl.store(begin_ptr + _at(B, M, 16), begin.to(tl.int16, bitcast=True))
    third = tl.reshape(both_of(third, DTYPE), [B, M, 8])
    tl.store(third_ptr + _at(B, M, 8), third.to(tl.int16, bitcast=True))


@halves
def test_a_band_in_thirds_is_the_whole_one(dtype: torch.dtype) -> None:
    """Its third stretch has its eight columns in their natural order."""
    B, M = 2, 16
    for K in range(1, 8):
        taps = random_bits(B, M, 8, dtype=dtype, seed=K)
        taps[..., K:] = 0
        shift = torch.arange(M, dtype=torch.int32) % 9
        odd = torch.arange(M, dtype=torch.int32) // 8
        begin, third = (torch.full((B, M, n), -1, dtype=torch.int16, device=DEVICE) for n in (16, 8))
        on_device = [tensor.to(DEVICE) for tensor in (taps, shift, odd)]
        _thirds_kernel[(1,)](*on_device, begin, third, B, M, TL_DTYPES[dtype])
        in_order = torch.empty(B, M, 32, dtype=torch.int16)
        in_order[..., columns_of_band(32)] = expected_band(taps, shift, odd, K, 32)
        assert torch.equal(begin.cpu(), in_order[..., columns_of_band(16)]), K
        assert torch.equal(third.cpu(), in_order[..., 16:24]), K


@triton.jit
def _row_kernel(
    row_ptr,  # [Q // 16, B, 16, 16] int16
    kept_ptr,  # [B, Q, 16] int16, of THIRDS the first 16 columns and the third stretch of eight twice
    transposed_ptr,  # [B, 16, Q] int16
    E: tl.constexpr, B: tl.constexpr, THIRDS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    place = tl.arange(0, E)[:, None, None, None] * B + tl.arange(0, B)[None, :, None, None]
    place = (place * 16 + tl.arange(0, 16)[None, None, :, None]) * 16 + tl.arange(0, 16)[None, None, None, :]
    row = tl.load(row_ptr + place).to(DTYPE, bitcast=True)
    kept = kept_row(row, THIRDS)
    if THIRDS:
        place = tl.arange(0, B)[:, None, None] * 32 + tl.arange(0, 16)[None, :, None]
        ptrs = kept_ptr + place * 16 + tl.arange(0, 16)[None, None, :]
        tl.store(ptrs, two_of(kept[0], kept[1], DTYPE).to(tl.int16, bitcast=True))
        tl.store(ptrs + 16 * 16, two_of(kept[2], kept[2], DTYPE).to(tl.int16, bitcast=True))
    else:
        tl.store(kept_ptr + _at(B, 16 * E, 16), row_of(kept, DTYPE).to(tl.int16, bitcast=True))
    transposed = transposed_row_of(kept_row_transposed(row), DTYPE)
    tl.store(transposed_ptr + _at(B, 16, 16 * E), transposed.to(tl.int16, bitcast=True))


@halves
@pytest.mark.parametrize(("Q", "thirds"), [(16, False), (32, False), (32, True)], ids=["16", "32", "thirds"])
def test_kept_rows_are_given_back(dtype: torch.dtype, Q: int, thirds: bool) -> None:
    """Bit for bit, in the order in which a band has its columns, or transposed."""
    B = 2
    row = random_bits(B, Q, 16, dtype=dtype, seed=Q)
    given = row.reshape(B, Q // 16, 16, 16).transpose(0, 1).contiguous().to(DEVICE)
    kept, transposed = (torch.full(shape, -1, dtype=torch.int16, device=DEVICE) for shape in ((B, Q, 16), (B, 16, Q)))
    _row_kernel[(1,)](given, kept, transposed, Q // 16, B, thirds, TL_DTYPES[dtype])
    if thirds:
        # Of each four in the band's order, two are of a stretch and two of the next.
        third = [place for place in range(16, 32) if place % 4 < 2]
        twice = [third[i // 4 * 2 + i % 2] for i in range(16)]
        assert torch.equal(kept.cpu(), row[:, [*range(16), *twice]])
    else:
        assert torch.equal(kept.cpu(), row)
    assert torch.equal(transposed.cpu(), row.transpose(1, 2))


# --- The kernels ---


LAYOUTS = {**X_LAYOUTS, "column": lambda values: values[..., :1].expand(values.shape)}
GRADS = {**GRAD_LAYOUTS, **{name: X_LAYOUTS[name] for name in ("stepped", "transposed", "channels_last_sliced")}}


@dataclass(frozen=True)
class Case:
    """One aggregate with the weight made where it is used: sizes, numbers and layouts."""

    group_channels: int
    G: int
    r: int
    K: int
    size: tuple[int, int]
    move: tuple[int, int] = (1, 1)  # stride, dilation
    N: int = 2
    dtype: torch.dtype = torch.bfloat16
    x_layout: str = "contiguous"
    hidden_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    integers: bool = True

    @property
    def spec(self) -> LayerSpec:
        return LayerSpec(self.group_channels * self.G, self.K, self.G, *self.move)

    @property
    def window(self) -> Window:
        return Window(self.K, *self.move, self.spec.padding)

    @property
    def problem(self) -> tiling.Problem:
        H, W = self.size
        sizes = (H, W, self.spec.out_size(H), self.spec.out_size(W))
        return tiling.Problem(self.N, self.spec.C, *sizes, self.G, self.r, self.window)

    def __str__(self) -> str:
        (H, W), (stride, dilation) = self.size, self.move
        layouts = f"x_{self.x_layout}-hidden_{self.hidden_layout}-grad_{self.grad_layout}"
        sizes = f"{self.N}x{self.G}x{self.group_channels}x{H}x{W}-r{self.r}-k{self.K}-s{stride}-d{dilation}"
        return f"{sizes}-{str(self.dtype)[6:]}-{layouts}-{'integers' if self.integers else 'normal'}"


class Tensors(NamedTuple):
    """x [N, C, H, W], hidden [N, r, H_out, W_out], span [G*K*K, r], bias [G*K*K], grad_y [N, C, H_out, W_out]."""

    x: Tensor
    hidden: Tensor
    span: Tensor
    bias: Tensor
    grad_y: Tensor


def make_tensors(case: Case) -> Tensors:
    """The same in every process."""
    spec, (H, W) = case.spec, case.size
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))

    def make(*shape: int) -> Tensor:
        if case.integers:
            return torch.randint(-1, 2, shape, generator=generator).to(case.dtype)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(case.dtype)

    out = (spec.out_size(H), spec.out_size(W))
    x, hidden, grad_y = make(case.N, spec.C, H, W), make(case.N, case.r, *out), make(case.N, spec.C, *out)
    span, bias = make(spec.G * spec.taps, case.r), make(spec.G * spec.taps)
    if not case.integers:
        span = (span.double() / max(1, case.r) ** 0.5).to(case.dtype)
    tensors = Tensors(
        LAYOUTS[case.x_layout](x), LAYOUTS[case.hidden_layout](hidden), span, bias, GRADS[case.grad_layout](grad_y)
    )
    return Tensors(*(tensor.to(DEVICE) for tensor in tensors)) if DEVICE != "cpu" else tensors


def part_by_part(case: Case, tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """y and the gradients of all tensors, with the weight in memory, in dtype."""
    dense = (tensor.detach().to(dtype).clone(memory_format=torch.contiguous_format) for tensor in tensors)
    x, hidden, span, bias, grad_y = (tensor.requires_grad_() for tensor in dense)
    weight = torch.nn.functional.conv2d(hidden, span[..., None, None], bias)
    y = naive.aggregate(x, weight.unflatten(1, (case.G, -1)), case.spec)
    gradients = torch.autograd.grad(y, (x, hidden, span, bias), grad_y.detach())
    return {"y": y.detach(), **dict(zip(("x", "hidden", "span", "bias"), gradients, strict=True))}


@dataclass(frozen=True)
class Cutting:
    """How to cut, as far as a problem can be cut so; ``rows`` 0: all."""

    units: int
    rows: int
    images: int
    chip: Chip

    def of(self, kernel: str, problem: tiling.Problem) -> Cut:
        units = next(units for units in (self.units, 2, 1) if units <= self.units and problem.units % units == 0)
        step = problem.window.stride if kernel == tiling.GRAD_X else 1
        rows = max(problem.residues(problem.H if kernel == tiling.GRAD_X else problem.H_out))
        rows = min(self.rows, 4) or 1 if kernel == tiling.GRAD_HIDDEN else self.rows or rows
        images = self.images if kernel == tiling.FORWARD else 1
        return Cut(kernel, problem, Tile(units, triton.cdiv(rows, step) * step, images), self.chip)

    def __str__(self) -> str:
        chip = f"{self.chip.multiprocessors}x{self.chip.lanes}"
        return f"{self.units}_units-{self.rows or 'all'}_rows-{self.images}_images-{chip}"


def launch_of(
    kernel: str, case: Case, tensors: Tensors, cut: Cut | None, atomic: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    """A kernel's launch, and what it writes by the name of the gradient."""
    window, (x, hidden, span, bias, grad_y) = case.window, tensors
    generator = Generator(span, bias, case.G)
    if kernel == tiling.FORWARD:
        y = empty_image(x, grad_y.shape[2:])
        return span_launching.forward_launch(x, hidden, generator, y, window, cut), {"y": y}
    if kernel == tiling.GRAD_X:
        grad_x = empty_image(x, x.shape[2:])
        return span_launching.grad_x_launch(grad_y, hidden, generator, grad_x, window, cut), {"x": grad_x}
    if kernel == tiling.GRAD_HIDDEN:
        grad_hidden = empty_image(hidden, hidden.shape[2:])
        launch = span_launching.grad_hidden_launch(grad_y, x, generator, grad_hidden, window, cut)
        return launch, {"hidden": grad_hidden}
    cut = cut or tiling.default_cut(kernel, case.problem, Chip())
    grad_hidden = empty_image(hidden, hidden.shape[2:])
    launch, grad_span, grad_bias = span_launching.grad_span_launch(
        grad_y, x, hidden, generator, grad_hidden, window, atomic, cut
    )
    return launch, {"span": grad_span, "bias": grad_bias} | ({"hidden": grad_hidden} if cut.with_hidden else {})


def compute(
    kernel: str, case: Case, tensors: Tensors, cut: Cut | None = None, atomic: bool = False
) -> dict[str, Tensor]:
    """What a kernel writes, by the name of the gradient."""
    launch, found = launch_of(kernel, case, tensors, cut, atomic)
    launch.run(tensors.x.device)
    if kernel == tiling.GRAD_SPAN and not atomic:
        return {name: parts if name == "hidden" else parts.sum((0, 1)) for name, parts in found.items()}
    return found


def check(case: Case, found: dict[str, Tensor], tensors: Tensors) -> None:
    """Integers exactly, others within the tolerances."""
    expected = part_by_part(case, tensors, torch.float64)
    parts = expected if case.integers else part_by_part(case, tensors, case.dtype)
    for name, result in found.items():
        wanted, by_parts = expected[name].cpu(), parts[name].cpu()
        assert result.shape == wanted.shape, name
        error = relative_error(result, wanted)
        if case.integers:
            assert torch.equal(result.cpu(), wanted.to(result.dtype)), f"{name} is off by {error:.2g}"
        else:
            assert error <= max(TOLERANCE[case.dtype], 2 * relative_error(by_parts, wanted)), name


def steps(cut: Cut) -> int:
    """Window rows that all programs together aggregate, at which the interpreter takes 2 ms each."""
    problem = cut.problem
    if cut.kernel == tiling.GRAD_X:
        rows = cut.lines * problem.images * sum(end - first for first, end in cut.walks_for_x())
        return rows * cut.unit_blocks * cut.part_rows
    return cut.lines * cut.strips * problem.images * cut.tile.rows * cut.unit_blocks * cut.part_rows


def small(kernel: str, case: Case, cutting: Cutting | None, most: int) -> Case:
    """The case, with fewer groups, rows and images, then without a dilation, then with a smaller window, until the
    interpreter has ``most`` steps to do."""

    def is_small(case: Case) -> bool:
        cut = cutting.of(kernel, case.problem) if cutting else tiling.default_cut(kernel, case.problem, Chip())
        return steps(cut) <= max(most, 16 * case.K)

    if case.K == 1:
        case = replace(case, move=(1, case.move[1]))
    while case.G > 1 and not is_small(case):
        case = replace(case, G=case.G // 2)
    while case.size[0] > 1 and not is_small(case):
        case = replace(case, size=((case.size[0] + 1) // 2, case.size[1]))
    while case.N > 1 and not is_small(case):
        case = replace(case, N=case.N - 1)
    if not is_small(case):
        case = replace(case, move=(case.move[0], 1))
    while case.K > 3 and not is_small(case):
        case = replace(case, K=case.K - 2)
    return case


SIZES = ((1, 1), (1, 9), (9, 1), (5, 7), (4, 4), (13, 6), (3, 19), (2, 37))
MOVES = ((1, 1), (2, 1), (1, 2), (1, 3))  # stride, dilation
CASES = (
    (4, 5, 8, 16, 17, 40), (1, 2, 4), (1, 5, 16, 20, 64, 128), (1, 3, 5, 7, 9, 11, 13, 15), SIZES, MOVES,
    (1, 3), HALVES, tuple(LAYOUTS), tuple(LAYOUTS), tuple(GRADS), (True, False),
)  # fmt: skip
CUTTINGS = (
    (0, 1, 2, 4), (1, 2, 3, 0), (1, 2, 8),  # of no units: the default
    (Chip(1), Chip(), Chip(8, 64)),  # one share, as many as there are tiles, and warps that keep less
)  # fmt: skip


def rows(most: int) -> list[Any]:
    """Any two features together, at sizes for which the interpreter has ``most`` steps to do, or a few programs."""
    found = {}
    for kernel, *values in pairwise(KERNELS, *CUTTINGS, *CASES):
        cutting = Cutting(*values[:4]) if values[0] else None
        case = small(kernel, Case(*values[4:]), cutting, most)
        found[f"{kernel}-{cutting or 'default'}-{case}"] = (kernel, cutting, case)
    return [pytest.param(*row, id=name) for name, row in found.items()]


def agrees(kernel: str, cutting: Cutting | None, case: Case) -> None:
    tensors = make_tensors(case)
    check(case, compute(kernel, case, tensors, cutting.of(kernel, case.problem) if cutting else None), tensors)


@pytest.mark.parametrize(("kernel", "cutting", "case"), rows(60))
def test_any_two_features_meet(kernel: str, cutting: Cutting | None, case: Case) -> None:
    agrees(kernel, cutting, case)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "cutting", "case"), rows(1500))
def test_any_two_features_meet_at_larger_sizes(kernel: str, cutting: Cutting | None, case: Case) -> None:
    agrees(kernel, cutting, case)


WINDOWS = [(1, 1, 1), *((K, *move) for K in (3, 7, 15) for move in ((1, 1), (2, 1)))]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(1, 17), (2, 16), (3, 33), (6, 8)], ids=str)
@pytest.mark.parametrize(("K", "stride", "dilation"), [*WINDOWS, (3, 1, 2), (5, 1, 3)])
def test_sizes_around_lines(kernel: str, size: tuple[int, int], K: int, stride: int, dilation: int) -> None:
    """One column more than a line, as many, and fewer, of several channel blocks."""
    agrees(kernel, None, Case(20, 1, 5, K, size, (stride, dilation), N=1))


EMPTY = Case(8, 2, 5, 3, (3, 4), N=0)


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("case", [EMPTY, replace(EMPTY, move=(2, 1)), replace(EMPTY, r=20, N=2)], ids=str)
def test_a_whole_backward_pass(case: Case, atomic: bool) -> None:
    """Also of no images; atomic sums are the same numbers."""
    tensors = make_tensors(case)
    kernels, generator = triton_gpu.TritonSpanKernels(atomic), Generator(tensors.span, tensors.bias, case.G)
    y = kernels.span_forward(tensors.x, tensors.hidden, generator, case.window)
    gradients = kernels.span_backward(tensors.grad_y, tensors.x, tensors.hidden, generator, case.window)
    check(case, dict(zip(("y", "x", "hidden", "span", "bias"), (y, *gradients), strict=True)), tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_lie_as_their_sources(layout: str) -> None:
    """y and grad_x in x's memory format, grad_hidden in hidden's, all of them dense."""
    case = Case(8, 2, 5, 3, (3, 4), x_layout=layout, hidden_layout=layout, grad_layout="sliced")
    tensors = make_tensors(case)
    kernels, generator = triton_gpu.TritonSpanKernels(), Generator(tensors.span, tensors.bias, case.G)
    y = kernels.span_forward(tensors.x, tensors.hidden, generator, case.window)
    gradients = kernels.span_backward(tensors.grad_y, tensors.x, tensors.hidden, generator, case.window)
    for result, source in ((y, tensors.x), (gradients[0], tensors.x), (gradients[1], tensors.hidden)):
        assert memory_format_of(result) == memory_format_of(source)
        assert result.is_contiguous(memory_format=memory_format_of(source))
    check(case, dict(zip(("y", "x", "hidden", "span", "bias"), (y, *gradients), strict=True)), tensors)


def test_parameters_may_have_any_strides() -> None:
    case = Case(8, 2, 5, 3, (3, 4), integers=False)
    tensors = make_tensors(case)
    span, bias = torch.stack([tensors.span, tensors.span], 2)[..., 1], torch.stack([tensors.bias, tensors.bias], 1)
    kernels = triton_gpu.TritonSpanKernels()
    for generator in (Generator(span, bias[:, 0], case.G), Generator(span.T.contiguous().T, bias[:, 1], case.G)):
        y = kernels.span_forward(tensors.x, tensors.hidden, generator, case.window)
        gradients = kernels.span_backward(tensors.grad_y, tensors.x, tensors.hidden, generator, case.window)
        check(case, dict(zip(("y", "x", "hidden", "span", "bias"), (y, *gradients), strict=True)), tensors)


@pytest.mark.parametrize("window", [Window(3, 3, 1, 1), Window(3, 2, 2, 2), Window(1, 2, 1, 0), Window(3, 1, 1, 0)])
def test_refuses_windows_that_would_be_read_wrongly(window: Window) -> None:
    """An operator may be called with any."""
    generator = Generator(torch.empty(9, 4), torch.empty(9), 1)
    with pytest.raises(InvbenchError, match="use another backend"):
        span_launching.problem_of((1, 4, 5, 5), (1, 4, 3, 3), generator, window)


# --- Beyond 32 bits ---


def far(values: Tensor, dim: int) -> Tensor:
    """The same image, of which the last element along a dimension lies beyond 2**31 elements."""
    steps = list(torch.empty(values.shape, device="meta").stride())
    # The step as such may still fit 32 bits: then only its multiple does not.
    steps[dim] = 2**31 // (values.shape[dim] - 1) + values.numel()
    last = sum(step * (size - 1) for step, size in zip(steps, values.shape, strict=True))
    # Not torch.empty, which conftest fills: only a few pages of this are ever touched.
    storage = torch.UntypedStorage((last + 1) * values.element_size())
    return values.new_empty(0).set_(storage, 0, values.shape, steps).copy_(values)


OFFSETS = Case(4, 2, 5, 3, (3, 3), N=3, dtype=torch.float16)


@needs_cpu
@pytest.mark.parametrize("images", [1, 2, 8])
@pytest.mark.parametrize("kernel", KERNELS)
def test_batches_beyond_32_bits(kernel: str, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last image of all that is read and written lies beyond 2**31 elements."""
    module = __import__(__name__)
    tensors = make_tensors(OFFSETS)
    tensors = Tensors(far(tensors.x, 0), far(tensors.hidden, 0), tensors.span, tensors.bias, far(tensors.grad_y, 0))
    monkeypatch.setattr(
        module,
        "empty_image",
        lambda image, size: far(torch.full((*image.shape[:2], *size), torch.nan, dtype=image.dtype), 0),
    )
    cut = Cutting(2, 0, images, Chip(1)).of(kernel, OFFSETS.problem)
    found = compute(kernel, OFFSETS, tensors, cut)
    check(OFFSETS, {name: result.clone() for name, result in found.items()}, tensors)


@needs_cpu
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("move", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_images_beyond_32_bits_are_copied(move: tuple[int, int], dim: int) -> None:
    """The last channel, row or column lies beyond 2**31 elements of its image."""
    case = replace(OFFSETS, move=move, size=(4, 5))
    tensors = make_tensors(case)
    tensors = Tensors(
        far(tensors.x, dim), far(tensors.hidden, dim), tensors.span, tensors.bias, far(tensors.grad_y, dim)
    )
    kernels, generator = triton_gpu.TritonSpanKernels(), Generator(tensors.span, tensors.bias, case.G)
    y = kernels.span_forward(tensors.x, tensors.hidden, generator, case.window)
    gradients = kernels.span_backward(tensors.grad_y, tensors.x, tensors.hidden, generator, case.window)
    check(case, dict(zip(("y", "x", "hidden", "span", "bias"), (y, *gradients), strict=True)), tensors)


REACHES = [
    # shape, strides, whether it is read as it is
    ((2, 4, 3, 3), (2**40, 1, 12, 4), True),
    ((2, 4, 3, 3), (36, 9, 3, 1), False),  # channels are no neighbours
    ((2, 1, 3, 3), (9, 9, 3, 1), True),
    ((1, 2, 2, 2), (0, 1, ROWS_MAX - 3, 2), True),
    ((1, 2, 2, 2), (0, 1, ROWS_MAX - 2, 2), False),
    ((2, 2, 1, 2), (4, 1, 2**40, 2), True),  # of a dimension of one, nothing is far
    ((2, 1, 2, 1), (4, 2**40, 2, 2**40), True),
]


@pytest.mark.parametrize(("shape", "strides", "as_it_is"), REACHES)
def test_what_is_read_as_it_is(shape: tuple[int, ...], strides: tuple[int, ...], as_it_is: bool) -> None:
    image = torch.empty_strided(shape, strides, dtype=torch.float16, device="meta")
    read = span_launching.readable(image)
    assert (read is image) == as_it_is
    assert as_it_is or read.permute(0, 2, 3, 1).is_contiguous()


# --- Determinism ---


@pytest.mark.parametrize("case", [Case(20, 2, 20, 3, (4, 5), (2, 1), integers=False)], ids=str)
def test_runs_repeat_bit_for_bit(case: Case) -> None:
    """All results; and those that are summed over channels or taps only do not depend on the cut."""
    for kernel in KERNELS:
        runs = []
        for cutting in (None, None, Cutting(1, 2, 1, Chip(1)), Cutting(2, 0, 2, Chip())):
            cut = cutting.of(kernel, case.problem) if cutting else None
            runs.append(compute(kernel, case, make_tensors(case), cut))
        for name in runs[0]:
            assert torch.equal(runs[0][name], runs[1][name]), name
            assert kernel not in (tiling.FORWARD, tiling.GRAD_X) or torch.equal(runs[2][name], runs[3][name]), name


@pytest.mark.parametrize("rows", [6, 3, 2])
def test_rows_are_summed_in_the_same_order_whatever_the_cut(rows: int) -> None:
    """Where rows are equal, so are their results, although 2**30 - 2**30 swallows the 1 that is added between."""
    case = Case(16, 1, 16, 3, (6, 28), N=1)
    x, hidden, span, bias, grad_y = make_tensors(case)
    x, bias = torch.zeros_like(x), torch.zeros_like(bias)
    x[..., 13], x[..., 15] = 2.0**15, 1
    bias[3], bias[5], bias[6] = 2.0**15, 1, -(2.0**15)  # taps (1, 0), (1, 2) and (2, 0)
    tensors = Tensors(x, torch.zeros_like(hidden), torch.zeros_like(span), bias, grad_y)
    y = compute(tiling.FORWARD, case, tensors, Cutting(1, rows, 1, Chip()).of(tiling.FORWARD, case.problem))["y"]
    assert torch.equal(y[:, :, 1:5], y[:, :, 1:2].expand(-1, -1, 4, -1))
    assert y[0, 0, 1, 14] == 0


def test_the_default_cut_depends_on_the_problem_alone() -> None:
    """Not on the calls before, which a cache may remember, nor on values."""
    problems = [replace(STAGES[0], N=N) for N in (1, 64)]
    for kernel, problem in itertools.product(KERNELS, problems):
        first = tiling.default_cut(kernel, problem, Chip())
        tiling.default_cut.cache_clear()
        assert tiling.default_cut(kernel, problem, Chip()) == first


# --- Lines and parts ---

CUTS = [
    # kernel, hidden channels, K, stride, dilation, H, W: strips in a line, parts of a window, rows of each
    (tiling.FORWARD, 64, 7, 1, 1, 14, 14, (1, 1, 7)),
    (tiling.FORWARD, 128, 7, 1, 1, 14, 14, (1, 2, 4)),
    (tiling.FORWARD, 128, 7, 1, 1, 7, 7, (2, 2, 4)),
    (tiling.FORWARD, 16, 7, 1, 1, 2, 8, (2, 1, 7)),
    (tiling.FORWARD, 16, 7, 1, 1, 1, 8, (1, 1, 7)),  # of one row, nothing lies below
    (tiling.FORWARD, 16, 7, 1, 1, 2, 9, (1, 1, 7)),
    (tiling.FORWARD, 16, 7, 2, 1, 8, 8, (1, 1, 7)),
    (tiling.FORWARD, 16, 7, 1, 2, 8, 16, (2, 1, 7)),  # images of every second column
    (tiling.FORWARD, 16, 9, 1, 1, 8, 8, (1, 2, 5)),  # half a line cannot hold its windows
    (tiling.GRAD_X, 128, 7, 2, 1, 14, 14, (1, 2, 4)),
    (tiling.GRAD_X, 64, 9, 2, 1, 14, 14, (1, 8, 2)),  # an even number of rows
    (tiling.GRAD_SPAN, 32, 7, 1, 1, 14, 14, (1, 1, 7)),
    (tiling.GRAD_SPAN, 64, 7, 1, 1, 14, 14, (1, 2, 4)),
    (tiling.GRAD_SPAN, 128, 7, 1, 1, 14, 14, (1, 4, 2)),
]


@pytest.mark.parametrize(("kernel", "r", "K", "stride", "dilation", "H", "W", "expected"), CUTS)
def test_narrow_images_fold_lines_and_wide_windows_have_parts(
    kernel: str, r: int, K: int, stride: int, dilation: int, H: int, W: int, expected: tuple[int, int, int]
) -> None:
    case = Case(16, 8, r, K, (H, W), (stride, dilation))
    for cut in tiling.cuts(kernel, case.problem, Chip()):
        assert (cut.fold, cut.parts, cut.part_rows) == expected
        assert cut.num_warps == cut.tile.units * cut.parts <= 8
        assert cut.parts * cut.part_rows >= K


@pytest.mark.parametrize(("K", "stride"), [(1, 1), *itertools.product((3, 5, 7, 9), (1, 2))])
@pytest.mark.parametrize("W", [7, 28])
def test_lines_of_windows_that_read_up_to_24_columns_are_in_thirds(K: int, stride: int, W: int) -> None:
    """Not those of 16, nor folded ones, whose windows read 32; rows are computed two at once where they are even."""
    for cut in tiling.cuts(tiling.FORWARD, Case(16, 8, 16, K, (W, W), (stride, 1)).problem, Chip()):
        assert cut.in_thirds == (K in (3, 5, 7) and not (W == 7 and stride == 1))
        assert cut.tile.rows % cut.rows_at_once == 0
        assert (cut.rows_at_once == 2) == (cut.tile.rows % 2 == 0 and K < 9)


@pytest.mark.parametrize(("groups", "r", "comes"), [(4, 16, True), (8, 16, True), (16, 16, False), (4, 20, False)])
def test_grad_hidden_comes_with_grad_span_where_a_program_has_all_units(groups: int, r: int, comes: bool) -> None:
    """Then no other launch makes it."""
    case = Case(16, groups, r, 7, (5, 20), N=1)
    assert {cut.with_hidden for cut in tiling.cuts(tiling.GRAD_SPAN, case.problem, Chip())} == {comes}


# --- Traffic ---

TRAFFIC = [
    (4, 2, 5, 3, (3, 5), (1, 1)), (8, 2, 20, 3, (5, 6), (2, 1)), (20, 1, 5, 3, (4, 3), (1, 2)),
    (16, 1, 40, 5, (3, 18), (2, 1)), (5, 4, 70, 1, (3, 4), (1, 1)), (4, 1, 17, 7, (2, 2), (1, 1)),
    # Folded lines, and windows in parts, alone and together.
    (4, 2, 5, 7, (5, 8), (1, 1)), (4, 1, 100, 7, (2, 17), (1, 1)), (4, 2, 128, 7, (3, 7), (1, 1)),
    (4, 1, 80, 5, (3, 18), (2, 1)), (4, 1, 250, 7, (3, 4), (1, 1)),
]  # fmt: skip


@needs_cpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", TRAFFIC, ids=str)
def test_a_cut_knows_what_its_launch_asks_for(sizes: tuple[Any, ...], kernel: str) -> None:
    """By tensor, to the byte, over many cuts."""
    case = Case(*sizes, N=3 if kernel == tiling.FORWARD else 1)
    tensors = make_tensors(case)
    for units, rows, images, chip in pairwise((1, 2, 4), (1, 3, 0), (1, 2), (Chip(1), Chip(2, 64))):
        cut = Cutting(units, rows, images, chip).of(kernel, case.problem)
        if steps(cut) > 50 or (images > 1 and kernel != tiling.FORWARD):
            continue
        launch, _ = launch_of(kernel, case, tensors, cut)
        counted = traffic.requested_bytes(launch)
        asked = cut.asked(2, 2, tiling.shares_of(cut) if kernel == tiling.GRAD_SPAN else 1)
        by_tensor = {name.removesuffix("_ptr"): asked for name, asked in (counted.loaded + counted.stored).items()}
        assert by_tensor == +asked, cut


STAGES = [
    tiling.Problem(64, C, H, H, H, H, C // 16, C // 4, Window(7, 1, 1, 3)) for C, H in ((64, 56), (128, 28), (256, 14))
]


@pytest.mark.parametrize("N", [64, 256])
@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage.C}x{stage.H}x{stage.W}")
def test_forward_asks_for_little_more_than_it_must(stage: tiling.Problem, N: int) -> None:
    """At RedNet-50's stages in bfloat16: at most 1.5 times x, hidden and y, each once."""
    problem = replace(stage, N=N)
    positions = N * stage.H_out * stage.W_out
    least = 2 * (N * stage.C * stage.H * stage.W + positions * stage.r + positions * stage.C)
    asked = tiling.default_cut(tiling.FORWARD, problem, Chip()).asked(2, 2)
    assert asked.total() <= 1.5 * least, {name: part / least for name, part in asked.items()}
