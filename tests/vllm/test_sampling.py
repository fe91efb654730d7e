"""vLLM as the sampling engine on the demo model, against the transformers engine."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sampling
import torch
from made_up import Play, check_same_run

import hneurons
from hneurons.answers.engine import Request
from hneurons.answers.hf import HFEngine
from hneurons.errors import ModelNotFoundError
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import PooledExtractor
from hneurons.neurons.features import FeatureStore
from hneurons.studies.records import example_from_json, passage_of
from hneurons.types import REGIONS, Question

# This folder itself may pass for a package of that name, without an origin.
pytestmark = pytest.mark.skipif(
    getattr(importlib.util.find_spec("vllm"), "origin", None) is None, reason="needs vLLM: make test-vllm"
)


@pytest.fixture(autouse=True)
def own_cache():
    """In place of the parent folder's, which hides the demo model."""


@pytest.fixture(scope="module")
def demo() -> StudyModel:
    """SmolLM2-135M-Instruct in float32 on the CPU; tests don't change it."""
    try:
        hneurons.pull(sampling.NAME)
    except ModelNotFoundError as error:
        pytest.skip(f"the demo model can't be fetched: {error}")
    return hneurons.load_model(sampling.NAME, device="cpu")


def begin(part: str, folder: Path) -> subprocess.Popen[str]:
    """A part of sampling.py in a process group of its own: vLLM starts further processes."""
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": str(Path(hneurons.__file__).parents[1]), "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_NO_USAGE_STATS": "1",
        # To a process of its own requests come one by one, and its first batch is however many are there.
        **({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if part == "study" else {}),
    }  # fmt: skip
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, str(Path(sampling.__file__)), part, str(folder)], env=environment, text=True,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finish(part: str, folder: Path) -> None:
    running = begin(part, folder)
    try:
        assert running.wait(900) == 0, (folder / "output.txt").read_text()[-4000:]
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def sampled(demo: StudyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sample")
    finish("sample", folder)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("lead", [None, ""])
def test_greedy_responses_are_those_of_the_transformers_engine(demo: StudyModel, sampled: Any, lead: str | None):
    drawn = HFEngine(replace(demo, lead=lead)).sample(sampling.requests(), sampling.GREEDY)
    wanted = json.loads(json.dumps(sampling.rows(drawn)))
    for mine, reference in zip(sampled["greedy" if lead is None else "base"], wanted, strict=True):
        np.testing.assert_allclose(mine.pop("logprobs"), reference.pop("logprobs"), atol=1e-4)
        assert mine == reference
    assert {reference["finish_reason"] for reference in wanted} >= {"stop"}


def test_logprobs_are_at_temperature_one_over_the_whole_vocabulary(demo: StudyModel, sampled: Any):
    asked = {request.question.id: request for request in sampling.requests()}
    for row in sampled["drawn"]:
        prompt = demo.prompt_ids(asked[row["question_id"]].said)
        with torch.no_grad():
            logits = demo.model(torch.tensor([[*prompt, *row["token_ids"]]])).logits[0, len(prompt) - 1 : -1]
        own = torch.log_softmax(logits.float(), -1)[torch.arange(len(row["token_ids"])), torch.tensor(row["token_ids"])]
        np.testing.assert_allclose(row["logprobs"], own.numpy(), atol=1e-3)


def test_a_response_depends_on_its_seed_alone(sampled: Any):
    assert texts(sampled["turned around"]) == texts(sampled["drawn"])
    assert texts(sampled["crowded"]) == texts(sampled["drawn"])
    assert texts(sampled["started again"]) == texts(sampled["drawn"])[5:9]
    assert len(set(texts(sampled["drawn"]))) > len(sampled["drawn"]) / 2
    differ = [a != b for a, b in zip(texts(sampled["another seed"]), texts(sampled["drawn"]), strict=True)]
    assert sum(differ) > len(differ) / 2


def texts(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["question_id"], *row["token_ids"]) for row in rows]


def responses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run/responses.jsonl").read_text().splitlines()]


