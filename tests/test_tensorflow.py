"""Weights of TensorFlow: Keras's formula and a RedNet of TensorFlow's parts in NumPy, and what ours make of the same
weights."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import relative_error
from test_models import official_names
from torch import nn

from invbench import Involution2d
from invbench.models import create
from invbench.models.tensorflow import KerasInvolution2d, channel_order, convert_involution, convert_rednet
from invbench.spec import InvbenchError

Array = np.ndarray
EPSILON = 1e-3


# --- TensorFlow, written out: images are [N, H, W, C] ---


def padding(n: int, side: int, stride: int, same: bool = True) -> tuple[int, int]:
    """Pixels in front of n and behind them: TensorFlow's "SAME", or as many as PyTorch's padding=side // 2."""
    outputs = -(-n // stride)
    total = max((outputs - 1) * stride + side - n, 0)
    before = total // 2 if same else side // 2
    return before, max((outputs - 1) * stride + side - n - before, 0)


def patches(x: Array, side: int, stride: int, fill: float = 0.0, same: bool = True) -> Array:
    """tf.image.extract_patches: [N, H_out, W_out, taps, C]."""
    _, H, W, _ = x.shape
    border = [(0, 0), padding(H, side, stride, same), padding(W, side, stride, same), (0, 0)]
    padded = np.pad(x, border, constant_values=fill)
    rows, columns = -(-H // stride), -(-W // stride)
    found = np.empty((len(x), rows, columns, side * side, x.shape[3]))
    for i, j in itertools.product(range(rows), range(columns)):
        window = padded[:, i * stride : i * stride + side, j * stride : j * stride + side]
        found[:, i, j] = window.reshape(len(x), side * side, -1)
    return found


def convolution(x: Array, weights: dict[str, Array], name: str, stride: int = 1, same: bool = True) -> Array:
    kernel = weights[f"{name}.weight"]  # [K, K, in, out]
    y = np.einsum("nhwtc,tco->nhwo", patches(x, len(kernel), stride, same=same), kernel.reshape(-1, *kernel.shape[2:]))
    return y + weights.get(f"{name}.bias", 0.0)


def norm(x: Array, weights: dict[str, Array], name: str, settle: bool = False) -> Array:
    """Batch norm in eval mode; to settle is to make this batch's statistics the moving ones."""
    if settle:
        weights[f"{name}.running_mean"], weights[f"{name}.running_var"] = x.mean((0, 1, 2)), x.var((0, 1, 2))
    x = (x - weights[f"{name}.running_mean"]) / np.sqrt(weights[f"{name}.running_var"] + EPSILON)
    return x * weights.get(f"{name}.weight", 1.0) + weights.get(f"{name}.bias", 0.0)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def involution(
    x: Array, weights: dict[str, Array], prefix: str, G: int, stride: int = 1, same: bool = True, settle: bool = False
) -> Array:
    """The layer of the Keras example, line by line."""
    N, _, _, C = x.shape
    pooled = x if stride == 1 else np.nanmean(patches(x, stride, stride, fill=np.nan), axis=3)
    hidden = pooled
    if f"{prefix}reduce.weight" in weights:
        hidden = relu(norm(convolution(pooled, weights, f"{prefix}reduce"), weights, f"{prefix}norm", settle))
    kernel = convolution(hidden, weights, f"{prefix}span")
    _, rows, columns, outputs = kernel.shape
    taps = outputs // G
    kernel = kernel.reshape(N, rows, columns, taps, 1, G)
    image = patches(x, round(taps**0.5), stride, same=same).reshape(N, rows, columns, taps, C // G, G)
    return (kernel * image).sum(3).reshape(N, rows, columns, C)


def rednet(x: Array, weights: dict[str, Array], blocks: Any, groups: Callable[[int], int], same: bool, settle: bool):
    """A RedNet of TensorFlow's parts."""

    def conv_norm(x: Array, conv: str, batch_norm: str, stride: int = 1) -> Array:
        return norm(convolution(x, weights, conv, stride, same), weights, batch_norm, settle)

    def involution_norm(x: Array, prefix: str, batch_norm: str, stride: int = 1) -> Array:
        y = involution(x, weights, prefix, groups(x.shape[3]), stride, same, settle)
        return relu(norm(y, weights, batch_norm, settle))

    x = relu(conv_norm(x, "stem.0.conv", "stem.0.bn", 2))
    x = involution_norm(x, "stem.1.", "stem.2")
    x = relu(conv_norm(x, "stem.4.conv", "stem.4.bn"))
    x = patches(x, 3, 2, fill=-np.inf, same=same).max(3)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1"))
            y = involution_norm(y, f"{name}.conv2.", f"{name}.bn2", stride)
            y = conv_norm(y, f"{name}.conv3", f"{name}.bn3")
            x = relu(y + (conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if block == 0 else x))
    return x.mean((1, 2)) @ weights["fc.weight"] + weights["fc.bias"]


# --- One layer ---


def layer_weights(C: int, K: int, G: int, hidden: int = 3, seed: int = 0) -> dict[str, Array]:
    """Weights of a Keras involution, nothing at its default, under our names."""
    rng = np.random.default_rng(seed)
    return {
        "reduce.weight": rng.normal(size=(1, 1, C, hidden)),
        "reduce.bias": rng.normal(size=hidden),
        "norm.weight": rng.uniform(0.5, 1.5, hidden),
        "norm.bias": rng.normal(size=hidden),
        "norm.running_mean": rng.normal(size=hidden),
        "norm.running_var": rng.uniform(1e-4, 1e-2, hidden),  # so that epsilon is seen
        "span.weight": rng.normal(size=(1, 1, hidden, K * K * G)),
        "span.bias": rng.normal(size=K * K * G),
    }


KERAS_LEAVES = {
    "weight": "kernel",
    "bias": "bias",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def keras_name(name: str) -> str:
    part, _, leaf = name.rpartition(".")
    if part.rpartition(".")[2] in ("norm", "bn", "bn1", "bn2", "bn3", "1", "2"):
        leaf = {"weight": "gamma", "bias": "beta"}.get(leaf, leaf)
    return f"{part.replace('.', '/')}/{KERAS_LEAVES.get(leaf, leaf)}"


def keras_path(name: str) -> str:
    """A name such as Keras gives, which does not tell what the part is for."""
    part, _, leaf = keras_name(name).rpartition("/")
    return f"inv_2/sequential_3/{ {'reduce': 'conv2d_9', 'span': 'conv2d_10', 'norm': 'batch_norm'}[part] }/{leaf}:0"


def first_to_last(x: Array) -> torch.Tensor:
    """[N, C, H, W] from [N, H, W, C]."""
    return torch.from_numpy(x).permute(0, 3, 1, 2)


SIZES = ((8, 6), (7, 9), (6, 7), (11, 4), (10, 13), (2, 3), (1, 6), (1, 1))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("G", [1, 2, 4, 8])
@pytest.mark.parametrize("K", [1, 3, 5, 7])
def test_a_layer_is_keras_s_at_any_size(K: int, G: int, stride: int) -> None:
    weights = layer_weights(8, K, G)
    layer = KerasInvolution2d(weights, G, stride, EPSILON, backend="naive").eval()
    for size in SIZES:
        x = np.random.default_rng(1).normal(size=(2, *size, 8))
        expected = first_to_last(involution(x, weights, "", G, stride))
        with torch.inference_mode():
            y = layer(first_to_last(x))
        assert y.shape == expected.shape, size
        assert relative_error(y, expected) <= 1e-13, size


@pytest.mark.parametrize("backend", ["unfold", pytest.param("numba", marks=pytest.mark.slow)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_on_other_backends(backend: str, stride: int) -> None:
    weights = layer_weights(16, 3, 4)
    single = {name: value.astype(np.float32) for name, value in weights.items()}
    layer = KerasInvolution2d(single, 4, stride, backend=backend).eval()
    for size in ((8, 6), (7, 9)):
        x = np.random.default_rng(1).normal(size=(2, *size, 16))
        with torch.inference_mode():
            y = layer(first_to_last(x).float())
        assert y.dtype == torch.float32
        assert relative_error(y, first_to_last(involution(x, weights, "", 4, stride))) <= 1e-5


@pytest.mark.parametrize(
    ("stride", "size", "calls"), [(1, (8, 7), 1), (1, (1, 2), 1), (2, (7, 9), 1), (2, (8, 9), 0), (3, (7, 7), 0)]
)
def test_the_layer_inside_is_called_as_it_is_where_windows_agree(stride: int, size: tuple, calls: int) -> None:
    layer = KerasInvolution2d(layer_weights(8, 5, 2), 2, stride, backend="naive").eval()
    seen: list[torch.Size] = []
    layer.layer.register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0].shape[2:]))
    layer(torch.randn(2, 8, *size, dtype=torch.float64))
    assert seen == [size] * calls


@pytest.mark.parametrize(("stride", "size"), [(1, (6, 5)), (2, (7, 9))])
def test_converted_weights_load_into_a_plain_layer(stride: int, size: tuple[int, int]) -> None:
    weights = layer_weights(12, 3, 4)
    state, order, options = convert_involution(weights, 4)
    layer = Involution2d(**options, stride=stride, backend="naive").double().eval()
    assert options == {"channels": 12, "kernel_size": 3, "groups": 4, "hidden_channels": 3}
    assert order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    layer.load_state_dict(state, strict=True)
    assert list(state) == list(layer.state_dict())
    x = np.random.default_rng(1).normal(size=(2, *size, 12))
    expected = first_to_last(involution(x, weights, "", 4, stride))
    assert relative_error(layer(first_to_last(x)[:, order]), expected[:, order]) <= 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_training_goes_on_with_keras_s_batch_norm(stride: int) -> None:
    weights = layer_weights(8, 3, 2)
    layer = KerasInvolution2d(weights, 2, stride, backend="naive").train()
    x = np.random.default_rng(1).normal(size=(3, 6, 4, 8))
    settled = dict(weights)
    expected = involution(x, settled, "", 2, stride, settle=True)
    image = first_to_last(x).requires_grad_()
    y = layer(image)
    assert relative_error(y, first_to_last(expected)) <= 1e-12
    y.square().sum().backward()
    assert image.grad is not None
    assert all(parameter.grad is not None for parameter in layer.parameters())
    # The bias is off the mean, which is all that a norm can tell of it.
    kept, new = (torch.from_numpy(found["norm.running_mean"] - weights["reduce.bias"]) for found in (weights, settled))
    torch.testing.assert_close(layer.layer.norm.running_mean, 0.99 * kept + 0.01 * new)


def shuffled_names(weights: dict[str, Array]) -> dict[str, Array]:
    return dict(sorted(weights.items(), reverse=True))


@pytest.mark.parametrize(
    "written",
    [
        lambda weights: {keras_name(name): value for name, value in weights.items()},
        lambda weights: {keras_path(name): value for name, value in weights.items()},
        lambda weights: {f"layer1.0.conv2.{name}": value for name, value in shuffled_names(weights).items()},
        lambda weights: {
            name.replace("reduce", "conv1.conv").replace("norm", "conv1.bn").replace("span", "conv2.conv"): value
            for name, value in shuffled_names(weights).items()
        },
        lambda weights: {name: torch.from_numpy(value).requires_grad_() for name, value in weights.items()},
        lambda weights: {name: value.tolist() for name, value in weights.items()},
    ],
    ids=["keras", "keras_paths", "ours_unordered", "official_unordered", "tensors", "lists"],
)
def test_names_and_values_of_a_layer(written: Callable[[dict[str, Array]], dict[str, Any]]) -> None:
    weights = layer_weights(8, 3, 2)
    expected, given = convert_involution(weights, 2).state, written(weights)
    state = convert_involution(given, 2).state
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.requires_grad


def test_values_are_copied() -> None:
    weights = layer_weights(8, 3, 8)
    before = copy.deepcopy(weights)
    for value in weights.values():
        value.flags.writeable = False
    for tensor in convert_involution(weights, 8).state.values():
        tensor.zero_()
    for name, value in weights.items():
        assert np.array_equal(value, before[name]), name


def test_what_may_be_missing() -> None:
    weights = layer_weights(8, 3, 2)
    few = {name: value for name, value in weights.items() if not name.endswith("bias") and name != "norm.weight"}
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 8))
    expected = dict(few, **{"span.bias": np.zeros(18)})
    layer = KerasInvolution2d(few, 2, 2, backend="naive").eval()
    assert relative_error(layer(first_to_last(x)), first_to_last(involution(x, expected, "", 2, 2))) <= 1e-12


def test_layer_keeps_memory_formats_and_takes_empty_batches() -> None:
    layer = KerasInvolution2d(layer_weights(8, 3, 2), 2, 2, backend="naive").eval()
    for size in ((8, 6), (7, 7)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        y = layer(x.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert layer(x).is_contiguous()
        torch.testing.assert_close(y, layer(x))  # a 1x1 convolution may sum in another order in the other layout
        assert layer(x[:0]).shape == (0, *y.shape[1:])


def test_layer_copies_pickles_and_is_one_graph() -> None:
    torch.compiler.reset()
    layer = KerasInvolution2d(layer_weights(8, 3, 2), 2, 2, backend="unfold").eval()
    x = torch.randn(1, 8, 6, 5, dtype=torch.float64)
    with torch.inference_mode():
        y = layer(x)
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), y)


# --- Networks ---


def network_weights(network: nn.Module, biases: bool = False) -> dict[str, Array]:
    """Random weights in TensorFlow's layout, under our names."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, tensor in network.state_dict().items():
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            fan_in = np.prod(shape[1:])
            shape = (*shape[2:], shape[1], shape[0])
            weights[name] = rng.normal(size=shape, scale=0.3 / fan_in**0.5)
        elif name.endswith("weight"):
            weights[name] = rng.uniform(0.5, 1.5, shape)
        elif not name.endswith("num_batches_tracked"):
            weights[name] = rng.normal(size=shape, scale=0.3)
    if biases:
        for name in [name for name in weights if weights[name].ndim == 4]:
            weights.setdefault(name.replace("weight", "bias"), rng.normal(size=weights[name].shape[3]))
    return weights


def same_names(weights: dict[str, Array]) -> dict[str, Array]:
    return weights


def keras_names(weights: dict[str, Array]) -> dict[str, Array]:
    return {keras_name(name): value for name, value in weights.items()}


def classifier_names(weights: dict[str, Array]) -> dict[str, Array]:
    return official_names(weights, "backbone.", "head.fc.")


@pytest.mark.parametrize(
    ("written", "size", "same", "options"),
    [
        (same_names, (33, 65), True, {}),
        (keras_names, (40, 32), False, {"stem_kernel_size": 3, "group_channels": 8}),
        (classifier_names, (35, 33), False, {"kernel_size": 3, "groups": 4}),
        (keras_names, (1, 33), True, {"stem_kernel_size": 3, "kernel_size": 3, "generator": "linear"}),
    ],
    ids=["same", "centred_keras_names", "centred_official_names", "same_linear_generator"],
)
def test_a_network_has_the_same_logits(written: Callable, size: tuple, same: bool, options: dict[str, Any]) -> None:
    network = create("rednet26", num_classes=5, backend="naive", **options).double().eval()
    biased = written is keras_names
    weights = network_weights(network, biases=biased)

    def groups(C: int) -> int:
        return options.get("groups") or C // options.get("group_channels", 16)

    x = np.random.default_rng(1).normal(size=(2, *size, 3))
    blocks = (1, 2, 4, 1)
    rednet(x, weights, blocks, groups, same, settle=True)
    expected = torch.from_numpy(rednet(x, weights, blocks, groups, same, settle=False))
    state = convert_rednet(written(weights), network)
    assert list(state) == list(network.state_dict())
    network.load_state_dict(state, strict=True)
    with torch.inference_mode():
        logits = network(first_to_last(x))
    assert (expected - expected.mean(0)).abs().max() > 0.01  # the image matters
    assert relative_error(logits, expected) <= 1e-10


def test_same_at_even_sizes_is_what_weights_cannot_say() -> None:
    network = create("rednet26", num_classes=5, backend="naive", stem_kernel_size=3, kernel_size=3).double().eval()
    weights = network_weights(network)
    x = np.random.default_rng(1).normal(size=(1, 32, 32, 3))
    arguments = (x, weights, (1, 2, 4, 1), lambda C: C // 16, True)
    rednet(*arguments, settle=True)
    network.load_state_dict(convert_rednet(weights, network))
    with torch.inference_mode():
        assert relative_error(network(first_to_last(x)), torch.from_numpy(rednet(*arguments, settle=False))) > 1e-3


# --- What is refused ---


def test_channel_order_is_its_definition() -> None:
    order = channel_order(6, 2)
    for g, m in itertools.product(range(2), range(3)):
        assert order[g * 3 + m] == m * 2 + g
    with pytest.raises(InvbenchError, match="G must divide C: got C=6 and G=4"):
        channel_order(6, 4)


def without(weights: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda w: w, {"groups": 3}, "G must divide C: got C=8 and G=3; try G="),
        (lambda w: w, {"groups": 0}, "G must be a whole number of at least 1"),
        (lambda w: w, {"groups": 4}, r"span\.weight must have K\*K\*G outputs: got 18 with G=4; .*group_number"),
        (lambda w: w, {"epsilon": 1e-6}, "epsilon must be at least 1e-05.*got epsilon=1e-06"),
        (lambda w: w, {"epsilon": float("nan")}, "epsilon must be at least 1e-05.*got epsilon=nan"),
        (lambda w: {}, {}, r"needs reduce\.weight \[1, 1, in, out\].*got none"),
        (lambda w: without(w, "span.weight"), {}, r"needs span\.weight .*got none"),
        (lambda w: w | {"reduce.weight": np.zeros((3, 8, 1, 1))}, {}, r"needs reduce\.weight .*got \[3, 8, 1, 1\]"),
        (lambda w: w | {"span.weight": np.zeros((1, 1, 3, 32))}, {}, "K must be odd.*got K=4"),
        (lambda w: w | {"span.weight": np.zeros((1, 1, 4, 18))}, {}, r"span\.weight must be \[1, 1, 3, 18\].*got"),
        (lambda w: w | {"norm.weight": np.zeros(4)}, {}, r"norm\.weight must be \[3\].*got \[4\]"),
        (lambda w: w | {"reduce.bias": np.zeros(1)}, {}, r"reduce\.bias must be \[3\].*got \[1\]"),
        (lambda w: without(w, "norm.running_mean"), {}, r"weights lack norm\.running_mean: got 7 names"),
        (lambda w: w | {"norm.seed": np.zeros(3)}, {}, r"which has no norm\.seed; leave it out"),
        (lambda w: w | {"norm.gamma": np.zeros(3)}, {}, r"got norm\.weight twice, also as norm\.gamma"),
        (lambda w: w | {"span.bias": np.array(["a"])}, {}, r"got span\.bias as ndarray"),
        (lambda w: w | {"other.weight": np.zeros((1, 1, 8, 8))}, {}, "2 kernels and 1 moving mean.*got 3, 1 and 4"),
    ],
)  # fmt: skip
def test_bad_weights_of_a_layer_are_refused_in_one_line(change: Callable, options: dict, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        convert_involution(change(layer_weights(8, 3, 2)), **{"groups": 2, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 5, 5), (1, 5, 5, 8), (1, 7, 5, 5)])
def test_bad_images_are_refused_in_one_line(shape: tuple[int, ...]) -> None:
    layer = KerasInvolution2d(layer_weights(8, 3, 2), 2)
    with pytest.raises(InvbenchError, match=r"takes \[N, 8, H, W\]: got .*permute\(0, 3, 1, 2\)"):
        layer(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: without(w, "fc.weight"), r"weights lack fc\.weight: got"),
        (lambda w: without(w, *(n for n in w if "running" in n)), r"weights lack stem.* and \d+ more"),
        (lambda w: w | {"layer9.0.conv1.weight": np.zeros(1)}, r"has no layer9\.0\.conv1\.weight"),
        (lambda w: w | {"fc.kernel": w["fc.weight"]}, r"got fc\.weight twice"),
        (
            lambda w: w | {"fc.weight": w["fc.weight"].T},
            r"fc\.weight must be \[2048, 5\].*\[in, out\]: got \[5, 2048\]",
        ),
        (
            lambda w: w | {"layer1.0.conv1.weight": np.zeros((64, 64, 1, 1))},
            r"layer1\.0\.conv1\.weight must be \[1, 1, 64, 64\].*: got \[64, 64, 1, 1\]; ",
        ),
    ],
)
def test_bad_weights_of_a_network_are_refused_in_one_line(change: Callable, message: str) -> None:
    with torch.device("meta"):
        network = create("rednet26", num_classes=5)
    weights = {
        name: np.zeros((*tensor.shape[2:], *reversed(tensor.shape[:2])))
        for name, tensor in network.state_dict().items()
    }
    convert_rednet(weights, network)
    with pytest.raises(InvbenchError, match=message) as caught:
        convert_rednet(change(weights), network)
    assert "\n" not in str(caught.value)


def test_only_rednets_are_converted() -> None:
    with pytest.raises(InvbenchError, match=r"takes a RedNet: got Linear; make one with create\('rednet50'\)"):
        convert_rednet({}, nn.Linear(1, 1))
