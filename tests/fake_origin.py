"""A synthetic origin.json in the format of docs/run-folder.md, beside the synthetic run of fake_run.py. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fake_run import HOSTILE, RTL, interval
from hneurons.neurons.card import Card

VARIANTS: dict[str, dict[str, Any]] = {
    "one base": {},
    "three checkpoints": {"names": ["step-1000", "sft", "dpo, a checkpoint with a rather long name of its own"]},
    "weights only": {"asked": False},
    "problems": {"problems": True},
    "hostile": {"names": [HOSTILE, RTL]},
    "no H-Neurons": {"count": 0},
}


def _drift(rng: np.random.Generator, count: int, to: str, centre: float) -> dict[str, Any]:
    places = {"low": 0.41, "high": 0.59}
    ranks = np.clip(rng.normal(centre, 0.22, count), 0, 1).round(4)
    mean = {"value": None, "low": None, "high": None, "n": 0}
    if count:
        half = 1.96 * 0.22 / np.sqrt(count)
        value = float(ranks.mean())
        mean = {"value": round(value, 4), "low": round(value - half, 4), "high": round(value + half, 4), "n": count}
    whole = {
        "count": count, "mean": mean, "t_test": {"t": 2.1, "p": 0.0213 if count else None},
        "permutation": {"draws": 10000, "p": 0.0311 if count else None, "p_two_sided": 0.0622,
                        "random": {"value": 0.5021, **places, "n": 10000}},
    }  # fmt: skip
    return {
        "to": to, "finding": "changed less", "sentence": "The H-Neurons changed less than others.",
        "same_weights": False, "neurons": 46080, **whole,
        "ranks": [{"layer": i % 30, "expert": None, "index": 7 * i, "rank": float(r)} for i, r in enumerate(ranks)],
        "layers": [0.5] * 30, "parts": {kind: {"median": 1e-4, "largest": 0.02, **whole} for kind in ("up", "down")},
    }  # fmt: skip


def _data(value: float, n: int) -> dict[str, Any]:
    random = {
        kind: {"auroc": [0.52, 0.55], "accuracy": [0.5], "mean_auroc": 0.535, "mean_accuracy": 0.5,
               "difference": interval(value - 0.535 - 0.01 * i, n, 0.06)}
        for i, kind in enumerate(("uniform", "layer_matched"))
    }  # fmt: skip
    numbers = {"count": 32, "auroc": interval(value, n)}
    return {
        "n": n, "faithful": n // 2, "hallucinated": n // 2, "questions": n, "left_out": 260, "h_neurons": numbers,
        "random": random, "baselines": {}, "increment": {}, "answers": {"correct": n, "wrong": 3 * n},
        "own": {"auroc": interval(value + 0.06, n // 2), "transferred": interval(value, n // 2),
                "difference": interval(-0.06, n // 2, 0.05)},
        "run": interval(0.81, 212),
    }  # fmt: skip


def write_origin(run: Path, variant: str = "one base") -> dict[str, Any]:
    """Write `origin.json` into a run; what is in it."""
    settings = VARIANTS[variant]
    rng = np.random.default_rng(1)
    names = settings.get("names", ["base"])
    count = settings.get("count", 32)
    checkpoints = []
    for i, name in enumerate(names):
        sets = {"starter": _data(0.66 + 0.04 * i, 300), "nq_open": _data(0.6 + 0.03 * i, 200)}
        own: Any = {
            "h_neurons": 20, "probe_neurons": 31, "C": 3.0, "examples": {"faithful": 200, "hallucinated": 200},
            "on_run": {key: {"n": 120, "h_neurons": {"auroc": interval(0.7, 120)}, "random": {}} for key in sets},
        }  # fmt: skip
        drift = _drift(rng, count, "tuned", 0.58 + 0.05 * i)
        after = names[i + 1] if i + 1 < len(names) else "tuned"
        if settings.get("problems"):
            own = {"problem": "Only 3 faithful examples.", "remedy": "Ask more."}
            sets["starter"] = {"problem": "starter: only 3 faithful examples.", "remedy": "Ask more."}
            drift = {"to": "tuned", "problem": "base is quantised (gptq).", "remedy": "Give another."}
        if not settings.get("asked", True):
            sets, own = {}, None
        checks = [
            {"name": "predicts in the checkpoint", "passed": True if sets else None, "detail": "AUROC 0.66 [0.6, 0.7]"},
            {"name": "better there than random neurons", "passed": False, "detail": "AUROC difference"},
            {"name": "weights changed less", "passed": None, "detail": "mean rank"},
        ]
        word = ("supported", "supported in part", "not supported")[i % 3]
        checkpoints.append(
            {
                "name": name, "id": name, "source": "folder", "revision": None, "dtype": "BF16",
                "fingerprint": "3fa9" * 16, "folder": "origin/base-3fa9", "answers": "origin/base-3fa9/plain",
                "notes": ["base is stored as BF16."] if i == 0 else [],
                "verdict": {"verdict": word, "sentence": f"{word.capitalize()}: it is so.", "checks": checks},
                "datasets": sets, "own_card": own, "drift": drift,
                "drift_to_next": drift if after == "tuned" else _drift(rng, count, after, 0.5),
            }
        )  # fmt: skip
    pairs = [{"a": "tuned", "b": names[0], "shared": 4, "jaccard": 0.0833, "expected": 0.0139, "p": 1.2e-9}]
    found = {
        "format": "hneurons.origin/1", "package": {"version": "0.1.0"},
        "model": {"id": "tuned", "revision": None, "dtype": "F32"},
        "card": Card.load(run / "neurons.json").neurons_hash,
        "settings": {"prompt": "question, newline, 'Answer:'", "few_shot": [], "per_class": 500, "limit": None,
                     "own": True, "protocol": "one sample a question"},
        "checkpoints": checkpoints,
        "overlap": {"names": ["tuned", *names], "counts": [32, 20], "pairs": pairs},
    }  # fmt: skip
    (run / "origin.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found
