"""The API's own description. Bodies are read by hand and streams written by hand, so FastAPI doesn't know of them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from hneurons.live import api, shapes
from hneurons.live.faults import ErrorBody

PLACE = "#/components/schemas/"
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "Not supported, or contradicts itself"},
    401: {"model": ErrorBody, "description": "The token is missing or wrong"},
    404: {"model": ErrorBody, "description": "No such model"},
    408: {"model": ErrorBody, "description": "The body didn't come in time"},
    413: {"model": ErrorBody, "description": "The body is too large"},
    415: {"model": ErrorBody, "description": "The body isn't JSON"},
    422: {"model": ErrorBody, "description": "Malformed, or beyond a limit"},
    429: {"model": ErrorBody, "description": "Too many wait; try again after Retry-After seconds"},
    500: {"model": ErrorBody, "description": "The server's fault"},
    503: {"model": ErrorBody, "description": "The server is shutting down"},
}


def described(body: type[BaseModel], chunk: type) -> dict[str, Any]:
    """What a route that answers with a stream tells FastAPI of itself."""
    request = {"application/json": {"schema": {"$ref": PLACE + body.__name__}}}
    parts = {"anyOf": [{"$ref": PLACE + chunk.__name__}, {"$ref": PLACE + ErrorBody.__name__}]}
    part = {"type": "string", "contentMediaType": "application/json", "contentSchema": parts}
    data = {"anyOf": [{"const": "[DONE]"}, part]}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    whole = {
        "description": "Whole; with `stream: true` in parts, one an event, and `[DONE]` as the last",
        "content": {"text/event-stream": {"schema": event}},
    }
    return {
        "responses": ERRORS | {200: whole},
        "openapi_extra": {"requestBody": {"required": True, "content": request}},
    }


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, with all that its routes refer to."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        types: list[type] = [api.ChatRequest, api.CompletionRequest, shapes.ChatChunk]
        named: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
            (each.__name__, "validation", TypeAdapter(each)) for each in types
        ]
        _, schemas = TypeAdapter.json_schemas(named, ref_template=PLACE + "{model}")
        document["components"]["schemas"] |= schemas["$defs"]
        app.openapi_schema = document
    return app.openapi_schema
