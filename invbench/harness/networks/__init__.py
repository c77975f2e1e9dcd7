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
        """The rows, regime by regime: each network by each backend, and its ceiling. Only inference is deployed, and of
        networks that can be."""
        return [
            NetworkSubject(model, backend, regime)
            for regime in Regime
            for model in self.networks()
            for backend in ((*self.backends, FREE) if self.model(model).has_involution else (TORCH,))
            if regime is Regime.EAGER or (mode is Mode.FORWARD and self.model(model).is_compiled)
        ]

    def baselines(self, mode: Mode) -> dict[str, str]:
        """The label of each row's baseline in its regime, by label; a network with involution by the first backend.

        A row whose baseline is not measured in its regime is its own.
        """
        subjects = self.subjects(mode)
        labels = {subject.label for subject in subjects}
        found = {}
        for subject in subjects:
            base = self.baseline_of(subject.model)
            backend = self.backends[0] if self.model(base).has_involution else TORCH
            label = NetworkSubject(base, backend, subject.regime).label
            found[subject.label] = label if label in labels else subject.label
        return found


Size = tuple[int, int]


def points_of(
    case: NetworkCase,
    settings: NetworkSettings,
    images: Sequence[int],
    sizes: Sequence[Size] | None,
    modes: Sequence[Mode],
) -> list[tuple[NetworkCase, NetworkSettings]]:
    """The points of a comparison, and which networks each has: those that take its images.

    case: what all share. images: numbers in the batch. sizes: heights and widths, for networks that take several; None
    for each network's usual one. Networks that take one size have a point at that.

    Raises InvbenchError where a network or its baseline does not take images of a size that was asked for.
    """
    found: dict[Size, list[str]] = {}
    for name in settings.models:
        own = settings.model(name).images
        for size in [own.usual] if sizes is None or own.side is not None else sizes:
            _require_images(settings, name, size)
            found.setdefault(size, []).append(name)
    return [
        (replace(case, N=N, H=H, W=W, mode=mode), replace(settings, models=tuple(models)))
        for mode in modes
        for N in images
        for (H, W), models in found.items()
    ]


def _require_images(settings: NetworkSettings, name: str, size: Size) -> None:
    """Refuse images that a network or its baseline does not take."""
    own, base = settings.model(name).images, settings.baseline_of(name)
    theirs = settings.model(base).images
    got = f"{size[0]}x{size[1]}"
    if not own.takes(*size):
        raise InvbenchError(
            f"--image-size: {name} takes images of {own.range}: got {got}; choose another, or leave it out"
        )
    if own.channels != theirs.channels:
        raise InvbenchError(
            f"{name} takes images of {own.channels} channel(s) and its baseline {base} of {theirs.channels}; "
            "choose another --baseline"
        )
    if not theirs.takes(*size):
        raise InvbenchError(
            f"{base}, the baseline of {name}, takes images of {theirs.range}: got {got}; choose another --baseline or "
            "--image-size"
        )


def require_trainable(case: NetworkCase, settings: NetworkSettings) -> None:
    """Refuse a training step in which a batch norm would have one position to normalise."""
    if case.mode is not Mode.TRAIN:
        return
    for name in settings.networks():
        images = settings.model(name).images
        stride = images.coarsest
        if stride and case.N * -(-case.H // stride) * -(-case.W // stride) < 2:
            raise InvbenchError(
                f"mode train needs more than one position in the coarsest map of {name} for its batch norms: got "
                f"N={case.N} and images of {case.H}x{case.W}; use a larger --N, or --image-size {stride + 1} or more"
            )
        if images.batch > case.N:
            raise InvbenchError(
                f"mode train of {name} needs at least {images.batch} images for the batch norm of its pooled map: got "
                f"N={case.N}; use --N {images.batch}"
            )
