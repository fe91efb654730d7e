"""The middleware around a fake of vLLM's server; tests/vllm has the same around vLLM's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hneurons.errors import ServiceError, UsageError
from hneurons.live.monitor import Monitor
from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card
from hneurons.vllm.replies import Risks, question
from hneurons.vllm.risks import Scored, Teller, risks
from test_tokens import NEURONS, card_of

ASKED: dict[str, Any] = {"vllm_xargs": {"hneurons": '{"monitor": true, "alpha": 2}'}}


@pytest.fixture
def card(llama: StudyModel) -> Card:
    return card_of(llama, NEURONS)


class Engine:
    """Whoever a server asks for scores: two workers, each with half of every term."""

    def __init__(self, model: StudyModel, scores: Mapping[str, tuple[list[int], list[float]]]) -> None:
        self.model, self.scores, self.calls = model, scores, list[Any]()

    def get_tokenizer(self) -> Any:
        return self.model.tokenizer

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[str]:
        self.calls.append((method, *args))
        told = {
            name: {"prompt": [1, 2], "ids": ids, "scores": [s / 2 for s in scores], "ends": [2]}
            for name, (ids, scores) in self.scores.items()
            if any(outside in name for outside in args[0])
        }
        return [json.dumps(told)] * 2


class Server:
    """Answers with prepared messages."""

    def __init__(self, messages: list[dict[str, Any]], engine: Engine) -> None:
        self.messages, self.got = messages, b""
        self.state = SimpleNamespace(engine_client=engine)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.got = message["body"]
        for each in self.messages:
            await send(each)


def reply(body: Any, status: int = 200) -> list[dict[str, Any]]:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    return [
        {"type": "http.response.start", "status": status, "headers": headers},
        {"type": "http.response.body", "body": data[:5], "more_body": True},
        {"type": "http.response.body", "body": data[5:], "more_body": False},
    ]


def call(
    server: Server, request: Any, path: str = "/v1/chat/completions", headers: Any = ()
) -> tuple[list[dict[str, Any]], bytes]:
    sent: list[dict[str, Any]] = []
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    pieces = [{"type": "http.request", "body": body[i : i + 50], "more_body": True} for i in range(0, len(body), 50)]
    pieces.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return pieces.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "app": server, "headers": list(headers)}
    asyncio.run(Risks(server)(scope, receive, send))
    return sent, b"".join(message.get("body", b"") for message in sent)


@pytest.fixture(autouse=True)
def environment(card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card.save(tmp_path / "neurons.json")
    monkeypatch.setenv("HNEURONS_CARD", str(tmp_path))


def ids_of(model: StudyModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_choice_gets_its_risks(llama: StudyModel, card: Card):
    text = "The capital of France is Paris."
    ids = ids_of(llama, text)
    scores = np.linspace(-1, 2, len(ids) + 1)
    engine = Engine(llama, {"chatcmpl-x-12345678": ([*ids, llama.tokenizer.eos_token_id], scores.tolist())})
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = {"id": "chatcmpl-x", "choices": [choice], "usage": {"completion_tokens": len(ids) + 1}}
    server = Server(reply(body), engine)
    asked: Any = {"messages": [{"role": "user", "content": "What is the capital of France?"}], **ASKED}
    sent, data = call(server, asked)
    assert json.loads(server.got) == asked
    lengths = [value for name, value in sent[0]["headers"] if name == b"content-length"]
    assert lengths == [str(len(data)).encode()]
    found = json.loads(data)["choices"][0]
    told = found.pop("hneurons")
    assert found == choice

    # The monitor's own reading of the same scores.
    monitor = Monitor(llama, card)
    reading = Teller(llama.tokenizer, card).reading(
        Scored((1, 2), tuple(ids), scores[:-1] + card.probe.intercept), "What is the capital of France?"
    )
    assert reading is not None
    assert told["alpha"] == 2
    assert told["risk"] == pytest.approx(reading.risk, abs=1e-6)
    assert told["response_risk"] == pytest.approx(reading.response_risk, abs=1e-6)
    assert told["flagged"] is reading.flagged
    assert told["threshold"] == monitor.threshold
    assert told["answer"]["text"] == text[told["answer"]["start"] : told["answer"]["end"]]
    assert "Paris" in told["answer"]["text"]
    assert "".join(token["text"] for token in told["tokens"]) == text
    whole = card.risk(scores[:-1] + card.probe.intercept)
    np.testing.assert_allclose([token["risk"] for token in told["tokens"]], whole, atol=1e-6)


def test_a_token_that_was_never_read_has_no_risk(llama: StudyModel):
    ids = ids_of(llama, "It is Paris, I think")
    engine = Engine(llama, {"cmpl-x-0-12345678": (ids[:-1], [0.5] * (len(ids) - 1))})
    text = llama.tokenizer.decode(ids)
    body = {"id": "cmpl-x", "choices": [{"index": 0, "text": text}], "usage": {"completion_tokens": len(ids)}}
    _, data = call(Server(reply(body), engine), {"prompt": "Where?", **ASKED}, "/v1/completions")
    tokens = json.loads(data)["choices"][0]["hneurons"]["tokens"]
    assert "".join(token["text"] for token in tokens) == text
    assert [token["risk"] is None for token in tokens] == [False] * (len(ids) - 1) + [True]


def test_what_a_stop_string_cut_off_is_not_scored(llama: StudyModel):
    ids = ids_of(llama, "Paris. The novel")
    engine = Engine(llama, {"cmpl-x-0-12345678": (ids, [float(i) for i in range(len(ids))])})
    body = {"id": "cmpl-x", "choices": [{"index": 0, "text": "Paris."}], "usage": {"completion_tokens": len(ids)}}
    _, data = call(Server(reply(body), engine), {"prompt": "Where?", **ASKED}, "/v1/completions")
    tokens = json.loads(data)["choices"][0]["hneurons"]["tokens"]
    assert "".join(token["text"] for token in tokens) == "Paris."


def test_several_prompts_and_choices_are_told_apart(llama: StudyModel, card: Card):
    ids = ids_of(llama, "Paris")
    scores = {(prompt, n): 0.1 + prompt + 0.5 * n for prompt in range(2) for n in range(2)}
    named = {f"{n}_cmpl-x-{prompt}-12345678": (ids, [s] * len(ids)) for (prompt, n), s in scores.items()}
    choices = [{"index": index, "text": "Paris"} for index in (3, 0, 2, 1)]
    server = Server(
        reply({"id": "cmpl-x", "choices": choices, "usage": {"completion_tokens": 9}}), Engine(llama, named)
    )
    _, data = call(server, {"prompt": ["A?", "B?"], "n": 2, **ASKED}, "/v1/completions")
    for choice in json.loads(data)["choices"]:
        expected = card.risk(scores[divmod(choice["index"], 2)] + card.probe.intercept)
        assert choice["hneurons"]["response_risk"] == pytest.approx(float(expected), abs=1e-6)


def test_a_stream_gets_one_chunk_more_before_its_last_line(llama: StudyModel):
    ids = ids_of(llama, "It is Paris")
    engine = Engine(llama, {"chatcmpl-x-12345678": (ids, [0.5] * len(ids))})
    head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    chunks = [{**head, "choices": [{"index": 0, "delta": {"content": t}}]} for t in ("It", " is", " Paris")]
    lines = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    messages: list[dict[str, Any]] = [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
        }
    ]
    cuts = [0, 30, 100, len(lines) - 9, len(lines)]
    parts = [lines[a:b] for a, b in pairwise(cuts)]
    messages += [{"type": "http.response.body", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.response.body", "body": b"", "more_body": False})
    asked = {"messages": [{"role": "user", "content": "Where?"}], "stream": True, **ASKED}
    sent, data = call(Server(messages, engine), asked)
    events = data.split(b"\n\n")
    assert [json.loads(event.removeprefix(b"data: ")) for event in events[:3]] == chunks
    news = json.loads(events[3].removeprefix(b"data: "))
    assert {key: news[key] for key in head} == head
    assert "".join(token["text"] for token in news["choices"][0]["hneurons"]["tokens"]) == "It is Paris"
    assert events[4:] == [b"data: [DONE]", b""]
    assert sent[-1]["more_body"] is False
    assert len(sent) > 2  # passed on as it came


@pytest.mark.parametrize(
    "request_",
    [
        b"{", b"[]", b'{"vllm_xargs": 3}', {"messages": []}, {"vllm_xargs": {"hneurons": '{"alpha": 2}'}},
        {"vllm_xargs": {"hneurons": '{"alpha": 200, "monitor": true}'}},
    ],
)  # fmt: skip
def test_requests_that_do_not_ask_pass_through(llama: StudyModel, request_: Any):
    messages = reply({"id": "chatcmpl-x", "choices": []})
    server = Server(messages, Engine(llama, {}))
    assert call(server, request_)[0] == messages
    assert server.got == (request_ if isinstance(request_, bytes) else json.dumps(request_).encode())
    assert not server.state.engine_client.calls


def test_a_name_that_a_client_gives_is_made_its_own(llama: StudyModel):
    """Scores are fetched by it, and two requests may have the same one."""
    names: list[bytes] = []

    class Named(Server):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            names.append(dict(scope.get("headers", ())).get(b"x-request-id", b""))
            await super().__call__(scope, receive, send)

    body = {"id": "chatcmpl-x", "choices": []}
    for request, header in (
        ({"messages": [], **ASKED}, b"7"), ({"messages": [], **ASKED}, b"7"),
        ({"messages": [], "request_id": "7", **ASKED}, b""), ({"messages": [], **ASKED}, b""), ({"messages": []}, b"7"),
    ):  # fmt: skip
        call(Named(reply(body), Engine(llama, {})), request, headers=[(b"x-request-id", header)] if header else [])
    assert [name.partition(b".")[0] for name in names] == [b"7", b"7", b"7", b"", b"7"]
    assert len(set(names[:3])) == 3
    assert names[4] == b"7"  # nothing is fetched for it


def test_a_request_without_end_is_refused(llama: StudyModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hneurons.vllm.replies.LARGEST", 200)
    server = Server([], Engine(llama, {}))
    sent, data = call(server, {"messages": [{"role": "user", "content": "x" * 300}], **ASKED})
    assert (sent[0]["status"], server.got) == (413, b"")
    assert "200 bytes" in json.loads(data)["error"]["message"]


def test_a_reply_without_text_is_not_searched(llama: StudyModel, monkeypatch: pytest.MonkeyPatch):
    """That would take the server's time: a decoding for each of its tokens."""
    monkeypatch.setattr("hneurons.vllm.risks.decode", lambda *_: pytest.fail("it was decoded"))
    engine = Engine(llama, {"chatcmpl-x-12345678": (ids_of(llama, "It is Paris"), [0.5] * 3)})
    body = {"id": "chatcmpl-x", "choices": [{"index": 0, "message": {"content": None, "reasoning": "It is Paris"}}]}
    _, data = call(Server(reply(body), engine), {"messages": [], **ASKED})
    assert json.loads(data)["choices"][0]["hneurons"]["tokens"] == []


