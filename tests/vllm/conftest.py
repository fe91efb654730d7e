"""Tests of what runs inside vLLM, in vLLM's own environment: `make test-vllm`. Elsewhere they aren't collected.

An engine owns the process it runs in, so each runs in one of its own, with a part of engines.py as its script; the
tests compare what these wrote with transformers here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from made_up import card_of
from sampling import GREEDY_STUDY

import hneurons
from hneurons.errors import ModelNotFoundError
from hneurons.models.demo import pull
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card

HERE = Path(__file__).parent
spec = importlib.util.find_spec("vllm")
if spec is None or spec.origin is None:  # this folder itself may pass for a package of that name
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Loading vLLM and the model takes its time, several times a test."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(3000))


@pytest.fixture(scope="session")
def folder() -> Path:
    """The demo model's."""
    try:
        return pull("smollm2-135m")
    except ModelNotFoundError as error:
        pytest.skip(f"the demo model can't be fetched: {error}")


@pytest.fixture(autouse=True)
def own_cache():
    """In place of the parent folder's, which hides the demo model."""


@pytest.fixture(scope="session")
def model(folder: Path) -> StudyModel:
    """SmolLM2-135M-Instruct in float32 on the CPU; tests don't change it."""
    return hneurons.load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="session")
def card(model: StudyModel) -> Card:
    """Made up of neurons that do much, so that turning them changes what is said."""
    return card_of(model)


@pytest.fixture(scope="session")
def card_file(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "neurons.json"
    card.save(path)
    return path


@pytest.fixture(scope="session")
def greedy_run(model: StudyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that transformers sampled and measured."""
    return hneurons.identify(model, "starter", tmp_path_factory.mktemp("greedy") / "run", GREEDY_STUDY).path


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """For an engine on a shared CPU; with the plugin's entry point where the package is only on the path."""
    source = Path(hneurons.__file__).parents[1]
    paths = [str(source), str(HERE)]
    if not any(entry.name == "hneurons" for entry in entry_points(group="vllm.general_plugins")):
        info = tmp_path_factory.mktemp("site") / "hneurons_entry-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hneurons-entry\nVersion: 0\n")
        told = "[vllm.general_plugins]\nhneurons = hneurons.vllm.plugin:register\n"
        (info / "entry_points.txt").write_text(told)
        paths.append(str(info.parent))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def play(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a part of engines.py in a process of its own; returns what it wrote, or its output where it must fail."""

    def run(part: str, told: dict[str, Any], *, fails: bool = False, **variables: str) -> Any:
        scratch = tmp_path_factory.mktemp(part)
        (scratch / "in.json").write_text(json.dumps(told))
        done = subprocess.Popen(
            [sys.executable, str(HERE / "engines.py"), part, str(scratch)], env={**environment, **variables},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = done.communicate(timeout=900)
        except subprocess.TimeoutExpired:  # with what it started
            os.killpg(done.pid, signal.SIGKILL)
            raise
        assert (done.returncode != 0) is fails, output[-4000:]
        return output if fails else json.loads((scratch / "out.json").read_text())

    return run
