"""The ways in which architectures hold their routed experts, and how to find them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hneurons.errors import UnsupportedModelError
from hneurons.models.moe import Call, Piece, RoutedFFN
from hneurons.models.routing import measure, replaceable, replaced
from hneurons.models.structure import dense_candidates
from hneurons.models.weights import dequantised, linear_bias, linear_weight, onloaded


@dataclass(frozen=True)
class PackedFFN(RoutedFFN):
    """Experts in three-dimensional parameters, called with (hidden states, expert numbers, routing weights)."""

    transposed: bool = False
    """down_proj is (experts, expert_width, hidden), not (experts, hidden, expert_width)."""

    @property
    def recorded(self) -> nn.Module:
        """The module with the parameters."""
        return self.down

    def pieces(self, call: Call, only: Collection[int] | None = None) -> Iterator[Piece]:
        """See `RoutedFFN.pieces`."""
        hidden, index, weights = call.args[:3]
        with onloaded(self.down):
            for expert in _sent(index, self.experts, only):
                rows, slot = torch.where(index == expert)
                weight = weights[rows, slot]
                if call.after is not None:
                    weight = weight * call.after[rows]
                yield Piece(expert, rows, weight, self._activate(expert, hidden[rows]))

    def _activate(self, expert: int, hidden: Tensor) -> Tensor:
        module: Any = self.down
        gated = hasattr(module, "gate_up_proj")
        name = "gate_up_proj" if gated else "up_proj"
        bias = getattr(module, f"{name}_bias", None)
        matrix = getattr(module, name)[expert]
        z = hidden @ matrix if self.transposed else F.linear(hidden, matrix)
        if bias is not None:
            z = z + bias[expert]
        if not gated:
            return module.act_fn(z)
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(z)
        gate, up = z.chunk(2, dim=-1)
        return module.act_fn(gate) * up

    def expert_weight(self, expert: int) -> Tensor:
        """See `RoutedFFN.expert_weight`."""
        with onloaded(self.down):
            down: Any = self.down.down_proj
            weight = dequantised(down[expert].detach())
            return weight.T if self.transposed else weight

    def expert_bias(self, expert: int) -> Tensor | None:
        """See `RoutedFFN.expert_bias`."""
        with onloaded(self.down):
            bias: Any = getattr(self.down, "down_proj_bias", None)
            return None if bias is None else bias[expert].detach()

    def stubs(self) -> list[tuple[nn.Module, int]]:
        """See `RoutedFFN.stubs`."""
        return [(self.down, 1)]


@dataclass(frozen=True)
class SortedFFN(PackedFFN):
    """Llama 4: every expert sees every token, times its router score, which is 0 for tokens not sent to it.

    The score is on the input, so z holds it already and what comes out of the experts is added as it is.
    """

    def pieces(self, call: Call, only: Collection[int] | None = None) -> Iterator[Piece]:
        """See `RoutedFFN.pieces`."""
        hidden: Tensor = call.args[0].view(self.experts, -1, self.hidden)
        with onloaded(self.down):
            for expert in range(self.experts) if only is None else sorted(only):
                rows = hidden[expert].ne(0).any(dim=-1).nonzero()[:, 0]
                if len(rows):
                    weight = hidden.new_ones(len(rows)) if call.after is None else call.after[rows]
                    yield Piece(expert, rows, weight, self._activate(expert, hidden[expert, rows]))

    def stubs(self) -> list[tuple[nn.Module, int]]:
        """See `RoutedFFN.stubs`."""
        return [(self.down, self.experts)]

    def tokens(self, call: Call) -> int:
        """See `RoutedFFN.tokens`; the call here is that of the experts, which get every token once each."""
        return len(call.hidden) // self.experts

    def output_rows(self, piece: Piece, tokens: int) -> Tensor:
        """See `RoutedFFN.output_rows`."""
        return piece.expert * tokens + piece.rows


@dataclass(frozen=True)
class ListedFFN(RoutedFFN):
    """Experts that are modules of their own in a list; `downs` are their down projections."""

    members: tuple[nn.Module, ...] = ()
    downs: tuple[nn.Module, ...] = ()

    @property
    def recorded(self) -> None:
        """Nothing: the routing is measured."""
        return

    def pieces(self, call: Call, only: Collection[int] | None = None) -> Iterator[Piece]:
        """See `RoutedFFN.pieces`."""
        assert self.block is not None
        weights = measure(self.block, self.members, call.block, silent=self.beside)
        for expert in range(self.experts) if only is None else sorted(only):
            rows = weights[expert].nonzero()[:, 0]
            if len(rows):
                yield Piece(expert, rows, weights[expert][rows], self._activate(expert, call.hidden[rows]))

    def _activate(self, expert: int, hidden: Tensor) -> Tensor:
        down, seen = self.downs[expert], list[Tensor]()

        def note(z: Tensor) -> Tensor:
            seen.append(z)
            return z.new_zeros(*z.shape[:-1], self.hidden)

        with replaceable([down]), replaced({down: note}):
            self.members[expert](hidden)
        return seen[0]

    def expert_weight(self, expert: int) -> Tensor:
        """See `RoutedFFN.expert_weight`."""
        return linear_weight(self.downs[expert])

    def expert_bias(self, expert: int) -> Tensor | None:
        """See `RoutedFFN.expert_bias`."""
        return linear_bias(self.downs[expert])

    def stubs(self) -> list[tuple[nn.Module, int]]:
        """None: `pieces` measures each expert's weight, whatever the mixture does after it included."""
        return []

    def silenced(self) -> tuple[nn.Module, ...]:
        """See `RoutedFFN.silenced`."""
        return self.members

    def replaced(self) -> tuple[nn.Module, ...]:
        """See `RoutedFFN.replaced`."""
        return (*super().replaced(), *self.downs)


