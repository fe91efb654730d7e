"""A pool of replicas that may be lost at any moment, and shards that are given to another one then.

Neither of Ray's own pools does this. `ActorPool` raises what was lost with an actor, and is one actor smaller from then
on. Ray Data makes new actors for every call, so that each round of sampling would load the model again, and gives a
shard that ends its worker out again without end. And an actor that Ray restarts itself keeps its shard while it waits
for a node that may never come back.

What a replica is, and how it is lost, is the business of a `Worker`: Ray's in onray.py, scripted ones in the tests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from hneurons.cluster.replica import About, ReplicaMemoryError, Shard
from hneurons.errors import ClusterError, HNeuronsError

TRIES = 3
"""Replicas that may be lost over one shard, or in a row while they load the model."""
MEMORY = (
    "If memory ran out, give each replica more of it: fewer replicas a node, a larger node, or more GPUs with "
    "--replica-gpus."
)


class LostError(Exception):
    """A replica or its node ended before it gave a result; says why, as far as that is known."""


class Worker(Protocol):
    """A replica somewhere."""

    def ready(self, seconds: float) -> About | None:
        """What it says once the model is loaded; None if it isn't after so many seconds.

        Raises:
            LostError: it ended.
            HNeuronsError: it can't load the model.
        """
        ...

    def placed(self) -> bool:
        """Whether it has its room on a node, and loads or has done so."""
        ...

    def ping(self) -> None:
        """Nothing, if it is still there.

        Raises:
            LostError: it ended.
        """
        ...

    def run(self, shard: Shard) -> Any:
        """The result of a shard, or whatever that raises.

        Raises:
            LostError: it ended.
        """
        ...

    def stop(self) -> None:
        """Let go of it, whatever it does."""
        ...


@dataclass(eq=False)
class _Job:
    shard: Shard
    home: int | None
    """The member that it waits for."""
    losses: int = 0
    """Replicas that ended while they did it."""
    taken: bool = False
    future: Future[tuple[Any, int]] = field(default_factory=Future[tuple[Any, int]])

    def take(self) -> bool:
        """Whether somebody still wants it, who can't cancel it from now on."""
        self.taken = self.taken or self.future.set_running_or_notify_cancel()
        return self.taken


