"""A connection to an OpenAI-compatible endpoint: key, retries, and failures in one line."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeVar, cast

from hneurons.answers.endpoint import Endpoint
from hneurons.errors import HNeuronsError, JudgeError
from hneurons.extras import need
from hneurons.runfolder import Json

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")
# What an endpoint says of one prompt that it will never answer; another prompt may be fine.
_PROMPT_REFUSED = {"content_filter", "content_policy_violation", "context_length_exceeded", "string_above_max_length"}


class Failure(NamedTuple):
    """What came instead of a completion."""

    status: int | None
    code: str
    error: HNeuronsError

    @property
    def is_of_the_request(self) -> bool:
        """Whether the endpoint refused how it was asked: perhaps the response format."""
        return self.status in (400, 422) and not self.is_of_the_prompt

    @property
    def is_of_the_prompt(self) -> bool:
        """Whether the endpoint answers other prompts, not this one."""
        return self.code in _PROMPT_REFUSED


class Connection:
    """OpenAI's own client with the key from the environment. Needs the extra `judge`.

    Args:
        where: the endpoint.
        fault: what is raised when it fails.
        docs: the page that says how to set it up.

    Raises:
        MissingExtraError: `openai` is not installed.
        HNeuronsError: no API key; a `fault`.
    """

    def __init__(self, where: Endpoint, fault: type[HNeuronsError] = JudgeError, docs: str = "docs/judges.md") -> None:
        self.openai: Any = need("openai", "judge")
        self.where = where
        self._fault = fault
        self._docs = docs
        self._key = where.key(fault)
        self.client: Any = self.openai.OpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=where.base_url,
            timeout=where.timeout,
            max_retries=where.retries,
            # A proxy that the environment names can't reach this machine.
            http_client=self.openai.DefaultHttpxClient(trust_env=False) if where.is_local else None,
        )

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def redact(self, text: str) -> str:
        """`text` without the API key."""
        return text.replace(self._key.get_secret_value(), "[key]") if self._key else text

    def failure(self, error: Any) -> Failure:
        """What an error of the client means."""
        where, status = self.where, getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        message = cast("Json", body).get("message") if isinstance(body, dict) else body
        # Redacted before it is cut: a cut key is still a part of one.
        words = self.redact(str(message or ""))[:200] or "no reason given"
        again = "Then run the same command again: it continues with what is missing."
        if isinstance(error, self.openai.APITimeoutError):
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
            remedy = f"Try later. {again}" if status >= 500 else f"Change the setting that it names; see {self._docs}."
        return Failure(status, str(getattr(error, "code", None) or ""), self._fault(problem, remedy))


def each(function: Callable[[Item], Result], items: Sequence[Item], at_once: int) -> list[Result]:
    """`function` of each item, in order; `at_once` at a time, equal items once.

    The first error ends it: what is under way is finished, the rest is not begun. An interrupt waits for nothing here;
    where Python itself ends, that waits for what is under way.
    """
    unique = list(dict.fromkeys(items))
    pool = ThreadPoolExecutor(at_once, "ask")
    try:
        futures = {item: pool.submit(function, item) for item in unique}
        done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(cancel_futures=True)
    for future in futures.values():
        if future in done:
            future.result()
    return [futures[item].result() for item in items]
