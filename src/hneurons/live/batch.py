"""The running batch: rows of several alphas and settings that join and leave between two tokens.

transformers has continuous batching of its own, over a paged cache that it packs without rows: which token belongs to
which request is its secret, so neither an alpha nor a risk could be given to each, and it knows neither seeds nor the
log-probabilities of alternatives. This is the smallest thing that does: rows of one cache, right-aligned. Rows that
finish stay until a quarter of the batch is over or others join, since every change of rows copies the cache.

Models whose cache isn't plain (sliding windows, recurrent states) or that measure distance in slots of the cache can't
have zeros before a prompt: there each response is a batch of its own, and they take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import DynamicCache

from hneurons.answers.decoding import draw
from hneurons.answers.engine import Sampling
from hneurons.answers.kvcache import aligned, allows_gaps, fork, merged, new_cache, select
from hneurons.answers.prefill import Prompt, forward, prefill, read
from hneurons.answers.text import decode
from hneurons.live.jobs import Token
from hneurons.live.monitor import Monitor
from hneurons.live.row import Row, uniforms
from hneurons.neurons.scaling import scale

PREFILL_TOKENS = 2048
"""Of prompts that go through the model together; rows that are being made wait for them."""
LEAST_ALIVE = 0.75
"""Share of the rows below which those that are over are taken out."""


@dataclass
class Lane:
    """Rows that go through the model together."""

    rows: list[Row | None]
    """None for one that has left; its place is cleared at the next change of rows."""
    cache: DynamicCache
    mask: Tensor
    """(rows, tokens), 1 where the cache holds a token of the row."""
    logits: Tensor
    """Of the next token: (rows, vocabulary)."""

    @property
    def alive(self) -> list[tuple[int, Row]]:
        """Rows that are being made, with their places."""
        return [(place, row) for place, row in enumerate(self.rows) if row is not None]


class Batch:
    """Makes responses in the thread that entered it.

    Args:
        monitor: whose model and card.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.model = monitor.model
        self.lanes: list[Lane] = []
        self._ends = set(self.model.end_ids)
        self._merges = allows_gaps(self.model.model.config, new_cache(self.model.model.config))
        self._terms: list[Tensor] = []
        self._again: list[Row] = []
        self._stack, self._watching = ExitStack(), ExitStack()
        self._watched = False
        self._pieces: dict[int, str] = {}

    def __enter__(self) -> Batch:
        # Ones, not one: the dial is to be turned.
        self._dial = self._stack.enter_context(scale(self.model, self.monitor.card, torch.ones(1)))
        return self

    def __exit__(self, *error: object) -> None:
        self._watching.close()
        self._stack.close()

    def _watch(self, wanted: bool) -> None:
        """Hooks are set while some row wants its risk, so that without one they cost nothing."""
        if wanted != self._watched:
            self._watched = wanted
            self._watching.close()
            if wanted:
                self._watching.enter_context(self.monitor.watcher.on(self._terms.append))

    @property
    def rows(self) -> list[Row]:
        """Responses that are being made."""
        return [row for lane in self.lanes for _, row in lane.alive] + self._again

    @torch.inference_mode()
    def step(self, new: Sequence[Row] = ()) -> None:
        """Take new rows in, and give every row its next token."""
        self._again += new
        self._watch(any(row.watched for row in self.rows))
        for rows in self._groups(self._again):
            self._join(rows)
            self._again = [row for row in self._again if row not in rows]
        for lane in self.lanes:
            self._step(lane)
        self.lanes = [lane for lane in self.lanes if lane.alive]

    def drop(self) -> list[Row]:
        """Take all rows out and give them back."""
        rows = self.rows
        self.lanes, self._again = [], []
        self._terms.clear()
        return rows

    def _groups(self, rows: list[Row]) -> list[list[Row]]:
        """Rows whose prompts go through the model together."""
        groups: list[list[Row]] = []
        longest = 0
        for row in sorted(rows, key=lambda row: len(row.ids)):
            longest = max(longest, len(row.ids))
            if self._merges and groups and longest * (len(groups[-1]) + 1) <= PREFILL_TOKENS:
                groups[-1].append(row)
            else:
                groups.append([row])
                longest = len(row.ids)
        return groups

    def _join(self, rows: list[Row]) -> None:
        prompts: list[Prompt] = [(row.alpha, row.ids) for row in rows]
        started = prefill(self.model, list(dict.fromkeys(prompts)), self._turn)
        self._terms.clear()  # of the prompts
        pick = torch.tensor([started.rows[prompt] for prompt in prompts], device=started.mask.device)
        mask, logits = started.mask[pick], started.logits[pick]
        if not self._merges or not self.lanes:
            self.lanes.append(Lane(list(rows), fork(started.cache, pick), mask, logits))
            return
        lane = self.lanes[0]
        alive = lane.alive
        keep = torch.tensor([place for place, _ in alive], device=mask.device, dtype=torch.long)
        both = aligned([lane.mask[keep], mask])
        lane.cache = merged([(lane.cache, keep), (started.cache, pick)], both.shape[1])
        lane.mask = both
        lane.logits = torch.cat([lane.logits[keep], logits])
        lane.rows = [*(row for _, row in alive), *rows]

    def _step(self, lane: Lane) -> None:
        for place, row in lane.alive:
            if row.cancelled:
                row.stop()
                lane.rows[place] = None
        self._draw(lane)
        self._leave(lane)
        alive = lane.alive
        if not alive:
            return
        if len(alive) <= LEAST_ALIVE * len(lane.rows):
            index = torch.tensor([place for place, _ in alive], device=lane.mask.device)
            select(lane.cache, index)
            lane.mask, lane.rows = lane.mask[index], [row for _, row in alive]
        self._turn([1.0 if row is None else row.alpha for row in lane.rows])
        mask = lane.mask = torch.cat([lane.mask, lane.mask.new_ones(len(lane.rows), 1)], dim=-1)
        ids = torch.tensor([[0 if row is None else row.said[-1]] for row in lane.rows], device=mask.device)
        positions = mask.sum(-1, keepdim=True) - 1
        if any(row.ending is None for _, row in alive):
            lane.logits = forward(self.model, ids, mask, positions, lane.cache)
        else:  # all are over, and only wait for the risk of their last token
            read(self.model, ids, mask, positions, lane.cache)
        self._read(lane)
        self._leave(lane)

    def _draw(self, lane: Lane) -> None:
        """The next token of each row; rows of the same settings together."""
        broken = torch.isnan(lane.logits).any(dim=-1).tolist()
        for place, row in lane.alive:
            if broken[place]:
                row.fail("The model's logits are NaN. Load it with --dtype float32.")
                lane.rows[place] = None
        drawing = [(place, row) for place, row in lane.alive if row.ending is None]

        def settings(entry: tuple[int, Row]) -> tuple[float, int, float]:
            job = entry[1].job
            return (0.0, 0, 1.0) if job.temperature == 0 else (job.temperature, job.top_k, job.top_p)

        for (temperature, top_k, top_p), entries in groupby(sorted(drawing, key=settings), key=settings):
            places, rows = zip(*entries, strict=True)
            logits = lane.logits[torch.tensor(places, device=lane.logits.device)]
            random = uniforms(rows).to(logits.device)
            ids, logprobs = draw(logits, random, Sampling(temperature, top_k, top_p))
            most = max(row.job.top_logprobs for row in rows)
            best = torch.log_softmax(logits, dim=-1).topk(most) if most else None
            for place, (row, token, logprob) in enumerate(zip(rows, ids.tolist(), logprobs.tolist(), strict=True)):
                top: tuple[tuple[int, str, float], ...] = ()
                if best is not None and row.job.top_logprobs:
                    pairs = zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
                    top = tuple((t, self._piece(t), p) for t, p in list(pairs)[: row.job.top_logprobs])
                row.drawn(Token(len(row.said), token, self._piece(token), logprob, top), self._ends)

    def _read(self, lane: Lane) -> None:
        watched = [(place, row) for place, row in lane.alive if row.watched]
        if not watched:
            return
        terms = self._terms.pop()[:, -1].cpu().numpy()
        self._terms.clear()
        own = terms[[place for place, _ in watched]]
        marks = self.monitor.marks(own, [row.before for _, row in watched])
        for (_, row), each, mark in zip(watched, own, marks, strict=True):
            row.read(each, mark)

    def _leave(self, lane: Lane) -> None:
        for place, row in lane.alive:
            if not row.goes_on:
                lane.rows[place] = None
                if not row.finish():
                    self._again.append(row)

    def _turn(self, alphas: list[float]) -> None:
        self._dial.alpha = torch.tensor(alphas)

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = decode(self.model, [token])
        return self._pieces[token]
