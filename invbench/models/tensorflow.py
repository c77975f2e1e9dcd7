"""Weights of TensorFlow and Keras for ``Involution2d`` and RedNet. TensorFlow itself is not needed.

The layer is that of the Keras example "Involutional neural networks" (keras.io/examples/vision/involution), whose
conventions other TensorFlow versions share. Where they are not ours, with C channels in G groups:

                         TensorFlow                           here
    channel m of group g m*G + g, so that g(c) = c % G        g*(C/G) + m, so that g(c) = c // (C/G)
    generator's channel  tap*G + g                            g*K*K + tap
    kernels              [rows, columns, in, out]             [out, in, rows, columns]
    batch norm           epsilon 1e-3                         epsilon 1e-5
    window i, stride s   from s*i - before(K), "SAME"         from s*i - K//2
    pool's window i      from s*i - before(s), "SAME"         from s*i

where before(side) = max((ceil(n/s) - 1)*s + side - n, 0) // 2 for n input positions: at even sizes with stride 2,
TensorFlow's window lies one pixel later. All but the last two rows is a matter of weights: ``convert_involution`` for a
layer, ``convert_rednet`` for a network, which then runs as any other. ``KerasInvolution2d`` has the last two as well.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.models.rednet import RedNet
from invbench.models.tensorflow_weights import Weights, adopt, involution_names, read_weights, rednet_name, renamed
from invbench.ops import Involution2d, involution2d
from invbench.spec import InvbenchError, LayerSpec

# The defaults of keras.layers.BatchNormalization. Its momentum is the share of what was, PyTorch's that of the batch.
KERAS_EPSILON = 1e-3
KERAS_MOMENTUM = 0.99


class ConvertedInvolution(NamedTuple):
    """Weights of a layer in our order.

    state: for ``Involution2d(**options)``, whose stride is yours to add.
    order: [C], of integers; our channel i, of x and of y, is TensorFlow's channel order[i].
    options: what the weights say of the layer: channels, kernel_size, groups, hidden_channels.
    """

    state: dict[str, Tensor]
    order: Tensor
    options: dict[str, Any]


def channel_order(C: int, G: int) -> Tensor:
    """[C]: which of TensorFlow's channels is each of ours, so that ``ours = theirs[:, channel_order(C, G)]``.

    Raises InvbenchError unless G divides C.
    """
    spec = LayerSpec(C, G=G)
    return torch.arange(C).view(spec.group_channels, G).t().flatten()


def convert_involution(weights: Weights, groups: int, epsilon: float = KERAS_EPSILON) -> ConvertedInvolution:
    """The weights of one Keras involution, for an ``Involution2d`` on channels in our order.

    weights: names to values, in Keras's layout. Of the generator's two 1x1 convolutions ``kernel`` [1, 1, in, out] and
        ``bias`` [out], of its batch norm ``gamma``, ``beta``, ``moving_mean`` and ``moving_variance`` [hidden]. In
        front of these words is the part, by "." or "/": ``reduce``, ``norm`` and ``span`` as in Involution2d, or the
        official names, or any if the first convolution's kernel comes first, as it does in
        ``{w.path: w.numpy() for w in keras_layer.weights}``. What may be missing: a bias or beta, then zero, and
        gamma, then one.
    groups: G. epsilon: that of the Keras batch norm, at least ours, 1e-5.

    The layer is the same function in eval mode: the bias of ``reduce``, which the norm takes off again, is taken from
    the norm's mean, and what epsilon exceeds ours by is added to its variance. With a stride, this is so where
    TensorFlow's windows are ours, as at odd sizes with stride 2; else use ``KerasInvolution2d``.

    Raises InvbenchError for names, shapes or values that do not fit, and for a G that does not divide C.
    """
    return _convert_involution(weights, groups, epsilon, folds_epsilon=True)


class KerasInvolution2d(nn.Module):
    """The Keras example's layer: TensorFlow's channel order and "SAME" windows at any size and stride.

    x: [N, C, H, W]. Returns y [N, C, ceil(H / stride), ceil(W / stride)], same dtype and memory format. Channels of
    both are in TensorFlow's order; an image [N, H, W, C] becomes x by ``image.permute(0, 3, 1, 2)``.

    weights, groups, epsilon: as in ``convert_involution``. stride: of the window. backend: as in ``involution2d``.

    ``layer`` is the Involution2d inside, in the dtype of the weights, on channels in our order. It is called as it is
    where TensorFlow's windows are ours: stride 1, odd sizes with stride 2, ... Elsewhere its weight is made in memory.
    Odd sizes with a stride, which the example's own reshape refuses, have ceil(n / stride) positions, as "SAME" has.
    The batch norm has Keras's epsilon and momentum.

    Raises InvbenchError as ``convert_involution`` does, and for x of another shape.
    """

    def __init__(
        self,
        weights: Weights,
        groups: int,
        stride: int = 1,
        epsilon: float = KERAS_EPSILON,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        # The norm here has Keras's epsilon itself, so that training goes on with it.
        state, _, options = _convert_involution(weights, groups, epsilon, folds_epsilon=False)
        dtype = state["reduce.weight"].dtype
        self.layer = Involution2d(**options, stride=stride, backend=backend, dtype=dtype)
        self.layer.load_state_dict(state)
        norm = cast(nn.BatchNorm2d, self.layer.norm)
        norm.eps, norm.momentum = epsilon, 1 - KERAS_MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W], channels in TensorFlow's order."""
        spec = self.layer.spec
        if x.ndim != 4 or x.shape[1] != spec.C:
            raise InvbenchError(
                f"KerasInvolution2d takes [N, {spec.C}, H, W]: got {list(x.shape)}; "
                "permute TensorFlow's [N, H, W, C] by x.permute(0, 3, 1, 2)"
            )
        image = _transposed(x, spec.group_channels)
        rows, columns = (_Offsets.along(n, spec) for n in x.shape[2:])
        ours = rows == columns == (0, 0)
        y = self.layer(image) if ours else self._displaced(image, rows, columns)
        return _transposed(y, spec.G)

    def _displaced(self, x: Tensor, rows: _Offsets, columns: _Offsets) -> Tensor:
        """y where windows are not ours, channels in our order.

        Where they lie d pixels later, s - d zeros in front of x make our window i + 1 of TensorFlow's window i. Our
        window 0 is dropped; it gets a weight of zeros, since TensorFlow generates none.
        """
        layer, spec, s = self.layer, self.layer.spec, self.layer.spec.stride
        pooled = F.avg_pool2d(x, s, s, (rows.pool, columns.pool), ceil_mode=True, count_include_pad=False)
        weight = layer.span(layer.activation(layer.norm(layer.reduce(pooled))))  # [N, G*K*K, H_out, W_out]
        top, left = int(rows.window > 0), int(columns.window > 0)
        image = F.pad(x, (left * (s - columns.window), 0, top * (s - rows.window), 0))
        weight = F.pad(weight, (left, 0, top, 0)).unflatten(1, (spec.G, spec.taps))
        return involution2d(image, weight, s, backend=layer.backend)[..., top:, left:]


