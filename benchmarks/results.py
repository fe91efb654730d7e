"""Print the tables of docs/results.md from run folders: `python benchmarks/results.py runs/demo`."""

from __future__ import annotations

import sys

from hneurons import Run


def section(path: str) -> str:
    run = Run(path)
    manifest, evaluation = run.manifest, run.evaluation
    model, settings, counts = manifest["model"], manifest["settings"], manifest["counts"]
    dropped = ", ".join(f"{name} {count}" for name, count in counts["dropped"].items())
    lines = [
        f"## {model['id']} on {settings['questions']}",
        "",
        f"**{run.verdict}**",
        "",
        f"- {counts['questions']:,} questions, {counts['responses']:,} responses; {settings['samples']} samples at "
        f"temperature {settings['temperature']}, top-k {settings['top_k']}, top-p {settings['top_p']}, at most "
        f"{settings['max_new_tokens']} tokens, seed {settings['seed']}, {model['dtype']} on {model['device']}",
        f"- {counts['faithful']} faithful and {counts['hallucinated']} hallucinated examples; dropped: {dropped}",
        f"- H-Neurons: {run.card.h_neurons!r}; {len(run.card.neurons)} in the probe, C = {run.card.probe.C:.4g}",
        "",
        "| classifier | AUROC | accuracy | n |",
        "|---|---|---|---|",
    ]
    for row in run.rows():
        auroc, accuracy = f"{row['auroc']:.3f}", ""
        if row.get("auroc_low") is not None:
            auroc += f" [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
            accuracy = f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]"
        lines.append(f"| {row['classifier']} | {auroc} | {accuracy} | {row['n']} |")
    lines += ["", "| check | passed | detail |", "|---|---|---|"]
    for check in evaluation["verdict"]["checks"]:
        lines.append(f"| {check['name']} | {'yes' if check['passed'] else 'no'} | {check['detail']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(section(path) for path in sys.argv[1:]))
