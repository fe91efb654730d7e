"""A key-value cache for sampling: forked from a prefill, grown in place, rows taken out as they finish."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

ROOM = 32  # tokens of space a layer is given each time it has to grow


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` that writes new tokens and rows into spare room instead of copying the whole past each time."""

    _spare: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, heads, tokens, size); returns all of them."""
        if not self.is_initialized or self.keys is None or self.keys.numel() == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        rows, start = self.keys.shape[0], self.keys.shape[-2]
        end = start + key_states.shape[-2]
        keys, values = self._room(rows, end)
        keys[:rows, :, start:end] = key_states
        values[:rows, :, start:end] = value_states
        self.keys, self.values = keys[:rows, :, :end], values[:rows, :, :end]
        return self.keys, self.values

    def add_rows(self, parents: Tensor) -> None:
        """Append copies of these rows."""
        assert self.keys is not None
        rows, end = self.keys.shape[0], self.keys.shape[-2]
        more = rows + len(parents)
        keys, values = self._room(more, end)
        keys[rows:more, :, :end] = keys[parents, :, :end]
        values[rows:more, :, :end] = values[parents, :, :end]
        self.keys, self.values = keys[:more, :, :end], values[:more, :, :end]

    def lend(self, keys: Tensor, values: Tensor) -> None:
        """Grow into this room, whose beginning is the present keys and values."""
        self._spare = keys, values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows."""
        self._spare = None
        super().reorder_cache(beam_idx)

    def _room(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values with space for so many rows and tokens, holding what is there."""
        assert self.keys is not None
        assert self.values is not None
        spare = self._spare
        if spare is None or spare[0].shape[0] < rows or spare[0].shape[-2] < tokens:
            have = (0, 0) if spare is None else (spare[0].shape[0], spare[0].shape[-2])
            # Half more rows than needed now: rows come one by one as samples part.
            rows = have[0] if rows <= have[0] else rows if rows == self.keys.shape[0] else rows + rows // 2
            tokens = have[1] if tokens <= have[1] else tokens + ROOM
            self._spare = spare = (_with_room(self.keys, rows, tokens), _with_room(self.values, rows, tokens))
        return spare


class PrefixLayer(DynamicLayer):
    """Keys and values of one row that every row of a batch begins with. What a pass adds isn't kept."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix, then these (batch, heads, tokens, size)."""
        assert self.keys is not None
        assert self.values is not None
        rows = (len(key_states), -1, -1, -1)
        keys = torch.cat([self.keys.expand(rows), key_states], dim=-2)
        return keys, torch.cat([self.values.expand(rows), value_states], dim=-2)


def as_prefix(cache: DynamicCache) -> DynamicCache:
    """A cache of one row as what any number of rows begin with; passes may use it side by side."""
    made = copy.copy(cache)
    made.layers = []
    for layer in cache.layers:
        assert type(layer) is GrowingLayer
        assert layer.keys is not None
        prefix = PrefixLayer()
        prefix.lazy_initialization(layer.keys, layer.keys)
        prefix.keys, prefix.values = layer.keys, layer.values
        made.layers.append(prefix)
    return made


def _with_room(states: Tensor, rows: int, tokens: int) -> Tensor:
    room = states.new_empty((rows, states.shape[1], tokens, states.shape[-1]))
    room[: states.shape[0], :, : states.shape[-2]] = states
    return room


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this config; plain attention layers grow in place."""
    cache = DynamicCache(config=config)
    # Only the plain kind is replaced: sliding windows and recurrent states keep their own layers.
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def merged(parts: list[tuple[DynamicCache, Tensor]], tokens: int) -> DynamicCache:
    """A new cache of some rows of several, one after the other, with room to grow.

    Args:
        parts: caches whose layers are all `GrowingLayer`, each with the rows to take.
        tokens: of the new cache: those at the end of each are kept, shorter ones get zeros before them, to be masked.
    """
    made = copy.copy(parts[0][0])
    made.layers = []
    for number in range(len(parts[0][0].layers)):
        layers: list[tuple[Any, Tensor]] = [(cache.layers[number], rows) for cache, rows in parts]
        new = GrowingLayer()
        keys, values = (
            _stacked([(getattr(x, name), rows) for x, rows in layers], tokens) for name in ("keys", "values")
        )
        new.lazy_initialization(keys, values)
        new.keys, new.values = keys[:, :, :tokens], values[:, :, :tokens]
        new.lend(keys, values)
        made.layers.append(new)
    return made


def aligned(masks: list[Tensor]) -> Tensor:
    """Masks one above the other, right-aligned, without columns before the first token of any row."""
    width = max(mask.shape[1] for mask in masks)
    both = torch.cat([torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
    return both[:, int(both.any(dim=0).long().argmax()) :]


def _stacked(parts: list[tuple[Tensor, Tensor]], tokens: int) -> Tensor:
    like = parts[0][0]
    count = sum(len(rows) for _, rows in parts)
    room = like.new_empty((count, like.shape[1], tokens + ROOM, like.shape[-1]))
    start = 0
    for states, rows in parts:
        own, length = room[start : start + len(rows)], min(tokens, states.shape[-2])
        # Not left as they are: what is masked still meets a weight of 0, and 0 * NaN is NaN.
        own[:, :, : tokens - length] = 0
        own[:, :, tokens - length : tokens] = states[rows, :, states.shape[-2] - length :]
        start += len(rows)
    return room


def is_recurrent(cache: DynamicCache) -> bool:
    """Whether some layers keep a state that runs through all tokens, padding included, instead of keys and values."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def allows_gaps(config: Any, cache: DynamicCache) -> bool:
    """Whether padding between the tokens of a prompt changes nothing but the mask.

    Not with a sliding window, which would count it, nor with a recurrent state, nor with ALiBi, which measures
    distances in slots of the cache.
    """
    text: Any = config.get_text_config(decoder=True)
    attention: Any = getattr(text, "attn_config", None)
    linear_bias = getattr(text, "alibi", False) or getattr(attention, "alibi", False)
    return all(type(layer) is GrowingLayer for layer in cache.layers) and not linear_bias


def select(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of `cache`; rows may repeat."""
    # Not batch_select_indices: the layers of hybrids lack it, or leave their recurrent states behind.
    cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType]


def add_rows(cache: DynamicCache, parents: Tensor, rows: int) -> None:
    """Append copies of the rows `parents` to a cache of `rows` rows."""
    if all(type(layer) is GrowingLayer for layer in cache.layers):
        for layer in cache.layers:
            assert isinstance(layer, GrowingLayer)
            layer.add_rows(parents)
    else:
        select(cache, torch.cat([torch.arange(rows, device=parents.device), parents]))


def fork(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A new cache that holds these rows of `cache`, which stays as it is; rows may repeat."""
    made = copy.copy(cache)
    # Selecting rebinds a plain layer's tensors, so a shallow copy protects them; other kinds may work in place.
    shallow = [isinstance(x, DynamicLayer) and not isinstance(x, LinearAttentionCacheLayerMixin) for x in cache.layers]
    made.layers = [copy.copy(x) if plain else copy.deepcopy(x) for x, plain in zip(cache.layers, shallow, strict=True)]
    select(made, rows)
    return made


def common_prefix(sequences: list[tuple[int, ...]]) -> int:
    """Number of leading tokens that all sequences share, at least one token of each left over."""
    shortest = min(len(sequence) for sequence in sequences)
    first = sequences[0]
    for position in range(shortest - 1):
        if any(sequence[position] != first[position] for sequence in sequences):
            return position
    return max(shortest - 1, 0)


def padded(sequences: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded ids and attention mask: both (rows, longest)."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.zeros((len(sequences), longest), dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = torch.tensor(sequence)
        mask[row, longest - len(sequence) :] = 1
    return ids.to(device), mask.to(device)
