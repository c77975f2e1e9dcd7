"""Whole networks: what is compared and how; no torch, so that a slip of the finger is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from invbench.harness.blocks import Budget
from invbench.models import SUBJECTS
from invbench.spec import FREE, InvbenchError, Mode, NetworkCase, Regime

TORCH = "torch"


@dataclass(frozen=True, slots=True)
class NetworkSubject:
    """What one row measures: a network of ``SUBJECTS``, the backend of its involutions, and how it is run.

    backend: "torch" where there is no involution, "free" where every involution is the identity.
    """

    model: str
    backend: str
    regime: Regime

    @property
    def label(self) -> str:
        """One name for progress and errors."""
        return f"{self.model if self.backend == TORCH else f'{self.model} ({self.backend})'}, {self.regime}"


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """How networks are measured; stored with the results.

    backends: of the involutions, by name. asked_for: those that the user named. baseline: what all ratios are to; None
    for each network's counterpart. breakdown: whether to look where the time of a call goes.
    """

    models: tuple[str, ...]
    backends: tuple[str, ...]
    asked_for: tuple[str, ...] = ()
    baseline: str | None = None
    budget: Budget = field(default_factory=Budget)
    cache: str = "hot"
    clock: str = "eager"
    seed: int = 0
    autotune: bool = True
    breakdown: bool = False

    def baseline_of(self, model: str) -> str:
        """What a network's ratio is to."""
        return self.baseline or SUBJECTS[model].counterpart

    def networks(self) -> list[str]:
        """The networks, and the baselines that are not among them, each once."""
        return list(dict.fromkeys([*self.models, *map(self.baseline_of, self.models)]))

    def subjects(self, mode: Mode) -> list[NetworkSubject]:
        """The rows, regime by regime: each network by each backend, and its ceiling. Only inference is deployed."""
        regimes = tuple(Regime) if mode is Mode.FORWARD else (Regime.EAGER,)
        return [
            NetworkSubject(model, backend, regime)
            for regime in regimes
            for model in self.networks()
            for backend in ((*self.backends, FREE) if SUBJECTS[model].has_involution else (TORCH,))
        ]

    def baselines(self, mode: Mode) -> dict[str, str]:
        """The label of each row's baseline in its regime, by label; a network with involution by the first backend."""
        found = {}
        for subject in self.subjects(mode):
            base = self.baseline_of(subject.model)
            backend = self.backends[0] if SUBJECTS[base].has_involution else TORCH
            found[subject.label] = NetworkSubject(base, backend, subject.regime).label
        return found


def require_trainable(case: NetworkCase) -> None:
    """Refuse a training step whose last batch norms would have one position to normalise."""
    positions = case.N * -(-case.H // 32) * -(-case.W // 32)  # the last stage's side is a 32nd
    if case.mode is Mode.TRAIN and positions < 2:
        raise InvbenchError(
            "mode train needs more than one position in the last stage for its batch norms: "
            f"got N={case.N} and images of {case.H}x{case.W}; use a larger --N, or --image-size 33 or more"
        )
