"""bfloat16 against float32 on a CPU: the speed of extraction and of sampling, and what becomes of the features.

    python benchmarks/precision.py

Speeds in turn, with the same batches, threads and questions; sampling's a token, since the two draw other responses.
The features are the contributions of real answers (benchmarks/real_features.py) in both precisions: how far apart they
are, and the held-out AUROC of a probe that is fitted and scored on either, as benchmarks/store.py has it.
"""

from __future__ import annotations

import json

import numpy as np
from measure import all_cpus, in_turn, options, scaled
from numpy.typing import NDArray
from real_answers import GRID, answers, aurocs, half

import hneurons as hn
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor, batches
from hneurons.types import Region

NAME = "smollm2-135m"


def measured(model: StudyModel, texts: list[Passage], plan: list[list[int]]) -> NDArray[np.float32]:
    """Contributions over the answer: (texts, neurons)."""
    found = np.zeros((len(texts), model.neurons), dtype=np.float32)
    groups = [[texts[row] for row in rows] for rows in plan]
    for rows, block in zip(plan, PooledExtractor(model, [Region.ANSWER]).many(groups), strict=True):
        found[rows] = block.dense()[:, 0]
    return found


def main() -> None:
    given = options(__doc__, questions=48, tokens=24, rounds=5)
    threads = all_cpus()
    count, rounds = (2, 1) if given.quick else (given.questions, given.rounds)
    low, full = (hn.load_model(NAME, dtype=dtype, device="cpu") for dtype in ("bfloat16", "float32"))
    texts, wrong, groups = answers(full, given.quick)
    plan = [list(rows) for rows in batches([len(passage.ids) for passage in texts], 2048)]
    some = plan[:4]
    extraction = in_turn(lambda: measured(low, texts, some), lambda: measured(full, texts, some), rounds)

    asked = hn.load_questions("starter", limit=count, seed=0).questions
    requests = [Request(question, sample) for question in asked for sample in range(10)]
    drawn: dict[str, int] = {}

    def draw(name: str, engine: HFEngine) -> None:
        made = engine.sample(requests, Sampling(max_new_tokens=given.tokens))
        drawn[name] = sum(len(response.token_ids) for response in made)

    engines = {"bfloat16": HFEngine(low), "float32": HFEngine(full)}
    sampling = in_turn(
        lambda: draw("bfloat16", engines["bfloat16"]), lambda: draw("float32", engines["float32"]), max(1, rounds // 2)
    )
    rough, exact = measured(low, texts, plan), measured(full, texts, plan)
    fitted = half(groups)
    print(
        json.dumps(
            {
                "name": "bfloat16 against float32 on a CPU",
                "model": NAME,
                "threads": threads,
                "answers": len(texts),
                "extraction": extraction,
                "sampling": scaled(sampling, drawn["bfloat16"] / drawn["float32"]),
                "features: difference of an answer's, as a share of their norm": float(
                    np.median(np.linalg.norm(rough - exact, axis=1) / np.linalg.norm(exact, axis=1))
                ),
                "C": GRID,
                "auroc bfloat16": aurocs(rough, wrong, fitted),
                "auroc float32": aurocs(exact, wrong, fitted),
            }
        )
    )


if __name__ == "__main__":
    main()
