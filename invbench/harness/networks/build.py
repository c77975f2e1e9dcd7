"""Networks made ready to be called: by every backend, with involution for free, and as deployed.

Random parameters alone make a poor subject: an untrained RedNet's blocks are their shortcut, and an involution is
quadratic in its input, so that rounding grows from layer to layer. So networks get what training gives them: statistics
of images that have passed through, and blocks that add a little to their shortcut.
"""

from __future__ import annotations

import copy
import itertools
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from invbench.harness.custom import resolve
from invbench.harness.networks import TORCH, NetworkSubject
from invbench.harness.settings import describe_failure
from invbench.harness.steps import MEMORY_FORMATS, Step, random_normal, reference_device
from invbench.models import SUBJECTS, Images, Model, create
from invbench.models.counting import Counts, count
from invbench.models.folding import fold_batch_norm
from invbench.models.regions import RegionFeatures
from invbench.ops import Involution2d
from invbench.spec import FREE, InvbenchError, Mode, NetworkCase, Regime

# Of small images there are more: where a norm has seen four positions of each channel, some variances are next to
# nothing, and what it makes of other images is huge.
SETTLING_IMAGES, SETTLING_PIXELS = (2, 64), 128 * 128
# More pixels a side, or more regions of an image, have the same statistics, and take longer.
SETTLING_SIDE = 256
SETTLING_REGIONS = 16
BRANCH_SCALE = (0.1, 0.3)  # of a block's last norm: what it adds to its shortcut


class Strided(nn.Module):
    """Every stride-th pixel: the cheapest thing with the shape of an involution with that stride."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ceil(H / stride), ceil(W / stride)] from x [N, C, H, W]; no copy."""
        return x[..., :: self.stride, :: self.stride]


@dataclass(frozen=True)
class Original:
    """A network with parameters that behave, from which all of its rows are made, and what it costs for one image."""

    model: Model
    network: nn.Module
    counts: Counts


