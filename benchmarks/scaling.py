"""Tokens/s at generation with the neurons scaled, against without: 0.1 % of the neurons, spread over all layers.

    python benchmarks/scaling.py

Both sides draw with the same random numbers, in the same batches, on all CPUs.
"""

from __future__ import annotations

import numpy as np
from measure import all_cpus, in_turn, options, scaled, show

import hneurons as hn
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine

given = options(__doc__, questions=128, neurons=46, rounds=11)
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
questions = hn.load_questions("starter", limit=4 if given.quick else given.questions, seed=0).questions
chosen = np.sort(np.random.default_rng(0).choice(model.neurons, given.neurons, replace=False))
neurons = list(model.layout.ids(chosen))
requests = [Request(question, 0) for question in questions]
sampling = Sampling(max_new_tokens=4 if given.quick else 50)
tokens: dict[str, int] = {}


def write(name: str) -> None:
    tokens[name] = sum(len(response.token_ids) for response in HFEngine(model).sample(requests, sampling))


def turned() -> None:
    # So close to 1 that the same tokens are drawn: the work is that of any other alpha.
    with hn.scale(model, neurons, 1.0000001):
        write("scaled")


measured = in_turn(turned, lambda: write("plain"), 1 if given.quick else given.rounds)
measured = scaled(measured, tokens["scaled"] / tokens["plain"])
show(
    "scaling: tokens/s at generation, against unscaled", measured["speedup"], 0.97, "min", len(questions),
    {
        "model": model.name, "neurons": given.neurons, "layers": len({neuron.layer for neuron in neurons}),
        "rows": len(questions), "max_new_tokens": sampling.max_new_tokens, "threads": threads,
    },
    tokens=tokens, **measured,
)  # fmt: skip
