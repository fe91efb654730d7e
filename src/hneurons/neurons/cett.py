"""CETT: the share of a feed-forward layer's output that each neuron contributes, averaged per region on the fly.

For FFN input x_t, intermediate z_t (m neurons) and output h_t = W_down z_t, the contribution of neuron j to token t is

    CETT[j, t] = ||W_down[:, j] z[j, t]||_2 / ||h_t||_2 = |z[j, t]| * ||W_down[:, j]||_2 / ||h_t||_2

(Gao et al. 2025, sec. 3.1). One forward pass gives it for every layer. Averaging over the tokens of a region is a
small matrix product per layer, so no activation outlives its layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hneurons.errors import NumericError
from hneurons.models.ffn import FFN
from hneurons.models.load import StudyModel
from hneurons.parallel import ordered, workers
from hneurons.types import Region

Capture = Callable[[int, FFN, Tensor, Tensor], None]
"""Called with (position of the FFN, the FFN, z (batch, tokens, width), h (batch, tokens, hidden))."""


@dataclass(frozen=True)
class Passage:
    """A prompt with a response, teacher forced, and the tokens of each region."""

    name: str
    """What an error calls it: the question id."""
    ids: tuple[int, ...]
    prompt_tokens: int
    answer: tuple[int, int]
    """Answer tokens as a half-open range of the *response*."""

    def mask(self, region: Region) -> NDArray[np.bool_]:
        """Which tokens of `ids` belong to `region`; (tokens,)."""
        position = np.arange(len(self.ids))
        response = position >= self.prompt_tokens
        answer = (position >= self.prompt_tokens + self.answer[0]) & (position < self.prompt_tokens + self.answer[1])
        return {
            Region.ANSWER: answer,
            Region.OTHER: response & ~answer,
            Region.RESPONSE: response,
            Region.PROMPT: ~response,
        }[region]


@contextmanager
def capture(ffns: Sequence[FFN], callback: Capture) -> Generator[None]:
    """Call `callback` with z and h of every FFN in each forward pass inside the block; hooks always come off."""

    def hook(position: int, ffn: FFN) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def see(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            callback(position, ffn, inputs[0], output[0] if isinstance(output, tuple) else output)

        return see

    handles = [ffn.down.register_forward_hook(hook(position, ffn)) for position, ffn in enumerate(ffns)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def token_contributions(z: Tensor, h: Tensor, norms: Tensor) -> Tensor:
    """CETT of every token: z (..., width), h (..., hidden), norms (width,) -> float32 (..., width).

    A token whose h is exactly zero has contribution 0.
    """
    size = torch.linalg.vector_norm(h.float(), dim=-1, keepdim=True)
    return torch.where(size > 0, z.abs().float() * norms / size, 0.0)


@dataclass
class _Batch:
    """What the hooks need to know of the forward pass that is running in their thread."""

    passages: Sequence[Passage]
    mask: Tensor
    """(passages, tokens), false on padding."""
    weights: Tensor
    """Averaging weights (passages, regions, tokens)."""
    out: Tensor
    """(passages, regions, neurons), on the CPU."""


class PooledExtractor:
    """Mean contribution of every neuron over each region, one forward pass a batch, without the LM head."""

    def __init__(self, model: StudyModel, regions: Sequence[Region] = tuple(Region)) -> None:
        self.model = model
        self.regions = tuple(regions)
        self.norms = [ffn.column_norms() for ffn in model.ffns]
        self.starts = np.concatenate([[0], np.cumsum(model.widths)]).astype(int).tolist()
        self._running = threading.local()

    def __call__(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        """Features of one batch: (passages, regions, neurons); 0 for a region without tokens.

        Raises:
            NumericError: an activation is NaN or infinite; names layer and passage.
        """
        with capture(self.model.ffns, self._pool):
            return self._forward(passages)

    def many(self, groups: Sequence[Sequence[Passage]]) -> Generator[NDArray[np.float32]]:
        """Features of each batch, in order; on a CPU several batches are in work at a time."""
        with capture(self.model.ffns, self._pool), workers(self.model.device) as pool:
            yield from ordered(pool, self._forward, groups)

    @torch.inference_mode()
    def _forward(self, passages: Sequence[Passage]) -> NDArray[np.float32]:
        ids, mask, weights = self._pack(passages)
        out = torch.empty((len(passages), len(self.regions), self.model.neurons), dtype=torch.float32)
        self._running.batch = _Batch(passages, mask, weights, out)
        try:
            backbone(self.model.model)(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        finally:
            self._running.batch = None
        return out.numpy()

    def _pool(self, position: int, ffn: FFN, z: Tensor, h: Tensor) -> None:
        batch: _Batch | None = getattr(self._running, "batch", None)
        if batch is None:  # somebody else's forward pass
            return
        mask, weights = batch.mask.to(z.device), batch.weights.to(z.device)
        # Some models (OPT) flatten batch and tokens into one axis before the FFN.
        z, h = z.reshape(*mask.shape, -1), h.reshape(*mask.shape, -1)
        size = torch.linalg.vector_norm(h.float(), dim=-1)
        share = weights / torch.where(size > 0, size, torch.inf)[:, None, :]
        # Padding may hold anything, NaN included: it must not reach the product, where 0 * NaN = NaN.
        magnitude = z.abs().float().masked_fill_(~mask[..., None], 0.0)
        share = share.masked_fill_(~mask[:, None, :], 0.0)
        pooled = torch.bmm(share, magnitude) * self.norms[position].to(z.device)
        # An infinite ||h|| would hide as contributions of 0.
        known = torch.isfinite(size).masked_fill(~mask, True).all(dim=-1)
        finite = torch.isfinite(pooled).all(dim=-1).all(dim=-1) & known
        if not bool(finite.all()):
            culprit = batch.passages[int((~finite).nonzero()[0, 0])].name
            raise NumericError(
                f"NaN or infinite activation in layer {ffn.layer} on example {culprit!r}.",
                "Load the model with --dtype float32, or leave that question out.",
            )
        batch.out[:, :, self.starts[position] : self.starts[position + 1]] = pooled.cpu()

    def _pack(self, passages: Sequence[Passage]) -> tuple[Tensor, Tensor, Tensor]:
        """Right-padded ids, attention mask and averaging weights (passages, regions, tokens)."""
        longest = max(len(passage.ids) for passage in passages)
        pad = self.model.tokenizer.pad_token_id
        ids = np.full((len(passages), longest), pad if isinstance(pad, int) else 0, dtype=np.int64)
        mask = np.zeros((len(passages), longest), dtype=bool)
        weights = np.zeros((len(passages), len(self.regions), longest), dtype=np.float32)
        for row, passage in enumerate(passages):
            length = len(passage.ids)
            ids[row, :length] = passage.ids
            mask[row, :length] = True
            for column, region in enumerate(self.regions):
                tokens = passage.mask(region)
                weights[row, column, :length] = tokens / max(int(tokens.sum()), 1)
        device = self.model.device
        return (torch.from_numpy(array).to(device) for array in (ids, mask, weights))  # pyright: ignore[reportReturnType]


def backbone(model: nn.Module) -> nn.Module:
    """The model without its LM head, whose cost grows with the vocabulary."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


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
