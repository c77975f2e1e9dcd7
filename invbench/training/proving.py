"""Whether a network computes what the equations say, before it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.harness.networks.build import with_backend
from invbench.harness.networks.proving import CHECKED_IMAGES, GRADIENT_TOLERANCE, TOLERANCE, Check
from invbench.harness.steps import largest_difference
from invbench.spec import TrainingCase
from invbench.training import TrainingSubject
from invbench.training.learning import build, random_batch, seed_of

# A gradient's error is a share of its own norm, but where that is small of all gradients' together: a bias before a
# batch norm has none at all, and rounding is not.
LEAST_GRADIENT = 1e-3


def check(subject: TrainingSubject, case: TrainingCase, seed: int) -> Check:
    """Compare a training step with the float64 reference by the naive backend, and then inference.

    Of some random images: the logits and all gradients of the loss, with batch norms that see the batch and without
    dropout, and the logits of the same images with what the batch norms have learned.
    """
    network = build(subject.model, subject.backend, case, seed)
    # Only CUDA is known to have float64 on the device.
    place = case.device if torch.device(case.device).type == "cuda" else "cpu"
    reference = with_backend(network, "naive").to(place, torch.float64)
    x, y = random_batch(case, subject.model, min(case.N, CHECKED_IMAGES), seed_of("check", seed))
    expected = _step(reference, x.to(place, torch.float64), y.to(place))
    found = _step(network, x, y)
    whole = torch.stack([gradient.norm() for gradient in expected[2:]]).norm().item()
    precision = _precision(case)
    checks = [
        *(Check(largest_difference(a, b), TOLERANCE[precision]) for a, b in zip(found[:2], expected[:2], strict=True)),
        *(
            Check(_gradient_difference(a, b, LEAST_GRADIENT * whole), GRADIENT_TOLERANCE[precision])
            for a, b in zip(found[2:], expected[2:], strict=True)
        ),
    ]
    wrong = (each for each in checks if not each.is_close)  # also where it is NaN
    return next(wrong, max(checks, key=lambda each: each.relative / each.tolerance))


def _step(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The logits of training, those of inference afterwards, and the gradients."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.eval()
    logits = network(x)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y), list(network.parameters()))
    with torch.inference_mode():
        inferred = network.eval()(x)
    return [logits.detach(), inferred, *gradients]


def _gradient_difference(gradient: Tensor, expected: Tensor, least: float) -> float:
    difference: float = (gradient.to(expected.device, torch.float64) - expected).norm().item()
    scale = max(expected.norm().item(), least)
    return difference / scale if scale else difference


def _precision(case: TrainingCase) -> str:
    """cuDNN may round the inputs of a float32 convolution to TF32's ten bits, as PyTorch allows by default."""
    on_cuda = torch.device(case.device).type == "cuda"
    tf32 = on_cuda and case.dtype == "float32" and torch.backends.cudnn.allow_tf32
    return "float16" if tf32 else case.dtype
