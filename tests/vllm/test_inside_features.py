"""Features measured by vLLM's own passes equal those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import Play, check_close, features_told, prompts, saved

from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor
from hneurons.types import REGIONS


def passages(model: StudyModel) -> list[list[Passage]]:
    """Two groups; some of the passages are longer than the tokens of a step."""
    said = ["Paris.", "The capital of France is Paris, of course.", "I think it was William Shakespeare.", "8"]
    made: list[Passage] = []
    for number, (prompt, text) in enumerate(zip(prompts(model), said, strict=True)):
        response = model.encode(text)
        stop = max(len(response) - 2, 1)
        made.append(Passage(f"q{number}", (*prompt, *response), len(prompt), (min(1, stop - 1), stop)))
    return [made[:3], made[3:]]


@pytest.fixture(scope="module")
def demo(play: Play, model: StudyModel, folder: Path) -> Any:
    groups = passages(model)
    return play(
        "features",
        features_told(str(folder), model.layout, groups, max_num_batched_tokens=32),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )


def test_features_equal_those_of_transformers_also_when_prefill_is_chunked(demo: Any, model: StudyModel):
    groups = passages(model)
    assert max(len(p.ids) for group in groups for p in group) > 32
    # The trap is there: what was asked before is in the cache. Measuring takes nothing from it.
    assert max(demo["cached"][1]) >= 32
    expected = list(PooledExtractor(model, REGIONS).many(groups))
    for path, batch in zip(demo["paths"], expected, strict=True):
        check_close(np.load(path), batch.dense())


def test_what_cannot_be_measured_is_refused_in_one_line(demo: Any):
    assert demo["refused"]["long"].startswith("UsageError: Example 'long' has 256 tokens")
    assert "30 feed-forward layers" in demo["refused"]["wider"]
    assert all("\n" not in line for line in demo["refused"].values())


@pytest.mark.parametrize(("kind", "ranks"), [("llama", 2), ("gpt2", 1), ("opt", 1)])
def test_features_of_other_models_and_of_two_ranks(
    play: Play, tmp_path_factory: pytest.TempPathFactory, kind: str, ranks: int
):
    folder = tmp_path_factory.mktemp(kind)
    model = saved(kind, folder)
    rng = np.random.default_rng(0)
    ids = [tuple(rng.integers(3, 330, n).tolist()) for n in (30, 9, 60)]
    groups = [[Passage(f"q{i}", each, len(each) // 2, (1, 3)) for i, each in enumerate(ids)]]
    engine = {"max_num_batched_tokens": 32, "tensor_parallel_size": ranks}
    found = play("features", features_told(str(folder), model.layout, groups, **engine))
    check_close(np.load(found["paths"][0]), PooledExtractor(model, REGIONS)(groups[0]))
