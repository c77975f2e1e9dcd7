"""``Involution2d``: the layer that generates its weight from its input, with the official block's structure."""

from __future__ import annotations

from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from invbench.ops import BACKENDS
from invbench.ops.functional import autocast, fused_operators, involution2d, is_autocast
from invbench.ops.fused import Fused, Generator, Norm, Reducer
from invbench.spec import InvbenchError, LayerSpec, require_choice, require_positive

GENERATORS = ("bottleneck", "linear")

# The official repository (d-li14/involution) wraps each convolution in an mmcv ConvModule.
OFFICIAL_NAMES = {"conv1.conv.": "reduce.", "conv1.bn.": "norm.", "conv2.conv.": "span."}


class Involution2d(nn.Module):
    """y = involution2d(x, span(activation(norm(reduce(pool(x))))))      (Li et al., CVPR 2021, figure 2)

    x: [N, C, H, W] or [C, H, W], C = channels. Returns y of the same dtype and memory format with
    H_out = ceil(H / stride), W_out likewise. ``pool`` is AvgPool2d(stride, ceil_mode=True) where stride > 1, so
    that odd sizes have a weight for each output position.

    channels: C, in and out. kernel_size: K, odd. stride, dilation: of the window.
    groups: G, must divide C; default max(1, C // group_channels).
    reduction: C / hidden channels, unless ``hidden_channels`` gives their number.
    padding_mode: zeros, reflect, replicate or circular. backend: as in ``involution2d``.
    reduce_bias: whether ``reduce`` has a bias (the official block has none).
    generator: "bottleneck", or "linear": one 1x1 convolution, ``span``, straight from x.

    Parts: ``reduce`` (1x1, C -> hidden), ``norm`` (BatchNorm2d), ``activation`` (ReLU), ``span`` (1x1,
    hidden -> G*K*K, bias; channel g*K*K + tap, taps row-major). Loads its own state_dict and the official names.

    Raises InvbenchError for sizes below 1, an even kernel_size, or groups that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        groups: int | None = None,
        group_channels: int = 16,
        reduction: int = 4,
        padding_mode: str = "zeros",
        backend: str = "auto",
        hidden_channels: int | None = None,
        reduce_bias: bool = False,
        generator: str = "bottleneck",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_positive("channels", channels)
        require_positive("group_channels", group_channels)
        require_choice("generator", generator, GENERATORS)
        require_choice("backend", backend, ("auto", *BACKENDS))
        G = max(1, channels // group_channels) if groups is None else groups
        self.spec = LayerSpec(channels, kernel_size, G, stride, dilation, reduction, padding_mode)
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = self.spec.hidden_channels if hidden_channels is None else hidden_channels
        require_positive("hidden_channels", hidden)
        self.pool = _pool(stride) if stride > 1 else nn.Identity()
        self.reduce: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.activation: nn.Module = nn.Identity()
        if generator == "bottleneck":
            self.reduce = nn.Conv2d(channels, hidden, 1, bias=reduce_bias, **factory)
            self.norm = nn.BatchNorm2d(hidden, **factory)
            self.activation = nn.ReLU()
        else:
            hidden = channels
        self.span = nn.Conv2d(hidden, G * self.spec.taps, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """y [N, C, H_out, W_out] from x [N, C, H, W], or without N from [C, H, W]."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.spec.C:
            raise InvbenchError(
                f"Involution2d takes [N, {self.spec.C}, H, W] or [{self.spec.C}, H, W]: got {list(x.shape)}; "
                "channels come before height and width"
            )
        if x.ndim == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        fused = self._fused(x)
        reducer = self._reducer() if fused else None
        if fused and reducer:
            fixed = reducer.norm is None or reducer.norm.mean is not None
            if fixed and not torch.is_grad_enabled():
                x = autocast(x)
                return fused.infer(x, self.pool(x), reducer, self._generator(), self.spec)
            if fused.trains_whole and reducer.norm and (fixed or self._has_variance(x)):
                return self._differentiable(fused, x, reducer)
        hidden = self.activation(self.norm(self.reduce(self.pool(x))))  # [N, hidden, H_out, W_out]
        if fused:
            return fused.span(autocast(x), autocast(hidden), self._generator(), self.spec)
        weight = self.span(hidden).unflatten(1, (self.spec.G, self.spec.taps))  # [N, G, K*K, H_out, W_out]
        spec = self.spec
        return involution2d(x, weight, spec.stride, spec.dilation, spec.padding_mode, self.backend)

    def _fused(self, x: Tensor) -> Fused | None:
        """The operators that make the weight where it is used, if the backend has them and nothing forbids it: a part
        that is no longer what this class made, or is watched by hooks, is called as it is."""
        span = self.span
        if not _is_pointwise(span) or span.bias is None:
            return None
        weight, fits = span.weight, span.out_channels == self.spec.G * self.spec.taps
        fits = fits and x.device == weight.device and (x.dtype == weight.dtype or is_autocast(x))
        if not fits or min(x.shape[1:]) == 0:
            return None
        self.spec.check_size(x.shape[2], x.shape[3])
        return fused_operators(x, self.spec, span.in_channels, self.backend)

    def _reducer(self) -> Reducer | None:
        """What makes hidden, if that is a matrix product, perhaps a batch norm, and perhaps a rectifier."""
        reduce, norm, activation = self.reduce, self.norm, self.activation
        if not _is_pointwise(reduce) or reduce.weight.dtype != self.span.weight.dtype:
            return None
        if reduce.in_channels != self.spec.C:  # a pool of another kind may make others
            return None
        if type(activation) not in (nn.ReLU, nn.Identity) or _is_watched(norm) or _is_watched(activation):
            return None
        used = None
        if type(norm) is nn.BatchNorm2d:
            # Either may be missing alone: BatchNorm2d(bias=False).
            # Asked one by one: whether None is in a tuple of tensors, torch takes 40 us to say.
            scale: Tensor | None = norm.weight
            shift: Tensor | None = norm.bias
            mean, variance = norm.running_mean, norm.running_var
            if scale is None or shift is None or (mean is None) != (variance is None):
                return None
            if norm.training:
                mean = variance = None
            used = Norm(mean, variance, scale, shift, norm.eps)
        elif type(norm) is not nn.Identity:
            return None
        return Reducer(reduce.weight.flatten(1), reduce.bias, used, isinstance(activation, nn.ReLU))

    def _has_variance(self, x: Tensor) -> bool:
        """Whether a batch has more than one position; batch norm refuses to train on one that has not."""
        return x.shape[0] * self.spec.out_size(x.shape[2]) * self.spec.out_size(x.shape[3]) > 1

    def _generator(self) -> Generator:
        return Generator(self.span.weight.flatten(1), cast(Tensor, self.span.bias), self.spec.G)

    def _differentiable(self, fused: Fused, x: Tensor, reducer: Reducer) -> Tensor:
        """The whole layer at once, and what batch norm learns of the batch."""
        x = autocast(x)
        pooled = self.pool(x)
        y, statistics = fused.layer(x, pooled, reducer, self._generator(), self.spec)
        norm = cast(nn.BatchNorm2d, self.norm)
        if norm.training and norm.track_running_stats:
            factor = norm.momentum or 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
                factor = factor if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            count = pooled.numel() // pooled.shape[1]
            mean, variance = statistics.unbind()
            for running, seen in ((norm.running_mean, mean), (norm.running_var, variance * (count / (count - 1)))):
                if running is not None:
                    running.copy_(torch.lerp(running.to(seen.dtype), seen, factor))
        return y

    def extra_repr(self) -> str:
        """The spec and the backend, for print(layer)."""
        s = self.spec
        return (
            f"{s.C}, kernel_size={s.K}, stride={s.stride}, dilation={s.dilation}, groups={s.G}, "
            f"padding_mode={s.padding_mode!r}, backend={self.backend!r}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called before any part loads, so that renaming here is seen by all of them.
        for official, own in OFFICIAL_NAMES.items():
            for name in [name for name in state_dict if name.startswith(prefix + official)]:
                state_dict[prefix + own + name.removeprefix(prefix + official)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _pool(stride: int) -> nn.Module:
    # A window beyond the image counts only what is inside with ceil_mode anyway; said once more, because inductor's
    # gradient forgets it otherwise (pytorch issue 198119).
    return nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)


def _is_pointwise(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a part is a plain 1x1 convolution that nothing else watches or changes."""
    if type(part) is not nn.Conv2d or _is_watched(part):
        return False
    return (part.kernel_size, part.stride, part.padding, part.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _is_watched(part: nn.Module) -> bool:
    """Whether calling the part does more than its class says: hooks, also those for all modules, or a forward of its
    own, as libraries give to parts that they move or quantise."""
    # Private to torch, which offers no public question; written out, since every call of a layer asks.
    return bool(
        part._forward_hooks  # noqa: SLF001
        or part._forward_pre_hooks  # noqa: SLF001
        or part._backward_hooks  # noqa: SLF001
        or part._backward_pre_hooks  # noqa: SLF001
        or "forward" in part.__dict__
        or module._global_forward_hooks  # noqa: SLF001
        or module._global_forward_pre_hooks  # noqa: SLF001
        or module._global_backward_hooks  # noqa: SLF001
        or module._global_backward_pre_hooks  # noqa: SLF001
    )
