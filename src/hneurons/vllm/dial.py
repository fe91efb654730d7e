"""A worker's part in dial and monitor: its shard of the card's neurons, scaled and read inside the engine's passes.

Scaling is that of neurons/scaling.py, each row of the flattened batch with the alpha of its request. Scores are those
of neurons/watch.py: z before it is scaled, h as it comes out. Under tensor parallelism h is read after the sum over
ranks; each worker adds up the terms of its own neurons, and whoever asks adds up the workers'.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hneurons.errors import UnsupportedModelError
from hneurons.models.weights import norms
from hneurons.neurons.card import Card
from hneurons.vllm.asked import KEY
from hneurons.vllm.locate import Down, find_downs
from hneurons.vllm.pooling import whole_output
from hneurons.vllm.rows import Rows

KEPT = 1 << 22
"""Scored tokens that are kept until somebody asks for them; more only while more are running. Some 20 bytes each,
and a few hundred a response."""
TAIL = 32
"""Tokens of a prompt's end that are kept with a response: they say whether it begins inside a block of thinking."""
JOINED = 64
"""Passes whose results for a response become one tensor: what each pass leaves keeps the whole pass's tensor."""


@dataclass(frozen=True)
class _Part:
    """The card's neurons in this worker's shard of one layer."""

    down: Down
    read: Tensor
    """All of the probe's."""
    turned: Tensor
    """The H-Neurons."""
    norms: Tensor
    """Of `read`."""
    weights: Tensor
    """Of `read`, float64."""


@dataclass
class _Plan:
    """What to do in the pass that is running."""

    alphas: Tensor | None
    """(rows, 1), float32; None: scale nothing."""
    tried: bool = False
    """Whether this is the start-up test."""
    watched: Tensor | None = None
    """Rows to score, as indices; None: score nothing."""
    pieces: list[tuple[Rows, int, int]] = field(default_factory=list[tuple[Rows, int, int]])
    """Of whom they are: the request, its first scored position, and how many."""
    z: list[Tensor] = field(default_factory=list[Tensor])
    sizes: list[Tensor] = field(default_factory=list[Tensor])
    calls: int = 0
    active: Tensor | float = 0.0
    """Sum of what was turned, before it was: all zeros show nothing."""


@dataclass
class _Scored:
    """A response's tokens that have been read."""

    begin: int
    """Position of its first token."""
    tail: list[int]
    """The prompt's last tokens."""
    ends: list[int]
    """Tokens that end the response and are no part of it."""
    places: array[int] = field(default_factory=lambda: array("l"))
    """Position of each token that was scored; twice for one that was read twice."""
    ids: list[Tensor] = field(default_factory=list[Tensor])
    scores: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, first: int, ids: Tensor, scores: Tensor) -> None:
        """What a pass gave."""
        self.places.extend(range(first, first + len(ids)))
        self.ids.append(ids)
        self.scores.append(scores)
        if len(self.ids) == JOINED:
            self.join()

    def join(self) -> None:
        """One tensor of all passes."""
        self.ids, self.scores = [torch.cat(self.ids)], [torch.cat(self.scores)]


