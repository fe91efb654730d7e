"""Bytes that one example's features take in a mixture of experts: on paper for Qwen3-30B-A3B, measured on a small one.

    python benchmarks/moe_storage.py

The small model has the real number of experts and the real top-8, and fewer, narrower layers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import torch

import architectures
import tiny
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons.blockstore import BlockStore
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.types import Region

EXPERTS, CHOSEN, BYTES = 128, 8, 2
QWEN = {"layers": 48, "width": 768}
SMALL = {"layers": 4, "width": 24}
PROMPT, RESPONSE, ANSWER, PASSAGES = 40, 12, 4, 40
REGIONS = {Region.ANSWER: ANSWER, Region.OTHER: RESPONSE - ANSWER, Region.RESPONSE: RESPONSE, Region.PROMPT: PROMPT}


def reached(tokens: int) -> float:
    """Experts of a layer that so many tokens reach, if the router spreads them evenly."""
    return EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** tokens)


def on_paper(layers: int, width: int) -> dict[str, dict[str, int]]:
    """Bytes a region: every neuron, the experts reached on average, and at most."""
    whole = layers * EXPERTS * width * BYTES
    return {
        str(region): {
            "dense": whole,
            "expected": round(layers * reached(tokens) * width * BYTES),
            "most": layers * min(EXPERTS, CHOSEN * tokens) * width * BYTES,
        }
        for region, tokens in REGIONS.items()
    }


def measured() -> dict[str, int]:
    """Bytes a region and example of the small model, as they lie on disk."""
    qwen = architectures.row("Qwen3MoeForCausalLM")
    values = {
        **qwen.values,
        "num_experts": EXPERTS,
        "num_experts_per_tok": CHOSEN,
        "moe_intermediate_size": SMALL["width"],
        "num_hidden_layers": SMALL["layers"],
        "hidden_size": 64,
    }
    made = architectures.network(replace(qwen, values=values))
    model = StudyModel("small", "object", made, tiny.tokenizer(), None, find_ffns(made))
    rng = np.random.default_rng(0)
    passages = [
        Passage(str(i), tuple(rng.integers(3, 330, PROMPT + RESPONSE).tolist()), PROMPT, (0, ANSWER))
        for i in range(PASSAGES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features"
        store = BlockStore(path, PASSAGES, model.layout, tuple(REGIONS))
        extractor = PooledExtractor(model, tuple(REGIONS))
        groups = [passages[start : start + 8] for start in range(0, PASSAGES, 8)]
        for number, found in enumerate(extractor.many(groups)):
            store.write(range(8 * number, 8 * number + 8), found)
        sizes = {str(region): (path / f"{region}.blocks").stat().st_size // PASSAGES for region in REGIONS}
        return {**sizes, "index": (path / "index.jsonl").stat().st_size // PASSAGES}


def main() -> None:
    """Print the object."""
    torch.set_num_threads(1)
    small, found = on_paper(**SMALL), measured()
    print(
        json.dumps(
            {
                "tokens": {str(region): tokens for region, tokens in REGIONS.items()},
                "Qwen3-30B-A3B on paper, bytes an example": on_paper(**QWEN),
                "small on paper": small,
                "small measured": found,
                "measured / expected": {k: round(found[k] / v["expected"], 2) for k, v in small.items()},
                "measured / dense": {k: round(found[k] / v["dense"], 2) for k, v in small.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
