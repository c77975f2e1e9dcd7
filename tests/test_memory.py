"""Peak memory: a known allocation reads as itself, in a process of its own; elsewhere it is unknown, never 0."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from invbench.harness import memory, server
from invbench.harness.memory import UNKNOWN, OperatorJob, cpu_peaks, cuda_peak
from invbench.harness.settings import INVOLUTION, Subject
from invbench.results.quantities import Memory
from invbench.spec import Case, LayerSpec, Scope

MIB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux's")

# [1, 32, 512, 512] in float32: x and y have 32 MiB each, and with K=1 nothing else is needed.
LARGE = Case(1, 512, 512, LayerSpec(32, 1), layout="contiguous", scope=Scope.AGGREGATE)
SMALL = Case(1, 128, 128, LayerSpec(32, 1), layout="contiguous", scope=Scope.AGGREGATE)  # y has 2 MiB
NAIVE, UNFOLD = Subject(INVOLUTION, "naive"), Subject(INVOLUTION, "unfold")


def job(subject: Subject, case: Case) -> OperatorJob:
    return OperatorJob(subject, case, seed=0, layout=case.layout)


@pytest.fixture(scope="module")
def peaks() -> dict[Subject, Memory]:
    """One worker, so that a process which outlived its job would show in the next one."""
    # unfold writes the patches, their product, and the sum: three times 32 MiB, two of them at a time at least.
    return cpu_peaks([job(UNFOLD, LARGE), job(NAIVE, LARGE)], workers=1)


@on_linux
def test_a_call_that_allocates_its_output_alone_reads_as_that(peaks: dict[Subject, Memory]) -> None:
    found = peaks[NAIVE]
    assert found.method == "vmhwm"
    assert found.peak is not None
    assert abs(found.peak - 32 * MIB) < MIB


@on_linux
def test_intermediate_tensors_count(peaks: dict[Subject, Memory]) -> None:
    found = peaks[UNFOLD]
    assert found.peak is not None
    assert 64 * MIB - MIB < found.peak < 96 * MIB + MIB


@on_linux
def test_a_subject_is_not_credited_with_what_another_allocated(peaks: dict[Subject, Memory]) -> None:
    alone = cpu_peaks([job(NAIVE, SMALL)], workers=1)[NAIVE]
    assert alone.peak is not None
    assert abs(alone.peak - 2 * MIB) < MIB // 4


@on_linux
def test_a_peak_holds_at_least_the_output() -> None:
    # An output below the allocator's mapping threshold comes from its heap, where the high-water mark is blind: then
    # the peak is unknown, or the output's size; it is not 0 bytes.
    tiny = Case(1, 9, 9, LayerSpec(16, 3), scope=Scope.AGGREGATE)
    found = cpu_peaks([job(NAIVE, tiny)], workers=1)[NAIVE]
    assert found.peak is None or found.peak >= 4 * 16 * 81


@on_linux
def test_a_job_that_fails_is_unknown_and_the_others_are_not() -> None:
    broken = Subject(INVOLUTION, "no such backend")
    found = cpu_peaks([job(broken, SMALL), job(NAIVE, SMALL)], workers=1)
    assert found[broken] == UNKNOWN
    assert found[NAIVE].peak is not None


def test_no_jobs() -> None:
    assert cpu_peaks([], workers=1) == {}


def test_unknown_where_there_is_no_high_water_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "sys", SimpleNamespace(platform="darwin"))
    server.start()
    assert cpu_peaks([job(NAIVE, SMALL), job(UNFOLD, SMALL)], workers=1) == {NAIVE: UNKNOWN, UNFOLD: UNKNOWN}
    assert (UNKNOWN.peak, UNKNOWN.method) == (None, None)


@on_linux
def test_unknown_where_the_mark_cannot_be_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.os, "access", lambda path, mode: False)
    assert cpu_peaks([job(NAIVE, SMALL)], workers=1) == {NAIVE: UNKNOWN}


@on_linux
def test_start_server_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "123")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    before = dict(os.environ)
    server.start()
    assert dict(os.environ) == before


def test_cuda_peak_is_above_what_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"held": 100, "peak": 0}

    class Call:
        def call(self) -> None:
            state["peak"] = state["held"] + 42

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: state.update(peak=state["held"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["held"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: state["peak"])
    assert cuda_peak(Call(), torch.device("cuda:0")) == Memory(42, "cuda-allocator")  # type: ignore[arg-type]


@on_linux
def test_a_child_that_has_measured_before_finds_the_same() -> None:
    fresh = cpu_peaks([job(NAIVE, LARGE)], workers=1)[NAIVE]
    cpu_peaks([job(NAIVE, SMALL)], workers=1)
    again = cpu_peaks([job(NAIVE, LARGE)], workers=1)[NAIVE]
    assert fresh.peak is not None
    assert again.peak is not None
    assert abs(again.peak - fresh.peak) < MIB // 2


@on_linux
def test_ctrl_c_ends_the_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(job: OperatorJob) -> None:
        raise KeyboardInterrupt

    cpu_peaks([job(NAIVE, SMALL)], workers=1)
    (child,) = (each for subject, each in memory._children.items() if subject == NAIVE)
    monkeypatch.setattr(memory, "_peak_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cpu_peaks([job(NAIVE, SMALL)], workers=1)
    assert not child._process.is_alive()
    assert not memory._children


def test_without_the_fork_server_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> memory.Child:
        raise EOFError  # which typer would take for Ctrl-C

    monkeypatch.setattr(memory, "Child", gone)
    job = memory.OperatorJob(Subject("unfold", "unfold"), Case(1, 4, 4, LayerSpec(4)), 0, "contiguous")
    assert memory._peak_of(job) == memory.UNKNOWN
