"""Whole networks: what is compared and how; no torch, so that a slip of the finger is answered at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from invbench.harness.blocks import Budget
from invbench.models import Model, require_model
from invbench.spec import FREE, InvbenchError, Mode, NetworkCase, Regime

TORCH = "torch"


@dataclass(frozen=True, slots=True)
class NetworkSubject:
    """What one row measures: a network, the backend of its involutions, and how it is run.

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
    for each network's counterpart. breakdown: whether to look where the time of a call goes. custom: a user's networks.
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
    custom: tuple[Model, ...] = ()

    def model(self, name: str) -> Model:
        """A network of ours or the user's; raises InvbenchError if there is none of that name."""
        own = next((model for model in self.custom if model.name == name), None)
        return own or require_model(name)

    def baseline_of(self, name: str) -> str:
        """What a network's ratio is to."""
        return self.baseline or self.model(name).counterpart

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
            for backend in ((*self.backends, FREE) if self.model(model).has_involution else (TORCH,))
        ]

    def baselines(self, mode: Mode) -> dict[str, str]:
        """The label of each row's baseline in its regime, by label; a network with involution by the first backend."""
        found = {}
        for subject in self.subjects(mode):
            base = self.baseline_of(subject.model)
            backend = self.backends[0] if self.model(base).has_involution else TORCH
            found[subject.label] = NetworkSubject(base, backend, subject.regime).label
        return found


def points_of(
    case: NetworkCase, settings: NetworkSettings, images: Sequence[int], sizes: Sequence[int], modes: Sequence[Mode]
) -> list[tuple[NetworkCase, NetworkSettings]]:
    """The points of a comparison, and which networks each has: those that take its images.

    case: what all share. images: numbers in the batch. sizes: heights and widths, for networks that take any; others
    have a point at their own.

    Raises InvbenchError where a network and its baseline take different images.
    """
    for name in settings.models:
        base = settings.baseline_of(name)
        if settings.model(base).images != settings.model(name).images:
            raise InvbenchError(f"{name} and its baseline {base} take different images; choose another --baseline")
    sides: dict[int, list[str]] = {}
    for name in settings.models:
        own = settings.model(name).images.side
        for side in sizes if own is None else [own]:
            sides.setdefault(side, []).append(name)
    return [
        (replace(case, N=N, H=side, W=side, mode=mode), replace(settings, models=tuple(models)))
        for mode in modes
        for N in images
        for side, models in sides.items()
    ]


def require_trainable(case: NetworkCase, settings: NetworkSettings) -> None:
    """Refuse a training step whose last batch norms would have one position to normalise."""
    if not any(settings.model(name).suite == "imagenet" for name in settings.networks()):
        return
    positions = case.N * -(-case.H // 32) * -(-case.W // 32)  # the last stage's side is a 32nd
    if case.mode is Mode.TRAIN and positions < 2:
        raise InvbenchError(
            "mode train needs more than one position in the last stage for its batch norms: "
            f"got N={case.N} and images of {case.H}x{case.W}; use a larger --N, or --image-size 33 or more"
        )
