"""The aggregate by banded products, with the weight given: against the float64 reference, and against its own model of
what it asks of memory. Every test that gives 16 bits in channels_last to the Triton backend runs these kernels, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import TOLERANCE, relative_error
from torch import Tensor

from invbench.ops import naive, triton_gpu
from invbench.ops.library import Window, empty_weight
from invbench.ops.triton_gpu import banded_launching, tiling, traffic
from invbench.ops.triton_gpu.launching import Launch
from invbench.ops.triton_gpu.tiling import BANDED_FORWARD, BANDED_GRAD_WEIGHT, BANDED_GRAD_X, Chip, Cut, Problem, Tile
from invbench.spec import LayerSpec

DEVICE = "cpu" if triton_gpu.INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.skipif(triton_gpu.unavailable(DEVICE) is not None, reason="needs a GPU, or Triton's interpreter"),
    pytest.mark.usefixtures("bfloat16_is_rounded"),
]

# LayerSpec's arguments, H, W, and the units and rows of a tile.
CASES = [
    ((16, 3, 1), 3, 18, 1, 2), ((16, 7, 2), 4, 5, 2, 4), ((10, 5, 2), 3, 4, 1, 1), ((8, 1, 2), 3, 17, 2, 3),
    ((16, 3, 2, 2), 5, 19, 1, 2), ((8, 7, 1, 2), 7, 4, 1, 4), ((16, 3, 4, 1, 2), 5, 4, 4, 1),
    ((12, 5, 1, 1, 3), 4, 7, 1, 2), ((16, 7, 1), 1, 1, 1, 1),
]  # fmt: skip


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def channels_last(values: Tensor) -> Tensor:
    N, C, H, W = values.shape
    return values.new_empty((N, H, W, C)).permute(0, 3, 1, 2).copy_(values)


def make(
    case: tuple[Any, ...], dtype: torch.dtype, taps_last: bool, layout: Callable[[Tensor], Tensor] = channels_last
) -> tuple[LayerSpec, dict[str, Tensor]]:
    arguments, H, W, units, _ = case
    N = 1 if units > 1 else 2
    spec = LayerSpec(*arguments)
    size = spec.out_size(H), spec.out_size(W)
    x = layout(random(N, spec.C, H, W, dtype=dtype, seed=1))
    grad_y = layout(random(N, spec.C, *size, dtype=dtype, seed=2))
    weight = empty_weight(grad_y, spec.G, spec.taps, taps_last)
    weight.copy_(random(*weight.shape, dtype=dtype, seed=3))
    return spec, {"x": x, "weight": weight, "grad_y": grad_y}


def launches(spec: LayerSpec, t: dict[str, Tensor], tile: Tile | None) -> dict[str, tuple[Launch, Tensor, Cut]]:
    """By kernel, the launch, what it writes, and how it is cut: by the tile, or by default."""
    x, weight, grad_y = t["x"], t["weight"], t["grad_y"]
    window = Window(spec.K, spec.stride, spec.dilation, spec.padding)
    problem = Problem(*x.shape, *grad_y.shape[2:], spec.G, 0, window)
    found, chip = {}, Chip()
    for kernel, result in ((BANDED_FORWARD, grad_y), (BANDED_GRAD_X, x), (BANDED_GRAD_WEIGHT, weight)):
        written = torch.full_like(result, torch.nan)
        cut = Cut(kernel, problem, tile, chip) if tile else tiling.default_cut(kernel, problem, chip)
        if kernel == BANDED_GRAD_X and cut.tile.rows % spec.stride:
            cut = Cut(kernel, problem, Tile(cut.tile.units, cut.tile.rows + 1), chip)
        if kernel == BANDED_FORWARD:
            launch = banded_launching.forward_launch(x, weight, written, window, cut)
        elif kernel == BANDED_GRAD_X:
            launch = banded_launching.grad_x_launch(grad_y, weight, written, window, cut)
        else:
            launch = banded_launching.grad_weight_launch(grad_y, x, written, window, cut)
        found[kernel] = launch, written, cut
    return found


@pytest.mark.parametrize(
    ("dtype", "taps_last", "is_default", "layout"),
    [
        (torch.bfloat16, True, False, channels_last), (torch.float16, False, True, channels_last),
        (torch.bfloat16, True, True, Tensor.contiguous), (torch.float16, False, False, Tensor.contiguous),
    ],
    ids=["channels_last", "channels_last-positions_last", "contiguous-taps_last", "contiguous"],
)  # fmt: skip
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference(
    case: tuple[Any, ...], dtype: torch.dtype, taps_last: bool, is_default: bool, layout: Callable[[Tensor], Tensor]
) -> None:
    """Every number is written, and within the tolerance of its dtype."""
    spec, tensors = make(case, dtype, taps_last, layout)
    x, weight = (tensors[name].double().requires_grad_() for name in ("x", "weight"))
    y = naive.aggregate(x, weight, spec)
    expected = (y, *torch.autograd.grad(y, (x, weight), tensors["grad_y"].double()))
    tile = None if is_default else Tile(case[3], case[4])
    for (launch, written, _), wanted in zip(launches(spec, tensors, tile).values(), expected, strict=True):
        launch.run(written.device)
        assert relative_error(written, wanted.detach().cpu()) <= TOLERANCE[dtype], launch.kernel


@pytest.mark.skipif(DEVICE != "cpu", reason="counts what the interpreter loads and stores")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_cut_knows_what_its_launch_asks_for(case: tuple[Any, ...]) -> None:
    spec, tensors = make(case, torch.float16, True)
    for launch, _, cut in launches(spec, tensors, Tile(case[3], case[4])).values():
        counted = traffic.requested_bytes(launch)
        by_tensor = {name.removesuffix("_ptr"): count for name, count in (counted.loaded + counted.stored).items()}
        assert by_tensor == +cut.asked(2, 2), cut


def test_what_it_takes() -> None:
    """Nothing that its kernels would get wrong; the plain kernels take the rest."""
    window = Window(3, 1, 1, 1)

    def takes(
        C: int = 16, G: int = 1, window: Window = window, dtype: torch.dtype = torch.bfloat16, **t: Tensor
    ) -> bool:
        x = channels_last(torch.zeros(1, C, 4, 4, dtype=dtype))
        weight = torch.zeros(1, G, window.K**2, 4, 4, dtype=dtype)
        return banded_launching.takes(t.get("x", x), t.get("weight", weight), t.get("y", x), window)

    assert takes()
    assert takes(window=Window(7, 1, 2, 6))
    assert not takes(dtype=torch.float32)
    assert not takes(C=48)
    assert not takes(G=8)
    for other in ((9, 1, 1, 4), (3, 3, 1, 1), (3, 2, 2, 2), (1, 2, 1, 0), (3, 1, 1, 0)):
        assert not takes(window=Window(*other)), other
    contiguous = torch.zeros(1, 16, 4, 4, dtype=torch.bfloat16)
    assert takes(x=contiguous, y=contiguous) == banded_launching.TAKES_NEIGHBOURS
    assert not takes(x=contiguous)
    assert not takes(y=contiguous)
    assert not takes(x=torch.zeros(1, 4, 16, 8, dtype=torch.bfloat16).permute(0, 2, 3, 1)[..., ::2])
    assert not takes(weight=torch.zeros(1, 1, 9, 4, 4, dtype=torch.float16))
    huge = torch.empty_strided((1, 16, 4, 4), (2**33, 1, 2**30, 16), dtype=torch.bfloat16, device="meta")
    assert not takes(x=huge)
