"""Where the time of a real run goes: seconds and shares of its stages, from questions to report.

    python benchmarks/stages.py [--questions 1400]     measures; writes benchmarks/stages.json
    python benchmarks/stages.py --dtype bfloat16       prints the same for that precision; writes nothing
    python benchmarks/stages.py --table                stages.json as a Markdown table

Runs what `hneurons demo` runs, with its settings, into a temporary folder. The stages are those of run.json. Of the
evaluation, the refits that tell how stable the neurons are stand apart; what else the review fits and reads is under
`of the review`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import all_cpus, options

import hneurons as hn
from hneurons.settings import IdentifySettings, demo_settings

FOUND = Path(__file__).with_name("stages.json")
REFITS = "Fitting the probe again and again"
"""The bar of `Reviewer.probe` over the refits of `stability`."""
BEFORE = ("Sampling answers", "Measuring contributions", "Reading hidden states", "Fitting the probe")
"""Bars of the stages before the review."""


class Clock:
    """A `Progress` that shows nothing and keeps the seconds of each bar."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, text: str, total: int, done: int = 0) -> Generator[Callable[[int], None]]:
        began = time.perf_counter()
        yield lambda _: None
        self.seconds[text] = self.seconds.get(text, 0.0) + time.perf_counter() - began


def small() -> IdentifySettings:
    """A run that is done in a minute."""
    return IdentifySettings(
        samples=3, temperature=0.3, max_new_tokens=12, per_class=20, limit=80, folds=2, train=0.4, validation=0.4,
        random_sets=2, refits=2, bootstrap=100, path_points=4,
    )  # fmt: skip


def measure(settings: IdentifySettings, dtype: str) -> dict[str, Any]:
    """What stages.json holds."""
    threads, clock = all_cpus(), Clock()
    model = hn.load_model("smollm2-135m", device="cpu", dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        run = hn.identify(model, "starter", Path(folder) / "run", settings, progress=clock)
        stages, counts = run.manifest["stages"], run.manifest["counts"]
        found = {"verdict": run.verdict, "H-Neurons": len(run.card.h_neurons)}
    took = {name: float(stage["seconds"]) for name, stage in stages.items()}
    refits = clock.seconds.get(REFITS, 0.0)
    parts = {
        "sampling": took["sample"],
        "extraction": took["extract"],
        "hidden states and entropies": took["read_out"],
        "probe": took["fit"],
        "stability refits": refits,
        "the rest of the review": took["evaluate"] - refits,
        "report": took["report"],
        "making examples": took["examples"],
    }
    whole = sum(parts.values())
    return {
        "model": model.name,
        "dtype": dtype,
        "threads": threads,
        **found,
        "questions": counts["questions"],
        "responses": counts["responses"],
        "examples": counts["faithful"] + counts["hallucinated"],
        "seconds": {name: round(value, 1) for name, value in parts.items()},
        "shares": {name: round(value / whole, 4) for name, value in parts.items()},
        "whole": round(whole, 1),
        "of the review": {k: round(v, 1) for k, v in clock.seconds.items() if k not in (REFITS, *BEFORE)},
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: seconds and share of each stage, the longest first."""
    lines = ["| stage | seconds | share |", "|---|---|---|"]
    for name, took in sorted(found["seconds"].items(), key=lambda entry: -entry[1]):
        lines.append(f"| {name} | {took:.1f} | {100 * found['shares'][name]:.0f} % |")
    counts = ", ".join(f"{found[name]:,} {name}" for name in ("questions", "responses", "examples"))
    return "\n".join([*lines, "", f"{found['model']}, {counts}; {found['whole']:.0f} s, threads: {found['threads']}."])


def main() -> None:
    given = options(__doc__, "--table", "--dtype", questions=1400)
    if given.table is not None:
        print(table(json.loads(FOUND.read_text())))
        return
    dtype = given.dtype or "float32"
    found = measure(small() if given.quick else demo_settings(given.questions), dtype)
    print(json.dumps(found))
    if not given.quick and dtype == "float32":
        FOUND.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
