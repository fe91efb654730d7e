"""One chat with a language model behind an OpenAI-compatible endpoint, in the strictest format that it takes."""

from __future__ import annotations

from pydantic import BaseModel, Field, ValidationError

from hneurons.answers.connection import Connection, Failure
from hneurons.answers.endpoint import Endpoint
from hneurons.runfolder import Json

FORMATS = ("json_schema", "json_object", "plain")
"""Ways to ask for JSON, strictest first; an endpoint that refuses one gets the next."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class Usage(BaseModel):
    """Tokens as the endpoint counts them; None if it doesn't."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """What an endpoint sends back, as far as it is used."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None
    model: str | None = None

    @property
    def text(self) -> str:
        """What the model said; empty if it said nothing."""
        return self.choices[0].message.content or ""


class Chat(Connection):
    """Sends chats to an endpoint, one at a time in each thread. Needs the extra `judge`.

    Raises:
        MissingExtraError: `openai` is not installed.
        JudgeError: no API key.
    """

    def __init__(self, where: Endpoint) -> None:
        super().__init__(where)
        self._format = 0

    def complete(self, messages: list[dict[str, str]], schema: type[BaseModel]) -> Completion | None:
        """The completion, in the strictest format that the endpoint takes; None if it refuses this prompt.

        Raises:
            JudgeError: the endpoint fails after all retries, or refuses every request.
        """
        level = self._format
        outcome = self._try(messages, schema, level)
        while isinstance(outcome, Failure) and outcome.is_of_the_request and level + 1 < len(FORMATS):
            level += 1
            outcome = self._try(messages, schema, level)
        if isinstance(outcome, Completion):
            self._format = max(level, self._format)
            return outcome
        if outcome.is_of_the_prompt:
            return None
        # Not raised where the library's error was caught: that one may hold the key, and would hang on this.
        raise outcome.error

    def _try(self, messages: list[dict[str, str]], schema: type[BaseModel], level: int) -> Completion | Failure:
        body: Json = {"model": self.where.model, "messages": messages}
        if self.where.temperature is not None:
            body["temperature"] = self.where.temperature
        if FORMATS[level] == "json_schema":
            shape = {"name": "reply", "strict": True, "schema": schema.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        elif FORMATS[level] == "json_object":
            body["response_format"] = {"type": "json_object"}
        try:
            raw = self.client.chat.completions.with_raw_response.create(**body)
            return Completion.model_validate_json(raw.http_response.content)
        except ValidationError:
            return _NOTHING
        except self.openai.OpenAIError as error:
            return self.failure(error)


_NOTHING = Completion(choices=[_Choice(message=_Message())])
