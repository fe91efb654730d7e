"""Extraction against the bare forward pass: tokens/s of CETT for answer and other tokens, same model, same batches.

    python benchmarks/extraction.py

Neither side runs the LM head, and both have the same workers and threads. For `ratio` the same tokens go through the
model on both sides, so that it is what the measuring itself costs. In a run, what all prompts begin with goes through
the model once instead of once an example: `as in a run` has that against the same forward pass of whole passages.
"""

from __future__ import annotations

import torch
from measure import all_cpus, in_turn, options, show
from passages import passages

import hneurons as hn
from hneurons.models.structure import backbone
from hneurons.neurons.cett import Beginning, Passage, PooledExtractor, batches
from hneurons.parallel import ordered, workers
from hneurons.types import Region

given = options(__doc__, examples=192, batch_tokens=512, rounds=5)
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
texts = passages(model, 4 if given.quick else given.examples)
tokens = 128 if given.quick else given.batch_tokens
groups = [[texts[row] for row in rows] for rows in batches([len(passage.ids) for passage in texts], tokens)]


class Whole(PooledExtractor):
    """Whole passages: every token goes through the model."""

    def _prefix(self, begin: Beginning) -> None:
        return None


whole, usual = Whole(model, [Region.ANSWER, Region.OTHER]), PooledExtractor(model, [Region.ANSWER, Region.OTHER])


def extract(extractor: PooledExtractor) -> None:
    for _ in extractor.many(groups):
        pass


@torch.inference_mode()
def forward(group: list[Passage]) -> None:
    ids, mask, _ = whole._pack(group, whole.regions)
    backbone(model.model)(input_ids=ids, attention_mask=mask.long(), use_cache=False)


def bare() -> None:
    with workers(model.device) as pool:  # the same workers and threads
        for _ in ordered(pool, forward, groups):
            pass


rounds = 1 if given.quick else given.rounds
measured = in_turn(lambda: extract(whole), bare, rounds)
in_a_run = in_turn(lambda: extract(usual), bare, max(1, rounds // 3))
show(
    "extraction: tokens/s against the forward pass", measured["speedup"], 0.95, "min", len(texts),
    {
        "model": model.name, "batch_tokens": tokens, "batches": len(groups), "threads": threads,
        "regions": [str(region) for region in whole.regions],
    },
    tokens=sum(len(passage.ids) for passage in texts), **measured, **{"as in a run": in_a_run},
)  # fmt: skip
