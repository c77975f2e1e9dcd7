"""Ray, as far as a sweep needs it: which nodes there are, and tasks on one of them that ask for devices of their own.

The only module that imports Ray, and only once a sweep has asked for it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from invbench.harness.settings import describe_failure, printable
from invbench.harness.sweep import CutShortError
from invbench.spec import InvbenchError

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 5.0
TRY_SECONDS = 15.0  # importing Ray from a shared folder is slow
HEAD_SECONDS = 20.0  # without an answer of the cluster's head; after 60, Ray ends the process
OBJECT_BYTES = 80 * 2**20  # Ray's least, about; rows and points are small
ACCELERATOR = "accelerator_type:"  # a node's resource, which Ray names after its GPU

# Connects to a cluster, and says why it could not.
TRY = """
import logging, sys, traceback, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    print(" ".join(str(error).split()))
    print(traceback.format_exc())
    sys.exit(1)
"""

# For Ray itself, where the user has not said otherwise.
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OWN_RAY = {
    **QUIET_RAY,
    "RAY_worker_niceness": "0",  # measured with the priority of a sweep without Ray
    "RAY_memory_monitor_refresh_ms": "0",  # a subject that needs too much memory is the sweep's affair
}


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: its ID, its name, what it offers to Ray, and what Ray calls its GPU."""

    id: str
    name: str
    cpus: int
    gpus: int
    gpu_type: str = ""

    @property
    def label(self) -> str:
        """A name that no other node has, also where several are on one machine."""
        return f"{self.name}/{self.id[:8]}"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task has for itself: whole cores and whole GPUs of its node."""

    cpus: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Gone:
    """A task that gives no answer, and why."""

    reason: str


class Call:
    """A task that was handed to Ray."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator


class Engine:
    """A connection to Ray; ``connected`` makes it."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote: dict[Callable[..., Any], Any] = {}
        self._known: list[Node] = []
        self._head = split_address(ray.get_runtime_context().gcs_address)
        self._last_answer = time.monotonic()

    def nodes(self) -> list[Node]:
        """The nodes that are alive.

        Raises CutShortError where the cluster's head has not answered for some time: Ray would end this process.
        """
        try:
            socket.create_connection(self._head, CONNECT_SECONDS).close()
            self._last_answer = time.monotonic()
        except OSError as error:
            if time.monotonic() > self._last_answer + HEAD_SECONDS:
                raise CutShortError(f"the cluster's head does not answer any more ({error.strerror})") from error
            return self._known
        found = []
        for node in self._ray.nodes():
            offered = node["Resources"]
            kinds = [name.removeprefix(ACCELERATOR) for name in offered if name.startswith(ACCELERATOR)]
            if node["Alive"]:
                cpus, gpus = int(offered.get("CPU", 0)), int(offered.get("GPU", 0))
                found.append(Node(node["NodeID"], node["NodeName"], cpus, gpus, " ".join(kinds)))
        self._known = found
        return found

    def send_text_of(self, module: ModuleType) -> None:
        """Send functions of that module as they are here, whatever the nodes have by that name."""
        self._ray.cloudpickle.register_pickle_by_value(module)

    def start(self, node: Node, demand: Demand, function: Callable[..., Iterator[Any]], *arguments: Any) -> Call:
        """Run a generator on that node and no other, once it has what the task demands; Ray never retries it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        remote = self._remote[function].options(
            num_returns="streaming", num_cpus=demand.cpus, num_gpus=demand.gpus, max_retries=0,
            scheduling_strategy=there, name=f"invbench {function.__name__}",
        )  # fmt: skip
        return Call(remote.remote(*arguments))

    def hear(self, calls: Sequence[Call], timeout: float) -> list[tuple[Call, object]]:
        """Wait for what tasks yield next: each of those that have, with it or with ``Gone``."""
        if not calls:
            time.sleep(timeout)
            return []
        by_generator = {call.generator: call for call in calls}
        ready, _ = self._ray.wait(list(by_generator), num_returns=1, timeout=timeout)
        return [(by_generator[generator], self._next(generator)) for generator in ready]

    def _next(self, generator: Any) -> object:
        errors = self._ray.exceptions
        words = {
            errors.NodeDiedError: "its node died",
            errors.WorkerCrashedError: "its worker process of Ray's died",
            errors.OutOfMemoryError: "Ray ended it, since its node ran out of memory",
            errors.TaskUnschedulableError: "its node is gone",
            errors.TaskCancelledError: "it was cancelled",
        }
        try:
            return self._ray.get(next(generator))
        except StopIteration:
            return Gone("it ended without an answer")
        except errors.RayTaskError as error:
            return Gone(describe_failure(error.cause))
        except errors.RayError as error:
            said = next((text for kind, text in words.items() if isinstance(error, kind)), None)
            return Gone(said or describe_failure(error))

    def cancel(self, calls: Sequence[Call]) -> None:
        """End tasks, and the processes that run them."""
        for call in calls:
            try:
                self._ray.cancel(call.generator, force=True)
            except Exception as error:  # noqa: BLE001 -- whatever it is, Ray ends all tasks of a driver that is gone
                logging.getLogger(__name__).debug("not cancelled: %s", error)


