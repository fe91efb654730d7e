"""The server over the real service, with a tiny random model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import tiny
from hneurons.live.service import BatchService
from server_tools import Live, chunks_of, live, wait_for
from test_tokens import card_of

CARD = [(layer, index, 0.1) for layer in range(3) for index in range(0, 40, 2)]
SAY = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    model = tiny.study("llama", double=True)
    with live(BatchService(model, card_of(model, CARD, -0.7), max_tokens=40)) as running:
        yield running


@pytest.fixture
def name(server: Live) -> str:
    return server.service.name


def test_a_stream_says_what_the_whole_response_says(server: Live, name: str):
    for alpha in (1, 0, 30):
        body: dict[str, Any] = {"model": f"{name}@{alpha}", "messages": SAY, "temperature": 0, "max_tokens": 12}
        whole = server.post(body).json()["choices"][0]
        chunks = [chunk["choices"][0] for chunk in chunks_of(server.post(body | {"stream": True, "logprobs": True}))]
        assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == whole["message"]["content"]
        told = [chunk["hneurons"] for chunk in chunks[1:-1] if "hneurons" in chunk]
        risks = [risk["risk"] for each in told for risk in each["risks"]]
        tokens = [token["text"] for each in told for token in each["tokens"]]
        assert [(token["text"], token["risk"]) for token in whole["hneurons"]["tokens"]] == list(
            zip(tokens, risks, strict=True)
        )
        logprobs = [token["token"] for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
        assert logprobs == tokens
        assert whole["hneurons"]["alpha"] == alpha
        assert whole["hneurons"]["tokens"][-1]["running"] == whole["hneurons"]["response_risk"]


def test_the_dial_and_the_seed_matter(server: Live, name: str):
    def said(model: str, **options: object) -> list[str | None]:
        with server.openai() as client:
            reply = client.chat.completions.create(model=model, messages=SAY, max_tokens=12, **options)
        return [choice.message.content for choice in reply.choices]

    assert said(name, temperature=0) == said(f"{name}@1", temperature=0) != said(f"{name}@30", temperature=0)
    assert said(name, seed=-3, n=2) == said(name, seed=-3, n=2)
    assert len(set(said(name, seed=1, n=2))) == 2


def test_what_the_service_refuses(server: Live, name: str):
    with server.openai() as client:
        with pytest.raises(openai.BadRequestError, match="The prompt is empty"):
            client.completions.create(model=name, prompt="")
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.completions.create(model=name, prompt="word " * 5000)
        assert caught.value.code == "context_length_exceeded"


def test_hanging_up_frees_the_batch(server: Live, name: str):
    with server.openai() as client:
        stream = client.chat.completions.create(model=name, messages=SAY, stream=True, n=4)
        next(iter(stream))
        stream.close()
    wait_for(lambda: server.service.running + server.service.waiting == 0)
