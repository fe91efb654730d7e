"""The origin study on a pair that anybody can make: a run on the tuned model, traced to the demo model.

    python benchmarks/origin.py

Makes the pair (make_pair.py), identifies on the tuned model with the demo's settings, traces it to the demo model, and
prints its section of docs/results.md. Kill it whenever you like: the same command continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from make_pair import make
from results import section, table

import hneurons as hn
from hneurons.intervals import shown
from hneurons.settings import demo_settings

Json = dict[str, Any]


def study(out: Path, questions: int, steps: int, base: str, limit: int | None, few_shot: int | None) -> hn.Run:
    tuned = make(out / "tuned", steps, base)
    model = hn.load_model(tuned)
    run = hn.identify(model, "starter", out / "origin-pair", demo_settings(questions))
    del model
    # The demo model is a chat model itself: asked as a base model it ends its turn at once, 53 times in 54.
    return hn.origin(run, base, model=tuned, limit=limit, few_shot=few_shot, chat=few_shot is None)


def drift_rows(entry: Json) -> list[list[str]]:
    drift = entry["drift"]
    rows = [("up and down", drift), *((f"{kind} alone", part) for kind, part in drift.get("parts", {}).items())]
    return [
        [
            name, shown(part["mean"]), shown(part["permutation"]["random"]), str(part["permutation"]["p"]),
            str(part["permutation"]["p_two_sided"]), str(part["t_test"]["p"]),
        ]
        for name, part in rows
    ]  # fmt: skip


def checkpoint(entry: Json) -> list[str]:
    lines = [f"**{entry['name']}: {entry['verdict']['sentence']}**", ""]
    rows: list[list[str]] = []
    for name, data in entry["datasets"].items():
        if "problem" in data:
            lines += [f"- {name}: {data['problem']}", ""]
            continue
        own, random = data["own"], data["random"]
        rows.append([
            name, str(data["n"]), shown(data["run"]), shown(data["h_neurons"]["auroc"]),
            shown(random["uniform"]["difference"]), shown(random["layer_matched"]["difference"]),
            shown(own["auroc"]) if own else "", shown(own["difference"]) if own else "",
        ])  # fmt: skip
    if rows:
        head = ["data set", "n", "AUROC on the run's model", "unchanged card there", "minus random, uniform",
                "minus random, layer-matched", "own card", "unchanged minus own"]  # fmt: skip
        lines += [*table(head, rows), ""]
    own = entry["own_card"]
    if own and "problem" not in own:
        back = ", ".join(f"{name} {shown(data['h_neurons']['auroc'])}" for name, data in own["on_run"].items())
        lines += [f"- its own card: {own['h_neurons']} H-Neurons; on the answers of the run's model: AUROC {back}", ""]
    elif own:
        lines += [f"- no card of its own: {own['problem']}", ""]
    if "problem" in entry["drift"]:
        return [*lines, f"- weights: {entry['drift']['problem']}"]
    head = [
        "weights",
        "mean rank of the H-Neurons",
        "layer-matched sets",
        "p (changed less)",
        "p, two-sided",
        "p, t-test",
    ]
    return [*lines, *table(head, drift_rows(entry))]


def origin_section(run: hn.Run) -> str:
    found = run.origin
    lines = [f"### {found['model']['id']} traced to {', '.join(e['name'] for e in found['checkpoints'])}", ""]
    for entry in found["checkpoints"]:
        lines += [*checkpoint(entry), ""]
    if found["overlap"]:
        lines += [
            f"- {pair['a']} and {pair['b']} share {pair['shared']} H-Neurons; chance: {pair['expected']:.2f}, "
            f"p = {pair['p']:.2g}"
            for pair in found["overlap"]["pairs"]
        ]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--questions", type=int, default=1400)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--limit", type=int, default=None, help="questions of each data set to ask the base model")
    parser.add_argument("--few-shot", type=int, default=None, help="ask with so many examples, not by chat template")
    given = parser.parse_args()
    run = study(given.out, given.questions, given.steps, given.base, given.limit, given.few_shot)
    print(section(str(run.path)).replace("## ", "### ", 1))
    print()
    print(origin_section(run))
