"""Token ids to text and back to characters."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Protocol

from hneurons.types import Span


class Writes(Protocol):
    """Whoever has a tokenizer: a study model, or an engine."""

    @property
    def tokenizer(self) -> Any:
        """A transformers tokenizer."""
        ...


def decode(model: Writes, ids: Sequence[int]) -> str:
    """Text of token ids, special tokens left out, spaces as they are."""
    text: Any = model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def pieces(model: Writes, ids: Sequence[int]) -> list[str]:
    """What each token writes by itself, special tokens included: enough to find marks in, not to read."""
    written: Any = model.tokenizer.batch_decode(
        [[token] for token in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return [str(piece) for piece in written]


def token_offsets(model: Writes, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
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


def tokens_of(model: Writes, ids: Sequence[int], text: str, chars: Span) -> Span | None:
    """The tokens that wrote characters `chars` of `text`, from the first to the last; None if none did.

    The same as by `token_offsets`, with a few prefixes decoded instead of all.
    """

    def written(length: int) -> int:
        prefix = decode(model, ids[:length])
        return next(
            (i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text))
        )

    lengths = range(len(ids) + 1)
    first = bisect_right(lengths, chars.start, key=written)
    if first > len(ids):
        return None
    # The end may lie in a character that no token completed.
    last = bisect_left(lengths, min(chars.end, written(len(ids))), key=written)
    return Span(first - 1, last) if first <= last else None


def span_text(text: str, span: Span) -> str:
    """The characters of `text` in `span`."""
    return text[span.start : span.end]
