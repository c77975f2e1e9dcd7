"""Batch norm folded away: the same function, fewer norms, and what cannot be folded stays."""

from __future__ import annotations

import pytest
import torch
from test_models import awake
from torch import Tensor, nn

from invbench.models import create
from invbench.models.folding import fold_batch_norm
from invbench.ops import Involution2d
from invbench.spec import InvbenchError


def norms(network: nn.Module) -> list[str]:
    return [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]


def shifted(network: nn.Module) -> nn.Module:
    """No scale, shift or bias at its default."""
    for part in network.modules():
        bias = getattr(part, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.uniform_(bias, -0.5, 0.5)
    return network


@pytest.mark.parametrize("name", ["rednet26", "resnet26"])
def test_folded_network_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 65, 64, dtype=torch.float64)
    network = awake(shifted(create(name, num_classes=5, backend="naive").double()), x).eval()
    folded = fold_batch_norm(network)
    with torch.inference_mode():
        expected, got = network(x), folded(x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_convolutional_network_keeps_no_norm() -> None:
    network = create("resnet26").eval()
    assert len(norms(network)) == 1 + 8 * 3 + 4
    folded = fold_batch_norm(network)
    assert norms(folded) == []
    assert len(norms(network)) == 1 + 8 * 3 + 4  # the original is as it was
    assert all(part.bias is not None for part in folded.modules() if isinstance(part, nn.Conv2d))


def test_only_the_norms_behind_involutions_stay() -> None:
    network = create("rednet26", backend="naive").eval()
    folded = fold_batch_norm(network)
    behind = [f"layer{stage}.{block}.bn2" for stage, blocks in enumerate((1, 2, 4, 1), 1) for block in range(blocks)]
    assert norms(folded) == ["stem.2", *behind]
    for layer in folded.modules():
        if isinstance(layer, Involution2d):
            assert isinstance(layer.norm, nn.Identity)
            assert layer.reduce.bias is not None


def test_a_linear_generator_has_nothing_to_fold() -> None:
    network = create("rednet26", backend="naive", generator="linear").eval()
    assert len(norms(fold_batch_norm(network))) == 9


def test_the_layout_of_weights_stays() -> None:
    network = create("resnet26").eval().to(memory_format=torch.channels_last)
    for name, part in fold_batch_norm(network).named_modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            assert part.weight.is_contiguous(memory_format=torch.channels_last), name


def test_a_convolution_with_two_readers_keeps_its_norm() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    class Twice(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.conv(x)

    for network in (Two().eval(), Twice().eval()):
        x = torch.randn(1, 3, 4, 4)
        awake(shifted(network), x).eval()
        folded = fold_batch_norm(network)
        assert norms(folded) == ["norm"]
        assert torch.equal(folded(x), network(x))


def test_train_mode_is_refused() -> None:
    with pytest.raises(InvbenchError, match=r"got a network in train mode; call eval\(\)"):
        fold_batch_norm(create("resnet26"))


def test_what_cannot_be_traced_is_refused_in_one_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InvbenchError, match=r"torch\.fx cannot trace Branch") as caught:
        fold_batch_norm(Branch().eval())
    assert "\n" not in str(caught.value)