def convert_rednet(weights: Weights, network: nn.Module, epsilon: float = KERAS_EPSILON) -> dict[str, Tensor]:
    """The state_dict for a RedNet from the weights of one in TensorFlow, with nothing left to do at run time:

        network = create("rednet50")
        network.load_state_dict(convert_rednet(weights, network))

    weights: names to values. Names are those of our RedNet or the official repository, by "." or "/", their last word
        PyTorch's or Keras's (``layer1.0.conv1.weight``, ``layer1/0/conv1/kernel``). Values are in TensorFlow's layout;
        the channels of each involution are in TensorFlow's order, and so are those of the generator. What may be
        missing: a bias or beta, then zero, and gamma, then one. Any convolution may have a bias.
    network: the RedNet that is to load the state; any options, any device.
    epsilon: that of all Keras batch norms, at least that of the network's, 1e-5.

    Returns new tensors under our names. The order of an involution's channels is absorbed by what is around it: the
    outputs of the convolution and the norm before, the norm behind, and the inputs of the convolution after that.
    Biases and epsilon are absorbed by norms as in ``convert_involution``, so that the logits are those of eval mode.

    What weights cannot say is where strided windows start. In the stem's first convolution and max-pool, and in
    involutions with stride 2, it is K//2 pixels outside here, as in the official code. TensorFlow's "SAME" agrees at
    odd sizes only. So the logits are equal, at any size, if the TensorFlow network pads both sides itself; if it uses
    "SAME", they are where H and W are 32k + 1, such as 225, which stay odd in all strided layers, and not at 224.

    Raises InvbenchError for names that are missing or unknown, shapes or values that do not fit, and for a network
    that is no RedNet.
    """
    if not isinstance(network, RedNet):
        raise InvbenchError(
            f"convert_rednet takes a RedNet: got {type(network).__name__}; make one with create('rednet50')"
        )
    involutions = {name: part for name, part in network.named_modules() if isinstance(part, Involution2d)}
    found = read_weights(weights)
    found = renamed(found, {name: rednet_name(name, involutions) for name in found})
    state = adopt(found, network, epsilon)
    for name, layer in involutions.items():
        order = _regroup(state, layer, f"{name}.")
        outputs, inputs = _neighbours(name)
        for part in outputs:
            for entry in (f"{part}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")):
                if entry in state:
                    state[entry] = state[entry][order]
        state[f"{inputs}.weight"] = state[f"{inputs}.weight"][:, order]
    return state


