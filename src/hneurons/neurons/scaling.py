"""Turn neurons up and down: z[j, t] <- alpha * z[j, t] for chosen neurons j and every token t.

(Gao et al. 2025, sec. 4.) Weights are never touched: hooks multiply what goes into the down projection, and come off
when the block ends, so the model is bit for bit what it was. With alpha = 1 no hook is set at all.

Routed experts have no single map to hook: what scaling adds to their output is computed and added,
(alpha - 1) * weight * W_down[:, j] z[j, t], which is exactly 0 for tokens whose alpha is 1.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from hneurons.errors import UsageError
from hneurons.models.load import StudyModel, as_study_model
from hneurons.models.moe import Call, RoutedFFN
from hneurons.models.parts import FFN
from hneurons.models.routing import probing, replaceable
from hneurons.neurons.card import Card, WeightedNeuron
from hneurons.types import NeuronId

LARGEST = 100.0
Alpha = float | Tensor
"""One factor, or one for each row of the batch: (batch,)."""


class _Dial(threading.local):
    """One `scale` block: its alpha and the rows of the batch that is running in a thread."""

    batch: int | None = None

    def __init__(self, alpha: Alpha) -> None:
        self.alpha = alpha

    def of_rows(self, rows: Tensor, total: int) -> Alpha:
        """alpha of each token of `rows`, tokens being numbered through a batch of `total`: a number or (rows,)."""
        if not isinstance(self.alpha, Tensor):
            return self.alpha
        size = len(self.alpha)
        if (self.batch is not None and self.batch != size) or total % size:
            raise UsageError(
                f"alpha has {size} entries, the batch has {self.batch or total} rows.", "Give one alpha a row."
            )
        return self.alpha.to(rows.device)[rows // (total // size)]


@dataclass(frozen=True)
class _Routed:
    """What one `scale` block does to the experts of one layer."""

    dial: _Dial
    index: dict[int, Tensor]
    """Neurons by expert."""


_active: WeakKeyDictionary[nn.Module, list[_Routed]] = WeakKeyDictionary()


def factors(module: nn.Module, expert: int, rows: Tensor, total: int, width: int) -> Tensor | None:
    """What the `scale` blocks around multiply z of an expert by: float32 (rows, width); None for nothing."""
    product: Tensor | None = None
    for entry in _active.get(module, []):
        index = entry.index.get(expert)
        if index is None:
            continue
        if product is None:
            product = torch.ones(len(rows), width, device=rows.device)
        alpha = entry.dial.of_rows(rows, total)
        product[:, index.to(rows.device)] *= alpha[:, None] if isinstance(alpha, Tensor) else alpha
    return product


@contextmanager
def scale(
    model: StudyModel | tuple[Any, Any],
    neurons: Card | Iterable[NeuronId | WeightedNeuron],
    alpha: float | Tensor,
) -> Generator[None]:
    """Multiply neurons by `alpha` in every forward pass inside the block; blocks inside blocks multiply.

    Args:
        model: the model under study, or a pair of a transformers model and its tokenizer.
        neurons: a card (its H-Neurons), or neurons.
        alpha: 0 silences, 1 changes nothing; at most 100. A tensor (batch,) gives each row of the batch its own.

    Raises:
        UsageError: a bad alpha, or a neuron that the model doesn't have.
        CardError: the card is of another model.
    """
    model = as_study_model(model)
    dial = _Dial(_checked(alpha))
    by_part = _by_part(model, neurons)
    if not isinstance(dial.alpha, Tensor) and dial.alpha == 1.0:
        yield
        return
    if isinstance(dial.alpha, Tensor) and bool((dial.alpha == 1.0).all()):
        yield
        return
    with ExitStack() as stack:
        if isinstance(dial.alpha, Tensor):
            embedding: Any = model.model.get_input_embeddings()
            stack.callback(embedding.register_forward_pre_hook(_note_batch(dial)).remove)
        for ffn, index in by_part:
            if isinstance(ffn, RoutedFFN):
                _attach_routed(stack, ffn, _Routed(dial, _by_expert(ffn, index)))
            else:
                stack.callback(ffn.down.register_forward_pre_hook(_dense_hook(dial, index)).remove)
        yield


def _checked(alpha: float | Tensor) -> Alpha:
    values = torch.as_tensor(alpha, dtype=torch.float32)
    if values.dim() > 1 or not len(values.reshape(-1)):
        raise UsageError("alpha must be a number or one number a row of the batch.", "Give a tensor (batch,).")
    if not bool(torch.isfinite(values).all()) or bool((values < 0).any()) or bool((values > LARGEST).any()):
        bad = next(v for v in values.reshape(-1).tolist() if not (math.isfinite(v) and 0 <= v <= LARGEST))
        raise UsageError(f"alpha must be between 0 and {LARGEST:g}, not {bad:g}.", "0 silences, 1 changes nothing.")
    return values.detach() if values.dim() else float(alpha)


def _by_part(model: StudyModel, neurons: Card | Iterable[NeuronId | WeightedNeuron]) -> list[tuple[FFN, Tensor]]:
    if isinstance(neurons, Card):
        neurons.check_fits(model.describe())
        neurons = neurons.h_neurons
    wanted = {neuron.id if isinstance(neuron, WeightedNeuron) else neuron for neuron in neurons}
    layout = model.layout
    for neuron in wanted:
        if not layout.has(neuron):
            raise UsageError(f"{model.name} has no neuron {neuron}.", "NeuronId is (layer, expert or None, index).")
    columns = np.sort(layout.columns(wanted))
    return [(model.ffns[position], torch.from_numpy(inside)) for position, _, inside in model.parts_with(columns)]


def _by_expert(ffn: RoutedFFN, index: Tensor) -> dict[int, Tensor]:
    experts = index // ffn.expert_width
    return {e: index[experts == e] - e * ffn.expert_width for e in experts.unique().tolist()}


def _note_batch(dial: _Dial) -> Callable[..., None]:
    def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        dial.batch = len(inputs[0]) if inputs else None

    return see


def _dense_hook(dial: _Dial, index: Tensor) -> Callable[..., tuple[Any, ...]]:
    def multiply(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        z: Tensor = inputs[0]
        flat = z.reshape(-1, z.shape[-1]).clone()
        where = index.to(z.device)
        alpha = dial.of_rows(torch.arange(len(flat), device=z.device), len(flat))
        chosen = flat[:, where]
        chosen = chosen * (alpha[:, None] if isinstance(alpha, Tensor) else alpha)
        flat[:, where] = chosen.to(z.dtype)
        return (flat.reshape(z.shape), *inputs[1:])

    return multiply


def _attach_routed(stack: ExitStack, ffn: RoutedFFN, entry: _Routed) -> None:
    entries = _active.setdefault(ffn.down, [])
    if not entries:
        # First of all hooks, so that whoever looks at the output sees it scaled.
        recorded = ffn.recorded
        target = recorded if recorded is not None else ffn.block
        assert target is not None
        hook = target.register_forward_hook(_routed_hook(ffn), with_kwargs=True, prepend=True)
        _handles[ffn.down] = hook
    stack.enter_context(replaceable(ffn.replaced()))
    entries.append(entry)
    stack.callback(_detach_routed, ffn.down, entry)


_handles: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def _detach_routed(module: nn.Module, entry: _Routed) -> None:
    entries = _active[module]
    entries[:] = [other for other in entries if other is not entry]
    if not entries:
        del _active[module]
        _handles.pop(module).remove()


def _routed_hook(ffn: RoutedFFN) -> Callable[..., Any]:
    def add(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if probing():
            return None
        # The hook is on the experts' module (its arguments say who went where), or on the mixture around a list.
        call = Call((args, named), (*args, *named.values()))
        out: Tensor = output[0] if isinstance(output, tuple) else output
        flat = out.reshape(-1, out.shape[-1]).to(torch.float32, copy=True)
        total = ffn.tokens(call)
        touched = {expert for entry in _active[ffn.down] for expert in entry.index}
        for piece in ffn.pieces(call, touched):
            factor = factors(ffn.down, piece.expert, piece.rows, total, ffn.expert_width)
            assert factor is not None
            moved = (factor != 1).any(dim=0).nonzero()[:, 0]
            weight = ffn.expert_weight(piece.expert)[:, moved].float()
            change = (piece.z[:, moved].float() * (factor[:, moved] - 1)) @ weight.T
            flat.index_add_(0, ffn.output_rows(piece, total), change * piece.weight.float()[:, None])
        result = flat.to(out.dtype).reshape(out.shape)
        return (result, *output[1:]) if isinstance(output, tuple) else result

    return add
