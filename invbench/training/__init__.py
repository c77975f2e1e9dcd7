"""Small networks trained both ways, with involution and with convolution, and the images that they learn from.

No torch here, so that a slip of the finger is answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from invbench.models import SUBJECTS

TORCH = "torch"

# The two sides of a pair have in common: nothing, as in the report; parameters; multiply-adds. And the network that is
# trained beside the convolutional one, which is the same in all pairs.
PAIRS = {"report": "inv", "params": "inv-params", "macs": "inv-macs"}

# Networks of ``SUBJECTS`` that learn from a data set, where they are not called like it: scikit-learn's digits are made
# as large as MNIST's.
FAMILIES = {"digits": "mnist"}

# The report's epochs and batches. It does not tell the epochs of Fashion-MNIST, which are MNIST's here. Digits are few,
# so that an epoch is short: the report's pair comes about as far in 30 of them as with MNIST.
EPOCHS = {"digits": 30, "mnist": 15, "fashion-mnist": 15, "cifar10": 10}
BATCHES = {"digits": 128, "mnist": 128, "fashion-mnist": 128, "cifar10": 256}

# Half types lose small gradients, or small changes of large weights, without a scaling that the report does not have.
DTYPES = ("float32", "float64")


@dataclass(frozen=True, slots=True)
class TrainingSubject:
    """What one row trains: a network of ``SUBJECTS``, and the backend of its involutions.

    backend: "torch" where there is no involution. pair: what it has in common with the other side; of the side that is
    in several pairs, joined by commas.
    """

    model: str
    backend: str
    pair: str

    @property
    def label(self) -> str:
        """One name for progress and errors."""
        return self.model if self.backend == TORCH else f"{self.model} ({self.backend})"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How networks are trained, besides what a ``TrainingCase`` says; stored with the results.

    backends: of the involutions, by name. asked_for: those that the user named. seeds: how many times all is trained;
    the first time with ``seed``, then with the numbers after it. learning_rate: of Adam, its default. autotune: whether
    cuDNN and the Triton kernels may choose by trying.
    """

    pairs: tuple[str, ...] = tuple(PAIRS)
    backends: tuple[str, ...] = ("auto",)
    asked_for: tuple[str, ...] = ()
    seeds: int = 1
    seed: int = 0
    learning_rate: float = 1e-3
    autotune: bool = True

    def all_seeds(self) -> range:
        """The seed of each time."""
        return range(self.seed, self.seed + self.seeds)

    def subjects(self, data_set: str) -> list[TrainingSubject]:
        """The rows: the convolutional network once, and for each pair the involutional one by each backend."""
        involutional = [
            TrainingSubject(f"{family_of(data_set)}-{PAIRS[pair]}", backend, pair)
            for pair in self.pairs
            for backend in self.backends
        ]
        return [TrainingSubject(baseline_of(data_set), TORCH, ",".join(self.pairs)), *involutional]


def family_of(data_set: str) -> str:
    """What the networks that learn from a data set are called."""
    return FAMILIES.get(data_set, data_set)


def baseline_of(data_set: str) -> str:
    """The convolutional network for a data set."""
    return SUBJECTS[f"{family_of(data_set)}-conv"].name


class Watcher(Protocol):
    """Told how training goes on; called between steps, never inside one."""

    def __call__(self, line: str) -> None:
        """What is being waited for before and after training."""

    def keep(self, line: str) -> None:
        """Something that stays to be read."""

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        """Training begins: of which networks, for how many epochs over all seeds, and how many each has behind it."""

    def step(self, label: str, share: float) -> None:
        """A network is as far as this in its epoch."""

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        """A network has an epoch more behind it: the mean training loss, the validation accuracy in percent."""

    def failed(self, label: str, reason: str) -> None:
        """A network is not trained any further."""


class Unwatched:
    """Nobody watches."""

    def __call__(self, line: str) -> None:
        """Nothing."""

    def keep(self, line: str) -> None:
        """Nothing."""

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        """Nothing."""

    def step(self, label: str, share: float) -> None:
        """Nothing."""

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        """Nothing."""

    def failed(self, label: str, reason: str) -> None:
        """Nothing."""
