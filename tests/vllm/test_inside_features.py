"""Features measured by vLLM's own passes equal those of transformers."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import Play, prompts

import tiny
from hneurons.models.load import StudyModel, as_study_model
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.types import REGIONS


def passages(model: StudyModel) -> list[list[Passage]]:
    """Two groups; some of the passages are longer than the tokens of a step."""
    said = ["Paris.", "The capital of France is Paris, of course.", "I think it was William Shakespeare.", "8"]
    made: list[Passage] = []
    for number, (prompt, text) in enumerate(zip(prompts(model), said, strict=True)):
        response = model.encode(text)
        stop = max(len(response) - 2, 1)
        made.append(Passage(f"q{number}", (*prompt, *response), len(prompt), (min(1, stop - 1), stop)))
    return [made[:3], made[3:]]


def told(model: str, layout: Any, groups: list[list[Passage]], **engine: Any) -> dict[str, Any]:
    rows = [[[p.name, p.ids, p.prompt_tokens, p.answer] for p in group] for group in groups]
    settings = {"enable_prefix_caching": False, **engine}
    wrong = {"wider": [[w + 1 for w in layout.dense], *astuple(layout)[1:]]}
    return {
        "model": model, "layout": astuple(layout), "groups": rows, "engine": settings, "refused": wrong, "too_long": 256
    }  # fmt: skip


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-4 of each row's length, and of each neuron that contributes anything to speak of."""
    assert found.shape == expected.shape
    error = np.linalg.norm(found - expected, axis=-1)
    assert (error <= 1e-4 * np.linalg.norm(expected, axis=-1)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.fixture(scope="module")
def demo(play: Play, model: StudyModel, folder: Path) -> Any:
    groups = passages(model)
    return play(
        "features",
        told(str(folder), model.layout, groups, max_num_batched_tokens=32),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )


def test_features_equal_those_of_transformers_also_when_prefill_is_chunked(demo: Any, model: StudyModel):
    groups = passages(model)
    assert max(len(p.ids) for group in groups for p in group) > 32
    expected = list(PooledExtractor(model, REGIONS).many(groups))
    for path, batch in zip(demo["paths"], expected, strict=True):
        close(np.load(path), batch.dense())


def test_what_cannot_be_measured_is_refused_in_one_line(demo: Any):
    assert demo["refused"]["long"].startswith("UsageError: Example 'long' has 256 tokens")
    assert "30 feed-forward layers" in demo["refused"]["wider"]
    assert all("\n" not in line for line in demo["refused"].values())


def big_enough(kind: str) -> Any:
    """A tiny random model, as small as vLLM's attention on CPUs takes them."""
    import transformers as hf

    shared = {"vocab_size": 330, **tiny.IDS, "initializer_range": 0.3}
    if kind == "llama":
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=96, max_position_embeddings=256, **shared,
            )
        )  # fmt: skip
    if kind == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=128, n_layer=3, n_head=4, n_inner=96, n_positions=256, **shared))
    return hf.OPTForCausalLM(
        hf.OPTConfig(
            hidden_size=128, num_hidden_layers=3, num_attention_heads=4, ffn_dim=96, max_position_embeddings=256,
            word_embed_proj_dim=128, do_layer_norm_before=True, **shared,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "ranks"), [("llama", 2), ("gpt2", 1), ("opt", 1)])
def test_features_of_other_models_and_of_two_ranks(
    play: Play, tmp_path_factory: pytest.TempPathFactory, kind: str, ranks: int
):
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(kind)
    made, tokenizer = big_enough(kind).eval(), tiny.tokenizer()
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = as_study_model((made, tokenizer))
    rng = np.random.default_rng(0)
    ids = [tuple(rng.integers(3, 330, n).tolist()) for n in (30, 9, 60)]
    groups = [[Passage(f"q{i}", each, len(each) // 2, (1, 3)) for i, each in enumerate(ids)]]
    engine = {"max_num_batched_tokens": 32, "tensor_parallel_size": ranks}
    found = play("features", told(str(folder), model.layout, groups, **engine))
    close(np.load(found["paths"][0]), PooledExtractor(model, REGIONS)(groups[0]))
