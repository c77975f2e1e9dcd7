"""What is timed, whatever it computes: one call of a function on its inputs, in a mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invbench.harness.clock import Clock
from invbench.spec import InvbenchError, Mode

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
NEGLIGIBLE = 1e-3


class Step:
    """A function and its inputs, ready to be called in a mode.

    ``before`` and ``timed`` are the two halves of one measured call: for mode ``backward`` the forward pass happens
    in ``before``, outside the clock. ``context`` is to be entered around calls.

    differentiated: whose gradients are computed, in modes other than ``forward``. grad_y: the gradient of the output.
    autocast: the type in which torch.autocast computes, if it does.
    """

    autocast: torch.dtype | None = None

    def __init__(
        self,
        mode: Mode,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        differentiated: Sequence[Tensor] = (),
        grad_y: Tensor | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.autocast = autocast
        self.mode, self.function, self.inputs = mode, function, list(inputs)
        self.differentiated, self.grad_y = list(differentiated), grad_y

    def context(self) -> AbstractContextManager[Any]:
        """Inference mode for forward, nothing otherwise."""
        return torch.inference_mode() if self.mode is Mode.FORWARD else nullcontext()

    def forward(self) -> Tensor:
        """The function of the inputs; autocast is entered for each call, since it keeps what it casts until it ends."""
        if self.autocast is None:
            return self.function(*self.inputs)
        with torch.autocast(self.inputs[0].device.type, self.autocast):
            return self.function(*self.inputs)

    def before(self) -> Tensor | None:
        """What one call needs and the clock does not see: the forward pass of mode ``backward``."""
        return self.forward() if self.mode is Mode.BACKWARD else None

    def timed(self, y: Tensor | None) -> Sequence[Tensor]:
        """One call of the timed mode: [y], or the gradients."""
        if self.mode is Mode.FORWARD:
            return [self.forward()]
        y = self.forward() if y is None else y
        grad_y = None if self.grad_y is None else self.grad_y.to(y.dtype)
        return torch.autograd.grad(y, self.differentiated, grad_y)

    def call(self) -> Sequence[Tensor]:
        """One whole call, as a user would make it."""
        with self.context():
            return self.timed(self.before())

    def results(self) -> list[Tensor]:
        """All that can be right or wrong: y and, unless the mode is ``forward``, the gradients."""
        with self.context():
            y = self.forward()
            if not isinstance(y, Tensor):
                raise InvbenchError(f"an operator returns one tensor: got {type(y).__name__}; return y alone")
            return [y.detach(), *(self.timed(y) if self.differentiated else ())]

    def sampler(self, clock: Clock) -> Callable[[int], float]:
        """Seconds per call by a clock, averaged over the number of calls given."""

        def sample(calls: int) -> float:
            with self.context():
                if self.mode is not Mode.BACKWARD:
                    return clock.sample(self.before, self.timed, calls)
                # A graph can be walked once, so each call brings its own forward pass.
                return sum(clock.sample(self.before, self.timed, 1) for _ in range(calls)) / calls

        return sample


def random_normal(
    size: tuple[int, ...], seed: int, device: str | torch.device, dtype: str, layout: str = "contiguous"
) -> Tensor:
    """Random normal numbers, the same bits for every subject of a seed."""
    generator = torch.Generator(device).manual_seed(seed)
    values = torch.randn(size, generator=generator, device=device)
    return values.to(getattr(torch, dtype)).contiguous(memory_format=MEMORY_FORMATS[layout])


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest difference from the reference, relative to its largest value or its norm, and what it may be."""

    relative: float
    tolerance: float

    @property
    def share(self) -> float:
        """The part of the tolerance that is used."""
        return self.relative / self.tolerance

    @property
    def is_close(self) -> bool:
        """Whether the subject may be timed; never if anything is NaN."""
        return self.relative <= self.tolerance


def reference_device(device: str) -> str:
    """Where the float64 reference of what runs on a device is computed: only CUDA is known to have that type."""
    return device if torch.device(device).type == "cuda" else "cpu"


def precision_of(device: str, dtype: str) -> str:
    """The type whose tolerances hold where there are convolutions: cuDNN may round the inputs of float32 ones to TF32's
    ten bits, as PyTorch allows by default."""
    on_cuda = torch.device(device).type == "cuda"
    return "float16" if on_cuda and dtype == "float32" and torch.backends.cudnn.allow_tf32 else dtype


def largest_difference(output: Tensor, reference: Tensor) -> float:
    """The largest difference, as a share of the reference's largest value."""
    difference = (output.to(reference.device, torch.float64) - reference).abs().max().item()
    return _relative(difference, reference.abs().max().item())


def norm_difference(output: Tensor, reference: Tensor) -> float:
    """The Euclidean norm of the difference, as a share of the reference's."""
    difference = (output.to(reference.device, torch.float64) - reference).norm().item()
    return _relative(difference, reference.norm().item())


def gradient_differences(outputs: Sequence[Tensor], references: Sequence[Tensor]) -> Iterator[float]:
    """The differences of gradients in Euclidean norm, each as a share of the reference's norm.

    A bias before a batch norm or a softmax has no gradient but rounding: where the numbers of one are below
    ``NEGLIGIBLE`` of the largest others', on average, that is the measure.
    """
    sizes = [(reference.norm() / max(1, reference.numel()) ** 0.5).item() for reference in references]
    least = NEGLIGIBLE * max(sizes, default=0.0)
    for output, reference, size in zip(outputs, references, sizes, strict=True):
        share = norm_difference(output, reference)
        yield share * size / least if 0 < size < least else share


def _relative(difference: float, scale: float) -> float:
    return difference / scale if scale else difference
