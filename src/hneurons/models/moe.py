"""Mixtures of experts: find the routed experts of a layer, and see what each neuron of theirs does to each token.

Nothing here replaces a forward pass. A hook learns which tokens went to which expert with which weight, and z of
just those experts and tokens is computed again, from the same input; so whatever fast kernel the model runs, its
output stays what it is. The weight of a part (router, scaling factor, gate of a shared expert) is not read from the
code of an architecture but measured: the mixture runs again with every part replaced by a unit vector of its own,
and what comes out in that direction is the part's weight for each token.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hneurons.errors import UnsupportedModelError
from hneurons.models.parts import FFN
from hneurons.models.structure import dense_candidates
from hneurons.models.weights import linear_bias, linear_weight, norms, onloaded

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a module's forward."""

_probing = False


def probing() -> bool:
    """Whether a mixture runs to measure its weights, not to compute: hooks must look away."""
    return _probing


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
        hidden = _hidden(*self.block)
        return hidden.reshape(-1, hidden.shape[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, tokens), or (batch * tokens,) where the model lays them out so."""
        return tuple(_hidden(*self.block).shape[:-1])


@dataclass(frozen=True)
class RoutedFFN(FFN):
    """The routed experts of one layer; neuron `index` of expert `e` is column e * expert_width + index."""

    experts: int = 0
    expert_width: int = 0

    def within(self, blocks: tuple[nn.Module, ...]) -> RoutedFFN:
        """The same with `blocks` as the modules whose outputs add up to h."""
        return replace(self, blocks=blocks)

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
            weight = down[expert].detach()
            if getattr(type(weight), "dequantize", Tensor.dequantize) is not Tensor.dequantize:
                weight = weight.dequantize()
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
        weights = measure(self.block, self.members, call.block)
        for expert in range(self.experts) if only is None else sorted(only):
            rows = weights[expert].nonzero()[:, 0]
            if len(rows):
                yield Piece(expert, rows, weights[expert][rows], self._activate(expert, call.hidden[rows]))

    def _activate(self, expert: int, hidden: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.downs[expert].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.members[expert](hidden)
        finally:
            handle.remove()
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
                found.append(
                    ListedFFN(index, f"{path}.{name}", module, count * width, residual, block, (block,), count, width,
                              tuple(module), tuple(down[0].module for down in downs))
                )  # fmt: skip
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
    kind = SortedFFN if name == "Llama4TextExperts" else PackedFFN
    # Llama 4's class doesn't say so, but stores its matrices the other way round.
    transposed = transposed or kind is SortedFFN
    return kind(index, path, module, count * width, hidden, block, (block,), count, width, transposed)


def _hidden(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(named.values()))


def _sent(index: Tensor, experts: int, only: Collection[int] | None) -> list[int]:
    """Experts that a token was sent to. Numbers past the last one stand for no expert (expert parallelism)."""
    wanted = set(index.unique().tolist())
    return sorted(e for e in wanted if e < experts and (only is None or e in only))


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
            stubs.append((_container(block, part.down), 1, part.path))
    stubs = [stub for stub in stubs if stub[0] is not block]  # a part that is the whole block has weight 1
    if not stubs:
        return {}
    members = [part.members for part in parts if isinstance(part, ListedFFN)]
    silent = [expert for listed in members for expert in listed]
    weights = measure(block, [module for module, *_ in stubs], call, silent)
    found = {path: weight / times for (_, times, path), weight in zip(stubs, weights, strict=True)}
    return {path: weight for path, weight in found.items() if not bool((weight == 1).all())}


def _container(block: nn.Module, down: nn.Module) -> nn.Module:
    """The module around `down`, or `down` itself when it lies in the block."""
    for module in block.modules():
        if module is not block and any(child is down for child in module.children()):
            return module
    return down


@torch.no_grad()
def measure(
    block: nn.Module, parts: Sequence[nn.Module], call: Inputs, silent: Sequence[nn.Module] = ()
) -> list[Tensor]:
    """The weight with which each part's output enters the block's output, for each token: (batch * tokens,) a part.

    Runs the block with every part replaced by a unit vector in a direction of its own, and the modules of `silent`
    by zero.

    Raises:
        UnsupportedModelError: the block does more than to add weighted outputs.
    """
    weights: list[Tensor] = []
    size = _hidden(*call).shape[-1]
    for start in range(0, len(parts), size):
        now = parts[start : start + size]
        quiet = (*parts[:start], *parts[start + size :], *silent)
        with ExitStack() as stack:
            for direction, part in enumerate(now):
                stack.enter_context(_stubbed(part, direction))
            for part in quiet:
                stack.enter_context(_stubbed(part, None))
            output: Any = block.forward(*call[0], **call[1])
        out: Tensor = (output[0] if isinstance(output, tuple) else output).reshape(-1, size)
        if bool(out[:, len(now) :].ne(0).any()):
            raise UnsupportedModelError(
                f"{type(block).__name__} does more with its experts' outputs than to add them with weights.",
                "docs/add-a-model.md says how to add such a mixture.",
            )
        weights += list(out[:, : len(now)].unbind(dim=1))
    return weights


@contextmanager
def _stubbed(module: nn.Module, direction: int | None) -> Generator[None]:
    """Make `module` return the unit vector of that direction for every row of its input (None: zero)."""

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        out = torch.zeros_like(hidden)
        if direction is not None:
            out[..., direction] = 1
        return out

    global _probing
    # accelerate too puts its forward on the instance.
    own, before = module.__dict__.get("forward"), _probing
    module.forward = forward
    _probing = True
    try:
        yield
    finally:
        _probing = before
        if own is None:
            del module.forward
        else:
            module.forward = own
