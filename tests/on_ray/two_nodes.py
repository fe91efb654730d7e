"""A Ray cluster of this machine alone: a head without room for replicas, and nodes with room for one each."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

SRC = str(Path(__file__).parents[2] / "src")
os.environ["PYTHONPATH"] = os.pathsep.join([SRC, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
STORE = 80 * 1024 * 1024


class Nodes:
    """Nodes that can be killed as a machine is whose plug is pulled."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        small: dict[str, Any] = {"object_store_memory": STORE, "include_dashboard": False}
        head = {"num_cpus": 0, **small}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.small = {"num_cpus": 1, "object_store_memory": STORE}
        self.nodes = [self.cluster.add_node(**self.small) for _ in range(2)]
        self.address: str = self.cluster.address

    def kill(self) -> None:
        """SIGKILL for the raylet of a node that has a replica, and everything that it started."""
        raylets = {node: raylet_of(node) for node in self.nodes}
        node = next((node for node, raylet in raylets.items() if replicas(raylet)), None)
        assert node is not None, "no node has a replica"
        for process in [*raylets[node].children(recursive=True), raylets[node]]:
            with suppress(psutil.NoSuchProcess):  # some have just ended
                process.send_signal(signal.SIGKILL)
        self.nodes.remove(node)

    def add(self) -> None:
        """Two nodes again, however many were killed."""
        while len(self.nodes) < 2:
            self.nodes.append(self.cluster.add_node(**self.small))

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold a replica, on any node."""
        return [each for node in self.nodes for each in replicas(raylet_of(node))]


def raylet_of(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


def replicas(raylet: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in raylet.children(recursive=True):
        try:
            # Ray renames its workers: "ray::_Actor" waits, "ray::_Actor.do" works.
            if "ray::_Actor" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@contextmanager
def two_nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()


def until(
    happened: Callable[[], Any], what: str, process: subprocess.Popen[str] | None = None, seconds: float = 120.0
) -> None:
    """Wait for something that has to happen; `what` says it where it doesn't."""
    end = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"waited {seconds:.0f} seconds in vain: {what}"
        time.sleep(0.02)
