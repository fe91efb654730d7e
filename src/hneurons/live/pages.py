"""The playground's files. They are read once, at the start; a request can only name one of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def playground() -> dict[str, Response]:
    """Path -> response, for each file of the playground."""
    return dict(_pages())


def _pages() -> Iterator[tuple[str, Response]]:
    for file in files("hneurons.live").joinpath("playground").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind and file.is_file():
            path = "/" if file.name == "index.html" else f"/{file.name}"
            yield path, Response(file.read_bytes(), media_type=kind, headers=HEADERS)


def pages_router(pages: dict[str, Response]) -> APIRouter:
    """Routes for the files."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, response: Response) -> None:
        async def page() -> Response:
            return response

        router.add_api_route(path, page, methods=["GET", "HEAD"])

    for path, response in pages.items():
        add(path, response)
    return router
