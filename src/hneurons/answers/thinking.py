"""The thinking block of a reasoning model: where it ends, so that it never becomes part of the answer.

A response is thinking, then what is said. The block begins with an opening mark, in the response or at the end of the
prompt where the chat template puts it, and ends with the *last* closing mark; white space after that belongs to it. A
block that is opened and not closed is the whole response: nothing has been said. Marks are searched in the text that
the tokens write, special tokens included, so it doesn't matter how a tokenizer cuts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Marks(NamedTuple):
    """How a family of models marks its thinking."""

    opening: str
    closing: str
    force: str
    """What to write when the block has to end."""


MARKS = (
    # DeepSeek-R1 and its distills, Qwen3, SmolLM3, GLM-4.5
    Marks("<think>", "</think>", "\n</think>\n\n"),
    # Magistral
    Marks("[THINK]", "[/THINK]", "[/THINK]"),
    # gpt-oss
    Marks(
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    # Seed-OSS
    Marks("<seed:think>", "</seed:think>", "</seed:think>"),
)


def left_open(prompt: str) -> Marks | None:
    """The marks of a block that the end of a prompt opens, as some chat templates do."""
    return next((marks for marks in MARKS if prompt.rstrip().endswith(marks.opening)), None)


def thinking_length(text: str, opened: bool = False) -> int:
    """Characters of the thinking block at the start of a response, white space after it included.

    Args:
        text: the response with special tokens.
        opened: whether the prompt left a block open.
    """
    end = max((place + len(m.closing) for m in MARKS if (place := text.rfind(m.closing)) >= 0), default=0)
    begun = opened or any(text.lstrip().startswith(marks.opening) for marks in MARKS)
    # Opened again after the last closing mark, or never closed: nothing was said.
    again = any(marks.opening in text[end:] for marks in MARKS)
    if again or (begun and not end):
        return len(text)
    return end + len(text[end:]) - len(text[end:].lstrip()) if end else 0


def thinking_tokens(pieces: Sequence[str], opened: bool = False) -> int:
    """Tokens of the thinking block; `pieces` are the texts that the tokens write, special tokens included.

    A token that writes the block's last characters and more belongs to the block.
    """
    length = thinking_length("".join(pieces), opened)
    count = written = 0
    while written < length and count < len(pieces):
        written += len(pieces[count])
        count += 1
    return count


class Budget:
    """Watches one response while it is written, and closes its thinking block when the budget is used up.

    Args:
        tokens: largest number of thinking tokens before the closing mark is forced.
        force: tokens of `Marks.force` for each kind of marks.
        opened: the marks of the block that the prompt left open.
    """

    def __init__(self, tokens: int, force: Mapping[Marks, Sequence[int]], opened: Marks | None) -> None:
        self.spoken = 0
        """Tokens after the block; of a response without one, all."""
        self._tokens = tokens
        self._force = force
        self._marks = opened
        self._text = ""
        self._written = 0
        self._queue: list[int] | None = None
        # None: the first tokens may still become an opening mark.
        self._thinking: bool | None = True if opened else None

    def forced(self) -> int | None:
        """The token to write next, whatever the model would: the closing mark, once the budget is used up."""
        if self._queue is None and self._thinking and self._marks and self._written >= self._tokens:
            self._queue = list(self._force[self._marks])
        return self._queue.pop(0) if self._queue else None

    def add(self, piece: str) -> None:
        """Take note of a token by the text it wrote."""
        self._text += piece
        self._written += 1
        if self._thinking is False:
            self.spoken += 1
        elif self._thinking:
            self._thinking = not any(marks.closing in self._text for marks in MARKS)
        else:
            bare = self._text.lstrip()
            self._marks = next((marks for marks in MARKS if bare.startswith(marks.opening)), None)
            if self._marks:
                self._thinking = True
            elif not any(marks.opening.startswith(bare) for marks in MARKS):
                self._thinking, self.spoken = False, self._written

    def is_full(self, limit: int) -> bool:
        """Whether `limit` tokens have been said, white space before anything else included."""
        return self.spoken >= limit or (self._thinking is None and self._written >= limit)
