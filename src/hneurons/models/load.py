"""Load the model under study: a hub id, a folder, a GGUF file or a demo name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hneurons.errors import (
    DamagedModelError,
    HNeuronsError,
    ModelError,
    ModelNotFoundError,
    UnsupportedModelError,
    UsageError,
)
from hneurons.layout import Columns, Layout
from hneurons.memory import ran_out
from hneurons.models.classes import auto_class
from hneurons.models.demo import DEMO_MODELS, Say, cache_folder, convert, once, pull
from hneurons.models.ffn import find_ffns, layout_of
from hneurons.models.moe import RoutedFFN
from hneurons.models.parts import FFN
from hneurons.models.quiet import quiet_transformers
from hneurons.models.templates import Turn, templated, untemplated
from hneurons.runfolder import hash_file, hash_json

CHOICES = f"Give a hub id, a folder, a .gguf file or a demo model ({', '.join(sorted(DEMO_MODELS))})."
SPREAD = "spread"
"""The device that means: over all there are, through accelerate."""
ANSWER_ONLY = " Respond with the answer only, without any explanation."
"""What the paper adds to each question (Gao et al. 2025, sec. 3)."""


@dataclass(frozen=True)
class StudyModel:
    """A language model, its tokenizer, and where its feed-forward neurons are."""

    name: str
    source: str
    """`hub`, `folder`, `gguf`, `demo` or `object` (made by the caller)."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str | None = None
    ffns: list[FFN] = field(default_factory=list[FFN])
    thinking: bool = False
    """Whether prompts ask a reasoning model to think first, where its chat template knows how."""
    lead: str | None = None
    """Asked as a base model: this text (few-shot examples, or none), the question and `Answer:`. None: as a user."""
    location: str | None = None
    """Where a folder or a .gguf file is: its name alone doesn't lead back to it."""
    ffn: str | None = None
    """The path pattern of the down projections that it was loaded with, if one was given."""

    @property
    def device(self) -> torch.device:
        """Where input ids go: the device of the token embedding."""
        embedding: Any = self.model.get_input_embeddings()
        if embedding.weight.device.type != "meta":
            return embedding.weight.device
        # accelerate keeps the embedding elsewhere and brings it here for its turn.
        return torch.device(embedding._hf_hook.execution_device)

    @cached_property
    def is_moved(self) -> bool:
        """Whether accelerate moves weights while the model runs: then only one pass can run at a time."""
        return any(parameter.device.type == "meta" for parameter in self.model.parameters())

    @cached_property
    def layout(self) -> Layout:
        """Where each neuron's column is."""
        return layout_of(self.model, self.ffns)

    @property
    def neurons(self) -> int:
        """Number of feed-forward neurons of all layers."""
        return self.layout.neurons

    @property
    def widths(self) -> list[int]:
        """Neurons of each decoder layer, 0 for one without."""
        return self.layout.widths

    def parts_with(self, columns: Columns) -> Iterator[tuple[int, Columns, Columns]]:
        """For each of `ffns` that holds some of these feature columns: its position, which of `columns` they are,
        and their columns inside it."""
        for position, (start, ffn) in enumerate(zip(self.columns_of_parts, self.ffns, strict=True)):
            mine = np.flatnonzero((columns >= start) & (columns < start + ffn.width))
            if len(mine):
                yield position, mine, columns[mine] - start

    @property
    def columns_of_parts(self) -> list[int]:
        """First feature column of each of `ffns`."""
        starts, dense = self.layout.starts.tolist(), self.layout.dense
        return [starts[ffn.layer] + (dense[ffn.layer] if isinstance(ffn, RoutedFFN) else 0) for ffn in self.ffns]

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end a turn."""
        ends: list[int] = []
        for value in (self.model.generation_config.eos_token_id if self.model.generation_config else None,
                      self.tokenizer.eos_token_id):  # fmt: skip
            listed: list[Any] = value if isinstance(value, list) else [value]
            ends += [end for end in listed if isinstance(end, int)]
        return sorted(set(ends))

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts go through a chat template; without one they are lines of text that end in `Answer:`."""
        return self.lead is None and bool(self.tokenizer.chat_template)

    def prompt(self, said: str | Sequence[str]) -> str:
        """The text the model continues: after a question asked as one user turn for "the answer only", or after the
        turns of a conversation (user, assistant, user, ...), as they are.

        Without a chat template a question becomes `Question: ... Answer:`, and a conversation `User: ...` and
        `Assistant: ...` in lines of their own.
        """
        if self.lead is not None and isinstance(said, str):
            return f"{self.lead}{said}\nAnswer:"
        if not self.has_chat_template and isinstance(said, str):
            return f"Question: {said}\nAnswer:"
        turns = [said + ANSWER_ONLY] if isinstance(said, str) else said
        return self.chat([{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)])

    def chat(self, turns: Sequence[Turn]) -> str:
        """The text the model continues as the assistant after a conversation."""
        if not self.has_chat_template:
            return untemplated(turns)
        return templated(self.tokenizer, turns, thinking=self.thinking)

    def encode(self, text: str) -> list[int]:
        """Token ids of what `prompt` or `chat` made; a chat template brings its own special tokens."""
        made: Any = self.tokenizer(text, add_special_tokens=not self.has_chat_template)
        return list(made["input_ids"])

    def prompt_ids(self, said: str | Sequence[str]) -> list[int]:
        """Token ids of `prompt(said)`."""
        return self.encode(self.prompt(said))

    def describe(self) -> dict[str, Any]:
        """What the manifest and the card record of the model."""
        config = self.model.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "quantization_config"):
            config.pop(key, None)
        return {
            "id": self.name,
            "source": self.source,
            "revision": self.revision,
            "architecture": type(self.model).__name__,
            "config_hash": hash_json(_plain(config)),
            **self.layout.describe(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "chat_template": self.has_chat_template,
            **({} if self.lead is None else {"lead": self.lead}),
        }


def as_study_model(
    model: StudyModel | tuple[Any, Any], *, name: str | None = None, ffn: str | None = None
) -> StudyModel:
    """A `StudyModel` from itself, or from a pair of a transformers model and its tokenizer."""
    if isinstance(model, StudyModel):
        return model
    pair: Any = model
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], nn.Module):
        raise UsageError("Expected a loaded model or a pair (model, tokenizer).", "Use hneurons.load_model(...).")
    network, tokenizer = pair
    network.eval()
    label = name or str(getattr(network.config, "_name_or_path", "") or type(network).__name__)
    return StudyModel(label, "object", network, tokenizer, None, find_ffns(network, ffn))


