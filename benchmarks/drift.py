"""How fast drift is measured beside a plain read of the same files, and how much memory it takes.

    python benchmarks/drift.py BASE TUNED

Rounds alternate, each after the files were dropped from the page cache where the system allows that. `ratio` is the
median of (time of the drift / time of the plain read). --quick makes a tiny pair of its own.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import torch
from measure import in_turn, options, show
from transformers import LlamaConfig, LlamaForCausalLM

from hneurons.models.checkpoint import open_checkpoint
from hneurons.models.quiet import quiet_transformers
from hneurons.neurons.drift import drifts


def drop(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(paths: list[Path]) -> None:
    drop(paths)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def tiny_pair(folder: Path) -> tuple[str, str]:
    """Two random models of one shape."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        with quiet_transformers():
            LlamaForCausalLM(config).save_pretrained(folder / name)
    return str(folder / "base"), str(folder / "tuned")


def measure(base: str, tuned: str, rounds: int) -> None:
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    files = sorted({*before.files.values(), *after.files.values()})

    def drift() -> None:
        drop(files)
        for _ in drifts(before, after):
            pass

    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The plain read plays the part of "ours": the ratio is how many times as long the drift takes.
    measured = in_turn(lambda: read(files), drift, rounds)
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
    times = measured["seconds"]
    # The aim is a rate near the disk's; near is taken as no more than twice as long.
    show(
        "drift: time against a plain read of the files", measured["speedup"], 2, "max", len(before.ffns),
        {"base": Path(base).name, "tuned": Path(tuned).name}, range=measured["range"], rounds=rounds,
        seconds={"drift": times["other"], "read": times["ours"]}, bytes=before.bytes + after.bytes,
        more_memory_bytes=more,
    )  # fmt: skip


if __name__ == "__main__":
    given = options(__doc__, "base", "tuned", rounds=5)
    with tempfile.TemporaryDirectory() as folder:
        if given.quick:
            given.base, given.tuned = tiny_pair(Path(folder))
        if not (given.base and given.tuned):
            raise SystemExit("Give two checkpoints, or --quick.")
        measure(given.base, given.tuned, 1 if given.quick else given.rounds)
