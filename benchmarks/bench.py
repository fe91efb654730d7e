"""Run every benchmark of speed and memory and write benchmarks/results.json, a list of what they print.

    make bench                                all of them, one after the other
    python benchmarks/bench.py sampling       those whose command has this word in it
    python benchmarks/bench.py --table        results.json as a Markdown table; nothing is run

A run that names some replaces those in results.json and keeps the others. Let nothing else run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
COMMANDS = (
    "extraction.py",
    "extraction_naive.py",
    "extraction_memory.py",
    "sampling.py tokens",
    "sampling.py one-by-one",
    "sampling.py generate",
    "store.py bytes",
    "store.py auroc",
    "store.py read",
    "l1_one_c.py",
    "l1_path.py",
    "l1_memory.py",
    "l1_wide.py",
    "scaling.py",
    "startup.py import",
    "startup.py help",
)


def run(command: str) -> dict[str, Any] | None:
    """What one benchmark prints; None if it fails, so that the others still run."""
    script, *words = command.split()
    done = subprocess.run(
        [sys.executable, str(HERE / script), *words], stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent
    )
    if done.returncode:
        return None
    return {"command": f"python benchmarks/{command}", **json.loads(done.stdout.strip().splitlines()[-1])}


def listed(*fresh: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json holds, replaced by what is fresh, in the order of the commands; of commands that are no more,
    nothing."""
    entries = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    found = {entry["command"]: entry for entry in [*entries, *fresh]}
    order = [f"python benchmarks/{command}" for command in COMMANDS]
    return [found[command] for command in order if command in found]


def reached(entry: dict[str, Any]) -> bool:
    """Whether the ratio is on the right side of its target."""
    ratio, target = float(entry["ratio"]), float(entry["target"])
    return ratio >= target if entry["direction"] == "min" else ratio <= target


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown: what, ratio with its range over the rounds, target, reached or missed, n."""
    lines = ["| what | ratio | target | | n |", "|---|---|---|---|---|"]
    for entry in entries:
        spread = "".join(f" [{low:.3g}, {high:.3g}]" for low, high in [entry["range"]]) if "range" in entry else ""
        sign = "at least" if entry["direction"] == "min" else "at most"
        mark = "reached" if reached(entry) else "**missed**"
        lines.append(
            f"| {entry['name']} | {entry['ratio']:.3g}{spread} | {sign} {entry['target']:g} | {mark} | {entry['n']:,} |"
        )
    return "\n".join(lines)


def main(words: list[str]) -> None:
    if "--table" in words:
        print(table(listed()))
        return
    failed: list[str] = []
    for command in COMMANDS:
        if words and not any(word in command for word in words):
            continue
        result = run(command)
        if result is None:
            failed.append(command)
            print(f"FAILED   {command}", flush=True)
            continue
        RESULTS.write_text(json.dumps(listed(result), indent=1) + "\n")
        mark, sign = ("reached" if reached(result) else "MISSED"), (">=" if result["direction"] == "min" else "<=")
        print(f"{mark:<8} {result['ratio']:>9.3f} {sign} {result['target']:<6g} {result['name']}", flush=True)
    if failed:
        sys.exit(f"{len(failed)} failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
