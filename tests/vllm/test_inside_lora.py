"""One adapter an alpha, exported by hneurons, in a vLLM that has nothing of hneurons in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import ALPHAS, QUESTIONS, TOKENS, Play, greedy, prompts

import hneurons
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card


@pytest.fixture(scope="module")
def found(play: Play, model: StudyModel, card: Card, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("adapters")
    for alpha in ALPHAS:
        hneurons.export(card, model, format="lora", out=base / str(alpha), alpha=alpha)

    def asked(names: list[str]) -> list[dict[str, Any]]:
        return [
            {"prompt": prompt, "name": name, "adapter": str(base / name.split()[0])}
            for prompt in prompts(model)
            for name in names
        ]

    names = [str(alpha) for alpha in ALPHAS]
    batch = asked(names)
    none = [{"prompt": prompt, "name": "", "adapter": None} for prompt in prompts(model)]
    # In the trap's batch no adapter is that of alpha 1, so that whichever answers in place of none is seen.
    turned = asked(["0.0", "3.0", "3.0 again"])
    rank = len(card.h_neurons)  # of the largest layer at most
    steps = next(step for step in (8, 16, 32, 64) if step >= min(rank, 64))
    told = {
        "model": str(folder), "rounds": [batch, batch[::-1], [*turned, *none]], "names": [*names, "3.0 again"],
        "tokens": TOKENS,
        "engine": {"enable_prefix_caching": True, "block_size": 32, "max_loras": len(ALPHAS), "max_lora_rank": steps},
    }  # fmt: skip
    return play("lora", told, VLLM_PLUGINS="", VLLM_ENABLE_V1_MULTIPROCESSING="0")


@pytest.mark.parametrize("number", [0, 1])
def test_adapters_of_one_batch_say_what_transformers_says(found: Any, model: StudyModel, card: Card, number: int):
    """The second round finds prefixes of the first in the cache: vLLM keeps those of adapters apart."""
    said = [greedy(model, card, alpha, prompt) for prompt in prompts(model) for alpha in ALPHAS]
    assert found[number][:: -1 if number == 1 else 1] == said


def test_the_adapter_of_alpha_1_is_the_model_as_it_is(found: Any, model: StudyModel, card: Card):
    """What requests need that want no scaling: see the trap below."""
    place = ALPHAS.index(1.0)
    for n, prompt in enumerate(prompts(model)):
        assert found[0][n * len(ALPHAS) + place] == greedy(model, card, 1.0, prompt)


def test_the_trap_requests_without_an_adapter(found: Any, model: StudyModel, card: Card):
    """vLLM 0.32.0 gives requests without an adapter another's answers when adapters run beside them. When this fails,
    vLLM has mended it: docs/vllm.md can then leave the adapter of alpha 1 out."""
    said = [greedy(model, card, 1.0, prompt) for prompt in prompts(model)]
    beside = found[2][len(QUESTIONS) * len(ALPHAS) :]
    assert beside != said
