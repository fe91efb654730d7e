"""What runs on the nodes of a cluster: a replica of the model, and the shards of work that it does."""

from __future__ import annotations

import platform
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

from hneurons.answers.engine import Request, Sampling
from hneurons.cluster.fingerprint import Fingerprint
from hneurons.errors import ClusterError, ModelError
from hneurons.memory import ran_out
from hneurons.models.load import StudyModel, load_model
from hneurons.neurons.blocks import BlockFeatures
from hneurons.neurons.cett import Beginning, Passage, PooledExtractor
from hneurons.parallel import worker_count
from hneurons.studies.turned import TurnedEngine, in_process
from hneurons.types import NeuronId, Region, Response

KEPT = 2
"""Sets of prompts whose prefill a replica keeps: those of the chunks of questions that it has in work."""
MORE_MEMORY = (
    "Give each replica more of it: fewer replicas a node with --replicas, more GPUs each with --replica-gpus, or "
    "larger nodes."
)
SMALLER = f"{MORE_MEMORY} A new run may have smaller batches (`chunk` and `batch_tokens` of its settings)."
"""What to do when a replica ran out of memory, while it loads and later."""


class ReplicaMemoryError(ClusterError, RuntimeError):
    """A replica ran out of memory. A `RuntimeError` with those words as well, as torch raises it in the process: what
    doesn't fit is then asked in halves (`hneurons.studies.turned.sample`)."""

    @classmethod
    def of(cls, error: BaseException, *, where: str, remedy: str) -> ReplicaMemoryError:
        """What another library raised."""
        return cls(f"{where} ran out of memory ({f'{type(error).__name__}: {error}'[:200]}).", remedy)


