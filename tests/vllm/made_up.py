"""A made-up card of neurons that do much, prompts, and what transformers says to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.neurons.scaling import scale
from hneurons.types import Region

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
