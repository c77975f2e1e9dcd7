"""Region features: what a two-stage detector's second stage sees of an image, on boxes that are known beforehand.

Which boxes a detector proposes depends on its weights, and how many; timing needs the same work for every backend and
type of number. So the boxes are drawn once from a seed, in proportion to the image, and are plain numbers. Each is on
one map of the pyramid (Lin et al., CVPR 2017, equation 1):

    level = clamp(floor(4 + log2(sqrt(w h) / 224)), 2, 5)

RoI-align (He et al., ICCV 2017; half a pixel off as in Detectron2's "aligned") divides a box into P x P bins, samples
the map at 2 x 2 places of each, bilinearly, and averages. mmdetection takes as many samples as a bin has pixels, which
differs from box to box; two a side is Detectron's number. Since the places are known, a bin is a sum of 16 pixels with
fixed weights, which is what an embedding bag computes, without anything in between in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = (2, 3, 4, 5)
SAMPLES = 2  # a side of a bin
LEAST_SIDE = 16.0  # of a box, in pixels: a quarter of that is left on the finest map
SEED = 20210310

TORCHVISION, OURS = "torchvision", "invbench"


@functools.lru_cache(maxsize=16)
def boxes(count: int, H: int, W: int) -> tuple[Tensor, ...]:
    """Boxes [count of the level, 4] by level, the finest first, as x1, y1, x2, y2 in pixels; float64 on the CPU.

    All are inside the image. The square root of the area is log-uniform between 16 pixels and the image's shorter side,
    or that side where it is smaller; width over height between 1/2 and 2, log-uniform; the place uniform.
    """
    generator = torch.Generator("cpu").manual_seed(SEED)
    size, shape, left, top = torch.rand(4, count, generator=generator, dtype=torch.float64, device="cpu")
    most = float(min(H, W))
    least = min(LEAST_SIDE, most)
    side = least * (most / least) ** size
    stretch = 2 ** (shape - 0.5)  # the square root of width over height
    width, height = (side * stretch).clamp(max=W), (side / stretch).clamp(max=H)
    x, y = left * (W - width), top * (H - height)
    found = torch.stack([x, y, (x + width).clamp(max=W), (y + height).clamp(max=H)], 1)
    level = levels(found)
    return tuple(found[level == each] for each in LEVELS)


def levels(found: Tensor) -> Tensor:
    """The level [R] of each of ``found`` [R, 4]."""
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    return torch.floor(4 + torch.log2(area.sqrt() / 224)).clamp(LEVELS[0], LEVELS[-1]).long()


def aligner(device: torch.device) -> str:
    """What computes RoI-align on a device: torchvision, where it is installed and the device is a GPU, or invbench.

    On the CPU torchvision's runs in one thread.
    """
    return TORCHVISION if device.type == "cuda" and _torchvision() is not None else OURS


class RegionFeatures(nn.Module):
    """Features of fixed boxes from a pyramid's four finest maps: [N * count, C, size, size] for each (count, size).

    wanted: the number of boxes of each image and P, bins a side, of each result. Rows are image by image, the boxes in
    order of their level. Sums are in float32 at least, as in mmdetection, where maps are float16 or bfloat16; the
    results have the maps' type again, and their memory format.
    """

    def __init__(self, *wanted: tuple[int, int]) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, maps: Sequence[Tensor], H: int, W: int) -> list[Tensor]:
        """The features of boxes in images of H x W pixels. maps: [N, C, H_l, W_l] at strides 4, 8, 16 and 32."""
        parts: list[list[Tensor]] = [[] for _ in self.wanted]
        for index, (level, x) in enumerate(zip(LEVELS, maps, strict=False)):
            source = _Torchvision(x) if aligner(x.device) == TORCHVISION else _Pixels(x)
            for found, (count, size) in zip(parts, self.wanted, strict=True):
                on_level = boxes(count, H, W)[index]
                if len(on_level):
                    found.append(source.align(on_level, 2.0**-level, size))
        form = _memory_format(maps[0])
        rows = (torch.cat(found, 1).flatten(0, 1) for found in parts)  # [N * count, size, size, C]
        return [each.movedim(-1, 1).contiguous(memory_format=form) for each in rows]

    def extra_repr(self) -> str:
        """For print(network)."""
        return ", ".join(f"{count} boxes of {size}x{size}" for count, size in self.wanted)


def _memory_format(x: Tensor) -> torch.memory_format:
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()  # one pixel is both
    return torch.channels_last if is_last else torch.contiguous_format


class _Pixels:
    """A map [N, C, H, W] ready to be sampled, any number of times: a row for each pixel."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.dtype = x.shape, x.dtype
        # Contiguous, since an embedding bag of strided rows is 25 times slower.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()  # [N * H * W, C]

    def align(self, found: Tensor, scale: float, size: int) -> Tensor:
        """The features [N, R, size, size, C] of boxes ``found`` [R, 4], float64 on the CPU, in each of the N images.

        scale: of the map to the image that the boxes are in. What is made of the boxes is kept for the next call with
        the same tensor.
        """
        N, _, H, W = self.shape
        pixels = self.pixels
        bins = _bins(_Boxes(found), scale, size, H, W, pixels.device, pixels.dtype)
        first = torch.arange(N, dtype=torch.int32, device=pixels.device) * (H * W)
        pixel = (first[:, None, None] + bins.pixel).flatten(0, 1)  # [N * R * size * size, 16]
        y: Tensor = F.embedding_bag(pixel, pixels, mode="sum", per_sample_weights=bins.weight.repeat(N, 1))
        return y.view(N, len(found), size, size, -1).to(self.dtype)


