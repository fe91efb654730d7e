"""The dial and the monitor inside vLLM equal `hneurons.scale` and the monitor's scores in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import (
    ALPHAS,
    PROBE,
    QUESTIONS,
    TOKENS,
    Play,
    card_of,
    check_close,
    features_told,
    greedy,
    prompts,
    saved,
)

import hneurons
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.errors import ModelNotFoundError
from hneurons.live.monitor import Monitor
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.neurons.tokens import token_scores
from hneurons.studies.turned import in_process
from hneurons.types import REGIONS, Question

REFUSED: list[Any] = ["{", '{"alpha": 1000}', {"alpha": "2"}, {"alfa": 2}]


@pytest.fixture(scope="module")
def said(model: StudyModel, card: Card) -> dict[tuple[float, int], list[int]]:
    """What transformers says to each question with each alpha."""
    return {(a, n): greedy(model, card, a, prompt) for a in ALPHAS for n, prompt in enumerate(prompts(model))}


def wanted(model: StudyModel, *, monitor: bool = True) -> list[dict[str, Any]]:
    """Each question with each alpha, the alphas of a question next to one another."""
    return [
        {"prompt": prompt, "question": question, "alpha": alpha, "asked": {"alpha": alpha, "monitor": monitor}}
        for prompt, question in zip(prompts(model), QUESTIONS, strict=True)
        for alpha in ALPHAS
    ]


@pytest.fixture(scope="module")
def dial(play: Play, model: StudyModel, card_file: Path, folder: Path) -> Any:
    """Three rounds of one engine with prefix caching: the second finds the first one's prefixes."""
    batch = wanted(model)
    rounds = [batch, batch[::-1], [{**each, "asked": None} for each in batch]]
    told = {
        "model": str(folder), "rounds": rounds, "tokens": TOKENS, "refused": REFUSED, "scores": True,
        "engine": {"enable_prefix_caching": True, "max_num_batched_tokens": 48, "block_size": 32},
    }  # fmt: skip
    variables = {"HNEURONS_CARD": str(card_file), "HNEURONS_ALPHA": "3", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return play("dial", told, **variables)


def test_turning_changes_what_is_said(said: dict[tuple[float, int], list[int]]):
    assert sum(said[0.0, n] != said[1.0, n] for n in range(len(QUESTIONS))) >= 2
    assert sum(said[3.0, n] != said[1.0, n] for n in range(len(QUESTIONS))) >= 3


@pytest.mark.parametrize("number", [0, 1])
def test_alphas_in_one_batch_say_what_transformers_says(
    dial: Any, model: StudyModel, said: dict[tuple[float, int], list[int]], number: int
):
    batch = wanted(model)[:: -1 if number else 1]
    for each, found in zip(batch, dial["rounds"][number], strict=True):
        assert found["ids"] == said[each["alpha"], QUESTIONS.index(each["question"])], each
    # The trap is there: prefixes were taken from the cache.
    assert any(found["cached"] for found in dial["rounds"][1])


def test_the_default_alpha_is_that_of_the_environment(dial: Any, said: dict[tuple[float, int], list[int]]):
    for n in range(len(QUESTIONS)):
        assert dial["rounds"][2][3 * n]["ids"] == said[3.0, n]
        assert dial["rounds"][2][3 * n]["told"] is None  # nobody asked for the monitor


@pytest.mark.parametrize("number", [0, 1])
def test_scores_are_the_monitors(dial: Any, model: StudyModel, card: Card, number: int):
    batch = wanted(model)[:: -1 if number else 1]
    for each, found in zip(batch, dial["rounds"][number], strict=True):
        prompt, ids = each["prompt"], found["ids"]
        with scale(model, card, each["alpha"]):
            expected = token_scores(model, card, Passage("q", (*prompt, *ids), len(prompt), (0, 1)))
        read = min(len(ids), len(found["told"]))
        assert read >= len(ids) - 1
        np.testing.assert_allclose(found["told"][:read], expected[:read], rtol=1e-3, atol=1e-3)
    assert np.std(np.concatenate([found["told"] for found in dial["rounds"][0]])) > 0.1


def test_requests_that_ask_nonsense_are_refused_and_the_engine_lives_on(dial: Any):
    assert len(dial["refused"]) == len(REFUSED)
    for line in dial["refused"].values():
        assert line.startswith("VLLMValidationError: ")
        assert "\n" not in line


def test_risks_of_responses_are_the_monitors(play: Play, model: StudyModel, card: Card, card_file: Path, folder: Path):
    """Also where the engine runs in a process of its own."""
    batch = [each for each in wanted(model) if each["alpha"] != 1][:6]
    told = {"model": str(folder), "rounds": [batch], "tokens": 64, "engine": {}}
    (found,) = play("dial", told, HNEURONS_CARD=str(card_file))["rounds"]
    monitor = Monitor(model, card)
    whole = 0
    for each, own in zip(batch, found, strict=True):
        *_, done = monitor.generate(each["question"], alpha=each["alpha"], temperature=0.0, max_tokens=64)
        reading = done.reading
        if done.reason != "stop" or reading is None:
            continue
        whole += 1
        assert "".join(token["text"] for token in own["told"]["tokens"]) == done.text
        assert own["told"]["risk"] == pytest.approx(reading.risk, abs=1e-4)
        assert own["told"]["response_risk"] == pytest.approx(reading.response_risk, abs=1e-4)
        assert own["told"]["flagged"] is reading.flagged
        np.testing.assert_allclose(
            [token["risk"] for token in own["told"]["tokens"]], card.risk(reading.scores), atol=1e-3
        )
    assert whole >= 3


def test_the_engine_of_studies_turns_neurons(play: Play, model: StudyModel, card: Card, card_file: Path):
    """`VLLMEngine` with its dial, as the impact study would have it."""
    told = {"model": "smollm2-135m", "questions": QUESTIONS, "alphas": ALPHAS, "tokens": TOKENS, "dial": True}
    found = play("engine", {**told, "engine": {}}, HNEURONS_CARD=str(card_file), HNEURONS_ALPHA="2")
    asked = [Request(Question(q, q, ("x",)), 0, alpha=alpha) for q in QUESTIONS for alpha in ALPHAS]
    with in_process(model)([neuron.id for neuron in card.h_neurons]) as own:
        expected = own.sample(asked, Sampling(temperature=0.0, max_new_tokens=TOKENS))
    assert [tuple(each["token_ids"]) for each in found] == [each.token_ids for each in expected]
    assert len({each.text for each in expected}) > len(QUESTIONS)
    output = play("engine", {**told, "engine": {}}, fails=True, HNEURONS_CARD="")
    assert "This vLLM has no plugin of hneurons at work, so every alpha would answer as 1." in output


def test_the_engine_of_studies_over_two_ranks(play: Play, tmp_path: Path):
    model = saved("llama", tmp_path / "model")
    questions = ["Paris?", "Who was the first to see Vienna?", "x y z"]
    told = {
        "model": str(tmp_path / "model"), "questions": questions, "alphas": [1.0], "tokens": TOKENS, "dial": False,
        "engine": {"tensor_parallel_size": 2},
    }  # fmt: skip
    asked = [Request(Question(q, q, ("x",)), 0) for q in questions]
    expected = HFEngine(model).sample(asked, Sampling(temperature=0.0, max_new_tokens=TOKENS))
    assert [tuple(each["token_ids"]) for each in play("engine", told)] == [each.token_ids for each in expected]


def test_a_rank_without_neurons_of_the_card_starts_too(play: Play, tmp_path: Path):
    """It has its part in every sum of the start-up test."""
    model = saved("llama", tmp_path / "model")
    described = model.describe()
    kept = ("id", "architecture", "layers", "width", "neurons")
    neurons = [{"layer": layer, "index": index, "weight": 1.0} for layer in range(3) for index in (3, 20)]
    card = Card.model_validate({"model": {k: described[k] for k in kept}, "probe": PROBE, "neurons": neurons})
    card.save(tmp_path / "neurons.json")
    batch = [{"prompt": [5, 9, 30, 44], "asked": {"alpha": alpha}} for alpha in ALPHAS]
    told = {
        "model": str(tmp_path / "model"), "rounds": [batch], "tokens": TOKENS, "scores": True,
        "engine": {"tensor_parallel_size": 2},
    }  # fmt: skip
    (found,) = play("dial", told, HNEURONS_CARD=str(tmp_path))["rounds"]
    assert [each["ids"] for each in found] == [greedy(model, card, alpha, [5, 9, 30, 44]) for alpha in ALPHAS]


def test_two_ranks_of_a_real_model(play: Play, tmp_path: Path):
    """The demo model's nine heads can't be shared out among two ranks; Qwen2.5-Coder-0.5B's can."""
    try:
        folder = hneurons.pull("qwen2.5-coder-0.5b")
    except ModelNotFoundError as error:
        pytest.skip(f"the model can't be fetched: {error}")
    model = hneurons.load_model("qwen2.5-coder-0.5b", device="cpu")
    card = card_of(model)
    halves = {neuron.index < 2432 for neuron in card.h_neurons}
    assert halves == {True, False}, "H-Neurons are in both shards"
    card.save(tmp_path / "neurons.json")
    batch = [each for each in wanted(model) if each["question"] in QUESTIONS[:2]]
    told = {
        "model": str(folder), "rounds": [batch], "tokens": TOKENS, "scores": True,
        "engine": {"tensor_parallel_size": 2, "kv_cache_memory_bytes": 400_000_000},
    }  # fmt: skip
    (found,) = play("dial", told, HNEURONS_CARD=str(tmp_path))["rounds"]
    check_said_and_scored(model, card, batch, found)
    passages = [
        Passage(str(n), (*each["prompt"], *own["ids"]), len(each["prompt"]), (0, 2))
        for n, (each, own) in enumerate(zip(batch, found, strict=True))
    ]
    told = features_told(str(folder), model.layout, [passages], **told["engine"])
    (path,) = play("features", {**told, "refused": {}})["paths"]
    check_close(np.load(path), PooledExtractor(model, REGIONS)(passages))


def check_said_and_scored(
    model: StudyModel, card: Card, batch: list[dict[str, Any]], found: list[dict[str, Any]]
) -> None:
    """That it says and scores what transformers does."""
    for each, own in zip(batch, found, strict=True):
        prompt, alpha = each["prompt"], each["alpha"]
        assert own["ids"] == greedy(model, card, alpha, prompt)
        with scale(model, card, alpha):
            expected = token_scores(model, card, Passage("q", (*prompt, *own["ids"]), len(prompt), (0, 1)))
        read = min(len(own["ids"]), len(own["told"]))
        assert read >= len(own["ids"]) - 1
        np.testing.assert_allclose(own["told"][:read], expected[:read], rtol=1e-3, atol=1e-3)


def test_two_ranks_say_and_score_what_transformers_does(play: Play, tmp_path: Path):
    """H-Neurons and the probe's others are in both shards."""
    model = saved("llama", tmp_path / "model")
    described = model.describe()
    neurons = [
        {"layer": layer, "index": index, "weight": weight}
        for layer in range(3)
        for index, weight in ((3, 2.0), (20, -1.5), (60, 1.0), (95, 3.0))
    ]
    kept = ("id", "architecture", "layers", "width", "neurons")
    card = Card.model_validate({"model": {k: described[k] for k in kept}, "probe": PROBE, "neurons": neurons})
    card.save(tmp_path / "neurons.json")
    prompts = [[5, 9, 30, 44], [60, 71, 88, 90, 101, 7, 8]]
    batch = [
        {"prompt": prompt, "alpha": alpha, "asked": {"alpha": alpha, "monitor": True}}
        for prompt in prompts
        for alpha in ALPHAS
    ]
    told = {
        "model": str(tmp_path / "model"), "rounds": [batch], "tokens": TOKENS, "scores": True,
        "engine": {"tensor_parallel_size": 2},
    }  # fmt: skip
    (found,) = play("dial", told, HNEURONS_CARD=str(tmp_path))["rounds"]
    assert len({tuple(each["ids"]) for each in found}) == len(batch)  # each alpha says something else
    check_said_and_scored(model, card, batch, found)
