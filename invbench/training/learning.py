"""One network that learns: built from a seed, trained an epoch at a time, validated.

What an epoch does depends on its number, the seed and the network, and on nothing that ran before it but the weights:
the order of the images and the dropout are drawn anew from these. So neither the other networks between its epochs nor
a new process after some of them change a bit of what is learned.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.harness.blocks import no_garbage_collection
from invbench.harness.clock import Clock
from invbench.harness.steps import MEMORY_FORMATS, Step, random_normal
from invbench.models import SUBJECTS, create
from invbench.spec import InvbenchError, Mode, TrainingCase
from invbench.training import TrainingSubject
from invbench.training.data_sets import Images


class DivergedError(InvbenchError):
    """A network's training loss is no number any more."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Images on the device, in the type and layout of the case: x [n, C, H, W], y [n]."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor

    @classmethod
    def of(cls, images: Images, case: TrainingCase) -> Data:
        """The images where they are needed."""

        def placed(x: Tensor) -> Tensor:
            x = x.to(case.device, getattr(torch, case.dtype))
            return x.contiguous(memory_format=MEMORY_FORMATS[case.layout])

        return cls(
            placed(images.train_x), images.train_y.to(case.device),
            placed(images.validation_x), images.validation_y.to(case.device),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Epoch:
    """What came of one epoch.

    loss: the mean of the training loss over all images. accuracy: of validation, in percent. steps: seconds of each
    step with a whole batch. seconds: of all steps. capped, spoiled: as in ``blocks.Slowdown``.
    """

    loss: float
    accuracy: float
    steps: tuple[float, ...]
    seconds: float
    capped: bool | None = None
    spoiled: bool | None = None


class Learner:
    """A network, its optimiser, and the epochs behind it."""

    def __init__(self, subject: TrainingSubject, case: TrainingCase, seed: int, learning_rate: float) -> None:
        self.subject, self.case, self.seed = subject, case, seed
        self.network = build(subject.model, subject.backend, case, seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        self.history: list[Epoch] = []

    def train(
        self, data: Data, clock: Clock, progress: Callable[[float], None] = lambda _: None
    ) -> tuple[float, list[float], float]:
        """One epoch, the next one: the mean loss, the seconds of each step with a whole batch, and of all steps.

        progress: told the share that is done, outside the clock. Raises DivergedError if the loss is no number.

        A step is timed alone, from gradients of nothing to new weights; gathering its images is not part of it. The
        last batch has what is left, and its shorter step counts in the sum only.
        """
        number, count, N = len(self.history), len(data.train_y), self.case.N
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_of("images", self.seed, number)))
        batches = order.to(data.train_y.device).split(N)
        seconds: list[float] = []
        losses: list[Tensor] = []

        def gathered() -> tuple[Tensor, Tensor]:
            chosen = batches[len(losses)]
            return data.train_x[chosen], data.train_y[chosen]

        self.network.train()
        with (
            own_randomness(self.case.device, "dropout", self.seed, number, self.subject.model),
            no_garbage_collection(),
        ):
            while len(losses) < len(batches):
                seconds.append(clock.sample(gathered, lambda batch: losses.append(self.step(*batch)), 1))
                progress(len(losses) / len(batches))
        shares = [len(batch) / count for batch in batches]
        loss = sum(share * loss for share, loss in zip(shares, torch.stack(losses).tolist(), strict=True))
        if not math.isfinite(loss):
            raise DivergedError(
                f"the training loss became {loss} in epoch {number + 1} of {self.case.epochs} (seed {self.seed}); "
                "try another --seed, or --dtype float64"
            )
        return loss, [each for each, batch in zip(seconds, batches, strict=True) if len(batch) == N], sum(seconds)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One training step on images x [N, C, H, W] of classes y [N]; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.network(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def validate(self, data: Data) -> float:
        """The accuracy on the validation images, in percent; in batches of N, as many as training has room for."""
        self.network.eval()
        right = torch.zeros((), dtype=torch.int64, device=data.validation_y.device)
        with torch.inference_mode():
            for x, y in zip(data.validation_x.split(self.case.N), data.validation_y.split(self.case.N), strict=True):
                right += (self.network(x).argmax(1) == y).sum()
        return 100 * int(right) / len(data.validation_y)

    def state(self) -> dict[str, Any]:
        """All that the next epoch needs, and what came of those before it: tensors and plain numbers."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(epoch) for epoch in self.history],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where another was."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = history_of(state)


def history_of(state: Mapping[str, Any]) -> list[Epoch]:
    """The epochs that a learner's state has behind it."""
    return [Epoch(**{**epoch, "steps": tuple(epoch["steps"])}) for epoch in state["history"]]


def build(model: str, backend: str, case: TrainingCase, seed: int) -> nn.Module:
    """A network with random parameters, the same bits for all backends and devices."""
    with own_randomness("cpu", "parameters", seed, model):
        network = create(model, backend=backend if SUBJECTS[model].has_involution else "auto")
    where: dict[str, Any] = {"device": case.device, "dtype": getattr(torch, case.dtype)}
    where["memory_format"] = MEMORY_FORMATS[case.layout]  # not in torch's stubs
    return network.to(**where)


class Loss(nn.Module):
    """A network and what follows it in training: the loss of images x [N, C, H, W] whose classes are y [N]."""

    def __init__(self, network: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("y", y)

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        return F.cross_entropy(self.network(x), self.get_buffer("y"))


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A row whose memory is wanted (``memory.Job``): all that a process of its own needs to make it anew.

    The step ends with the gradients: what Adam keeps besides is twice the parameters, and there before and after.
    """

    subject: TrainingSubject
    case: TrainingCase
    seed: int
    timeout: float = 900.0  # torch.compile may take minutes of it

    @property
    def threads(self) -> int:
        """CPU threads of the case."""
        return self.case.threads

    def step(self) -> Step:
        """Forward, loss and backward of one batch, ready to be called."""
        network = build(self.subject.model, self.subject.backend, self.case, self.seed).train()
        x, y = random_batch(self.case, self.subject.model, self.case.N, self.seed)
        return Step(Mode.TRAIN, Loss(network, y), [x], list(network.parameters()))


def random_batch(case: TrainingCase, model: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random normal images [count, C, H, W] for a network, and random classes [count]."""
    size = (count, SUBJECTS[model].images.channels, case.H, case.W)
    x = random_normal(size, seed, case.device, case.dtype, case.layout)
    generator = torch.Generator().manual_seed(seed)
    return x, torch.randint(SUBJECTS[model].classes, (count,), generator=generator).to(case.device)


def seed_of(*what: object) -> int:
    """A seed for one purpose, unlike those for all others."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8]) >> 1


@contextmanager
def own_randomness(device: str, *what: object) -> Iterator[None]:
    """Inside, torch's random numbers are those of one purpose; afterwards they go on as before on CPU and CUDA."""
    place = torch.device(device)
    index: int | None = place.index
    devices = [torch.cuda.current_device() if index is None else index] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*what))
        yield
