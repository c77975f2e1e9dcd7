"""What the plain kernels ask of memory, told from a launch: bytes as ``traffic`` counts them, an element each time.

Forward and grad_x load nothing outside the image, grad_weight what lies nearest to it. Of lines that a block has and
the batch has not, forward loads the last image's weights, and grad_weight the last images.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import triton

from invbench.ops.triton_gpu.aggregate_grad_weight import grad_weight_kernel
from invbench.ops.triton_gpu.aggregate_kernels import grad_x_kernel
from invbench.ops.triton_gpu.launching import Launch


def asked(launch: Launch) -> dict[str, int]:
    """Bytes that the launch loads and stores, by the kernel's names for its tensors."""
    count = {grad_x_kernel: _grad_x, grad_weight_kernel: _grad_weight}.get(launch.kernel, _forward)
    named: dict[str, Any] = {**launch.named, **launch.constants}
    return {name: elements * named[name].element_size() for name, elements in count(named).items()}


def _forward(named: dict[str, Any]) -> dict[str, int]:
    places = [place for start in _starts(named) for place in _places(named, start)]
    x = named["N"] * _channels(named) * len(places) * _across_inside(named)
    weight = named["G"] * _blocks(named) * _lines(named, "B_out") * named["K"] * sum(places)
    return {"x_ptr": x, "weight_ptr": weight, "y_ptr": named["y_ptr"].numel()}


def _grad_x(named: dict[str, Any]) -> dict[str, int]:
    along: dict[tuple[int, int], int] = {}
    for a in range(named["runs"] * named["RUN"]):
        for i in _outputs(named, a, "A_out"):
            run_and_output = a // named["RUN"], i
            along[run_and_output] = along.get(run_and_output, 0) + 1
    across = sum(len(_outputs(named, b, "B_out")) for b in range(named["B"]))
    grad_y = named["N"] * _channels(named) * len(along) * across
    weight = named["N"] * named["G"] * _blocks(named) * sum(along.values()) * across
    return {"grad_y_ptr": grad_y, "weight_ptr": weight, "grad_x_ptr": named["grad_x_ptr"].numel()}


def _grad_weight(named: dict[str, Any]) -> dict[str, int]:
    lines = _lines(named, "B_out") * named["runs"] * named["K"] * len(_starts(named)) * _channels(named)
    x, grad_y = lines * named["MET"].bit_count(), lines * named["RUN"]
    return {"x_ptr": x, "grad_y_ptr": grad_y, "grad_weight_ptr": named["grad_weight_ptr"].numel()}


def _channels(named: dict[str, Any]) -> int:
    return int(named["G"] * named["GROUP_CHANNELS"])


def _blocks(named: dict[str, Any]) -> int:
    """Blocks of channels of a group."""
    return int(triton.cdiv(named["GROUP_CHANNELS"], named["PARTS"] * named["BLOCK_C"]))


def _lines(named: dict[str, Any], size: str) -> int:
    """Lines of all blocks."""
    return int(triton.cdiv(named["N"] * named[size], named["BLOCK"]) * named["BLOCK"])


def _starts(named: dict[str, Any]) -> range:
    return range(0, named["K"], named["TAPS"])


def _places(named: dict[str, Any], start: int) -> list[int]:
    """Of each place along the image that a run loads for its taps from ``start`` on: how many weights it meets."""
    met: dict[tuple[int, int], int] = {}
    for run, p, u in product(range(named["runs"]), range(named["RUN"]), range(start, start + named["TAPS"])):
        a = min(run * named["RUN"], named["A_out"] - named["RUN"]) + p
        place = a * named["STRIDE"] + u * named["DILATION"] - named["padding"]
        if 0 <= place < named["A"]:
            met[run, place] = met.get((run, place), 0) + 1
    return list(met.values())


def _across_inside(named: dict[str, Any]) -> int:
    """Pairs of a line's coordinate and a tap across that lands inside the image."""
    pairs = product(range(named["B_out"]), range(named["K"]))
    places = (b * named["STRIDE"] + v * named["DILATION"] - named["padding"] for b, v in pairs)
    return sum(0 <= place < named["B"] for place in places)


def _outputs(named: dict[str, Any], place: int, size: str) -> list[int]:
    """The output coordinates that read a place of the image."""
    scaled = (place + named["padding"] - tap * named["DILATION"] for tap in range(named["K"]))
    return [
        at // named["STRIDE"] for at in scaled if at % named["STRIDE"] == 0 and 0 <= at < named[size] * named["STRIDE"]
    ]
