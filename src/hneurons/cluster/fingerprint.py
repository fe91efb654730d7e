"""A cheap fingerprint of a model: whether the folder at one path is the same on two nodes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hneurons.models.load import StudyModel
from hneurons.runfolder import hash_json

TENSORS, ELEMENTS = 1024, 32
"""Parameters looked at, and elements of each, evenly spread: tuning one layer changes nearly all of them."""
SAMPLE = "What's the name of Zoë's 3rd café, opened in 1925?\n\t42 + 17 = 59; naïve 漢字 🧠 <b>don't</b>"


@dataclass(frozen=True)
class Fingerprint:
    """What two copies of a model have in common, beside their configuration."""

    words: str
    """Hash of vocabulary, special tokens, chat template, what ends a turn, and the token ids of a text."""
    weights: dict[str, str]
    """Hash of some elements of each parameter that was looked at, by its name."""

    @classmethod
    def of(cls, model: StudyModel) -> Fingerprint:
        """Of a model on any device. Left out is what another device may hold otherwise: quantised parameters, and those
        that accelerate moved off."""
        tokenizer: Any = model.tokenizer
        words = {
            "vocabulary": tokenizer.get_vocab(),
            "special": sorted(map(str, tokenizer.all_special_tokens)),
            "template": tokenizer.chat_template,
            "ends": model.end_ids,
            "sample": list(tokenizer(SAMPLE)["input_ids"]),
        }
        named = list(model.model.named_parameters())
        every = named[:: max(1, -(-len(named) // TENSORS))]
        return cls(hash_json(words), {name: _hash(parameter) for name, parameter in every if _is_plain(parameter)})

    def difference(self, other: Fingerprint) -> str | None:
        """What differs, in a few words; None for copies of one model."""
        if self.words != other.words:
            return "its tokenizer, chat template or end of turn"
        both = self.weights.keys() & other.weights.keys()
        return next((f"the weight {name}" for name in sorted(both) if self.weights[name] != other.weights[name]), None)


def _is_plain(parameter: nn.Parameter) -> bool:
    """Whether its elements can be read as they are; quantised ones are of a class, or of a type, of their own."""
    here = parameter.device.type != "meta" and parameter.dim() > 0 and parameter.numel() > 0
    return here and type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.element_size() > 1


@torch.no_grad()
def _hash(parameter: nn.Parameter) -> str:
    places = torch.linspace(0, parameter.numel() - 1, ELEMENTS, dtype=torch.float64).long()
    found = parameter[torch.unravel_index(places.to(parameter.device), parameter.shape)]
    return hashlib.sha256(found.cpu().double().numpy().tobytes()).hexdigest()[:16]
