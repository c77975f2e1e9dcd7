"""Networks: counts that papers give, official names, what is refused, and that torch can compile and copy them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invbench
from invbench.models import DEPTHS, SUBJECTS, SUITES, create, of_suite
from invbench.models.counting import Counts, count
from invbench.ops import Involution2d
from invbench.spec import InvbenchError

# FACTS.md's COUNT figures at 224 x 224: params in millions, multiply-adds in billions.
# depth: params (stem 3), macs_mmcv (stem 7), macs_mmcv (stem 3), macs (stem 3)
REDNETS = {
    26: (9.233, 1.735, 1.710, 1.685),
    38: (12.387, 2.225, 2.200, 2.167),
    50: (15.541, 2.715, 2.690, 2.649),
    101: (25.653, 4.744, 4.719, 4.659),
    152: (33.985, 6.788, 6.763, 6.679),
}
RESNETS = {26: (13.697, 2.361), 38: (19.627, 3.242), 50: (25.557, 4.122), 101: (44.549, 7.849), 152: (60.193, 11.581)}
IMAGENET = [name for name, model in SUBJECTS.items() if model.suite == "imagenet"]
# What is changed in rednet50 with stem 3: params, macs
ABLATIONS: dict[str, tuple[dict[str, Any], float, float]] = {
    "K=3": ({"kernel_size": 3}, 14.75, 2.46),
    "K=5": ({"kernel_size": 5}, 15.06, 2.54),
    "K=7": ({"kernel_size": 7}, 15.54, 2.65),
    "K=9": ({"kernel_size": 9}, 16.18, 2.80),
    "K=11": ({"kernel_size": 11}, 16.97, 2.98),
    "1 channel a group": ({"group_channels": 1}, 30.16, 5.04),
    "4 channels a group": ({"group_channels": 4}, 18.46, 3.13),
    "8 channels a group": ({"group_channels": 8}, 16.52, 2.81),
    "32 channels a group": ({"group_channels": 32}, 15.05, 2.57),
    "one group": ({"groups": 1}, 14.61, 2.51),
    "reduction 1": ({"reduction": 1}, 19.38, 3.29),
    "reduction 2": ({"reduction": 2}, 16.82, 2.86),
    "reduction 8": ({"reduction": 8}, 14.90, 2.54),
    "linear generator": ({"generator": "linear"}, 18.11, 3.07),
}


def counts(name: str, **options: Any) -> Counts:
    with torch.device("meta"):
        return count(create(name, **options), 224, 224)


@pytest.mark.parametrize("depth", REDNETS)
def test_rednets_counts(depth: int) -> None:
    params, mmcv_7, mmcv_3, macs = REDNETS[depth]
    official, default = counts(f"rednet{depth}", stem_kernel_size=3), counts(f"rednet{depth}")
    assert round(official.params / 1e6, 3) == params
    assert official.params_trainable == official.params
    assert default.macs_mmcv / 1e9 == pytest.approx(mmcv_7, abs=6e-4)
    assert official.macs_mmcv / 1e9 == pytest.approx(mmcv_3, abs=6e-4)
    assert official.macs / 1e9 == pytest.approx(macs, abs=6e-4)


@pytest.mark.parametrize("depth", RESNETS)
def test_resnets_counts(depth: int) -> None:
    found = counts(f"resnet{depth}")
    params, macs_mmcv = RESNETS[depth]
    assert round(found.params / 1e6, 3) == params
    assert found.macs_mmcv / 1e9 == pytest.approx(macs_mmcv, abs=6e-4)


@pytest.mark.parametrize(("options", "params", "macs"), ABLATIONS.values(), ids=ABLATIONS)
def test_counts_of_the_ablation(options: dict[str, Any], params: float, macs: float) -> None:
    found = counts("rednet50", stem_kernel_size=3, **options)
    # Half-way cases are rounded either way in the table, as 14.745 is.
    assert found.params / 1e6 == pytest.approx(params, abs=0.0051)
    assert found.macs / 1e9 == pytest.approx(macs, abs=0.0051)


@pytest.mark.parametrize("name", IMAGENET)
def test_published_figures_agree_with_ours(name: str) -> None:
    published = SUBJECTS[name].published
    assert published is not None
    assert 70 < published.top1 < 80
    if published.params and published.macs_mmcv:
        found = counts(name)
        assert found.params == pytest.approx(published.params, abs=6e3)
        assert found.macs_mmcv == pytest.approx(published.macs_mmcv, abs=6e6)


def test_counting_leaves_the_network_alone() -> None:
    network = create("rednet26", backend="naive", num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.layer1.requires_grad_(False)
    found = count(network, 32, 32)
    assert found.params - found.params_trainable == sum(p.numel() for p in network.layer1.parameters())
    assert network.training
    assert not any(part._forward_hooks for part in network.modules())
    assert {part.backend for part in network.modules() if isinstance(part, Involution2d)} == {"naive"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


# --- Structure and names ---

# The official RedNet's first parameters and one block, d-li14/involution, cls/mmcls/models/backbones/rednet.py.
OFFICIAL_STEM = {
    "stem.0.conv.weight": (32, 3, 3, 3),
    "stem.0.bn.weight": (32,),
    "stem.1.conv1.conv.weight": (8, 32, 1, 1),
    "stem.1.conv1.bn.running_var": (8,),
    "stem.1.conv2.conv.weight": (98, 8, 1, 1),
    "stem.1.conv2.conv.bias": (98,),
    "stem.2.weight": (32,),
    "stem.4.conv.weight": (64, 32, 3, 3),
    "stem.4.bn.bias": (64,),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.bn1.weight": (64,),
    "layer1.0.conv2.conv1.conv.weight": (16, 64, 1, 1),
    "layer1.0.conv2.conv1.bn.weight": (16,),
    "layer1.0.conv2.conv2.conv.weight": (196, 16, 1, 1),
    "layer1.0.bn2.running_mean": (64,),
    "layer1.0.conv3.weight": (256, 64, 1, 1),
    "layer1.0.bn3.bias": (256,),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer1.0.downsample.1.weight": (256,),
    "layer4.0.conv2.conv2.conv.weight": (1568, 128, 1, 1),
}


def official_names(state: dict[str, Tensor], prefix: str = "", head: str = "fc.") -> dict[str, Tensor]:
    """A state under the names of the official repository."""
    parts = {".reduce.": ".conv1.conv.", ".norm.": ".conv1.bn.", ".span.": ".conv2.conv."}
    found = {}
    for name, tensor in state.items():
        official = name
        for own, theirs in parts.items():
            official = official.replace(own, theirs)
        found[head + name.removeprefix("fc.") if name.startswith("fc.") else prefix + official] = tensor
    return found


def test_official_names_and_shapes() -> None:
    state = official_names(create("rednet26").state_dict())
    assert {name: tuple(state[name].shape) for name in OFFICIAL_STEM} == OFFICIAL_STEM
    assert next(iter(state)) == "stem.0.conv.weight"


@pytest.mark.parametrize(("prefix", "head"), [("", "fc."), ("backbone.", "head.fc.")], ids=["backbone", "classifier"])
def test_official_weights_load_strictly(prefix: str, head: str) -> None:
    source = create("rednet26", num_classes=7, backend="naive")
    target = create("rednet26", num_classes=7, backend="naive")
    assert not torch.equal(source.fc.weight, target.fc.weight)
    target.load_state_dict(official_names(source.state_dict(), prefix, head), strict=True)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name
    with pytest.raises(RuntimeError, match=r"backbone|Unexpected"):
        target.load_state_dict({**source.state_dict(), "stem.1.conv3.weight": torch.zeros(1)})


def test_resnets_names_are_torchvisions() -> None:
    state = create("resnet50").state_dict()
    assert len(state) == 320  # torchvision's resnet50
    expected = {
        "conv1.weight": (64, 3, 7, 7), "bn1.running_mean": (64,), "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv2.weight": (64, 64, 3, 3), "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.num_batches_tracked": (), "layer3.5.bn3.bias": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1), "fc.weight": (1000, 2048), "fc.bias": (1000,),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert next(iter(state)) == "conv1.weight"


@pytest.mark.parametrize("name", IMAGENET)
def test_strides_and_depths(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    depths = DEPTHS[int(name.removeprefix("rednet").removeprefix("resnet"))]
    for index, blocks in enumerate(depths):
        stage = getattr(network, f"layer{index + 1}")
        assert len(stage) == blocks
        for number, block in enumerate(stage):
            layer = block.conv2
            stride = layer.spec.stride if isinstance(layer, Involution2d) else layer.stride[0]
            assert stride == (2 if index and not number else 1)
            assert (block.downsample is not None) == (number == 0)
    assert sum(isinstance(part, Involution2d) for part in network.modules()) == (
        1 + sum(depths) if SUBJECTS[name].has_involution else 0
    )


def test_counterparts_are_convolutional_and_take_the_same_images() -> None:
    for name, model in SUBJECTS.items():
        counterpart = SUBJECTS[model.counterpart]
        assert model.name == name
        assert not counterpart.has_involution
        assert counterpart.suite == ("imagenet" if model.suite == "attention" else model.suite)
        assert counterpart.images.takes(*model.images.usual)
        assert (counterpart.images.channels, counterpart.images.usual) == (model.images.channels, model.images.usual)
        assert counterpart.is_compiled or not model.is_compiled
        if model.suite == "imagenet":
            assert counterpart.arguments == model.arguments


def test_a_suite_is_its_networks_and_what_they_are_compared_with() -> None:
    assert set(SUITES) == {model.suite for model in SUBJECTS.values()}
    for suite in SUITES:
        own = [name for name, model in SUBJECTS.items() if model.suite == suite]
        others = [name for name in of_suite(suite) if name not in own]
        assert of_suite(suite) == (*others, *own)
        assert others == (["rednet26", "rednet38", "rednet50", "rednet101"] if suite == "attention" else [])


@pytest.mark.parametrize(
    ("name", "size", "taken"),
    [
        ("rednet50", (1, 1), True), ("mnist-inv", (28, 28), True), ("mnist-inv", (28, 29), False),
        ("san10_pairwise", (128, 400), True), ("san10_pairwise", (200, 127), False), ("axial26s", (224, 30), True),
        ("axial26s", (30, 225), False), ("faster_rcnn_rednet50", (800, 1280), True),
    ],
)  # fmt: skip
def test_images_that_are_taken(name: str, size: tuple[int, int], taken: bool) -> None:
    assert SUBJECTS[name].images.takes(*size) == taken


def test_published_figures_say_where_they_are_from_and_what_they_are_of() -> None:
    for name, model in SUBJECTS.items():
        said = model.published
        if said is not None:
            assert said.source, name
            assert said.size == model.images.usual, name
            assert said.top1 is not None or said.scores, name
            assert said.stem in (3, 7), name


# --- What they compute ---


def awake(network: nn.Module, x: Tensor) -> nn.Module:
    """The network with no block at its start, where it is its shortcut, and with statistics of x."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            part.momentum = None  # the average of all batches so far, which is the only one
    with torch.no_grad():
        network.train()(x)
    return network


