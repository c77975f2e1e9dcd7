"""``Involution2d``: its structure, its state, and what it computes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from cases import TOLERANCE, relative_error, require, targets
from torch import Tensor, nn

from invbench import Involution2d, involution2d
from invbench.spec import BackendUnavailableError, InvbenchError

OFFICIAL = {"conv1.conv": "reduce", "conv1.bn": "norm", "conv2.conv": "span"}
by_quick_target = pytest.mark.parametrize(("backend", "device"), list(targets(slow=False)))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(layer: Involution2d) -> Involution2d:
    """The layer with no parameter or statistic at its default."""
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return layer


def official_state(layer: Involution2d, prefix: str = "") -> dict[str, Tensor]:
    """The layer's state under the names of the official repository."""
    names = {own: official for official, own in OFFICIAL.items()}
    state = {}
    for name, tensor in layer.state_dict().items():
        part, leaf = name.split(".", 1)
        state[f"{prefix}{names[part]}.{leaf}"] = tensor
    return state


# --- Structure ---


def test_structure_is_the_official_one() -> None:
    layer = Involution2d(64, stride=2)
    assert (layer.spec.K, layer.spec.G, layer.spec.stride) == (7, 4, 2)
    assert isinstance(layer.pool, nn.AvgPool2d)
    assert (layer.pool.kernel_size, layer.pool.stride, layer.pool.ceil_mode) == (2, 2, True)
    assert isinstance(Involution2d(64).pool, nn.Identity)
    assert (layer.reduce.weight.shape, layer.reduce.bias) == ((16, 64, 1, 1), None)
    assert isinstance(layer.norm, nn.BatchNorm2d)
    assert isinstance(layer.activation, nn.ReLU)
    assert layer.span.weight.shape == (49 * 4, 16, 1, 1)
    assert layer.span.bias is not None


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        # reduce C*C/4, norm 2*C/4, span (C/4 + 1)*K*K*G
        ({"channels": 64}, 64 * 16 + 2 * 16 + 17 * 49 * 4),
        ({"channels": 256}, 256 * 64 + 2 * 64 + 65 * 49 * 16),
        ({"channels": 64, "kernel_size": 3, "group_channels": 4}, 64 * 16 + 2 * 16 + 17 * 9 * 16),
        ({"channels": 8}, 8 * 2 + 2 * 2 + 3 * 49),
        ({"channels": 64, "generator": "linear"}, 65 * 49 * 4),
        ({"channels": 64, "hidden_channels": 5, "reduce_bias": True}, 65 * 5 + 2 * 5 + 6 * 49 * 4),
        # the generators of SEED's small networks (FACTS.md): one hidden channel, one group, biases
        ({"channels": 3, "kernel_size": 3, "groups": 1, "hidden_channels": 1, "reduce_bias": True}, 4 + 2 + 18),
    ],
)
def test_parameter_counts(arguments: dict, parameters: int) -> None:
    assert count(Involution2d(**arguments)) == parameters


@pytest.mark.parametrize("channels", [1, 3, 8, 15, 16, 17, 31])
def test_few_channels_are_one_group(channels: int) -> None:
    layer = Involution2d(channels, kernel_size=3)
    assert layer.spec.G == 1
    assert layer(torch.randn(2, channels, 4, 5)).shape == (2, channels, 4, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "got channels=0"),
        ({"channels": 16, "kernel_size": 4}, "K must be odd.*got K=4"),
        ({"channels": 10, "groups": 4}, "G must divide C: got C=10 and G=4; try G=5"),
        ({"channels": 40, "group_channels": 12}, "G must divide C: got C=40 and G=3"),
        ({"channels": 50, "group_channels": 16}, "G must divide C: got C=50 and G=3"),
        ({"channels": 16, "group_channels": 0}, "got group_channels=0"),
        ({"channels": 16, "hidden_channels": 0}, "got hidden_channels=0"),
        ({"channels": 16, "stride": 0}, "got stride=0"),
        ({"channels": 16, "padding_mode": "same"}, "padding_mode must be one of"),
        ({"channels": 16, "generator": "mlp"}, "generator must be one of bottleneck, linear: got 'mlp'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        Involution2d(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 8, 5, 5), (8, 5, 5), (5, 5), (1, 2, 16, 5, 5)])
def test_bad_input_is_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvbenchError, match=r"takes \[N, 16, H, W\] or \[16, H, W\]: got .*; ") as caught:
        Involution2d(16, 3)(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(InvbenchError, match=r"backend must be one of auto, .*: got 'cupy'"):
        Involution2d(16, 3, backend="cupy")(torch.zeros(1, 16, 4, 4))


def test_a_backend_that_cannot_run_is_not_replaced() -> None:
    layer = Involution2d(16, 3, backend="numba", device="meta")
    with pytest.raises(BackendUnavailableError, match="numba"):
        layer(torch.zeros(1, 16, 4, 4, device="meta"))


def test_repr_shows_the_spec() -> None:
    text = repr(Involution2d(64, 5, stride=2, backend="naive"))
    assert "64, kernel_size=5, stride=2, dilation=1, groups=4, padding_mode='zeros', backend='naive'" in text


# --- State ---


def test_own_names_round_trip() -> None:
    source, target = randomised(Involution2d(32, 3)), Involution2d(32, 3)
    names = {name.split(".")[0] for name in source.state_dict()}
    assert names == {"reduce", "norm", "span"}
    target.load_state_dict(source.state_dict(), strict=True)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["", "layer1.0.conv2."])
