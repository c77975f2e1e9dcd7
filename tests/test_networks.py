"""Networks compared: rows, ceilings and memory, with a clock of our own and real tensors."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from network_runs import DEPLOYED, EAGER, PEAKS, SETTINGS, SMALL, FakeClock, by_label, label
from torch import Tensor, nn

from invbench.harness import memory
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, NetworkSubject
from invbench.harness.networks.build import NetworkJob, Networks, deployed, without_involutions
from invbench.harness.networks.comparing import compare_networks, count_networks
from invbench.models import SUBJECTS, create
from invbench.ops import Backend, Involution2d, unfold
from invbench.results import Status
from invbench.spec import FREE, BackendUnavailableError, Mode, NetworkCase, Regime


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


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype: str, clock: FakeClock) -> None:
    found = compare_networks(replace(SMALL, dtype=dtype, layout="contiguous"), SETTINGS)
    assert [(row.status, row.reason) for row in found.results] == [(Status.OK, None)] * 6


def test_counts_alone() -> None:
    found = count_networks(NetworkCase(1, 224, 224), replace(SETTINGS, models=("rednet26", "rednet38")))
    assert [row.subject for row in found.results] == ["rednet26", "rednet38", "resnet26", "resnet38"]
    for row in found.results:
        assert (row.status, row.latency, row.regime) == (Status.OK, None, None)
    first = found.results[0]
    assert first.ratio.params == pytest.approx(9.234 / 13.697, rel=1e-3)
    assert (first.params_trainable, first.published["top1"]) == (first.params, 75.96)


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


def test_free_involutions_do_not_let_a_relu_write_over_what_others_read() -> None:
    network = nn.Sequential(Involution2d(16), nn.ReLU(inplace=True), Involution2d(16), nn.ReLU(inplace=True))
    free = without_involutions(network)
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    before = x.detach().clone()
    free(x).sum().backward()
    assert torch.equal(x, before)
    assert torch.equal(x.grad, (before > 0).float())


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


def test_involutions_of_several_names_are_free_under_all() -> None:
    layer = Involution2d(8)
    network = without_involutions(nn.ModuleDict({"first": layer, "second": layer}))
    assert not any(isinstance(part, Involution2d) for part in network.modules())
    assert isinstance(without_involutions(layer), nn.Identity)


def test_ctrl_c_while_memory_is_added_up_keeps_latencies(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(memory, "kept_bytes", stop)
    found = compare_networks(replace(SMALL, N=2, mode=Mode.TRAIN), SETTINGS)
    assert found.interrupted
    assert all(row.latency is not None for row in found.results)


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
