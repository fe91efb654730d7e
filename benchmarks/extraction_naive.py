"""Extraction against the public code's way: one example a forward pass, LM head included, every activation kept.

    python benchmarks/extraction_naive.py

The other side is written here plainly, step by step as scripts/extract_activations.py of the paper's public code: hooks
keep z and ||h|| of every layer for the whole sequence; they are stacked, made into the contributions of every token and
neuron, and averaged over the answer and over the other tokens. Both regions come from one pass, as they do there.
Neither side writes its numbers to the disk, and both have all CPUs.

`operations` is how many times fewer multiplications the model itself needs here, for want of the LM head and of what
all prompts begin with. `at_the_peak` is the ratio if those that are left, and nothing else, took the time that the
fastest large matrix product of this machine takes for as many: no way that makes these products in float32 is faster.
"""

from __future__ import annotations

import numpy as np
import torch
from measure import all_cpus, in_turn, options, seconds, show
from passages import passages
from torch import Tensor

import hneurons as hn
from hneurons.neurons.cett import Passage, PooledExtractor, beginning, plan
from hneurons.types import Region

given = options(__doc__, examples=128, batch_tokens=512, rounds=5)
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
texts = passages(model, 4 if given.quick else given.examples)
planned = plan(model, texts, given.batch_tokens)
groups = [[texts[row] for row in rows] for rows in planned]
regions = (Region.ANSWER, Region.OTHER)
extractor = PooledExtractor(model, regions)
weight_norms = torch.stack([ffn.column_norms() for ffn in model.ffns])


def extract() -> list[np.ndarray]:
    return [found.dense() for found in extractor.many(groups)]


@torch.no_grad()
def keep_everything(passage: Passage) -> list[Tensor]:
    """The mean contributions of each region: each (layers * width,)."""
    activations: list[Tensor] = []
    sizes: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        activations.append(inputs[0].detach())
        sizes.append(torch.norm(output.detach(), dim=-1, keepdim=True))

    hooks = [ffn.down.register_forward_hook(keep) for ffn in model.ffns]
    model.model(input_ids=torch.tensor([passage.ids]))
    for hook in hooks:
        hook.remove()
    z = torch.stack([one[0] for one in activations]).transpose(0, 1)
    h = torch.stack([one[0] for one in sizes]).transpose(0, 1)
    contributions = (z.abs() * weight_norms / (h + 1e-8)).transpose(0, 1)
    masks = [torch.from_numpy(passage.mask(region)) for region in regions]
    return [contributions[:, mask].mean(dim=1).reshape(-1) for mask in masks]


def one_by_one() -> list[list[Tensor]]:
    return [keep_everything(passage) for passage in texts]


blocks = sum(p.numel() for name, p in model.model.named_parameters() if "embed" not in name and "head" not in name)
head = model.model.get_output_embeddings().weight.numel()
lengths = [len(passage.ids) for passage in texts]
begin = beginning(model, texts)
assert begin
shared = len(begin.ids)
products = blocks * (sum(lengths) - shared * (len(texts) - 1))
"""Of weights and tokens, that are left."""


def saved() -> dict[str, float]:
    """What isn't done twice, or at all."""
    config = model.model.config
    keys = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.model.dtype.itemsize
    return {
        "operations": round((blocks + head) * sum(lengths) / products, 3),
        "lm_head_share": round(head / (blocks + head), 3),
        "tokens_of_a_passage": float(np.median(lengths)),
        "shared_tokens": shared,
        "shared_megabytes": round(keys * shared / 1e6, 2),
    }


def at_the_peak(plain: float) -> dict[str, float]:
    """The plain way's seconds over those of the products alone, at the rate of a product of large matrices."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / min(seconds(lambda: left @ right) for _ in range(20))
    return {"peak_gflops": round(rate / 1e9, 1), "at_the_peak": round(plain * rate / (2 * products), 2)}


ours = np.concatenate(extract())
plain = np.stack([[region.numpy() for region in found] for found in one_by_one()])
plain = plain[[row for rows in planned for row in rows]]
worst = float(np.abs(ours - plain).max() / plain.max())
assert worst < 1e-4, worst  # both must be the same numbers
measured = in_turn(extract, one_by_one, 1 if given.quick else given.rounds, warm=False)  # both are warm
show(
    "extraction: wall time against one example at a time", measured["speedup"], 8, "min", len(texts),
    {
        "model": model.name, "batch_tokens": given.batch_tokens, "batches": len(groups), "threads": threads,
        "regions": [str(region) for region in regions],
    },
    tokens=sum(len(passage.ids) for passage in texts), largest_difference=worst,
    **saved(), **at_the_peak(measured["seconds"]["other"]), **measured,
)  # fmt: skip
