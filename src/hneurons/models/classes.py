"""Which transformers class loads a checkpoint, and which kinds of model are refused."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto import modeling_auto

from hneurons.errors import UnsupportedModelError

ONLY = "This tool studies decoder-only language models, also those inside vision-language models."
_NAMES: Any = modeling_auto
CAUSAL: dict[str, str] = dict(_NAMES.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MASKED: dict[str, str] = dict(_NAMES.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
VISION: dict[str, str] = dict(_NAMES.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def auto_class(name: str, config: Any) -> Any:
    """The auto class that loads a model of this config: for causal language models or for vision-language models.

    Raises:
        UnsupportedModelError: the model is no decoder; names what it is.
    """
    kind = str(config.model_type)
    made_as = [str(one) for one in getattr(config, "architectures", None) or []]
    told = f"{name} is of type {kind!r}" + (f" ({made_as[0]})" if made_as else "")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{told}, an encoder-decoder.", ONLY)
    auto_map = getattr(config, "auto_map", None) or {}
    known = {CAUSAL.get(kind), VISION.get(kind)}
    if made_as and not known.intersection(made_as) and "AutoModelForCausalLM" not in auto_map:
        raise UnsupportedModelError(f"{told}, which doesn't generate text.", ONLY)
    # BERT and its kin can be decoders, but only say so when they are.
    decoder = getattr(config, "is_decoder", True) or getattr(config, "causal", False)
    if kind in MASKED and not decoder:
        raise UnsupportedModelError(f"{told}, an encoder.", ONLY)
    if kind in VISION and (kind not in CAUSAL or VISION[kind] in made_as):
        return AutoModelForImageTextToText
    if kind in CAUSAL or "AutoModelForCausalLM" in auto_map:
        return AutoModelForCausalLM
    raise UnsupportedModelError(f"{told}, which is no causal language model.", ONLY)
