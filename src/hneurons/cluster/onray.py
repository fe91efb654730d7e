"""Replicas as Ray actors, and the way to a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from hneurons.cluster.pool import LostError
from hneurons.cluster.replica import SMALLER, About, Loading, Replica, ReplicaMemoryError, Shard
from hneurons.errors import ClusterError, HNeuronsError, UsageError
from hneurons.extras import need
from hneurons.memory import ran_out

ANSWER = 5.0
"""Seconds within which an address must answer."""
REMEDY = "Start Ray there (`ray start --head --port 6379`), or --cluster local starts one here."
LOST = (
    "RayActorError", "NodeDiedError", "WorkerCrashedError", "OutOfMemoryError", "ObjectLostError",
    "ObjectFetchTimedOutError", "RaySystemError", "RpcError",
)  # fmt: skip
"""Errors of Ray that mean a replica is gone, or what it made."""


class _Actor:
    """A replica in a process of Ray's. Made empty: an error in making an actor would come without its kind."""

    def load(self, loading: Loading, wanted: str) -> About:
        """Load the model."""
        self._replica = Replica.load(loading, wanted)
        return self._replica.about

    def ping(self) -> None:
        """Be there."""

    def do(self, shard: Shard) -> Any:
        """The result of a shard."""
        return self._replica.do(shard)


class RayWorker:
    """A `Worker` of the pool: one actor."""

    def __init__(self, loading: Loading, share: Share) -> None:
        self._ray = need("ray", "ray")
        # Neither restarts nor retries of Ray's: it would hold the shard until there is room for the actor again.
        options = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        made = self._ray.remote(_Actor).options(num_cpus=share.cpus, num_gpus=share.gpus, **options)
        self._actor: Any = made.remote()
        self._placed: Any = self._actor.ping.remote()
        self._about: Any = self._actor.load.remote(loading, version("hneurons"))

    def ready(self, seconds: float) -> About | None:
        """See `Worker`."""
        done, _ = self._ray.wait([self._about], timeout=seconds)
        return self._get(self._about) if done else None

    def placed(self) -> bool:
        """See `Worker`."""
        return bool(self._ray.wait([self._placed], timeout=0)[0])

    def ping(self) -> None:
        """See `Worker`."""
        self._get(self._actor.ping.remote())

    def run(self, shard: Shard) -> Any:
        """See `Worker`."""
        return self._get(self._actor.do.remote(shard))

    def stop(self) -> None:
        """See `Worker`."""
        try:
            self._ray.kill(self._actor)
        except Exception:  # gone already, or the cluster is
            logging.getLogger(__name__).debug("an actor could not be killed", exc_info=True)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            # What the replica raised, without Ray's wrapping; what can't be sent comes as text.
            cause: Any = error.cause
            if isinstance(cause, HNeuronsError):
                raise cause from None
            if ran_out(cause):  # on the way to the replica or back
                raise ReplicaMemoryError.of(cause, where="A replica", remedy=SMALLER) from error
            text = f"{type(cause).__name__}: {cause}" if cause else str(error).strip().splitlines()[-1]
            raise ClusterError(f"A replica failed ({text[:300]}).", "The same command goes on from here.") from error
        except errors.RayError as error:
            if "ModuleNotFoundError" in str(error):
                raise ClusterError(
                    "A node of the cluster has no hneurons.", "Install the same version of it on every node."
                ) from error
            if isinstance(error, tuple(getattr(errors, name) for name in LOST if hasattr(errors, name))):
                raise LostError(reason(error)) from error
            raise ClusterError(f"Ray failed ({reason(error)}).", "The same command goes on from here.") from error


