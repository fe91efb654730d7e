"""A synthetic run folder in the formats of docs/run-folder.md, for tests of whatever reads one. No torch.

`write_run(folder, variant)` writes the files; the variants are the keys of `VARIANTS`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import fake_review

LAYERS, WIDTH = 30, 1536
HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\"'&$x_1$"
RTL = "מי כתב את הספר? \u202eevil\u202c 🦜👩‍🔬"

VARIANTS: dict[str, dict[str, Any]] = {
    "supported": {"separation": 1.1, "verdict": "supported"},
    "not supported": {"separation": 0.15, "verdict": "not supported"},
    "too little data": {"separation": 0.9, "verdict": "too little data", "n": 18},
    "no H-Neurons": {"separation": 0.0, "verdict": "not supported", "positives": 0},
    "nulls": {"separation": 1.0, "verdict": "supported", "nulls": True},
    "hostile": {"separation": 1.1, "verdict": "supported", "hostile": True},
    "several data sets": {"separation": 1.1, "verdict": "supported", "datasets": 3, "positives": 400, "domains": 6},
    "many domains": {"separation": 1.1, "verdict": "supported", "datasets": 2, "domains": 20},
    "problems": {"separation": 1.1, "verdict": "too little data", "review": "problems"},
    "before the review": {"separation": 1.1, "verdict": "supported", "review": None},
}
"""`review`: "whole" (the default), "problems" where every part that can fail has, None in an older run without one."""

FACTS = [
    ("What is the capital of Australia?", "The capital of Australia is", "Canberra", "Sydney"),
    ("What is the chemical symbol of gold?", "The chemical symbol of gold is", "Au", "Go"),
    ("Who wrote Don Quixote?", "Don Quixote was written by", "Miguel de Cervantes", "Lope de Vega"),
    ("Which planet is the largest?", "The largest planet is", "Jupiter", "Saturn"),
    ("What is the capital of Canada?", "It is", "Ottawa", "Toronto"),
    ("Who painted Guernica?", "Guernica was painted by", "Pablo Picasso", "Salvador Dalí"),
]


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs that are ranked right, ties counting one half."""
    wins = (positive[:, None] > negative[None, :]).mean() + 0.5 * (positive[:, None] == negative[None, :]).mean()
    return float(wins)


def interval(value: float, n: int, half: float | None = None) -> dict[str, Any]:
    """An interval object of about the right width for `n` examples."""
    half = 0.85 / np.sqrt(n) if half is None else half
    return {
        "value": round(value, 4),
        "low": round(value - half, 4),
        "high": round(min(1.0, value + half), 4),
        "n": n,
    }


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def _path(rng: np.random.Generator, settings: dict[str, Any]) -> dict[str, Any]:
    points = []
    for i, C in enumerate((0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 3.0, 6.0, 12.0, 25.0, 50.0, 100.0)):
        nonzeros = round(1.5 * 1.9**i) if settings.get("positives", 30) else 0
        peak = np.exp(-(((i - 7) / 6) ** 2))
        score = 0.5 + 0.24 * settings["separation"] * peak + rng.normal(0, 0.004)
        point = {
            "C": C, "nonzeros": nonzeros, "positives": round(nonzeros * 0.62), "objective": 900 - 30.0 * i,
            "residual": 1e-9, "cv_auroc": round(score, 4), "cv_auroc_se": 0.018,
            "cv_accuracy": round(score - 0.05, 4),
            "validation_auroc": round(score + rng.normal(0, 0.012), 4), "suppressed_accuracy": None,
            "validation_accuracy": round(score - 0.06, 4),
        }  # fmt: skip
        points.append(point)
    if settings.get("nulls"):
        for point in points[:3]:
            point.update(cv_auroc=None, cv_auroc_se=None, validation_auroc=None)
    rule = "sparsest C within one standard error of the best cross-validated AUROC"
    head = {"format": "hneurons.path/1", "labelling": "3-vs-1", "penalty": "l1", "solver": "exact"}
    return head | {
        "rows": 1200, "positives": 300, "neurons": LAYERS * WIDTH, "rule": rule, "chosen": 6,
        "points": points,
    }  # fmt: skip


def reviewed(settings: dict[str, Any]) -> str | None:
    """What the run has of the review."""
    return settings.get("review", "whole")


