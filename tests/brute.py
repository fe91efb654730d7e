"""CETT the slow way: take one neuron's column out of the weights, run the feed-forward block again, see what is lost.

Shares nothing with the package but the names of the neurons.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import architectures
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage
from hneurons.types import NeuronId

Calls = dict[str, tuple[tuple[Any, ...], dict[str, Any]]]


def passages(seed: int = 0, vocabulary: int = architectures.VOCABULARY) -> list[Passage]:
    """Three passages of different length."""
    rng = np.random.default_rng(seed)
    shapes = [(5, 6, (0, 2)), (9, 7, (2, 5)), (3, 4, (3, 4))]
    return [
        Passage(f"q{i}", tuple(rng.integers(3, vocabulary, prompt + response).tolist()), prompt, answer)
        for i, (prompt, response, answer) in enumerate(shapes)
    ]


def double(model: nn.Module) -> Any:
    """A copy in float64 that runs its experts one after the other."""
    twin = copy.deepcopy(model)
    architectures.cast(twin, torch.float64)
    for module in twin.modules():
        if hasattr(module, "config") and hasattr(module.config, "_experts_implementation"):
            module.config._experts_implementation = "eager"
    return twin


def record(model: nn.Module, paths: list[str], ids: tuple[int, ...]) -> Calls:
    """What the modules of those paths are called with."""
    seen: Calls = {}

    def hook(path: str) -> Any:
        def see(_: nn.Module, args: Any, named: Any, __: Any) -> None:
            seen[path] = (args, named)

        return see

    handles = [model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


def widened(value: Any) -> Any:
    """The same with floating-point tensors in float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, tuple):
        return tuple(widened(item) for item in value)
    return {key: widened(item) for key, item in value.items()} if isinstance(value, dict) else value


def run(model: nn.Module, path: str, calls: Calls) -> Tensor:
    """Output of a block on what it was called with: (tokens, hidden)."""
    args, named = widened(calls[path][0]), widened(calls[path][1])
    with torch.no_grad():
        output: Any = model.get_submodule(path)(*args, **named)
    output = output[0] if isinstance(output, tuple) else output
    return output.reshape(-1, output.shape[-1])


def column(model: nn.Module, study: StudyModel, neuron: NeuronId) -> Tensor:
    """The weights that a neuron writes with, as a view into `model`."""
    routed = neuron.expert is not None
    ffn = next(f for f in study.ffns if f.layer == neuron.layer and hasattr(f, "experts") == routed)
    module: Any = model.get_submodule(ffn.path)
    if isinstance(module, nn.ModuleList):
        return module[neuron.expert].down_proj.weight[:, neuron.index]
    if routed:
        down = module.down_proj[neuron.expert]
        return down[:, neuron.index] if down.shape[0] == ffn.hidden else down[neuron.index]
    return module.weight[neuron.index] if isinstance(module, Conv1D) else module.weight[:, neuron.index]


@contextmanager
def edited(model: nn.Module, study: StudyModel, neurons: list[NeuronId], factor: float) -> Iterator[None]:
    """The weights of those neurons times `factor`, put back afterwards."""
    views = [column(model, study, neuron) for neuron in neurons]
    before = [view.clone() for view in views]
    with torch.no_grad():
        for view in views:
            view.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for view, old in zip(views, before, strict=True):
                view.copy_(old)


def contributions(study: StudyModel, row: architectures.Row, passage: Passage) -> np.ndarray:
    """CETT of every neuron and token: (tokens, neurons), from the blocks that the table names."""
    twin = double(study.model)
    out = np.zeros((len(passage.ids), study.neurons))
    names = [name.format(layer) for name in row.blocks for layer in range(len(row.widths))]
    names = [name for name in names if row.widths[_layer(name)] and _there(twin, name)]
    # In float64 the twin computes its own inputs; in a narrow type the block gets what the model really fed it.
    narrow = study.model.dtype in (torch.bfloat16, torch.float16)
    calls = record(study.model if narrow else twin, names, passage.ids)
    for neuron, place in zip(study.layout.ids(range(study.neurons)), range(study.neurons), strict=True):
        mine = [name for name in names if _layer(name) == neuron.layer]
        if row.separate:
            mine = [name for name in mine if ("experts" in name) == (neuron.expert is not None)]
        key = tuple(mine)
        whole = _WHOLE.setdefault((id(twin), key), sum(run(twin, name, calls) for name in mine))
        with edited(twin, study, [neuron], 0.0):
            without = sum(run(twin, name, calls) for name in mine)
        out[:, place] = ((whole - without).norm(dim=-1) / whole.norm(dim=-1)).numpy()
    _WHOLE.clear()
    return out


_WHOLE: dict[tuple[int, tuple[str, ...]], Any] = {}


def _layer(path: str) -> int:
    return next(int(part) for part in path.split(".") if part.isdigit())


def _there(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True
