"""llama.cpp itself, in this process: the exported adapter is the hooks, and its server an engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hneurons
import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.openai import RETOKENISED, OpenAIEngine
from hneurons.models.load import StudyModel, load_model
from hneurons.neurons.card import Card
from hneurons.neurons.scaling import scale
from hneurons.types import Question
from llamacpp_server import Server, serving
from test_export import card_of

pytest.importorskip("xllamacpp", reason="llama.cpp in a wheel, for some platforms")
pytest.importorskip("openai", reason="needs the extra `judge`")
EXPORTED = 0.5
ALPHAS = [0.0, 0.5, 1.0, 2.0, 3.0]
PROMPTS = [[5, 9, 30, 44, 61], [60, 71, 88, 90, 101, 7, 8], [12, 13]]
DRAWN = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llamacpp")


@pytest.fixture(scope="module")
def model(folder: Path) -> StudyModel:
    return load_model(tiny.write_gguf(folder / "tiny.gguf"), device="cpu")


@pytest.fixture(scope="module")
def card(model: StudyModel) -> Card:
    """More neurons in one layer than in another, none in the third."""
    layer = model.layout.dense[0]
    return card_of(model, model.layout.ids([1, 4, 5, 9, 2 * layer + 3, 2 * layer + 7]))


@pytest.fixture(scope="module")
def server(folder: Path, model: StudyModel, card: Card) -> Iterator[Server]:
    """With the adapter, which is off unless a request turns it on."""
    hneurons.export(card, model, format="gguf-lora", out=folder / "dial", alpha=EXPORTED)
    with serving(folder / "tiny.gguf", folder / "dial/adapter.gguf") as running:
        yield running


def by_hooks(model: StudyModel, card: Card, alpha: float, prompt: list[int]) -> tuple[list[int], dict[int, float]]:
    """Greedy tokens, and the log-probability of each, by its place."""
    network: Any = model.model
    with scale(model, card, alpha), torch.no_grad():
        ids = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=DRAWN, pad_token_id=0)[0]
        told = torch.log_softmax(network(ids[None]).logits[0].float(), -1)
    drawn = ids[len(prompt) :].tolist()
    return drawn, {place: float(told[len(prompt) - 1 + place, token]) for place, token in enumerate(drawn)}


def by_adapter(
    server: Server, alpha: float, prompt: list[int], **more: Any
) -> tuple[list[int], list[tuple[int, float]]]:
    """Greedy tokens; id and log-probability of those that llama.cpp tells them of."""
    made = server.post(
        "/completion", prompt=prompt, n_predict=DRAWN, temperature=0, n_probs=1, return_tokens=True,
        lora=[{"id": 0, "scale": (alpha - 1) / (EXPORTED - 1)}], **more,
    )  # fmt: skip
    return made["tokens"], [(token["id"], token["logprob"]) for token in made["completion_probabilities"]]


def check(found: tuple[list[int], list[tuple[int, float]]], wanted: tuple[list[int], dict[int, float]]) -> None:
    drawn, told = found
    assert drawn == wanted[0]
    place = 0
    for token, logprob in told:  # of tokens of which several write one letter there is none
        place = drawn.index(token, place)
        np.testing.assert_allclose(logprob, wanted[1][place], atol=1e-4)
        place += 1
    assert told


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_adapter_is_the_hooks(server: Server, model: StudyModel, card: Card, alpha: float):
    for prompt in PROMPTS:
        check(by_adapter(server, alpha, prompt), by_hooks(model, card, alpha, prompt))


def test_the_alphas_differ(model: StudyModel, card: Card):
    assert len({tuple(by_hooks(model, card, alpha, PROMPTS[0])[0]) for alpha in ALPHAS}) >= 3


def test_requests_at_the_same_time_have_each_its_own_alpha(server: Server, model: StudyModel, card: Card):
    """Where each reads its prompt itself: llama.cpp takes what it kept of a prompt at another alpha otherwise."""
    pairs = [(alpha, prompt) for prompt in PROMPTS for alpha in ALPHAS]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            made = pool.map(lambda pair: by_adapter(server, *pair, cache_prompt=False), pairs)
            for pair, found in zip(pairs, made, strict=True):
                check(found, by_hooks(model, card, *pair))


def test_the_engine_for_servers_draws_greedily_what_transformers_draws(server: Server, model: StudyModel):
    """With the ids that llama.cpp tells; a response of which it leaves some out is cut into tokens here."""
    sampling = Sampling(temperature=0.0, max_new_tokens=6)
    made = [Request(Question(name, name, ("x",)), 0) for name in tiny.names(40)]
    own = {response.question_id: response for response in HFEngine(model).sample(made, sampling)}
    # A random model also writes parts of letters.
    letters = [request for request in made if "\ufffd" not in own[request.question.id].text]
    parts = [request for request in made if request not in letters]
    assert len(letters) >= 4
    for requests, told in ((letters, True), (parts[:4], False)):
        engine = OpenAIEngine(model, f"{server.url}/v1")
        found = engine.sample(requests, sampling)
        engine.close()
        assert (RETOKENISED not in engine.notes) is told
        for mine in found:
            reference = own[mine.question_id]
            assert (mine.text, mine.finish_reason) == (reference.text, reference.finish_reason)
            if told:
                assert mine.token_ids == reference.token_ids
                np.testing.assert_allclose(mine.logprobs, reference.logprobs, atol=1e-4)
