"""Find the feed-forward layers (FFN) of a decoder, dense or mixture of experts.

The search goes by structure, not by the names of modules (structure.py has the rules). Only the language decoder is
searched, so that a vision tower's FFNs are never touched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from hneurons.errors import UnsupportedModelError
from hneurons.layout import Layout
from hneurons.models.experts import find_routed
from hneurons.models.moe import RoutedFFN
from hneurons.models.parts import FFN
from hneurons.models.routing import container
from hneurons.models.structure import Candidate, decoder_layers, dense_candidates, hidden_size, layer_of
from hneurons.models.weights import linear_shape


def find_ffns(model: nn.Module, override: str | None = None) -> list[FFN]:
    """The parts of every decoder layer that has feed-forward neurons: by depth, dense parts before routed ones.

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
        found += _parts(model, index, f"{path}.{index}", layer, residual)
    _refuse_lost_experts(model, stack, found)
    if not found:
        raise _nothing_found(model, path, stack)
    return found


def _nothing_found(model: nn.Module, path: str, stack: nn.ModuleList) -> UnsupportedModelError:
    linears = [name for name, module in stack[0].named_modules() if linear_shape(module)]
    # Attention and state-space mixers have linear maps too, but no neurons.
    guesses = [name for name in linears if not any(word in name for word in ("att", "mamba", "mixer", "proj_", "gate"))]
    remedy = "A model of mixers alone has no such neurons; if it has some, name their down projections with --ffn."
    if guesses:
        remedy = f"Name the down projections, e.g. --ffn '{path}.*.{guesses[-1]}'."
    return UnsupportedModelError(
        f"No feed-forward layer that the locator knows in {type(model).__name__}; the linear maps of layer 0 are: "
        f"{', '.join(linears) or 'none'}.",
        remedy,
    )


def layout_of(model: nn.Module, ffns: Sequence[FFN]) -> Layout:
    """Neurons of every decoder layer, also of those that have none."""
    try:
        layers = len(decoder_layers(model)[1])
    except UnsupportedModelError:
        layers = 0  # an override named FFNs outside any list of layers
    layers = max(layers, *(ffn.layer + 1 for ffn in ffns))
    dense, experts, width = [0] * layers, [0] * layers, [0] * layers
    for ffn in ffns:
        if isinstance(ffn, RoutedFFN):
            experts[ffn.layer], width[ffn.layer] = ffn.experts, ffn.expert_width
        else:
            dense[ffn.layer] = ffn.width
    return Layout(tuple(dense), tuple(experts), tuple(width))


def _parts(model: nn.Module, index: int, path: str, layer: nn.Module, residual: int) -> list[FFN]:
    routed = find_routed(index, path, layer, residual)
    dense = dense_candidates(layer, residual, skip=[part.down for part in routed])
    if routed:
        return _mixture(model, index, path, layer, routed, dense)
    if len(dense) > 1:
        raise UnsupportedModelError(
            f"Layer {index} of {type(model).__name__} has {len(dense)} modules that look like a down projection "
            f"({', '.join(candidate.name for candidate in dense[:3])}).",
            f"Name the right ones, e.g. --ffn '{path.removesuffix(str(index))}*.{dense[0].name}'.",
        )
    return [FFN(index, f"{path}.{c.name}", c.module, c.width, residual) for c in dense]


def _mixture(
    model: nn.Module, index: int, path: str, layer: nn.Module, routed: list[RoutedFFN], dense: list[Candidate]
) -> list[FFN]:
    """Routed experts with what runs beside them.

    A dense part inside the mixture's module is its shared expert. One beside it in the decoder layer is added to its
    output when it is named as shared (Granite); otherwise both are layers of their own, each with its own h (Gemma 4
    normalises the two separately before it adds them).
    """
    if len(routed) > 1 or len(dense) > 1:
        names = [part.path.removeprefix(f"{path}.") for part in routed] + [candidate.name for candidate in dense]
        raise UnsupportedModelError(
            f"Layer {index} of {type(model).__name__} has several feed-forward parts that can't be told apart: "
            f"{', '.join(names)}.",
            "Mixtures with one list of experts and at most one shared expert are supported.",
        )
    part, found = routed[0], list[FFN]()
    assert part.block is not None
    inside = {id(module) for module in part.block.modules()}
    blocks: tuple[nn.Module, ...] = (part.block,)
    beside: list[nn.Module] = []
    for candidate in dense:
        where = f"{path}.{candidate.name}"
        if id(candidate.module) in inside:
            found.append(FFN(index, where, candidate.module, candidate.width, part.hidden, part.block, blocks))
            beside.append(container(part.block, candidate.module))
        elif "shared" in candidate.name:
            own = layer.get_submodule(candidate.name.rpartition(".")[0])
            blocks = (part.block, own)
            found.append(FFN(index, where, candidate.module, candidate.width, part.hidden, own, blocks))
        else:
            found.append(FFN(index, where, candidate.module, candidate.width, part.hidden))
    return [*found, part.within(blocks, tuple(beside))]


def _refuse_lost_experts(model: nn.Module, stack: nn.ModuleList, found: list[FFN]) -> None:
    """Dense neurons beside experts that the locator doesn't see would be a silent half of the truth."""
    if any(isinstance(ffn, RoutedFFN) for ffn in found):
        return
    names = {type(module).__name__ for module in stack.modules()}
    lost = sorted(name for name in names if "Expert" in name or "MoE" in name)
    if lost:
        raise UnsupportedModelError(
            f"{type(model).__name__} has experts that the locator doesn't know ({', '.join(lost[:4])}).",
            "docs/add-a-model.md says how to add them.",
        )


def _override(model: nn.Module, pattern: str) -> list[FFN]:
    found: dict[int, FFN] = {}
    residual = hidden_size(model)
    for path, module in model.named_modules():
        shape = linear_shape(module)
        if not shape or not fnmatch.fnmatchcase(path, pattern):
            continue
        layer = layer_of(model, path)
        if layer is None:
            raise UnsupportedModelError(
                f"--ffn {pattern!r} matches {path}, which is outside the language decoder's layers.",
                f"Those are {decoder_layers(model)[0]}.*; narrow the pattern.",
            )
        if shape[1] != residual:
            raise UnsupportedModelError(
                f"--ffn {pattern!r} matches {path}, which maps {shape[0]} to {shape[1]} numbers; a down projection "
                f"of {type(model).__name__} ends in {residual}.",
                "Name the last map of the feed-forward layer.",
            )
        if layer in found:
            raise UnsupportedModelError(
                f"--ffn {pattern!r} matches {found[layer].path} and {path} in layer {layer}.",
                "Narrow the pattern to one down projection a layer.",
            )
        found[layer] = FFN(layer, path, module, *shape)
    if not found:
        raise UnsupportedModelError(
            f"No linear module of {type(model).__name__} matches --ffn {pattern!r}.",
            "Print the model to see its module paths.",
        )
    return [found[layer] for layer in sorted(found)]
