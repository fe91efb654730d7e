"""Conversations as the live part gets them, and the text that a model continues after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from hneurons.errors import UsageError
from hneurons.live.jobs import Message
from hneurons.models.load import StudyModel

Prompt = str | Sequence[Message | dict[str, str]]
"""A user's question, put as one user turn as it is; or a conversation."""
USUAL_CONTEXT = 2048
"""Tokens, where a model doesn't say how many it can read."""
ROLES = ("system", "user", "assistant")


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """The conversation.

    Raises:
        UsageError: a turn that is none.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    turns: list[Message] = []
    for turn in prompt:
        if isinstance(turn, dict):
            role, content = turn.get("role"), turn.get("content")
            if role not in ROLES or not isinstance(content, str):
                raise UsageError(
                    f"{turn!r:.80} is no turn of a conversation.", "Give role (system, user, assistant) and content."
                )
            turn = Message(role, content)
        turns.append(turn)
    return tuple(turns)


def chat_text(model: StudyModel, turns: Sequence[Message]) -> str:
    """The text that the model continues as the assistant.

    Raises:
        UsageError: there is no turn, or the model's chat template refuses them.
    """
    if not turns:
        raise UsageError("The conversation is empty.", "Give at least one message.")
    try:
        return model.chat([{"role": turn.role, "content": turn.content} for turn in turns])
    except TemplateError as error:
        raise UsageError(f"The model's chat template refuses this conversation ({error}).") from error


def question_of(turns: Sequence[Message]) -> str:
    """What the response answers: the last user turn."""
    return next((turn.content for turn in reversed(turns) if turn.role == "user"), "")


def context_of(model: StudyModel) -> int:
    """Tokens that the model can read, prompt and response together."""
    text: Any = model.model.config.get_text_config(decoder=True)
    limits = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), USUAL_CONTEXT)
