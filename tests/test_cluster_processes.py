"""Sweeps over real Ray clusters of two nodes on this machine's loopback: killed nodes, drivers and Ctrl-C."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # noqa: TID251 -- who else would tell which processes are left
import pytest
from filelock import FileLock  # comes with torch
from test_sweep_processes import GONE_SECONDS, MARK, finish, keys, rows, sweep

from invbench.harness.cluster import agreement
from invbench.results.journal import Entry, open_journal

# Ray reads its environment while it is imported, which a fixture sets: here it is not imported yet.
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the loopback has other addresses there"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray"),
]

TINY = ["--C=4", "--H=6", "--K=3", "--backend=naive", "--budget=0.05", "--device=cpu", "--threads=1"]
SIX = ["--N=1:6:1", *TINY]
LOOPBACK = "127.0.0.2"


class Nodes:
    """A cluster of two nodes with a core each."""

    def __init__(self, mark: str) -> None:
        from ray.cluster_utils import Cluster

        self.mark = mark
        self.how = {"num_cpus": 1, "node_ip_address": LOOPBACK, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**self.how, "include_dashboard": False})
        self.other: Any = self.cluster.add_node(**self.how)

    @property
    def address(self) -> str:
        return f"--ray={self.cluster.address}"

    def kill_the_other(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)
        self.other = None

    def complete(self) -> None:
        """Two nodes again, if a test has killed one."""
        self.other = self.other or self.cluster.add_node(**self.how)

    def measuring(self) -> list[psutil.Process]:
        """The measuring processes on the nodes, and what those have started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                own = process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
                if own and any("multiprocessing" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def assert_nobody_measures(self) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        while left := self.measuring():
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.05)


@pytest.fixture(scope="module", autouse=True)
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where tests share the cores, no two processes start clusters at once: each looks for free ports before it takes
    them, and one was seen to meet the other's."""
    together = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    with FileLock((folder.parent if together else folder) / "ray.lock"):
        yield


@pytest.fixture(scope="module")
def cluster(one_at_a_time: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        mark = f"nodes of {os.getpid()}"
        patch.setenv(MARK, mark)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")  # Ray listens to everybody
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        found = Nodes(mark)
        yield found
        found.cluster.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    cluster.complete()
    return cluster


def entries(folder: Path) -> list[Entry]:
    with open_journal(folder / "sweep.jsonl", resume=True) as journal:
        return list(journal.entries.values())


def assert_no_two_at_once(folder: Path) -> None:
    """Recorded times show that no node measured two points at once."""
    spans = sorted((e.span.node, e.span.start, e.span.end) for e in entries(folder) if e.span)
    for (node, _, end), (next_node, start, _) in itertools.pairwise(spans):
        assert next_node != node or start >= end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Any]]:
    """Keys and rows of the same sweep without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(folder, *SIX, "--quiet")
    assert code == 0, err
    return sorted(keys(folder)), sorted(rows(folder))


def test_two_nodes_share_the_points_of_the_same_sweep(nodes: Nodes, undisturbed: Any, tmp_path: Path) -> None:
    code, out, err = finish(tmp_path, *SIX, nodes.address, "--format=json")
    assert code == 0, err
    assert all(line.startswith("invbench: ") for line in err.splitlines()), err
    assert (sorted(keys(tmp_path)), sorted(rows(tmp_path))) == undisturbed
    measured = [row["node"] for row in json.loads(out)["results"]]
    assert len(measured) == 30
    assert len(set(measured)) == 2
    assert len({e.span.node for e in entries(tmp_path) if e.span}) == 2
    assert_no_two_at_once(tmp_path)
    nodes.assert_nobody_measures()


def test_a_node_that_dies_costs_its_point_a_retry_and_no_row(nodes: Nodes, undisturbed: Any, tmp_path: Path) -> None:
    label = f"{LOOPBACK}/{nodes.other.node_id[:8]}"
    with sweep(tmp_path, *SIX, nodes.address, "--budget=1") as running:
        running.wait_for(lambda: f"threads=1 on {label}" in running.told())  # it measures a point
        nodes.kill_the_other()
        assert running.process.wait(120) == 0, running.told()
    assert "Traceback" not in running.told()
    (lost,) = [line for line in running.told().splitlines() if "lost: " in line]
    assert lost.startswith(f"invbench: {label}: N=")
    assert lost.endswith("died; it is measured again")
    assert len(set(keys(tmp_path))) == len(keys(tmp_path)) == 6
    assert sorted(rows(tmp_path)) == undisturbed[1]
    assert_no_two_at_once(tmp_path)


MURDERER = """
import os, signal
from torch import nn

