"""`hneurons serve`: the API and the playground over a service, as an ASGI application and as a process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from hneurons.errors import UsageError
from hneurons.live.described import openapi
from hneurons.live.faults import ApiError, on_fault, on_http_error
from hneurons.live.guard import Bearer, own_hosts
from hneurons.live.jobs import Service
from hneurons.live.journal import Journal, log_to_stderr
from hneurons.live.pages import pages_router, playground
from hneurons.live.routes import router
from hneurons.live.serving import ServerSettings, Serving

__all__ = ["ServerSettings", "bind", "create_app", "serve"]

LAST_SECONDS = 5
"""For connections to end after all is answered or given up."""
TITLE = "hneurons"
ABOUT = "OpenAI-compatible responses of a model whose H-Neurons are watched and turned: the object `hneurons`."


def create_app(service: Service, settings: ServerSettings | None = None) -> FastAPI:
    """The application; `app.state.serving` is what its handlers share.

    Raises:
        UsageError: settings that aren't safe or can't work.
    """
    settings = settings or ServerSettings()
    settings.check()
    serving, pages = Serving(service, settings), playground()
    app = FastAPI(title=TITLE, description=ABOUT, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.serving = serving
    app.include_router(router)
    app.include_router(pages_router(pages))
    app.add_exception_handler(ApiError, on_fault)
    app.add_exception_handler(HTTPException, on_http_error)
    # The last that is added is the outermost.
    if settings.key:
        app.add_middleware(Bearer, key=settings.key, open_paths=["/health", *pages])
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=own_hosts(settings), www_redirect=False)
    app.add_middleware(Journal, serving=serving)
    app.openapi = lambda: openapi(app)
    return app


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, not listening yet; port 0 takes a free one.

    Raises:
        UsageError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise UsageError(
            f"Can't listen at {host}:{port} ({error.strerror}).", "Give another --port or --host."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = str(bound.getsockname()[0]), bound.getsockname()[1]
    host = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    service: Service, settings: ServerSettings, listener: socket.socket, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was begun and close the service.

    Args:
        service: makes the responses.
        settings: of the server.
        listener: from `bind`.
        ready: told the URL once requests are taken.

    Raises:
        UsageError: settings that aren't safe or can't work.
    """
    app = create_app(service, settings)
    log_to_stderr(settings.log_text)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=LAST_SECONDS,
    )  # fmt: skip
    try:
        Server(config, app.state.serving, ready).run([listener])
    finally:
        service.close(drain=False)


class Server(uvicorn.Server):
    """uvicorn's server, which stops in two steps: it refuses new work while it finishes what was begun, then closes.

    The port stays open meanwhile, so that clients and load balancers are told instead of turned away.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._serving, self._ready = serving, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started and sockets:
            self._ready(url_of(sockets[0]))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once. The process ends with status 0 either way: it was asked."""
        if self._serving.draining:
            self._serving.give_up()
            self.should_exit = self.force_exit = True
        self._serving.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now; uvicorn asks ten times a second."""
        if self._serving.drained:
            self._serving.give_up()
            self.should_exit = True
        return await super().on_tick(counter)