def test_an_error_passes_through(llama: StudyModel):
    messages = reply({"error": {"message": "no"}}, status=400)
    sent, data = call(Server(messages, Engine(llama, {})), ASKED)
    assert (sent[0]["status"], json.loads(data)) == (400, {"error": {"message": "no"}})


def test_a_choice_that_no_worker_knows_has_nulls(llama: StudyModel):
    body = {"id": "chatcmpl-x", "choices": [{"index": 0, "message": {"content": "Paris"}}]}
    _, data = call(Server(reply(body), Engine(llama, {})), {"messages": [], **ASKED})
    told = json.loads(data)["choices"][0]["hneurons"]
    assert told["risk"] is None
    assert told["tokens"] == []


def test_middleware_without_a_card_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HNEURONS_CARD")
    with pytest.raises(UsageError, match="Set HNEURONS_CARD"):
        Risks(lambda *_: None)  # type: ignore[arg-type,return-value]


def test_the_question_of_a_request():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert question({"messages": turns}, 0) == "a"
    parts = [{"type": "text", "text": "Who"}, {"type": "image_url"}]
    assert question({"messages": [{"role": "user", "content": parts}]}, 0) == "Who\n"
    assert question({"prompt": ["x", "y"]}, 1) == "y"
    assert question({"prompt": "x"}, 0) == "x"
    assert question({"prompt": [1, 2]}, 0) == ""
    assert question({"prompt": [[1, 2], [3]]}, 1) == ""


