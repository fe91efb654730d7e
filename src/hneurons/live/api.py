"""What a request to the server may say: OpenAI's chat completions and completions, and the extension `hneurons`.

A parameter that would change the response and isn't supported is declared here with the one value that changes nothing,
so that anything else is refused instead of ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from hneurons.live.jobs import Action
from hneurons.settings import LARGEST_ALPHA

MOST_MESSAGES = 1000
MOST_ALTERNATIVES = 20
Alpha = Annotated[float, Field(ge=0, le=LARGEST_ALPHA)]
Nothing = Annotated[list[Any], Field(max_length=0)]
"""An empty list."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Annotated[
    list[Text],
    Field(max_length=4),
    BeforeValidator(_listed, json_schema_input_type=Text | Annotated[list[Text], Field(max_length=4)]),
]
Prompts = Annotated[
    list[str],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]


class Asked(BaseModel):
    """A part of a request: its names and types are checked strictly, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PolicyRequest(Asked):
    """What to do when the risk is high."""

    action: Action
    threshold: float | None = Field(default=None, ge=0, le=1, description="Risk that is high. [the card's]")
    text: str = Field(default="I don't know.", max_length=2000, description="What `abstain` says instead.")
    alpha: Alpha = Field(default=0.0, description="The alpha of the second try of `regenerate`.")


class Extension(Asked):
    """The extension: the dial, the monitor and a policy."""

    alpha: Alpha | None = Field(default=None, description="What the H-Neurons are multiplied by.")
    monitor: bool = Field(default=True, description="Whether risks are computed.")
    policy: PolicyRequest | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.policy is not None and not self.monitor:
            raise PydanticCustomError("contradiction", "A policy needs the monitor.")
        return self


class StreamOptions(Asked):
    """What a stream tells besides the text."""

    include_usage: bool | None = Field(default=None, description="Whether a last chunk tells the usage.")
    include_obfuscation: bool | None = None


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ChatMessage(Asked):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts, json_schema_input_type=str | list[TextPart])]
    # As replies have them, so that one can be sent back as it came.
    name: None = None
    refusal: None = None
    annotations: Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    @property
    def text(self) -> str:
        """The parts, a line each."""
        return "\n".join(part.text for part in self.content)


class TextFormat(Asked):
    """Plain text."""

    type: Literal["text"]


class Request(Asked):
    """What both kinds of request have."""

    model: str = Field(max_length=1000, description="NAME, or NAME@ALPHA to turn the dial.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy. [1]")
    top_p: float | None = Field(default=None, ge=0, le=1, description="[1]")
    top_k: int | None = Field(default=None, ge=0, le=2**31 - 1, description="Not OpenAI's; 0 for no limit. [0]")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    n: int | None = Field(default=None, ge=1, le=128, description="Choices, within the server's limit. [1]")
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    hneurons: Extension | None = None

    # They change nothing that is said.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    # They would.
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None


class ChatRequest(Request):
    """A chat completion that is wanted."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1, description="The older name of `max_completion_tokens`.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES, description="Needs `logprobs`.")

    parallel_tool_calls: Any = None
    prediction: Any = None

    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("contradiction", "max_tokens and max_completion_tokens differ.")
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("contradiction", "top_logprobs needs logprobs: true.")
        return self


class CompletionRequest(Request):
    """A completion of a text that is wanted."""

    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=1, description="[16]")
    logprobs: int | None = Field(default=None, ge=0, le=MOST_ALTERNATIVES, description="Alternatives of each token.")

    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None


UNSUPPORTED = frozenset(
    (
        *("logit_bias", "presence_penalty", "frequency_penalty"),
        *("tools", "tool_choice", "functions", "function_call", "response_format", "modalities", "audio"),
        *("reasoning_effort", "verbosity", "web_search_options"),
        *("best_of", "echo", "suffix"),
        *("name", "refusal", "annotations", "tool_calls"),
    )
)
"""Declared with the one value that changes nothing."""