class _Offsets(NamedTuple):
    """How "SAME" differs from us along one side of x.

    window: pixels that TensorFlow's windows lie later, below the stride. pool: pixels that the pool's lie earlier.
    """

    window: int
    pool: int

    @classmethod
    def along(cls, n: int, spec: LayerSpec) -> _Offsets:
        """Those of a side of n pixels."""
        covered = (spec.out_size(n) - 1) * spec.stride  # where the last window would start without padding
        before_window = max(covered + spec.K - n, 0) // 2
        before_pool = max(covered + spec.stride - n, 0) // 2
        return cls(spec.K // 2 - before_window, before_pool)


def _transposed(x: Tensor, rows: int) -> Tensor:
    """x [N, C, H, W] with its channels, a table of so many rows, in the order of its columns; keeps memory formats."""
    return x if rows in (1, x.shape[1]) else F.channel_shuffle(x, rows)


def _convert_involution(weights: Weights, groups: int, epsilon: float, *, folds_epsilon: bool) -> ConvertedInvolution:
    found = read_weights(weights)
    found = renamed(found, involution_names(found))
    options = _options(found, groups)
    layer = Involution2d(**options, device="meta")
    if not folds_epsilon:
        cast(nn.BatchNorm2d, layer.norm).eps = epsilon
    state = adopt(found, layer, epsilon)
    return ConvertedInvolution(state, _regroup(state, layer), options)


def _options(found: dict[str, Tensor], groups: int) -> dict[str, Any]:
    """What the two kernels of a generator say of its layer."""
    for name in ("reduce.weight", "span.weight"):
        shape = list(found[name].shape) if name in found else None
        if shape is None or len(shape) != 4 or shape[:2] != [1, 1]:
            raise InvbenchError(
                f"an involution needs {name} [1, 1, in, out], a kernel in TensorFlow's layout: "
                f"got {shape or 'none'}; give it as TensorFlow has it"
            )
    C, hidden = found["reduce.weight"].shape[2:]
    LayerSpec(C, G=groups)  # refuses a G that does not divide C, before K is asked
    outputs = found["span.weight"].shape[3]
    K = math.isqrt(outputs // groups)
    if K * K * groups != outputs:
        raise InvbenchError(
            f"span.weight must have K*K*G outputs: got {outputs} with G={groups}; "
            "pass the Keras layer's group_number as groups"
        )
    return {"channels": C, "kernel_size": K, "groups": groups, "hidden_channels": hidden}


def _regroup(state: dict[str, Tensor], layer: Involution2d, prefix: str = "") -> Tensor:
    """Put an involution's weights in our order of channels, which is returned, and of the generator's channels."""
    order = channel_order(layer.spec.C, layer.spec.G)
    first = f"{prefix}reduce.weight" if isinstance(layer.reduce, nn.Conv2d) else f"{prefix}span.weight"
    state[first] = state[first][:, order]
    for name in (f"{prefix}span.weight", f"{prefix}span.bias"):
        by_tap = state[name].unflatten(0, (layer.spec.taps, layer.spec.G))
        state[name] = by_tap.transpose(0, 1).flatten(0, 1)
    return order


def _neighbours(involution: str) -> tuple[tuple[str, ...], str]:
    """The parts of a RedNet whose outputs have the channels of an involution, and the one whose inputs have them."""
    if involution == "stem.1":
        return ("stem.0.conv", "stem.0.bn", "stem.2"), "stem.4.conv"
    block = involution.removesuffix(".conv2")
    return (f"{block}.conv1", f"{block}.bn1", f"{block}.bn2"), f"{block}.conv3"
