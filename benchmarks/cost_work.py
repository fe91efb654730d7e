"""What benchmarks/cost.py measures: each function returns a piece of work of some size, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from l1_data import made_up
from numpy.typing import NDArray
from passages import passages
from real_features import real_features
from transformers import LlamaConfig, LlamaForCausalLM

import hneurons as hn
from hneurons.answers.consistency import Rule, right_verdict, sample_questions
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.judge import AliasJudge
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import PooledExtractor, batches
from hneurons.neurons.probe import l1_path, path_grid, smallest_c
from hneurons.types import Region

TOKENS = 24


def demo_model() -> StudyModel:
    return hn.load_model("smollm2-135m", device="cpu")


def random_llama(demo: StudyModel, hidden: int, layers: int) -> StudyModel:
    """A random model; its FFN is 8/3 times as wide as its hidden state, as the demo model's is."""
    config = LlamaConfig(
        vocab_size=demo.model.config.vocab_size, hidden_size=hidden, intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers, num_attention_heads=hidden // 64, tie_word_embeddings=True,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    return StudyModel(f"random-{hidden}x{layers}", "object", network, demo.tokenizer, None, find_ffns(network))


def parameters(model: StudyModel, *, head: bool) -> int:
    """Those that a token goes through; looking up its embedding costs nothing."""
    embedding = model.model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.model.parameters()) - (0 if head else embedding)


def sample(model: StudyModel, count: int, quick: bool) -> Callable[[], Any]:
    """One response to each of some questions."""
    asked = hn.load_questions("starter", limit=count, seed=0).questions
    sampling = Sampling(max_new_tokens=4 if quick else TOKENS)
    return lambda: HFEngine(model).sample([Request(question, 0) for question in asked], sampling)


def extract(model: StudyModel, count: int) -> Callable[[], Any]:
    """The contributions of some responses."""
    texts = passages(model, count)
    groups = [[texts[row] for row in rows] for rows in batches([len(text.ids) for text in texts], 1024)]
    return lambda: list(PooledExtractor(model).many(groups))


def features(quick: bool) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Contributions of 1,000 real answers, (examples, neurons), and which are wrong; made up in a quick test."""
    if quick:
        known = made_up(80, 400)
        return np.asarray(known.answer), known.hallucinated
    real = real_features(1000)
    return real.read(Region.ANSWER), real.hallucinated


def fit(columns: NDArray[np.float32], wrong: NDArray[np.bool_]) -> Callable[[], Any]:
    """An L1 path of 20 C."""
    lowest = smallest_c(columns, wrong)
    grid = path_grid(lowest, 30 * lowest, 20)
    return lambda: l1_path(columns, wrong, grid)


def tokens_a_question(model: StudyModel, count: int, quick: bool) -> dict[str, Any]:
    """Tokens of prompts and responses, and those generated until a question is decided, at the paper's settings."""
    sampling, rule, judge = Sampling(max_new_tokens=8 if quick else 50), Rule(), AliasJudge()
    asked = hn.load_questions("starter", limit=count, seed=0).questions
    responses = sample_questions(HFEngine(model), judge, asked, sampling, rule)
    lengths: dict[str, list[int]] = {question.id: [] for question in asked}
    verdicts: dict[str, list[Any]] = {question.id: [] for question in asked}
    for response in responses:
        lengths[response.question_id].append(len(response.token_ids))
        verdicts[response.question_id].append(response.verdict)
    kept = [q.id for q in asked if rule.label(verdicts[q.id], right_verdict(q))]
    every = [size for sizes in lengths.values() for size in sizes]

    def mean(questions: list[str]) -> float:
        return round(float(np.mean([sum(lengths[question]) for question in questions] or [0.0])), 1)

    return {
        "model": model.name,
        "questions": len(asked),
        "consistent of them": len(kept),
        "prompt": round(float(np.mean([len(model.prompt_ids(question.question)) for question in asked])), 1),
        "response": round(float(np.mean(every)), 1),
        "consistent": mean(kept) if kept else round(10 * float(np.mean(every)), 1),
        "mixed": mean([question.id for question in asked if question.id not in kept]),
    }
