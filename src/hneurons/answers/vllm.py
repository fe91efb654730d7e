"""The vLLM engine, in this process: all requests of a call at once, tokens and log-probabilities kept.

A response's seed depends on (seed, question id, sample number) alone. The samples of a prompt are requests of their
own, so that each has its seed; vLLM's prefix cache lets them share the prefill. Where requests have several alphas the
cache is salted with them: keys and values that were computed at one alpha are wrong at another.
"""

from __future__ import annotations

import gc
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hneurons.answers.calls import calling, is_dead, line
from hneurons.answers.engine import EXTENSION, NONSENSE, WORKER, Request, Sampling, seed_of
from hneurons.answers.transcript import Transcript
from hneurons.errors import (
    HNeuronsError,
    NumericError,
    PromptTooLongError,
    ServiceError,
    UnsupportedModelError,
    UsageError,
)
from hneurons.extras import need, need_vllm
from hneurons.models.load import StudyModel, locate
from hneurons.models.outline import Outline
from hneurons.types import Response

CONTEXT = 4096
"""Tokens of prompt and response together, where the model allows as many and `max_model_len` doesn't say otherwise."""
CPU_CACHE = 1 << 30
"""Bytes of the key-value cache on a CPU, where vLLM's share of the memory is that of the whole machine."""
CPU_BLOCK = 32
"""Tokens of a block of the cache on a CPU: the fewest that its kernels take."""

Start = Callable[[dict[str, Any]], Any]
"""Makes vLLM's `LLM` of its arguments."""


class VLLMEngine:
    """Samples with vLLM. The model is loaded for the first response, and again after `close`
    or where a call broke it.

    Args:
        model: the model under study; its outline is enough (see `load_outline`).
        args: arguments of vLLM's `LLM`, by name: `tensor_parallel_size`, `gpu_memory_utilization`, ...
        trust_remote_code: run Python code that comes with the model.
        dial: whether this package's plugin turns the neurons of this engine; without it every alpha must be 1.
        check: refuses a started vLLM, whose configuration it gets, in whose workers contributions can't be measured;
            with one no graphs are compiled, which skip hooks. None if none are to be measured.
        start: makes the `LLM`; for tests.

    Raises:
        UsageError: a model that is an object in memory, or arguments that the engine must set itself.
    """

    name = "vllm"

    def __init__(
        self,
        model: StudyModel,
        args: Mapping[str, Any] | None = None,
        *,
        trust_remote_code: bool = False,
        dial: bool = False,
        check: Callable[[Any], None] | None = None,
        start: Start | None = None,
    ) -> None:
        if model.source == "object":
            raise UsageError(
                f"vLLM loads models from disk, and {model.name} is an object in memory.",
                "Save it with its tokenizer, and give that folder.",
            )
        own = sorted({*(args or {})} & FIXED)
        if own:
            raise UsageError(
                f"The engine argument {own[0]} can't be set.",
                f"Leave out {', '.join(own)}; the model, --dtype, --revision and --trust-remote-code are given as for "
                "transformers.",
            )
        if check and (args or {}).get("enforce_eager") is False:
            raise UsageError(
                "Contributions can't be measured in compiled graphs.", "Leave enforce_eager out, or --features vllm."
            )
        self.model = model
        self.dial = dial
        self._args = {**(args or {}), "trust_remote_code": trust_remote_code}
        self._check = check
        self._start = start or _start
        self._transcript = Transcript(model)
        self._llm: Any = None

    @property
    def setup(self) -> dict[str, Any]:
        """vLLM's arguments, without secrets."""
        return {"args": {key: value for key, value in self._args.items() if key not in UNTOLD}}

    @property
    def notes(self) -> list[str]:
        """One: who sampled."""
        return ["The responses were sampled by vLLM, each with a seed of its own."]

    @property
    def llm(self) -> Any:
        """vLLM's `LLM`, started when it is first asked for.

        Raises:
            MissingExtraError: vLLM isn't installed.
            UsageError: an argument that it doesn't know, no room for the model, or no plugin for the dial.
        """
        if self._llm is not None and is_dead(self._llm):
            self.close()
        if self._llm is None:
            args = {**self._args, **({"worker_extension_cls": WORKER} if self._check else {})}
            self._llm = self._start(arguments(self.model, args, eager=self.dial or bool(self._check)))
            try:
                if self._check:
                    self._check(self._llm.llm_engine.vllm_config)
                if self.dial:
                    self._check_plugin(self._llm)
            except BaseException:
                self.close()  # the next call checks again
                raise
        return self._llm

    def _check_plugin(self, llm: Any) -> None:
        """Ask for nonsense: without the plugin vLLM ignores it, as it would every alpha."""
        asked = need("vllm", "vllm").SamplingParams(max_tokens=1, detokenize=False, extra_args={EXTENSION: NONSENSE})
        try:
            with calling(llm, "was asked for the plugin"):
                llm.generate([{"prompt_token_ids": [0]}], [asked], use_tqdm=False)
        except ServiceError as error:
            if EXTENSION in str(error.__cause__):
                return
            raise
        raise UsageError(
            "This vLLM has no plugin of hneurons at work, so every alpha would answer as 1.",
            "Set HNEURONS_CARD to a card before Python starts; see docs/vllm.md.",
        )

    def close(self) -> None:
        """Stop vLLM and free what it holds; the next call starts it again."""
        llm, self._llm = self._llm, None
        if llm is not None:
            with suppress(Exception):  # of a device that failed
                llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()  # of an engine in this process the weights, too

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """One response a request.

        Raises:
            NumericError: the model's logits are NaN.
            PromptTooLongError: prompt and response don't fit into vLLM's context.
            ServiceError: vLLM fails.
            UsageError: an alpha other than 1 without the plugin, or a thinking budget.
        """
        if not self.dial and any(request.alpha != 1.0 for request in requests):
            raise UsageError("This engine turns no neurons.", "Make it with dial=True, where the plugin is loaded.")
        if sampling.thinking:
            raise UsageError("The vLLM engine keeps no thinking budget.", "Leave out --thinking, or use --engine hf.")
        if not requests:
            return []
        prompts = [self._prompt(request) for request in requests]
        self._check_length(max(len(prompt["prompt_token_ids"]) for prompt in prompts), sampling)
        wanted = [self._wanted(request, sampling) for request in requests]
        llm = self.llm
        with calling(llm, "sampled"):
            found = llm.generate(prompts, wanted, use_tqdm=False)
        return [self._response(request, output) for request, output in zip(requests, found, strict=True)]

    def _prompt(self, request: Request) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": list(self._transcript.prompt(request))}
        return {**prompt, "cache_salt": f"alpha {request.alpha!r}"} if self.dial else prompt

    def _check_length(self, longest: int, sampling: Sampling) -> None:
        # Measuring a response takes one token more.
        room = int(self.llm.llm_engine.model_config.max_model_len) - bool(self._check)
        if longest + sampling.steps > room:
            raise PromptTooLongError(
                f"A prompt has {longest:,} tokens, which with {sampling.steps:,} of a response is more than vLLM's "
                f"context of {room:,}.",
                "Raise it with --engine-arg max_model_len=..., or lower --max-new-tokens.",
            )

    def _wanted(self, request: Request, sampling: Sampling) -> Any:
        base = not self.model.has_chat_template
        return need("vllm", "vllm").SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed_of(sampling, request),
            logprobs=0,
            stop_token_ids=sorted(self._transcript.ends),
            # What ends a base model's answer is searched in the text; otherwise nobody reads vLLM's text.
            stop=["\n"] if base else None,
            detokenize=base,
            # Always: the plugin gives requests without one HNEURONS_ALPHA. Without the plugin nobody reads it.
            extra_args={EXTENSION: json.dumps({"alpha": request.alpha})},
        )

    def _response(self, request: Request, output: Any) -> Response:
        made = output.outputs[0]
        tokens = [int(token) for token in made.token_ids]
        logprobs = [float(place[token].logprob) for token, place in zip(tokens, made.logprobs, strict=True)]
        if not all(map(math.isfinite, logprobs)):
            raise NumericError("The model's logits are NaN.", "Load the model with --dtype float32.")
        return self._transcript.cut(request, tokens, logprobs, made.finish_reason)


