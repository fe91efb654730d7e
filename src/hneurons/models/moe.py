"""Mixtures of experts: find the routed experts of a layer, and see what each neuron of theirs does to each token.

Nothing here replaces a forward pass. A hook learns which tokens went to which expert with which weight, and z of
just those experts and tokens is computed again, from the same input; so whatever fast kernel the model runs, its
output stays what it is. Weights that the experts' module isn't told are measured (routing.py).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hneurons.models.parts import FFN
from hneurons.models.routing import Inputs, container, hidden_states, measure
from hneurons.models.weights import norms, onloaded


@dataclass(frozen=True)
class Piece:
    """What one expert did."""

    expert: int
    rows: Tensor
    """The tokens that were sent to it, numbered through the batch: (sent,)."""
    weight: Tensor
    """What its output is multiplied by: (sent,)."""
    z: Tensor
    """Its neurons: (sent, expert_width)."""


@dataclass(frozen=True)
class Call:
    """One pass of a batch through a mixture."""

    block: Inputs
    """What the mixture was called with; its hidden states come first."""
    args: tuple[Any, ...] = ()
    """What the module that holds the experts was called with."""
    after: Tensor | None = None
    """What the mixture multiplies the sum of the experts by: (batch * tokens,); None for 1."""

    @property
    def hidden(self) -> Tensor:
        """Input of the mixture, one row a token: (batch * tokens, hidden)."""
        hidden = hidden_states(*self.block)
        return hidden.reshape(-1, hidden.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, tokens), or (batch * tokens,) where the model lays them out so."""
        return tuple(hidden_states(*self.block).shape[:-1])


@dataclass(frozen=True)
class RoutedFFN(FFN):
    """The routed experts of one layer; neuron `index` of expert `e` is column e * expert_width + index."""

    experts: int = 0
    expert_width: int = 0
    beside: tuple[nn.Module, ...] = ()
    """The other modules whose outputs the same mixture adds: its shared expert."""

    def within(self, blocks: tuple[nn.Module, ...], beside: tuple[nn.Module, ...]) -> RoutedFFN:
        """The same with `blocks` as the modules whose outputs add up to h."""
        return replace(self, blocks=blocks, beside=beside)

    @property
    def recorded(self) -> nn.Module | None:
        """The module whose arguments a `Call` needs; None when the input of the mixture is enough."""
        raise NotImplementedError

    def pieces(self, call: Call, only: Collection[int] | None = None) -> Iterator[Piece]:
        """What each expert did that tokens were sent to, in order of experts; `only` some experts if given."""
        raise NotImplementedError

    def expert_weight(self, expert: int) -> Tensor:
        """W_down of one expert as (hidden, expert_width)."""
        raise NotImplementedError

    def expert_bias(self, expert: int) -> Tensor | None:
        """Bias of one expert's down projection, (hidden,), or None."""
        raise NotImplementedError

    def stubs(self) -> list[tuple[nn.Module, int]]:
        """The modules to replace by unit vectors, with the number of times that each one's output is added."""
        raise NotImplementedError

    def silenced(self) -> tuple[nn.Module, ...]:
        """The modules to silence while the other parts of the mixture are measured."""
        return ()

    def replaced(self) -> tuple[nn.Module, ...]:
        """Every module that something else stands in for at some time."""
        return (*(module for module, _ in self.stubs()), *self.silenced(), *self.beside)

    def tokens(self, call: Call) -> int:
        """How many tokens the batch of a call has."""
        return len(call.hidden)

    def output_rows(self, piece: Piece, tokens: int) -> Tensor:
        """The rows of the output of `recorded` (or of the mixture) that a piece is part of: (sent,)."""
        del tokens
        return piece.rows

    def expert_weights(self) -> Generator[Tensor]:
        """`expert_weight` of every expert; what accelerate moved off is brought back once."""
        with onloaded(self.down):
            for expert in range(self.experts):
                yield self.expert_weight(expert)

    def column_norms(self) -> Tensor:
        """||W_down[:, j]||_2 of every neuron of every expert, float32 (width,)."""
        return torch.cat([norms(weight, dim=0) for weight in self.expert_weights()])

    def weight(self) -> Tensor:
        """W_down of all experts side by side: (hidden, width). Large; `columns` takes only some."""
        return torch.cat(list(self.expert_weights()), dim=1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        with onloaded(self.down):
            return self.expert_weight(0).device

    def columns(self, index: Tensor) -> Tensor:
        """W_down[:, index] as (hidden, len(index)), dequantised."""
        expert = index.cpu() // self.expert_width
        with onloaded(self.down):
            first = self.expert_weight(0)
            out = first.new_empty(self.hidden, len(index))
            for one in expert.unique().tolist():
                mine = expert == one
                within = (index.cpu()[mine] - one * self.expert_width).to(first.device)
                out[:, mine.to(first.device)] = self.expert_weight(one)[:, within]
        return out

    def bias(self) -> Tensor | None:
        """None: each expert has its own, see `expert_bias`."""
        return None


def part_weights(parts: Sequence[FFN], call: Inputs) -> dict[str, Tensor]:
    """What their mixture multiplies each part's output by: {path: (batch * tokens,)}; a part without one is left out.

    Args:
        parts: the parts of one mixture, all with the same `block`.
        call: what the mixture was called with.
    """
    block = parts[0].block
    assert block is not None
    stubs: list[tuple[nn.Module, int, str]] = []
    for part in parts:
        if isinstance(part, RoutedFFN):
            stubs += [(module, times, part.path) for module, times in part.stubs()]
        else:
            stubs.append((container(block, part.down), 1, part.path))
    stubs = [stub for stub in stubs if stub[0] is not block]  # a part that is the whole block has weight 1
    if not stubs:
        return {}
    silent = [module for part in parts if isinstance(part, RoutedFFN) for module in part.silenced()]
    weights = measure(block, [module for module, *_ in stubs], call, silent)
    found = {path: weight / times for (_, times, path), weight in zip(stubs, weights, strict=True)}
    return {path: weight for path, weight in found.items() if not bool((weight == 1).all())}
