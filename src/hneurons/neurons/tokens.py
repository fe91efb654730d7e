"""Probe scores token by token, of a given text (teacher forced)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hneurons.models.ffn import FFN
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, backbone, capture


def token_scores(model: StudyModel, card: Card, passage: Passage) -> NDArray[np.float64]:
    """Probe score of every response token: (response tokens,).

    Only the card's neurons are computed: gathered from z before anything is multiplied.
    """
    card.check_fits(model.describe())
    by_layer: dict[int, list[int]] = {}
    for position, neuron in enumerate(card.neurons):
        by_layer.setdefault(neuron.layer, []).append(position)
    total = torch.full((len(passage.ids),), card.probe.intercept, dtype=torch.float64)

    def add(position: int, ffn: FFN, z: Tensor, h: Tensor) -> None:
        entries = [card.neurons[i] for i in by_layer.get(position, [])]
        if not entries:
            return
        # Some models (OPT) flatten batch and tokens into one axis before the FFN.
        z, h = z.reshape(1, len(passage.ids), -1), h.reshape(1, len(passage.ids), -1)
        index = torch.tensor([entry.index for entry in entries], device=z.device)
        weight = torch.tensor([entry.weight for entry in entries], dtype=torch.float64)
        norms = torch.linalg.vector_norm(ffn.weight()[:, index].detach().float(), dim=0)
        size = torch.linalg.vector_norm(h[0].float(), dim=-1, keepdim=True)
        share = torch.where(size > 0, z[0, :, index].abs().float() * norms / size, 0.0)
        total.add_(share.double().cpu() @ weight)

    ids = torch.tensor([passage.ids], device=model.device)
    with capture(model.ffns, add), torch.inference_mode():
        backbone(model.model)(input_ids=ids, use_cache=False)
    return total[passage.prompt_tokens :].numpy()


def showcase_rows(risks: Sequence[float], labels: Sequence[str], each: int) -> list[int]:
    """Rows to show: `each` of either class, evenly spread from the lowest to the highest risk."""
    rows: list[int] = []
    for label in sorted(set(labels)):
        own = sorted((i for i in range(len(risks)) if labels[i] == label), key=lambda i: (risks[i], i))
        picks = np.linspace(0, len(own) - 1, min(each, len(own))).round().astype(int)
        rows += [own[i] for i in picks]
    return rows
