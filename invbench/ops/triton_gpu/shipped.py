"""The kernels as they are shipped: their launches at RedNet-50's stages, for GPUs that need not be there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from invbench.ops.fused import Generator, Norm, Reducer
from invbench.ops.library import Window, empty_weight
from invbench.ops.triton_gpu import aggregate_launching, banded_launching, span_launching
from invbench.ops.triton_gpu.aggregate_traffic import asked
from invbench.ops.triton_gpu.compiling import Target
from invbench.ops.triton_gpu.launching import Launch
from invbench.ops.triton_gpu.reduce_kernel import reduce_launch
from invbench.ops.triton_gpu.tiling import (
    BANDED,
    BANDED_FORWARD,
    BANDED_GRAD_X,
    FORWARD,
    GRAD_HIDDEN,
    GRAD_SPAN,
    GRAD_X,
    KERNELS,
    Chip,
    Cut,
    Problem,
    default_cut,
    shares_of,
)  # fmt: skip
from invbench.spec import DTYPES


@dataclass(frozen=True, slots=True)
class Stage:
    """The involution of one stage of RedNet-50 on 256 images of 224x224: C channels of HxH in G groups, 7x7 taps."""

    C: int
    H: int
    G: int

    @property
    def pairs(self) -> int:
        """(position, group) pairs of the whole batch."""
        return 256 * self.H**2 * self.G

    def __str__(self) -> str:
        return f"{self.C}x{self.H}x{self.H}/{self.G}"


WINDOW = Window(7, 1, 1, 3)
# An A100, an H100 or H200, a B200, an MI300X.
CHIPS: dict[Target, Chip] = {
    80: Chip(108, 32, 80),
    90: Chip(132, 32, 90),
    100: Chip(148, 32, 100),
    "gfx942": Chip(304, 64, 0),
}
STAGES = (Stage(64, 56, 4), Stage(128, 28, 8), Stage(256, 14, 16), Stage(512, 7, 32))


@dataclass(frozen=True, slots=True)
class Configuration:
    """A kernel as it is shipped: its ``launch`` for a dtype, a stage and a target, and the ``trips`` of that launch's
    loops, None where they are not known; ``dtypes`` that it takes; ``tiled``, its name in ``tiling``, if it has one;
    ``asked``, of a launch that is not tiled the bytes it asks of memory."""

    name: str
    launch: Callable[[torch.dtype, Stage, Target], Launch]
    trips: Callable[[Launch], Sequence[float] | None]
    dtypes: tuple[str, ...] = DTYPES
    tiled: str = ""
    asked: Callable[[Launch], dict[str, int]] | None = None

    def asked_over_least(self, dtype: torch.dtype, stage: Stage, target: Target) -> float | None:
        """The bytes that the launch asks for, over the fewest that would do: each number once, parameters left out.

        None where there is no model of it.
        """
        if self.asked:
            launch = self.launch(dtype, stage, target)
            tensors = (argument for argument in launch.arguments if isinstance(argument, Tensor))
            return sum(self.asked(launch).values()) / sum(tensor.nbytes for tensor in tensors)
        if not self.tiled:
            return None
        cut, size = _cut(self.tiled, stage, target), dtype.itemsize
        made = stage.G * WINDOW.K**2 if self.tiled in BANDED else stage.C // 4
        least = 256 * stage.H**2 * (2 * stage.C + made) * size
        return sum(cut.asked(size, size, shares_of(cut)).values()) / least


def _cut(kernel: str, stage: Stage, target: Target) -> Cut:
    r = 0 if kernel in BANDED else stage.C // 4
    return default_cut(kernel, Problem(256, stage.C, *(stage.H,) * 4, stage.G, r, WINDOW), CHIPS[target])


def _image(stage: Stage, C: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(256, C, stage.H, stage.H, dtype=dtype, device="meta", memory_format=memory_format)


def _aggregate_launch(kernel: str, channels_last: bool, dtype: torch.dtype, stage: Stage, _: Target) -> Launch:
    image = _image(stage, stage.C, dtype, channels_last)
    weight = empty_weight(image, stage.G, 49, channels_last)
    if kernel == "forward":
        return aggregate_launching.forward_launch(image, weight, image, WINDOW)
    if kernel == "grad_x":
        return aggregate_launching.grad_x_launch(image, weight, image, WINDOW)
    return aggregate_launching.grad_weight_launch(image, image, weight, WINDOW)


def _aggregate_trips(kernel: str, launch: Launch) -> tuple[int, ...]:
    """A loop over the taps across the runs; grad_weight has one over vectors of channels in it."""
    constants = launch.constants
    vectors = constants["GROUP_CHANNELS"] // (constants["PARTS"] * constants["BLOCK_C"])
    return (constants["K"], vectors) if kernel == "grad_weight" else (constants["K"],)


def _span_launch(kernel: str, dtype: torch.dtype, stage: Stage, target: Target) -> Launch:
    image, hidden = _image(stage, stage.C, dtype, True), _image(stage, stage.C // 4, dtype, True)
    span = torch.empty(stage.G * 49, stage.C // 4, dtype=dtype, device="meta")
    generator = Generator(span, span[:, 0].contiguous(), stage.G)
    cut = _cut(kernel, stage, target)
    if kernel == FORWARD:
        return span_launching.forward_launch(image, hidden, generator, image, WINDOW, cut)
    if kernel == GRAD_X:
        return span_launching.grad_x_launch(image, hidden, generator, image, WINDOW, cut)
    if kernel == GRAD_HIDDEN:
        return span_launching.grad_hidden_launch(image, image, generator, hidden, WINDOW, cut)
    return span_launching.grad_span_launch(image, image, hidden, generator, hidden, WINDOW, cut=cut)[0]


def _banded_launch(
    kernel: str, channels_last: bool, taps_last: bool, dtype: torch.dtype, stage: Stage, target: Target
) -> Launch:
    image = _image(stage, stage.C, dtype, channels_last)
    weight = empty_weight(image, stage.G, 49, taps_last)
    cut = _cut(kernel, stage, target)
    if kernel == BANDED_FORWARD:
        return banded_launching.forward_launch(image, weight, image, WINDOW, cut)
    if kernel == BANDED_GRAD_X:
        return banded_launching.grad_x_launch(image, weight, image, WINDOW, cut)
    return banded_launching.grad_weight_launch(image, image, weight, WINDOW, cut)


def _rows_walked(kernel: str, launch: Launch) -> tuple[int]:
    """Trips of the loop over rows."""
    rows: Any = launch.named["ROWS"]
    more = launch.constants.get("EACH", WINDOW.K) - 1
    return (rows + more if kernel in (GRAD_X, BANDED_GRAD_X) else rows // launch.constants.get("AT_ONCE", 1),)


def _span_trips(kernel: str, launch: Launch) -> tuple[int, ...]:
    """A loop over images or tiles, and one over rows; over rows alone; or over blocks of units."""
    named: dict[str, Any] = launch.named
    if kernel == GRAD_HIDDEN:
        return (int(named["unit_blocks"]),)
    around = {FORWARD: ("IMAGES",), GRAD_SPAN: ("tiles_each",)}.get(kernel, ())
    return (*(int(named[name]) for name in around), *_rows_walked(kernel, launch))


def _reduce_launch(dtype: torch.dtype, stage: Stage, _: Target) -> Launch:
    weight = torch.empty(stage.C // 4, stage.C, dtype=dtype, device="meta")
    norm = Norm(*(weight[:, 0].contiguous(),) * 4, 1e-5)
    hidden = _image(stage, stage.C // 4, dtype, channels_last=True)
    return reduce_launch(_image(stage, stage.C, dtype, channels_last=True), Reducer(weight, None, norm, True), hidden)


DTYPES_16 = ("float16", "bfloat16")
SHIPPED = (
    *(
        Configuration(
            f"{kernel} {'channels_last' if channels_last else 'contiguous'}",
            partial(_aggregate_launch, kernel, channels_last),
            trips=partial(_aggregate_trips, kernel),
            asked=asked,
        )
        for kernel, channels_last in product(("forward", "grad_x", "grad_weight"), (True, False))
    ),
    *(
        Configuration(
            f"banded {kernel}, {'channels_last' if channels_last else 'contiguous'}"
            + (", taps last" if taps_last else ""),
            partial(_banded_launch, kernel, channels_last, taps_last),
            partial(_rows_walked, kernel),
            DTYPES_16,
            tiled=kernel,
        )
        for kernel, channels_last, taps_last in product(BANDED, (True, False), (True, False))
        if channels_last or taps_last or kernel != BANDED_GRAD_X
        if banded_launching.TAKES_NEIGHBOURS or (channels_last and (taps_last or kernel != BANDED_FORWARD))
    ),
    *(
        Configuration(f"span {kernel}", partial(_span_launch, kernel), partial(_span_trips, kernel), DTYPES_16, kernel)
        for kernel in KERNELS
    ),
    # The compiler overlaps the iterations of its loop as it likes.
    Configuration("reduce", _reduce_launch, lambda _: None, DTYPES_16),
)