class _Torchvision:
    """The same by ``torchvision.ops.roi_align``."""

    def __init__(self, x: Tensor) -> None:
        self.dtype = x.dtype
        self.x = x.to(torch.promote_types(x.dtype, torch.float32))

    def align(self, found: Tensor, scale: float, size: int) -> Tensor:
        """As ``_Pixels.align``."""
        N = len(self.x)
        rois = _rois(_Boxes(found), N, self.x.device, self.x.dtype)
        y: Tensor = _torchvision()(self.x, rois, size, scale, SAMPLES, True)
        return y.view(N, len(found), *y.shape[1:]).movedim(2, -1).to(self.dtype)


@functools.cache
def _torchvision() -> Any:
    """torchvision's function, or None where there is none."""
    try:
        from torchvision.ops import roi_align as function
    except ImportError:
        return None
    return function


class _Boxes:
    """Boxes as a key: the same tensor is equal to itself."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Boxes) and self.values is other.values

    def __hash__(self) -> int:
        return id(self.values)


@dataclass(frozen=True)
class _Bins:
    """For each bin [R * size * size, 16]: which pixels of a map, rows first, int32, and what they weigh."""

    pixel: Tensor
    weight: Tensor


@functools.lru_cache(maxsize=64)
def _bins(found: _Boxes, scale: float, size: int, H: int, W: int, device: torch.device, dtype: torch.dtype) -> _Bins:
    # Also in inference mode these are tensors that a later training step may keep for its gradients.
    with torch.inference_mode(False):
        row, row_weight = _taps(found.values[:, 1] * scale, found.values[:, 3] * scale, size, H)
        column, column_weight = _taps(found.values[:, 0] * scale, found.values[:, 2] * scale, size, W)
        pixel = row[:, :, None, :, None] * W + column[:, None, :, None, :]  # [R, size, size, 4, 4]
        weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
        return _Bins(pixel.reshape(-1, 16).to(device, torch.int32), weight.reshape(-1, 16).to(device, dtype))


def _taps(start: Tensor, stop: Tensor, size: int, extent: int) -> tuple[Tensor, Tensor]:
    """Along one axis the four pixels of each bin and their weights, [R, size, 4] both: two samples, each between two.

    start, stop: of boxes [R] in pixels of the map, whose centres are at n + 1/2. A sample more than a pixel outside the
    map counts as 0, one less far is on its border.
    """
    samples = size * SAMPLES
    steps = (torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5) / samples
    place = start[:, None] - 0.5 + steps * (stop - start)[:, None]  # [R, samples]
    inside = (place >= -1) & (place <= extent)
    place = place.clamp(0, extent - 1)
    low = place.floor()
    share = place - low
    pixel = torch.stack([low, (low + 1).clamp(max=extent - 1)], -1).long()
    weight = torch.stack([1 - share, share], -1) * inside[..., None] / SAMPLES
    return pixel.view(-1, size, 2 * SAMPLES), weight.view(-1, size, 2 * SAMPLES)


@functools.lru_cache(maxsize=64)
def _rois(found: _Boxes, N: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Boxes as torchvision wants them: [N * R, 5], the image's number first."""
    with torch.inference_mode(False):
        count = len(found.values)
        image = torch.arange(N, dtype=found.values.dtype, device="cpu").repeat_interleave(count)
        return torch.cat([image[:, None], found.values.repeat(N, 1)], 1).to(device, dtype)
