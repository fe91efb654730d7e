"""What a server that speaks OpenAI's completions sends back, as far as it is read here."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Token(BaseModel):
    """A token that was drawn."""

    id: int | None = None
    logprob: float | None = None


class Logprobs(BaseModel):
    """One a token, in either form."""

    token_logprobs: list[float | None] | None = None
    content: list[Token] | None = None
    """In place of the other, as llama.cpp has them, with ids."""

    def values(self) -> list[float | None] | None:
        """Of each token."""
        if self.token_logprobs is None and self.content is not None:
            return [token.logprob for token in self.content]
        return self.token_logprobs


class Choice(BaseModel):
    """A response."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None

    @property
    def tells_ids(self) -> bool:
        """Whether some ids came with it, so that most responses of that server can be checked by theirs."""
        return bool(self.logprobs and any(token.id is not None for token in self.logprobs.content or ()))


class Usage(BaseModel):
    """What the server counted."""

    completion_tokens: int | None = None


class Completion(BaseModel):
    """The whole reply."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None

    def choice(self) -> Choice:
        """The first, with the token ids that llama.cpp gives among the log-probabilities; it leaves out those of which
        several write one letter, and then the ids are of no use."""
        made = self.choices[0]
        content = made.logprobs.content if made.logprobs else None
        if made.token_ids is None and content is not None and self.usage is not None:
            ids = [token.id for token in content if token.id is not None]
            if len(ids) == len(content) == self.usage.completion_tokens:
                made.token_ids = ids
        return made
