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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
        """z of the neurons, whatever its sign: (..., neurons), as many tokens as the batch has."""
        if isinstance(z, Routed):
            return self._routed(z)
        if self.inside.device != z.device:
            self.inside = self.inside.to(z.device)
        return torch.index_select(z, -1, self.inside)

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
        self._dense = {position: model.ffns[position] for position in self._parts if not model.ffns[position].blocks}
        # Parts of one mixture are seen together: only so it is known what each of them adds to h.
        mixed = {id(block) for position in self._parts for block in model.ffns[position].blocks}
        self._mixed = {
            position: ffn for position, ffn in enumerate(model.ffns) if any(id(block) in mixed for block in ffn.blocks)
        }

    @contextmanager
    def on(self, see: See) -> Generator[None]:
        """Call `see` after every forward pass that this thread makes inside the block; hooks always come off.

        The terms of a token, summed, and the probe's intercept are its score. The pass of a token comes after it was
        drawn: a generated token's score is known one step later.
        """
        owner, get_ident = threading.get_ident(), threading.get_ident
        mixed = list(self._mixed)
        gathered: dict[int, Tensor] = {}
        sizes: dict[int, Tensor] = {}
        shape: list[int] = []

        def begin(_: Any, inputs: tuple[Any, ...]) -> None:
            if get_ident() != owner or not inputs:
                return
            gathered.clear()  # of a pass that failed
            sizes.clear()
            shape[:] = inputs[0].shape
            if not self._parts:
                see(torch.zeros(*shape, 0, dtype=torch.float64))

        def take(position: int, h: Tensor) -> None:
            if h.dim() == 3:  # also where no token ids were embedded
                shape[:] = h.shape[:2]
            sizes[position] = vector_norms(h, dim=-1)
            if len(sizes) == len(self._parts):
                order = sorted(sizes)
                see(self._terms([gathered.pop(p) for p in order], [sizes.pop(p) for p in order]).reshape(*shape, -1))

        def attach(position: int, part: _Part, down: nn.Module) -> None:
            # Hooks of our own rather than `capture`: these run in every layer for every token.
            def gather(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                if get_ident() == owner:
                    gathered[position] = part.gather(inputs[0])

            def measure(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
                if get_ident() == owner:
                    take(position, output[0] if isinstance(output, tuple) else output)

            # First of all hooks, so before those of `scale`, whichever block was opened first.
            stack.callback(down.register_forward_pre_hook(gather, prepend=True).remove)
            stack.callback(down.register_forward_hook(measure).remove)

        def collect(number: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
            del ffn
            part = self._parts.get(mixed[number])
            if part is not None:
                gathered[mixed[number]] = part.gather(z)
                take(mixed[number], h)

        with ExitStack() as stack:
            stack.callback(self._embedding.register_forward_pre_hook(begin).remove)
            for position, ffn in self._dense.items():
                attach(position, self._parts[position], ffn.down)
            if mixed:
                stack.enter_context(capture(list(self._mixed.values()), collect, unscaled=True))
            yield

    def _terms(self, gathered: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
        """Weight times contribution of every neuron, in the order of the card: (batch * tokens, neurons)."""
        device = gathered[0].device
        if self._order.device != device:
            for name in ("_order", "_part_of", "_norms", "_weights"):
                setattr(self, name, getattr(self, name).to(device))
        z = torch.cat([each.reshape(-1, each.shape[-1]).to(device) for each in gathered], dim=-1)
        size = torch.stack([each.reshape(-1).to(device) for each in sizes], dim=-1)
        # A token whose h is exactly zero has contribution 0.
        share = torch.where(size > 0, 1 / size, 0.0)[:, self._part_of]
        return (z[:, self._order].abs().float() * self._norms * share).double() * self._weights


def watch(model: StudyModel, card: Card, see: See) -> AbstractContextManager[None]:
    """`Watcher.on` for one block."""
    return Watcher(model, card).on(see)
