"""The Triton backend whose gradients of span and bias are added up in the order in which programs finish."""

from __future__ import annotations

from invbench.ops.fused import Fused
from invbench.ops.triton_gpu import TritonSpanKernels, aggregate, unavailable

__all__ = ["aggregate", "fused_layer", "unavailable"]

fused_layer = Fused("triton_atomic", TritonSpanKernels(atomic=True), aggregate)
