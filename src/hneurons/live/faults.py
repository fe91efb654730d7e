"""What the server answers when it can't do what was asked: OpenAI's error body, and never a stack trace."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from hneurons.errors import BusyError, ClosedError, HNeuronsError, PromptTooLongError
from hneurons.live.api import UNSUPPORTED
from hneurons.live.record import record_of

RETRY_SECONDS = 2
"""`Retry-After`: about a short answer's time, after which a place in the queue may be free."""
CHOSEN = ("type", "role")
"""Names whose values OpenAI has more of than this server."""
LONGEST_NAME = 100
"""Characters of a name of the client's own that an error repeats."""


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI puts it."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail


class ApiError(Exception):
    """A response that is no success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self, scope: Scope) -> JSONResponse:
        """The fault as a response; its code is noted for the log."""
        record_of(scope).told["code"] = self.code
        return JSONResponse(self.body, self.status, self.headers)


def busy(message: str) -> ApiError:
    """Too much at once: the client is told when to come again."""
    wait = {"retry-after": str(RETRY_SECONDS)}
    return ApiError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", headers=wait)


def closing() -> ApiError:
    """The server is about to stop."""
    wait = {"retry-after": str(RETRY_SECONDS)}
    return ApiError(503, "The server is shutting down.", code="shutting_down", kind="server_error", headers=wait)


def gone() -> ApiError:
    """The client hung up: for the log, since nobody reads it. 499 as nginx has it."""
    return ApiError(499, "The client hung up.", code="client_closed_request")


def failed(message: str) -> ApiError:
    """The server's own fault."""
    return ApiError(500, message, code="internal_error", kind="server_error")


def refused(error: HNeuronsError) -> ApiError:
    """What the service has against a job."""
    match error:
        case BusyError():
            return busy(str(error))
        case ClosedError():
            return closing()
        case PromptTooLongError():
            return ApiError(422, str(error), code="context_length_exceeded")
        case _:
            return ApiError(400, str(error), code="invalid_request")


def invalid(error: ValidationError) -> ApiError:
    """What a body has that it shouldn't: the parameters that aren't supported first."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    worst = next((each for each in found if _status(each) == 400), found[0])
    kind, param = worst["type"], _path(worst["loc"])
    if kind == "json_invalid":
        return ApiError(
            422, f"The body is no JSON: {worst['msg'].removeprefix('Invalid JSON: ')}.", code="invalid_json"
        )
    if kind == "extra_forbidden":
        return ApiError(400, f"There is no parameter {param!r}.", code="unknown_parameter", param=param)
    if kind == "contradiction":
        return ApiError(400, worst["msg"], code="invalid_request", param=param)
    if _status(worst) == 400:
        why = worst["msg"] if worst["loc"][-1] in CHOSEN else "it isn't supported with this value; leave it out"
        return ApiError(400, f"{param}: {why}.", code="unsupported_parameter", param=param)
    return ApiError(422, f"{param or 'The body'}: {worst['msg']}.", code="invalid_value", param=param)


def _status(error: Any) -> int:
    """400 for what is well-formed but not supported or contradicts itself, 422 for the rest."""
    if error["type"] in ("extra_forbidden", "contradiction"):
        return 400
    if error["type"] == "literal_error" and error["loc"][-1] in CHOSEN:
        return 400
    return 400 if UNSUPPORTED.intersection(error["loc"]) and error["type"] != "missing" else 422


def _path(place: tuple[int | str, ...]) -> str | None:
    """`messages[0].content` for the place of an error; None for the whole body."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:LONGEST_NAME]}" for step in place)
    return steps.removeprefix(".") or None


async def on_fault(request: Request, error: Exception) -> Response:
    """Answer a fault."""
    assert isinstance(error, ApiError)
    return error.response(request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: no such path, another method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:LONGEST_NAME]}"
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    fault = ApiError(error.status_code, f"{where}: {error.detail}.", code=code, headers=error.headers)
    return fault.response(request.scope)
