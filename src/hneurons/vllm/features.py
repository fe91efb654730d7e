"""Features from vLLM's own forward passes, so that a large model is loaded once for sampling and for measuring."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hneurons.answers.calls import calling
from hneurons.answers.engine import EXTENSION
from hneurons.errors import NumericError, UnsupportedModelError, UsageError
from hneurons.extras import need, need_vllm
from hneurons.layout import Layout
from hneurons.neurons.blocks import BlockFeatures
from hneurons.neurons.cett import Passage
from hneurons.types import REGIONS, Region
from hneurons.vllm.engine import check_engine, check_extension
from hneurons.vllm.pooling import KEY, unpack

_numbers = itertools.count()
"""Of passages, whichever extractor measures them: the engine's cache is there for all."""


class VLLMExtractor:
    """Mean contribution of every neuron over each region, like `PooledExtractor`, from a vLLM engine's passes.

    A cached prefix can't be measured, since nothing computes it: each passage has a cache of its own, so that the
    engine may have sampled, prefixes cached, before.

    Args:
        llm: a `vllm.LLM`, eager, with `worker_extension_cls=hneurons.answers.engine.WORKER`.
        layout: where the model's neurons are.
        regions: what to average over.

    Raises:
        UsageError: the engine's version or settings make hooks unreliable; names the option to change.
        UnsupportedModelError: a mixture of experts, or layers that aren't those of `layout`.
        ServiceError: vLLM fails.
    """

    def __init__(self, llm: Any, layout: Layout, regions: Sequence[Region] = REGIONS) -> None:
        need_vllm()
        config = llm.llm_engine.vllm_config
        check_engine(config)
        check_extension(config)
        self.regions = tuple(regions)
        self.layout = layout
        self._llm = llm
        self._context = int(config.model_config.max_model_len)
        with calling(llm, "was made ready to measure"):
            replies = llm.collective_rpc("hneurons_measure", args=(json.dumps(asdict(layout)),))
        for told in replies:
            refusal = json.loads(told)
            if refusal:
                raise UnsupportedModelError(*refusal)

    def many(self, groups: Sequence[Sequence[Passage]]) -> Generator[BlockFeatures]:
        """Features of each batch of passages, in order: (passages, regions, neurons).

        Raises:
            UsageError: a passage fills the engine's context, or the hooks didn't see all of it.
            NumericError: an activation is NaN or infinite; names layer and passage.
            ServiceError: vLLM fails; if its process ended, or it has none of its own, a new `LLM` is needed.
        """
        for group in groups:
            yield self._measure(group)

    def _measure(self, passages: Sequence[Passage]) -> BlockFeatures:
        sampling: Any = need("vllm", "vllm").SamplingParams
        for passage in passages:
            if len(passage.ids) >= self._context:
                raise UsageError(
                    f"Example {passage.name!r} has {len(passage.ids):,} tokens; the engine reads {self._context:,}, "
                    "one of them generated.",
                    "Raise it with --engine-arg max_model_len=..., or leave that question out.",
                )
        # A number is one passage's alone: vLLM may still be at work on those of a call that was interrupted.
        numbered = [(next(_numbers), passage) for passage in passages]
        wanted = [
            sampling(
                max_tokens=1,
                temperature=0.0,
                detokenize=False,
                # Not the default alpha of a plugin that may be there.
                extra_args={KEY: {"number": number, "ranges": self._ranges(passage)}, EXTENSION: {"alpha": 1.0}},
            )
            for number, passage in numbered
        ]
        prompts = [{"prompt_token_ids": list(p.ids), "cache_salt": f"measured {number}"} for number, p in numbered]
        with calling(self._llm, "measured"):
            self._llm.generate(prompts, wanted, use_tqdm=False)
            shards = self._llm.collective_rpc("hneurons_pooled", args=([number for number, _ in numbered],))
            return join(shards, passages, self.layout, len(self.regions))

    def _ranges(self, passage: Passage) -> list[list[list[int]]]:
        return [runs(passage.mask(region)) for region in self.regions]


def runs(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Half-open ranges of the true entries."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def join(shards: Sequence[bytes], passages: Sequence[Passage], layout: Layout, regions: int) -> BlockFeatures:
    """Put the neurons of all workers side by side.

    Raises:
        UsageError: workers skipped a passage, or their neurons aren't all those of the model, each once.
        NumericError: NaN or infinity; names layer and passage.
    """
    found = BlockFeatures(len(passages), regions, layout.neurons, sparse=False)
    rows = np.arange(len(passages))
    times = np.zeros(layout.neurons, dtype=np.int64)
    for shard in shards:
        head, values = unpack(shard, len(passages), regions)
        if head["problems"]:
            row, problem = next(iter(head["problems"].items()))
            raise UsageError(
                f"The features of example {passages[int(row)].name!r} are incomplete: {problem}.",
                "Start vLLM eager; if tokens were skipped, without prefix caching.",
            )
        offset = 0
        for layer, start, size in head["blocks"]:
            block = values[..., offset : offset + size]
            good = np.isfinite(block).all(axis=(1, 2))
            if not good.all():
                raise NumericError(
                    f"NaN or infinite activation in layer {layer} on example "
                    f"{passages[int(np.flatnonzero(~good)[0])].name!r}.",
                    "Load the model with --dtype float32, or leave that question out.",
                )
            column = int(layout.starts[layer]) + start
            found.add(column, rows, block)
            times[column : column + size] += 1
            offset += size
    if not (times == 1).all():
        raise UsageError(
            f"vLLM's workers measured {int((times == 1).sum()):,} of the model's {layout.neurons:,} neurons once.",
            "Use tensor parallelism alone, or one worker.",
        )
    return found
