"""A worker's part in measuring contributions: sums over regions of its own shard of the neurons.

The definition is that of neurons/cett.py. ||h|| is taken of the layer's output after the sum over tensor-parallel
ranks, so every rank has the same; a neuron belongs to one rank alone, and so does its column norm. What leaves the
worker are pooled rows as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hneurons.models.weights import norms
from hneurons.vllm.locate import Down
from hneurons.vllm.rows import Rows

KEY = "hneurons_regions"
"""Of the extra argument that has a request measured: `{"number": its, "ranges": ranges of each region}`."""


@dataclass
class _Measured:
    """A request that is being measured."""

    length: int
    weights: Tensor
    """Of each token in the mean of each region: (regions, tokens)."""
    sums: list[Tensor | None]
    """Of each layer: (regions, shard)."""
    done: int = 0
    """Tokens that have been read."""
    calls: int = 0
    problem: str = ""


@dataclass
class Pooler:
    """Sums contributions of requests that ask for it, pass by pass, however their prompts are cut.

    Args:
        downs: the down projections of this worker.
    """

    downs: Sequence[Down]
    _found: dict[int, _Measured] = field(default_factory=dict[int, _Measured])
    _batch: list[tuple[Rows, _Measured]] = field(default_factory=list[tuple[Rows, _Measured]])
    _norms: list[Tensor] = field(default_factory=list[Tensor])

    def __post_init__(self) -> None:
        for position, down in enumerate(self.downs):
            self._norms.append(down.column_norms())
            down.module.register_forward_hook(self._hook(position))

    def begin(self, batch: Sequence[Rows]) -> None:
        """A pass begins."""
        self._batch = [(rows, self._request(rows)) for rows in batch if KEY in rows.settings]

    def end(self) -> None:
        """It is over."""
        for rows, own in self._batch:
            own.done += rows.stop - rows.start
        self._batch = []

    def _request(self, rows: Rows) -> _Measured:
        told = rows.settings[KEY]
        own = self._found.get(told["number"])
        if own is None or rows.first == 0:  # a request that was preempted begins anew
            length = len(rows.state.prompt_token_ids)
            own = _Measured(length, weights_of(told["ranges"], length), [None] * len(self.downs))
            self._found[told["number"]] = own
        if rows.first != own.done:
            own.problem = f"vLLM skipped tokens {own.done} to {rows.first}"
        return own

    def _hook(self, position: int) -> Any:
        def see(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if self._batch:
                self._pool(position, inputs[0], whole_output(output))

        return see

    def _pool(self, position: int, z: Tensor, h: Tensor) -> None:
        size = norms(h, dim=-1)
        # An infinite ||h|| would hide as contributions of 0: NaN shows, and is told by whoever gets the rows.
        inverse = torch.where(size > 0, 1 / size, 0.0).masked_fill(~torch.isfinite(size), torch.nan)
        for rows, own in self._batch:
            own.calls += 1
            stop = min(rows.stop, rows.start + own.length - rows.first)  # tokens of a response aren't measured
            if stop <= rows.start:
                continue
            weights = own.weights[:, rows.first : rows.first + stop - rows.start].to(z.device)
            part = (weights * inverse[rows.start : stop]) @ z[rows.start : stop].abs().float()
            before = own.sums[position]
            own.sums[position] = part if before is None else before + part

    def take(self, numbers: Sequence[int]) -> bytes:
        """A row of each of these requests as bytes: a line of JSON, then float32 (rows, regions, neurons).

        All requests are forgotten.
        """
        head: dict[str, Any] = {
            "blocks": [[down.layer, down.start, down.size] for down in self.downs],
            "problems": {},
        }
        parts: list[bytes] = []
        for row, number in enumerate(numbers):
            own = self._found.get(number)
            missing = own is None or any(each is None for each in own.sums)
            if own is None or missing or own.problem or own.done < own.length:
                head["problems"][row] = (own and own.problem) or "the hooks were not called for all of its tokens"
                continue
            pooled = [sums * norm for sums, norm in zip(own.sums, self._norms, strict=True) if sums is not None]
            parts.append(torch.cat(pooled, dim=-1).cpu().numpy().astype("<f4").tobytes())
        self._found.clear()
        return json.dumps(head).encode() + b"\n" + b"".join(parts)


def weights_of(ranges: Sequence[Sequence[Sequence[int]]], tokens: int) -> Tensor:
    """Averaging weights (regions, tokens) from half-open ranges of tokens; 0 for a region without tokens."""
    weights = torch.zeros(len(ranges), tokens)
    for row, each in enumerate(ranges):
        for start, stop in each:
            weights[row, start:stop] = 1
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1)


def whole_output(output: Any) -> Tensor:
    """What a down projection writes: vLLM's give (output, bias that is still to be added)."""
    if not isinstance(output, tuple):
        return output
    h, bias = output
    return h if bias is None else h + bias


def unpack(data: bytes, rows: int, regions: int) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float32]]]:
    """What `take` packed: the head, and (rows without a problem, regions, neurons of that worker)."""
    line, _, body = data.partition(b"\n")
    head: dict[str, Any] = json.loads(line)
    width = sum(size for *_, size in head["blocks"])
    return head, np.frombuffer(body, dtype="<f4").reshape(rows - len(head["problems"]), regions, width)
