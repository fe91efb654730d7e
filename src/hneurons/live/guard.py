"""Who may come in: requests that name this server as their host, and that carry the token if there is one."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hneurons.live.faults import ApiError
from hneurons.live.serving import ServerSettings


def own_hosts(settings: ServerSettings) -> list[str]:
    """The names that requests may give as their host.

    A page of another site can make its own name point to 127.0.0.1 and so read what this server says (DNS rebinding);
    its requests then carry that name. Where others can reach the server there is a token instead, which no page knows.
    """
    if not settings.loopback:
        return ["*"]
    own = f"[{settings.host}]" if ":" in settings.host else settings.host
    return ["127.0.0.1", "localhost", "[::1]", own]


class Bearer:
    """Asks for the token everywhere but at the open paths."""

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str]) -> None:
        self._app, self._open = app, frozenset(open_paths)
        self._digest = sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self._open or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'."
        fault = ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        await fault.response(scope)(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Digests have one length, and comparing them takes the same time wherever they differ.
        same = hmac.compare_digest(sha256(given.strip().encode("latin-1")).digest(), self._digest)
        return same and scheme.lower() == "bearer"
