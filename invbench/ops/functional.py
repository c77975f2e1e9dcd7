"""``involution2d``: validate, choose a backend, dispatch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from invbench.ops import BACKENDS, Implementation
from invbench.ops.fused import Fused
from invbench.spec import BackendUnavailableError, InvbenchError, LayerSpec, require_choice

_LOADED: dict[str, Implementation] = {}


def involution2d(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    dilation: int = 1,
    padding_mode: str = "zeros",
    backend: str = "auto",
) -> Tensor:
    """Aggregate x over the K x K window of each output position with that position's own weight.

    x: image [N, C, H, W], float64, float32, float16 or bfloat16, any strides.
    weight: generated kernels [N, G, K*K, ceil(H / stride), ceil(W / stride)], same dtype and device; K odd, G
        divides C, taps row-major; channel c uses group c // (C // G).
    stride, dilation: of the window. padding_mode: zeros, reflect, replicate or circular, as in nn.Conv2d.
    backend: a name of ``invbench.ops.BACKENDS``, or "auto" for the fastest that does not refuse
        (``choose_backend`` says which).

    Returns y [N, C, ceil(H / stride), ceil(W / stride)] in x's dtype and memory format. Sums are accumulated in
    float32 at least. Under autocast, x and weight are cast to autocast's dtype first, float64 excepted.

    Raises InvbenchError for shapes, dtypes or devices that do not fit together, and BackendUnavailableError if the
    backend asked for cannot run here; an explicit backend never falls back to another.

    Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021.
    """
    x, weight = autocast(x), autocast(weight)
    spec = _spec_of(x, weight, stride, dilation, padding_mode)
    name = choose_backend(x, backend)
    return _LOADED[name].aggregate(x, weight, spec)


def choose_backend(x: Tensor, backend: str = "auto") -> str:
    """The name of the backend that ``involution2d`` would use for x [N, C, H, W].

    Raises BackendUnavailableError, with the reason, if the one asked for cannot run.
    """
    return _choose(backend, x.device.type, str(x.dtype).removeprefix("torch."))


def _choose(backend: str, device: str, dtype: str) -> str:
    name: str
    name, reason = _select(backend, device, dtype)
    if reason:
        raise BackendUnavailableError(reason)
    return name


def fused_operators(x: Tensor, spec: LayerSpec, hidden_channels: int, backend: str = "auto") -> Fused | None:
    """The operators of the chosen backend that make the weight where it is used, for a layer on x [N, C, H, W]; None if
    it has none, if they refuse the layer, or if forward-mode differentiation is on, which they cannot do.

    Raises BackendUnavailableError as ``choose_backend`` does.
    """
    dtype = str(_autocast_dtype(x)).removeprefix("torch.")
    name = _choose(backend, x.device.type, dtype)
    fused = BACKENDS[name].fused
    if fused is None or forward_ad._current_level >= 0:  # noqa: SLF001 -- torch offers no public question
        return None
    if fused.refusal(spec, dtype, hidden_channels, x.shape[2], x.shape[3]):
        return None
    # Not in the protocol, which every backend fulfils, and not by a cast, at which torch.compile stops.
    operators: Fused = _LOADED[name].fused_layer  # type: ignore[attr-defined]
    return operators


def _select(backend: str, device: str, dtype: str) -> tuple[str, str]:
    """The backend to use and "", or "" and the reason why there is none; loads it."""
    if backend != "auto":
        try:
            require_choice("backend", backend, ("auto", *BACKENDS))
        except InvbenchError as error:
            return "", str(error)
        candidates = [BACKENDS[backend]]
    else:
        candidates = [other for other in BACKENDS.values() if other.automatic and device in other.devices]
    reason = f"no backend runs on {device}; move x and weight to one of cpu, cuda, mps, xpu"
    for candidate in candidates:
        refusal = candidate.refusal(device, dtype)
        if refusal is None:
            _LOADED[candidate.name] = candidate.load()
            return candidate.name, ""
        reason = f"backend {candidate.name!r} cannot run: {refusal}"
    return "", reason


# What torch.compiler.assume_constant_result does, without importing torch.compile's machinery, which takes seconds and
# fails where its cache cannot be written.
_select._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


def autocast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that autocast asks for, float64 excepted."""
    dtype = _autocast_dtype(tensor)
    return tensor if dtype == tensor.dtype else tensor.to(dtype)  # asked first, which costs less


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    if not is_autocast(tensor) or tensor.dtype == torch.float64:
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; the meta device knows none."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def _spec_of(x: Tensor, weight: Tensor, stride: int, dilation: int, padding_mode: str) -> LayerSpec:
    """The spec that x and weight imply, or InvbenchError where they do not fit together."""
    if x.ndim != 4 or weight.ndim != 5:
        raise InvbenchError(
            "involution2d takes x [N, C, H, W] and weight [N, G, K*K, H_out, W_out]: "
            f"got {x.ndim} and {weight.ndim} dimensions; add the batch dimension with unsqueeze(0)"
        )
    N, C, H, W = x.shape
    if C < 1 or H < 1 or W < 1:
        raise InvbenchError(f"C, H and W must be at least 1: got x {list(x.shape)}; only N may be 0")
    G, taps = weight.shape[1], weight.shape[2]
    K = 1
    while taps > K * K:  # math.isqrt cannot be traced with a symbolic size
        K += 1
    if taps != K * K or G < 1:
        raise InvbenchError(
            "weight must be [N, G, K*K, H_out, W_out] with K odd and G at least 1: "
            f"got {list(weight.shape)}; K*K={taps} must be 1, 9, 25, 49, ..."
        )
    spec = LayerSpec(C=C, K=K, G=G, stride=stride, dilation=dilation, padding_mode=padding_mode)
    expected = (N, G, taps, spec.out_size(H), spec.out_size(W))
    if weight.shape != expected:
        raise InvbenchError(
            f"weight does not fit x {list(x.shape)} with stride={stride}: expected {list(expected)}, "
            f"got {list(weight.shape)}; H_out = ceil(H / stride), W_out likewise"
        )
    spec.check_size(H, W)
    if x.dtype != weight.dtype or x.device != weight.device:
        raise InvbenchError(
            "x and weight must have one dtype and one device: "
            f"got {x.dtype} on {x.device} and {weight.dtype} on {weight.device}; convert one with .to()"
        )
    if x.layout != torch.strided or weight.layout != torch.strided:
        raise InvbenchError(f"involution2d takes strided tensors: got {x.layout} and {weight.layout}; use .to_dense()")
    return spec
