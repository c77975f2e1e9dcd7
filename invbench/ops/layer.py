"""``Involution2d``: the layer that generates its weight from its input, with the official block's structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invbench.ops import BACKENDS
from invbench.ops.functional import involution2d
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
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
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
        hidden = self.activation(self.norm(self.reduce(self.pool(x))))  # [N, hidden, H_out, W_out]
        weight = self.span(hidden).unflatten(1, (self.spec.G, self.spec.taps))  # [N, G, K*K, H_out, W_out]
        spec = self.spec
        return involution2d(x, weight, spec.stride, spec.dilation, spec.padding_mode, self.backend)

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
