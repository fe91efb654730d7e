"""The studies on a real Ray cluster of two nodes, nodes and driver killed; run by `make test-ray`."""

import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import driver
import numpy as np
import pytest
import torch
from driver import SETTINGS, QuestionJudge
from two_nodes import Nodes, two_nodes, until

import planted
import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.cluster.opening import open_cluster
from hneurons.cluster.pool import Pool
from hneurons.cluster.replica import ReplicaMemoryError
from hneurons.errors import ClusterError, ModelNotFoundError, UsageError
from hneurons.models.load import StudyModel, load_model
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.questions.sources import QuestionSet
from hneurons.settings import ImpactSettings
from hneurons.studies.benchmarks.base import Case, Outcome
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import evaluate_run
from hneurons.studies.identify import identify
from hneurons.studies.impact import impact
from hneurons.types import REGIONS, Question

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
SAME = ["questions.jsonl", "responses.jsonl", "examples.jsonl", "path.json", "neurons.json", "evaluation.json"]


@pytest.fixture(scope="module")
def made() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def nodes(made: Nodes) -> Nodes:
    """Both of them, also after a test that killed one."""
    made.add()
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StudyModel:
    return load_model(tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama"), device="cpu")


@pytest.fixture(scope="module")
def alone(model: StudyModel, tmp_path_factory: pytest.TempPathFactory, no_figures: None) -> Path:
    """A run of one machine."""
    folder = tmp_path_factory.mktemp("alone")
    questions = tiny.write_questions(folder / "cities.jsonl", 84)
    identify(model, questions, folder / "out", SETTINGS, judge=QuestionJudge(), finder=tiny.WholeFinder())
    return folder


def kill_one(nodes: Nodes, pool: Pool) -> None:
    """Once there are two replicas."""
    until(lambda: len(pool._members) == 2, "two replicas are ready")
    nodes.kill()


def check_same(out: Path, alone: Path) -> None:
    for name in SAME:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    for region in REGIONS:
        one, other = np.load(out / f"features/{region}.npy"), np.load(alone / f"features/{region}.npy")
        np.testing.assert_array_equal(one, other)


def test_a_node_killed_midway_costs_its_shards_only(model: StudyModel, alone: Path, nodes: Nodes, tmp_path: Path):
    shutil.copy(alone / "cities.jsonl", tmp_path)
    said: list[str] = []
    killed = threading.Event()

    def kill() -> None:
        kill_one(nodes, cluster.pool)
        killed.set()

    with open_cluster(nodes.address, model, say=said.append) as cluster:
        assert cluster.pool.size == 2
        tools = cluster.tools(Tools(judge=QuestionJudge(40, kill), finder=tiny.WholeFinder()))
        identify(model, tmp_path / "cities.jsonl", tmp_path / "out", SETTINGS, tools=tools)
        done, lost = cluster.pool.done, cluster.pool.lost
    assert killed.is_set()
    assert lost == 1, said
    assert done > 10
    (line,) = [line for line in said if line.startswith("Lost the replica")]
    assert "1 of 2 left" in line
    check_same(tmp_path / "out", alone / "out")


def test_evaluate_and_impact_with_a_node_killed_midway(model: StudyModel, alone: Path, nodes: Nodes, tmp_path: Path):
    """On other questions and at all alphas the files are those of one machine; each study loses a node."""
    runs = [shutil.copytree(alone / "out", tmp_path / name) for name in ("one", "many")]
    towns = QuestionSet("towns", tuple(Question(f"t{i}", f"Where is town {i}?", ("x",)) for i in range(60)))
    options = ImpactSettings(
        random_sets=2, bootstrap=100, limit=12, chunk=4, alphas=(0, 1, 3), capability=("starter",), capability_limit=6
    )
    said: list[str] = []
    judged = itertools.count(1)

    def odd(case: Case) -> Outcome:
        return Outcome.COMPLIANT if zlib.crc32(case.replies[-1].encode()) % 2 else Outcome.RESISTED

    def odd_and_kill(case: Case) -> Outcome:
        if next(judged) == 6:  # of several hundred
            kill_one(nodes, cluster.pool)
        return odd(case)

    tools = Tools(judge=QuestionJudge(), finder=tiny.WholeFinder())
    evaluate_run(runs[0], [towns], model, tools=tools)
    impact(runs[0], planted.YesNo(judge=planted.Letters(odd)), model, options)
    with open_cluster(nodes.address, model, say=said.append) as cluster:
        killing = QuestionJudge(20, lambda: kill_one(nodes, cluster.pool))
        evaluate_run(runs[1], [towns], model, tools=cluster.tools(replace(tools, judge=killing)))
        assert cluster.pool.lost == 1, said
        nodes.add()
        benchmark = planted.YesNo(judge=planted.Letters(odd_and_kill))
        impact(runs[1], benchmark, model, options, open_engine=cluster.open_engine, together=cluster.ahead)
        assert cluster.pool.lost == 2, said
    assert next(judged) > 100
    for name in ("evaluation.json", "on/towns/responses.jsonl", "on/towns/examples.jsonl", "impact.json"):
        assert (runs[1] / name).read_bytes() == (runs[0] / name).read_bytes(), name
    for name in ("yes-no", "capability"):
        one, many = ((run / f"impact/{name}.jsonl").read_text().splitlines() for run in runs)
        assert len(set(one)) == len(one)
        assert sorted(many) == sorted(one)


def test_a_node_killed_while_contributions_are_measured(model: StudyModel, nodes: Nodes):
    said: list[str] = []
    prompt = model.prompt_ids("Where is town 1?")
    passages = [Passage(str(i), (*prompt, *range(9, 20 + i)), len(prompt), (1, 3)) for i in range(40)]
    groups = [[passage] for passage in passages]
    with open_cluster(nodes.address, model, say=said.append) as cluster:
        real, begun = cluster.pool.submit, itertools.count(1)

        def submit(shard: Any, home: int | None = None) -> Any:
            if next(begun) == 8:  # of 40; several are in work
                kill_one(nodes, cluster.pool)
            return real(shard, home)

        cluster.pool.submit = submit  # type: ignore[method-assign]
        found = list(cluster.extractor(REGIONS).many(groups))
        assert (cluster.pool.done, cluster.pool.lost) == (40, 1), said
    for one, other in zip(found, PooledExtractor(model, REGIONS).many(groups), strict=True):
        np.testing.assert_array_equal(one.dense(), other.dense())


def test_a_driver_killed_midway_goes_on_and_leaves_no_replica(
    model: StudyModel, alone: Path, nodes: Nodes, tmp_path: Path
):
    shutil.copy(alone / "cities.jsonl", tmp_path)
    out, chunks = tmp_path / "out", tmp_path / "out/progress.jsonl"
    line = [sys.executable, driver.__file__, str(model.location), str(tmp_path), nodes.address]
    first = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    until(lambda: chunks.exists() and len(chunks.read_text().splitlines()) >= 4, "four chunks are written", first)
    first.kill()
    first.communicate()
    until(lambda: not nodes.replicas(), "the replicas of a killed driver end")
    begun = chunks.read_bytes()
    assert not (out / "neurons.json").exists()
    second = subprocess.run(line, stderr=subprocess.PIPE, text=True)
    assert second.returncode == 0, second.stderr
    assert chunks.read_bytes().startswith(begun)
    check_same(out, alone / "out")


def test_a_worker_that_is_killed_is_replaced(model: StudyModel, nodes: Nodes):
    said: list[str] = []
    requests = [Request(Question("a", "Who?", ("x",)), sample) for sample in range(4)]
    with open_cluster(nodes.address, model, replicas=1, say=said.append) as cluster:
        engine = cluster.tools(Tools()).engine
        assert engine
        first = engine.sample(requests, Sampling())
        for process in nodes.replicas():
            os.kill(process.pid, signal.SIGKILL)
        assert engine.sample(requests, Sampling()) == first == HFEngine(model).sample(requests, Sampling())
        assert cluster.pool.lost == 1
    assert sum("is ready" in line for line in said) == 2


def test_errors_of_replicas_come_in_their_kind(nodes: Nodes, tmp_path: Path):
    model = load_model(tiny.save(tmp_path / "tiny-llama"), device="cpu")
    wrong = Request(Question("a", "Who?", ("x",)), 0, alpha=2.0)
    with open_cluster(nodes.address, model, replicas=1) as cluster:
        engine = cluster.tools(Tools()).engine
        assert engine
        with pytest.raises(UsageError, match="turns no neurons") as caught:
            engine.sample([wrong], Sampling())
        assert caught.value.remedy == "Make it with on_rows, inside a block of `scale`."
    shutil.rmtree(tmp_path / "tiny-llama")
    with open_cluster(nodes.address, model) as cluster:
        with pytest.raises(ModelNotFoundError, match="tiny-llama"):
            cluster.pool.about()
        assert len(nodes.replicas()) == 2  # they keep others from coming to the same nodes
    until(lambda: not nodes.replicas(), "replicas that couldn't load end with the pool")


class Huge:
    """A shard that asks for more memory than any machine has: nothing is taken."""

    def do(self, replica: Any) -> Any:
        return torch.empty(1 << 60, dtype=torch.uint8)


def test_a_replica_that_can_not_have_the_memory_says_so_and_goes_on(
    model: StudyModel, nodes: Nodes, request: pytest.FixtureRequest
):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes don't know this file
    request.addfinalizer(lambda: cloudpickle.unregister_pickle_by_value(sys.modules[__name__]))
    with open_cluster(nodes.address, model, replicas=1) as cluster:
        with pytest.raises(ReplicaMemoryError, match=r"node \S+ ran out of memory .* --replica-gpus") as caught:
            cluster.pool.submit(Huge()).result(120)
        assert "\n" not in str(caught.value)
        assert cluster.tools(Tools()).engine.sample([Request(Question("a", "Who?", ("x",)), 0)], Sampling())  # type: ignore[union-attr]
        assert cluster.pool.lost == 0


def test_a_node_without_room_for_a_replica(model: StudyModel, nodes: Nodes):
    with (
        pytest.raises(ClusterError, match="No node of the cluster has 1 GPUs"),
        open_cluster(nodes.address, model, replica_gpus=1),
    ):
        pass