@contextmanager
def connected(address: str) -> Iterator[Engine]:
    """Ray at an address: "local" starts one of our own here, "auto" is the one that runs on this machine.

    Raises InvbenchError with what to do if Ray is not installed or cannot be had.
    """
    ray = _imported(address)
    if address != LOCAL:
        _check_cluster(address)
    try:
        try:
            with _uninterrupted() as came:
                _init(ray, address)
        except Exception as error:
            what = "could not be started here" if address == LOCAL else "cannot be used"
            raise InvbenchError(f"--ray {address}: Ray {what} ({describe_failure(error)})") from error
        if came:
            raise KeyboardInterrupt
        yield Engine(ray)
    finally:
        with _uninterrupted():  # nothing is left that Ctrl-C could stop: what was measured is told
            ray.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[list[int]]:
    """Hold Ctrl-C back, since Ray crashes where it comes while Ray starts or ends: whether it came is in the list. Let
    a program that is terminated end at once, as without Ray, whose own handler is slow and prints a stack."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _imported(address: str) -> Any:
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_RAY.items()})
    if address == LOCAL:
        os.environ.update({name: os.environ.get(name, value) for name, value in OWN_RAY.items()})
        # Nobody else on this machine may run anything in it, and no file has to be left in the user's folder.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except Exception as error:  # a broken library can raise anything
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "ray"
        found = "is not installed" if is_absent else f"cannot be imported ({printable(' '.join(str(error).split()))})"
        raise InvbenchError(f"--ray {address} needs Ray, which {found}: pip install 'invbench[cluster]'") from error
    return ray


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT; raises InvbenchError if it is none."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InvbenchError(f"--ray takes local, auto or HOST:PORT of a cluster: got {address!r}; try --ray auto")
    return host.strip("[]"), int(port)


def _init(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address != LOCAL:
        ray.init(address=address, **quiet)
        return
    loopback = {"_node_ip_address": "127.0.0.2"} if sys.platform == "linux" else {}
    ray.init(
        address=LOCAL, num_cpus=os.cpu_count(), object_store_memory=OBJECT_BYTES, include_dashboard=False,
        **loopback, **quiet,
    )  # fmt: skip


def _check_cluster(address: str) -> None:
    """Refuse where there is no cluster; tried in a process of its own, since Ray takes minutes and complains in C++."""
    if address != AUTO:
        try:
            socket.create_connection(split_address(address), CONNECT_SECONDS).close()
        except OSError as error:
            raise InvbenchError(
                f"--ray {address}: nobody answers there ({error.strerror or error}); start Ray with: ray start --head"
            ) from error
    command = [sys.executable, "-c", TRY, address]
    environment = {**os.environ, "RAY_NUM_REDIS_GET_RETRIES": "1"}
    try:
        tried = subprocess.run(  # noqa: S603
            command, env=environment, timeout=TRY_SECONDS, check=False, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise InvbenchError(
            f"--ray {address}: Ray does not answer there within {TRY_SECONDS:g} s; is it the port of ray start --head?"
        ) from None
    if tried.returncode == 0:
        return
    said = printable(tried.stdout.partition("\n")[0]) or f"exit code {tried.returncode}"
    if "AuthenticationError" in tried.stdout:
        said, remedy = "it wants another token", "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's"
    elif "Version mismatch" in said:
        remedy = "install the same Ray and Python on every node and here"
    else:
        join = "ray start --head" if address == AUTO else f"ray start --address={address}"
        remedy = f"run this on a machine of the cluster, after: {join}"
    raise InvbenchError(f"--ray {address}: there is no cluster to be had ({said}); {remedy}")
