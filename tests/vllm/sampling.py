"""What test_sampling.py has done by vLLM, in a process of its own: `python sampling.py PART FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hneurons
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.vllm import VLLMEngine
from hneurons.models.outline import load_outline
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Tools
from hneurons.studies.engines import Engines, open_engine
from hneurons.studies.identify import identify
from hneurons.types import Response, to_json

NAME, QUESTIONS, SAMPLES = "smollm2-135m", 8, 3
ARGS = {"kv_cache_memory_bytes": 400 << 20}
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
DRAWN = Sampling(temperature=0.8, max_new_tokens=16, seed=7)
STUDY = IdentifySettings(
    samples=3, temperature=0.3, max_new_tokens=16, per_class=24, limit=72, chunk=24, folds=2, train=0.4,
    validation=0.4, random_sets=2, bootstrap=100, path_points=5, refits=2,
)  # fmt: skip

GREEDY_STUDY = STUDY.model_copy(update={"temperature": 0.0})


def requests(samples: int = 1) -> list[Request]:
    asked = hneurons.load_questions("starter", limit=QUESTIONS, seed=0).questions
    return [Request(question, sample) for question in asked for sample in range(samples)]


def rows(responses: Sequence[Response]) -> list[dict[str, Any]]:
    return [to_json(response) for response in responses]


def sample(folder: Path) -> None:
    """Greedy, as a base model too; drawn, again in another order, alone, and after a new start."""
    outline = load_outline(NAME, device="cpu")
    engine = VLLMEngine(outline, ARGS)
    made = {"greedy": rows(engine.sample(requests(), GREEDY)), "drawn": rows(engine.sample(requests(SAMPLES), DRAWN))}
    made["turned around"] = rows(engine.sample(requests(SAMPLES)[::-1], DRAWN)[::-1])
    made["another seed"] = rows(engine.sample(requests(SAMPLES), replace(DRAWN, seed=8)))
    engine.close()
    made["started again"] = rows(engine.sample(requests(SAMPLES)[5:9], DRAWN))
    engine.close()
    # More prompt tokens at once than a step takes: requests with seeds whose prompts are cut would end vLLM on a CPU.
    crowded = VLLMEngine(outline, {**ARGS, "max_model_len": 160, "max_num_batched_tokens": 160, "max_num_seqs": 160})
    made["crowded"] = rows(crowded.sample(requests(SAMPLES), DRAWN))
    crowded.close()
    base = VLLMEngine(replace(outline, lead=""), ARGS)
    made["base"] = rows(base.sample(requests(), GREEDY))
    base.close()
    (folder / "out.json").write_text(json.dumps(made))


def study(folder: Path) -> None:
    """A small run, sampled by vLLM and measured by transformers."""
    with open_engine(Engines("vllm", features="hf", args=ARGS), NAME, {"device": "cpu"}) as opened:
        identify(opened.model, "starter", folder / "run", STUDY, engine=opened.engine)


def measured(folder: Path) -> None:
    """Greedy, and measured by vLLM too: transformers never loads the weights."""
    with open_engine(Engines("vllm", features="vllm", args=ARGS), NAME, {"device": "cpu"}) as opened:
        tools = Tools(opened.engine, extractor=opened.extractor)
        identify(opened.model, "starter", folder / "run", GREEDY_STUDY, tools=tools)


if __name__ == "__main__":
    {"sample": sample, "study": study, "measured": measured}[sys.argv[1]](Path(sys.argv[2]))
