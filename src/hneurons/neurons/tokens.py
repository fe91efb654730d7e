"""Probe scores token by token, of a given text (teacher forced)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hneurons.models.load import StudyModel
from hneurons.models.structure import backbone
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage
from hneurons.neurons.watch import watch


def token_scores(model: StudyModel, card: Card, passage: Passage) -> NDArray[np.float64]:
    """Probe score of every response token: (response tokens,).

    Raises:
        CardError: the card is of another model.
    """
    seen: list[Tensor] = []
    ids = torch.tensor([passage.ids], device=model.device)
    with watch(model, card, seen.append), torch.inference_mode():
        backbone(model.model)(input_ids=ids, use_cache=False)
    scores = seen[0][0].sum(-1) + card.probe.intercept
    return scores[passage.prompt_tokens :].cpu().numpy()


def showcase_rows(risks: Sequence[float], labels: Sequence[str], each: int) -> list[int]:
    """Rows to show: `each` of either class, evenly spread from the lowest to the highest risk."""
    rows: list[int] = []
    for label in sorted(set(labels)):
        own = sorted((i for i in range(len(risks)) if labels[i] == label), key=lambda i: (risks[i], i))
        picks = np.linspace(0, len(own) - 1, min(each, len(own))).round().astype(int)
        rows += [own[i] for i in picks]
    return rows