def test_official_names_load(prefix: str) -> None:
    source, target = randomised(Involution2d(32, 3)), Involution2d(32, 3)
    state = official_state(source, prefix)
    assert f"{prefix}conv1.bn.running_var" in state
    before = dict(state)
    holder: nn.Module = target
    for name in reversed(prefix.split(".")[:-1]):
        holder = nn.ModuleDict({name: holder})
    holder.load_state_dict(state, strict=True)
    assert state.keys() == before.keys()  # the caller's dict is left alone
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_missing_and_unexpected_names_are_still_reported() -> None:
    state = official_state(Involution2d(32, 3))
    del state["conv2.conv.bias"]
    state["conv3.conv.weight"] = torch.zeros(1)
    missing, unexpected = Involution2d(32, 3).load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["span.bias"], ["conv3.conv.weight"])
    with pytest.raises(RuntimeError, match=r"Missing key.*span\.bias"):
        Involution2d(32, 3).load_state_dict(state, strict=True)


def test_a_wrong_shape_is_still_reported() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for span\.weight"):
        Involution2d(32, 5).load_state_dict(official_state(Involution2d(32, 3)))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_share_nothing(clone) -> None:
    layer = randomised(Involution2d(32, 3, stride=2, padding_mode="reflect")).eval()
    twin = clone(layer)
    x = torch.randn(2, 32, 5, 6)
    assert torch.equal(twin(x), layer(x))
    assert (twin.spec, twin.backend) == (layer.spec, layer.backend)
    with torch.no_grad():
        twin.span.weight.zero_()
    assert layer.span.weight.any()


def test_another_dtype_on_the_meta_device_is_refused_by_torch() -> None:
    layer = Involution2d(16, 3, device="meta").bfloat16()
    with pytest.raises(RuntimeError, match="BFloat16"):
        layer(torch.empty(1, 16, 4, 4, device="meta"))


def test_meta_device_and_back() -> None:
    layer = Involution2d(32, 3, stride=2, device="meta")
    assert layer(torch.empty(2, 32, 7, 7, device="meta")).shape == (2, 32, 4, 4)
    source = randomised(Involution2d(32, 3, stride=2))
    layer.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(2, 32, 7, 7)
    assert torch.equal(layer.eval()(x), source.eval()(x))


# --- Results ---


