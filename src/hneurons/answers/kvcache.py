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
    """A `DynamicLayer` that writes new tokens into spare room instead of copying the whole past at every token."""

    _spare: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (batch, heads, tokens, size); returns all of them."""
        if not self.is_initialized or self.keys is None or self.keys.numel() == 0:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.values is not None
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        if self._spare is None or self._spare[0].shape[-2] < end:
            self._spare = (_with_room(self.keys, end + ROOM), _with_room(self.values, end + ROOM))
        keys, values = self._spare
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep these rows."""
        self._spare = None
        super().reorder_cache(beam_idx)


def _with_room(states: Tensor, tokens: int) -> Tensor:
    room = states.new_empty((*states.shape[:-2], tokens, states.shape[-1]))
    room[..., : states.shape[-2], :] = states
    return room


def new_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this config; plain attention layers grow in place."""
    cache = DynamicCache(config=config)
    # Only the plain kind is replaced: sliding windows and recurrent states keep their own layers.
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


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
