"""Where a language model behind an OpenAI-compatible endpoint is asked, and how: settings and key."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from hneurons.errors import HNeuronsError, JudgeError, UsageError


class Endpoint(BaseModel):
    """Where the model is asked, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str = Field(min_length=1)
    base_url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key; an endpoint on this machine needs none."""
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    """None leaves it out, for models that take no temperature."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests under way at the same time."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte from the endpoint after which a request is tried again."""
    retries: int = Field(default=5, ge=0, le=50)
    """How often a request is tried again after 408, 409, 429, 5xx, a time-out or a lost connection; with exponential
    backoff, or after the time in `Retry-After`."""
    max_calls: int | None = Field(default=None, ge=0)
    """Largest number of requests of this client, answers from the cache not counted."""
    prompt_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens, in any currency."""
    completion_price: float | None = Field(default=None, ge=0)

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise ValueError("has a malformed host or port") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://localhost:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user name, password or query; the key comes from the environment")
        return value

    @property
    def host(self) -> str:
        """Host and port, as errors name the endpoint."""
        return urlsplit(self.base_url).netloc

    @property
    def is_local(self) -> bool:
        """Whether the endpoint is on this machine."""
        name = urlsplit(self.base_url).hostname or ""
        try:
            address = ipaddress.ip_address(name)
            return address.is_loopback or address.is_unspecified
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")

    def key(self, fault: type[HNeuronsError] = JudgeError) -> SecretStr | None:
        """The API key; None where none is set and none is needed.

        Raises:
            HNeuronsError: the environment variable is empty, or holds what can't be a key; a `fault`.
        """
        value = os.environ.get(self.key_env, "").strip()
        if not value and self.is_local:
            return None
        if not value:
            raise fault(
                f"The environment variable {self.key_env} is not set, and {self.host} needs an API key.",
                "Set it, or name another variable.",
            )
        if not re.fullmatch(r"[!#-\[\]-~]+", value):
            raise fault(
                f"The environment variable {self.key_env} holds characters that no API key has.",
                "Set it to the key alone.",
            )
        return SecretStr(value)


def endpoint(docs: str = "docs/judges.md", **values: Any) -> Endpoint:
    """An endpoint from keywords; wrong ones raise a one-line `UsageError` that doesn't repeat their values."""
    try:
        return Endpoint(**values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."
    raise UsageError(problem, f"See {docs}.")