def kills(case):
    if case.N == 2:
        os.kill(os.getppid(), signal.SIGKILL)  # Ray's worker process, which no measuring process can survive
    return nn.Conv2d(case.layer.C, case.layer.C, 1)
"""


@pytest.mark.slow
def test_a_point_that_is_lost_twice_is_a_row_with_its_reason(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MURDERER)
    code, _, err = finish(tmp_path, "--N=1,2,3", *TINY, nodes.address, "--subject=mine:kills")
    assert code == 4, err
    assert err.count("lost: ") == 1
    found = {e.results[0].case.N: e.results for e in entries(tmp_path)}
    assert {N: {str(row.status) for row in found[N]} for N in found} == {1: {"ok"}, 2: {"error"}, 3: {"ok"}}
    (reason,) = {row.reason for row in found[2]}
    first, second = (f"{LOOPBACK}/{node.node_id[:8]}" for node in (nodes.cluster.head_node, nodes.other))
    assert reason.startswith("lost 2 times (")
    assert first in reason  # it was tried on both
    assert second in reason
    nodes.assert_nobody_measures()


@pytest.mark.parametrize("where", [pytest.param("cluster", marks=pytest.mark.slow), "local"])
def test_ctrl_c_is_130_and_leaves_nobody_and_a_journal_that_resumes(
    where: str, nodes: Nodes, undisturbed: Any, tmp_path: Path
) -> None:
    address = nodes.address if where == "cluster" else "--ray=local"
    with sweep(tmp_path, *SIX, address) as running:
        running.wait_for(lambda: "[1/6]" in running.told())
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
        assert running.process.wait(30) == 130
        running.assert_nobody_is_left()
        nodes.assert_nobody_measures()
    assert "Traceback" not in running.told()
    done = len(keys(tmp_path))
    last = running.told().splitlines()[-1]
    assert f"interrupted: {done} of 6 points are in sweep.jsonl; go on with: " in last
    assert last.endswith("--resume")
    code, _, err = finish(tmp_path, *SIX, "--resume")  # here, without Ray
    assert code == 0, err
    assert (sorted(keys(tmp_path)), sorted(rows(tmp_path))) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cluster", "local"])
def test_a_driver_that_is_killed_leaves_nobody_and_resumes(
    where: str, nodes: Nodes, undisturbed: Any, tmp_path: Path
) -> None:
    code, _, err = finish(tmp_path, "--N=1", *TINY)
    assert code == 0, err
    address = nodes.address if where == "cluster" else "--ray=local"
    with sweep(tmp_path, *SIX, address, "--resume") as running:
        running.wait_for(lambda: "[2/5]" in running.told())
        running.process.kill()
        running.process.wait(10)
        running.assert_nobody_is_left()
        nodes.assert_nobody_measures()
    code, _, err = finish(tmp_path, *SIX, nodes.address, "--resume")
    assert code == 0, err
    assert (sorted(keys(tmp_path)), sorted(rows(tmp_path))) == undisturbed


def test_what_is_no_cluster_of_ours_is_refused_soon(nodes: Nodes, tmp_path: Path) -> None:
    """A port of another program, and a cluster whose token is another one."""
    with socket.create_server((LOOPBACK, 0)) as server, pytest.MonkeyPatch.context() as patch:
        expected = {
            f"--ray={LOOPBACK}:{server.getsockname()[1]}": "within 15 s",
            nodes.address: "set RAY_AUTH_MODE=token",
        }
        patch.setenv("RAY_AUTH_TOKEN", "another")
        for address, words in expected.items():
            started = time.monotonic()
            code, out, err = finish(tmp_path, *SIX, address, "--quiet")
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert words in err
            assert time.monotonic() - started < 30  # a process starts first, and imports Ray
            assert not (tmp_path / "sweep.jsonl").exists()


@pytest.mark.slow
def test_ray_adds_less_than_a_second_to_a_point(undisturbed: Any, tmp_path: Path) -> None:
    code, _, err = finish(tmp_path, *SIX, "--ray=local")
    assert code == 0, err
    assert (sorted(keys(tmp_path)), sorted(rows(tmp_path))) == undisturbed
    added = agreement.overheads(entries(tmp_path))
    sys.stdout.write(f"besides measuring, points took {', '.join(f'{seconds:.3f}' for seconds in added)} s\n")
    assert len(added) == 5
    assert max(added) < agreement.MOST_SECONDS
