"""Probe scores token by token, of a given text (teacher forced)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hneurons.models.load import StudyModel
from hneurons.models.parts import FFN
from hneurons.models.weights import norms as vector_norms
from hneurons.neurons.capture import Routed, capture
from hneurons.neurons.card import Card
from hneurons.neurons.cett import Passage, backbone, token_contributions


def token_scores(model: StudyModel, card: Card, passage: Passage) -> NDArray[np.float64]:
    """Probe score of every response token: (response tokens,).

    Only the card's neurons are computed: gathered from z before anything is multiplied.
    """
    card.check_fits(model.describe())
    weights = card.weights
    parts = {
        position: (torch.from_numpy(inside), torch.from_numpy(weights[places]))
        for position, places, inside in model.parts_with(card.columns)
    }
    total = torch.full((len(passage.ids),), card.probe.intercept, dtype=torch.float64)

    def add(position: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
        if position not in parts:
            return
        index, weight = parts[position]
        norms = vector_norms(ffn.columns(index), dim=0)
        h = h.reshape(-1, h.shape[-1])
        if not isinstance(z, Routed):
            chosen = z.reshape(-1, z.shape[-1])[:, index.to(z.device)]
            total.add_(token_contributions(chosen, h, norms.to(z.device)).double().cpu() @ weight)
            return
        size = vector_norms(h, dim=-1)
        share = torch.where(size > 0, 1 / size, 0.0).double().cpu()
        expert = index // z.ffn.expert_width
        for piece in z.pieces(set(expert.tolist())):
            mine = expert == piece.expert
            own = index[mine] - piece.expert * z.ffn.expert_width
            magnitude = (piece.z[:, own.to(piece.z.device)].float() * piece.weight.float()[:, None]).abs()
            magnitude = magnitude.double().cpu() * norms[mine.to(norms.device)].double().cpu()
            rows = piece.rows.cpu()
            total.index_add_(0, rows, share[rows] * (magnitude @ weight[mine]))

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
