"""Networks compared: rows, checks, ceilings and breakdowns, with a clock of our own and real tensors."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invbench.harness import blocks, machine, memory, timing
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, NetworkSubject, build, comparing, points_of, proving
from invbench.harness.networks.breakdown import break_down
from invbench.harness.networks.build import NetworkJob, Networks, deployed, without_involutions
from invbench.harness.networks.comparing import compare_networks, complete, count_networks
from invbench.harness.point import Point
from invbench.models import SUBJECTS, create
from invbench.models.folding import fold_batch_norm
from invbench.ops import BACKENDS, Backend, Involution2d, naive, unfold
from invbench.results import Result, Status
from invbench.results.quantities import Memory
from invbench.spec import FREE, BackendUnavailableError, InvbenchError, Mode, NetworkCase, Regime

SMALL = NetworkCase(1, 48, 48, threads=1)
SHORT = Budget(seconds=0.5)
SETTINGS = NetworkSettings(("rednet26",), ("unfold",), budget=SHORT)
EAGER = ["rednet26 (unfold), eager", "rednet26 (free), eager", "resnet26, eager"]
DEPLOYED = [name.replace("eager", "folded and compiled") for name in EAGER]
PEAK = Memory(2**22, "vmhwm")
PEAKS = {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """Put torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class FakeClock:
    """Time passes when a network is called."""

    way = None

    def __init__(self) -> None:
        self.time = 0.0
        self.samples = itertools.count()
        self.on_sample: Callable[[int], None] = lambda _: None

    def now(self) -> float:
        return self.time

    def sample(self, before: Callable[[], Any], timed: Callable[[Any], Any], calls: int) -> float:
        self.on_sample(next(self.samples))
        self.time += 0.1 * calls
        return 0.1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Real tensors, but neither waiting nor compiling."""
    fake = FakeClock()
    monkeypatch.setattr(timing, "clock_for", lambda *_: fake)
    monkeypatch.setattr(timing, "measure", functools.partial(blocks.measure, now=fake.now))
    monkeypatch.setattr(machine, "measure_peaks", lambda dtype, device: dict(PEAKS))
    monkeypatch.setattr(build, "deployed", lambda network: fold_batch_norm(network))
    monkeypatch.setattr(memory, "cpu_peaks", lambda jobs, workers: {job.subject: PEAK for job in jobs})
    return fake


def label(row: Result) -> str:
    return NetworkSubject(row.subject, row.backend, row.regime).label


def by_label(found: Point) -> Mapping[str, Result]:
    return {label(row): row for row in found.results}


# --- What is compared ---


def test_rows_are_each_network_by_each_backend_and_its_ceiling_in_both_regimes() -> None:
    assert [subject.label for subject in SETTINGS.subjects(Mode.FORWARD)] == [*EAGER, *DEPLOYED]
    assert [subject.label for subject in SETTINGS.subjects(Mode.TRAIN)] == EAGER


def test_baselines_that_were_not_asked_for_are_measured_too() -> None:
    settings = replace(SETTINGS, models=("rednet26", "rednet50", "resnet26"))
    assert settings.networks() == ["rednet26", "rednet50", "resnet26", "resnet50"]
    assert replace(settings, baseline="rednet38").networks() == ["rednet26", "rednet50", "resnet26", "rednet38"]


def test_baselines_are_of_the_same_regime() -> None:
    bases = SETTINGS.baselines(Mode.FORWARD)
    assert bases["rednet26 (free), eager"] == "resnet26, eager"
    assert bases["rednet26 (unfold), folded and compiled"] == "resnet26, folded and compiled"
    other = replace(SETTINGS, baseline="rednet26").baselines(Mode.TRAIN)
    assert set(other.values()) == {"rednet26 (unfold), eager"}


# --- Rows ---


@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_rows_of_a_run(mode: Mode, clock: FakeClock) -> None:
    told: list[str] = []
    case = replace(SMALL, mode=mode)
    found = compare_networks(case, SETTINGS, told.append)
    expected = EAGER if mode is Mode.TRAIN else [*EAGER, *DEPLOYED]
    assert [label(row) for row in found.results] == expected
    for row in found.results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)
        assert row.case == case
        assert row.error["relative"] <= row.error["tolerance"]
        assert row.first_call > 0
        assert row.seconds == pytest.approx(0.1)
        assert row.ratio.latency.median == pytest.approx(1)
        assert (row.memory.peak, row.bytes_min, row.roofline_fraction) == (2**22, None, None)
        assert (row.memory.kept is None) == (mode is Mode.FORWARD)
        assert (row.ceiling is not None) == (row.backend == "unfold")
        assert row.flop == (6 if mode is Mode.TRAIN else 2) * row.macs
        assert row.baseline == "resnet26"
        assert (row.published is None) == (row.backend == FREE)
        assert row.breakdown is None
    rows = by_label(found)
    free, ours, base = (rows[name] for name in ("rednet26 (free), eager", *EAGER[::2]))
    assert free.macs < ours.macs < base.macs
    assert ours.ratio.params == pytest.approx(ours.params / base.params)
    assert found.peaks == PEAKS
    words = " ".join(told)
    for word in ("preparing rednet26 (unfold)", "peaks", "warming up", "measuring: round 1"):
        assert word in words


def test_a_wrong_backend_is_a_mismatch_and_is_not_timed(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    right = unfold.aggregate
    monkeypatch.setattr(unfold, "aggregate", lambda x, weight, spec: 1.2 * right(x, weight, spec))
    rows = by_label(compare_networks(SMALL, SETTINGS))
    for name in (EAGER[0], DEPLOYED[0]):
        assert rows[name].status is Status.MISMATCH
        assert rows[name].latency is None
        assert "float64 reference" in rows[name].reason
    assert rows[EAGER[1]].status is rows[EAGER[2]].status is Status.OK


@pytest.mark.parametrize(("dtype", "autocast"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_a_wrong_gradient_is_a_mismatch(
    dtype: str, autocast: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(SMALL, N=4, dtype=dtype, autocast=autocast)
    train = replace(case, mode=Mode.TRAIN)
    assert by_label(compare_networks(train, SETTINGS))[EAGER[0]].status is Status.OK
    right = unfold.aggregate

    def wrong(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        y = right(x, weight, spec)
        return y + 0.5 * (right(x, weight, spec) - y.detach())  # the same value, one and a half times its gradient

    monkeypatch.setattr(unfold, "aggregate", wrong)
    assert by_label(compare_networks(case, SETTINGS))[EAGER[0]].status is Status.OK
    assert by_label(compare_networks(train, SETTINGS))[EAGER[0]].status is Status.MISMATCH


def test_a_backend_that_raises_costs_its_rows(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(unfold, "aggregate", broken)
    rows = by_label(compare_networks(SMALL, SETTINGS))
    assert (rows[EAGER[0]].status, rows[EAGER[0]].reason) == (Status.ERROR, "RuntimeError: no such luck")
    assert rows[EAGER[0]].ratio.latency is None
    assert rows[EAGER[2]].status is Status.OK


def test_a_backend_that_cannot_run_is_a_row_with_the_reason(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Backend.refusal
    monkeypatch.setattr(
        Backend, "refusal", lambda self, *place: "not today" if self.name == "unfold" else real(self, *place)
    )
    rows = by_label(compare_networks(SMALL, replace(SETTINGS, backends=("unfold", "naive"))))
    assert (rows[EAGER[0]].status, rows[EAGER[0]].reason) == (Status.UNAVAILABLE, "not today")
    assert rows["rednet26 (naive), eager"].status is Status.OK
    with pytest.raises(BackendUnavailableError, match="--backend unfold: not today"):
        compare_networks(SMALL, replace(SETTINGS, asked_for=("unfold",)))


def test_without_a_compiler_only_the_compiled_rows_are_missing(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Backend.refusal
    monkeypatch.setattr(
        Backend, "refusal", lambda self, *place: "no g++" if self.name == "compiled" else real(self, *place)
    )
    rows = by_label(compare_networks(SMALL, SETTINGS))
    assert {rows[name].status for name in EAGER} == {Status.OK}
    assert {(rows[name].status, rows[name].reason) for name in DEPLOYED} == {(Status.UNAVAILABLE, "no g++")}


def test_ctrl_c_keeps_what_was_measured(clock: FakeClock) -> None:
    def stop(sample: int) -> None:
        if sample == 14:  # six to warm up, and three a round
            raise KeyboardInterrupt

    clock.on_sample = stop
    settings = replace(SETTINGS, breakdown=True, budget=Budget(seconds=9.0))
    found = compare_networks(replace(SMALL, mode=Mode.TRAIN), settings)
    assert found.interrupted
    assert all(row.latency is not None and row.latency.stop == "interrupted" for row in found.results)
    assert all(row.breakdown is None for row in found.results)


def test_several_images_are_checked_as_a_few(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    right = naive.aggregate

    def watch(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        if x.dtype == torch.float64:
            seen.append(len(x))
        return right(x, weight, spec)

    monkeypatch.setattr(naive, "aggregate", watch)
    for mode in (Mode.FORWARD, Mode.TRAIN):
        found = compare_networks(replace(SMALL, N=6, mode=mode), SETTINGS)
        assert {row.status for row in found.results} == {Status.OK}
    assert set(seen) == {proving.CHECKED_IMAGES}


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype: str, clock: FakeClock) -> None:
    found = compare_networks(replace(SMALL, dtype=dtype, layout="contiguous"), SETTINGS)
    assert [(row.status, row.reason) for row in found.results] == [(Status.OK, None)] * 6


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"N": 1, "H": 32, "W": 32, "mode": Mode.TRAIN}, "more than one position.*--image-size"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"threads": 4096}, "--threads 4096"),
    ],
)
def test_what_cannot_be_measured_is_refused(case: dict[str, Any], message: str) -> None:
    with pytest.raises(InvbenchError, match=message):
        compare_networks(replace(SMALL, **case), SETTINGS)


def test_auto_is_told_by_name() -> None:
    case, settings = complete(SMALL, replace(SETTINGS, backends=("auto", "naive", "auto")), "cpu", None)
    assert "auto" not in settings.backends
    assert set(settings.backends) <= set(BACKENDS)
    assert settings.backends[1:] in ((), ("naive",))
    assert case.threads == machine.usable_cores()


def test_counts_alone() -> None:
    found = count_networks(NetworkCase(1, 224, 224), replace(SETTINGS, models=("rednet26", "rednet38")))
    assert [row.subject for row in found.results] == ["rednet26", "rednet38", "resnet26", "resnet38"]
    for row in found.results:
        assert (row.status, row.latency, row.regime) == (Status.OK, None, None)
    first = found.results[0]
    assert first.ratio.params == pytest.approx(9.234 / 13.697, rel=1e-3)
    assert (first.params_trainable, first.published["top1"]) == (first.params, 75.96)


# --- Subjects ---


def test_every_backend_has_the_same_parameters_and_images() -> None:
    networks = Networks(SMALL, seed=4)
    original = networks.original(SUBJECTS["rednet26"], free=False)
    again = Networks(SMALL, seed=4).original(SUBJECTS["rednet26"], free=False)
    steps = [networks.step(original, NetworkSubject("rednet26", name, Regime.EAGER)) for name in ("naive", "unfold")]
    for name, tensor in again.network.state_dict().items():
        for step in steps:
            assert torch.equal(step.function.state_dict()[name], tensor), name
    assert torch.equal(*(step.inputs[0] for step in steps))
    assert {p.backend for p in steps[1].function.modules() if isinstance(p, Involution2d)} == {"unfold"}
    assert not original.network.training
    assert {p.momentum for p in original.network.modules() if isinstance(p, nn.BatchNorm2d)} == {0.1}


def test_the_first_layers_weights_are_channels_last_where_that_is_asked() -> None:
    original = Networks(SMALL, 0).original(SUBJECTS["resnet26"], free=False).network
    assert original.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    contiguous = Networks(replace(SMALL, layout="contiguous"), 0).original(SUBJECTS["resnet26"], free=False).network
    assert contiguous.conv1.weight.is_contiguous()


@pytest.mark.parametrize("size", [(64, 64), (33, 47)])
def test_free_involutions_have_the_shapes_of_real_ones(size: tuple[int, int]) -> None:
    network = create("rednet26", backend="naive").eval()
    free = without_involutions(network)
    assert not any(isinstance(part, Involution2d) for part in free.modules())
    x = torch.randn(1, 3, *size)
    shapes: list[list[torch.Size]] = []
    for each in (network, free):
        seen: list[torch.Size] = []
        for stage in (each.layer1, each.layer2, each.layer3, each.layer4):
            stage.register_forward_hook(lambda part, inputs, y, seen=seen: seen.append(y.shape))
        with torch.inference_mode():
            each(x)
        shapes.append(seen)
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_deployed_networks_compile_one_after_another() -> None:
    # More networks than torch.compile would compile one function for.
    x = torch.randn(1, 3, 9, 9)
    with torch.inference_mode():
        for channels in range(1, torch._dynamo.config.recompile_limit + 3):
            network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)).eval()
            torch.testing.assert_close(deployed(network)(x), network(x))


@pytest.mark.slow
def test_a_real_run_in_both_regimes() -> None:
    settings = NetworkSettings(("rednet26",), ("naive",), budget=Budget(seconds=2, warm_up=0.1), breakdown=True)
    found = compare_networks(replace(SMALL, H=64, W=64), settings)
    assert [(row.status, row.reason) for row in found.results] == [(Status.OK, None)] * 6
    for row in found.results:
        assert row.breakdown.total == pytest.approx(sum(row.breakdown.parts.values()) + row.breakdown.rest)
    compiled = by_label(found)["resnet26, folded and compiled"].breakdown.parts
    assert compiled["generated kernels"] > 0
    assert "normalisation" not in compiled


# --- Where the time goes ---


@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_parts_and_rest_are_the_whole(mode: Mode) -> None:
    networks = Networks(replace(SMALL, mode=mode), 0)
    original = networks.original(SUBJECTS["rednet26"], free=False)
    step = networks.step(original, NetworkSubject("rednet26", "unfold", Regime.EAGER))
    step.call()
    found = break_down(step, seconds=0.5)
    assert set(found.parts) == {
        "1x1 convolutions", "other convolutions", "involution", "normalisation", "activation", "pooling", "additions",
        "linear",
    }  # fmt: skip
    assert all(value > 0 for value in found.parts.values())
    assert 0 <= found.rest < 0.5 * found.total
    assert sum(found.parts.values()) + found.rest == pytest.approx(found.total)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in step.function.modules())


def test_each_kind_is_told_from_the_others() -> None:
    class Slow(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(6):
                x = self.layer(x)
            return x

    layers: dict[str, nn.Module] = {
        "1x1 convolutions": nn.Conv2d(16, 16, 1),
        "other convolutions": nn.Conv2d(16, 16, 3, padding=1),
        "involution": Involution2d(16, kernel_size=3, backend="naive"),
        "normalisation": nn.BatchNorm2d(16),
        "activation": nn.ReLU(),
        "pooling": nn.MaxPool2d(3, 1, 1),
        "linear": nn.Linear(32, 32),
    }
    for kind, layer in layers.items():
        network = Slow(layer)
        for mode, differentiated in ((Mode.FORWARD, ()), (Mode.TRAIN, (True,))):
            x = torch.randn(1, 16, 32, 32, requires_grad=mode is Mode.TRAIN)
            grad = torch.randn_like(x) if differentiated else None
            step = build.Step(mode, network, [x], [x] if differentiated else [], grad)
            parts = break_down(step, 0.5).parts
            assert max(parts, key=parts.__getitem__) == kind, (kind, mode, parts)


def test_a_run_with_a_breakdown(clock: FakeClock) -> None:
    settings = replace(SETTINGS, breakdown=True)
    told: list[str] = []
    found = compare_networks(replace(SMALL, mode=Mode.TRAIN), settings, told.append)
    assert all(row.breakdown is not None and row.breakdown.total > 0 for row in found.results)
    assert "involution" not in by_label(found)["rednet26 (free), eager"].breakdown.parts
    assert "looking where the time goes" in told


def test_no_breakdown_where_the_profiler_would_see_launches_only(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "is_possible", lambda device: False)
    found = compare_networks(replace(SMALL, mode=Mode.TRAIN), replace(SETTINGS, breakdown=True))
    for row in found.results:
        assert row.breakdown is None
        assert any("no breakdown" in warning for warning in row.warnings)


def test_settled_networks_have_finite_logits_that_depend_on_their_involutions() -> None:
    network = Networks(SMALL, 0).original(SUBJECTS["rednet26"], free=False).network
    x = torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        y = network(x)
        network.layer1[0].conv2.span.bias.add_(0.5)
        assert torch.isfinite(y).all()
        assert not torch.equal(network(x), y)


# --- Points: batch sizes, image sizes, modes ---


def test_networks_with_images_of_their_own_have_points_of_their_own() -> None:
    settings = NetworkSettings(("rednet26", "mnist-inv", "cifar10-inv"), ("unfold",))
    points = points_of(SMALL, settings, (1, 4), (48, 64), (Mode.FORWARD, Mode.TRAIN))
    assert len(points) == 2 * 2 * 4
    sides = {case.H: chosen.models for case, chosen in points}
    assert sides == {
        48: ("rednet26",), 64: ("rednet26",), 28: ("mnist-inv",), 32: ("cifar10-inv",),
    }  # fmt: skip
    assert {(case.N, case.mode) for case, _ in points} == {(n, m) for n in (1, 4) for m in (Mode.FORWARD, Mode.TRAIN)}


def test_a_baseline_that_takes_other_images_is_refused() -> None:
    settings = NetworkSettings(("mnist-inv",), ("unfold",), baseline="resnet26")
    with pytest.raises(InvbenchError, match="mnist-inv and its baseline resnet26 take different images"):
        points_of(SMALL, settings, (1,), (48,), (Mode.FORWARD,))


@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_small_networks_are_compared_like_any(mode: Mode, clock: FakeClock) -> None:
    settings = NetworkSettings(("mnist-inv-macs",), ("unfold",), budget=Budget(seconds=0.5))
    found = compare_networks(replace(SMALL, N=2, H=28, W=28, mode=mode), settings)
    for row in found.results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)
    ours, base = found.results[0], found.results[2]
    assert (ours.subject, base.subject) == ("mnist-inv-macs", "mnist-conv")
    assert ours.ratio.flop == pytest.approx(1, abs=0.006)
    assert base.published["data_set"] == "MNIST"


# --- Networks that users bring ---


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networks_of_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("networks_of_tests", None)


MINE = """
import torch
from torch import nn
from invbench import Involution2d

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

