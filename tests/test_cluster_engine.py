"""How a sweep comes to a cluster and leaves it, with a Ray of our own; with the real one: test_cluster_processes.py."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from invbench.harness.cluster.engine import connected
from invbench.spec import InvbenchError

pytestmark = pytest.mark.usefixtures("environment_is_put_back")


def test_ctrl_c_while_ray_starts_is_taken_afterwards_and_while_it_ends_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []

    def interrupted(what: str) -> Any:
        def act(**_: Any) -> None:
            log.append(what)
            if what in interrupts:
                signal.raise_signal(signal.SIGINT)
            log.append(f"{what} done")

        return act

    context = SimpleNamespace(gcs_address="127.0.0.1:1")
    ray = SimpleNamespace(
        init=interrupted("init"), shutdown=interrupted("shutdown"), get_runtime_context=lambda: context
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    interrupts = {"shutdown"}
    with connected("local"):
        pass
    interrupts = {"init"}
    with pytest.raises(KeyboardInterrupt), connected("local"):
        log.append("never")
    assert log == ["init", "init done", "shutdown", "shutdown done"] * 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Version mismatch: The cluster was started with: Ray: 2.1", "install the same Ray and Python on every node"),
        ("could not find any running instance", "run this on a machine of the cluster, after: ray start --head"),
    ],
)
def test_why_there_is_no_cluster(said: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, f"{said}\nTraceback\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setitem(sys.modules, "ray", object())
    with pytest.raises(InvbenchError) as caught, connected("auto"):
        pass
    assert said in str(caught.value)
    assert words in str(caught.value)