def test_a_study_ends_the_same_when_it_was_killed_while_it_sampled(demo: StudyModel, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish("study", whole)
    begun = begin("study", killed)
    chunks = killed / "run/progress.jsonl"
    try:
        while not (chunks.exists() and chunks.read_text().count("\n") >= 1):
            assert begun.poll() is None, (killed / "output.txt").read_text()[-4000:]
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(begun.pid, signal.SIGKILL)
        begun.wait()
    assert json.loads((killed / "run/run.json").read_text())["stages"]["sample"]["state"] == "running"
    finish("study", killed)
    # The batches of the chunk that was cut, and with them the last digit, may differ.
    for mine, reference in zip(responses(killed), responses(whole), strict=True):
        for name in ("logprobs", "mean_logprob"):
            np.testing.assert_allclose(mine.pop(name), reference.pop(name), atol=1e-4)
        assert mine == reference
    for name in ("path.json", "neurons.json"):
        assert (killed / "run" / name).read_bytes() == (whole / "run" / name).read_bytes(), name
    run = hneurons.Run(whole / "run")
    assert run.manifest["settings"]["engine"] == "vllm"
    assert run.manifest["model"] == demo.describe()
    assert {stage["state"] for stage in run.manifest["stages"].values()} == {"done"}
    examples = len((run.path / "examples.jsonl").read_text().splitlines())
    for region in REGIONS:
        assert np.load(run.path / f"features/{region}.npy", mmap_mode="r").shape == (examples, 46_080)
    assert run.report.is_file()


def test_a_study_that_vllm_measures_is_that_of_transformers(demo: StudyModel, greedy_run: Path, tmp_path: Path):
    finish("measured", tmp_path)
    run = hneurons.Run(tmp_path / "run")
    check_same_run(run.path, greedy_run)
    assert run.manifest["settings"]["features"] == "vllm"
    assert {stage["state"] for stage in run.manifest["stages"].values()} == {"done"}
    assert any("hidden states and entropies" in note for note in run.manifest["notes"])
    lines = (run.path / "examples.jsonl").read_text().splitlines()
    passages = [passage_of(demo, example_from_json(json.loads(line))) for line in lines]
    own = PooledExtractor(demo, REGIONS)(passages)
    store = FeatureStore(run.path / "features", len(passages), demo.neurons, REGIONS)
    for column, region in enumerate(REGIONS):
        found = store.read(region, range(len(passages)))
        np.testing.assert_allclose(found, own[:, column], rtol=2e-3, atol=1e-5)
    assert run.card.model.id == demo.name
    assert run.report.is_file()


def test_no_memory_left_is_one_line_and_the_work_goes_on_after_it(play: Play, demo: StudyModel):
    """Of a forward pass that asks for more than there is while it measures, and while it samples."""
    questions = [request.question.question for request in sampling.requests()]
    told = {"model": sampling.NAME, "questions": questions, "tokens": 24}
    made = play("memory", told, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    assert "broken off" in made["said"].pop("then")
    for done, line in made["said"].items():
        assert line.startswith(f"ServiceError: vLLM failed while it {done}: "), line
        assert "allocate memory" in line
        assert "\n" not in line
    asked = [Request(Question(questions[0], questions[0], ("x",)), 0)]
    (expected,) = HFEngine(demo).sample(asked, sampling.GREEDY)
    assert [tuple(response["token_ids"]) for response in made["after"]] == [expected.token_ids]


def test_a_vllm_that_is_killed_is_one_line_and_started_again(play: Play, demo: StudyModel):
    """By the system for want of memory, say. Who calls the one that is gone is told so as well."""
    questions = [request.question.question for request in sampling.requests()]
    made = play("killed", {"model": sampling.NAME, "questions": questions})
    for line, done in zip(made["said"], ("sampled", *["measured"] * 5), strict=True):
        assert line.startswith(f"ServiceError: vLLM failed while it {done}: "), line
        assert "\n" not in line
    asked = [Request(Question(questions[0], questions[0], ("x",)), 0)]
    (expected,) = HFEngine(demo).sample(asked, sampling.GREEDY)
    assert [tuple(response["token_ids"]) for response in made["after"]] == [expected.token_ids]