def by_hand(layer: Involution2d, x: Tensor) -> Tensor:
    """The layer written out, with the reference backend."""
    spec = layer.spec
    hidden = nn.functional.avg_pool2d(x, spec.stride, spec.stride, ceil_mode=True)
    if not isinstance(layer.reduce, nn.Identity):
        hidden = nn.functional.conv2d(hidden, layer.reduce.weight, layer.reduce.bias)
        norm = layer.norm
        hidden = nn.functional.batch_norm(
            hidden, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias, layer.training
        ).relu()
    # Output channel g*K*K + tap of the generator is tap (u, v) = divmod(tap, K) of group g.
    weight = nn.functional.conv2d(hidden, layer.span.weight, layer.span.bias)
    weight = weight.reshape(len(x), spec.G, spec.K**2, *weight.shape[2:])
    return involution2d(x, weight, spec.stride, spec.dilation, spec.padding_mode, backend="naive")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"channels": 32, "kernel_size": 3},
        {"channels": 32, "kernel_size": 7, "stride": 2},
        {"channels": 8, "kernel_size": 3, "dilation": 2, "padding_mode": "reflect"},
        {"channels": 8, "kernel_size": 3, "groups": 4, "generator": "linear"},
        {"channels": 8, "kernel_size": 5, "hidden_channels": 3, "reduce_bias": True, "padding_mode": "circular"},
    ],
    ids=str,
)
@by_quick_target
def test_output_and_gradients_are_the_reference_s(backend: str, device: str, arguments: dict, training: bool) -> None:
    require(backend, device, torch.float64)
    torch.manual_seed(0)
    layer = randomised(Involution2d(**arguments, backend=backend, dtype=torch.float64)).train(training).to(device)
    x = torch.randn(3, layer.spec.C, 7, 9, dtype=torch.float64, device=device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = by_hand(layer, x)
    y = layer(x)
    grad_y = torch.randn(y.shape, dtype=y.dtype).to(device)
    tensors = {"x": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(y, tuple(tensors.values()), grad_y)
    expected_grads = torch.autograd.grad(expected, tuple(tensors.values()), grad_y)
    assert relative_error(y, expected.detach().cpu()) <= TOLERANCE[torch.float64]
    assert y.is_contiguous(memory_format=torch.channels_last)
    for name, grad, wanted in zip(tensors, grads, expected_grads, strict=True):
        # Sums over all positions follow the operator; the bias before a norm in training has a gradient of zero.
        if not (training and name == "reduce.bias"):
            assert relative_error(grad, wanted.cpu()) <= 1e-12, name


@by_quick_target
@pytest.mark.parametrize("size", [(7, 7), (13, 13), (225, 223), (1, 1), (2, 3)], ids=str)
def test_stride2_on_odd_sizes(backend: str, device: str, size: tuple[int, int]) -> None:
    require(backend, device)
    layer = randomised(Involution2d(4, 7, stride=2, backend=backend)).eval().to(device)
    x = torch.randn(1, 4, *size, device=device)
    y = layer(x)
    assert y.shape == (1, 4, -(-size[0] // 2), -(-size[1] // 2))
    assert relative_error(y, by_hand(layer, x).detach().double().cpu()) <= TOLERANCE[torch.float32]


def test_one_image_without_its_batch() -> None:
    layer = randomised(Involution2d(16, 3, stride=2)).eval()
    x = torch.randn(16, 7, 5)
    assert torch.equal(layer(x), layer(x.unsqueeze(0)).squeeze(0))


def test_empty_batch() -> None:
    assert Involution2d(16, 3).eval()(torch.empty(0, 16, 4, 5)).shape == (0, 16, 4, 5)


def test_train_updates_statistics_and_eval_does_not() -> None:
    layer, x = Involution2d(16, 3), torch.randn(4, 16, 5, 5)
    layer.eval()(x)
    assert int(layer.norm.num_batches_tracked) == 0
    layer.train()(x)
    assert int(layer.norm.num_batches_tracked) == 1
    assert layer.norm.running_mean.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layer_in_another_dtype(dtype: torch.dtype) -> None:
    layer = Involution2d(16, 3, dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer(torch.randn(2, 16, 5, 5, dtype=dtype)).dtype == dtype


@by_quick_target
@pytest.mark.parametrize("stride", [1, 2])
def test_inference_with_fixed_statistics(stride: int, backend: str, device: str) -> None:
    """A backend may fold the norm into reduce and compute the whole layer at once."""
    require(backend, device)
    torch.manual_seed(0)
    layer = Involution2d(32, 3, stride, backend=backend, device=device).eval()
    reference = copy.deepcopy(layer)
    for parameter in (layer.norm.running_mean, layer.norm.running_var, *layer.norm.parameters()):
        torch.nn.init.uniform_(parameter, 0.5, 1.5)
    reference.load_state_dict(layer.state_dict())
    reference.double().backend = "naive"
    x = torch.randn(2, 32, 9, 7, device=device)
    with torch.inference_mode():
        assert relative_error(layer(x), reference(x.double()).cpu()) <= 1e-5


def test_what_a_layer_is_made_of_is_asked_without_comparing_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether None is in a tuple of tensors, torch takes longer to say than a small layer takes to run."""
    layer = Involution2d(16, backend="naive").eval()

    def refuse(self: torch.Tensor, other: object) -> bool:
        raise AssertionError("a tensor was compared")

    monkeypatch.setattr(torch.Tensor, "__eq__", refuse)
    assert layer._reducer()
