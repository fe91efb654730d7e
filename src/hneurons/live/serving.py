"""What the parts of the server share: its settings, the service, and whether it is shutting down."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from hneurons.errors import UsageError
from hneurons.live.jobs import Service
from hneurons.live.metrics import Metrics
from hneurons.settings import LARGEST_ALPHA

if TYPE_CHECKING:
    from hneurons.live.choices import Choices

KEY_VARIABLE = "HNEURONS_API_KEY"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The server's settings."""

    host: str = "127.0.0.1"
    key: str | None = field(default=None, repr=False)
    """The bearer token that requests must carry; None or empty for no token."""
    alpha: float = 1.0
    """What the plain model name stands for."""
    max_body: int = 1 << 20
    """Bytes of a request."""
    max_prompt_tokens: int | None = None
    """Of a prompt; None for what the model's context has room for."""
    max_output_tokens: int = 1024
    """Of a response."""
    max_choices: int = 8
    """Responses of one request."""
    drain_seconds: float = 30.0
    """How long begun responses may go on after SIGTERM."""
    log_text: bool = False
    """Whether prompts and responses are logged."""
    verdict: str | None = None
    """How well the H-Neurons predict, in one sentence."""
    key_variable: str = KEY_VARIABLE
    """Where the token comes from, for the remedy."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Refuse what isn't safe or can't work.

        Raises:
            UsageError: an address that others can reach without a token, a token that no header can carry, a bad alpha.
        """
        if not self.loopback and not self.key:
            raise UsageError(
                f"Without a token the server listens on this machine only, not on {self.host}.",
                f"Set {self.key_variable} to a secret of your own, or leave --host out.",
            )
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise UsageError(
                f"The token in {self.key_variable} has spaces or characters that no header can carry.",
                "Use letters, digits and punctuation of ASCII.",
            )
        if not 0 <= self.alpha <= LARGEST_ALPHA:
            raise UsageError(f"alpha {self.alpha:g} is not between 0 and {LARGEST_ALPHA:g}.", "Give --alpha another.")


class Serving:
    """One server: what its handlers share."""

    def __init__(self, service: Service, settings: ServerSettings) -> None:
        self.service, self.settings = service, settings
        self.metrics = Metrics(service)
        self.started = int(time.time())
        self.active: set[Choices] = set()
        """Requests that are being answered."""
        self._deadline: float | None = None

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun."""
        return self._deadline is not None

    def drain(self) -> None:
        """Begin nothing new."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.settings.drain_seconds

    @property
    def drained(self) -> bool:
        """Whether the server may stop: all is answered, or the time for it is over."""
        return self._deadline is not None and (not self.active or time.monotonic() >= self._deadline)

    def give_up(self) -> None:
        """End what is still being answered."""
        for choices in tuple(self.active):
            choices.cancel()


def serving_of(request: Request) -> Serving:
    """The server that a request came to."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving
