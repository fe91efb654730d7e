"""Find the down projections in vLLM's own modules, and the shard of each that this worker holds.

By structure, as models/ffn.py does: a `RowParallelLinear` from m to d beside nothing but its own inputs, one or two
`ColumnParallelLinear` d -> m or one fused d -> 2m. The layout of the model says how many there must be and how wide.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hneurons.errors import UnsupportedModelError
from hneurons.layout import Layout
from hneurons.models.weights import norms

PROBED = 1024
"""Columns of a weight that are read at a time."""


@dataclass(frozen=True)
class Down:
    """One down projection, of which this worker has neurons `start` to `start + size`."""

    layer: int
    path: str
    module: Any
    start: int
    size: int

    def columns(self) -> Iterator[tuple[int, Tensor]]:
        """W_down[:, first:...] of this worker's neurons, a block at a time: (first of the block, (block, hidden)).

        Read by what unit vectors write, since engines repack weights for their kernels, and may quantise them.
        """
        device, dtype = next((p.device, p.dtype) for p in _floats(self.module))
        zero = self._apply(torch.zeros(1, self.size, dtype=dtype, device=device))
        for first in range(0, self.size, PROBED):
            count = min(PROBED, self.size - first)
            unit = torch.zeros(count, self.size, dtype=dtype, device=device)
            unit[torch.arange(count), first + torch.arange(count)] = 1
            yield first, self._apply(unit) - zero

    def column_norms(self) -> Tensor:
        """||W_down[:, j]||_2 of this worker's neurons, float32 (size,)."""
        return torch.cat([norms(block, dim=1) for _, block in self.columns()])

    @torch.inference_mode()
    def _apply(self, rows: Tensor) -> Tensor:
        # Not the module itself: neither hooks nor the sum over all ranks belong here.
        return self.module.quant_method.apply(self.module, rows, None).float()


def _floats(module: nn.Module) -> Iterator[Tensor]:
    yield from (p for p in module.parameters() if p.is_floating_point() and p.element_size() > 1)
    yield torch.zeros(0)


def find_downs(model: nn.Module, layout: Layout) -> list[Down]:
    """This worker's down projections, by depth.

    Args:
        model: vLLM's model.
        layout: of the model under study.

    Raises:
        UnsupportedModelError: experts, layers that don't fit the layout, or outputs that aren't summed over ranks.
    """
    name = type(model).__name__
    if any(layout.experts) or any("FusedMoE" in kind for module in model.modules() for kind in _kinds(module)):
        raise UnsupportedModelError(
            f"{name} routes tokens to fused experts, which vLLM's hooks can't see.", "Use --engine hf for this model."
        )
    stacks: dict[str, dict[int, tuple[str, Any]]] = defaultdict(dict)
    for path, module in _candidates(model):
        found = re.match(r"(.*?)\.?(\d+)\.", path)
        if found:
            stack, layer = stacks[found[1]], int(found[2])
            if layer in stack:
                raise UnsupportedModelError(
                    f"Layer {layer} of vLLM's {name} has two modules that look like a down projection "
                    f"({stack[layer][0]}, {path}).",
                    "Use --engine hf for this model.",
                )
            stack[layer] = (path, module)
    fitting = [stack for stack in stacks.values() if _fits(stack, layout)]
    if len(fitting) != 1:
        seen = ", ".join(f"{len(stack)} at {path or 'the top'}" for path, stack in stacks.items()) or "none"
        wanted = sum(width > 0 for width in layout.dense)
        raise UnsupportedModelError(
            f"vLLM's {name} doesn't have the {wanted} feed-forward layers of this model; it has {seen}.",
            "Use the card of this model, or --engine hf.",
        )
    downs: list[Down] = []
    for layer, (path, module) in sorted(fitting[0].items()):
        if module.tp_size > 1 and not module.reduce_results:
            raise UnsupportedModelError(
                f"{path} of vLLM's {name} leaves the sum over ranks to a later layer, so its output isn't known.",
                "Use tensor_parallel_size=1, or --engine hf.",
            )
        size = module.input_size_per_partition
        downs.append(Down(layer, path, module, module.tp_rank * size, size))
    return downs


def _fits(stack: dict[int, tuple[str, Any]], layout: Layout) -> bool:
    """Whether these are the layers of the layout that have neurons."""
    known = {layer: width for layer, width in enumerate(layout.dense) if width}
    return {layer: module.input_size for layer, (_, module) in stack.items()} == known


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for parent_path, parent in model.named_modules():
        children: dict[str, Any] = dict(parent.named_children())
        kinds = {name: _kinds(child) for name, child in children.items()}
        if any("Attention" in kind for each in kinds.values() for kind in each) and any(
            "QKVParallelLinear" in each for each in kinds.values()
        ):
            continue
        ups = [children[name] for name, kind in kinds.items() if "ColumnParallelLinear" in kind]
        for name, kind in kinds.items():
            if "RowParallelLinear" not in kind:
                continue
            down = children[name]
            sizes = [up.output_size for up in ups if up.input_size == down.output_size]
            if len(sizes) == len(ups) and sizes in ([down.input_size], [down.input_size] * 2, [2 * down.input_size]):
                yield f"{parent_path}.{name}" if parent_path else name, down


def _kinds(module: nn.Module) -> set[str]:
    """Names of a module's classes: vLLM's own are told by name, so that nothing is imported for it."""
    return {kind.__name__ for kind in type(module).__mro__}
