"""What the server refuses: which status, and always OpenAI's error body."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest

from fake_service import FakeService
from hneurons.errors import ClosedError
from server_tools import COUNT, SAY, Live, chunks_of, live, log_lines, wait_for

NAME = "fake-135m"
BODY: dict[str, Any] = {"model": NAME, "messages": SAY}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(FakeService(), max_body=20_000, max_output_tokens=300, max_choices=4) as running:
        yield running


def refused(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of a response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    if code is not None:
        assert error["code"] == code
    return error


def send(server: Live, body: bytes, **headers: str) -> httpx.Response:
    with server.http() as client:
        return client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"} | headers)


# -- parameters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"),
        ("functions", [{"name": "f"}]), ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}), ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("logit_bias", {"50256": -100}), ("presence_penalty", 0.5), ("frequency_penalty", -1),
        ("modalities", ["text", "audio"]), ("audio", {"voice": "alloy", "format": "mp3"}),
        ("reasoning_effort", "high"), ("verbosity", "low"), ("web_search_options", {}),
    ],
)  # fmt: skip
def test_parameters_that_would_change_the_response_are_refused(server: Live, name: str, value: object):
    with server.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAME, messages=SAY, extra_body={name: value})
    assert caught.value.code == "unsupported_parameter"
    assert (caught.value.param or "").startswith(name)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", ["min_p", "repetition_penalty", "best_of", "max_token"])
def test_parameters_that_nobody_knows_are_refused(server: Live, name: str):
    error = refused(server.post(BODY | {name: 1}), 400, "unknown_parameter")
    assert error["param"] == name


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "tool", "content": "x"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "user", "name": "Eve", "content": "x"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
    ],
)
def test_turns_that_are_not_text_are_refused(server: Live, turn: dict[str, Any]):
    error = refused(server.post({"model": NAME, "messages": [turn]}), 400)
    assert error["code"] in ("unsupported_parameter", "unknown_parameter")
    assert error["param"].startswith("messages[0].")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 2.1}, "temperature"), ({"temperature": "1"}, "temperature"), ({"top_p": -0.1}, "top_p"),
        ({"top_p": True}, "top_p"), ({"n": 0}, "n"), ({"n": 1.5}, "n"), ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"), ({"seed": 2**63}, "seed"), ({"seed": "a"}, "seed"),
        ({"stop": ""}, "stop[0]"), ({"stop": ["a"] * 5}, "stop"), ({"stop": [1]}, "stop[0]"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"), ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"), ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"), ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"hneurons": {"alpha": -1}}, "hneurons.alpha"), ({"hneurons": {"alpha": 101}}, "hneurons.alpha"),
        ({"hneurons": {"policy": {"action": "pray"}}}, "hneurons.policy.action"),
        ({"hneurons": {"policy": {"action": "warn", "threshold": 1.1}}}, "hneurons.policy.threshold"),
        ({"hneurons": 1}, "hneurons"), ({"top_k": -1}, "top_k"),
    ],
)  # fmt: skip
def test_values_out_of_place_are_named(server: Live, change: dict[str, Any], param: str):
    error = refused(server.post(BODY | change), 422, "invalid_value")
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"top_logprobs": 2},
        {"hneurons": {"monitor": False, "policy": {"action": "warn"}}},
    ],
)
def test_contradictions(server: Live, change: dict[str, Any]):
    refused(server.post(BODY | change), 400, "invalid_request")


def test_the_extension_has_no_other_names(server: Live):
    error = refused(server.post(BODY | {"hneurons": {"alfa": 1}}), 400, "unknown_parameter")
    assert error["param"] == "hneurons.alfa"


def test_a_conversation_that_the_template_refuses(server: Live):
    turns = [*SAY, {"role": "system", "content": "late"}]
    error = refused(server.post({"model": NAME, "messages": turns}), 400, "invalid_request")
    assert error["message"].startswith("The chat template takes")


# -- limits ---------------------------------------------------------------------------------------------


def test_more_tokens_than_the_limit(server: Live):
    with server.openai() as client, pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model=NAME, messages=SAY, max_tokens=301)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "limit_exceeded")
    refused(server.post(BODY | {"max_completion_tokens": 10**18}), 422, "limit_exceeded")
    assert server.post(BODY | {"max_tokens": 300}).status_code == 200


def test_more_choices_than_the_limit(server: Live):
    assert refused(server.post(BODY | {"n": 5}), 422, "limit_exceeded")["param"] == "n"
    body = {"model": NAME, "prompt": ["a", "b", "c"], "n": 2}
    assert refused(server.post(body, "/v1/completions"), 422, "limit_exceeded")["param"] == "prompt"


def test_a_prompt_longer_than_the_context(server: Live):
    with server.openai() as client, pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_a_prompt_longer_than_the_limit():
    service = FakeService()
    with live(service, max_prompt_tokens=20) as server:
        assert server.post(BODY).status_code == 200
        body = {"model": NAME, "messages": [{"role": "user", "content": "word " * 20}], "n": 3}
        error = refused(server.post(body), 422, "context_length_exceeded")
        assert error["message"] == "The prompt has 24 tokens; at most 20 here."
        wait_for(lambda: service.running + service.waiting == 0)
        assert len(service.jobs) == 2  # the other two were never handed in


def test_a_body_larger_than_the_limit(server: Live):
    big = json.dumps(BODY | {"user": "x" * 20_000}).encode()
    refused(send(server, big), 413, "body_too_large")
    refused(send(server, b"x" * 300_000), 413, "body_too_large")
    with server.openai() as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x" * 250_000}])
    assert caught.value.status_code == 413


def test_a_chunked_body_larger_than_the_limit(server: Live):
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    with server.http() as client:
        response = client.post("/v1/chat/completions", content=parts(), headers={"content-type": "application/json"})
    assert "content-length" not in response.request.headers
    refused(response, 413, "body_too_large")


def test_a_body_that_never_ends_is_cut_off(server: Live):
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100_000_000:
            sent += 100_000
            yield b"x" * 100_000

    with server.http() as client:
        try:
            response = client.post(
                "/v1/chat/completions", content=parts(), headers={"content-type": "application/json"}
            )
            assert response.status_code == 413
        except httpx.TransportError:
            pass  # the connection was closed on a client that goes on sending
    assert sent < 50_000_000


def test_a_full_queue_says_when_to_come_again():
    service = FakeService(delay=0.02, max_batch=1, max_waiting=1)
    with live(service) as server, server.openai() as client:
        first = client.chat.completions.create(model=NAME, messages=COUNT, stream=True)
        wait_for(lambda: service.running == 1)
        second = threading.Thread(target=server.post, args=({"model": NAME, "messages": COUNT, "max_tokens": 3},))
        second.start()
        wait_for(lambda: service.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=NAME, messages=SAY)
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert caught.value.code == "rate_limit_exceeded"
        first.close()
        second.join()


def test_choices_that_do_not_all_fit_are_all_taken_back():
    service = FakeService(delay=0.02, max_batch=1, max_waiting=2)
    with live(service) as server:
        refused(server.post({"model": NAME, "messages": COUNT, "n": 8}), 429, "rate_limit_exceeded")
        wait_for(lambda: service.running + service.waiting == 0)
        assert {done.reason for done in service.endings} == {"cancelled"}


# -- hostile bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"\x00", b'{"model": "\xff"}',
        b"[" * 10_000, b'{"a":' * 3_000,
        b'{"model": "\\ud800", "messages": []}', b'{"model": NaN}', b'{"seed": ' + b"9" * 10_000 + b"}",
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "\\udfff"}]}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "hneurons": {"alpha": Infinity}}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "n": 1e400}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "max_tokens": -9223372036854775809}',
        b'{"model": "fake-135m", "messages": [{"role": "user", "content": "x"}], "user": '
        + b"[" * 3_000 + b"]" * 3_000 + b"}",
    ],
)  # fmt: skip
def test_hostile_json_is_malformed_and_nothing_worse(server: Live, body: bytes):
    refused(send(server, body), 422)


def test_odd_text_is_text(server: Live):
    odd = "\u202e\u0000\ufeff\uffff <script>\r\n\x1b[31m 🦜 %s {0} ${x} ../../etc/passwd"
    reply = server.post({"model": NAME, "messages": [{"role": "user", "content": odd}], "stop": ["\u0000"]})
    assert reply.status_code == 200
    assert server.service.jobs[-1].prompt[0].content == odd


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_read(server: Live, kind: str):
    # What a page of another site may send without asking first.
    refused(send(server, json.dumps(BODY).encode(), **{"content-type": kind}), 415, "unsupported_media_type")


def test_no_such_path_or_method(server: Live):
    with server.http() as client:
        for path in ("/v1", "/v1/embeddings", "/chat/completions", "/v1/chat/completions/", "/docs", "/redoc"):
            refused(client.get(path), 404, "not_found")
        assert "allow" in client.get("/v1/chat/completions").headers
        refused(client.get("/v1/chat/completions"), 405, "method_not_allowed")
        refused(client.post("/v1/models"), 405)


# -- failures -------------------------------------------------------------------------------------------


def broken(*_: object) -> Any:
    raise RuntimeError("secret prompt text")


def test_a_model_that_fails():
    with live(FakeService(broken)) as server:
        refused(server.post(BODY), 500, "internal_error")
        refused(server.post(BODY | {"stream": True}), 500, "internal_error")
        with server.openai() as client, pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model=NAME, messages=SAY)


def test_a_model_that_fails_in_the_middle_of_a_stream():
    class Brittle(FakeService):
        def _mark(self, draw: Any, index: int, *rest: Any) -> Any:
            if index == 2:
                raise RuntimeError("secret")
            return super()._mark(draw, index, *rest)

    with live(Brittle()) as server, server.openai() as client:
        stream = client.chat.completions.create(model=NAME, messages=SAY, stream=True)
        with pytest.raises(openai.APIError, match="The model failed"):
            list(stream)


def test_an_error_that_nobody_expected():
    class Wrong(FakeService):
        def submit(self, *_: object) -> Any:
            raise RuntimeError("secret prompt text")

    with live(Wrong()) as server, log_lines() as lines:
        for stream in (False, True):
            response = server.post(BODY | {"stream": stream})
            error = refused(response, 500, "internal_error")
            assert response.headers["x-request-id"] in error["message"]
            assert "secret" not in response.text
        wait_for(lambda: len(lines) == 2)
    assert lines[0]["level"] == "error"
    assert lines[0]["error"] == "RuntimeError"
    assert any("submit" in frame for frame in lines[0]["where"])
    assert "secret" not in json.dumps(lines)
    with live(Wrong(), log_text=True) as server, log_lines() as lines:
        assert "secret" not in server.post(BODY).text
        wait_for(lambda: lines)
    assert lines[0]["message"] == "secret prompt text"


def test_a_service_that_is_closed():
    class Closed(FakeService):
        def submit(self, *_: object) -> Any:
            raise ClosedError("The service takes no more jobs.")

    with live(Closed()) as server:
        assert "retry-after" in server.post(BODY).headers
        refused(server.post(BODY), 503, "shutting_down")


def test_numbers_that_json_cannot_hold_become_null():
    class Odd(FakeService):
        def _risk(self, score: float) -> float:
            return float("nan")

    with live(Odd()) as server:
        assert server.post(BODY).json()["choices"][0]["hneurons"]["risk"] is None
        chunks = chunks_of(server.post(BODY | {"stream": True}))
        assert {risk["risk"] for c in chunks[1:-1] for risk in c["choices"][0]["hneurons"]["risks"]} == {None}