class Turner:
    """Scales and scores in one worker.

    Args:
        runner: vLLM's model runner, its model loaded.
        card: of that model.

    Raises:
        UnsupportedModelError: the model's layers aren't those of the card.
    """

    def __init__(self, runner: Any, card: Card) -> None:
        self._runner = runner
        self._plan: _Plan | None = None
        self._scored: OrderedDict[str, _Scored] = OrderedDict()
        self._kept = 0
        self._running: set[str] = set()
        self._turns = bool(card.h_neurons)
        self._parts = [part for down in find_downs(runner.model, card.model.layout) if (part := _part(down, card))]
        for part in self._parts:
            part.down.module.register_forward_pre_hook(self._before(part), prepend=True)
            part.down.module.register_forward_hook(self._after)

    def begin(self, batch: Sequence[Rows]) -> None:
        """A pass begins."""
        told = [rows.settings.get(KEY) for rows in batch]
        if any(not isinstance(each, dict) for each in told):
            raise RuntimeError(
                "hneurons: a request came without its alpha; set HNEURONS_CARD for the API server as for its workers."
            )
        alphas = [each["alpha"] for each in told if each]
        plan = _Plan(None)
        if any(alpha != 1 for alpha in alphas):
            counts = torch.tensor([rows.stop - rows.start for rows in batch])
            by_row = torch.tensor(alphas, dtype=torch.float32).repeat_interleave(counts)
            plan.alphas = by_row[:, None].to(self._runner.device)
        index: list[int] = []
        for rows, each in zip(batch, told, strict=True):
            # Tokens of the prompt are nobody's response.
            skip = max(len(rows.state.prompt_token_ids or ()) - rows.first, 0)
            if each and each["monitor"] and rows.start + skip < rows.stop:
                plan.pieces.append((rows, rows.first + skip, rows.stop - rows.start - skip))
                index += range(rows.start + skip, rows.stop)
        if index:
            plan.watched = torch.tensor(index, device=self._runner.device)
        self._plan = plan if plan.alphas is not None or index else None

    def end(self) -> None:
        """It is over."""
        plan, self._plan = self._plan, None
        if plan is None:
            return
        if plan.calls != len(self._parts):
            raise RuntimeError(f"hneurons: {plan.calls} of {len(self._parts)} hooks were called; start vLLM eager.")
        if plan.watched is None:
            return
        scores, ids = self._scores(plan), self._runner.input_ids.gpu.index_select(0, plan.watched)
        start = 0
        for rows, first, count in plan.pieces:
            own = self._scored.get(rows.request)
            if own is None:
                prompt = rows.state.prompt_token_ids or ()
                own = self._scored[rows.request] = _Scored(len(prompt), list(prompt[-TAIL:]), rows.ends)
            own.add(first, ids[start : start + count], scores[start : start + count])
            self._running.add(rows.request)
            start += count
        for name in [name for name in self._running if name not in self._runner.requests]:
            self._running.remove(name)
            self._scored[name].join()
        self._kept += start
        self._forget()

    def _scores(self, plan: _Plan) -> Tensor:
        assert plan.watched is not None
        if not plan.z:
            return torch.zeros(len(plan.watched), dtype=torch.float64)
        size = torch.stack(plan.sizes, dim=-1)
        share = torch.where(size > 0, 1 / size, 0.0)
        total = torch.zeros(len(plan.watched), dtype=torch.float64, device=size.device)
        for column, (part, z) in enumerate(zip(self._parts, plan.z, strict=True)):
            total += (z.abs().float() * part.norms * share[:, column, None]).double() @ part.weights
        return total

    def _forget(self) -> None:
        """Results that nobody fetched, those of aborted requests among them, don't pile up."""
        if self._kept > KEPT:
            for name in [name for name in self._scored if name not in self._runner.requests]:
                if self._kept <= KEPT:
                    break
                self._kept -= len(self._scored.pop(name).places)

    def _before(self, part: _Part) -> Callable[..., tuple[Any, ...] | None]:
        def see(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            plan = self._plan
            if plan is None:
                return None
            plan.calls += 1
            z: Tensor = inputs[0]
            if plan.watched is not None:
                plan.z.append(z.index_select(1, part.read).index_select(0, plan.watched))
            if plan.alphas is None or not len(part.turned):
                return None
            # Rows beyond the batch's are padding.
            chosen = z[: len(plan.alphas)].index_select(1, part.turned).float()
            if plan.tried:
                plan.active = plan.active + chosen.abs().sum()
            scaled = z.clone()
            scaled[: len(plan.alphas)].index_copy_(1, part.turned, (chosen * plan.alphas).to(z.dtype))
            return (scaled, *inputs[1:])

        return see

    def _after(self, _: Any, __: tuple[Any, ...], output: Any) -> None:
        plan = self._plan
        if plan is not None and plan.watched is not None:
            # At once: vLLM's fused norms write into it.
            plan.sizes.append(norms(whole_output(output).index_select(0, plan.watched), dim=-1))

    def take(self, requests: Sequence[str]) -> str:
        """Scores of the responses of these requests, which are forgotten; JSON, by the name that vLLM gave them.

        Each has `prompt` (its last tokens), `ids` (tokens), the `scores` of `ids` without the probe's intercept, and
        `ends`, the tokens that end a response.

        Args:
            requests: names as clients know them: vLLM adds random letters, and the number of a choice before.
        """
        found: dict[str, Any] = {}
        for name in [name for name in self._scored if outside(name)[0] in requests]:
            own = self._scored.pop(name)
            self._running.discard(name)
            self._kept -= len(own.places)
            own.join()
            places = np.asarray(own.places) - own.begin
            ids, scores = np.zeros(places.max() + 1, dtype=np.int64), np.full(places.max() + 1, np.nan)
            # A token that was read twice, after a preemption, counts once.
            ids[places], scores[places] = own.ids[0].cpu().numpy(), own.scores[0].cpu().numpy()
            found[name] = {"prompt": own.tail, "ids": ids.tolist(), "scores": scores.tolist(), "ends": own.ends}
        return json.dumps(found)

    def test(
        self, logits: Callable[[int], Tensor | None], tokens: int, over_ranks: Callable[[float], float] = float
    ) -> None:
        """See that the hooks are called and that scaling moves what comes out, more than running the model twice does.

        A worker without any of the card's neurons runs the model as well: layers wait for every rank's part of a sum.

        Args:
            logits: runs the model on so many made-up tokens; None on a worker that is given no logits.
            tokens: how many.
            over_ranks: sums a number over the workers that hold parts of the same layers.

        Raises:
            UnsupportedModelError: one of the two isn't so.
        """
        one = torch.ones(tokens, 1, device=self._runner.device)
        plain, _ = self._tried(logits, one)
        again, _ = self._tried(logits, one)
        silenced, plan = self._tried(logits, 0 * one)
        active = over_ranks(float(plan.active))
        if plan.calls != len(self._parts):
            raise UnsupportedModelError(
                f"{plan.calls} of {len(self._parts)} hooks were called when vLLM ran the model.", "Start it eager."
            )
        if not self._turns:
            return  # a card whose neurons are read alone
        if not active:
            logging.getLogger(__name__).warning(
                "The card's H-Neurons were silent in the start-up test, which so can't tell whether turning them works."
            )
        elif plain is not None and again is not None and silenced is not None:
            noise, moved = (float((each - plain).abs().max()) for each in (again, silenced))
            if not moved > 2 * noise:
                raise UnsupportedModelError(
                    f"Silencing the card's H-Neurons didn't change vLLM's logits (by {moved:.2g}; two runs differ by "
                    f"{noise:.2g}).",
                    "Use hneurons serve, or a LoRA export.",
                )

    def _tried(self, logits: Callable[[int], Tensor | None], alphas: Tensor) -> tuple[Tensor | None, _Plan]:
        plan = self._plan = _Plan(alphas, tried=True)
        try:
            found = logits(len(alphas))
            return (None if found is None else found.float().clone()), plan
        finally:
            self._plan = None


def _part(down: Down, card: Card) -> _Part | None:
    own = [n for n in card.neurons if n.layer == down.layer and down.start <= n.index < down.start + down.size]
    if not own:
        return None
    all_norms = down.column_norms()
    device = all_norms.device
    read = torch.tensor([n.index - down.start for n in own], device=device)
    weights = torch.tensor([n.weight for n in own], dtype=torch.float64, device=device)
    return _Part(down, read, read[weights > 0], all_norms[read], weights)


def outside(name: str) -> tuple[str, int]:
    """The name that a client knows a request by, and the number of its choice."""
    base, _, letters = name.rpartition("-")
    base = base if len(letters) == 8 and base else name
    number, _, rest = base.partition("_")
    return (rest, int(number)) if rest and number.isdigit() else (base, 0)
