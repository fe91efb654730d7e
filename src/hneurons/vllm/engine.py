"""What an engine must be for hooks to be right: eager, and with batches whose order is known.

Each of these gives wrong numbers without an error in an engine that doesn't fulfil it, so each is refused.
"""

from __future__ import annotations

import re
from typing import Any

from hneurons.answers.engine import WORKER
from hneurons.errors import CardError, UsageError
from hneurons.neurons.card import Card

OWN = "Use the card of this model, or identify its own H-Neurons."


def check_engine(config: Any) -> None:
    """Refuse a vLLM configuration in which hooks are skipped or see other rows than they think.

    Args:
        config: vLLM's `VllmConfig`.

    Raises:
        UsageError: names the option to change.
    """
    compilation = config.compilation_config
    if int(compilation.mode or 0) or compilation.cudagraph_mode.name != "NONE":
        raise UsageError(
            "vLLM runs compiled graphs, which skip hooks without a word.", "Start it with --enforce-eager."
        )
    if config.use_v2_model_runner:
        raise UsageError(
            "vLLM's newer model runner orders requests in a way that wasn't tested.",
            "Set VLLM_USE_V2_MODEL_RUNNER=0.",
        )
    if config.speculative_config is not None:
        raise UsageError(
            "vLLM decodes speculatively, which wasn't tested with hooks.", "Leave the speculative configuration out."
        )
    if getattr(config, "kv_transfer_config", None) is not None:
        raise UsageError(
            "vLLM shares keys and values through a connector, and some mix up those of several alphas.",
            "Leave --kv-transfer-config and --kv-offloading-size out.",
        )
    if config.lora_config is not None:
        raise UsageError(
            "vLLM serves LoRA adapters, whose layers the hooks don't know.",
            "Use either adapters (--enable-lora) or hooks, not both.",
        )
    if getattr(config.model_config, "enable_prompt_embeds", False):
        raise UsageError(
            "vLLM takes prompts as embeddings, of which nobody knows where the response begins.",
            "Leave --enable-prompt-embeds out.",
        )
    if config.model_config.runner_type != "generate":
        raise UsageError("vLLM runs this model without generating text.", "Leave --runner and --convert out.")
    if config.parallel_config.pipeline_parallel_size > 1:
        raise UsageError(
            "vLLM cuts the model into pipeline stages, which wasn't tested with hooks.",
            "Use tensor parallelism (tensor_parallel_size) instead.",
        )
    if config.parallel_config.data_parallel_size > 1:
        raise UsageError(
            "vLLM runs several data-parallel engines, and only one of them would answer.",
            "Start an engine of its own for each.",
        )


def check_card(config: Any, card: Card) -> None:
    """Refuse a card of another architecture or depth; whether the widths fit is seen when the model is loaded.

    Mistral 7B and Llama 3 8B have as many neurons in as many layers; a shallower model may have the first layers of a
    deeper one.

    Raises:
        CardError: says what differs.
    """
    served = [str(name) for name in config.model_config.architectures]
    # vLLM may name the class around a language model, vision tower and all.
    own, others = (
        {re.sub(r"For(CausalLM|ConditionalGeneration)$", "", n) for n in names}
        for names in ([card.model.architecture], served)
    )
    if not own & others:
        raise CardError(
            f"The card of {card.model.id} is of a {card.model.architecture}; vLLM serves a {', '.join(served)}.",
            OWN,
        )
    layers = int(config.model_config.get_total_num_hidden_layers())
    if layers != card.model.layers:
        raise CardError(
            f"The card of {card.model.id} is of a model with {card.model.layers} layers; vLLM serves {layers}.",
            OWN,
        )


def check_extension(config: Any) -> None:
    """Refuse an engine whose workers can't measure.

    Raises:
        UsageError: it was started without `WORKER`.
    """
    if config.parallel_config.worker_extension_cls != WORKER:
        raise UsageError(
            "This vLLM engine was started without hneurons' worker extension.",
            f"Start it with worker_extension_cls={WORKER!r}.",
        )
