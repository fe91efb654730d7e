"""The engine of a running OpenAI-compatible server: completions of prompts, a request a response.

Token ids come from the server where it returns them, as vLLM and llama.cpp do. Another server's text is cut into tokens
by the model's own tokenizer, which a note of the run says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from pydantic import ValidationError

from hneurons.answers.completion import Choice, Completion
from hneurons.answers.connection import Connection, Failure, each
from hneurons.answers.endpoint import endpoint
from hneurons.answers.engine import EXTENSION, NONSENSE, Request, Sampling, seed_of
from hneurons.answers.text import decode
from hneurons.answers.transcript import Transcript
from hneurons.errors import ServiceError, UsageError
from hneurons.models.load import StudyModel
from hneurons.types import Response

DOCS = "docs/engines.md"
OPTIONS = frozenset(("concurrency", "timeout", "retries", "key_env"))
CONCURRENCY = 64
"""Requests under way at the same time."""
RETOKENISED = (
    "The server returned no token ids: the responses were cut into tokens by the model's own tokenizer, perhaps "
    "otherwise than they were sampled."
)
SAMPLED = "The responses were sampled by a server, which may have used its own precision and settings."


class OpenAIEngine:
    """Samples from a server that speaks OpenAI's completions. Needs the extra `judge`, for its client.

    Args:
        model: the model that is served; its outline is enough (see `load_outline`).
        base_url: of the server; usually ends in /v1.
        served: the model's name there; the model's own, or the only one, by default.
        options: `key_env`, `concurrency`, `timeout`, `retries` of `hneurons.answers.endpoint.Endpoint`.
        dial: whether this package's plugin turns the neurons of that server; without it every alpha must be 1.

    Raises:
        UsageError: a wrong URL or option.
    """

    name = "openai"

    def __init__(
        self,
        model: StudyModel,
        base_url: str,
        served: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        dial: bool = False,
    ) -> None:
        self.model = model
        self.dial = dial
        if unknown := sorted({*(options or {})} - OPTIONS):
            raise UsageError(
                f"The engine of a server has no option {unknown[0]!r}.", f"It has {', '.join(sorted(OPTIONS))}: {DOCS}."
            )
        self._named, self._served = served, served
        self._options = {key: value for key, value in (options or {}).items() if key != "key_env"}
        asked: dict[str, Any] = {"concurrency": CONCURRENCY, **(options or {})}
        self._where = endpoint(DOCS, **{**asked, "model": served or model.name, "base_url": base_url})
        self._transcript = Transcript(model)
        self._connection: Connection | None = None
        self._as_text = False
        self._retokenised = False

    @property
    def setup(self) -> dict[str, Any]:
        """URL, the model's name there, options, and which variable has the key: another's goes to no server."""
        return {
            "base_url": self._where.base_url, "served_model": self._served, "key_env": self._where.key_env,
            "args": self._options,
        }  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """Who sampled; and, once a response came without token ids, that it did."""
        return [SAMPLED, *([RETOKENISED] if self._retokenised else [])]

    def close(self) -> None:
        """Close the connections."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request.

        Raises:
            MissingExtraError: `openai` is not installed.
            ServiceError: the server doesn't answer, or with what can't be used.
            UsageError: an alpha other than 1 without the plugin, or a thinking budget.
        """
        if not self.dial and any(request.alpha != 1.0 for request in requests):
            raise UsageError("This engine turns no neurons.", "Make it with dial=True, for a server with the plugin.")
        if sampling.thinking:
            raise UsageError("A server keeps no thinking budget.", "Leave out --thinking, or use --engine hf.")
        if not requests:
            return []
        connection = self._connected()
        for request in requests:  # here and not in the threads, which would all encode the same prompt
            self._transcript.prompt(request)
        return each(
            lambda request: self._response(request, self._ask(connection, request, sampling)),
            requests, self._where.concurrency,
        )  # fmt: skip

    # -- asking -----------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        """The connection; when it is made, the server is asked for the name of the model."""
        if self._connection is None:
            with ExitStack() as stack:
                connection = Connection(self._where, ServiceError, DOCS)
                stack.callback(connection.close)  # unless all goes well
                failure = None
                try:
                    names = [str(each.id) for each in connection.client.models.list().data]
                except connection.openai.OpenAIError as error:
                    names, failure = [], connection.failure(error)
                if failure is not None and failure.status != 404:  # some servers don't list what they serve
                    raise failure.error
                self._served = self._choose(names)
                if self.dial:
                    self._check_plugin(connection)
                self._connection = connection
                stack.pop_all()
        return self._connection

    def _choose(self, names: list[str]) -> str:
        wanted = self._where.model
        if not names or wanted in names:
            return wanted
        if self._named is None and len(names) == 1:
            return names[0]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ServiceError(
            f"{self._where.host} serves no model {wanted!r} (it has {listed}).", "Name one with --served-model."
        )

    def _check_plugin(self, connection: Connection) -> None:
        """Ask for nonsense: a server without the plugin ignores it, as it would every alpha."""
        more, failure = {"vllm_xargs": {EXTENSION: NONSENSE}}, None
        try:
            connection.client.completions.create(model=self._served, prompt="a", max_tokens=1, extra_body=more)
        except connection.openai.OpenAIError as error:
            failure = connection.failure(error)
        if failure is not None and failure.is_of_the_request and EXTENSION in failure.error.problem:
            return
        if failure is not None and not failure.is_of_the_request:
            raise failure.error
        raise self._unusable(
            "has no plugin of hneurons at work, so every alpha would answer as 1",
            "Start it with HNEURONS_CARD set; see docs/vllm.md.",
        )

    def _ask(self, connection: Connection, request: Request, sampling: Sampling) -> Choice:
        outcome = self._try(connection, request, sampling, as_text=self._as_text)
        if isinstance(outcome, Failure) and outcome.is_of_the_request and not self._as_text:
            # It may take texts alone, or refuse what isn't OpenAI's.
            again = self._try(connection, request, sampling, as_text=True)
            if not isinstance(again, Failure):
                self._check_name()
                self._as_text, outcome = True, again
        if isinstance(outcome, Failure):
            # Not raised where the library's error was caught: that one may hold the key, and would hang on this.
            raise outcome.error
        return outcome

    def _try(self, connection: Connection, request: Request, sampling: Sampling, *, as_text: bool) -> Choice | Failure:
        more: dict[str, Any] = {"top_k": sampling.top_k}
        if not as_text:
            # Servers take what isn't asked for from the model's generation config.
            more |= {"repetition_penalty": 1.0, "min_p": 0.0, "return_token_ids": True}
            more["stop_token_ids"] = sorted(self._transcript.ends)
        if self.dial or not as_text:  # 1, too: a plugin may have another default
            more["vllm_xargs"] = {EXTENSION: json.dumps({"alpha": request.alpha})}
        if not self.model.has_chat_template:
            more["stop"] = ["\n"]
        try:
            raw = connection.client.completions.with_raw_response.create(
                model=self._served,
                prompt=self._text(request) if as_text else list(self._transcript.prompt(request)),
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed_of(sampling, request),
                logprobs=1,
                extra_body=more,
            )
            return Completion.model_validate_json(raw.http_response.content).choice()
        except ValidationError:
            raise self._unusable("sent what is no completion", "Check the URL, which usually ends in /v1.") from None
        except connection.openai.OpenAIError as error:
            return connection.failure(error)

    def _check_name(self) -> None:
        """Of a server that tells no tokens the name is all that says which model it serves; and token ids that another
        model doesn't have are refused just as those that a server doesn't take."""
        if self._named is None and self._served != self.model.name:
            raise self._unusable(
                f"serves {self._served!r} and tells no token ids, so nothing shows whether that is {self.model.name}",
                f"If it is, say so with --served-model {self._served}.",
            )

    def _text(self, request: Request) -> str:
        """The text that a server with the model's own tokenizer reads as the prompt's ids."""
        text, ids = self.model.prompt(request.said), list(self._transcript.prompt(request))
        start = str(self.model.tokenizer.bos_token or "")
        for candidate in (text, text.removeprefix(start)):
            read: Any = self.model.tokenizer(candidate)
            if list(read["input_ids"]) == ids:
                return candidate
        raise self._unusable(
            "takes prompts as text alone, which would be other tokens", "Use a server that takes token ids, as vLLM."
        )

    # -- what came back ---------------------------------------------------------------------------

    def _response(self, request: Request, made: Choice) -> Response:
        given = made.logprobs.values() if made.logprobs else None
        logprobs = [value for value in given or [] if value is not None and math.isfinite(value)]
        if len(logprobs) != len(given or []) or (made.text and not logprobs):
            raise self._unusable("returns no log-probabilities", "Use a server that does, as vLLM and llama.cpp do.")
        if made.token_ids is None:
            if not made.tells_ids:
                self._check_name()
            self._retokenised = True
            ids = self._retokenise(made)
            if len(ids) != len(logprobs):
                # Cut otherwise than sampled: the mean stays that of the response.
                logprobs = [sum(logprobs) / max(len(logprobs), 1)] * len(ids)
            return self._transcript.cut(request, ids, logprobs, made.finish_reason)
        if len(made.token_ids) != len(logprobs):
            raise self._unusable(
                f"returned {len(made.token_ids)} tokens with {len(logprobs)} log-probabilities",
                "Use another version of the server.",
            )
        self._check_tokens(made.token_ids, made.text)
        return self._transcript.cut(request, made.token_ids, logprobs, made.finish_reason)

    def _retokenise(self, made: Choice) -> list[int]:
        ids: list[int] = list(self.model.tokenizer.encode(made.text, add_special_tokens=False))
        end: Any = self.model.tokenizer.eos_token_id
        if made.finish_reason == "stop" and self.model.has_chat_template and isinstance(end, int):
            ids.append(end)
        return ids

    def _check_tokens(self, ids: Sequence[int], text: str) -> None:
        """Refuse tokens that write something else with the model's tokenizer; spaces and cut characters aside."""
        size = len(self.model.tokenizer)
        known = [token for token in ids if token < size]
        if len(known) < len(ids) or not _plain(decode(self.model, known)).startswith(_plain(text)):
            raise self._unusable(
                f"serves another model than {self.model.name}: its tokens write something else with this tokenizer",
                "Give the model that it serves, or its name there with --served-model.",
            )

    def _unusable(self, what: str, remedy: str) -> ServiceError:
        return ServiceError(f"{self._where.host} {what}.", remedy)


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())