UNTOLD = ("trust_remote_code", "hf_token")
"""Arguments of vLLM that a run doesn't record: said elsewhere, or secret."""
FIXED = frozenset(
    (
        "model",
        "tokenizer",
        "revision",
        "tokenizer_revision",
        "dtype",
        "logprobs_mode",
        "generation_config",
        "runner",
        "trust_remote_code",
    )
)
"""Arguments of vLLM on which it depends that a response is what this package's own engine would make."""


def arguments(model: StudyModel, args: Mapping[str, Any], *, eager: bool = False) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` for a model, as far as `args` doesn't say otherwise; `eager` for hooks."""
    described = model.describe()
    on_cpu = described["device"] == "cpu"
    files = model.files if isinstance(model, Outline) else locate(model.location or model.name, lambda _: None)[2]
    length = getattr(model.model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT
    usual: dict[str, Any] = {
        "max_model_len": min(int(length), CONTEXT),
        "seed": 0,
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        # Graphs aren't compiled on a CPU, where that takes minutes; this package's hooks would be skipped by them.
        "enforce_eager": on_cpu or eager,
    }
    if on_cpu:
        # vLLM winds a request's own random numbers back when its prompt was cut, which generators on a CPU can't do.
        usual["enable_chunked_prefill"] = False
        # Whole blocks of a prompt are shared by its samples, and on a CPU vLLM's own are longer than most questions.
        usual["block_size"] = CPU_BLOCK
    if on_cpu and "gpu_memory_utilization" not in args:
        usual["kv_cache_memory_bytes"] = CPU_CACHE
    fixed: dict[str, Any] = {
        "model": files,
        "dtype": described["dtype"],
        "generation_config": "vllm",
        # Log-probabilities of the model itself: before temperature, top-k and top-p.
        "logprobs_mode": "raw_logprobs",
    }
    if model.source == "hub":
        fixed |= {"revision": model.revision, "tokenizer_revision": model.revision}
    return {**usual, **args, **fixed}


def _start(args: dict[str, Any]) -> Any:
    """vLLM's `LLM`; what it raises in one line."""
    # Only what goes wrong, and not among a command's output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    vllm = need_vllm()
    try:
        return vllm.LLM(**args)
    except HNeuronsError:
        raise
    except TypeError as error:
        raise UsageError(f"vLLM refuses an argument: {line(error)}.", "See --engine-arg.") from error
    except Exception as error:
        # vLLM and its workers raise whatever a wrong value leads them to.
        raise UnsupportedModelError(
            f"vLLM can't start with {args['model']}: {line(error)}.",
            "Give it other arguments with --engine-arg (max_model_len, gpu_memory_utilization, kv_cache_memory_bytes, "
            "tensor_parallel_size), or use --engine hf.",
        ) from error
