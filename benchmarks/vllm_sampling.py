"""Sampling through vLLM against this package's own engine in transformers: the same prompts, the same samples of each.

    make vllm
    .venv-vllm/bin/python benchmarks/vllm_sampling.py [--dtype bfloat16] [--block-size 16]

Both engines draw all samples of all questions from the same distribution, up to the same number of tokens, with the
same number of threads, in turn. Times are compared a token: the two draw other responses. Starting the engines isn't
timed, nor is a first round that warms them. vLLM runs as the engine sets it up by itself, eager on a CPU.
"""

from __future__ import annotations

import os

# The model in this process, and threads where OMP_NUM_THREADS and the CPUs that are allowed put them.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

from typing import Any

from measure import all_cpus, in_turn, options, scaled, show

import hneurons as hn
from hneurons.answers.engine import Engine, Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.answers.vllm import VLLMEngine
from hneurons.models.outline import load_outline

NAME = "smollm2-135m"


def main() -> None:
    given = options(__doc__, "--dtype", questions=32, samples=10, tokens=24, rounds=3, block_size=0)
    threads = all_cpus()
    dtype = given.dtype or "float32"
    count, samples, tokens = (2, 2, 4) if given.quick else (given.questions, given.samples, given.tokens)
    asked = hn.load_questions("starter", limit=count, seed=0).questions
    requests = [Request(question, sample) for question in asked for sample in range(samples)]
    sampling = Sampling(max_new_tokens=tokens)
    args = {"block_size": given.block_size} if given.block_size else {}
    vllm = VLLMEngine(load_outline(NAME, dtype=dtype, device="cpu"), args)
    plain = HFEngine(hn.load_model(NAME, dtype=dtype, device="cpu"))
    drawn: dict[str, int] = {}

    def draw(name: str, engine: Engine) -> None:
        drawn[name] = sum(len(response.token_ids) for response in engine.sample(requests, sampling))

    draw("vllm", vllm)
    draw("transformers", plain)
    measured = in_turn(
        lambda: draw("vllm", vllm), lambda: draw("transformers", plain), 1 if given.quick else given.rounds, warm=False
    )
    rates: dict[str, Any] = {
        "vllm": round(drawn["vllm"] / max(measured["seconds"]["ours"], 1e-9), 1),
        "transformers": round(drawn["transformers"] / max(measured["seconds"]["other"], 1e-9), 1),
    }
    measured = scaled(measured, drawn["vllm"] / drawn["transformers"])
    settings = {
        "model": NAME, "dtype": dtype, "threads": threads, "samples": samples, "max_new_tokens": tokens,
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p,
        "block_size": given.block_size or "vLLM's own",
    }  # fmt: skip
    show(
        "sampling: tokens a second through vLLM against the transformers engine", measured["speedup"], 1.0, "min",
        count, settings, tokens=drawn, tokens_per_second=rates, **measured,
    )  # fmt: skip
    vllm.close()


if __name__ == "__main__":
    main()