@dataclass(frozen=True)
class Networks:
    """What the rows of a point are made of: for each model one set of parameters, whatever computes it."""

    case: NetworkCase
    seed: int

    def original(self, model: Model, free: bool, settled: bool = True) -> Original:
        """A network with random parameters that behave; free: with the identity for every involution.

        settled: False where only what it needs is asked, and not what it computes.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            # The reference's backend, so that a wrong one cannot spoil what the others compute.
            network = with_backend(new(model, self.case.stem_kernel_size), "naive")
            network = without_involutions(network) if free else network
            where: dict[str, Any] = {"device": self.case.device}
            where["memory_format"] = MEMORY_FORMATS[self.case.layout]  # not in torch's stubs
            network = network.to(**where)
            counts = count(network, self.case.H, self.case.W, model.images.channels)
            if settled:
                _settle(network, self._settling_images(model))
        network = network.to(getattr(torch, self._parameters)).train(self.case.mode is not Mode.FORWARD)
        return Original(model, network, counts)

    @property
    def _parameters(self) -> str:
        """The type of parameters and images."""
        return "float32" if self.case.autocast else self.case.dtype

    def step(self, original: Original, subject: NetworkSubject) -> Step:
        """The network as the subject runs it, on the point's images."""
        changed = subject.backend not in (FREE, TORCH)
        network = with_backend(original.network, subject.backend) if changed else original.network
        function = deployed(network) if subject.regime is Regime.COMPILED else network
        autocast = getattr(torch, self.case.dtype) if self.case.autocast else None
        return self._step(original, network, function, self.case.N, self._parameters, autocast=autocast)

    def reference(self, original: Original, count: int, mode: Mode) -> Step:
        """The same network on the first images, by the naive backend in float64."""
        device = reference_device(self.case.device)
        network = with_backend(original.network, "naive").to(device, torch.float64)
        step = self._step(original, network, network, count, "float64", device)
        return step if mode is self.case.mode else Step(mode, network, step.inputs)

    def _step(
        self,
        original: Original,
        network: nn.Module,
        function: Callable[..., Tensor],
        count: int,
        dtype: str,
        device: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> Step:
        images = self._images(original.model, self.case.N, self.seed, self._parameters)[:count]
        images = images.to(device or self.case.device, getattr(torch, dtype))
        if self.case.mode is Mode.FORWARD:
            return Step(Mode.FORWARD, function, [images], autocast=autocast)
        size = (self.case.N, *original.counts.output)
        grad_y = random_normal(size, self.seed + 2, self.case.device, self.case.dtype)[:count].to(images)
        differentiated = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return Step(self.case.mode, function, [images], differentiated, grad_y, autocast)

    def _images(self, model: Model, count: int, seed: int, dtype: str) -> Tensor:
        size = (count, model.images.channels, self.case.H, self.case.W)
        return random_normal(size, seed, self.case.device, dtype, self.case.layout)

    def _settling_images(self, model: Model) -> Tensor:
        most = max(SETTLING_SIDE, model.images.least)
        H, W = min(self.case.H, most), min(self.case.W, most)
        fewest, many = SETTLING_IMAGES
        size = (min(many, max(fewest, -(-SETTLING_PIXELS // (H * W)))), model.images.channels, H, W)
        return random_normal(size, self.seed + 3, self.case.device, "float32", self.case.layout)


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A row whose memory is wanted (``memory.Job``): all that a process of its own needs to make it anew."""

    subject: NetworkSubject
    networks: Networks
    model: Model
    timeout: float = 900.0  # torch.compile may take minutes of it

    @property
    def threads(self) -> int:
        """CPU threads of the point."""
        return self.networks.case.threads

    def step(self) -> Step:
        """The network, ready to be called."""
        original = self.networks.original(self.model, self.subject.backend == FREE, settled=False)
        return self.networks.step(original, self.subject)


def new(model: Model, stem_kernel_size: int) -> nn.Module:
    """A new network, of ours or the user's.

    Raises InvbenchError where the user's factory makes no network.
    """
    if model.suite:
        return create(model.name, stem_kernel_size)
    made = resolve(model.name, "--models")()
    if not isinstance(made, nn.Module):
        raise InvbenchError(f"--models {model.name}: a factory returns an nn.Module: got {type(made).__name__}")
    return made


def custom_model(name: str) -> Model:
    """The row of a user's network, ``package.module:factory``.

    The factory takes nothing and returns an nn.Module from images [N, 3, H, W] to one tensor [N, ...]. Its attribute
    ``counterpart``, if it has one, is the network that it is compared with.

    Raises InvbenchError where it cannot be had.
    """
    factory = resolve(name, "--models")
    counterpart = getattr(factory, "counterpart", name)
    if not (isinstance(counterpart, str) and (":" in counterpart or counterpart in SUBJECTS)):
        raise InvbenchError(
            f"--models {name}: its counterpart is a network of ours or package.module:factory: got {counterpart!r}; "
            "try 'resnet50'"
        )
    model = Model(name, "", "", "", {}, counterpart, False, images=Images(coarsest=None))  # nobody knows its maps
    try:
        made = new(model, 1)
    except InvbenchError:
        raise
    except Exception as error:
        raise InvbenchError(f"--models {name}: it cannot be made ({describe_failure(error)})") from error
    return replace(model, has_involution=any(isinstance(part, Involution2d) for part in made.modules()))


def with_backend(network: nn.Module, backend: str) -> nn.Module:
    """A copy whose involutions are all computed by one backend."""
    changed = copy.deepcopy(network)
    for part in changed.modules():
        if isinstance(part, Involution2d):
            part.backend = backend
    return changed


def without_involutions(network: nn.Module) -> nn.Module:
    """A copy with the cheapest thing of the right shape where each involution was."""
    if isinstance(network, Involution2d):
        return _cheapest(network)
    changed = copy.deepcopy(network)
    for part in changed.modules():
        for layer, after in itertools.pairwise(part) if isinstance(part, nn.Sequential) else ():
            if isinstance(layer, Involution2d) and isinstance(after, nn.ReLU):
                after.inplace = False  # or it would write over what went into the involution
    for name, part in list(changed.named_modules(remove_duplicate=False)):  # one layer may have several names
        if isinstance(part, Involution2d):
            parent, _, leaf = name.rpartition(".")
            setattr(changed.get_submodule(parent), leaf, _cheapest(part))
    return changed


def _cheapest(layer: Involution2d) -> nn.Module:
    stride = layer.spec.stride
    return Strided(stride) if stride > 1 else nn.Identity()


def deployed(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """An eval network with its batch norms folded away, compiled as one graph."""
    folded = fold_batch_norm(network)

    def call(x: Tensor) -> Tensor:
        y: Tensor = folded(x)
        return y

    # A code object of its own for each network: torch.compile gives up on one that it has compiled too often.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def _settle(network: nn.Module, images: Tensor) -> None:
    """Statistics of images in every norm, and blocks that add a little to their shortcut.

    Blocks say which of their norms is the last before they add: ``last_norm``. Norms that a network keeps frozen while
    it is trained have got theirs from a training before; they see the images, too.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.reset_running_stats()
    for part in network.modules():
        last = getattr(part, "last_norm", None)
        if isinstance(last, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(last.weight, *BRANCH_SCALE)
    regions = [(part, part.wanted) for part in network.modules() if isinstance(part, RegionFeatures)]
    for part, wanted in regions:
        part.wanted = tuple((min(count, SETTLING_REGIONS), size) for count, size in wanted)
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.momentum = None  # the average over all batches so far, and this is the first
        norm.train()  # also those that train() of the network leaves frozen
    with torch.no_grad():
        network(images)
    for part, wanted in regions:
        part.wanted = wanted
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train()
