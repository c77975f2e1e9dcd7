"""The device clock on a GPU of our own: a queue that the host fills, and a device that begins once it has spun."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from invbench.harness import device_clock
from invbench.harness.clock import ColdClock, Flush
from invbench.harness.device_clock import GRAPH, QUEUE, SHORTEST_SPIN, DeviceClock, clock_for
from invbench.harness.steps import Step
from invbench.spec import InvbenchError, Mode

CUDA = torch.device("cuda:1")
CALL = 2.0  # milliseconds on the device
LAUNCH = 30_000  # cycles for which the host is busy with one launch


class Gpu:
    """A queue; ``log`` is what the host asked for, ``ran`` what the device does. Time on the device in milliseconds.

    refusal: raised by what is captured. slow: by how much launching takes longer.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.graph: Graph | None = None
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.refusal: Exception | None = None
        self.slow = 1.0
        self.head_start = 0.0  # cycles that the device still spins
        self.time = 0.0
        self.sync_mode = 0

    def launch(self, name: str, milliseconds: float) -> None:
        if self.graph is not None:
            if self.refusal is not None:
                raise self.refusal
            self.graph.nodes.append((name, milliseconds))
            return
        self.log.append(name)
        self.head_start -= LAUNCH * self.slow
        self.time += milliseconds

    def wait(self) -> None:
        """What .item() does."""
        if self.sync_mode:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.log.append("waited")

    def spin(self, cycles: int) -> None:
        self.log.append("spin")
        self.head_start = cycles


