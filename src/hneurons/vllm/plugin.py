"""The `vllm.general_plugins` entry point: dial and monitor inside vLLM, when `HNEURONS_CARD` names a card.

vLLM calls `register` in every process: where requests come in (they are checked and stamped with their alpha there,
before an error could stop the engine), in the engine's core, and in its workers (which get the hooks).
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch
from torch import Tensor

from hneurons.errors import HNeuronsError
from hneurons.extras import need, need_vllm
from hneurons.neurons.card import Card
from hneurons.vllm.asked import KEY, Asked, asked, card_of_environment, default_alpha
from hneurons.vllm.dial import Turner
from hneurons.vllm.engine import check_card, check_engine
from hneurons.vllm.rows import Passes

TRIED = 64
"""Tokens of the start-up test, if a step takes as many."""
STEP = 7919
"""From one of its token ids to the next: a prime, so that they are spread over the vocabulary."""
BODIES = {
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
}
"""What vLLM's server reads the bodies of requests into."""


def register() -> None:
    """Prepare this process; does nothing without a card, and nothing the second time.

    Raises:
        CardError: the card can't be read.
        UsageError: this vLLM wasn't tested, or the default alpha is none.
    """
    card = card_of_environment()
    if card is None:
        return
    need_vllm()
    default = default_alpha()
    # Before vLLM chooses; an engine for which the user chose the newer one is refused.
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    processor = need("vllm.v1.engine.input_processor", "vllm").InputProcessor
    wrapper = need("vllm.v1.worker.worker_base", "vllm").WorkerWrapperBase
    if getattr(processor, "_hneurons", False):
        return
    processor._hneurons = True
    _check_at_start(processor, card)
    _stamp_requests(processor, default)
    refuse_beams()
    _attach_to_workers(wrapper, card)


def _check_at_start(processor: Any, card: Card) -> None:
    """Refuse a configuration before any process is started for it."""
    inner = processor.__init__

    @functools.wraps(inner)
    def init(self: Any, vllm_config: Any, *args: Any, **named: Any) -> None:
        check_engine(vllm_config)
        check_card(vllm_config, card)
        inner(self, vllm_config, *args, **named)

    processor.__init__ = init


def _stamp_requests(processor: Any, default: float) -> None:
    """Check what each request asks, write it down for the workers, and keep cached prefixes of alphas apart."""
    inner = processor.process_inputs

    @functools.wraps(inner)
    def process_inputs(self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **named: Any) -> Any:
        wanted = _asked(params, default)
        request: Any = inner(self, request_id, prompt, params, *args, **named)
        if request.sampling_params is not None:
            given = request.sampling_params.extra_args or {}
            request.sampling_params.extra_args = {**given, KEY: wanted.told()}
            request.cache_salt = f"{request.cache_salt or ''} {wanted.salt}"
        return request

    processor.process_inputs = process_inputs


def refuse_beams() -> None:
    """Refuse beam search that asks for the dial or the monitor: its beams are requests of vLLM's own making, without
    what the client's asked. The classes are there in processes alone that serve."""
    for module, name in BODIES.items():
        body = getattr(sys.modules.get(module), name, None)
        if body is not None:
            body.to_beam_search_params = _without_ours(body.to_beam_search_params)


def _without_ours(inner: Any) -> Any:
    @functools.wraps(inner)
    def to_beam_search_params(self: Any, *args: Any, **named: Any) -> Any:
        if KEY in (self.vllm_xargs or {}):
            raise need("vllm.exceptions", "vllm").VLLMValidationError(
                f"{KEY} in vllm_xargs doesn't reach the requests of a beam search: sample instead.",
                parameter="use_beam_search",
            )
        return inner(self, *args, **named)

    return to_beam_search_params


def _asked(params: Any, default: float) -> Asked:
    try:
        return asked((getattr(params, "extra_args", None) or {}).get(KEY), default)
    except HNeuronsError as error:
        raise need("vllm.exceptions", "vllm").VLLMValidationError(str(error), parameter="vllm_xargs") from error


def _attach_to_workers(wrapper: Any, card: Card) -> None:
    """Give each worker the hooks as soon as its model is loaded."""
    inner = wrapper.init_device

    @functools.wraps(inner)
    def init_device(self: Any, *args: Any, **named: Any) -> Any:
        check_engine(self.vllm_config)
        attach(self.worker, card)
        return inner(self, *args, **named)

    wrapper.init_device = init_device


def attach(worker: Any, card: Card) -> None:
    """Have a worker scale and score: hooks when its model is loaded, the test when it is ready, and the call
    `hneurons_scores` from then on."""
    load, ready = worker.load_model, worker.compile_or_warm_up_model
    made: list[Turner] = []

    def load_model(*args: Any, **named: Any) -> Any:
        result = load(*args, **named)
        turner = Turner(worker.model_runner, card)
        Passes(worker.model_runner, turner.begin, turner.end)
        made.append(turner)
        return result

    def compile_or_warm_up_model(*args: Any, **named: Any) -> Any:
        result = ready(*args, **named)
        runner = worker.model_runner
        made[-1].test(functools.partial(_try, runner), min(TRIED, runner.max_num_tokens), _over_ranks)
        return result

    worker.load_model = load_model
    worker.compile_or_warm_up_model = compile_or_warm_up_model
    worker.hneurons_scores = lambda requests: made[-1].take(requests)


@torch.inference_mode()
def _try(runner: Any, tokens: int) -> Tensor | None:
    """Logits of made-up tokens; None on a rank that is given none."""
    ids = runner.input_ids.gpu[:tokens]
    ids.copy_(torch.arange(tokens, device=ids.device) * STEP % runner.model_config.get_vocab_size())
    read = [ids]
    if runner.supports_mm_inputs:  # a model that sees pictures reads embeddings
        read.append(runner.inputs_embeds.gpu[:tokens])
        read[1].copy_(runner.model.embed_input_ids(ids))
    # Without a scheduler's batch attention leaves its output as it found it, whatever was in that memory.
    hooks = [module.register_forward_hook(_nothing) for module in runner.model.modules() if _is_attention(module)]
    try:
        hidden = runner._dummy_run(tokens, is_profile=True, skip_eplb=True)[0]
    finally:
        for each in read:
            each.zero_()
        for hook in hooks:
            hook.remove()
    return runner.model.compute_logits(hidden)


def _is_attention(module: Any) -> bool:
    return type(module).__name__.endswith("Attention")


def _nothing(_: Any, __: Any, output: Any) -> Any:
    return torch.zeros_like(output) if isinstance(output, Tensor) else output


def _over_ranks(value: float) -> float:
    """The sum over all ranks that hold parts of the same layers."""
    ranks = need("vllm.distributed", "vllm").get_tp_group()
    return float(ranks.all_reduce(torch.tensor([value], device=ranks.device)))