@pytest.mark.parametrize("name", ["rednet26", "resnet26"])
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 1)], ids=str)
def test_any_image_has_logits(name: str, size: tuple[int, int]) -> None:
    network = create(name, num_classes=5, backend="naive").eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "backend", ["unfold", *(pytest.param(name, marks=pytest.mark.slow) for name in ("compiled", "numba"))]
)
def test_backends_agree_in_float64_forward_and_gradients(backend: str) -> None:
    torch.compiler.reset()
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    results = []
    for name in ("naive", backend):
        torch.manual_seed(3)
        network = awake(create("rednet26", num_classes=4, backend=name).double(), x)
        logits = network(x)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in network.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9 * one.abs().max().item())


def test_copies_and_pickles() -> None:
    x = torch.randn(1, 3, 64, 64)
    network = awake(create("rednet26", num_classes=3, backend="naive"), x).eval()
    with torch.inference_mode():
        y = network(x)
        assert torch.equal(copy.deepcopy(network)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(network))(x), y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rednet26", "resnet26"])
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    x = torch.randn(1, 3, 64, 64)
    network = awake(create(name, num_classes=3), x).eval()
    with torch.inference_mode():
        compiled = torch.compile(network, fullgraph=True)(x)
        torch.testing.assert_close(compiled, network(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["rednet26", "resnet26"])
def test_is_one_graph(name: str) -> None:
    torch.compiler.reset()
    x = torch.randn(1, 3, 64, 65)
    network = awake(create(name, num_classes=3, backend="unfold"), x).eval()
    with torch.inference_mode():
        traced = torch.compile(network, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(traced, network(x))


# --- What is refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rednet51"}, "model must be one of rednet26, .*got 'rednet51'; try rednet50"),
        ({"name": ""}, "model must be one of .*got ''"),
        ({"name": "rednet50", "num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"name": "rednet50", "stem_kernel_size": 4}, "K must be odd.*got K=4"),
        ({"name": "rednet50", "stem_kernel_size": 0}, "stem_kernel_size must be a whole number"),
        ({"name": "rednet50", "backend": "cuda"}, "backend must be one of auto, triton"),
        ({"name": "resnet50", "backend": "cuda"}, "backend must be one of auto, triton"),
        ({"name": "rednet50", "group_channels": 0}, "group_channels must be"),
        ({"name": "rednet50", "groups": 5}, "G must divide C"),
        ({"name": "rednet50", "generator": "mlp"}, "generator must be one of"),
        ({"name": "rednet50", "width": 2}, "create takes kernel_size, .*got width"),
        ({"name": "resnet50", "reduction": 2}, "resnet50 has no involution: got reduction; .*rednet50"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        create(**arguments)
    assert "\n" not in str(caught.value)


def test_resnets_ignore_what_only_involutions_have() -> None:
    network = create("resnet26", stem_kernel_size=3, backend="naive", num_classes=2)
    assert not any(isinstance(part, Involution2d) for part in network.modules())
    assert isinstance(network.conv1, nn.Conv2d)


def test_naming_networks_needs_no_torch() -> None:
    program = (
        "import sys, invbench; names = list(invbench.models.SUBJECTS); "
        "from invbench.models import create\n"
        "try: create('rednet51')\nexcept ValueError as error: print(len(names), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("54 False", "")


def test_models_are_exported() -> None:
    assert invbench.models.create is create


# --- The report's networks ---

# FACTS.md, exact.
REPORT = {
    "mnist-conv": 34_826, "mnist-inv": 544, "fashion-mnist-conv": 257_162, "fashion-mnist-inv": 3_916,
    "cifar10-conv": 319_178, "cifar10-inv": 13_074,
}  # fmt: skip
SMALL = [name for name, model in SUBJECTS.items() if model.suite == "small"]


def small_counts(name: str) -> Counts:
    images = SUBJECTS[name].images
    with torch.device("meta"):
        return count(create(name), images.side, images.side, images.channels)


@pytest.mark.parametrize("name", REPORT)
def test_parameters_of_the_reports_networks(name: str) -> None:
    found = small_counts(name)
    assert found.params == found.params_trainable == REPORT[name]
    assert SUBJECTS[name].published.params == REPORT[name]


@pytest.mark.parametrize("name", [name for name in SMALL if name not in REPORT])
def test_matched_networks_match(name: str) -> None:
    found, base = small_counts(name), small_counts(SUBJECTS[name].counterpart)
    what = "params" if name.endswith("params") else "macs"
    assert getattr(found, what) == pytest.approx(getattr(base, what), rel=0.006)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_learn_from_any_backend(name: str) -> None:
    images = SUBJECTS[name].images
    x = torch.randn(2, images.channels, images.side, images.side, dtype=torch.float64)
    results = []
    for backend in ("naive", "unfold"):
        torch.manual_seed(1)
        network = create(name, backend=backend).double()
        torch.manual_seed(2)  # of the dropout
        logits = network(x)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad for p in network.parameters())])
    assert results[0][0].shape == (2, 10)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


# --- Features for detectors ---


@pytest.mark.parametrize("name", ["rednet26", "resnet26"])
def test_features_are_the_stages_outputs(name: str) -> None:
    classifier = create(name, num_classes=3, backend="unfold").eval()
    network = create(name, features_only=True, backend="unfold").eval()
    network.load_state_dict(classifier.state_dict())  # strictly, the classifier left out
    x = torch.randn(1, 3, 65, 33)
    with torch.inference_mode():
        features = network(x)
        logits = classifier.fc(features[-1].mean((2, 3)))
        torch.testing.assert_close(logits, classifier(x))
    sizes = [(-(-65 // stride), -(-33 // stride)) for stride in network.feature_strides]
    assert [tuple(each.shape[1:]) for each in features] == [
        (channels, *size) for channels, size in zip(network.feature_channels, sizes, strict=True)
    ]
    assert not any("fc" in key for key in network.state_dict())


@pytest.mark.parametrize("options", [{"features_only": True}, {"kernel_size": 5}], ids=str)
def test_small_networks_are_fixed(options: dict[str, Any]) -> None:
    with pytest.raises(InvbenchError, match=f"mnist-inv is fixed as it is: got {next(iter(options))}"):
        create("mnist-inv", **options)
