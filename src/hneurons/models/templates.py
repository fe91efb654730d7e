"""What a tokenizer's chat template makes of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

Turn = dict[str, str]
"""role (`system`, `user`, `assistant`) and content."""


def templated(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], *, thinking: bool = False) -> str:
    """The text that the model continues as the assistant. Its special tokens are in it.

    Args:
        tokenizer: one with a chat template.
        turns: the conversation.
        thinking: whether to ask a reasoning model to think first, where the template knows how.
    """
    template = str(tokenizer.chat_template)
    options: dict[str, Any] = {name: thinking for name in ("enable_thinking", "thinking") if name in template}
    text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **options)
    assert isinstance(text, str)
    return text


def untemplated(turns: Sequence[Turn]) -> str:
    """The same for a model without a chat template: a line a turn, `User: ...`; what a system turn says comes first."""
    lines = [f"{turn['role'].capitalize()}: {turn['content'].strip()}\n" for turn in turns if turn["role"] != "system"]
    first = [f"{turn['content'].strip()}\n\n" for turn in turns if turn["role"] == "system"]
    return "".join([*first, *lines]) + "Assistant:"
