"""What watching adds to one forward pass of a token a row: nothing but the pass, no drawing, no text, no service.

    python benchmarks/live_pass.py

104 neurons in all layers, with 1, 8 and 32 rows, after a prompt of 60 tokens; also hooks that do nothing, two a
layer, which is what hooks themselves cost. Blocks of 10 passes take turns; the ratio is that of the worst of the three.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from live_model import NEURONS, make_card
from measure import all_cpus, in_turn, options, show
from transformers import DynamicCache

import hneurons as hn
from hneurons.neurons.watch import Watcher

given = options(__doc__, rounds=41)
threads = all_cpus()
model = hn.load_model("smollm2-135m", device="cpu")
watcher = Watcher(model, make_card(model))
rounds, passes, prompt = (1, 1, 2) if given.quick else (given.rounds, 10, 60)
network: Any = model.model


def nothing(*_: Any) -> None:
    pass


def empty_hooks() -> ExitStack:
    stack = ExitStack()
    for ffn in model.ffns:
        stack.callback(ffn.down.register_forward_pre_hook(nothing).remove)
        stack.callback(ffn.down.register_forward_hook(nothing).remove)
    return stack


@torch.inference_mode()
def measure(rows: int, hooked: Callable[[], AbstractContextManager[Any]]) -> dict[str, Any]:
    ids = torch.randint(5, 40_000, (rows, prompt), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=network.config)
    network(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    def go_on() -> None:
        for _ in range(passes):
            network(input_ids=ids[:, :1], past_key_values=cache, logits_to_keep=1)
        cache.crop(-passes)  # so that both sides attend to as many tokens

    def with_hooks() -> None:
        with hooked():
            go_on()

    return in_turn(with_hooks, go_on, rounds)


found = {
    rows: {"watched": measure(rows, lambda: watcher.on(nothing)), "empty hooks": measure(rows, empty_hooks)}
    for rows in ((1,) if given.quick else (1, 8, 32))
}
worst = min((found[rows]["watched"] for rows in found), key=lambda measured: float(measured["speedup"]))
show(
    "monitor: forward passes a second, against unwatched", worst["speedup"], 0.97, "min", rounds * len(found),
    {"model": model.name, "neurons": NEURONS, "layers": len(model.ffns), "prompt": prompt, "threads": threads},
    range=worst["range"], rounds=rounds, by_rows=found,
)  # fmt: skip
