"""The allocator's state in which everything is measured: what is freed serves the next call."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from invbench.harness import allocator

pytestmark = pytest.mark.skipif(
    allocator.describe()["library"] != "glibc",
    reason="tensors lie in another allocator's memory, which has other settings",
)

# Page faults of a call whose output has 20 MiB, after the first few, and the memory that a process keeps of it. Where
# the heap's top happens to lie so that an aligned block leaves a gap before it, three calls take new memory each.
PROGRAM = """
import json, resource, sys, torch
from invbench.harness import allocator, machine

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

machine.settle(1) if sys.argv[1] == "settled" else machine.set_threads(1)
x = torch.zeros(20 * 2**18)
x[:1] + 1  # whose code is read into memory
before = resident()
for _ in range(8):
    x + 1
counted = faults()
for _ in range(5):
    x + 1
found = {"faults": faults() - counted, "kept": resident() - before}
allocator.give_back()
print(json.dumps({**found, "left": resident() - before, "told": allocator.describe()}))
"""
OUTPUT = 20 * 2**20


def _found(how: str, **variables: str) -> Any:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_a_call_finds_the_memory_that_the_last_one_has_freed() -> None:
    found = _found("settled")
    assert found["faults"] < 100
    assert found["kept"] > 0.9 * OUTPUT
    assert found["told"]["keeps_freed"] is True


def test_what_is_kept_can_be_given_back() -> None:
    assert _found("settled")["left"] < 0.1 * OUTPUT


@pytest.mark.parametrize(
    "variables", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}], ids=str
)
def test_what_the_user_has_chosen_stays(variables: dict[str, str]) -> None:
    """And each of the five calls maps its output anew, a page fault for every 4 KiB, or 2 MiB where pages are huge."""
    found = _found("settled", **variables)
    assert found["kept"] < 0.1 * OUTPUT
    assert found["told"] == {**allocator.describe(), "keeps_freed": False, "variables": variables}


def test_a_process_that_was_not_settled_does_not_claim_it() -> None:
    assert _found("as it was")["told"]["keeps_freed"] is False


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that does not know yet whose memory its tensors have."""
    monkeypatch.setattr(allocator, "_has_kept", False)
    allocator._is_glibc.cache_clear()
    yield
    allocator._is_glibc.cache_clear()


def refuse(*_: object) -> None:
    raise AssertionError("the C library was asked")


def test_other_allocators_are_left_alone(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as jemalloc, by LD_PRELOAD, or one that torch brings: then glibc hands out nothing for a tensor."""
    monkeypatch.setattr(allocator, "_in_use", lambda: 7)
    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    allocator.keep_freed()
    allocator.give_back()
    assert allocator.describe() == {"library": "another", "keeps_freed": False, "variables": {}}


def test_other_c_libraries_are_left_alone(unasked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", refuse)
    allocator.keep_freed()
    allocator.give_back()
    assert allocator.describe() == {"library": "another", "keeps_freed": False, "variables": {}}


def test_older_versions_of_glibc_are_asked_the_older_way(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ctypes.CDLL(None)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: SimpleNamespace(mallinfo=here.mallinfo))
    before = allocator._in_use()
    block = ctypes.create_string_buffer(2**20)
    assert 2**20 <= allocator._in_use() - before < 2**21
    del block
