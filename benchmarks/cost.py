"""How cost grows with questions, model size and neurons, each over a factor of 8.

    python benchmarks/cost.py             measures; writes benchmarks/cost.json and docs/images/cost.png
    python benchmarks/cost.py --table     cost.json as Markdown, and what follows on paper for a 70B model

Seconds at each size, and the exponent of a power law through them (1: twice as much takes twice as long). Models of
other sizes are random Llamas of the demo model's shape; their parameters are counted as far as a token goes through
them, so without the embedding, and without the LM head in extraction. The L1 path is fitted on real contributions, of
every second, fourth or eighth neuron.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import on_paper
from measure import all_cpus, options, seconds

FOUND = Path(__file__).with_name("cost.json")
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "cost.png"
Work = list[Callable[[], Any]]


def measured(sizes: list[int], work: Work, rounds: int) -> dict[str, Any]:
    """Median seconds at each size; all sizes take turns, so that a disturbance doesn't hit one of them alone."""
    work[0]()  # warm
    times = [[seconds(one) for one in work] for _ in range(rounds)]
    median = np.median(times, axis=0)
    exponent = float(np.polyfit(np.log(sizes), np.log(median), 1)[0])
    return {"sizes": sizes, "seconds": [round(float(x), 3) for x in median], "exponent": round(exponent, 3)}


def measure(quick: bool, rounds: int) -> dict[str, Any]:
    """What cost.json holds."""
    threads = all_cpus()
    import cost_work as of

    demo = of.demo_model()
    # From several batches up: a CPU's workers share batches out, and one batch would keep one of them busy.
    counts = [2, 4] if quick else [128, 256, 512, 1024]
    texts = [2, 4] if quick else [64, 128, 256, 512]
    shapes = [(64, 1), (128, 2)] if quick else [(192, 12), (320, 12), (448, 16), (576, 30)]
    few = 2 if quick else 128
    features, wrong = of.features(quick)
    steps = [2, 1] if quick else [8, 4, 2, 1]
    models = [of.random_llama(demo, *shape) for shape in shapes]
    growth = {
        "sampling by questions": measured(counts, [of.sample(demo, c, quick) for c in counts], rounds),
        "extraction by examples": measured(texts, [of.extract(demo, c) for c in texts], rounds),
        "sampling by parameters": measured(
            [of.parameters(model, head=True) for model in models], [of.sample(m, few, quick) for m in models], rounds
        ),
        "extraction by parameters": measured(
            [of.parameters(model, head=False) for model in models], [of.extract(m, few) for m in models], rounds
        ),
        "L1 path by neurons": measured(
            [features[:, ::step].shape[1] for step in steps],
            [of.fit(np.ascontiguousarray(features[:, ::step]), wrong) for step in steps], rounds,
        ),
    }  # fmt: skip
    tokens = of.tokens_a_question(demo, 4 if quick else 160, quick)
    return {"rounds": rounds, "threads": threads, "examples of the L1 path": len(wrong), "growth": growth,
            "tokens": tokens}  # fmt: skip


def draw(growth: dict[str, Any]) -> None:
    """docs/images/cost.png."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = (("questions", "examples"), ("parameters",), ("neurons",))
    for ax, words in zip(figure.subplots(1, 3), axes, strict=True):
        ticks: set[int] = set()
        for name, line in growth.items():
            kind, by = name.split(" by ")
            if by in words:
                ax.loglog(line["sizes"], line["seconds"], "o-", label=f"{kind} (exponent {line['exponent']:.2f})")
                ticks |= set(line["sizes"]) if by != "parameters" else set()
        ax.xaxis.set_major_locator(FixedLocator(sorted(ticks)) if ticks else LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_xlabel(" or ".join(words))
        ax.set_ylabel("seconds")
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def table(found: dict[str, Any]) -> str:
    """Markdown: growth as measured, and the estimate."""
    lines = ["| cost of | by | from, to | seconds | exponent |", "|---|---|---|---|---|"]
    for name, line in found["growth"].items():
        kind, by = name.split(" by ")
        first, last = (f"{size:,.0f}" for size in (line["sizes"][0], line["sizes"][-1]))
        took = f"{line['seconds'][0]:.3g} to {line['seconds'][-1]:.3g}"
        lines.append(f"| {kind} | {by} | {first} to {last} | {took} | {line['exponent']:.2f} |")
    return "\n".join([*lines, "", on_paper.table(found["tokens"])])


def main() -> None:
    given = options(__doc__, "--table", rounds=3)
    if given.table is not None:
        print(table(json.loads(FOUND.read_text())))
        return
    found = measure(given.quick, 1 if given.quick else given.rounds)
    print(json.dumps(found))
    if not given.quick:
        FOUND.write_text(json.dumps(found, indent=1) + "\n")
        draw(found["growth"])


if __name__ == "__main__":
    main()
