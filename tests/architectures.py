"""Tiny random models of the architectures in architectures.toml. Nothing is downloaded."""

from __future__ import annotations

import tomllib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import nn

HIDDEN, WIDTH, EXPERTS, EXPERT, VOCABULARY = 32, 24, 4, 16, 330
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": WIDTH,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    **IDS,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}


@dataclass(frozen=True)
class Text:
    """The language part of a vision-language config."""

    config: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An architecture and the truth about it."""

    architecture: str
    """The transformers class, with a variant in brackets where there are several."""
    config: str
    """Its config class."""
    values: dict[str, Any] = field(default_factory=dict)
    """What its config gets beside `SIZES`."""
    without: tuple[str, ...] = ()
    """What of `SIZES` its config doesn't take."""
    bare: bool = False
    """Its config takes nothing of `SIZES` but the token ids."""
    text: Text | None = None
    vision: dict[str, Any] = field(default_factory=dict)
    """For a vision-language model: the language config and what the vision config gets beside `VISION`."""
    blocks: tuple[str, ...] = ("model.layers.{}.mlp",)
    """Modules whose outputs add up to the feed-forward output of layer {}."""
    widths: tuple[int, ...] = (WIDTH, WIDTH)
    """Neurons of each decoder layer."""
    separate: bool = False
    """The blocks are normalised apart: each has an output h of its own."""
    kind: str = "dense"
    """`dense`, `hybrid`, `mixture` or `refused`."""
    family: str = ""
    """Well-known models of that class."""
    note: str = ""
    not_sampled: str = ""
    """Words of the reason why the built-in engine won't sample from it; all else works."""
    refused: str = ""
    """Words of the reason why it is refused."""
    seed: int = 0
    """Of the random weights; another one where a router's choice is a tie but for rounding."""

    @property
    def class_name(self) -> str:
        """The class without the variant."""
        return self.architecture.split(" ")[0]

    def make_config(self) -> Any:
        """The tiny config."""
        if self.text is not None:
            text = getattr(hf, self.text.config)(**SIZES | self.text.values)
            vision = {"vision_config": VISION | self.vision, "text_config": text.to_dict()}
            return getattr(hf, self.config)(**vision, **self.values)
        common = IDS if self.bare else {key: value for key, value in SIZES.items() if key not in self.without}
        return getattr(hf, self.config)(**common | self.values)


def _rows() -> list[Row]:
    path = Path(__file__).with_name("architectures.toml")
    rows: list[Row] = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["row"]:
        fixed = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        if "text" in entry:
            fixed["text"] = Text(**entry["text"])
        rows.append(Row(**{**entry, **fixed}))
    return rows


ROWS = _rows()


def row(architecture: str) -> Row:
    """The row of that name."""
    return next(row for row in ROWS if row.architecture == architecture)


def exists(row: Row) -> bool:
    """Whether this transformers has the class."""
    return hasattr(hf, row.class_name)


def network(row: Row, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny random model, in evaluation mode, with biases other than zero."""
    torch.manual_seed(row.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(hf, row.class_name)(row.make_config())
    for name, parameter in made.named_parameters():
        if parameter.dim() > 1 and (not bool(torch.isfinite(parameter).all()) or not bool(parameter.any())):
            nn.init.normal_(parameter, std=0.3)
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    cast(made, dtype)
    return made.eval().requires_grad_(False)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the floating-point type in place; `.to` would turn Llama 4's complex rotations into real numbers."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
