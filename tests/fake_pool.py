"""Replicas in threads of this process, that end when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hneurons.cluster.pool import LostError, Pool
from hneurons.cluster.replica import About, Replica, Shard


class Ends(Exception):
    """Raised by a shard that takes its replica with it."""


@dataclass
class Do:
    """A shard that is whatever `work` does; it gets the number of its worker."""

    name: str
    work: Callable[[int], Any]

    def __str__(self) -> str:
        return self.name

    def do(self, replica: Any) -> Any:
        return self.work(replica)


@dataclass
class FakeWorker:
    number: int
    replica: Any
    loads: Callable[[int], Any]
    ended: threading.Event = field(default_factory=threading.Event)
    shards: list[str] = field(default_factory=list)

    def ready(self, seconds: float) -> About | None:
        if self.loads(self.number) in (False, "slowly"):
            self.ended.wait(0.01)
            return None
        return About(f"node{self.number}", 2)

    def placed(self) -> bool:
        return self.loads(self.number) == "slowly"

    def ping(self) -> None:
        if self.ended.is_set():
            raise LostError("the node went away")

    def run(self, shard: Shard) -> Any:
        if self.ended.is_set():
            raise LostError("the node went away")
        self.shards.append(str(shard))
        try:
            return shard.do(self.replica)
        except Ends as end:
            self.ended.set()
            raise LostError(str(end)) from end

    def stop(self) -> None:
        self.ended.set()


@dataclass
class Nodes:
    """Starts workers and remembers them."""

    replica: Callable[[int], Any] = lambda number: number
    loads: Callable[[int], Any] = lambda number: True
    started: list[FakeWorker] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def start(self) -> FakeWorker:
        with self.lock:
            worker = FakeWorker(len(self.started), self.replica(len(self.started)), self.loads)
            self.started.append(worker)
            return worker

    def pool(self, size: int, **more: Any) -> Pool:
        return Pool(self.start, size, say=self.said.append, **more)


def replicas_of(model: Any) -> Nodes:
    """Workers with replicas of that model."""
    return Nodes(replica=lambda _: Replica(model))
