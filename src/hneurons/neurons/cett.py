"""CETT: the share of a feed-forward layer's output that each neuron contributes, averaged per region on the fly.

For FFN input x_t, intermediate z_t (m neurons) and output h_t = W_down z_t, the contribution of neuron j to token t is

    CETT[j, t] = ||W_down[:, j] z[j, t]||_2 / ||h_t||_2 = |z[j, t]| * ||W_down[:, j]||_2 / ||h_t||_2

(Gao et al. 2025, sec. 3.1). One forward pass gives it for every layer. Averaging over the tokens of a region is a
small matrix product per layer, so no activation outlives its layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from hneurons.answers.kvcache import allows_gaps, as_prefix, common_prefix, new_cache
from hneurons.errors import NumericError
from hneurons.models.load import StudyModel
from hneurons.models.parts import FFN
from hneurons.models.structure import backbone
from hneurons.models.weights import norms as vector_norms
from hneurons.neurons.blocks import BlockFeatures
from hneurons.neurons.capture import Routed, capture
from hneurons.neurons.rebuild import MixtureCheck
from hneurons.parallel import ordered, workers
from hneurons.types import REGIONS, Region

LEAST_SHARED = 4
"""Tokens that prompts must have in common for passes to go on from them."""

CACHED = 256
"""Tokens whose |z| a CPU is given at a time, so that they are still in its cache when they are added up."""


@dataclass(frozen=True)
class Passage:
    """A prompt with a response, teacher forced, and the tokens of each region."""

    name: str
    """What an error calls it: the question id."""
    ids: tuple[int, ...]
    prompt_tokens: int
    answer: tuple[int, int]
    """Answer tokens as a half-open range of the *response*, thinking included."""
    thinking: int = 0
    """Tokens of the response, from the first, that are a thinking block."""

    def mask(self, region: Region) -> NDArray[np.bool_]:
        """Which tokens of `ids` belong to `region`; (tokens,)."""
        position = np.arange(len(self.ids))
        response = position >= self.prompt_tokens + self.thinking
        answer = (position >= self.prompt_tokens + self.answer[0]) & (position < self.prompt_tokens + self.answer[1])
        return {
            Region.ANSWER: answer,
            Region.OTHER: response & ~answer,
            Region.RESPONSE: response,
            Region.PROMPT: position < self.prompt_tokens,
            Region.THINKING: ~response & (position >= self.prompt_tokens),
        }[region]


@dataclass
class _Batch:
    """What the hooks need to know of the forward pass that is running in their thread."""

    passages: Sequence[Passage]
    mask: Tensor
    """(passages, tokens), false on padding."""
    weights: Tensor
    """Averaging weights (passages, regions, tokens)."""
    found: BlockFeatures
    """Of (passages, regions, neurons), on the CPU."""


@dataclass(frozen=True)
class Beginning:
    """What all prompts begin with: the template's system turn."""

    ids: tuple[int, ...]
    trial: Passage
    """On which it is tried whether the model goes on from a cache of them."""


def beginning(model: StudyModel, passages: Sequence[Passage]) -> Beginning | None:
    """What all passages begin with; None where it is little, or the model can't go on from it."""
    # Of two made-up questions, not of the passages: a resumed run has others left, and must get the same features.
    asked = [tuple(model.prompt_ids(question)) for question in ("a", "0")]
    shared = common_prefix(asked)
    begins = all(passage.ids[:shared] == asked[0][:shared] for passage in passages)
    config = model.model.config
    possible = begins and not any(model.layout.experts) and allows_gaps(config, new_cache(config))
    if len(passages) < 2 or shared < LEAST_SHARED or not possible:
        return None
    return Beginning(asked[0][:shared], passages[0])


@dataclass(frozen=True)
class _Prefix:
    """A beginning that went through the model, once for all prompts."""

    tokens: int
    cache: DynamicCache
    sums: NDArray[np.float32]
    """Contributions added up over its tokens: (neurons,)."""


class Extractor(Protocol):
    """The swap point for whatever measures contributions."""

    def many(self, groups: Sequence[Sequence[Passage]]) -> Generator[BlockFeatures]:
        """Features of each batch of passages, in order: (passages, regions, neurons).

        A generator, which is closed when nobody wants the rest.
        """
        ...


