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
        self.parts: dict[int, _Part] = {}
        places: list[int] = []
        for position, mine, inside in model.parts_with(card.columns):
            self.parts[position] = _Part(model.ffns[position], torch.from_numpy(inside))
            places += mine.tolist()
        # Columns of the parts laid side by side, in the order of the card; and for each its part, norm and weight.
        self._order = torch.from_numpy(np.argsort(places))
        parts = list(self.parts.values())
        sizes = torch.tensor([len(part.inside) for part in parts], dtype=torch.long)
        self._part_of = torch.arange(len(parts)).repeat_interleave(sizes)[self._order]
        self._norms = torch.cat([part.norms for part in parts] or [torch.zeros(0)])[self._order]
        self._weights = torch.from_numpy(card.weights)
        self._dense = {position: model.ffns[position] for position in self.parts if not model.ffns[position].blocks}
        self.late: bool | None = None if len(self._dense) == len(self.parts) else False
        """Whether z and h of a pass can be read when all layers have run; None as long as nobody knows."""
        self._columns: Tensor | None = None
        # Parts of one mixture are seen together: only so it is known what each of them adds to h.
        mixed = {id(block) for position in self.parts for block in model.ffns[position].blocks}
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
        running = _Pass(self, see)

        def begin(_: Any, inputs: tuple[Any, ...]) -> None:
            if get_ident() == owner and inputs:
                running.begin(inputs[0].shape)

        def attach(position: int, down: nn.Module) -> None:
            # Hooks of our own rather than `capture`: these run in every layer for every token.
            def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                if get_ident() == owner:
                    running.enter(position, inputs[0])

            def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
                if get_ident() == owner:
                    running.leave(position, output[0] if isinstance(output, tuple) else output)

            # First of all hooks, so before those of `scale`, whichever block was opened first.
            stack.callback(down.register_forward_pre_hook(before, prepend=True).remove)
            stack.callback(down.register_forward_hook(after).remove)

        def collect(number: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
            del ffn
            if mixed[number] in self.parts:
                running.enter(mixed[number], z)
                running.leave(mixed[number], h)

        with ExitStack() as stack:
            stack.callback(self._embedding.register_forward_pre_hook(begin).remove)
            for position, ffn in self._dense.items():
                attach(position, ffn.down)
            if mixed:
                stack.enter_context(capture(list(self._mixed.values()), collect, unscaled=True))
            yield

    def terms(self, gathered: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
        """Weight times contribution of every neuron, in the order of the card: (batch * tokens, neurons).

        Args:
            gathered: z of the card's neurons in each of the parts, in order of depth: (..., neurons of the part).
            sizes: ||h|| of those parts: (...).
        """
        device = gathered[0].device
        z = torch.cat([each.reshape(-1, each.shape[-1]).to(device) for each in gathered], dim=-1)
        size = torch.stack([each.reshape(-1).to(device) for each in sizes], dim=-1)
        return self._weighed(z, self._order, size)

    def whole_terms(self, z: Sequence[Tensor], h: Sequence[Tensor]) -> Tensor:
        """The same from all of z and h of the parts: (..., width of the part), (..., hidden); all on one device."""
        if self._columns is None:
            starts = np.cumsum([0, *(each.shape[-1] for each in z[:-1])]).tolist()
            inside = [part.inside + start for part, start in zip(self.parts.values(), starts, strict=True)]
            self._columns = torch.cat(inside)[self._order]
        size = vector_norms(torch.stack([each.reshape(-1, each.shape[-1]) for each in h], dim=1), dim=-1)
        return self._weighed(torch.cat([each.reshape(-1, each.shape[-1]) for each in z], dim=-1), self._columns, size)

    def _weighed(self, z: Tensor, columns: Tensor, size: Tensor) -> Tensor:
        if self._norms.device != z.device:
            for name in ("_order", "_part_of", "_norms", "_weights"):
                setattr(self, name, getattr(self, name).to(z.device))
        # A token whose h is exactly zero has contribution 0.
        share = torch.where(size > 0, 1 / size, 0.0).index_select(1, self._part_of)
        chosen = z.index_select(1, columns.to(z.device))
        return (chosen.abs().float() * self._norms * share).double() * self._weights


class _Pass:
    """What is known of the pass that is running.

    Where every row has one token, as in generation, z and h are only kept, and read all at once when the last layer
    has run: two small operations a layer, between matrix products that drive all else out of the caches, cost more. A
    model that writes into z or h meanwhile is found out in its first such pass, and read layer by layer from then on;
    so are mixtures, and layers on several devices.
    """

    def __init__(self, watcher: Watcher, see: See) -> None:
        self.watcher, self.see = watcher, see
        self.shape: tuple[int, int] = (0, 0)
        self.late = self.trial = False
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.z: dict[int, Tensor] = {}
        self.h: dict[int, Tensor] = {}

    def begin(self, shape: tuple[int, int]) -> None:
        """Token ids of this shape are embedded."""
        self.shape = shape
        self.late = shape[1] == 1 and self.watcher.late is True
        self.trial = shape[1] == 1 and self.watcher.late is None
        self.z.clear()  # of a pass that failed
        self.h.clear()
        self.copies.clear()
        if not self.watcher.parts:
            self.see(torch.zeros(*shape, 0, dtype=torch.float64))

    def enter(self, position: int, z: Tensor | Routed) -> None:
        """What goes into a layer's down projection."""
        if isinstance(z, Tensor) and self.late:
            self.z[position] = z
            return
        if isinstance(z, Tensor) and self.trial:
            self.copies.append((z, z.clone()))
        self.z[position] = self.watcher.parts[position].gather(z)

    def leave(self, position: int, h: Tensor) -> None:
        """What comes out of that layer."""
        if self.trial:
            self.copies.append((h, h.clone()))
        if h.dim() == 3:  # also where no token ids were embedded
            self.shape = (h.shape[0], h.shape[1])
        self.h[position] = h if self.late else vector_norms(h, dim=-1)
        if len(self.h) == len(self.watcher.parts):
            self._end()

    def _end(self) -> None:
        order = sorted(self.h)
        z, h = [self.z.pop(p) for p in order], [self.h.pop(p) for p in order]
        terms = self.watcher.whole_terms(z, h) if self.late else self.watcher.terms(z, h)
        if self.trial:
            self.trial = False
            one_device = len({each.device for each, _ in self.copies}) == 1
            self.watcher.late = one_device and all(torch.equal(now, before) for now, before in self.copies)
            self.copies.clear()
        self.see(terms.reshape(*self.shape, -1))


def watch(model: StudyModel, card: Card, see: See) -> AbstractContextManager[None]:
    """`Watcher.on` for one block."""
    return Watcher(model, card).on(see)
