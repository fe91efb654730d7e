"""Completions of a text as the official client sees them."""

from __future__ import annotations

import openai
import pytest

from server_tools import Live, chunks_of, official_client, plain_server  # noqa: F401

NAME = "fake-135m"
TEXT = "The capital of Australia"


def test_a_whole_completion(client: openai.OpenAI, server: Live):
    reply = client.completions.create(model=NAME, prompt=TEXT, max_tokens=50)
    assert (reply.object, reply.model) == ("text_completion", NAME)
    choice = reply.choices[0]
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("The capital of Australia is Sydney.", "stop", None)
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 8)
    assert choice.model_extra["hneurons"]["answer"]["text"] == "Sydney"
    assert server.service.jobs[-1].prompt == TEXT


def test_sixteen_tokens_unless_told_otherwise(client: openai.OpenAI):
    reply = client.completions.create(model=NAME, prompt="count")
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].text.split() == [str(i) for i in range(1, 17)]


def test_several_prompts_have_n_choices_each_in_order(client: openai.OpenAI):
    reply = client.completions.create(model=NAME, prompt=["one", "two words"], n=2, seed=4, max_tokens=50)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text.split(". ")[0] for choice in reply.choices] == ["You said 1 words"] * 2 + [
        "You said 2 words"
    ] * 2
    assert reply.choices[0].text != reply.choices[1].text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == 3


def test_a_stream_writes_what_the_whole_completion_says(client: openai.OpenAI, server: Live):
    options = {"model": f"{NAME}@0", "prompt": TEXT, "max_tokens": 50}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    raw = chunks_of(server.post(options | {"stream": True}, "/v1/completions"))
    tokens = [token["text"] for chunk in raw[:-1] for token in chunk["choices"][0]["hneurons"]["tokens"]]
    assert "".join(tokens) == whole.choices[0].text
    assert raw[-1]["choices"][0]["hneurons"]["alpha"] == 0


@pytest.mark.parametrize("count", [0, 2])
def test_logprobs_as_completions_have_them(client: openai.OpenAI, count: int):
    options = {"model": NAME, "prompt": TEXT, "max_tokens": 50, "logprobs": count}
    choice = client.completions.create(**options).choices[0]
    told = choice.logprobs
    assert told is not None
    assert "".join(told.tokens or []) == choice.text
    assert told.text_offset == [choice.text.index(token) for token in told.tokens or []]
    assert all(len(top) == count for top in told.top_logprobs or [])
    if count:
        assert [top[token] for top, token in zip(told.top_logprobs, told.tokens, strict=True)] == told.token_logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**options, stream=True)]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [value for part in parts if part for value in getattr(part, name)] == getattr(told, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "."), ("logit_bias", {"1": 5}), ("frequency_penalty", 1)],
)
def test_what_is_not_supported_is_refused(client: openai.OpenAI, name: str, value: object):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt=TEXT, **{name: value})
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2]], [], None])
def test_a_prompt_is_text(client: openai.OpenAI, prompt: object):
    with pytest.raises(openai.UnprocessableEntityError):
        client.completions.create(model=NAME, prompt=prompt)


def test_an_empty_prompt_is_refused_by_the_service(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="The prompt is empty"):
        client.completions.create(model=NAME, prompt="")