def test_risks_in_the_process(llama: StudyModel, card: Card):
    ids = ids_of(llama, "It is Paris")
    reply = json.dumps({"7-12345678": {"prompt": [1], "ids": ids, "scores": [0.5] * len(ids), "ends": []}})
    engine = SimpleNamespace(engine_core=None, output_processor=SimpleNamespace(request_states={}))
    llm = SimpleNamespace(
        collective_rpc=lambda *_, **__: [reply], get_tokenizer=lambda: llama.tokenizer, llm_engine=engine
    )
    choice = SimpleNamespace(index=0, text="It is Paris", token_ids=ids, stop_reason=None)
    output = SimpleNamespace(request_id="7", outputs=[choice])
    for text in ("It is Paris", ""):  # no text where the parameters say `detokenize=False`
        choice.text = text
        ((told,),) = risks(llm, [output], ["Where?"], card)
        assert told["response_risk"] == pytest.approx(float(card.risk(0.5 + card.probe.intercept)), abs=1e-6)
    choice.stop_reason = "It is"  # a stop string cut all of it off
    ((told,),) = risks(llm, [output], ["Where?"], card)
    assert (told["response_risk"], told["tokens"]) == (None, [])
    with pytest.raises(UsageError, match="1 outputs, but 0 questions"):
        risks(llm, [output], [], card)
    del llm.collective_rpc
    with pytest.raises(ServiceError, match="vLLM failed while it told what it had scored: AttributeError"):
        risks(llm, [output], ["Where?"], card)
