"""Print the tables of docs/results.md from run folders: `python benchmarks/results.py runs/demo`."""

from __future__ import annotations

import sys
from typing import Any

from hneurons import Run
from hneurons.intervals import shown, spread

Json = dict[str, Any]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def facts(run: Run) -> list[str]:
    manifest = run.manifest
    model, settings, counts = manifest["model"], manifest["settings"], manifest["counts"]
    dropped = ", ".join(f"{name} {count:,}" for name, count in counts["dropped"].items())
    agreement = settings["agreement"] or settings["samples"]
    return [
        f"- {counts['questions']:,} questions, {counts['responses']:,} responses; {settings['samples']} samples at "
        f"temperature {settings['temperature']}, {agreement} of them agreeing, top-k {settings['top_k']}, top-p "
        f"{settings['top_p']}, at most {settings['max_new_tokens']} tokens, seed {settings['seed']}, {model['dtype']} "
        f"on {model['device']}",
        f"- {counts['faithful']} faithful and {counts['hallucinated']} hallucinated examples; dropped: {dropped}",
        f"- H-Neurons: {run.card.h_neurons!r}; {len(run.card.neurons)} in the probe, C = {run.card.probe.C:.4g}",
    ]


def data_sets(evaluation: Json) -> list[str]:
    """The paper's Table 1 for this model."""
    rows: list[list[str]] = []
    for name, data in evaluation["datasets"].items():
        uniform, matched, own = data["random"]["uniform"], data["random"]["layer_matched"], data["h_neurons"]
        rows.append([
            name, str(data["n"]),
            spread(uniform["accuracy"], 100, 1), spread(matched["accuracy"], 100, 1), shown(own["accuracy"], 100, 1),
            spread(uniform["auroc"]), spread(matched["auroc"]), shown(own["auroc"]),
            shown(data["increment"]["difference"]),
        ])  # fmt: skip
    head = ["data set", "n", "accuracy %: random, uniform (range)", "random, layer-matched", "H-Neurons",
            "AUROC: random, uniform (range)", "random, layer-matched", "H-Neurons",
            "gain over length + log-probability"]  # fmt: skip
    lines = table(head, rows)
    for name, data in evaluation["datasets"].items():
        if "answers" in data:
            said = ", ".join(f"{count:,} {verdict}" for verdict, count in data["answers"].items())
            lines += [""] if lines[-1].startswith("|") else []
            lines.append(f"- {name}: {said}; {data['already_asked']:,} questions left out, which the run had asked")
    return lines


def peers(found: Json) -> list[str]:
    rows = [["H-Neurons", shown(found["h_neurons"]["auroc"]), "1", "0", "", "", ""]]
    for name, peer in found["peers"].items():
        cost = peer["cost"]
        rows.append([
            name, shown(peer["auroc"]), str(cost["extra_forward_passes"]), str(cost["extra_samples"]),
            shown(peer["difference"]), shown(peer["h_adds"]), shown(peer["adds_to_h"]),
        ])  # fmt: skip
    head = ["predictor", "AUROC", "extra passes", "extra samples", "H-Neurons minus it", "H-Neurons add to it",
            "it adds to H-Neurons"]  # fmt: skip
    return table(head, rows)


def transfer(found: Json) -> list[str]:
    names = [part["name"] for part in found.get("parts", [])]
    lines = [f"- {found.get('sentence') or found.get('problem')}"]
    if len(names) > 1:
        cells = {(cell["train"], cell["test"]): cell["auroc"] for cell in found["cells"]}
        rows = [[train, *(shown(cells[train, test]) for test in names)] for train in names]
        lines += ["", *table(["trained on \\ tested on", *names], rows)]
    return lines


def review(evaluation: Json, data: Json) -> list[str]:
    lines = ["", "Peers on the same examples:", "", *peers(data["peers"])] if "peers" in data["peers"] else []
    lines += ["", "Confounds:", ""]
    lines += [f"- {name}: {found['sentence']}" for name, found in data["confounds"]["confounds"].items()]
    verbosity = evaluation["verbosity"]
    lines.append(f"- truth by verbosity: {verbosity.get('sentence') or verbosity['problem']}")
    lines += ["", "Transfer between domains:", "", *transfer(evaluation["transfer"])]
    if "transfer_between_sets" in evaluation:
        lines += ["", "Transfer between data sets:", "", *transfer(evaluation["transfer_between_sets"])]
    lines += ["", "Calibration, thresholds, stability:", ""]
    reliability = data["reliability"]
    lines.append(
        f"- expected calibration error {shown(reliability['ece'])}; a calibrated risk would show "
        f"{reliability['ece_if_calibrated']:.3f} with as many answers"
    )
    for promise in evaluation["guarantees"].values():
        if promise["guarantee"] is None:
            lines.append(f"- {promise['problem']}")
            continue
        test = promise["test"]
        lines.append(
            f"- {promise['guarantee']['sentence']} On the test set: {shown(test['rate'])}, "
            f"{100 * test['unflagged']['value']:.0f} % unflagged"
        )
    stability = evaluation["stability"]
    lines += [f"- {stability[kind]['sentence']}" for kind in ("bootstrap", "splits") if kind in stability]
    return lines


def section(path: str) -> str:
    run = Run(path)
    evaluation = run.evaluation
    own = run.manifest["settings"]["questions"]
    lines = [f"## {run.manifest['model']['id']} on {own}", "", f"**{run.verdict}**", "", *facts(run), ""]
    lines += data_sets(evaluation)
    lines += ["", *table(["check", "passed", "detail"], [
        [check["name"], "yes" if check["passed"] else "no", check["detail"]]
        for check in evaluation["verdict"]["checks"]
    ])]  # fmt: skip
    return "\n".join([*lines, *review(evaluation, evaluation["datasets"][own])])


if __name__ == "__main__":
    print("\n\n".join(section(path) for path in sys.argv[1:]))
