"""Self-attention networks: published counts, what they take, and that they train, fold and compile."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from test_folding import norms
from test_models import awake
from torch import Tensor, nn

from invbench.attention.operators import MODULES
from invbench.harness.networks.build import _settle
from invbench.models import SUBJECTS, create
from invbench.models.attending import SAN
from invbench.models.counting import Counts, count
from invbench.models.folding import fold_batch_norm
from invbench.spec import InvbenchError

# FACTS.md's COUNT figures at 224 x 224: params in millions, multiply-adds in billions, and which of the two these are.
COUNTS: dict[str, tuple[float, float, str]] = {
    "san10_pairwise": (10.53, 2.16, "macs_mmcv"),
    "san15_pairwise": (14.07, 3.02, "macs_mmcv"),
    "san19_pairwise": (17.60, 3.84, "macs_mmcv"),
    "san10_patchwise": (11.84, 1.87, "macs_mmcv"),
    "san15_patchwise": (16.18, 2.58, "macs_mmcv"),
    "san19_patchwise": (20.52, 3.26, "macs_mmcv"),
    "stand_alone26": (10.33, 2.19, "macs"),
    "stand_alone38": (14.17, 2.79, "macs"),
    "stand_alone50": (18.02, 3.39, "macs"),
    "lrnet26": (14.61, 2.39, "macs_mmcv"),
    "lrnet50": (23.37, 4.05, "macs_mmcv"),
    "lrnet101": (40.78, 7.53, "macs_mmcv"),
    "axial26s": (5.94, 1.81, "macs"),
    "axial50s": (11.59, 2.84, "macs"),
    "axial50m": (25.18, 5.96, "macs"),
    "axial50l": (43.97, 10.19, "macs"),
}
# Of each family the smallest, and sizes that divide by 32 and that do not.
SMALLEST = {"san10_pairwise": 128, "san10_patchwise": 128, "stand_alone26": 32, "lrnet26": 32, "axial26s": 32}
ALL = [pytest.param(name, marks=() if name in SMALLEST else pytest.mark.slow) for name in COUNTS]


def size_of(name: str, more: int = 0) -> tuple[int, int]:
    """Of which the last map has two rows at least: attention to a line of one pixel knows no scores."""
    return (128 + more, 128 + 2 * more) if name.startswith("san") else (64 + more, 64 + 2 * more)


def meta(name: str) -> nn.Module:
    return create(name).to("meta")


def test_the_table_has_every_network() -> None:
    assert set(COUNTS) == {name for name, model in SUBJECTS.items() if model.suite == "attention"}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    params, macs, which = COUNTS[name]
    found: Counts = count(meta(name), 224, 224)
    assert round(found.params / 1e6, 2) == params
    assert round(getattr(found, which) / 1e9, 2) == macs
    assert found.params_trainable == found.params
    assert found.output == (1000,)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("more", [0, 17])
def test_shapes_of_any_size(name: str, more: int) -> None:
    network = meta(name)
    H, W = size_of(name, more)
    x = torch.zeros(2, 3, H, W, device="meta", requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 1000)
    logits.sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", SMALLEST)
def test_features_without_classes(name: str) -> None:
    model = SUBJECTS[name]
    network = model.build(num_classes=None).to("meta")
    features = network(torch.zeros(2, 3, 160, 224, device="meta"))
    sizes = [(160 // stride, 224 // stride) for stride in network.feature_strides]
    assert [tuple(f.shape) for f in features] == [
        (2, channels, *size) for channels, size in zip(network.feature_channels, sizes, strict=True)
    ]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("more", [0, 5])
def test_a_fresh_network_is_finite_and_trains(name: str, more: int) -> None:
    torch.manual_seed(0)
    network = create(name, num_classes=5)
    x = torch.randn(2, 3, *size_of(name, more))
    with torch.inference_mode():
        assert torch.isfinite(network.eval()(x)).all()
    awake(network, x)
    network.train()(x).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    # A bias before a norm, and one that all scores have in common, change nothing; all else does.
    idle = [key for key, p in network.named_parameters() if not p.grad.any()]
    assert all(key.endswith("bias") for key in idle), idle


@pytest.mark.parametrize("name", SMALLEST)
def test_the_first_step_reaches_every_block(name: str) -> None:
    torch.manual_seed(0)
    network = create(name, num_classes=5).train()
    network(torch.randn(2, 3, *size_of(name))).square().sum().backward()
    for block in network.modules():
        if type(block).__name__ in ("Bottleneck", "SANBlock"):
            assert any(p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("name", SMALLEST)
def test_folded_network_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size_of(name, 3), dtype=torch.float64)
    network = create(name, num_classes=5).double()
    awake(network, x).eval()
    folded = fold_batch_norm(network)
    with torch.inference_mode():
        expected, got = network(x), folded(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert len(norms(folded)) < len(norms(network))


def test_norms_that_no_convolution_comes_before_stay() -> None:
    axial = norms(fold_batch_norm(create("axial26s").eval()))
    assert axial
    assert all(name.endswith(("norm_scores", "norm_out")) for name in axial)
    lrnet = norms(fold_batch_norm(create("lrnet26").eval()))
    # The projection of a local relation layer is a convolution, and takes the norm behind it.
    assert lrnet == []
    pairwise = norms(fold_batch_norm(create("san10_pairwise").eval()))
    assert all(name.endswith(("bn1", "bn2", "conv_w.0", ".3", ".4", ".5", ".6")) for name in pairwise)
    assert not any(name.endswith("conv_w.3") for name in pairwise)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "axial26s" else pytest.mark.slow) for name in SMALLEST]
)
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size_of(name, 3))
    network = awake(create(name, num_classes=5), x).eval()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALLEST)
def test_can_be_pickled(name: str) -> None:
    network = create(name, num_classes=2)
    other = pickle.loads(pickle.dumps(network))
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[key])


@pytest.mark.parametrize(("name", "size"), [("san10_pairwise", (127, 200)), ("axial26s", (32, 225))])
def test_images_of_other_sizes_are_refused(name: str, size: tuple[int, int]) -> None:
    limit = r"at least 128|at most 224"
    with pytest.raises(InvbenchError, match=rf"takes images of ({limit}) pixels a side: got H=\d+ and W=\d+"):
        meta(name)(torch.empty(1, 3, *size, device="meta"))


def test_kinds_are_checked() -> None:
    with pytest.raises(InvbenchError, match="kind must be one of pairwise, patchwise"):
        SAN((1, 1, 1, 1, 1), "other")


def test_scores_of_a_fresh_network_are_small() -> None:
    """Convolutions inside attention are not He et al.'s: a softmax of large scores would be a maximum."""
    network = create("stand_alone26")
    for part in network.modules():
        if isinstance(part, MODULES):
            for conv in part.modules():
                if isinstance(conv, nn.Conv2d):
                    assert conv.weight.abs().max() <= conv.in_channels**-0.5


@pytest.mark.parametrize("name", SMALLEST)
def test_channels_last_and_bfloat16(name: str) -> None:
    torch.manual_seed(0)
    network = create(name, num_classes=5)
    x = torch.randn(2, 3, 132, 160)
    _settle(network, x)  # as networks are measured: rounding grows less
    network.eval()
    with torch.inference_mode():
        expected = network(x)
        last: Tensor = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert (network(x).float() - expected).norm() < 0.1 * expected.norm()


def test_import_needs_no_torch() -> None:
    code = "import sys, invbench.models, invbench.attention; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
