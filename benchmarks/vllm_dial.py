"""Tokens/s of vLLM with the plugin's dial and monitor on, against a vLLM without the plugin; 32 requests at a time.

    .venv-vllm/bin/python benchmarks/vllm_dial.py

Two engines, each in a process of its own, both eager and in float32, take turns with the same prompts and as many
tokens. Ours gives a third of its requests each of three alphas, scores every token (104 neurons, spread over all
layers), and fetches the scores. `idle` is the plugin with nothing asked of it. Needs vLLM's environment (`make vllm`),
so it is none of `make bench`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from live_model import NEURONS, make_card, prompts
from measure import in_turn, options, show

import hneurons as hn

REQUESTS = 32
ALPHAS = (0.0, 1.0, 2.0)


def serve(folder: str, length: int) -> None:
    """A process with an engine: each line read is what to ask, each line written says that it is done."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm = LLM(
        folder, dtype="float32", enforce_eager=True, kv_cache_memory_bytes=400_000_000, max_model_len=512,
        max_num_seqs=REQUESTS, enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    asked = [[{"role": "user", "content": text}] for text in prompts(REQUESTS)]
    for line in sys.stdin:
        told: list[dict[str, Any] | None] = json.loads(line)
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=length, ignore_eos=True, extra_args={"hneurons": each} if each else None
            )
            for each in told
        ]
        outputs = llm.chat(asked, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == length for output in outputs)
        if any(told):
            (scores,) = llm.collective_rpc("hneurons_scores", args=([output.request_id for output in outputs],))
            assert len(json.loads(scores)) == REQUESTS
        print("done", file=answer, flush=True)


def start(folder: Path, length: int, card: str) -> Any:
    environment = {
        **os.environ, "HNEURONS_CARD": card, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, "serve", str(folder), str(length)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip


def ask(engine: Any, told: list[dict[str, Any] | None]) -> None:
    engine.stdin.write(json.dumps(told) + "\n")
    assert engine.stdout.readline() == "done\n"


def main() -> None:
    given = options(__doc__, rounds=5, tokens=64)
    if not any(entry.name == "hneurons" for entry in entry_points(group="vllm.general_plugins")):
        sys.exit("The plugin's entry point isn't installed here. Run: make vllm")
    rounds, length = (1, 4) if given.quick else (given.rounds, given.tokens)
    folder = hn.pull("smollm2-135m")
    model = hn.load_model("smollm2-135m", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        make_card(model).save(Path(scratch) / "neurons.json")
        with_plugin, without = start(folder, length, scratch), start(folder, length, "")
        try:
            turned = [{"alpha": ALPHAS[number % 3], "monitor": True} for number in range(REQUESTS)]
            nothing = [None] * REQUESTS
            other = lambda: ask(without, nothing)  # noqa: E731
            found = in_turn(lambda: ask(with_plugin, turned), other, rounds)
            idle = in_turn(lambda: ask(with_plugin, nothing), other, rounds)
        finally:
            for engine in (with_plugin, without):
                engine.stdin.close()
                engine.wait()
    name = "vLLM, dial and monitor: tokens/s, against without the plugin"
    settings = {"model": model.name, "neurons": NEURONS, "max_tokens": length, "requests": REQUESTS, "rounds": rounds}
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    show(
        name, found["speedup"], 0.95, "min", REQUESTS, {**settings, "threads": threads}, range=found["range"],
        tokens_per_second={side: round(REQUESTS * length / t, 1) for side, t in found["seconds"].items()}, idle=idle,
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
    else:
        main()
