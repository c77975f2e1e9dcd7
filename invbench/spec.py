"""The vocabulary shared by doing and telling: what an operator is, and what one measured point is.

Standard library only, so that reading a result file or printing help imports neither torch nor pandas.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = ("float32", "float16", "bfloat16", "float64")
AUTOCAST_DTYPES = ("bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")
CLOCKS = ("eager", "device")
CACHES = ("hot", "cold")
BASELINES = ("conv2d", "conv2d-3x3", "depthwise", "none")


class InvbenchError(ValueError):
    """Bad input, told to a person in one line: what, what it got, what it takes, and the remedy."""


class BackendUnavailableError(InvbenchError):
    """A backend was asked for by name and cannot run here, or refuses this input; the message says why."""


class Mode(StrEnum):
    """What is timed: inference, the backward pass alone, or forward and backward of a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    TRAIN = "train"

    @property
    def flop_per_mac(self) -> int:
        """FLOP of this mode for one multiply-add of the forward pass; the backward pass has twice its work."""
        return {Mode.FORWARD: 2, Mode.BACKWARD: 4, Mode.TRAIN: 6}[self]


class Scope(StrEnum):
    """``layer``: reduce, norm, activation, span and aggregate. ``aggregate``: the weight is a given input."""

    AGGREGATE = "aggregate"
    LAYER = "layer"


class Regime(StrEnum):
    """How a network is run: as built, or as deployed, batch norm folded into convolutions and torch.compile'd."""

    EAGER = "eager"
    COMPILED = "folded and compiled"


# The backend of a row whose involutions cost nothing: the ceiling of what a faster one could reach.
FREE = "free"
# The scope of rows of whole networks, and of networks that are trained.
NETWORK = "network"
TRAINING = "training"


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One involution: C channels in G groups, a K x K window, and how the window moves.

    ``stride`` and ``dilation`` mean the window; ``reduction`` is the ratio of the two 1x1 convolutions that
    generate the weight (the bare operator ignores it). Raises InvbenchError for what no backend could run.
    """

    C: int
    K: int = 7
    G: int = 1
    stride: int = 1
    dilation: int = 1
    reduction: int = 4
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        for name in ("C", "K", "G", "stride", "dilation", "reduction"):
            require_positive(name, getattr(self, name))
        if self.K % 2 == 0:
            raise InvbenchError(
                f"K must be odd, so that the window has a centre: got K={self.K}; try K={self.K - 1} or K={self.K + 1}"
            )
        if self.C % self.G:
            near = (g for distance in range(1000) for g in (self.G - distance, self.G + distance))
            divisor = next((g for g in near if 0 < g <= self.C and self.C % g == 0), 1)
            raise InvbenchError(f"G must divide C: got C={self.C} and G={self.G}; try G={divisor}")
        if self.padding_mode not in PADDING_MODES:
            raise InvbenchError(
                f"padding_mode must be one of {', '.join(PADDING_MODES)}: got {self.padding_mode!r}; try 'zeros'"
            )

    @property
    def taps(self) -> int:
        """Positions in the window, K * K."""
        return self.K * self.K

    @property
    def group_channels(self) -> int:
        """Channels that share one weight, C / G."""
        return self.C // self.G

    @property
    def hidden_channels(self) -> int:
        """Channels between ``reduce`` and ``span``, C / reduction, at least 1."""
        return max(1, self.C // self.reduction)

    @property
    def padding(self) -> int:
        """Rows and columns the window reaches beyond the image on each side."""
        return self.dilation * (self.K // 2)

    def out_size(self, n: int) -> int:
        """Output positions along a side of n input positions: ceil(n / stride)."""
        return -(-n // self.stride)

    def check_size(self, H: int, W: int) -> None:
        """Refuse an image that the padding mode cannot extend, as nn.Conv2d does."""
        if self.padding_mode in ("zeros", "replicate"):
            return
        limit = {"reflect": self.padding + 1, "circular": self.padding}.get(self.padding_mode, 0)
        if min(H, W) < limit:
            raise InvbenchError(
                f"padding_mode {self.padding_mode!r} with K={self.K} and dilation={self.dilation} needs H and W of at "
                f"least {limit}: got H={H} and W={W}; use 'zeros' or 'replicate', or a smaller K"
            )


@dataclass(frozen=True, slots=True)
class Case:
    """The hashable key of one measured point, the same for all its rows (subject and backend belong to the row)."""

    N: int
    H: int
    W: int
    layer: LayerSpec
    device: str = "cpu"
    dtype: str = "float32"
    layout: str = "channels_last"
    mode: Mode = Mode.FORWARD
    scope: Scope = Scope.LAYER
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("N", "H", "W", "threads"):
            require_positive(name, getattr(self, name))
        for name, allowed in (("dtype", DTYPES), ("layout", LAYOUTS), ("mode", tuple(Mode)), ("scope", tuple(Scope))):
            require_choice(name, getattr(self, name), allowed)
        self.layer.check_size(self.H, self.W)

    @property
    def positions(self) -> int:
        """Output positions of the whole batch, N * H_out * W_out."""
        return self.N * self.layer.out_size(self.H) * self.layer.out_size(self.W)

    def to_dict(self) -> dict[str, Any]:
        """The flat form of the result document."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "layer"}
        layer = {f.name: getattr(self.layer, f.name) for f in fields(self.layer)}
        return {name: str(v) if isinstance(v, StrEnum) else v for name, v in sorted_case({**own, **layer}).items()}

    @classmethod
    def from_dict(cls, flat: dict[str, Any]) -> Case:
        """The inverse of ``to_dict``; raises InvbenchError if a field is missing."""
        missing = [name for name in CASE_FIELDS if name not in flat]
        if missing:
            raise InvbenchError(f"a case needs every one of its fields: got none for {', '.join(missing)}; add them")
        layer_names = {f.name for f in fields(LayerSpec)}
        layer = LayerSpec(**{name: v for name, v in flat.items() if name in layer_names})
        own = {name: v for name, v in flat.items() if name not in layer_names}
        return cls(layer=layer, **{**own, "mode": Mode(own["mode"]), "scope": Scope(own["scope"])})


