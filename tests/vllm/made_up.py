"""A made-up card of neurons that do much, prompts, and what transformers says to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

import tiny
from hneurons.models.load import StudyModel, as_study_model
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.types import REGIONS, Region

QUESTIONS = [
    "What is the capital of France?",
    "Who wrote the play Hamlet?",
    "What is the chemical symbol for gold?",
    "How many legs does a spider have?",
]
ALPHAS = [0.0, 1.0, 3.0]
TOKENS = 24
Play = Callable[..., Any]
"""What the fixture `play` gives."""
PROBE: dict[str, Any] = {
    "labelling": "3-vs-1", "other": "response", "C": 1.0, "solver": "exact", "intercept": -0.3,
    "calibration": {"slope": 1.0, "offset": 0.0, "n": 10},
}  # fmt: skip


def card_of(model: StudyModel) -> Card:
    """The 40 neurons of the middle layers that contribute most to an answer, and a sign each."""
    ids = tuple(model.encode(model.chat([{"role": "user", "content": QUESTIONS[0]}])))
    passage = Passage("q", (*ids, *model.encode("The capital of France is Paris.")), len(ids), (0, 3))
    found = PooledExtractor(model, [Region.RESPONSE])([passage])[0, 0]
    starts = model.layout.starts
    low, high = int(starts[len(starts) // 4]), int(starts[3 * len(starts) // 4])
    columns = low + np.argsort(-found[low:high])[:40]
    described = model.describe()
    neurons = [
        {"layer": n.layer, "index": n.index, "weight": (1.0 if place % 3 else -0.5) * (1 + place / 40)}
        for place, n in enumerate(model.layout.ids(columns))
    ]
    kept = ("id", "architecture", "layers", "width", "neurons")
    return Card.model_validate({"model": {k: described[k] for k in kept}, "probe": PROBE, "neurons": neurons})


def prompts(model: StudyModel) -> list[list[int]]:
    return [list(model.encode(model.chat([{"role": "user", "content": question}]))) for question in QUESTIONS]


@torch.inference_mode()
def greedy(model: StudyModel, card: Card, alpha: float, prompt: list[int]) -> list[int]:
    """What transformers goes on with, its H-Neurons scaled; the end of turn included."""
    generator: Any = model.model
    with scale(model, card, alpha):
        ids = generator.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=TOKENS, pad_token_id=2)
    return ids[0, len(prompt) :].tolist()


def features_told(model: str, layout: Any, groups: list[list[Passage]], **engine: Any) -> dict[str, Any]:
    """What the part `features` reads."""
    rows = [[[p.name, p.ids, p.prompt_tokens, p.answer] for p in group] for group in groups]
    settings = {"enable_prefix_caching": True, "block_size": 32, **engine}
    wrong = {"wider": [[w + 1 for w in layout.dense], *astuple(layout)[1:]]}
    return {
        "model": model, "layout": astuple(layout), "groups": rows, "engine": settings, "refused": wrong, "too_long": 256
    }  # fmt: skip


def check_close(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-4 of each row's length, and of each neuron that contributes anything to speak of."""
    assert found.shape == expected.shape
    error = np.linalg.norm(found - expected, axis=-1)
    assert (error <= 1e-4 * np.linalg.norm(expected, axis=-1)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def check_same_run(run: Path, own: Path) -> None:
    """A greedy run that another engine sampled is that of transformers: up to rounding, and to what it leaves out."""
    for folder in (run, own):
        assert {"questions.jsonl", "path.json", "evaluation.json", "report.html"} <= {p.name for p in folder.iterdir()}
    for name in ("responses.jsonl", "examples.jsonl"):
        texts = [(folder / name).read_text().splitlines() for folder in (run, own)]
        for mine, reference in zip(*([json.loads(line) for line in lines] for lines in texts), strict=True):
            responses = [row.get("response", row) for row in (mine, reference)]
            for key in ("logprobs", "mean_logprob"):
                np.testing.assert_allclose(*(response.pop(key, 0) for response in responses), atol=1e-3)
            assert mine == reference, (mine, reference)
    for region in REGIONS:
        found, expected = (np.load(folder / f"features/{region}.npy").astype(np.float32) for folder in (run, own))
        # Kept as float16.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5 * float(expected.max()))
    cards = [Card.load(folder / "neurons.json") for folder in (run, own)]
    weights = [{neuron.id: neuron.weight for neuron in card.neurons} for card in cards]
    assert weights[0].keys() == weights[1].keys()
    np.testing.assert_allclose(list(weights[0].values()), list(weights[1].values()), rtol=0.05)


def big_enough(kind: str) -> Any:
    """A tiny random model, as small as vLLM's attention on CPUs takes them."""
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


def saved(kind: str, folder: Path) -> StudyModel:
    """Such a model, written to a folder too."""
    torch.manual_seed(0)
    made, tokenizer = big_enough(kind).eval(), tiny.tokenizer()
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return as_study_model((made, tokenizer))
