"""Reads and checks the bodies of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from hneurons.live import faults
from hneurons.live.faults import ApiError
from hneurons.live.serving import serving_of

Body = TypeVar("Body", bound=BaseModel)
READ_SECONDS = 60.0
"""For a body to come: a client that sends a byte now and then must not hold a connection for ever."""
DISCARDED = 16
"""A body that is too large is read to its end all the same, up to so many times the limit: a client that is still
sending doesn't look at the answer."""


def body_of(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """A dependency that reads and checks a body.

    pydantic's own JSON reader bounds nesting and refuses what Python's lets pass: lone surrogates, numbers of any
    length. Only `application/json` is read, which a page of another site can't send without being asked for leave.
    """

    async def read(request: Request) -> Body:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send the body as application/json.", code="unsupported_media_type")
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await _bytes(request, serving_of(request).settings.max_body)
            return kind.model_validate_json(body)
        except TimeoutError:
            message = f"The body didn't come within {READ_SECONDS:g} seconds."
            raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
        except ValidationError as error:
            raise faults.invalid(error) from None

    return read


async def _bytes(request: Request, limit: int) -> bytes:
    """The body, of which no more than `limit` bytes are kept."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > DISCARDED * limit:
            break
    if size > limit:
        message = f"The body has more than {limit:,} bytes."
        raise ApiError(413, message, code="body_too_large", headers={"connection": "close"})
    return bytes(body)
