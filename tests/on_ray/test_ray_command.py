"""The real commands over a real Ray cluster, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from two_nodes import Nodes, two_nodes

import answerable
import tiny
from hneurons.results import Run
from hneurons.types import REGIONS

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
COMMAND = [sys.executable, "-c", "from hneurons.cli import main; main()"]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture(scope="module")
def identified(place: Path) -> list[Any]:
    """A command that ends in a card, but for its --out."""
    questions = answerable.write(place.parent / "cities.jsonl", place)
    options = [*answerable.GREEDY, "--samples", 2, "--C", 1, "--device", "cpu", "--json"]
    return ["identify", place, "--questions", questions, *options]


@pytest.fixture(scope="module")
def alone(identified: list[Any], place: Path) -> Path:
    """The run of one machine."""
    run(*identified, "--out", place.parent / "alone")
    return place.parent / "alone"


def run(*arguments: object, **environment: str) -> tuple[Any, str]:
    """What the command prints as JSON, and its stderr."""
    line = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def check_same(out: Path, alone: Path) -> None:
    for name in ("questions.jsonl", "responses.jsonl", "examples.jsonl"):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    for region in REGIONS:  # up to rounding: Ray gives a replica as many threads as it has CPUs
        one, other = (np.load(each / f"features/{region}.npy") for each in (out, alone))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_identify_over_the_ray_that_it_starts(identified: list[Any], alone: Path, tmp_path: Path):
    printed, err = run(*identified, "--out", tmp_path / "run", "--cluster", "local")
    assert printed["run"] == str(tmp_path / "run")
    assert "Cluster local: 1 replicas on 1 nodes" in err
    assert "A replica is ready on " in err
    assert "shards done, 0 replicas lost." in err
    check_same(tmp_path / "run", alone)


def test_the_three_commands_over_a_ray_that_runs(
    identified: list[Any], alone: Path, nodes: Nodes, place: Path, tmp_path: Path
):
    _, err = run(*identified, "--out", tmp_path / "run", "--cluster", nodes.address)
    assert f"Cluster {nodes.address}: 2 replicas on 3 nodes, each with 1 CPUs." in err
    check_same(tmp_path / "run", alone)
    towns = answerable.write(tmp_path / "towns.jsonl", place, "Where is the town of {}?", 80)
    auto = ["--cluster", "auto", "--json"]
    _, err = run("evaluate", tmp_path / "run", "--on", towns, *auto, RAY_ADDRESS=nodes.address)
    assert "Cluster auto: 2 replicas on 3 nodes" in err
    assert "towns" in Run(tmp_path / "run").evaluation["datasets"]
    few = ["--limit", 4, "--alphas", "0,1", "--random-sets", 2, "--max-new-tokens", 8, "--no-capability"]
    printed, err = run("impact", tmp_path / "run", "--benchmark", "falseqa", *few, *auto, RAY_ADDRESS=nodes.address)
    assert "Cluster auto: 2 replicas on 3 nodes" in err
    assert "falseqa" in printed["benchmarks"]
