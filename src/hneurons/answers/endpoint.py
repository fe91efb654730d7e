"""One chat with a language model behind an OpenAI-compatible endpoint: settings, key, retries and failures."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from hneurons.errors import JudgeError, UsageError
from hneurons.extras import need
from hneurons.runfolder import Json

FORMATS = ("json_schema", "json_object", "plain")
"""Ways to ask for JSON, strictest first; an endpoint that refuses one gets the next."""
# What an endpoint says of one prompt that it will never answer; another prompt may be fine.
_PROMPT_REFUSED = {"content_filter", "content_policy_violation", "context_length_exceeded", "string_above_max_length"}


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

    def key(self) -> SecretStr | None:
        """The API key; None where none is set and none is needed.

        Raises:
            JudgeError: the environment variable is empty, or holds what can't be a key.
        """
        value = os.environ.get(self.key_env, "").strip()
        if not value and self.is_local:
            return None
        if not value:
            raise JudgeError(
                f"The environment variable {self.key_env} is not set, and {self.host} needs an API key.",
                "Set it, or name another variable.",
            )
        if not re.fullmatch(r"[!#-\[\]-~]+", value):
            raise JudgeError(
                f"The environment variable {self.key_env} holds characters that no API key has.",
                "Set it to the key alone.",
            )
        return SecretStr(value)


def endpoint(**values: Any) -> Endpoint:
    """An endpoint from keywords; wrong ones raise a one-line `UsageError` that doesn't repeat their values."""
    try:
        return Endpoint(**values)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."
    raise UsageError(problem, "See docs/judges.md.")


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class Usage(BaseModel):
    """Tokens as the endpoint counts them; None if it doesn't."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """What an endpoint sends back, as far as it is used."""

    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None
    model: str | None = None

    @property
    def text(self) -> str:
        """What the model said; empty if it said nothing."""
        return self.choices[0].message.content or ""


class _Failure(NamedTuple):
    """What came instead of a completion."""

    status: int | None
    code: str
    error: JudgeError

    @property
    def is_of_the_request(self) -> bool:
        """Whether the endpoint refused how it was asked: perhaps the response format."""
        return self.status in (400, 422) and not self.is_of_the_prompt

    @property
    def is_of_the_prompt(self) -> bool:
        """Whether the endpoint answers other prompts, not this one."""
        return self.code in _PROMPT_REFUSED


class Chat:
    """Sends chats to an endpoint, one at a time in each thread. Needs the extra `judge`.

    Raises:
        MissingExtraError: `openai` is not installed.
        JudgeError: no API key.
    """

    def __init__(self, where: Endpoint) -> None:
        self._openai: Any = need("openai", "judge")
        self._where = where
        self._key = where.key()
        self._format = 0
        self._client = self._openai.OpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=where.base_url,
            timeout=where.timeout,
            max_retries=where.retries,
            # A proxy that the environment names can't reach this machine.
            http_client=self._openai.DefaultHttpxClient(trust_env=False) if where.is_local else None,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def redact(self, text: str) -> str:
        """`text` without the API key."""
        return text.replace(self._key.get_secret_value(), "[key]") if self._key else text

    def complete(self, messages: list[dict[str, str]], schema: type[BaseModel]) -> Completion | None:
        """The completion, in the strictest format that the endpoint takes; None if it refuses this prompt.

        Raises:
            JudgeError: the endpoint fails after all retries, or refuses every request.
        """
        level = self._format
        outcome = self._try(messages, schema, level)
        while isinstance(outcome, _Failure) and outcome.is_of_the_request and level + 1 < len(FORMATS):
            level += 1
            outcome = self._try(messages, schema, level)
        if isinstance(outcome, Completion):
            self._format = max(level, self._format)
            return outcome
        if outcome.is_of_the_prompt:
            return None
        # Not raised where the library's error was caught: that one may hold the key, and would hang on this.
        raise outcome.error

    def _try(self, messages: list[dict[str, str]], schema: type[BaseModel], level: int) -> Completion | _Failure:
        body: Json = {"model": self._where.model, "messages": messages}
        if self._where.temperature is not None:
            body["temperature"] = self._where.temperature
        if FORMATS[level] == "json_schema":
            shape = {"name": "reply", "strict": True, "schema": schema.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": shape}
        elif FORMATS[level] == "json_object":
            body["response_format"] = {"type": "json_object"}
        try:
            raw = self._client.chat.completions.with_raw_response.create(**body)
            return Completion.model_validate_json(raw.http_response.content)
        except ValidationError:
            return _NOTHING
        except self._openai.OpenAIError as error:
            return self._failure(error)

    def _failure(self, error: Any) -> _Failure:
        where, status = self._where, getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        message = cast("Json", body).get("message") if isinstance(body, dict) else body
        # Redacted before it is cut: a cut key is still a part of one.
        words = self.redact(str(message or ""))[:200] or "no reason given"
        again = "Then run the same command again: it continues with what is missing."
        if isinstance(error, self._openai.APITimeoutError):
            problem = f"{where.host} sent nothing for {where.timeout:g} s, {where.retries + 1} times in a row."
            remedy = f"Raise the time-out or lower the concurrency. {again}"
        elif status is None:
            problem, remedy = f"Can't reach {where.host}.", f"Check the URL and whether the server runs. {again}"
        elif status in (401, 403):
            problem = f"{where.host} refused the API key (HTTP {status})."
            remedy = f"Set {where.key_env} to a key that may use {where.model}."
        elif status == 404:
            problem = f"{where.host} has no model {where.model} under {where.base_url} (HTTP 404)."
            remedy = "Check the model's name, and the URL, which usually ends in /v1."
        elif status == 429:
            problem = f"{where.host} limits the rate or the quota (HTTP 429, at most {where.retries} retries): {words}."
            remedy = f"Lower the concurrency, or wait. {again}"
        else:
            problem = f"{where.host} failed with HTTP {status}: {words}."
            remedy = f"Try later. {again}" if status >= 500 else "Change the setting that it names; see docs/judges.md."
        return _Failure(status, str(getattr(error, "code", None) or ""), JudgeError(problem, remedy))


_NOTHING = Completion(choices=[_Choice(message=_Message())])
