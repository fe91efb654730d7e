"""The dial and the monitor inside vLLM equal `hneurons.scale` and the monitor's scores in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import ALPHAS, PROBE, QUESTIONS, TOKENS, Play, greedy, prompts, saved

from hneurons.live.monitor import Monitor
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage
from hneurons.neurons.scaling import scale
from hneurons.neurons.tokens import token_scores

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
    for each, own in zip(batch, found, strict=True):
        prompt, alpha = each["prompt"], each["alpha"]
        assert own["ids"] == greedy(model, card, alpha, prompt)
        with scale(model, card, alpha):
            expected = token_scores(model, card, Passage("q", (*prompt, *own["ids"]), len(prompt), (0, 1)))
        read = min(len(own["ids"]), len(own["told"]))
        assert read >= len(own["ids"]) - 1
        np.testing.assert_allclose(own["told"][:read], expected[:read], rtol=1e-3, atol=1e-3)