class Pool:
    """Shards in, results out; a thread for each replica.

    Args:
        start: begins a replica, and doesn't wait for it.
        size: replicas wanted. Work begins with the first that is ready.
        say: gets a line for whatever happens to a replica.
        patience: seconds that the pool waits while no replica has room on a node.
        tries: replicas that a shard may cost.
    """

    def __init__(
        self, start: Callable[[], Worker], size: int, *, say: Callable[[str], None] = lambda _: None,
        patience: float = 600.0, tries: int = TRIES,
    ) -> None:  # fmt: skip
        self.size = size
        self._start = start
        self._say = say
        self._patience = patience
        self._tries = tries
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._members: dict[int, tuple[Worker, About]] = {}
        self._unfit: list[Worker] = []
        """Those that couldn't load the model: they keep their room until the end, so that none that is started in
        another's place comes to the same node."""
        self._count = 0
        self._last_alive = time.monotonic()
        self._serving = size
        self._ended: HNeuronsError | None = None
        self.done, self.lost = 0, 0
        """Shards done, and replicas lost."""
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(size)]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(ClusterError("The cluster was left.", "Open it again."))
        with self._changed:
            workers = [*self._unfit, *(worker for worker, _ in self._members.values())]
        for worker in workers:
            worker.stop()
        for thread in self._threads:
            thread.join(10)

    def submit(self, shard: Shard, home: int | None = None) -> Future[tuple[Any, int]]:
        """The result to come, with the member that gave it.

        Args:
            shard: what is to be done.
            home: a member that has what the shard needs; while it lives, no other one gets it.
        """
        job = _Job(shard, home)
        with self._changed:
            if self._ended:
                job.future.set_exception(self._ended)
            else:
                self._jobs.append(job)
                self._changed.notify_all()
        return job.future

    def about(self) -> About:
        """What a replica says of itself, the first one that is ready.

        Raises:
            ClusterError: none started.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._members or self._ended)
            if self._ended:
                raise self._ended
            return next(iter(self._members.values()))[1]

    # -- the thread of a replica ------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            while (worker := self._hire()) is not None:
                self._work(*worker)
        except HNeuronsError as error:
            self._retire(error)
        except Exception as error:  # whatever else a backend raises, nobody may wait for this thread for ever
            why = f"{type(error).__name__}: {error}"[:400]
            self._retire(ClusterError(f"The cluster failed ({why}).", "The same command goes on from here."))

    def _hire(self) -> tuple[int, Worker] | None:
        """A replica that is ready; None if the pool ended."""
        why: list[str] = []
        while len(why) < self._tries:
            if self._ended:
                return None
            worker = self._start()
            try:
                about = self._wait(worker)
            except LostError as lost:
                worker.stop()
                why.append(str(lost))
                continue
            except HNeuronsError as error:
                if isinstance(error, ReplicaMemoryError):
                    worker.stop()  # what it holds is memory that the others need
                else:
                    self._set_aside(worker)
                raise
            except BaseException:
                worker.stop()
                raise
            with self._changed:
                if about is None or self._ended:
                    worker.stop()
                    return None
                self._count += 1
                member, ready = self._count, len(self._members) + 1
                self._members[member] = worker, about
                self._changed.notify_all()
            self._say(f"A replica is ready on {about.node}: {ready} of {self.size}.")
            return member, worker
        raise ClusterError(f"{len(why)} replicas in a row ended while they loaded the model ({why[-1]}).", MEMORY)

    def _set_aside(self, worker: Worker) -> None:
        with self._changed:
            if not self._ended and worker.placed():
                self._unfit.append(worker)
                return
        worker.stop()

    def _wait(self, worker: Worker) -> About | None:
        while not self._ended:
            about = worker.ready(0.5)
            if about is not None:
                return about
            placed = worker.placed()
            with self._changed:
                if self._members or placed:
                    self._last_alive = time.monotonic()
                elif time.monotonic() - self._last_alive > self._patience:
                    raise ClusterError(
                        f"No replica found room within {self._patience:.0f} seconds.",
                        "`ray status` says what they wait for: ask for fewer GPUs with --replica-gpus, or add nodes.",
                    )
        return None

    def _work(self, member: int, worker: Worker) -> None:
        """Do shards until the replica is lost or the pool ends."""
        while (job := self._next(member)) is not None:
            begun = False
            try:
                worker.ping()  # one that was lost while it had nothing to do is no fault of the shard
                begun = True
                value = worker.run(job.shard)
            except LostError as lost:
                self._bury(member, str(lost), job, begun)
                worker.stop()
                return
            except Exception as error:
                job.future.set_exception(error)
            else:
                with self._changed:
                    self.done += 1
                job.future.set_result((value, member))

    def _next(self, member: int) -> _Job | None:
        """The oldest job that waits for this member, or else for any; None when the pool ends."""

        def mine() -> _Job | None:
            own = next((job for job in self._jobs if job.home == member), None)
            return own or next((job for job in self._jobs if job.home not in self._members), None)

        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._ended or mine())
                job = None if self._ended else mine()
                if job is None:
                    return None
                self._jobs.remove(job)
                if job.take():
                    return job

    def _bury(self, member: int, why: str, job: _Job, begun: bool) -> None:
        """Take a lost replica off the list, and give its shard to another one, unless it has cost too many."""
        job.losses += begun
        with self._changed:
            _, about = self._members.pop(member)
            self._last_alive = time.monotonic()
            if self._ended:
                job.future.set_exception(self._ended)
                return
            self.lost += 1
            again = job.losses < self._tries
            if again:
                self._jobs.insert(0, job)
            self._changed.notify_all()
        self._say(
            f"Lost the replica on {about.node} ({why}); {len(self._members)} of {self.size} left."
            + (f" Its shard is done again: {job.shard}." if begun and again else "")
        )
        if not again:
            job.future.set_exception(
                ClusterError(f"{job.losses} replicas in a row were lost over {job.shard} ({why}).", MEMORY)
            )

    # -- the end ----------------------------------------------------------------------------------

    def _retire(self, error: HNeuronsError) -> None:
        """Go on with one replica less; with none left, the pool ends."""
        with self._changed:
            self._serving -= 1
            left = self._serving
        if left:
            self._say(f"Going on with a replica less: {error}")
        else:
            self._end(error)

    def _end(self, error: HNeuronsError) -> None:
        with self._changed:
            self._ended = self._ended or error
            jobs, self._jobs = self._jobs, []
            self._changed.notify_all()
        for job in jobs:
            if job.take():
                job.future.set_exception(self._ended)
