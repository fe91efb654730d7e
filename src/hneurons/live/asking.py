"""From a request to the jobs it comes down to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from hneurons.live.api import ChatRequest, CompletionRequest, Extension, Request
from hneurons.live.faults import LONGEST_NAME, ApiError
from hneurons.live.jobs import Job, Message, Policy
from hneurons.live.serving import Serving
from hneurons.settings import LARGEST_ALPHA

COMPLETION_TOKENS = 16
"""OpenAI's default for completions."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request comes down to."""

    model: str
    """As the client names it."""
    jobs: tuple[Job, ...]
    """One a choice."""
    prompts: int
    """How many prompts the jobs answer, as many choices each."""
    stream: bool
    usage: bool
    """Whether a stream's last chunk tells the usage."""
    logprobs: bool


def alpha_of(model: str, serving: Serving) -> float | None:
    """The alpha that a model's name carries; None in the plain name.

    Raises:
        ApiError: there is no such model.
    """
    own = serving.service.name
    if model == own:
        return None
    alpha = model.removeprefix(f"{own}@")
    if alpha != model and re.fullmatch(r"\d{1,3}(\.\d{1,6})?", alpha, re.ASCII) and float(alpha) <= LARGEST_ALPHA:
        return float(alpha)
    raise ApiError(
        404, f"The model {model[:LONGEST_NAME]!r} does not exist; {own!r} does.",
        code="model_not_found", param="model",
    )  # fmt: skip


def chat_jobs(request: ChatRequest, serving: Serving) -> Wanted:
    """What a chat request comes down to.

    Raises:
        ApiError: an unknown model, a contradiction, or more than the server's limits.
    """
    turns = tuple(Message("system" if turn.role == "developer" else turn.role, turn.text) for turn in request.messages)
    tokens = request.max_completion_tokens or request.max_tokens
    named = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    job = replace(
        _job(request, serving),
        prompt=turns,
        max_tokens=_within(tokens, serving.settings.max_output_tokens, named),
        top_logprobs=request.top_logprobs or 0,
    )
    return _wanted(request, serving, [job], logprobs=bool(request.logprobs))


def completion_jobs(request: CompletionRequest, serving: Serving) -> Wanted:
    """What a completion request comes down to.

    Raises:
        ApiError: an unknown model, a contradiction, or more than the server's limits.
    """
    limit = serving.settings.max_output_tokens
    job = replace(
        _job(request, serving),
        max_tokens=_within(request.max_tokens, limit, "max_tokens") or min(COMPLETION_TOKENS, limit),
        top_logprobs=request.logprobs or 0,
    )
    jobs = [replace(job, prompt=prompt) for prompt in request.prompt]
    return _wanted(request, serving, jobs, logprobs=request.logprobs is not None)


def _job(request: Request, serving: Serving) -> Job:
    """The job with all but its prompt, its length and its log-probabilities."""
    extension = request.hneurons or Extension()
    asked, policy = extension.policy, None
    if asked is not None:
        policy = Policy(asked.action, asked.threshold, asked.text, asked.alpha)
    greedy = request.temperature == 0 or request.top_p == 0  # no more than the likeliest token is left
    return Job(
        prompt="",
        temperature=0.0 if greedy else _or(request.temperature, 1.0),
        top_p=1.0 if greedy else _or(request.top_p, 1.0),
        top_k=request.top_k or 0,
        stop=tuple(request.stop or ()),
        alpha=_alpha(request.model, extension, serving),
        monitor=extension.monitor,
        policy=policy,
    )


def _alpha(model: str, extension: Extension, serving: Serving) -> float:
    named, given = alpha_of(model, serving), extension.alpha
    if named is not None and given is not None and named != given:
        raise ApiError(
            400, f"The model's name says alpha {named:g}, hneurons.alpha says {given:g}.",
            code="invalid_request", param="hneurons.alpha",
        )  # fmt: skip
    return _or(given, _or(named, serving.settings.alpha))


def _wanted(request: Request, serving: Serving, jobs: list[Job], *, logprobs: bool) -> Wanted:
    each = request.n or 1
    _within(each * len(jobs), serving.settings.max_choices, "n" if len(jobs) == 1 else "prompt")
    return Wanted(
        model=request.model,
        jobs=tuple(replace(job, seed=_seed(request.seed, i)) for job in jobs for i in range(each)),
        prompts=len(jobs),
        stream=bool(request.stream),
        usage=bool(request.stream_options and request.stream_options.include_usage),
        logprobs=logprobs,
    )


def _seed(seed: int | None, choice: int) -> int | None:
    """A seed of its own for each choice; never negative, which some generators refuse."""
    return None if seed is None else (seed + choice) & (2**63 - 1)


def _within(count: int | None, limit: int, param: str) -> int | None:
    if count is not None and count > limit:
        raise ApiError(422, f"{param}: at most {limit} here, not {count}.", code="limit_exceeded", param=param)
    return count


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
