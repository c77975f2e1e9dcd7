"""Attention operators against formulas with plain loops over pixels and taps: values, gradients, types and layouts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from invbench.attention import ATTENTION
from invbench.attention.axial import AxialAttention1d, AxialAttention2d
from invbench.attention.flex import FlexLocalAttention2d, flex_refusal
from invbench.attention.local import LocalAttention2d
from invbench.attention.local_relation import LocalRelation2d
from invbench.attention.operators import OPERATORS
from invbench.attention.san import PairwiseAttention2d, PatchwiseAttention2d
from invbench.models.counting import count
from invbench.spec import PADDING_MODES, InvbenchError, LayerSpec

# --- The formulas, in loops ---


def index(i: int, n: int, mode: str) -> int | None:
    """Which of n positions stands at i, perhaps outside; None for a zero."""
    if 0 <= i < n:
        return i
    if mode == "zeros":
        return None
    if mode == "reflect":
        return -i if i < 0 else 2 * (n - 1) - i
    return min(max(i, 0), n - 1) if mode == "replicate" else i % n


def seen(image: Tensor, i: int, j: int, mode: str) -> Tensor:
    """The channels of image [C, H, W] at a position, perhaps outside."""
    row, column = index(i, image.shape[1], mode), index(j, image.shape[2], mode)
    return torch.zeros_like(image[:, 0, 0]) if row is None or column is None else image[:, row, column]


def pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of x [..., C, H, W] at all positions, whatever its stride."""
    y = torch.einsum("oc,...chw->...ohw", conv.weight.flatten(1), x)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def norm(layer: nn.BatchNorm2d, rows: Tensor) -> Tensor:
    """Of rows [M, C]: over the batch in train mode."""
    mean, variance = layer.running_mean, layer.running_var
    if layer.training:
        mean, variance = rows.mean(0), rows.var(0, unbiased=False)
    return (rows - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def window(spec: LayerSpec, i: int, j: int) -> Iterator[tuple[int, int]]:
    for u in range(spec.K):
        for v in range(spec.K):
            yield (
                spec.stride * i + spec.dilation * (u - spec.K // 2),
                spec.stride * j + spec.dilation * (v - spec.K // 2),
            )


def positions(spec: LayerSpec, x: Tensor) -> list[tuple[int, int, int]]:
    N, _, H, W = x.shape
    return [(n, i, j) for n in range(N) for i in range(spec.out_size(H)) for j in range(spec.out_size(W))]


def image(vectors: list[Tensor], spec: LayerSpec, x: Tensor) -> Tensor:
    """Vectors of ``positions`` as [N, C, H_out, W_out]."""
    sizes = (x.shape[0], spec.out_size(x.shape[2]), spec.out_size(x.shape[3]))
    return torch.stack(vectors).unflatten(0, sizes).permute(0, 3, 1, 2)


def local_loop(layer: LocalAttention2d, x: Tensor) -> Tensor:
    s = layer.spec
    q, k, v = (pointwise(conv, x) for conv in (layer.query, layer.key, layer.value))
    d, out = s.C // s.G, []
    for n, i, j in positions(s, x):
        heads = []
        for g in range(s.G):
            own = slice(g * d, g * d + d)
            query = q[n, own, s.stride * i, s.stride * j]
            scores, values = [], []
            for tap, (row, column) in enumerate(window(s, i, j)):
                r = torch.cat((layer.rows[:, tap // s.K], layer.columns[:, tap % s.K]))
                scores.append(query @ (seen(k[n], row, column, s.padding_mode)[own] + r))
                values.append(seen(v[n], row, column, s.padding_mode)[own])
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        out.append(torch.cat(heads))
    return image(out, s, x)


def mapped(layers: nn.Sequential, rows: Tensor) -> Tensor:
    """f of the SAN paper for rows of features [M, C]."""
    first, _, reduce, second, _, span = layers
    hidden = norm(first, rows).relu() @ reduce.weight.flatten(1).T
    return norm(second, hidden).relu() @ span.weight.flatten(1).T + span.bias


def san_sum(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """weight: [positions, mid/share, taps]."""
    s, x3 = layer.spec, pointwise(layer.conv3, x)
    which = torch.arange(s.C) % s.G
    out = []
    for (n, i, j), own in zip(positions(s, x), weight, strict=True):
        taps = torch.stack([seen(x3[n], row, column, s.padding_mode) for row, column in window(s, i, j)], 1)
        out.append((own[which] * taps).sum(1))
    return image(out, s, x)


def pairwise_loop(layer: PairwiseAttention2d, x: Tensor) -> Tensor:
    s, mode = layer.spec, layer.spec.padding_mode
    H, W = x.shape[2:]
    x1, x2 = pointwise(layer.conv1, x), pointwise(layer.conv2, x)
    place = torch.empty(2, H, W, dtype=x.dtype)
    for i in range(H):
        for j in range(W):
            place[0, i, j] = -1 + 2 * j / max(1, W - 1)
            place[1, i, j] = -1 + 2 * i / max(1, H - 1)
    p = pointwise(layer.conv_p, place)
    rows = []
    for n, i, j in positions(s, x):
        here, there = (s.stride * i, s.stride * j), list(window(s, i, j))
        for row, column in there:
            features = x1[n][:, here[0], here[1]] - seen(x2[n], row, column, mode)
            rows.append(torch.cat((features, p[:, here[0], here[1]] - seen(p, row, column, mode))))
    scores = mapped(layer.conv_w, torch.stack(rows)).unflatten(0, (-1, s.taps))  # [positions, taps, mid/share]
    return san_sum(layer, x, scores.softmax(1).transpose(1, 2))


def patchwise_loop(layer: PatchwiseAttention2d, x: Tensor) -> Tensor:
    s = layer.spec
    x1, x2 = pointwise(layer.conv1, x), pointwise(layer.conv2, x)
    rows = []
    for n, i, j in positions(s, x):
        taps = torch.stack([seen(x2[n], row, column, s.padding_mode) for row, column in window(s, i, j)], 1)
        rows.append(torch.cat((x1[n, :, s.stride * i, s.stride * j], taps.flatten())))
    return san_sum(layer, x, mapped(layer.conv_w, torch.stack(rows)).unflatten(1, (s.G, s.taps)))


def relation_loop(layer: LocalRelation2d, x: Tensor) -> Tensor:
    s = layer.spec
    q, k = pointwise(layer.query, x), pointwise(layer.key, x)
    first, _, second = layer.prior
    out = []
    for n, i, j in positions(s, x):
        scores, values = [], []
        for tap, (row, column) in enumerate(window(s, i, j)):
            offset = torch.tensor([tap // s.K, tap % s.K], dtype=x.dtype) - s.K // 2
            hidden = (first.weight.flatten(1) @ offset + first.bias).relu()
            prior = second.weight.flatten(1) @ hidden + second.bias
            difference = q[n, :, s.stride * i, s.stride * j] - seen(k[n], row, column, s.padding_mode)
            scores.append(prior - difference * difference)
            values.append(seen(x[n], row, column, s.padding_mode))
        weight = torch.stack(scores).softmax(0)[:, torch.arange(x.shape[1]) // layer.share]
        out.append((weight * torch.stack(values)).sum(0))
    return pointwise(layer.projection, image(out, s, x))


def axial_loop(layer: AxialAttention1d, x: Tensor) -> Tensor:
    if layer.axis == "width":
        layer.axis = "height"
        try:
            return axial_loop(layer, x.transpose(2, 3)).transpose(2, 3)
        finally:
            layer.axis = "width"
    N, C, L, W = x.shape
    G, d, span = layer.heads, C // layer.heads, layer.span
    qkv = pointwise(layer.qkv, x)
    qkv = norm(layer.norm_qkv, qkv.permute(0, 2, 3, 1).flatten(0, 2)).unflatten(0, (N, L, W))  # [N, H, W, 2*C]
    r_q, r_k, r_v = layer.relative.split((d // 2, d // 2, d))
    reach = range(-L + 1, L) if span >= L else range(-span + 1, span)  # a whole line, or a window
    places = [(n, i, j) for n in range(N) for i in range(L) for j in range(W)]
    pairs, rows = [], []
    for n, i, j in places:
        for t in reach:
            if span >= L and not 0 <= i + t < L:
                continue
            inside = 0 <= i + t < L
            here, there = qkv[n, i, j], qkv[n, i + t, j] if inside else torch.zeros_like(qkv[0, 0, 0])
            q, k, _ = here.unflatten(0, (G, 2 * d)).split((d // 2, d // 2, d), 1)
            _, k, v = there.unflatten(0, (G, 2 * d)).split((d // 2, d // 2, d), 1)
            at = t + span - 1
            rows.append(torch.cat(((q * k).sum(1), q @ r_q[:, at], k @ r_k[:, at])))
            pairs.append((inside, v, r_v[:, at]))
    scores = norm(layer.norm_scores, torch.stack(rows)).unflatten(1, (3, G)).sum(1)
    per_place = len(pairs) // len(places)
    both = []
    for first in range(0, len(pairs), per_place):
        own = [number for number in range(first, first + per_place) if pairs[number][0]]
        weight = scores[own].softmax(0)  # [taps, G]
        values = torch.stack([pairs[number][1] for number in own])
        embeddings = torch.stack([pairs[number][2] for number in own])
        both.append(torch.cat(((weight.unsqueeze(2) * values).sum(0).flatten(), (weight.T @ embeddings).flatten())))
    normed = norm(layer.norm_out, torch.stack(both))
    return (normed[:, :C] + normed[:, C:]).unflatten(0, (N, L, W)).permute(0, 3, 1, 2)


def axial_2d_loop(layer: AxialAttention2d, x: Tensor) -> Tensor:
    y = axial_loop(layer.width, axial_loop(layer.height, x))
    if isinstance(layer.pool, nn.Identity):
        return y
    s, (H, W) = layer.pool.stride, y.shape[2:]
    rows = [
        torch.stack([y[:, :, i : i + s, j : j + s].mean((2, 3)) for j in range(0, W, s)], -1) for i in range(0, H, s)
    ]
    return torch.stack(rows, -2)


LOOPS: dict[str, Callable[..., Tensor]] = {
    "local-attention": local_loop,
    "san-pairwise": pairwise_loop,
    "san-patchwise": patchwise_loop,
    "axial-attention": axial_2d_loop,
    "local-relation": relation_loop,
}

# name: N, C, H, W, K, G, stride, dilation, padding_mode
SHAPES: dict[str, tuple[int, int, int, int, int, int, int, int, str]] = {
    "k3": (2, 16, 5, 4, 3, 2, 1, 1, "zeros"),
    "k5_one_head": (1, 16, 4, 7, 5, 1, 1, 1, "zeros"),
    "k1": (2, 16, 3, 4, 1, 4, 1, 1, "zeros"),
    "k7_over_size": (1, 16, 3, 2, 7, 2, 1, 1, "zeros"),
    "one_pixel": (2, 16, 1, 1, 3, 2, 1, 1, "zeros"),
    "stride2_odd": (2, 16, 5, 7, 3, 2, 2, 1, "zeros"),
    "stride3": (1, 16, 7, 5, 5, 4, 3, 1, "zeros"),
    "two_channels_a_head": (1, 16, 4, 3, 3, 8, 1, 1, "zeros"),
    "more_channels": (1, 32, 3, 4, 3, 4, 2, 1, "zeros"),
    "dilation2": (1, 16, 6, 5, 3, 2, 1, 2, "zeros"),
    "dilation2_stride2": (1, 16, 7, 6, 3, 2, 2, 2, "zeros"),
    "reflect": (1, 16, 5, 4, 5, 2, 1, 1, "reflect"),
    "reflect_stride2": (1, 16, 5, 6, 3, 2, 2, 2, "reflect"),
    "replicate": (1, 16, 2, 3, 5, 2, 1, 1, "replicate"),
    "circular": (1, 16, 4, 5, 3, 2, 2, 1, "circular"),
}


def spec_of(name: str) -> LayerSpec:
    _, C, _, _, K, G, stride, dilation, mode = SHAPES[name]
    return LayerSpec(C, K, G, stride, dilation, padding_mode=mode)


def made(operator: str, spec: LayerSpec, backend: str = "torch") -> nn.Module:
    """In float64 and eval mode, with no parameter or statistic at its default."""
    layer = OPERATORS[operator].backends[backend](spec).double().eval()
    for part in layer.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (part.bias, part.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return layer


def with_gradients(function: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    factors = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    gradients = torch.autograd.grad((y * factors).sum(), [x, *layer.parameters()])
    return {"y": y.detach(), **dict(zip(names, gradients, strict=True))}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=1e-11 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_values_and_gradients_are_the_formulas(operator: str, shape: str) -> None:
    torch.manual_seed(0)
    spec, (N, C, H, W, *_) = spec_of(shape), SHAPES[shape]
    if OPERATORS[operator].refusal(spec, H, W):
        pytest.skip("it has no such layer")
    layer = made(operator, spec)
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    assert_close(with_gradients(layer, layer, x), with_gradients(lambda x: LOOPS[operator](layer, x), layer, x))


@pytest.mark.parametrize("operator", ["san-pairwise", "san-patchwise"])
@pytest.mark.parametrize("stride", [1, 2])
def test_norms_of_the_batch_in_train_mode(operator: str, stride: int) -> None:
    torch.manual_seed(0)
    layer = made(operator, LayerSpec(32, 3, 4, stride, padding_mode="reflect")).train()
    x = torch.randn(2, 32, 4, 5, dtype=torch.float64)
    assert_close(with_gradients(layer, layer, x), with_gradients(lambda x: LOOPS[operator](layer, x), layer, x))


@pytest.mark.parametrize("axis", ["height", "width"])
@pytest.mark.parametrize("span", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_axial_attention_of_one_axis(axis: str, span: int, training: bool) -> None:
    """Lines of 5 and 4: whole ones, inner distances of a longer span, and windows."""
    torch.manual_seed(0)
    layer = AxialAttention1d(8, 2, span, axis).double().train(training)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    assert_close(with_gradients(layer, layer, x), with_gradients(lambda x: axial_loop(layer, x), layer, x))


def test_a_window_that_holds_the_line_is_the_line() -> None:
    """Tap by tap and by matrix products: a span of 4 shows seven positions, all of a line of 4."""
    torch.manual_seed(0)
    whole, window = (AxialAttention1d(8, 2, span).double().eval() for span in (5, 4))
    with torch.no_grad():
        for name, tensor in window.state_dict().items():
            tensor.copy_(whole.state_dict()[name][:, 1:-1] if name == "relative" else whole.state_dict()[name])
        x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
        mean = whole(x)[:, :, 2]  # the middle one, all of whose distances are below 4
        torch.testing.assert_close(window(x)[:, :, 2], mean)


def test_a_local_relation_of_channels_that_eight_do_not_divide() -> None:
    torch.manual_seed(0)
    layer = LocalRelation2d(20, 3, share=8, stride=2).double()
    x = torch.randn(2, 20, 4, 5, dtype=torch.float64)
    assert_close(with_gradients(layer, layer, x), with_gradients(lambda x: relation_loop(layer, x), layer, x))


@pytest.mark.parametrize("kind", [PairwiseAttention2d, PatchwiseAttention2d])
def test_san_as_in_a_block(kind: type[Any]) -> None:
    torch.manual_seed(0)
    layer = kind(64, 3, mid=16, share=8).double().eval()
    x = torch.randn(1, 64, 3, 4, dtype=torch.float64)
    assert layer.spec.G == 2
    loop = pairwise_loop if kind is PairwiseAttention2d else patchwise_loop
    assert_close(with_gradients(layer, layer, x), with_gradients(lambda x: loop(layer, x), layer, x))


@given(
    data=st.data(),
    operator=st.sampled_from(sorted(OPERATORS)),
    N=st.integers(1, 2),
    H=st.integers(1, 7),
    W=st.integers(1, 7),
    K=st.sampled_from([1, 3, 5]),
    G=st.sampled_from([1, 2, 4, 8]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_random_shapes(
    data: st.DataObject, operator: str, N: int, H: int, W: int, K: int, G: int, stride: int, dilation: int
) -> None:
    mode = data.draw(st.sampled_from(PADDING_MODES))
    spec = LayerSpec(16, K, G, stride, dilation, padding_mode=mode)
    if OPERATORS[operator].refusal(spec, H, W):
        return
    layer = made(operator, spec)
    x = torch.randn(N, 16, H, W, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (N, 16, spec.out_size(H), spec.out_size(W))
    torch.testing.assert_close(y, LOOPS[operator](layer, x), rtol=1e-10, atol=1e-11)


# --- Types and layouts ---


@pytest.mark.parametrize("operator", OPERATORS)
def test_other_types_are_near_float64(operator: str) -> None:
    """A result has passed through some ten roundings, each of a value that may be a few times larger."""
    torch.manual_seed(0)
    spec = LayerSpec(32, 5, 2, 2)
    reference = made(operator, spec)
    x = torch.randn(2, 32, 9, 10, dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = OPERATORS[operator].backends["torch"](spec).eval()
        layer.load_state_dict(reference.state_dict())
        rounded = layer.to(dtype)
        exact = made(operator, spec)
        exact.load_state_dict(rounded.state_dict())
        expected = exact(x.to(dtype).double())
        got = rounded(x.to(dtype))
        assert got.dtype == dtype
        assert (got - expected).abs().max() < 20 * torch.finfo(dtype).eps * expected.abs().max()
        got.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in rounded.parameters())


@pytest.mark.parametrize("operator", OPERATORS)
def test_layouts_and_slices(operator: str) -> None:
    torch.manual_seed(0)
    layer = made(operator, LayerSpec(16, 3, 2, 2))
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    expected = layer(x)
    assert expected.is_contiguous()
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    wide = torch.randn(2, 20, 7, 12, dtype=torch.float64)
    wide[:, 2:18, 1:6, ::2] = x
    for got in (last, layer(wide[:, 2:18, 1:6, ::2]), layer(x.transpose(2, 3).contiguous().transpose(2, 3))):
        torch.testing.assert_close(got, expected)
    assert layer(x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_backward_pass_of_channels_last_sees_contiguous_images(operator: str) -> None:
    """Another layout than that of the taps doubles the time of a training step."""
    seen: list[Tensor] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            y = f(*args, **(kwargs or {}))
            if f is torch.ops.aten.mul.Tensor:
                seen.extend(arg for arg in args if isinstance(arg, Tensor) and arg.dim() > 3)
            return y

    layer = made(operator, LayerSpec(32, 3, 2)).to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 32, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x)
    with Watched():
        y.backward(torch.randn_like(y))
    assert seen
    assert all(each.stride(-1) == 1 for each in seen)


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiles_as_one_graph_and_traces(operator: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = made(operator, LayerSpec(16, 3, 2, 2))
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(fx.symbolic_trace(layer)(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert (layer.float()(x.float()) - layer.double()(x)).abs().max() < 0.1


# --- flex_attention ---


@pytest.fixture
def flex_learns_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has unfused gradients for any device, and refuses to use them on a CPU."""
    from torch.nn.attention import flex_attention

    monkeypatch.undo()  # torch traces it with uninitialised leaves, which are not for filling with NaN
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    torch.compiler.reset()


def unfused(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer on a CPU, where torch warns that it is not compiled."""

    def call(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return layer(x)

    return call


@pytest.mark.usefixtures("flex_learns_on_cpus")
@pytest.mark.parametrize("shape", SHAPES)
def test_flex_is_local_attention(shape: str) -> None:
    torch.manual_seed(0)
    spec, (N, C, H, W, *_) = spec_of(shape), SHAPES[shape]
    layer, flex = made("local-attention", spec), made("local-attention", spec, "flex")
    assert isinstance(flex, FlexLocalAttention2d)
    flex.load_state_dict(layer.state_dict())
    x = torch.randn(N, C, H, W, dtype=torch.float64)
    assert_close(with_gradients(unfused(flex), flex, x), with_gradients(layer, layer, x))


@pytest.mark.parametrize(("H", "W", "stride", "dilation"), [(17, 23, 1, 1), (33, 21, 2, 1), (40, 13, 1, 2)])
def test_flex_over_many_blocks(H: int, W: int, stride: int, dilation: int) -> None:
    """More positions than a block of the mask has, so that blocks are skipped."""
    torch.manual_seed(0)
    spec = LayerSpec(8, 5, 2, stride, dilation)
    layer, flex = made("local-attention", spec), made("local-attention", spec, "flex")
    flex.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, H, W, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(unfused(flex)(x), layer(x))


@pytest.mark.slow
def test_flex_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward on a CPU, whose generated code reads the same block mask and score modification as a GPU's."""
    from invbench.attention import flex as module

    monkeypatch.undo()
    monkeypatch.setattr(module, "DEVICES", ("cpu",))
    torch.compiler.reset()
    torch.manual_seed(0)
    for K, stride, dilation in ((7, 1, 1), (5, 2, 1), (3, 1, 2)):
        layer = LocalAttention2d(64, K, 2, stride, dilation)
        flex = FlexLocalAttention2d(64, K, 2, stride, dilation)
        flex.load_state_dict(layer.state_dict())
        x = torch.randn(2, 64, 30, 25)
        with torch.no_grad():
            torch.testing.assert_close(flex(x), layer(x), rtol=1e-4, atol=1e-5)


def test_the_block_mask_is_the_window() -> None:
    """No block that a query needs is left out, and few that none needs are in."""
    from invbench.attention.flex import _window_mask

    for H, W, K, stride, dilation in ((20, 30, 5, 1, 1), (9, 9, 3, 1, 1), (30, 31, 7, 2, 1), (24, 20, 3, 1, 3)):
        spec = LayerSpec(1, K, 1, stride, dilation)
        size = (spec.out_size(H), spec.out_size(W))
        border = (H + 2 * spec.padding, W + 2 * spec.padding)
        mask = _window_mask(spec, size, border, torch.device("cpu"))
        P, Q = size[0] * size[1], border[0] * border[1]
        query, key = torch.arange(P)[:, None], torch.arange(Q)
        needed = mask.mask_mod(query, query, query, key)
        assert (needed.sum(1) == K * K).all()
        blocks = torch.zeros(-(-P // 128) * 128, -(-Q // 128) * 128, dtype=torch.bool)
        blocks[:P, :Q] = needed
        tiles = blocks.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
        assert not (tiles & ~mask.to_dense()[0, 0].bool()).any()


@pytest.mark.parametrize(
    ("kind", "dtype", "layer", "reason"),
    [
        ("cpu", "float32", LayerSpec(32, 3, 2), "on cuda and xpu only: got cpu; use backend torch"),
        ("cuda", "float32", LayerSpec(32, 3, 32), "choose G so that C/G is even"),
    ],
)
def test_flex_refuses(kind: str, dtype: str, layer: LayerSpec, reason: str) -> None:
    found = flex_refusal(kind, dtype, layer)
    assert found is not None
    assert reason in found


def test_flex_refuses_what_a_gpu_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        assert "torch finds no cuda" in str(flex_refusal("cuda", "float32", LayerSpec(32, 3, 2)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert flex_refusal("cuda", "float32", LayerSpec(32, 3, 2)) is None
    assert "got float64" in str(flex_refusal("cuda", "float64", LayerSpec(32, 3, 2)))
    assert "16 channels a head at least: got C/G=8" in str(flex_refusal("cuda", "float32", LayerSpec(32, 3, 4)))


# --- The table, and what each costs ---


def test_the_table_of_names_is_the_table_of_builders() -> None:
    assert {name: tuple(operator.backends) for name, operator in OPERATORS.items()} == ATTENTION


@pytest.mark.parametrize(
    ("operator", "layer", "reason"),
    [
        ("local-attention", LayerSpec(6, 3, 2), "choose G so that C/G is even"),
        ("san-pairwise", LayerSpec(24, 3, 2), "got C=24; use a multiple of 16, such as C=32"),
        ("san-patchwise", LayerSpec(8, 3, 2), "got C=8; use a multiple of 16, such as C=16"),
        ("axial-attention", LayerSpec(16, 3, 2, dilation=2), "got dilation=2; use dilation 1"),
        ("axial-attention", LayerSpec(16, 3, 2, padding_mode="reflect"), "use padding_mode 'zeros'"),
        ("axial-attention", LayerSpec(6, 3, 2), "choose G so that C/G is even"),
        ("local-relation", LayerSpec(16, 7, 2, padding_mode="reflect"), "needs H and W of at least 4"),
    ],
)
def test_what_has_no_meaning_is_refused(operator: str, layer: LayerSpec, reason: str) -> None:
    found = OPERATORS[operator].refusal(layer, 3, 3)
    assert found is not None
    assert reason in found


def test_modules_refuse_too() -> None:
    for make in (
        lambda: LocalAttention2d(6, heads=2),
        lambda: PairwiseAttention2d(24),
        lambda: PatchwiseAttention2d(32, mid=12, share=8),
        lambda: AxialAttention1d(6, 2),
        lambda: AxialAttention1d(8, 3),
        lambda: AxialAttention1d(8, 2, axis="depth"),
        lambda: LocalRelation2d(8, kernel_size=4),
        lambda: PairwiseAttention2d(16, 7)(torch.zeros(1, 16, 3, 8)),
    ):
        with pytest.raises(InvbenchError):
            make()


def _costs(operator: str, s: LayerSpec, H: int, W: int) -> tuple[int, int]:
    """Parameters and multiply-adds of one image, as the modules' docstrings say."""
    C, K, G, taps = s.C, s.K, s.G, s.taps
    image, P = H * W, s.out_size(H) * s.out_size(W)
    if operator == "local-attention":
        return 3 * C * C + C // G * K, P * C * C + 2 * image * C * C + 2 * P * C * taps
    if operator == "local-relation":
        g, h = G, max(1, G // 2)
        macs = P * C * g + image * C * g + taps * (2 * h + h * g) + P * C * taps + P * C * C
        return 2 * C * g + C * C + 3 * h + h * g + g, macs
    if operator == "axial-attention":
        span = K // 2 + 1
        seen = sum(n if n <= span else 2 * span - 1 for n in (H, W))
        params = 2 * (2 * C * C + 4 * C + 2 * (C // G) * (2 * span - 1) + 6 * G + 4 * C)
        return params, image * (2 * 2 * C * C) + image * 7 * C * seen // 2
    r, m, w = C // 16, C, G
    params = 2 * (C * r + r) + C * m + m
    macs = P * C * r + image * C * (r + m)
    if operator == "san-pairwise":
        params += 6 + 2 * (r + 2) + (r + 2) * r + 2 * r + r * w + w
        return params, macs + 4 * image + P * taps * ((r + 2) * r + r * w + m)
    a = r * (taps + 1)
    return params + 2 * a + a * w + 2 * w + w * w * taps + w * taps, macs + P * (a * w + w * w * taps + m * taps)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("H", "W"), [(8, 8), (9, 5), (3, 20)])
def test_costs_are_the_docstrings(operator: str, H: int, W: int) -> None:
    for spec in (LayerSpec(32, 3, 4), LayerSpec(64, 7, 4, 2), LayerSpec(16, 5, 1, 3), LayerSpec(32, 1, 2)):
        found = count(OPERATORS[operator].backends["torch"](spec), H, W, spec.C)
        assert (found.params, found.macs) == _costs(operator, spec, H, W)
