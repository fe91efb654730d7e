"""What the server's responses look like: OpenAI's, with an object `hneurons` in each choice."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic can't read that of `typing` before Python 3.12

from hneurons.live.jobs import Action

Finish = Literal["stop", "length"]


class TopNeuron(TypedDict):
    """A neuron and what it adds to the score: weight times contribution."""

    layer: int
    expert: int | None
    index: int
    value: float


class Answer(TypedDict):
    """The characters of the response that carry its claim."""

    start: int
    end: int
    text: str


class TokenRisk(TypedDict):
    """A token with its risk, and that of the response up to it."""

    text: str
    risk: float | None
    running: float | None
    top: list[TopNeuron]


class Summary(TypedDict):
    """What the probe says of a response; nulls without the monitor."""

    alpha: float
    risk: float | None
    flagged: bool | None
    threshold: float | None
    response_risk: float | None
    answer: Answer | None
    action: Action | None
    top: list[TopNeuron]
    tokens: NotRequired[list[TokenRisk]]


class NewToken(TypedDict):
    """A token of a stream."""

    index: int
    text: str


class NewRisk(TypedDict):
    """The risk of a token that came before."""

    index: int
    risk: float | None
    running: float | None
    top: list[TopNeuron]


class News(TypedDict):
    """Tokens and risks that became known."""

    tokens: list[NewToken]
    risks: list[NewRisk]


class Alternative(TypedDict):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Alternative):
    """A token of the response, and what else could have been there."""

    top_logprobs: list[Alternative]


class ChatLogprobs(TypedDict):
    """Log-probabilities as chat completions have them."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(TypedDict):
    """Log-probabilities as completions have them."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Usage(TypedDict):
    """Tokens that were used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(TypedDict):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    """One response."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    hneurons: Summary


class ChatCompletion(TypedDict):
    """Responses to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(TypedDict):
    """One continuation; in a chunk of a stream, its next part."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None
    hneurons: NotRequired[Summary | News]


class Completion(TypedDict):
    """Continuations of a text; in a stream, a chunk of them."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]


class Delta(TypedDict):
    """What is new in a turn."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChunkChoice(TypedDict):
    """What is new in a response."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    hneurons: NotRequired[Summary | News]


class ChatChunk(TypedDict):
    """A part of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class Model(TypedDict):
    """A name that requests may give."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(TypedDict):
    """The names."""

    object: Literal["list"]
    data: list[Model]


class CardNeuron(TypedDict):
    """A neuron of the probe; those with positive weight are the H-Neurons."""

    layer: int
    expert: int | None
    index: int
    column: int
    """Its place among all neurons of the layer: those of the dense part first, then expert by expert."""
    weight: float


class Limits(TypedDict):
    """The server's limits."""

    context: int
    max_prompt_tokens: int | None
    max_output_tokens: int
    max_choices: int
    max_body: int
    max_alpha: float


class CardReply(TypedDict):
    """What the playground needs to know of the card."""

    name: str
    alpha: float
    layers: int
    widths: list[int]
    neurons: list[CardNeuron]
    h_neurons: int
    total: int
    threshold: float
    verdict: str | None
    metrics: dict[str, Any]
    guarantee: str | None
    limits: Limits


class Health(TypedDict):
    """Whether the server takes requests."""

    status: Literal["ok", "draining"]