def _card(rng: np.random.Generator, model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    positives = settings.get("positives", 32)
    negatives = 19 if positives else 4
    weights = np.concatenate([rng.gamma(2, 14, positives), -rng.gamma(2, 9, negatives)])
    layers = np.clip(rng.normal(17, 6, len(weights)).round(), 0, LAYERS - 1)
    guarantee = fake_review.promise("learn then test", 0.21, 0.1) if reviewed(settings) else None
    calibration: dict[str, Any] = {"method": "platt", "slope": 1.1, "offset": 0.2, "n": 120}
    if settings.get("domains"):
        knots = [[-3.0, 0.0082], [-0.5, 0.31], [0.4, 0.5], [2.25, 0.9918]]
        calibration = {"method": "isotonic", "knots": knots, "n": 120, "brier": {"platt": 0.2134, "isotonic": 0.1876}}
    places = sorted({(int(x), int(i)) for x, i in zip(layers, rng.integers(0, WIDTH, len(weights)), strict=True)})
    neurons = [
        {"layer": layer, "expert": None, "index": index, "weight": round(float(weight), 4)}
        for (layer, index), weight in zip(places, rng.permutation(weights), strict=False)
    ]
    keys = ("id", "revision", "architecture", "layers", "width", "neurons")
    probe = {
        "feature": "cett", "region": "answer", "aggregation": "mean", "labelling": "3-vs-1",
        "other": "response", "penalty": "l1", "C": 3.0, "solver": "exact", "intercept": -1.2,
        "threshold": 0.5, "calibration": calibration, **({"guarantee": guarantee} if guarantee else {}),
    }  # fmt: skip
    return {
        "format": "hneurons.card/1",
        "model": {key: model[key] for key in keys},
        "probe": probe,
        "neurons": neurons,
        "metrics": {},
        "provenance": {
            "package": "0.1.0", "questions": "sha256:" + "5e" * 32, "seed": 0,
            "examples": {"faithful": 300, "hallucinated": 400},
        },
    }  # fmt: skip


def _dataset(rng: np.random.Generator, count: int, separation: float, settings: dict[str, Any]) -> dict[str, Any]:
    n = settings.get("n", 212)
    size = {"faithful": n * 100 // 212, "hallucinated": n - n * 100 // 212}
    risks = {
        "faithful": 1 / (1 + np.exp(-rng.normal(-0.55 * separation, 1.1, size["faithful"]))),
        "hallucinated": 1 / (1 + np.exp(-rng.normal(0.75 * separation, 1.1, size["hallucinated"]))),
    }
    cuts = np.unique(np.concatenate([[-1.0], *risks.values(), [2.0]]))[::-1]
    value = auroc(risks["faithful"], risks["hallucinated"])
    right = (risks["faithful"] < 0.5).sum() + (risks["hallucinated"] >= 0.5).sum()
    accuracy = interval(float(right) / n, n)
    h_neurons: dict[str, Any] = {
        "count": count, "share_per_mille": round(1000 * count / (LAYERS * WIDTH), 4), "threshold": 0.5,
        "auroc": interval(value, n), "auprc": interval(min(0.99, value + 0.02), n), "accuracy": accuracy,
        "base_rate_accuracy": round(max(size.values()) / n, 4),
    }  # fmt: skip
    random: dict[str, Any] = {}
    for name, centre in (("uniform", 0.59), ("layer_matched", 0.61)):
        draws = [round(float(x), 4) for x in rng.normal(centre, 0.025, 10)]
        mean = round(float(np.mean(draws)), 4)
        random[name] = {
            "auroc": draws, "accuracy": [round(x - 0.03, 4) for x in draws], "mean_auroc": mean,
            "difference": interval(value - mean, n, 0.055),
        }  # fmt: skip
    baselines = {
        name: {"auroc": interval(x, n), "accuracy": interval(x - 0.04, n)}
        for name, x in (
            ("length", 0.60),
            ("mean log-probability", 0.66),
            ("length + mean log-probability", 0.68),
        )
    }
    combined = max(value, 0.68) + 0.02
    result: dict[str, Any] = {
        "split": "test", "n": n, **size, "questions": n, "h_neurons": h_neurons, "random": random,
        "baselines": baselines,
        "increment": {
            "baseline": baselines["length + mean log-probability"]["auroc"],
            "combined": interval(combined, n),
            "difference": interval(combined - 0.68, n, 0.04),
        },
        "roc": {
            "fpr": [round(float((risks["faithful"] >= c).mean()), 4) for c in cuts],
            "tpr": [round(float((risks["hallucinated"] >= c).mean()), 4) for c in cuts],
        },
        "risks": {k: [round(float(x), 4) for x in v] for k, v in risks.items()},
    }  # fmt: skip
    if settings.get("nulls"):
        h_neurons.update(auprc=None, base_rate_accuracy=None)
        h_neurons["accuracy"] = {"value": None, "low": None, "high": None, "n": n}
        random["layer_matched"] = {"auroc": [], "accuracy": [], "mean_auroc": None, "difference": None}
        random["uniform"]["difference"] = {"value": 0.17, "low": None, "high": None, "n": n}
        result.update(increment=None, roc={"fpr": [], "tpr": []})
    return result


def _showcase(rng: np.random.Generator, settings: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for i in range(12):
        question, lead, right, wrong = FACTS[i % len(FACTS)]
        label = "hallucinated" if i % 2 == 0 else "faithful"
        answer = wrong if label == "hallucinated" else right
        if settings.get("hostile") and i < 6:
            hostile = (HOSTILE, "</script>", HOSTILE), (RTL, "ירושלים", "הבירה היא 🦜")
            question, answer, lead = hostile[i // 3]
        base = 0.72 if label == "hallucinated" else 0.24
        pieces = [w if k == 0 else " " + w for k, w in enumerate(lead.split(" "))]
        spans = [(p, False) for p in pieces] + [(" " + w, True) for w in answer.split(" ")]
        spans += [(".", False), ("\n", False), ("<|im_end|>", False)]
        tokens = []
        for text, inside in spans:
            risk = float(np.clip(rng.normal(base if inside else 0.35, 0.17), 0.01, 0.99))
            tokens.append({"text": text, "risk": round(risk, 4), "answer": inside})
        risk = round(float(np.mean([t["risk"] for t in tokens if t["answer"]])), 4)
        row = {"question": question, "label": label, "risk": risk, "flagged": risk >= 0.5, "answer": answer}
        rows.append(row | {"tokens": tokens})
    if settings.get("nulls"):
        rows[0]["tokens"][0]["risk"] = None
        rows[1]["risk"] = None
    return rows


def _evaluation(rng: np.random.Generator, card: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    count = sum(n["weight"] > 0 for n in card["neurons"])
    names = ["starter", "nq_open", "nonexist"][: settings.get("datasets", 1)]
    if settings.get("hostile"):
        names = [HOSTILE]
    datasets = {
        name: _dataset(rng, count, settings["separation"] * (1 - 0.3 * i), settings) for i, name in enumerate(names)
    }
    if reviewed(settings):
        for place, data in enumerate(datasets.values()):
            data.update(fake_review.of_dataset(rng, data, settings, HOSTILE))
            data.update(fake_review.asked_elsewhere() if place else {})
    score = datasets[names[0]]["h_neurons"]["auroc"]
    text = f"AUROC {score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    verdict = settings["verdict"]
    sentences = {
        "supported": f"The H-Neurons predict hallucinated answers better than chance ({text}).",
        "not supported": f"The H-Neurons do no better than random neurons of the same number ({text}).",
        "too little data": "Too few test examples to tell an effect of this size from chance.",
    }
    good = verdict == "supported"
    checks = [
        ("enough data", verdict != "too little data", f"{score['n']} test examples"),
        ("better than chance", good, text),
        ("better than random neurons", good, "difference to the mean of 10 uniform sets"),
        ("adds to length and log-probability", good, "increment of the combined probe"),
    ]
    review = fake_review.parts(rng, card, settings, HOSTILE) if reviewed(settings) else {}
    return {
        "format": "hneurons.evaluation/1",
        "verdict": {
            "verdict": verdict, "sentence": sentences[verdict], "minimum_detectable_auroc": 0.58,
            "checks": [{"name": n, "passed": p, "detail": d} for n, p, d in checks],
        },
        "datasets": datasets,
        **review,
        "showcase": _showcase(rng, settings),
    }  # fmt: skip


def _journals(folder: Path, rng: np.random.Generator, model: dict[str, Any], name: str) -> None:
    """Questions, responses, examples and (all-zero, sparse) feature arrays of a small slice of the run."""
    questions, responses, examples = [], [], []
    for i in range(24):
        question, lead, right, wrong = FACTS[i % len(FACTS)]
        label = "faithful" if i % 2 else "hallucinated"
        answer = right if i % 2 else wrong
        text = f"{lead} {answer}."
        ids = list(range(100, 100 + len(text.split()) + 1))
        logprobs = [round(float(-rng.exponential(0.4)), 4) for _ in ids]
        response = {
            "question_id": f"q{i}", "sample": 0, "text": text, "token_ids": ids, "logprobs": logprobs,
            "finish_reason": "stop", "verdict": "correct" if i % 2 else "wrong", "judge": "alias",
        }  # fmt: skip
        questions.append({"id": f"q{i}", "question": question, "answers": [right], "domain": ""})
        responses.append(response | {"mean_logprob": round(float(np.mean(logprobs)), 4)})
        examples.append(
            {
                "question_id": f"q{i}", "question": question, "label": label, "group": f"q{i}", "domain": "",
                "split": ("train", "validation", "test")[i % 3], "response": response, "prompt_tokens": 30,
                "answer_chars": {"start": len(lead) + 1, "end": len(lead) + 1 + len(answer)},
                "answer_tokens": {"start": len(lead.split()), "end": len(ids) - 1}, "agreement": 10,
                "extra": {"dataset": name},
            }
        )  # fmt: skip
    _lines(folder / "questions.jsonl", questions)
    _lines(folder / "responses.jsonl", responses)
    _lines(folder / "examples.jsonl", examples)
    features = folder / "features"
    features.mkdir()
    for region in ("answer", "other", "response", "prompt"):
        shape = (len(examples), model["neurons"])
        np.lib.format.open_memmap(features / f"{region}.npy", mode="w+", dtype=np.float16, shape=shape).flush()
    _lines(
        features / "index.jsonl",
        [{"row": i, "question_id": e["question_id"]} for i, e in enumerate(examples)],
    )
    _dump(
        features / "layout.json",
        {"layers": LAYERS, "width": WIDTH, "neurons": model["neurons"], "scale": 1024},
    )


def write_run(folder: Path, variant: str = "supported", *, finished: bool = True, seed: int = 0) -> Path:
    """`folder` as a complete run, or one that stopped before fitting; the same bytes every time."""
    settings = VARIANTS[variant]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    hostile = settings.get("hostile", False)
    name = HOSTILE if hostile else "starter"
    model = {
        "id": f"acme/{HOSTILE} {RTL}" if hostile else "smollm2-135m", "source": "demo", "revision": None,
        "architecture": "LlamaForCausalLM", "config_hash": "sha256:" + "c0" * 32, "layers": LAYERS,
        "width": WIDTH, "neurons": LAYERS * WIDTH, "parameters": 134515008,
        "dtype": "float32", "device": "cpu", "chat_template": True,
    }  # fmt: skip
    _journals(folder, rng, model, name)
    stages = ["sample", "examples", "extract", "fit", "calibrate", "evaluate"]
    states: dict[str, Any] = {s: {"state": "done", "seconds": round(210.5 / (i + 1), 1)} for i, s in enumerate(stages)}
    if not finished:
        states = {**{s: states[s] for s in stages[:2]}, "extract": {"state": "running"}}
    dropped = {
        "mixed verdicts": 1035,
        "abstained": 50,
        "unparsable": 3,
        "no answer span": 12,
        "class full": 0,
    }
    if hostile:
        dropped = {HOSTILE: 1035, RTL: 65}
    run = {
        "format": "hneurons.run/1",
        "package": {
            "version": "0.1.0", "git": None, "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0",
        },
        "created": "2026-11-22T12:00:00+00:00",
        "model": model,
        "settings": {
            "questions": name, "samples": 10, "temperature": 0.5, "top_k": 50, "top_p": 0.9,
            "max_new_tokens": 32, "judge": "alias", "labelling": "3-vs-1", "other": "response", "seed": 0,
            "stop": ["\n"], "engine": "hf",
        },
        "settings_hash": "sha256:" + "ab" * 32,
        "data": {name: {"sha256": "d4" * 32, "questions": 1800}},
        "stages": states,
        "counts": {
            "questions": 1800, "responses": 9000, "faithful": 300, "hallucinated": 400, "dropped": dropped,
            "splits": {
                "train": {"faithful": 140, "hallucinated": 190},
                "validation": {} if settings.get("nulls") else {"faithful": 60, "hallucinated": 98},
                "test": {"faithful": 100, "hallucinated": 112},
            },
        },
        "notes": [HOSTILE, RTL] if hostile else ["The demo samples at temperature 0.5, the paper at 1.0."],
    }  # fmt: skip
    _dump(folder / "run.json", run)
    if finished:
        card = _card(rng, model, settings)
        path = _path(rng, settings)
        if reviewed(settings):
            path["stability"] = fake_review.along_path(path)
        _dump(folder / "path.json", path)
        _dump(folder / "neurons.json", card)
        _dump(folder / "evaluation.json", _evaluation(rng, card, settings))
    return folder