def load_model(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    ffn: str | None = None,
    trust_remote_code: bool = False,
    say: Say = lambda _: None,
) -> StudyModel:
    """Load a causal language model with its tokenizer and locate its feed-forward neurons.

    Args:
        model: a hub id, a folder, a .gguf file or a demo name.
        dtype: `float32`, `bfloat16`, `float16`; `auto` is float32 on CPU and the checkpoint's own elsewhere.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; `spread` over all GPUs, then CPU memory, then disk; `auto` is one GPU,
            or spread when there are several.
        revision: commit or tag on the hub.
        ffn: path pattern of the down projections, when the locator doesn't know the architecture.
        trust_remote_code: run Python code that comes with the model. Only for sources that you trust.
        say: called with one line about each slow step.

    Raises:
        ModelNotFoundError: no such model, or no network.
        DamagedModelError: files are cut or unreadable.
        UnsupportedModelError: no decoder, or no feed-forward layer that the locator knows.
        ModelError: it doesn't fit into memory, or the device takes nothing.
    """
    name, source, folder = locate(str(model), say)
    device = choose_device(device)
    options: dict[str, Any] = {"revision": revision} if source == "hub" else {}
    options["trust_remote_code"] = trust_remote_code
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **options)
            network, info = auto_class(name, config).from_pretrained(
                folder, dtype=choose_dtype(dtype, device), output_loading_info=True, **_placement(device), **options
            )
            if missing := sorted(info["missing_keys"]):
                raise DamagedModelError(
                    f"{name} lacks {len(missing)} weights of {type(network).__name__} ({', '.join(missing[:3])}...).",
                    "Fetch or convert the model again; a base model without its LM head can't be studied.",
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except HNeuronsError:
        raise
    except Exception as error:
        # Hub, safetensors, tokenizers and transformers each raise their own kinds.
        raise explain(name, source, error) from error
    if device != SPREAD:
        try:
            nn.Module.to(network, torch.device(device))
        except RuntimeError as error:
            if ran_out(error):
                raise explain(name, source, error) from error
            text = " ".join(str(error).split())[:160]
            raise ModelError(f"{name} can't be put on {device} ({text}).", "Choose another --device.") from error
    network.eval()
    network.requires_grad_(False)
    commit = getattr(config, "_commit_hash", None) or revision
    where = place_of(model, source)
    return StudyModel(name, source, network, tokenizer, commit, find_ffns(network, ffn), location=where, ffn=ffn)


def place_of(model: str | Path, source: str) -> str | None:
    """Where a folder or a .gguf file is, as an absolute path; None for a model that has a name of its own."""
    return str(Path(model).expanduser().resolve()) if source in ("folder", "gguf") else None


def locate(model: str, say: Say) -> tuple[str, str, str]:
    """(name, source, what `from_pretrained` gets) of a model named as for `load_model`."""
    if model in DEMO_MODELS:
        return model, "demo", str(pull(model, say))
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(f"{model} is a file but not a .gguf file.", CHOICES)
        return path.stem, "gguf", str(_from_gguf(path, say))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DamagedModelError(f"The folder {model} has no config.json.", CHOICES)
        return path.resolve().name, "folder", str(path)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) is None or model.endswith(".gguf"):
        raise ModelNotFoundError(f"There is no model {model!r}.", CHOICES)
    return model, "hub", model


