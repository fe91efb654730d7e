"""Prompts through the model, together: what decoding starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from hneurons.answers.kvcache import allows_gaps, common_prefix, new_cache, padded, select
from hneurons.models.load import StudyModel
from hneurons.models.structure import backbone

Prompt = tuple[float, tuple[int, ...]]
"""What a row of a prefill is: alpha and token ids."""
Turn = Callable[[list[float]], None]
"""Told the alpha of each row before a forward pass, in the thread that makes it."""


@dataclass
class Prefilled:
    """Prompts that went through the model, left-padded to one length."""

    rows: dict[Prompt, int]
    cache: DynamicCache
    logits: Tensor
    """Of the last prompt token: (rows, vocabulary)."""
    mask: Tensor
    """Attention mask: (rows, tokens)."""


@torch.inference_mode()
def prefill(model: StudyModel, prompts: Sequence[Prompt], turn: Turn) -> Prefilled:
    """Put different prompts through the model in one batch.

    What all of them begin with (the template's system turn) goes through the model once for each alpha.
    """
    cache = new_cache(model.model.config)
    gaps = allows_gaps(model.model.config, cache)
    texts = [ids for _, ids in prompts]
    shared = common_prefix(texts) if len(prompts) > 1 and gaps else 0
    if shared:
        alphas = sorted({alpha for alpha, _ in prompts})
        turn(alphas)
        ids, mask = padded([texts[0][:shared]] * len(alphas), model.device)
        read(model, ids, mask, mask.cumsum(-1) - 1, cache)
        select(cache, torch.tensor([alphas.index(alpha) for alpha, _ in prompts], device=ids.device))
    turn([alpha for alpha, _ in prompts])
    ids, mask = padded([text[shared:] for text in texts], model.device)
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=-1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    logits = forward(model, ids, mask, positions, cache)
    return Prefilled({prompt: row for row, prompt in enumerate(prompts)}, cache, logits, mask)


def forward(model: StudyModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of the last token of each row, float32: (rows, vocabulary). `cache` takes in the new tokens."""
    output = model.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


def read(model: StudyModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> None:
    """`forward` where nobody wants the logits: without the LM head."""
    backbone(model.model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