def reason(error: Exception) -> str:
    """Why something was lost, from the many lines that Ray has for it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    telling = ("out of memory", "running low", "node has died", "died because", "was killed", "SIGKILL", "exit")
    for words in telling:
        for line in lines:
            if words in line:
                return line[:200].rstrip(".")
    return (lines or [type(error).__name__])[0][:200].rstrip(".")


# -- how much of the cluster a replica gets -----------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """Replicas, and what each takes of a node."""

    replicas: int
    cpus: int
    gpus: float


def share_out(nodes: Sequence[dict[str, float]], replicas: int | None, gpus: float | None) -> Share:
    """One replica a GPU, or one a node where there are none, if not told otherwise.

    Args:
        nodes: `CPU` and `GPU` of each node that is alive.
        replicas: wanted; those that find no room wait for nodes to come.
        gpus: of each replica; 0 for replicas on CPUs.

    Raises:
        ClusterError: no node has what a replica takes.
        UsageError: one and a half GPUs, which Ray doesn't give.
    """
    gpus = gpus if gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
    if gpus:
        if gpus > 1 and gpus % 1:
            raise UsageError(
                f"A replica can't have {gpus:g} GPUs.", "Give --replica-gpus a whole number, or one below 1."
            )
        fit = sum(_fitting(int(node.get("GPU", 0)), gpus) for node in nodes)
        if not fit:
            raise ClusterError(
                f"No node of the cluster has {gpus:g} GPUs.", "Give --replica-gpus, 0 for replicas on CPUs."
            )
        return Share(replicas or fit, 1, gpus)
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise ClusterError("No node of the cluster offers a CPU.", "Start nodes with --num-cpus, or add some.")
    count = replicas or len(cpus)
    a_node = -(-count // len(cpus))
    return Share(count, max(1, min(cpus) // a_node), 0)


def _fitting(there: int, each: float) -> int:
    """Replicas that fit on the GPUs of a node; a part of a GPU is of one, never of the ends of two."""
    return there // int(each) if each >= 1 else there * int(1 / each + 1e-6)  # 1.0 // 0.2 is 4


# -- the way to a cluster -----------------------------------------------------------------------------


@contextmanager
def connected(address: str) -> Generator[Callable[[], list[dict[str, float]]]]:
    """A connection to Ray, closed at the end; gives a function for the resources of the nodes that are alive.

    Args:
        address: `local` starts Ray on this machine, `auto` finds one that runs here; else host:port.

    Raises:
        ClusterError: nothing answers there, or something that is no Ray of this version.
        MissingExtraError: Ray isn't installed.
    """
    ray = need("ray", "ray")
    mine = not ray.is_initialized()  # a caller who is connected stays so
    if mine:
        check_address(address)
        # What runs here is nobody else's business.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        more: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **more)
        except Exception as error:  # of many kinds: refused, other versions, other Pythons
            raise _none_at(address, error) from error
    try:
        yield lambda: [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if mine:
            ray.shutdown()


def check_address(address: str) -> None:
    """Knock: Ray itself tries for minutes to reach a host that doesn't answer.

    Raises:
        ClusterError: nothing takes a connection there.
        UsageError: it is no address.
        MissingExtraError: Ray isn't installed.
    """
    ray = need("ray", "ray")
    if address == "auto":
        address = _running(ray)
    if address in ("local", "auto"):
        return
    if address.startswith("ray://"):
        # Ray's client server starts a process for each client, which failed now and then; and Ray advises against it.
        raise UsageError(
            "Ray's client addresses (ray://) are not supported.",
            "Run this on a node of the cluster, with --cluster auto or HOST:6379.",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UsageError(f"{address!r} is no address of a cluster.", "Give local, auto or HOST:PORT.")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as line:
            answers = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_http2(line)
    except (OSError, OverflowError) as error:
        raise ClusterError(f"Nothing answers at {address} ({error}).", REMEDY) from error
    if not answers:
        raise ClusterError(f"What answers at {address} is no Ray cluster.", REMEDY)


def _running(ray: Any) -> str:
    """Where `auto` leads; `auto`, if this version of Ray keeps that to itself.

    Raises:
        ClusterError: no Ray runs here.
    """
    try:
        with suppress(AttributeError):
            return str(ray._private.services.canonicalize_bootstrap_address_or_die("auto"))
        return "auto"
    except (ConnectionError, ValueError) as error:  # nobody there; a RAY_ADDRESS that is no address
        raise _none_at("auto", error) from error


def _none_at(address: str, error: Exception) -> ClusterError:
    text = " ".join(str(error).split())[:200]
    return ClusterError(
        f"There is no Ray cluster to work with at {address!r} ({type(error).__name__}: {text}).",
        "`ray status` on a node tells whether one runs; --cluster local starts one here.",
    )


def _speaks_http2(line: socket.socket) -> bool:
    """Whether the other end greets as every gRPC server does, Ray's among them: with a frame of settings."""
    line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    head = b""
    while len(head) < 9:
        part = line.recv(9 - len(head))
        if not part:
            return False
        head += part
    return head[3] == 4
