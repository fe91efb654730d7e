"""Enough of vLLM's worker for its hooks: modules with the names of vLLM's, and a runner of flattened batches.

The model is feed-forward layers alone, so that what one request adds to a batch can't depend on the others by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hneurons.layout import Layout

HIDDEN, WIDTH, LAYERS, TOKENS = 6, 8, 3, 40
LAYOUT = Layout((WIDTH,) * LAYERS, (0,) * LAYERS, (0,) * LAYERS)


class ColumnParallelLinear(nn.Module):
    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, output_size


class QKVParallelLinear(ColumnParallelLinear): ...


class FusedMoE(nn.Module): ...


class Attention(nn.Module):
    """Says nothing; without a scheduler's batch whatever was in its memory, as vLLM's does."""

    real = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.real else torch.randn_like(x)


class Unquantized:
    def apply(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        found = x @ layer.own.T
        return found if bias is None else found + bias


class RowParallelLinear(nn.Module):
    """One rank's shard; what the other ranks add to its output is set by the model before the call."""

    def __init__(self, weight: Tensor, rank: int = 0, ranks: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.output_size, self.input_size = weight.shape
        self.tp_rank, self.tp_size, self.reduce_results = rank, ranks, True
        self.input_size_per_partition = self.input_size // ranks
        self.span = slice(rank * self.input_size_per_partition, (rank + 1) * self.input_size_per_partition)
        self.own = weight[:, self.span]
        self.weight = nn.Parameter(torch.empty(0))  # repacked, as on a CPU
        self.bias = nn.Parameter(torch.ones(self.output_size), requires_grad=False) if bias else None
        self.quant_method = Unquantized()
        self.rest: Tensor | float = 0.0

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.quant_method.apply(self, z, None) + self.rest, self.bias


class SiluAndMul(nn.Module): ...


class MLP(nn.Module):
    def __init__(self, seed: int, rank: int, ranks: int, *, bias: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.up = torch.randn(WIDTH, HIDDEN, generator=random) * 0.5
        self.down = torch.randn(HIDDEN, WIDTH, generator=random) * 0.5
        self.gate_up_proj = ColumnParallelLinear(HIDDEN, 2 * WIDTH)
        self.down_proj = RowParallelLinear(self.down, rank, ranks, bias=bias)
        self.act_fn = SiluAndMul()

    def z(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(x @ self.up.T)

    def forward(self, x: Tensor) -> Tensor:
        z, own = self.z(x), self.down_proj.span
        others = torch.ones(WIDTH, dtype=torch.bool)
        others[own] = False
        self.down_proj.rest = z[:, others] @ self.down[:, others].T
        h, bias = self.down_proj(z[:, own])
        return h if bias is None else h + bias


class Model(nn.Module):
    def __init__(self, rank: int = 0, ranks: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.embedding = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(99))
        self.layers = nn.ModuleList()
        for layer in range(LAYERS):
            block = nn.Module()
            block.attn = Attention()
            block.mlp = MLP(layer, rank, ranks, bias=bias)
            self.layers.append(block)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.embedding[input_ids]

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None) -> Tensor:
        x = inputs_embeds if input_ids is None else self.embed_input_ids(input_ids)
        for layer in self.layers:
            x = x + layer.attn(x)
            x = x + layer.mlp(x)
        return x

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embedding.T


class Runner:
    """Runs batches: each request with as many tokens as a step schedules for it, in the order of its own list."""

    device = torch.device("cpu")
    max_num_tokens = 20
    supports_mm_inputs = False
    model_config: Any = SimpleNamespace(get_vocab_size=lambda: TOKENS)

    def __init__(self, model: Model | None = None) -> None:
        self.model = model or Model()
        self.requests: dict[str, Any] = {}
        self.input_batch: Any = SimpleNamespace(req_ids=[], num_computed_tokens_cpu=np.zeros(0, dtype=np.int32))
        self.input_ids: Any = SimpleNamespace(gpu=torch.zeros(64, dtype=torch.long))
        self.inputs_embeds: Any = SimpleNamespace(gpu=torch.zeros(64, HIDDEN))
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.padding = 0
        self.outputs: dict[str, Tensor] = {}

    def add(self, name: str, tokens: Sequence[int], prompt: int, **extra: Any) -> None:
        """A request whose prompt is the first `prompt` of its tokens; the rest is what it will generate."""
        settings = SimpleNamespace(extra_args=extra or None)
        self.requests[name] = SimpleNamespace(prompt_token_ids=list(tokens[:prompt]), sampling_params=settings)
        self.tokens[name], self.computed[name] = list(tokens), 0

    def step(self, counts: Mapping[str, int]) -> None:
        """Schedule so many tokens of each request, as vLLM's scheduler would."""
        scheduled = SimpleNamespace(
            num_scheduled_tokens=dict(counts), total_num_scheduled_tokens=sum(counts.values()), finished_req_ids=set()
        )
        self.execute_model(scheduled)

    def execute_model(self, scheduled: Any, *_: Any) -> None:
        # The batch's order is the runner's, not the scheduler's.
        names = sorted(scheduled.num_scheduled_tokens, reverse=True)
        self.input_batch.req_ids = names
        self.input_batch.num_computed_tokens_cpu = np.array([self.computed[name] for name in names])
        if not names:
            return
        ids: list[int] = []
        for name in names:
            first = self.computed[name]
            ids += self.tokens[name][first : first + scheduled.num_scheduled_tokens[name]]
        padded = torch.tensor([*ids, *[0] * self.padding])
        self.input_ids.gpu[: len(padded)] = padded
        out = self.model(input_ids=padded)
        start = 0
        for name in names:
            count = scheduled.num_scheduled_tokens[name]
            self.outputs[name] = out[start : start + count]
            self.computed[name] += count
            start += count

    def _dummy_run(self, tokens: int, **_: Any) -> tuple[Tensor, Tensor]:
        Attention.real = False
        try:
            if self.supports_mm_inputs:
                hidden = self.model(inputs_embeds=self.inputs_embeds.gpu[:tokens])
            else:
                hidden = self.model(input_ids=self.input_ids.gpu[:tokens])
        finally:
            Attention.real = True
        return hidden, hidden[-1:]


def contributions(tokens: Sequence[int], alphas: Mapping[tuple[int, int], float] | None = None) -> np.ndarray:
    """By the definition, one token and one neuron at a time: (tokens, neurons); z unscaled, h with neurons scaled."""
    model = Model()
    rows = []
    for token in tokens:
        x = model.embedding[token]
        row: list[float] = []
        for layer, block in enumerate(model.layers):
            mlp: Any = block.mlp
            z = mlp.z(x)
            scaled = torch.stack([z[j] * (alphas or {}).get((layer, j), 1.0) for j in range(WIDTH)])
            h = mlp.down @ scaled
            row += [float((mlp.down[:, j] * z[j]).norm() / h.norm()) for j in range(WIDTH)]
            x = x + h
        rows.append(row)
    return np.array(rows)
