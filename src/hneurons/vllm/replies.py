"""Middleware for vLLM's OpenAI server: an object `hneurons` in each choice of a request that asks for the monitor.

    --middleware hneurons.vllm.replies.Risks

Requests that don't ask pass through untouched. In a stream the risks come in one chunk more, before the last line.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast

from hneurons.errors import HNeuronsError, UsageError
from hneurons.vllm.asked import CARD, KEY, asked, card_of_environment, default_alpha
from hneurons.vllm.risks import CALL, Teller, gathered

Json = dict[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Json]]
Send = Callable[[Json], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
LARGEST = 64 * 1024**2
"""Bytes of a request. The middleware reads it before vLLM knows who asks."""
PATHS = ("/v1/chat/completions", "/v1/completions")
NAME = b"x-request-id"
LAST = b"data: [DONE]"


class Risks:
    """The middleware; vLLM makes one a server.

    Raises:
        UsageError: no card is named.
        CardError: it can't be read.
    """

    def __init__(self, app: App) -> None:
        card = card_of_environment()
        if card is None:
            raise UsageError("hneurons' middleware has no card.", f"Set {CARD} to a run folder or its neurons.json.")
        self._app, self._card, self._default = app, card, default_alpha()
        self._teller: Teller | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(PATHS):
            await self._app(scope, receive, send)
            return
        read, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            read += message.get("body", b"")
            more = message.get("more_body", False)
            if len(read) > LARGEST:
                await _refuse(send)
                return
        body = bytes(read)
        wanted = self._wanted(body)
        if wanted:
            scope = _named(scope, wanted)
        reply = _Reply(self, scope["app"], wanted, send) if wanted else None
        await self._app(scope, _again(body, receive), reply.send if reply else send)

    def _wanted(self, body: bytes) -> Json | None:
        """The request, if it asks for the monitor; what is wrong with it is told by vLLM and the plugin."""
        try:
            request = json.loads(body)
            told = asked(request["vllm_xargs"][KEY], self._default)
        except (ValueError, TypeError, LookupError, RecursionError, HNeuronsError):
            return None
        return {**request, KEY: told} if told.monitor else None

    async def tell(self, app: Any, request: Json, name: str, texts: dict[int, str], tokens: int | None) -> list[Json]:
        """The object `hneurons` of each choice.

        Args:
            app: vLLM's.
            request: the request's body.
            name: the reply's id.
            texts: the text of each choice, as the client gets it.
            tokens: of a single choice, where they are known.
        """
        client = app.state.engine_client
        if self._teller is None:
            self._teller = Teller(client.get_tokenizer(), self._card)
        # A text completion has a request for each of its prompts, named by their number.
        chat = "messages" in request
        names = [name] if chat else [f"{name}-{index}" for index in texts]
        found = gathered(await client.collective_rpc(CALL, args=(names,)), self._card.probe.intercept)
        each = max(len(texts) // _prompts(request), 1)
        told: list[Json] = []
        for index, text in sorted(texts.items()):
            key = (name, index) if chat else (f"{name}-{index // each}", index % each)
            kept = tokens if len(texts) == 1 else None
            summary = self._teller.tell(found.get(key), question(request, index // each), text, kept)
            told.append({"alpha": request[KEY].alpha, **summary})
        return told


class _Reply:
    """One reply on its way through."""

    def __init__(self, risks: Risks, app: Any, request: Json, send: Send) -> None:
        self._risks, self._app, self._request, self._send = risks, app, request, send
        self._start: Json = {}
        self._body = b""
        self._stream = False
        self._texts: dict[int, str] = {}
        self._last: Json = {}

    async def send(self, message: Json) -> None:
        """In place of the server's own."""
        if message["type"] == "http.response.start":
            self._start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._stream = kind.startswith(b"text/event-stream")
            if self._stream:
                await self._send(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._stream:
            await self._events(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._whole()

    async def _whole(self) -> None:
        body = self._body
        if self._start["status"] == 200:
            reply: Json = json.loads(body)
            texts = {choice["index"]: _text(choice.get("message") or choice) for choice in reply["choices"]}
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            told = await self._risks.tell(self._app, self._request, reply["id"], texts, tokens)
            for choice, summary in zip(sorted(reply["choices"], key=lambda c: c["index"]), told, strict=True):
                choice[KEY] = summary
            body = json.dumps(reply, ensure_ascii=False).encode()
        headers = [(k, v) for k, v in self._start["headers"] if k != b"content-length"]
        await self._send({**self._start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})

    async def _events(self, message: Json) -> None:
        """Pass whole events on; before the last line comes one of ours."""
        *events, self._body = (self._body + message.get("body", b"")).split(b"\n\n")
        more = message.get("more_body", False)
        out = b""
        for event in events:
            if event.strip() == LAST and self._last:
                out += await self._news()
            else:
                self._note(event)
            out += event + b"\n\n"
        if not more:
            out += self._body
        if out or not more:
            await self._send({**message, "body": out})

    def _note(self, event: bytes) -> None:
        try:
            chunk = json.loads(event.removeprefix(b"data: "))
            for choice in chunk["choices"]:
                text = _text(choice.get("delta") or choice)
                self._texts[choice["index"]] = self._texts.get(choice["index"], "") + text
            self._last = chunk
        except (ValueError, TypeError, LookupError):
            return  # a comment, or an error

    async def _news(self) -> bytes:
        told = await self._risks.tell(self._app, self._request, self._last["id"], self._texts, None)
        empty: Json = {"delta": {}} if "messages" in self._request else {"text": ""}
        choices = [
            {"index": index, **empty, "finish_reason": None, "logprobs": None, KEY: summary}
            for index, summary in zip(sorted(self._texts), told, strict=True)
        ]
        kept = {key: self._last[key] for key in ("id", "object", "created", "model") if key in self._last}
        return b"data: " + json.dumps({**kept, "choices": choices}, ensure_ascii=False).encode() + b"\n\n"


async def _refuse(send: Send) -> None:
    told = f"With hneurons' middleware a request has {LARGEST:,} bytes at most."
    error = {"message": told, "type": "invalid_request_error", "param": None, "code": 413}
    data = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _named(scope: Scope, request: Json) -> Scope:
    """With a name of its own: scores are fetched by it, and clients may send the same one twice."""
    headers = [(name, value) for name, value in scope.get("headers", ()) if name != NAME]
    given = dict(scope.get("headers", ())).get(NAME) or str(request.get("request_id") or "").encode()
    if not given:
        return scope  # vLLM draws one
    return {**scope, "headers": [*headers, (NAME, given + b"." + uuid.uuid4().hex.encode())]}


def _again(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever comes."""
    given: list[bool] = []

    async def first() -> Json:
        if given:
            return await receive()
        given.append(True)
        return {"type": "http.request", "body": body, "more_body": False}

    return first


def _text(part: Json) -> str:
    text = part.get("content", part.get("text"))
    return text if isinstance(text, str) else ""


def _prompts(request: Json) -> int:
    """How many prompts a request has."""
    prompt = request.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(cast("list[Any]", prompt)) if several else 1


def question(request: Json, number: int) -> str:
    """What a choice answers: the last user turn, or the text that is continued; empty where it is only known as
    token ids."""
    if "messages" in request:
        turns = [turn for turn in request["messages"] if isinstance(turn, dict) and turn.get("role") == "user"]
        content: Any = turns[-1].get("content", "") if turns else ""
        if isinstance(content, list):
            parts = cast("list[Any]", content)
            return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        return str(content)
    prompt: Any = request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = cast("list[Any]", prompt)[number]
    return prompt if isinstance(prompt, str) else ""
