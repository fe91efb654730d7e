"""Where each neuron's column is when all feed-forward neurons of a model lie side by side. Never imports torch.

Layers come in order of depth. Inside a layer come first the neurons of its dense feed-forward part (the whole layer,
or the shared expert of a mixture), then those of routed expert 0, 1, ... A layer without feed-forward neurons takes
no column. So (layer, expert, index) names one neuron: expert is None in the dense part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hneurons.types import NeuronId

Columns = NDArray[np.intp]


@dataclass(frozen=True)
class Layout:
    """Neurons of each decoder layer."""

    dense: tuple[int, ...]
    """Neurons of the dense part of each layer, 0 where there is none."""
    experts: tuple[int, ...]
    """Routed experts of each layer, 0 in a dense layer."""
    expert_width: tuple[int, ...]
    """Neurons of one routed expert of each layer."""

    @property
    def widths(self) -> list[int]:
        """Neurons of each layer, all parts together."""
        return [own + n * m for own, n, m in zip(self.dense, self.experts, self.expert_width, strict=True)]

    @property
    def neurons(self) -> int:
        """Neurons of all layers."""
        return sum(self.widths)

    @property
    def starts(self) -> Columns:
        """First column of each layer, then the number of columns: (layers + 1,)."""
        return np.concatenate([[0], np.cumsum(self.widths)]).astype(np.intp)

    @property
    def blocks(self) -> Columns:
        """First column of each part and each expert, then the number of columns: (blocks + 1,)."""
        sizes: list[int] = []
        for own, count, width in zip(self.dense, self.experts, self.expert_width, strict=True):
            sizes += [own] * (own > 0) + [width] * count
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)

    def has(self, neuron: NeuronId) -> bool:
        """Whether there is such a neuron."""
        if not 0 <= neuron.layer < len(self.dense) or neuron.index < 0:
            return False
        if neuron.expert is None:
            return neuron.index < self.dense[neuron.layer]
        return 0 <= neuron.expert < self.experts[neuron.layer] and neuron.index < self.expert_width[neuron.layer]

    def columns(self, neurons: Iterable[NeuronId]) -> Columns:
        """Column of each neuron."""
        starts = self.starts
        found: list[int] = []
        for neuron in neurons:
            column = int(starts[neuron.layer]) + neuron.index
            if neuron.expert is not None:
                column += self.dense[neuron.layer] + neuron.expert * self.expert_width[neuron.layer]
            found.append(column)
        return np.array(found, dtype=np.intp)

    def ids(self, columns: ArrayLike) -> list[NeuronId]:
        """The neuron of each column."""
        wanted = np.asarray(columns, dtype=np.intp)
        starts = self.starts
        # Layers without neurons share their start with the next one: "right" skips them.
        layers = np.searchsorted(starts, wanted, side="right") - 1
        found: list[NeuronId] = []
        for layer, column in zip(layers.tolist(), wanted.tolist(), strict=True):
            place = column - int(starts[layer])
            if place < self.dense[layer]:
                found.append(NeuronId(layer, None, place))
            else:
                expert, index = divmod(place - self.dense[layer], self.expert_width[layer])
                found.append(NeuronId(layer, expert, index))
        return found

    def describe(self) -> dict[str, Any]:
        """`layers width neurons`, and with routed experts also `experts shared`, as manifest and card hold them."""
        told: dict[str, Any] = {
            "layers": len(self.dense),
            "width": short(self.widths),
            "neurons": self.neurons,
        }
        if any(self.experts):
            told |= {"experts": short(self.experts), "shared": short(self.dense)}
        return told


def short(values: Sequence[int]) -> int | list[int]:
    """One number when all are the same, else the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def spread(value: int | list[int], layers: int) -> tuple[int, ...]:
    """The inverse of `short`: a number a layer."""
    return tuple(value) if isinstance(value, list) else (value,) * layers