@dataclass(frozen=True, slots=True)
class NetworkCase:
    """The hashable key of one measured point of whole networks, the same for all its rows.

    N images of H x W pixels. stem_kernel_size: K of the involution in the stem of those that have one. autocast:
    parameters and images are float32, and ``dtype`` is what torch.autocast computes in.
    """

    N: int
    H: int
    W: int
    stem_kernel_size: int = 7
    device: str = "cpu"
    dtype: str = "float32"
    layout: str = "channels_last"
    mode: Mode = Mode.FORWARD
    threads: int = 1
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("N", "H", "W", "stem_kernel_size", "threads"):
            require_positive(name, getattr(self, name))
        for name, allowed in (("dtype", DTYPES), ("layout", LAYOUTS), ("mode", tuple(Mode))):
            require_choice(name, getattr(self, name), allowed)
        if self.stem_kernel_size % 2 == 0:
            raise InvbenchError(
                f"stem_kernel_size must be odd, so that the window has a centre: got {self.stem_kernel_size}; try 7"
            )
        if self.autocast and self.dtype not in AUTOCAST_DTYPES:
            raise InvbenchError(
                f"autocast computes in {' or '.join(AUTOCAST_DTYPES)}: got dtype {self.dtype}; choose one, or leave "
                "autocast out"
            )

    @property
    def scope(self) -> str:
        """What rows of one table have in common with those of operators: their scope is another."""
        return NETWORK

    def to_dict(self) -> dict[str, Any]:
        """The flat form of the result document."""
        return _flat(self)

    @classmethod
    def from_dict(cls, flat: dict[str, Any]) -> NetworkCase:
        """The inverse of ``to_dict``; raises InvbenchError if a field is missing."""
        return cls(**_fields_of(cls, {"autocast": False, **flat}))  # which documents before it was one do not have


@dataclass(frozen=True, slots=True)
class TrainingCase:
    """The hashable key of networks trained side by side: on what, in batches of N images of H x W, for so long."""

    data_set: str
    N: int
    H: int
    W: int
    epochs: int
    device: str = "cpu"
    dtype: str = "float32"
    layout: str = "contiguous"
    mode: Mode = Mode.TRAIN
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("N", "H", "W", "epochs", "threads"):
            require_positive(name, getattr(self, name))
        for name, allowed in (("dtype", DTYPES), ("layout", LAYOUTS), ("mode", tuple(Mode))):
            require_choice(name, getattr(self, name), allowed)

    @property
    def scope(self) -> str:
        """What rows of one table have in common: theirs is another than that of operators and networks."""
        return TRAINING

    def to_dict(self) -> dict[str, Any]:
        """The flat form of the result document."""
        return _flat(self)

    @classmethod
    def from_dict(cls, flat: dict[str, Any]) -> TrainingCase:
        """The inverse of ``to_dict``; raises InvbenchError if a field is missing."""
        return cls(**_fields_of(cls, flat))


AnyCase = Case | NetworkCase | TrainingCase


def case_from_dict(flat: dict[str, Any]) -> AnyCase:
    """The case of a document's row: of an operator's, a network's, or one of training."""
    kinds: dict[Any, type[NetworkCase | TrainingCase]] = {NETWORK: NetworkCase, TRAINING: TrainingCase}
    return kinds.get(flat.get("scope"), Case).from_dict(flat)


def _flat(case: NetworkCase | TrainingCase) -> dict[str, Any]:
    own = {f.name: getattr(case, f.name) for f in fields(case)}
    return {**{name: str(v) if isinstance(v, StrEnum) else v for name, v in own.items()}, "scope": case.scope}


def _fields_of(case: type[NetworkCase | TrainingCase], flat: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(case)]
    missing = [name for name in names if name not in flat]
    if missing:
        raise InvbenchError(f"a case needs every one of its fields: got none for {', '.join(missing)}; add them")
    return {**{name: flat[name] for name in names}, "mode": Mode(flat["mode"])}


CASE_FIELDS = (
    "N", "C", "H", "W", "K", "G", "stride", "dilation", "reduction", "padding_mode",
    "device", "dtype", "layout", "mode", "scope", "threads",
)  # fmt: skip


def sorted_case(flat: dict[str, Any]) -> dict[str, Any]:
    """A flat case in the order people read it."""
    return {name: flat[name] for name in CASE_FIELDS}


def require_positive(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1, or one that no kernel could count with."""
    if isinstance(value, int) and value >= 2**31:
        raise InvbenchError(f"{name} must be below 2**31: got {name}={value}; try {name}=1")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvbenchError(f"{name} must be a whole number of at least 1: got {name}={value!r}; try {name}=1")


def require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not in the table."""
    if value not in allowed:
        raise InvbenchError(f"{name} must be one of {', '.join(allowed)}: got {value!r}; try {allowed[0]}")
