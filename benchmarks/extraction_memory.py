"""Memory of extraction above the model: bytes of all tensors and arrays alive during a pass, by length and by layers.

    python benchmarks/extraction_memory.py

Small models of two depths, passages of two lengths in batches of one fixed number of tokens. Counted are the bytes that
operations return and Python holds, above those of the bare forward pass, so the numbers don't depend on the machine.
The bound: the pooled rows, and z and h of one layer.
"""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path
from typing import Any

import torch
from measure import options, show
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.models.structure import backbone
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.types import REGIONS

given = options(__doc__, batch_tokens=2048)
WIDTH, HIDDEN = 256, 64


class Live(TorchDispatchMode):
    """Follows the storages that operations return; `most` is the largest number of bytes alive at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._known = {key: entry for key, entry in self._known.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._known.values()))
        return out


def peak(work: Any) -> int:
    """Most bytes of tensors and arrays that are alive at a time in `work`, of those that it makes."""
    tracemalloc.start()
    with Live() as live:
        work()
    arrays = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return live.most + arrays


def above_forward(layers: int, length: int) -> tuple[int, int, int]:
    """Bytes above the bare forward pass, bytes of the pooled rows, and of z and h of one layer."""
    config = LlamaConfig(
        vocab_size=330, hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4
    )
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    model = StudyModel("tiny", "object", network, tiny.tokenizer(), None, find_ffns(network))
    count = given.batch_tokens // length
    group = [Passage(str(i), tuple(i % 40 + 1 for i in range(length)), length - 8, (2, 5)) for i in range(count)]
    extractor = PooledExtractor(model)
    ids, mask, _ = extractor._pack(group, extractor.regions)

    def bare() -> Any:
        with torch.inference_mode():
            return backbone(model.model)(input_ids=ids, attention_mask=mask.long(), use_cache=False)

    extractor(group)
    bare()
    rows = count * len(REGIONS) * model.neurons * 4
    layer = count * length * (WIDTH + HIDDEN) * 4
    return peak(lambda: extractor(group)) - peak(bare), rows, layer


cases = {(layers, length): above_forward(layers, length) for layers in (2, 16) for length in (32, 256)}
ratio = max(extra / (rows + layer) for extra, rows, layer in cases.values())
show(
    "extraction: memory against one layer and the pooled rows", ratio, 1.0, "max", len(cases),
    {"batch_tokens": given.batch_tokens, "width": WIDTH, "hidden": HIDDEN, "regions": len(REGIONS)},
    cases=[
        {"layers": layers, "length": length, "bytes": extra, "pooled_rows": rows, "one_layer": layer}
        for (layers, length), (extra, rows, layer) in cases.items()
    ],
)  # fmt: skip