def involving():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), Involution2d(8, kernel_size=3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )

involving.counterpart = "networks_of_tests:plain"

def frozen():
    network = plain()
    network[0].requires_grad_(False)
    return network

def number():
    return 3

def broken():
    raise RuntimeError("no such file")

class Two(nn.Module):
    def forward(self, x):
        return x, x

def numbered():
    return plain()

numbered.counterpart = 5

def lonely():
    return plain()

lonely.counterpart = "resnet51"

def of_numbers():
    return nn.Linear(10, 3)

class Odd(nn.Module):
    # One involution has two names, another is frozen with all before it; some things are no modules.

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.frozen, self.first = Involution2d(8, kernel_size=3), Involution2d(8, kernel_size=3)
        self.second = self.first
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        with torch.no_grad():
            x = self.frozen(self.norm(self.stem(x)))
        x = nn.functional.dropout(x, 0.5, self.training)
        x = self.second(self.first(x)) + torch.arange(x.shape[-1])
        return self.last(x.mean((2, 3)))

def odd():
    network = Odd()
    for part in (network.stem, network.frozen):
        part.requires_grad_(False)
    return network
"""


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("mode", [Mode.FORWARD, Mode.TRAIN])
def test_a_users_network_is_measured_against_its_counterpart(mode: Mode, clock: FakeClock) -> None:
    asked = NetworkSettings(("networks_of_tests:involving", "networks_of_tests:frozen"), ("unfold",), budget=SHORT)
    case, settings = complete(replace(SMALL, N=2, mode=mode), asked, "cpu", 1)
    assert [model.name.partition(":")[2] for model in settings.custom] == ["involving", "frozen", "plain"]
    rows = {(row.subject.partition(":")[2], row.backend): row for row in compare_networks(case, settings).results}
    for row in rows.values():
        assert (row.status, row.reason) == (Status.OK, None), label(row)
    assert set(rows) == {("involving", "unfold"), ("involving", FREE), ("frozen", "torch"), ("plain", "torch")}
    ours = rows["involving", "unfold"]
    assert ours.baseline == "networks_of_tests:plain"
    assert ours.ratio.latency.median == pytest.approx(1)
    frozen = rows["frozen", "torch"]
    assert frozen.params - frozen.params_trainable == 8 * 27 + 8
    static = count_networks(case, settings).results
    assert [row.params for row in static] == [ours.params, frozen.params, rows["plain", "torch"].params]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("networks_of_tests:number", "a factory returns an nn.Module: got int"),
        ("networks_of_tests:broken", r"it cannot be made \(RuntimeError: no such file\)"),
        ("networks_of_tests:missing", "--models networks_of_tests:missing: it cannot be imported"),
        ("no_such_module:x", "it cannot be imported"),
        (":x", "--models takes package.module:factory"),
        ("networks_of_tests:numbered", "its counterpart is a network of ours or package.module:factory: got 5"),
        ("networks_of_tests:lonely", "its counterpart is a network of ours .* got 'resnet51'"),
    ],
)
def test_a_users_network_that_cannot_be_had_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        complete(SMALL, replace(SETTINGS, models=(name,)), "cpu", 1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("mine")
def test_a_users_network_that_returns_two_tensors_is_a_row_with_its_reason(clock: FakeClock) -> None:
    case, settings = complete(SMALL, replace(SETTINGS, models=("networks_of_tests:Two",)), "cpu", 1)
    row = compare_networks(case, settings).results[0]
    assert row.status is Status.ERROR
    assert "a network returns one tensor: got tuple" in row.reason


@pytest.mark.usefixtures("mine")
def test_a_users_network_that_takes_no_images_is_one_line_where_it_is_counted() -> None:
    case, settings = complete(SMALL, replace(SETTINGS, models=("networks_of_tests:of_numbers",)), "cpu", 1)
    with pytest.raises(InvbenchError, match="--models networks_of_tests:of_numbers: it cannot be counted on an image"):
        count_networks(case, settings)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_users_network_may_be_odd(dtype: str, clock: FakeClock) -> None:
    asked = NetworkSettings(("networks_of_tests:odd",), ("unfold",), budget=SHORT)
    case, settings = complete(replace(SMALL, N=2, dtype=dtype, mode=Mode.TRAIN), asked, "cpu", 1)
    for row in compare_networks(case, settings).results:
        assert (row.status, row.reason) == (Status.OK, None), label(row)


def test_involutions_of_several_names_are_free_under_all() -> None:
    layer = Involution2d(8)
    network = without_involutions(nn.ModuleDict({"first": layer, "second": layer}))
    assert not any(isinstance(part, Involution2d) for part in network.modules())
    assert isinstance(without_involutions(layer), nn.Identity)


@pytest.mark.parametrize("wrong", ["tap", "group", "border"])
@pytest.mark.parametrize("autocast", [False, True])
def test_inference_in_16_bits_shows_what_is_wrong(
    wrong: str, autocast: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def aggregate(x: Tensor, weight: Tensor, spec: Any) -> Tensor:
        if wrong == "border":
            y = naive.aggregate(x, weight, spec).clone()
            y[..., -1] *= spec.stride == 1
            return y
        changed = weight.flip(1) if wrong == "group" else weight.clone()
        changed[:, :, 0] *= wrong != "tap"
        return naive.aggregate(x, changed, spec)

    monkeypatch.setattr(unfold, "aggregate", aggregate)
    found = by_label(compare_networks(replace(SMALL, dtype="bfloat16", autocast=autocast), SETTINGS))
    assert found[EAGER[0]].status is Status.MISMATCH


def test_ctrl_c_while_memory_is_added_up_keeps_latencies(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "kept_bytes", stop)
    found = compare_networks(replace(SMALL, N=2, mode=Mode.TRAIN), SETTINGS)
    assert found.interrupted
    assert all(row.latency is not None for row in found.results)


# --- Autocast and memory ---


def test_under_autocast_parameters_stay_float32_and_products_do_not(clock: FakeClock) -> None:
    case = replace(SMALL, N=2, H=64, W=64, dtype="bfloat16", mode=Mode.TRAIN, autocast=True)
    networks = Networks(case, 0)
    step = networks.step(
        networks.original(SUBJECTS["resnet26"], free=False), NetworkSubject("resnet26", "torch", Regime.EAGER)
    )
    y, *gradients = step.results()
    assert y.dtype is torch.bfloat16
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    rows = compare_networks(case, SETTINGS).results
    assert all(row.status is Status.OK for row in rows), [row.reason for row in rows]


def test_what_a_training_step_keeps_counts_each_storage_once() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)

    def forward() -> Tensor:
        hidden = (x @ weight).relu()  # [4, 8], kept by the rectifier, and by the product that squares it
        return (hidden * hidden).sum()

    assert memory.kept_bytes(forward, [x, weight]) == 4 * 8 * 4
    assert memory.kept_bytes(forward, []) == 4 * (4 * 8 + 4 * 8 + 8 * 8)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")
def test_peak_memory_of_a_network_in_a_process_of_its_own() -> None:
    case = NetworkCase(2, 256, 256, threads=1)
    networks = Networks(case, 0)
    subject = NetworkSubject("resnet26", "torch", Regime.EAGER)
    found = memory.cpu_peaks([NetworkJob(subject, networks, SUBJECTS["resnet26"])], workers=1)[subject]
    output = 4 * 2 * 64 * 128 * 128  # of the first convolution, the largest of all
    assert found.method == "vmhwm"
    assert output < found.peak < 8 * output
