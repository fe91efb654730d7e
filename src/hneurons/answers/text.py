"""Token ids to text and back to characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hneurons.models.load import StudyModel
from hneurons.types import Span


def decode(model: StudyModel, ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out, spaces as they are."""
    text: Any = model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def pieces(model: StudyModel, ids: Sequence[int]) -> list[str]:
    """What each token writes by itself, special tokens included: enough to find marks in, not to read."""
    written: Any = model.tokenizer.batch_decode(
        [[token] for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return [str(piece) for piece in written]


def token_offsets(model: StudyModel, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of `text` that each token wrote; empty for end-of-turn tokens.

    Found by decoding ever longer prefixes: exact also where the tokenizer would cut the same text otherwise, and
    for characters that spread over several tokens (they belong to the token that completes them).
    """
    offsets: list[tuple[int, int]] = []
    start = 0
    for length in range(1, len(ids) + 1):
        prefix = decode(model, ids[:length])
        end = min(len(prefix), len(text))
        while end > start and prefix[:end] != text[:end]:
            end -= 1
        offsets.append((start, max(end, start)))
        start = max(end, start)
    return offsets


def span_text(text: str, span: Span) -> str:
    """The characters of `text` in `span`."""
    return text[span.start : span.end]
