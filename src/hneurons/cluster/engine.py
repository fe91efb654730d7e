"""Engine and extractor of a cluster: they make shards, and put the results in order."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hneurons.answers.engine import Request, Sampling
from hneurons.cluster.pool import Pool
from hneurons.cluster.replica import Draw, Measure, Read, ReplicaMemoryError
from hneurons.models.load import StudyModel
from hneurons.neurons.blocks import BlockFeatures
from hneurons.neurons.cett import Passage, beginning
from hneurons.parallel import in_order
from hneurons.types import NeuronId, Region, Response

_numbers = itertools.count()


@dataclass(eq=False)
class _Prompts:
    """Prompts that were prefilled together."""

    key: str
    asked: dict[Any, Request]
    """Alpha and what was said -> a request for it."""
    home: int | None = None
    """The member of the pool that has the prefill."""


class ClusterEngine:
    """Samples on the replicas of a pool; a call is one shard.

    Not less: the rounds of sampling share a prefill, and what is left in later rounds goes together, so the batches of
    a call belong to one replica. To keep many busy, several threads make calls, each for questions of its own.

    Args:
        pool: of replicas.
        neurons: that the alpha of a request scales.
    """

    def __init__(self, pool: Pool, neurons: Sequence[NeuronId] = ()) -> None:
        self.pool = pool
        self.neurons = tuple(neurons)
        self._recent: deque[_Prompts] = deque(maxlen=4 * pool.size + 4)
        self._lock = threading.Lock()

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request, drawn in the batches that a single machine would form.

        Raises:
            ClusterError: replicas were lost over this call again and again, or none is left.
            ReplicaMemoryError: the call doesn't fit into a replica's memory; a part of it may.
        """
        if not requests:
            return []
        prompts = self._prompts(requests)
        shard = Draw(prompts.key, tuple(prompts.asked.values()), tuple(requests), sampling, self.neurons)
        future = self.pool.submit(shard, prompts.home)
        try:
            responses, prompts.home = future.result()
        except ReplicaMemoryError:
            # A part of the call must not be prefilled with the whole, as later rounds are.
            with self._lock:
                if prompts in self._recent:
                    self._recent.remove(prompts)
            raise
        finally:
            future.cancel()  # where the call was interrupted
        return responses

    def _prompts(self, requests: Sequence[Request]) -> _Prompts:
        """Those of an earlier call that cover this one's, as an engine in the process uses its last prefill again."""
        asked = {(request.alpha, request.said): request for request in requests}
        with self._lock:
            for recent in reversed(self._recent):
                if asked.keys() <= recent.asked.keys():
                    return recent
            made = _Prompts(str(next(_numbers)), asked)
            self._recent.append(made)
            return made

    def nll(self, ids: Sequence[int], alphas: Sequence[float]) -> list[float]:
        """Negative log-likelihood of tokens after the first, summed, at each alpha; in nats."""
        future = self.pool.submit(Read(tuple(ids), tuple(alphas), self.neurons))
        try:
            return future.result()[0]
        finally:
            future.cancel()


class ClusterExtractor:
    """Measures contributions on the replicas of a pool; a shard is as many batches as a replica has in work."""

    def __init__(self, pool: Pool, model: StudyModel, regions: Sequence[Region]) -> None:
        self.pool = pool
        # As the study asked: it has the region of a thinking block where its prompts ask for one.
        self.model = replace(model, thinking=Region.THINKING in regions)
        self.regions = tuple(regions)

    def many(self, groups: Sequence[Sequence[Passage]]) -> Generator[BlockFeatures]:
        """Features of each batch, in order.

        Raises:
            ClusterError: replicas were lost over one shard again and again, or none is left.
        """
        if not groups:
            return
        begin = beginning(self.model, [passage for group in groups for passage in group])
        size = self.pool.about().workers
        parts = [tuple(tuple(group) for group in groups[at : at + size]) for at in range(0, len(groups), size)]
        shards = [Measure(self.regions, part, begin) for part in parts]
        for found, _ in in_order(self.pool.submit, shards, self.pool.size + 2):
            yield from found
