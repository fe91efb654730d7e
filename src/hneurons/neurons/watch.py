"""What a card's neurons say of every token while a model runs, and nothing else: gather first, multiply after.

A probe is linear, so the score of a mean contribution is the mean of the tokens' scores: scores of single tokens are
all that a monitor has to keep.

z is taken before any `scale` block turns it. A neuron that is silenced would otherwise pull the score down because it
is silenced, whatever the model is about to say; so the score says what the neurons would have added, given all that
turning them has changed before them. h is the layer's output as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hneurons.models.load import StudyModel
from hneurons.models.parts import FFN
from hneurons.models.weights import norms as vector_norms
from hneurons.neurons.capture import Routed, capture
from hneurons.neurons.card import Card

See = Callable[[Tensor], None]
"""Called after each forward pass with the terms of the score: (batch, tokens, the card's neurons), float64."""


class _Part:
    """The card's neurons in one FFN."""

    def __init__(self, ffn: FFN, inside: Tensor) -> None:
        self.inside = inside
        self.norms = vector_norms(ffn.columns(inside), dim=0).cpu()

    def gather(self, z: Tensor | Routed) -> Tensor:
        """z of the neurons, whatever its sign: (batch * tokens, neurons)."""
        if isinstance(z, Routed):
            return self._routed(z)
        if self.inside.device != z.device:
            self.inside = self.inside.to(z.device)
        return torch.index_select(z.reshape(-1, z.shape[-1]), 1, self.inside)

    def _routed(self, z: Routed) -> Tensor:
        found = torch.zeros(len(z.call.hidden), len(self.inside), device=z.call.hidden.device)
        expert = self.inside // z.ffn.expert_width
        for piece in z.pieces(set(expert.tolist())):
            mine = (expert == piece.expert).nonzero()[:, 0].to(found.device)
            own = self.inside.to(found.device)[mine] - piece.expert * z.ffn.expert_width
            # A token goes to an expert once.
            found[piece.rows[:, None], mine] += piece.z[:, own].float() * piece.weight.float()[:, None]
        return found


class Watcher:
    """Watches a card's neurons; made once for a model, used as often as one likes.

    Raises:
        CardError: the card is of another model.
    """

    def __init__(self, model: StudyModel, card: Card) -> None:
        card.check_fits(model.describe())
        self._embedding: Any = model.model.get_input_embeddings()
        self._parts: dict[int, _Part] = {}
        places: list[int] = []
        for position, mine, inside in model.parts_with(card.columns):
            self._parts[position] = _Part(model.ffns[position], torch.from_numpy(inside))
            places += mine.tolist()
        # Columns of the parts laid side by side, in the order of the card; and for each its part, norm and weight.
        self._order = torch.from_numpy(np.argsort(places))
        parts = list(self._parts.values())
        sizes = torch.tensor([len(part.inside) for part in parts], dtype=torch.long)
        self._part_of = torch.arange(len(parts)).repeat_interleave(sizes)[self._order]
        self._norms = torch.cat([part.norms for part in parts] or [torch.zeros(0)])[self._order]
        self._weights = torch.from_numpy(card.weights)
        # Parts of one mixture are seen together: only so it is known what each of them adds to h.
        mixed = {id(block) for position in self._parts for block in model.ffns[position].blocks}
        self._seen = {
            position: ffn
            for position, ffn in enumerate(model.ffns)
            if position in self._parts or any(id(block) in mixed for block in ffn.blocks)
        }

    @contextmanager
    def on(self, see: See) -> Generator[None]:
        """Call `see` after every forward pass that this thread makes inside the block; hooks always come off.

        The terms of a token, summed, and the probe's intercept are its score. The pass of a token comes after it was
        drawn: a generated token's score is known one step later.
        """
        owner = threading.get_ident()
        positions = list(self._seen)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        shape: list[int] = []

        def begin(_: Any, inputs: tuple[Any, ...]) -> None:
            if threading.get_ident() != owner or not inputs:
                return
            found.clear()  # of a pass that failed
            shape[:] = inputs[0].shape
            if not self._parts:
                see(torch.zeros(*shape, 0, dtype=torch.float64))

        def collect(number: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
            del ffn
            part = self._parts.get(positions[number])
            if part is None:
                return
            if h.dim() == 3:  # also where no token ids were embedded
                shape[:] = h.shape[:2]
            found[positions[number]] = part.gather(z), vector_norms(h.reshape(-1, h.shape[-1]), dim=-1)
            if len(found) == len(self._parts):
                see(self._terms([found.pop(position) for position in sorted(found)]).reshape(*shape, -1))

        hook = self._embedding.register_forward_pre_hook(begin)
        try:
            with capture(list(self._seen.values()), collect, unscaled=True):
                yield
        finally:
            hook.remove()

    def _terms(self, passes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Weight times contribution of every neuron, in the order of the card: (batch * tokens, neurons)."""
        device = passes[0][0].device
        if self._order.device != device:
            for name in ("_order", "_part_of", "_norms", "_weights"):
                setattr(self, name, getattr(self, name).to(device))
        z = torch.cat([each.to(device) for each, _ in passes], dim=-1)[:, self._order].abs().float()
        size = torch.stack([each.to(device) for _, each in passes], dim=-1)
        # A token whose h is exactly zero has contribution 0.
        share = torch.where(size > 0, 1 / size, 0.0)[:, self._part_of]
        return (z * self._norms * share).double() * self._weights


def watch(model: StudyModel, card: Card, see: See) -> AbstractContextManager[None]:
    """`Watcher.on` for one block."""
    return Watcher(model, card).on(see)
