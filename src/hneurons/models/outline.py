"""A model without its weights: for runs whose sampling, or more, happens in another engine that holds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from hneurons.errors import HNeuronsError, UsageError
from hneurons.models.classes import auto_class
from hneurons.models.demo import Say
from hneurons.models.ffn import find_ffns
from hneurons.models.load import (
    SPREAD,
    StudyModel,
    choose_device,
    choose_dtype,
    explain,
    load_model,
    locate,
    place_of,
)
from hneurons.models.quiet import quiet_transformers


@dataclass(frozen=True)
class Outline(StudyModel):
    """Tokenizer, template, layout and description of a model; its parameters are on the meta device."""

    files: str = ""
    """What holds the weights: a folder, or a hub id."""
    place: str = "cpu"
    """Type of the device that the weights are on, wherever they are loaded."""
    loader: Callable[[], StudyModel] | None = None
    """Loads the model into transformers; None if that is not to be done."""

    @property
    def device(self) -> torch.device:
        """Where another engine has the weights."""
        return torch.device(self.place)

    @cached_property
    def whole(self) -> StudyModel:
        """The model with its weights, loaded when it is first asked for.

        Raises:
            UsageError: it isn't to be loaded.
        """
        if self.loader is None:
            raise UsageError(f"The weights of {self.name} aren't loaded into transformers here.", "Use --features hf.")
        return replace(self.loader(), thinking=self.thinking, lead=self.lead)


def has_weights(model: StudyModel) -> bool:
    """Whether the model can be run in this process, now or once it is loaded."""
    return not isinstance(model, Outline) or model.loader is not None


def load_outline(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    ffn: str | None = None,
    trust_remote_code: bool = False,
    loads: bool = True,
    say: Say = lambda _: None,
) -> Outline:
    """The outline of a model named as for `load_model`, which says what the other options mean.

    Args:
        loads: whether the weights may be loaded into transformers later, by what needs them.

    Raises:
        HNeuronsError: as `load_model` does.
    """
    name, source, files = locate(str(model), say)
    device = choose_device(device)
    options: dict[str, Any] = {"revision": revision} if source == "hub" else {}
    options["trust_remote_code"] = trust_remote_code
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(files, **options)
            chosen: Any = choose_dtype(dtype, device)
            network = empty(name, config, dtype=config.dtype if chosen == "auto" else chosen, **_only_code(options))
            with suppress(OSError):  # many models have none, and end their turns as their config says
                network.generation_config = GenerationConfig.from_pretrained(files, **options)
            tokenizer = AutoTokenizer.from_pretrained(files, **options)
    except HNeuronsError:
        raise
    except Exception as error:
        # Configs, tokenizers and the hub raise whatever a wrong value leads them to.
        raise explain(name, source, error) from error

    def load() -> StudyModel:
        say(f"Loading {name} into transformers")
        return load_model(
            model, dtype=dtype, device=device, revision=revision, ffn=ffn, trust_remote_code=trust_remote_code, say=say
        )

    commit = getattr(config, "_commit_hash", None) or revision
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == SPREAD else torch.device(device).type
    return Outline(
        name, source, network, tokenizer, commit, find_ffns(network, ffn), location=place_of(model, source),
        ffn=ffn, files=files, place=kind, loader=load if loads else None,
    )  # fmt: skip


def empty(name: str, config: Any, **options: Any) -> PreTrainedModel:
    """The model of a config with all its parameters on the meta device.

    Raises:
        UnsupportedModelError: the config is of no decoder.
    """
    with torch.device("meta"):
        network: PreTrainedModel = auto_class(name, config).from_config(config, **options)
    network.eval()
    return network


def _only_code(options: dict[str, Any]) -> dict[str, Any]:
    return {"trust_remote_code": options["trust_remote_code"]}
