"""Find the feed-forward layers (FFN) of a decoder by their structure, not by the names of their modules.

A down projection is a linear map from the intermediate width m to the hidden size d whose sibling modules are
exactly its own inputs: one or two maps d -> m (up, gate), or one fused map d -> 2m. Attention fails this test (query,
key, value beside the output), as do convolution and state-space mixers (one input map of another width).
Only the language decoder is searched, so that a vision tower's FFNs are never touched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hneurons.errors import UnsupportedModelError


@dataclass(frozen=True)
class FFN:
    """One feed-forward layer: z (tokens x width) goes into `down`, h (tokens x hidden) comes out."""

    layer: int
    """Index of the decoder layer."""
    path: str
    """Module path of the down projection in the model."""
    down: nn.Module
    width: int
    """Number of neurons, m."""
    hidden: int
    """Size of the residual stream, d."""

    def weight(self) -> Tensor:
        """W_down as (hidden, width), whatever way the module stores it."""
        weight = self.down.weight
        assert isinstance(weight, Tensor)
        return weight.T if isinstance(self.down, Conv1D) else weight

    def column_norms(self) -> Tensor:
        """||W_down[:, j]||_2 of every neuron j, float32 (width,)."""
        return torch.linalg.vector_norm(self.weight().detach().float(), dim=0)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int) and hasattr(module, "weight"):
        return inputs, outputs
    return None


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The language decoder's stack of layers and its path.

    Raises:
        UnsupportedModelError: there is no such stack.
    """
    decoder = _decoder(model)
    lists = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    # The stack is the outermost list: experts and the like are lists inside its members.
    lists = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists if other != n)]
    if not lists:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stack of decoder layers that the locator knows.",
            "Name its down projections, e.g. --ffn 'model.layers.*.mlp.down_proj'.",
        )
    name, stack = max(lists, key=lambda item: len(item[1]))
    prefix = next((path for path, module in model.named_modules() if module is decoder), "")
    return ".".join(part for part in (prefix, name) if part), stack


def _decoder(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_decoder", None)
    decoder: Any = getter() if callable(getter) else None
    if not isinstance(decoder, nn.Module) or decoder is model:
        decoder = getattr(model, "base_model", model)
    return decoder if isinstance(decoder, nn.Module) else model


def find_ffns(model: nn.Module, override: str | None = None) -> list[FFN]:
    """The FFN of every decoder layer that has one, in order of depth.

    Args:
        model: a causal language model.
        override: path pattern of the down projections (`*` stands for the layer number), when the structure
            is one the locator doesn't know.

    Raises:
        UnsupportedModelError: nothing was found, or more than one candidate in a layer; names what was seen.
    """
    if override is not None:
        return _override(model, override)
    path, stack = decoder_layers(model)
    residual = hidden_size(model)
    found: list[FFN] = []
    for index, layer in enumerate(stack):
        candidates = list(_candidates(layer, residual))
        if len(candidates) > 1:
            raise UnsupportedModelError(
                f"Layer {index} of {type(model).__name__} has {len(candidates)} modules that look like a down "
                f"projection ({', '.join(name for name, *_ in candidates[:3])}).",
                f"Name the right ones, e.g. --ffn '{path}.*.{candidates[0][0]}'.",
            )
        for name, module, width, hidden in candidates:
            found.append(FFN(index, f"{path}.{index}.{name}", module, width, hidden))
    if not found:
        linears = [name for name, module in stack[0].named_modules() if linear_shape(module)]
        raise UnsupportedModelError(
            f"No feed-forward layer that the locator knows in {type(model).__name__}; the linear maps of layer 0 "
            f"are: {', '.join(linears) or 'none'}.",
            f"Name the down projections, e.g. --ffn '{path}.*.{linears[-1] if linears else 'mlp.down_proj'}'.",
        )
    return found


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream of the language decoder."""
    config: Any = model.config
    return int(config.get_text_config(decoder=True).hidden_size)


def _candidates(layer: nn.Module, residual: int) -> Iterator[tuple[str, nn.Module, int, int]]:
    for parent_name, parent in layer.named_modules():
        children = dict(parent.named_children())
        shapes = {name: shape for name, child in children.items() if (shape := linear_shape(child))}
        for name, (width, hidden) in shapes.items():
            siblings = [shape for other, shape in shapes.items() if other != name]
            plain = 1 <= len(siblings) <= 2 and all(shape == (hidden, width) for shape in siblings)
            fused = siblings == [(hidden, 2 * width)]
            # Where m = d, up and down have one shape: the down projection is registered last.
            last = width != hidden or name == list(shapes)[-1]
            if hidden == residual and (plain or fused) and last:
                yield (f"{parent_name}.{name}" if parent_name else name), children[name], width, hidden


def _override(model: nn.Module, pattern: str) -> list[FFN]:
    found: list[FFN] = []
    for path, module in model.named_modules():
        shape = linear_shape(module)
        if shape and fnmatch.fnmatchcase(path, pattern):
            numbers = [int(part) for part in path.split(".") if part.isdigit()]
            found.append(FFN(numbers[0] if numbers else len(found), path, module, *shape))
    if not found:
        raise UnsupportedModelError(
            f"No linear module of {type(model).__name__} matches --ffn {pattern!r}.",
            "Print the model to see its module paths.",
        )
    return sorted(found, key=lambda ffn: ffn.layer)