def _from_gguf(path: Path, say: Say) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise DamagedModelError(f"{path} is not a GGUF file.", "Fetch it again.")
    say(f"Checking {path.name}")
    digest = hash_file(path)
    folder = cache_folder() / "gguf" / digest[:16]
    return once(folder, digest, lambda: convert(path, folder, digest, say), say)


def choose_device(device: str = "auto") -> str:
    """The device that `load_model` uses for what was asked for.

    Raises:
        UsageError: there is none of that name, or not here.
    """
    if device not in ("auto", SPREAD):
        try:
            torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"There is no device {device!r}.", "Use cpu, cuda, cuda:0, mps or spread.") from error
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UsageError("PyTorch sees no CUDA device here.", "Use --device cpu.")
        return device
    if device == SPREAD or torch.cuda.device_count() > 1:
        return SPREAD
    return "cuda" if torch.cuda.is_available() else "cpu"


def _placement(device: str) -> dict[str, Any]:
    """Options of `from_pretrained` that place the weights; one device needs none."""
    if device != SPREAD:
        return {}
    folder = cache_folder() / "offload"
    folder.mkdir(parents=True, exist_ok=True)
    return {"device_map": "auto", "offload_folder": str(folder)}


def choose_dtype(dtype: str, device: str) -> Any:
    """The type of the weights for what was asked for: of torch, or `auto`, which is the checkpoint's own.

    Raises:
        UsageError: there is none of that name.
    """
    if dtype == "auto":
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise UsageError(f"There is no dtype {dtype!r}.", f"Use auto, {', '.join(known)}.")
    return known[dtype]


def explain(name: str, source: str, error: Exception) -> Exception:
    """What a library's error about a model means, in one line."""
    text = " ".join(str(error).split())[:300]
    if ran_out(error):
        return ModelError(
            f"{name} doesn't fit into the memory that is free ({text[:160]}).",
            "Load it with --dtype bfloat16, over all devices with --device spread, or elsewhere with --device cpu.",
        )
    # `text` is cut; an older or newer transformers words it otherwise.
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UnsupportedModelError(
            f"{name} needs Python code of its own.", "If you trust its source, add --trust-remote-code."
        )
    if source == "hub":
        offline = any(word in text.lower() for word in ("connect", "offline", "resolve", "network", "timed out"))
        problem = f"The model hub can't be reached for {name!r}" if offline else f"The hub has no usable model {name!r}"
        return ModelNotFoundError(f"{problem} ({type(error).__name__}: {text[:160]}).", CHOICES)
    return DamagedModelError(
        f"{name} can't be loaded ({type(error).__name__}: {text}).", "Fetch or convert the model again."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no infinity, which some configs hold as a limit.
    plain = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
    return value if plain else str(value)
