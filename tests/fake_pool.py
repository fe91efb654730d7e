"""Replicas in threads of this process, that end when a test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hneurons.cluster.pool import LostError, Pool
from hneurons.cluster.replica import About, Replica, Shard
from hneurons.errors import ClusterError, HNeuronsError


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
        try:
            return self.loads(self.number) is not False
        except HNeuronsError:  # it has room, and can't load there
            return True

    def ping(self) -> None:
        if self.ended.is_set():
            raise LostError("the node went away")

    def run(self, shard: Shard) -> Any:
        if self.ended.is_set():
            raise LostError("the node went away")
        self.shards.append(str(shard))
        try:
            return self.replica.do(shard) if isinstance(self.replica, Replica) else shard.do(self.replica)
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


class Rooms(Nodes):
    """Nodes by name with room for one replica each, given out in that order; some can't load the model."""

    def __init__(self, names: str, unfit: str) -> None:
        super().__init__(loads=self._load)
        self.free, self.unfit = list(names), unfit
        self.at: dict[int, str] = {}

    def start(self) -> FakeWorker:
        worker = super().start()
        leave = worker.stop

        def stop() -> None:
            leave()
            with self.lock:
                if worker.number in self.at:
                    self.free = sorted([*self.free, self.at.pop(worker.number)])

        worker.stop = stop  # type: ignore[method-assign]
        return worker

    def _load(self, number: int) -> bool:
        with self.lock:
            if number not in self.at and self.free:
                self.at[number] = self.free.pop(0)
            if self.at.get(number, "-") in self.unfit:
                raise ClusterError(f"Node {self.at[number]} has no model.", "Put it there.")
            return number in self.at


def replicas_of(model: Any) -> Nodes:
    """Workers with replicas of that model."""
    return Nodes(replica=lambda _: Replica(model))


def wait_for(happened: Callable[[], Any], seconds: float = 20.0) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