class PooledExtractor:
    """Mean contribution of every neuron over each region, one forward pass a batch, without the LM head."""

    def __init__(self, model: StudyModel, regions: Sequence[Region] = REGIONS) -> None:
        self.model = model
        self.regions = tuple(regions)
        self.norms = [ffn.column_norms() for ffn in model.ffns]
        self.starts = model.columns_of_parts
        self._running = threading.local()
        self._checked = False
        self._begun: tuple[Beginning | None, _Prefix | None] = None, None

    def __call__(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        """Features of one batch: (passages, regions, neurons); 0 for a region without tokens.

        Raises:
            NumericError: an activation is NaN or infinite; names layer and passage.
            UnsupportedModelError: the neurons of a mixture of experts don't make up its output.
        """
        self._check_mixtures(passages)
        with capture(self.model.ffns, self._pool):
            return self._forward(passages).dense()

    def many(self, groups: Sequence[Sequence[Passage]]) -> Generator[BlockFeatures]:
        """Features of each batch, in order; on a CPU several batches are in work at a time.

        What all prompts begin with goes through the model once, where its cache allows that.
        """
        begin = beginning(self.model, [passage for group in groups for passage in group])
        return self._several(groups, lambda: None if begin is None else self._prefix(begin))

    def part(self, groups: Sequence[Sequence[Passage]], begin: Beginning | None) -> Generator[BlockFeatures]:
        """`many` for a part of the batches, given the `beginning` of all; it is kept for parts to come."""

        def prefix() -> _Prefix | None:
            if begin != self._begun[0]:
                self._begun = begin, None if begin is None else self._prefix(begin)
            return self._begun[1]

        return self._several(groups, prefix)

    def _several(
        self, groups: Sequence[Sequence[Passage]], prefix_of: Callable[[], _Prefix | None]
    ) -> Generator[BlockFeatures]:
        if groups:
            self._check_mixtures(groups[0])
        see = capture(self.model.ffns, self._pool, every_thread=True)
        with see, workers(self.model.device, alone=self.model.is_moved) as pool:
            prefix = prefix_of()
            yield from ordered(pool, lambda group: self._forward(group, prefix), groups)

    def _prefix(self, begin: Beginning) -> _Prefix | None:
        """That beginning; None where the model can't go on from it. Inside `capture`."""
        cache, shared = new_cache(self.model.model.config), len(begin.ids)
        first = Passage("what all prompts begin with", begin.ids, shared, (0, 1))
        found = self._pass([first], [Region.PROMPT], cache)
        if any(cache.get_seq_length(layer) != shared for layer in range(len(cache.layers))):
            return None
        prefix = _Prefix(shared, as_prefix(cache), found.dense()[0, 0] * shared)
        # Models are many: that this one does go on from a cache is seen on one passage.
        whole = self._forward([begin.trial]).dense()
        same = np.linalg.norm(self._forward([begin.trial], prefix).dense() - whole) <= 0.01 * np.linalg.norm(whole)
        return prefix if same else None

    def _check_mixtures(self, passages: Sequence[Passage]) -> None:
        """Once: that the neurons of each mixture make up its output, on some tokens of one passage."""
        if self._checked or not any(ffn.block for ffn in self.model.ffns):
            return
        check = MixtureCheck(self.model.ffns)
        ids = torch.tensor([passages[0].ids], device=self.model.device)
        with capture(self.model.ffns, check.see), torch.inference_mode():
            backbone(self.model.model)(input_ids=ids, use_cache=False)
        self._checked = True

    def _forward(self, passages: Sequence[Passage], prefix: _Prefix | None = None) -> BlockFeatures:
        if prefix is None:
            return self._pass(passages, self.regions)
        found = self._pass(passages, self.regions, prefix.cache, prefix.tokens)
        if Region.PROMPT in self.regions:
            of_prompt = found.dense()[:, self.regions.index(Region.PROMPT)]
            of_prompt += prefix.sums / np.array([[passage.prompt_tokens] for passage in passages], dtype=np.float32)
        return found

    @torch.inference_mode()
    def _pass(
        self,
        passages: Sequence[Passage],
        regions: Sequence[Region],
        cache: DynamicCache | None = None,
        done: int = 0,
    ) -> BlockFeatures:
        """One forward pass over what comes after the first `done` tokens, which `cache` holds; only that is pooled."""
        ids, mask, weights = self._pack(passages, regions)
        sparse = any(self.model.layout.experts)
        found = BlockFeatures(len(passages), len(regions), self.model.neurons, sparse=sparse)
        self._running.batch = _Batch(passages, mask[:, done:], weights[..., done:], found)
        kept: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        try:
            backbone(self.model.model)(
                input_ids=ids[:, done:], attention_mask=mask.long(), use_cache=cache is not None, **kept
            )
        finally:
            self._running.batch = None
        return found

    def _pool(self, position: int, ffn: FFN, z: Tensor | Routed, h: Tensor) -> None:
        batch: _Batch | None = getattr(self._running, "batch", None)
        if batch is None:  # somebody else's forward pass
            return
        mask, weights = batch.mask.to(h.device), batch.weights.to(h.device)
        # Some models (OPT) flatten batch and tokens into one axis before the FFN.
        size = vector_norms(h.reshape(*mask.shape, h.shape[-1]), dim=-1)
        # An infinite ||h|| would hide as contributions of 0.
        self._check(ffn, batch.passages, torch.isfinite(size) | ~mask)
        share = weights / torch.where(size > 0, size, torch.inf)[:, None, :]
        share = share.masked_fill_(~mask[:, None, :], 0.0)  # ||h|| of padding may be NaN
        if isinstance(z, Routed):
            self._pool_routed(batch, position, z, share)
            return
        z, norms = z.reshape(*mask.shape, z.shape[-1]), self.norms[position].to(z.device)
        pooled = _weighed(share, z).mul_(norms)
        largest = pooled.amax(dim=(1, 2))  # NaN, if any is
        if not bool(torch.isfinite(largest).all()):
            # Padding may hold anything: what isn't finite there has met a share of 0, and 0 * NaN = NaN.
            pooled = _weighed(share, z.masked_fill(~mask[..., None], 0.0)).mul_(norms)
            largest = pooled.amax(dim=(1, 2))
        self._check(ffn, batch.passages, torch.isfinite(largest)[:, None])
        batch.found.add(self.starts[position], np.arange(len(batch.passages)), pooled.cpu().numpy())

    def _pool_routed(self, batch: _Batch, position: int, z: Routed, share: Tensor) -> None:
        """Add up what each expert did for the tokens that were sent to it: share is (passages, regions, tokens)."""
        tokens = share.shape[-1]
        by_token = share.transpose(1, 2).reshape(-1, share.shape[1])
        real = batch.mask.to(share.device).reshape(-1)
        norms = self.norms[position].reshape(z.ffn.experts, z.ffn.expert_width)
        for piece in z.pieces():
            keep = real[piece.rows]
            if not bool(keep.any()):
                continue
            rows = piece.rows[keep]
            magnitude = (piece.z[keep].float() * piece.weight[keep].float()[:, None]).abs()
            there, inverse = torch.unique(rows // tokens, return_inverse=True)
            # One row a passage and region, so that a single product sums over its tokens.
            sums = share.new_zeros(len(there), share.shape[1], len(rows))
            sums[inverse, :, torch.arange(len(rows), device=rows.device)] = by_token[rows]
            pooled = torch.matmul(sums, magnitude) * norms[piece.expert].to(magnitude.device)
            self._check(z.ffn, [batch.passages[i] for i in there.tolist()], torch.isfinite(pooled).flatten(1))
            start = self.starts[position] + piece.expert * z.ffn.expert_width
            batch.found.add(start, there.cpu().numpy(), pooled.cpu().numpy())

    def _check(self, ffn: FFN, passages: Sequence[Passage], finite: Tensor) -> None:
        good = finite.all(dim=-1)
        if not bool(good.all()):
            culprit = passages[int((~good).nonzero()[0, 0])].name
            raise NumericError(
                f"NaN or infinite activation in layer {ffn.layer} on example {culprit!r}.",
                "Load the model with --dtype float32, or leave that question out.",
            )

    def _pack(self, passages: Sequence[Passage], regions: Sequence[Region]) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids, attention mask and averaging weights (passages, regions, tokens)."""
        longest = max(len(passage.ids) for passage in passages)
        pad = self.model.tokenizer.pad_token_id
        ids = np.full((len(passages), longest), pad if isinstance(pad, int) else 0, dtype=np.int64)
        mask = np.zeros((len(passages), longest), dtype=bool)
        weights = np.zeros((len(passages), len(regions), longest), dtype=np.float32)
        for row, passage in enumerate(passages):
            length = len(passage.ids)
            ids[row, :length] = passage.ids
            mask[row, :length] = True
            for column, region in enumerate(regions):
                tokens = passage.mask(region)
                weights[row, column, :length] = tokens / max(int(tokens.sum()), 1)
        device = self.model.device
        return (torch.from_numpy(array).to(device) for array in (ids, mask, weights))  # pyright: ignore[reportReturnType]


def _weighed(share: Tensor, z: Tensor) -> Tensor:
    """Sums of |z| over tokens, weighed: (passages, regions, tokens) x (passages, tokens, width)."""
    if z.device.type != "cpu":
        return torch.bmm(share, z.abs().float())
    sums = share.new_empty(*share.shape[:2], z.shape[-1])
    together = max(1, CACHED // z.shape[1])
    for part in (slice(start, start + together) for start in range(0, len(z), together)):
        torch.bmm(share[part], z[part].abs().float(), out=sums[part])
    return sums


def usual_tokens(device: torch.device) -> int:
    """Tokens of a batch that suit a device. A CPU keeps a layer's activations in its cache if they are few."""
    return 512 if device.type == "cpu" else 4096


def plan(model: StudyModel, passages: Sequence[Passage], tokens: int) -> list[list[int]]:
    """`batches` for extraction: tokens count that go through the model, so not what all prompts begin with."""
    begin = beginning(model, passages)
    shared = len(begin.ids) if begin else 0
    return batches([len(passage.ids) - shared for passage in passages], tokens)


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Positions grouped by similar length, each group padded to at most `tokens` tokens (at least one position).

    The order is fixed by the lengths alone, so that a resumed run forms the same batches.
    """
    groups: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        longest = max(longest, lengths[position])
        if groups and longest * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(position)
        else:
            groups.append([position])
            longest = lengths[position]
    return groups
