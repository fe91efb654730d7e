"""Open a cluster for one model: what the commands and Python users call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hneurons.answers.engine import Engine
from hneurons.cluster.engine import ClusterEngine, ClusterExtractor
from hneurons.cluster.onray import RayWorker, connected, share_out
from hneurons.cluster.pool import Pool
from hneurons.cluster.replica import Loading
from hneurons.models.load import StudyModel
from hneurons.studies.collect import Tools
from hneurons.types import NeuronId, Region


@dataclass(frozen=True)
class Cluster:
    """Replicas of a model, as the studies use them."""

    pool: Pool
    model: StudyModel

    def tools(self, tools: Tools) -> Tools:
        """The same judge and span finder, with responses and contributions from the replicas."""
        return replace(tools, engine=ClusterEngine(self.pool), extractor=self.extractor, ahead=self.ahead)

    @property
    def ahead(self) -> int:
        """Pieces of a study that are in work at a time, so that every replica has one, and one waits."""
        return self.pool.size + 1

    def extractor(self, regions: Sequence[Region]) -> ClusterExtractor:
        """What measures contributions over those regions."""
        return ClusterExtractor(self.pool, self.model, regions)

    @contextmanager
    def open_engine(self, neurons: Sequence[NeuronId]) -> Generator[Engine]:
        """An engine that scales those neurons by the alpha of each request."""
        yield ClusterEngine(self.pool, neurons)


@contextmanager
def open_cluster(
    address: str,
    model: StudyModel,
    *,
    replicas: int | None = None,
    replica_gpus: float | None = None,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Generator[Cluster]:
    """Replicas of `model` on the nodes of a Ray cluster, gone at the end. Only this process writes run folders.

    Args:
        address: `local` starts Ray on this machine, `auto` finds one that runs here; else host:port.
        model: from `load_model`; every node loads it from where it came from.
        replicas: how many; one a GPU by default, one a node without GPUs.
        replica_gpus: GPUs of each; 1 by default where there are any. Several hold a larger model.
        trust_remote_code: as it was loaded with.
        say: gets a line for whatever happens to a replica.

    Raises:
        ClusterError: nothing answers at the address, no node has room, or the model was made in memory.
        MissingExtraError: Ray isn't installed.
    """
    with connected(address) as nodes:
        share = share_out(nodes(), replicas, replica_gpus)
        device = "auto" if share.gpus else "cpu"
        loading = Loading.of(model, device=device, trust_remote_code=trust_remote_code)
        each = f"{share.gpus:g} GPUs" if share.gpus else f"{share.cpus} CPUs"
        say(f"Cluster {address}: {share.replicas} replicas on {len(nodes())} nodes, each with {each}.")
        with Pool(lambda: RayWorker(loading, share), share.replicas, say=say) as pool:
            yield Cluster(pool, model)
            say(f"Cluster: {pool.done:,} shards done, {pool.lost} replicas lost.")
