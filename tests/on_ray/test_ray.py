"""The studies on a real Ray cluster of two nodes, nodes and driver killed; run by `make test-ray`."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import driver
import numpy as np
import pytest
from driver import SETTINGS, QuestionJudge
from two_nodes import Nodes, two_nodes, until

import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.cluster.opening import open_cluster
from hneurons.errors import ClusterError, ModelNotFoundError, UsageError
from hneurons.models.load import StudyModel, load_model
from hneurons.studies.collect import Tools
from hneurons.studies.identify import identify
from hneurons.types import REGIONS, Question

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
SAME = ["questions.jsonl", "responses.jsonl", "examples.jsonl", "path.json", "neurons.json", "evaluation.json"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


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
        until(lambda: sum("is ready" in line for line in said) == 2)
        nodes.kill()
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
    nodes.add()


def test_a_driver_killed_midway_goes_on_and_leaves_no_replica(
    model: StudyModel, alone: Path, nodes: Nodes, tmp_path: Path
):
    shutil.copy(alone / "cities.jsonl", tmp_path)
    out, chunks = tmp_path / "out", tmp_path / "out/progress.jsonl"
    line = [sys.executable, driver.__file__, str(model.location), str(tmp_path), nodes.address]
    first = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    until(lambda: chunks.exists() and len(chunks.read_text().splitlines()) >= 4, first)
    first.kill()
    first.communicate()
    until(lambda: not nodes.replicas())
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
    with open_cluster(nodes.address, model) as cluster, pytest.raises(ModelNotFoundError, match="tiny-llama"):
        cluster.pool.about()


def test_a_node_without_room_for_a_replica(model: StudyModel, nodes: Nodes):
    with (
        pytest.raises(ClusterError, match="No node of the cluster has 1 GPUs"),
        open_cluster(nodes.address, model, replica_gpus=1),
    ):
        pass