def find_routed(index: int, path: str, layer: nn.Module, residual: int) -> list[RoutedFFN]:
    """The routed experts of a decoder layer.

    Raises:
        UnsupportedModelError: there are some whose neurons can't be measured; says why.
    """
    found: list[RoutedFFN] = []
    for name, module in layer.named_modules():
        parent = layer.get_submodule(name.rpartition(".")[0])
        # Experts that lie in the decoder layer itself have no mixture around them: their own output is h.
        block = module if parent is layer else parent
        if _is_packed(module):
            found.append(_packed(index, f"{path}.{name}", module, block, residual))
        elif isinstance(module, nn.ModuleList) and len(module) > 1 and parent is not layer:
            downs = [dense_candidates(member, residual) for member in module]
            widths = {down[0].width for down in downs if len(down) == 1}
            if len(widths) == 1 and all(len(down) == 1 for down in downs):
                count, width = len(module), widths.pop()
                own = tuple(down[0].module for down in downs)
                listed = ListedFFN(
                    index, f"{path}.{name}", module, count * width, residual, block, (block,), count, width,
                    members=tuple(module), downs=own,
                )  # fmt: skip
                found.append(listed)
    return found


def _is_packed(module: nn.Module) -> bool:
    shapes = {name: p.dim() for name, p in module.named_parameters(recurse=False)}
    return shapes.get("down_proj") == 3 and 3 in (shapes.get("gate_up_proj"), shapes.get("up_proj"))


def _packed(index: int, path: str, module: nn.Module, block: nn.Module, residual: int) -> PackedFFN:
    down: Any = module.down_proj
    count, *shape = down.shape
    # Where expert_width = hidden, only the module's own word tells the two layouts apart.
    transposed = bool(getattr(module, "is_transposed", shape[0] != residual))
    width, hidden = shape if transposed else reversed(shape)
    name = type(module).__name__
    if getattr(module, "has_post_expert_norm", False):
        raise UnsupportedModelError(
            f"{name} normalises each expert's output before it is weighted, so that a neuron has no share of its own.",
            "Measure another model of the family; docs/support-matrix.md lists what works.",
        )
    if hidden != residual:
        raise UnsupportedModelError(
            f"{name} writes into a space of {hidden} numbers, not into the residual stream of {residual}: what a "
            "neuron adds there depends on the projection after it.",
            "Measure another model of the family; docs/support-matrix.md lists what works.",
        )
    if not down.is_floating_point() or down.dtype.itemsize < 2:
        raise UnsupportedModelError(
            f"The experts of {name} are quantised ({str(down.dtype).removeprefix('torch.')}).",
            "Load the model dequantised, e.g. from a bfloat16 checkpoint.",
        )
    kind = SortedFFN if name == "Llama4TextExperts" else PackedFFN
    # Llama 4's class doesn't say so, but stores its matrices the other way round.
    transposed = transposed or kind is SortedFFN
    return kind(index, path, module, count * width, hidden, block, (block,), count, width, transposed=transposed)


def _sent(index: Tensor, experts: int, only: Collection[int] | None) -> list[int]:
    """Experts that a token was sent to. Numbers past the last one stand for no expert (expert parallelism)."""
    wanted = set(index.unique().tolist())
    return sorted(e for e in wanted if e < experts and (only is None or e in only))