@dataclass(frozen=True)
class Loading:
    """The model that every replica loads."""

    model: str
    """As for `load_model`; a folder or file is at the same place on every node."""
    config_hash: str
    fingerprint: Fingerprint
    dtype: str
    device: str = "auto"
    revision: str | None = None
    ffn: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, model: StudyModel, *, device: str, trust_remote_code: bool = False) -> Loading:
        """The model of this process; the device is that of the replicas.

        Raises:
            ClusterError: it was made in memory, where nodes can't load it from.
        """
        if model.source == "object":
            raise ClusterError(
                f"The model {model.name!r} was given as an object, which nodes can't load.",
                "Give one from load_model: a hub id, a folder that all nodes see, or a demo name.",
            )
        described = model.describe()
        return cls(
            model.location or model.name, described["config_hash"], Fingerprint.of(model), described["dtype"], device,
            model.revision, model.ffn, trust_remote_code,
        )  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a replica says of itself once it is ready."""

    node: str
    workers: int
    """Batches that it works on side by side."""


class Shard(Protocol):
    """A piece of work that any replica can do, again if one is lost. Its text says what it is about."""

    def do(self, replica: Replica) -> Any:
        """The result."""
        ...


class Replica:
    """A model, and what it keeps from shard to shard."""

    def __init__(self, model: StudyModel) -> None:
        self.model = model
        self._engines: OrderedDict[str, TurnedEngine] = OrderedDict()
        self._extractor: PooledExtractor | None = None

    @classmethod
    def load(cls, loading: Loading, version_wanted: str) -> Replica:
        """The replica that this node is to have.

        Raises:
            ClusterError: this node has another version of this package, or another model of that name.
            ModelError: the model can't be loaded here.
        """
        node, here = platform.node(), version("hneurons")
        if here != version_wanted:
            raise ClusterError(
                f"Node {node} has hneurons {here}, this machine {version_wanted}.",
                "Install the same version on every node.",
            )
        try:
            model = load_model(
                loading.model, dtype=loading.dtype, device=loading.device, revision=loading.revision, ffn=loading.ffn,
                trust_remote_code=loading.trust_remote_code,
            )  # fmt: skip
        except ModelError as error:
            if error.__cause__ and ran_out(error.__cause__):
                remedy = f"{MORE_MEMORY} Or choose another --dtype."
                raise ReplicaMemoryError.of(error.__cause__, where=f"Loading on node {node}", remedy=remedy) from error
            raise
        same = model.describe()["config_hash"] == loading.config_hash
        differs = loading.fingerprint.difference(Fingerprint.of(model)) if same else "its configuration"
        if differs:
            raise ClusterError(
                f"{loading.model} on node {node} is another model than here: {differs} differs.",
                "Put the same files there, or give a hub id with --revision.",
            )
        return cls(model)

    @property
    def about(self) -> About:
        """Where and how it works."""
        device = self.model.device
        return About(platform.node(), 1 if self.model.is_moved else worker_count(device))

    def do(self, shard: Shard) -> Any:
        """The result of a shard.

        Raises:
            ReplicaMemoryError: it doesn't fit into memory.
        """
        try:
            return shard.do(self)
        except Exception as error:
            if not ran_out(error):
                raise
            short = ReplicaMemoryError.of(error, where=f"The replica on node {platform.node()}", remedy=SMALLER)
        # Outside of the handler, which would keep the tensors of the failed pass alive, as prefills would.
        self._engines.clear()
        raise short

    @contextmanager
    def engine(self, key: str, neurons: Sequence[NeuronId], *, thinking: bool = False) -> Generator[TurnedEngine]:
        """The engine of a set of prompts, with the prefill that it had if it was here of late; or one that turns
        neurons, which is made anew."""
        model = replace(self.model, thinking=thinking)
        if neurons:
            with in_process(model)(neurons) as turned:
                assert isinstance(turned, TurnedEngine)
                yield turned
            return
        if key not in self._engines:
            self._engines[key] = TurnedEngine(model)
        self._engines.move_to_end(key)
        while len(self._engines) > KEPT:
            self._engines.popitem(last=False)
        yield self._engines[key]

    def extractor(self, regions: Sequence[Region]) -> PooledExtractor:
        """What measures contributions over those regions."""
        self._engines.clear()  # sampling is over, and prefills are large
        if self._extractor is None or self._extractor.regions != tuple(regions):
            self._extractor = PooledExtractor(self.model, regions)
        return self._extractor


@dataclass(frozen=True)
class Draw:
    """Responses to some requests, sampled in the batches that a single machine would form."""

    key: str
    asked: tuple[Request, ...]
    """A request for each prompt that was prefilled with those of `requests`."""
    requests: tuple[Request, ...]
    sampling: Sampling
    neurons: tuple[NeuronId, ...] = ()
    """That alpha scales."""

    def __str__(self) -> str:
        first, last = self.requests[0].question.id, self.requests[-1].question.id
        return f"{len(self.requests)} responses to questions {first!r:.60} to {last!r:.60}"

    def do(self, replica: Replica) -> list[Response]:
        """One response a request."""
        with replica.engine(self.key, self.neurons, thinking=bool(self.sampling.thinking)) as engine:
            engine.prepare(self.asked)
            return engine.sample(self.requests, self.sampling)


@dataclass(frozen=True)
class Read:
    """Negative log-likelihood of a text at each alpha."""

    ids: tuple[int, ...]
    alphas: tuple[float, ...]
    neurons: tuple[NeuronId, ...]

    def __str__(self) -> str:
        return f"a text of {len(self.ids)} tokens at {len(self.alphas)} scales"

    def do(self, replica: Replica) -> list[float]:
        """Summed over the tokens after the first, in nats."""
        with replica.engine("read", self.neurons) as engine:
            return engine.nll(self.ids, self.alphas)


@dataclass(frozen=True)
class Measure:
    """Contributions of some batches of passages."""

    regions: tuple[Region, ...]
    groups: tuple[tuple[Passage, ...], ...]
    begin: Beginning | None

    def __str__(self) -> str:
        names = [passage.name for group in self.groups for passage in group]
        return f"contributions of {len(names)} examples, {names[0]!r:.60} to {names[-1]!r:.60}"

    def do(self, replica: Replica) -> list[BlockFeatures]:
        """Features of each batch."""
        return list(replica.extractor(self.regions).part(self.groups, self.begin))
