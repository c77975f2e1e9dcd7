"""The allocator's state in which everything is measured: what is freed serves the next call."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from invbench.harness import allocator

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")

# Page faults of a call whose output has 20 MiB, after a first one, and the memory that a process keeps of it.
PROGRAM = """
import json, resource, sys, torch
from invbench.harness import allocator, machine

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

machine.settle(1) if sys.argv[1] == "settled" else machine.set_threads(1)
x = torch.zeros(20 * 2**18)
before = resident()
for _ in range(2):
    x + 1
counted = faults()
for _ in range(5):
    x + 1
found = {"faults": faults() - counted, "kept": resident() - before}
allocator.give_back()
print(json.dumps({**found, "left": resident() - before, "told": allocator.describe()}))
"""
OUTPUT = 20 * 2**20


def _found(how: str, **variables: str) -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_call_finds_the_memory_that_the_last_one_has_freed() -> None:
    found = _found("settled")
    assert found["faults"] < 100  # type: ignore[operator]
    assert found["kept"] > 0.9 * OUTPUT  # type: ignore[operator]
    assert found["told"]["keeps_freed"] is True  # type: ignore[index]


def test_what_is_kept_can_be_given_back() -> None:
    assert _found("settled")["left"] < 0.1 * OUTPUT  # type: ignore[operator]


@pytest.mark.parametrize(
    "variables", [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}], ids=str
)
def test_what_the_user_has_chosen_stays(variables: dict[str, str]) -> None:
    """And each of the five calls maps its output anew, a page fault for every 4 KiB, or 2 MiB where pages are huge."""
    found = _found("settled", **variables)
    assert found["kept"] < 0.1 * OUTPUT  # type: ignore[operator]
    assert found["told"] == {**allocator.describe(), "keeps_freed": False, "variables": variables}


def test_a_process_that_was_not_settled_does_not_claim_it() -> None:
    assert _found("as it was")["told"]["keeps_freed"] is False  # type: ignore[index]


def test_another_allocator_is_named_and_left_alone(tmp_path: Path) -> None:
    """Any library by such a name: what is looked at is what the process has loaded."""
    loaded = Path("/proc/self/maps").read_text().split()
    library = shutil.copy(
        next(name for name in loaded if "/libm." in name or "/libm-" in name), tmp_path / "libjemalloc.so.2"
    )
    told = _found("settled", LD_PRELOAD=str(library))["told"]
    assert told == {"library": "libjemalloc.so.2", "keeps_freed": False, "variables": {}}


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    allocator.keep_freed()
    allocator.give_back()
    assert allocator.describe()["library"] is None