class Graph:
    """What was captured."""

    gpu: Gpu

    def __init__(self) -> None:
        self.nodes: list[tuple[str, float]] = []
        self.shared_pool: object = None
        self.gpu.graphs.add(self)

    def pool(self) -> object:
        return self

    def replay(self) -> None:
        self.gpu.launch(f"replay {' '.join(name for name, _ in self.nodes)}", sum(cost for _, cost in self.nodes))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            found.log.append("event")
            self.time = found.time

        def query(self) -> bool:
            return found.head_start <= 0

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return end.time - self.time

    class Stream:
        def wait_stream(self, other: Any) -> None: ...

    @contextlib.contextmanager
    def on(where: object) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def capture(graph: Graph, pool: object = None, stream: object = None) -> Iterator[None]:
        assert stream is not None
        graph.shared_pool, found.graph = pool, graph
        try:
            yield
        finally:
            found.graph = None

    Graph.gpu = found
    fakes = {
        "Event": Event, "Stream": Stream, "CUDAGraph": Graph, "graph": capture, "device": on, "stream": on,
        "current_stream": Stream, "synchronize": lambda: None, "_sleep": found.spin,
        "get_sync_debug_mode": lambda: found.sync_mode,
        "set_sync_debug_mode": lambda mode: setattr(found, "sync_mode", mode if isinstance(mode, int) else 2),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return found


def none() -> None:
    return None


def call(gpu: Gpu) -> Callable[[Any], None]:
    return lambda _state: gpu.launch("call", CALL)


def test_a_captured_call_is_replayed_in_a_window_that_was_queued_before_it_opened(gpu: Gpu) -> None:
    clock = DeviceClock(CUDA)
    assert clock.way is None
    assert clock.sample(none, call(gpu), 3) == pytest.approx(CALL * 1e-3)
    assert clock.way == GRAPH
    assert gpu.log[-6:] == ["spin", "event", *["replay call"] * 3, "event"]


def test_it_is_captured_once(gpu: Gpu) -> None:
    clock = DeviceClock(CUDA)
    for _ in range(5):
        clock.sample(none, call(gpu), 1)
    assert len(gpu.graphs) == 1
    assert gpu.log.count("call") == device_clock.WARM_UP_CALLS


def test_what_was_captured_is_released_with_the_clock(gpu: Gpu) -> None:
    clock = DeviceClock(CUDA)
    clock.sample(lambda: gpu.launch("before", 1.0) or "state", call(gpu), 1)
    assert len(gpu.graphs) == 2
    del clock
    gc.collect()
    assert len(gpu.graphs) == 0


def test_what_comes_before_is_replayed_from_a_graph_of_its_own_outside_the_window(gpu: Gpu) -> None:
    def before() -> str:
        gpu.launch("before", 50.0)
        return "state"

    def timed(state: str) -> None:
        if state != "state":
            raise AssertionError(state)
        gpu.launch("call", CALL)

    clock = DeviceClock(CUDA)
    assert clock.sample(before, timed, 1) == pytest.approx(CALL * 1e-3)
    assert gpu.log[-5:] == ["replay before", "spin", "event", "replay call", "event"]
    preparation, timed_graph = sorted(gpu.graphs, key=lambda graph: graph.nodes)
    assert timed_graph.shared_pool is preparation  # the call reads what the preparation has written


@pytest.mark.parametrize(("mode", "windows"), [(Mode.TRAIN, 1), (Mode.BACKWARD, 3)])
def test_each_backward_pass_follows_a_forward_pass_of_its_own(gpu: Gpu, mode: Mode, windows: int) -> None:
    x = torch.ones(3, requires_grad=True)

    def function(x: torch.Tensor) -> torch.Tensor:
        gpu.launch("forward", 1.0)
        return x * x

    Step(mode, function, [x], [x], torch.ones(3)).sampler(DeviceClock(CUDA))(3)
    assert gpu.log.count("event") == 2 * windows
    assert gpu.log.count("replay forward") == 3


def test_a_flush_is_queued_after_the_spin_and_before_the_window(gpu: Gpu) -> None:
    clock = ColdClock(DeviceClock(CUDA), flush=lambda: gpu.launch("flush", 99.0))
    assert clock.sample(none, call(gpu), 2) == pytest.approx(CALL * 1e-3)
    assert clock.way == GRAPH
    assert gpu.log[-10:] == ["spin", "flush", "event", "replay call", "event"] * 2


def test_what_cannot_be_captured_is_queued(gpu: Gpu) -> None:
    gpu.refusal = RuntimeError("operation not permitted when stream is capturing")
    clock = DeviceClock(CUDA)
    assert clock.sample(none, call(gpu), 2) == pytest.approx(CALL * 1e-3)
    assert clock.way == QUEUE
    assert gpu.log[-5:] == ["spin", "event", "call", "call", "event"]
    gpu.refusal = None  # its traceback has the graph
    gc.collect()
    assert len(gpu.graphs) == 0


def test_running_out_of_memory_is_no_reason_to_queue(gpu: Gpu) -> None:
    gpu.refusal = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        DeviceClock(CUDA).sample(none, call(gpu), 1)


def test_a_host_that_is_late_spins_longer_and_the_sample_is_void(gpu: Gpu) -> None:
    clock = DeviceClock(CUDA)
    assert clock.sample(none, call(gpu), 40) == pytest.approx(CALL * 1e-3)  # 40 launches take 12 times the first spin
    spins = gpu.log.count("spin")
    assert spins == 5
    clock.sample(none, call(gpu), 40)
    assert gpu.log.count("spin") == spins + 1  # what was learned is kept


def test_one_late_launch_is_forgotten(gpu: Gpu) -> None:
    clock = DeviceClock(CUDA)
    gpu.slow = 100.0
    clock.sample(none, call(gpu), 1)
    gpu.slow = 1.0
    for _ in range(200):
        clock.sample(none, call(gpu), 1)
    assert clock._spin == SHORTEST_SPIN


def test_a_host_that_is_always_late_is_told_in_one_line(gpu: Gpu) -> None:
    gpu.slow = float("inf")
    with pytest.raises(InvbenchError, match=r"--clock device: .*use --clock eager.*CUDA_LAUNCH_BLOCKING") as error:
        DeviceClock(CUDA).sample(none, call(gpu), 1)
    assert gpu.log.count("spin") < 20
    assert str(error.value).isprintable()


def test_a_call_that_waits_is_refused_before_it_is_captured(gpu: Gpu) -> None:
    with pytest.raises(InvbenchError, match=r"--clock device: it makes the host wait .*use --clock eager"):
        DeviceClock(CUDA).sample(none, lambda _: gpu.wait(), 1)
    assert (len(gpu.graphs), gpu.sync_mode) == (0, 0)


def test_another_failure_is_passed_on(gpu: Gpu) -> None:
    def broken(_state: object) -> None:
        raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        DeviceClock(CUDA).sample(none, broken, 1)
    assert gpu.sync_mode == 0


# --- On a real one ---


def multiplied(n: int) -> Callable[[Any], torch.Tensor]:
    a = torch.randn(n, n, device="cuda")
    return lambda _state: torch.mm(a, a)


def median_of(clock: Any, timed: Callable[[Any], object], calls: int = 1) -> float:
    return sorted(clock.sample(none, timed, calls) for _ in range(21))[10]


@pytest.mark.gpu
def test_launches_are_excluded_on_a_gpu() -> None:
    device = torch.device("cuda")
    elements = [torch.zeros(1, device=device) for _ in range(50)]

    def many_launches(_state: Any) -> None:
        for element in elements:
            element.add_(1)

    on_device, eager = clock_for(device, "device"), clock_for(device)
    assert median_of(on_device, many_launches) < 0.8 * median_of(eager, many_launches)
    assert on_device.way == GRAPH


@pytest.mark.gpu
def test_both_clocks_agree_on_long_calls_of_a_gpu() -> None:
    device, timed = torch.device("cuda"), multiplied(8192)
    assert median_of(clock_for(device, "device"), timed) == pytest.approx(median_of(clock_for(device), timed), rel=0.1)


@pytest.mark.gpu
def test_a_cold_call_of_a_gpu_is_slower_than_a_hot_one() -> None:
    device = torch.device("cuda")
    a = torch.randn(2**21, device=device)  # 8 MiB: fits any L2
    hot, cold = clock_for(device, "device"), clock_for(device, "device", Flush(device))
    assert median_of(hot, lambda _: a.sum(), 20) < median_of(cold, lambda _: a.sum())


@pytest.mark.gpu
def test_queued_and_captured_calls_of_a_gpu_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    device, timed = torch.device("cuda"), multiplied(4096)
    captured = median_of(clock_for(device, "device"), timed)
    refused = RuntimeError("not today")
    monkeypatch.setattr(device_clock, "_captured", lambda *_: (_ for _ in ()).throw(refused))
    queued = clock_for(device, "device")
    assert median_of(queued, timed) == pytest.approx(captured, rel=0.1)
    assert queued.way == QUEUE


@pytest.mark.gpu
def test_a_call_that_waits_is_refused_on_a_gpu() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(InvbenchError, match="wait"):
        DeviceClock(torch.device("cuda")).sample(none, lambda _: x.sum().item(), 1)
    assert DeviceClock(torch.device("cuda")).sample(none, lambda _: x.add_(1), 1) > 0  # and the next subject goes on


@pytest.mark.gpu
def test_a_capture_that_fails_on_a_gpu_leaves_the_next_subject_unharmed() -> None:
    side = torch.cuda.Stream()
    x = torch.ones(4, device="cuda")
    calls = itertools.count()

    def refuses(_state: Any) -> None:
        x.add_(1)
        if next(calls) == device_clock.WARM_UP_CALLS:
            side.synchronize()  # not permitted in a capture

    first, second = (DeviceClock(torch.device("cuda")) for _ in range(2))
    assert first.sample(none, refuses, 1) > 0
    assert first.way == QUEUE
    assert second.sample(none, lambda _: x.add_(1), 1) > 0
    assert second.way == GRAPH
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_is_captured_on_a_gpu(mode: Mode) -> None:
    module = torch.nn.Conv2d(16, 16, 3, padding=1, device="cuda")
    x = torch.randn(2, 16, 8, 8, device="cuda", requires_grad=mode is not Mode.FORWARD)
    differentiated = [] if mode is Mode.FORWARD else [x, *module.parameters()]
    step = Step(mode, module, [x], differentiated, torch.ones(2, 16, 8, 8, device="cuda"))
    step.call()  # cuDNN chooses
    clock = DeviceClock(torch.device("cuda"))
    seconds = step.sampler(clock)(3)
    assert clock.way == GRAPH
    assert 0 < seconds < 0.1
