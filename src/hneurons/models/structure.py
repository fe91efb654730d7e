"""What a feed-forward layer looks like from outside: the rules by which the locator finds one.

A down projection is a linear map from the intermediate width m to the hidden size d whose sibling modules are
exactly its own inputs: one or two maps d -> m (up, gate), or one fused map d -> 2m. Attention fails this test (query,
key, value beside the output), as do convolution and state-space mixers (one input map of another width, or modules
with weights of their own beside the linear maps).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from hneurons.errors import UnsupportedModelError
from hneurons.models.weights import linear_shape


@dataclass(frozen=True)
class Candidate:
    """A module that looks like a down projection."""

    name: str
    """Path inside the layer."""
    module: nn.Module
    width: int
    parent: nn.Module


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The language decoder's stack of layers and its path.

    Raises:
        UnsupportedModelError: there is no such stack.
    """
    decoder = _decoder(model)
    lists = [(name, module) for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)]
    # The stack is an outermost list: experts and the like are lists inside its members.
    lists = [(n, m) for n, m in lists if not any(n.startswith(other + ".") for other, _ in lists if other != n)]
    config: Any = getattr(model, "config", None)
    depth = getattr(_text_config(config), "num_hidden_layers", None) if config is not None else None
    exact = [(n, m) for n, m in lists if len(m) == depth]
    if not lists:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no stack of decoder layers that the locator knows.",
            "Name its down projections, e.g. --ffn 'model.layers.*.mlp.down_proj'.",
        )
    # Lists of norms or of per-layer gates may be as long: the stack is where the weights are.
    name, stack = max(exact or lists, key=lambda item: (len(item[1]), sum(p.numel() for p in item[1].parameters())))
    prefix = next((path for path, module in model.named_modules() if module is decoder), "")
    return ".".join(part for part in (prefix, name) if part), stack


def layer_of(model: nn.Module, path: str) -> int | None:
    """The decoder layer that a module path lies in; None outside. Without a known stack, the path's first number."""
    try:
        stack = decoder_layers(model)[0] + "."
    except UnsupportedModelError:
        return next((int(part) for part in path.split(".") if part.isdigit()), 0)
    return int(path.removeprefix(stack).split(".")[0]) if path.startswith(stack) else None


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream of the language decoder."""
    config: Any = model.config
    return int(_text_config(config).hidden_size)


def _text_config(config: Any) -> Any:
    getter = getattr(config, "get_text_config", None)
    return getter(decoder=True) if callable(getter) else config


def _decoder(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_decoder", None)
    decoder: Any = getter() if callable(getter) else None
    if not isinstance(decoder, nn.Module) or decoder is model:
        decoder = getattr(model, "base_model", model)
    return decoder if isinstance(decoder, nn.Module) else model


def dense_candidates(layer: nn.Module, residual: int, skip: Iterable[nn.Module] = ()) -> list[Candidate]:
    """Modules of a decoder layer that look like the down projection of a dense FFN, outside of `skip`."""
    hidden = {id(module) for part in skip for module in part.modules()}
    found = [c for c in _candidates(layer, residual) if id(c.module) not in hidden]
    # A pair of maps that lies in the decoder layer itself is its FFN only when no module of it holds one (OPT);
    # beside one it is something else (the per-layer gates of Gemma 3n and 4).
    found = [c for c in found if c.parent is not layer] or found
    # A low-rank side branch without an activation (LAuReL) is linear and has no neurons.
    return [c for c in found if _has_activation(c.parent)] or found if len(found) > 1 else found


def _candidates(layer: nn.Module, residual: int) -> Iterator[Candidate]:
    for parent_name, parent in layer.named_modules():
        children = dict(parent.named_children())
        shapes = {name: shape for name, child in children.items() if (shape := linear_shape(child))}
        if parent is not layer and (_is_attention(parent) or _has_other_weights(parent, set(shapes))):
            continue
        for name, (width, hidden) in shapes.items():
            siblings = [shape for other, shape in shapes.items() if other != name]
            plain = 1 <= len(siblings) <= 2 and all(shape == (hidden, width) for shape in siblings)
            fused = siblings == [(hidden, 2 * width)]
            # Where m = d, up and down have one shape: the down projection is registered last.
            last = width != hidden or name == list(shapes)[-1]
            if hidden == residual and (plain or fused) and last:
                path = f"{parent_name}.{name}" if parent_name else name
                yield Candidate(path, children[name], width, parent)


def _is_attention(module: nn.Module) -> bool:
    # Grouped attention may fuse query, key and value into d -> 2d, the shape of a fused gate and up.
    marks = ("head_dim", "num_heads", "num_attention_heads")
    return "Attention" in type(module).__name__ or any(hasattr(module, mark) for mark in marks)


def _has_other_weights(module: nn.Module, linears: set[str]) -> bool:
    """Whether matrices lie beside the linear maps: a convolution, a recurrence, a table of experts."""
    others = [child for name, child in module.named_children() if name not in linears]
    matrices = [p for child in others for p in child.parameters() if p.dim() > 1]
    return bool(matrices) or any(p.dim() > 1 for p in module.parameters(recurse=False))


def _has_activation(parent: nn.Module) -> bool:
    passive = (nn.Dropout, nn.Identity, nn.LayerNorm)
    return any(
        not linear_shape(child) and not isinstance(child, passive) and not any(True for _ in child.parameters())
        for child in parent.children()
    )


def backbone(model: nn.Module) -> nn.Module:
    """The model without its LM head, whose cost grows with the vocabulary."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model
