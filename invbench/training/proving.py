"""Whether a network computes what the equations say, before it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invbench.harness.networks.build import with_backend
from invbench.harness.networks.proving import CHECKED_IMAGES, GRADIENT_TOLERANCE, TOLERANCE, most_used
from invbench.harness.steps import (
    Agreement,
    gradient_differences,
    largest_difference,
    precision_of,
    reference_device,
)
from invbench.spec import TrainingCase
from invbench.training import TrainingSubject
from invbench.training.learning import build, random_batch, seed_of


def check(subject: TrainingSubject, case: TrainingCase, seed: int) -> Agreement:
    """Compare a training step with the float64 reference by the naive backend, and then inference.

    Of some random images: the logits and all gradients of the loss, with batch norms that see the batch and without
    dropout, and the logits of the same images with what the batch norms have learned.
    """
    network = build(subject.model, subject.backend, case, seed)
    place = reference_device(case.device)
    reference = with_backend(network, "naive").to(place, torch.float64)
    x, y = random_batch(case, subject.model, min(case.N, CHECKED_IMAGES), seed_of("check", seed))
    expected = _step(reference, x.to(place, torch.float64), y.to(place))
    found = _step(network, x, y)
    precision = precision_of(case.device, case.dtype)
    logits = (largest_difference(a, b) for a, b in zip(found[:2], expected[:2], strict=True))
    gradients = gradient_differences(found[2:], expected[2:])
    return most_used([
        *(Agreement(each, TOLERANCE[precision]) for each in logits),
        *(Agreement(each, GRADIENT_TOLERANCE[precision]) for each in gradients),
    ])  # fmt: skip


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
