"""The parts of evaluation.json and path.json that review a run, for `fake_run.write_run`."""

from __future__ import annotations

from typing import Any

import numpy as np

Json = dict[str, Any]
PROBLEM = {"problem": "Only 3 faithful examples in the validation split.", "remedy": "Ask more questions."}
DOMAINS = (
    "capitals",
    "animals",
    "elements",
    "film_tv",
    "geography",
    "history",
    "languages",
    "literature",
    "music",
    "mythology",
    "numbers",
    "science",
    "sports",
    "technology",
    "words",
    "food",
    "art",
    "plants",
    "law",
    "games",
)
PASS = "one teacher-forced pass over prompt and response, none if taken while it is sampled"
FREE = "comes with the sampled response"
RESAMPLED = "further responses; flattered where examples were kept for agreement"
PEERS = {
    "length": (0, 0, FREE, 0.61),
    "minimum log-probability": (0, 0, FREE, 0.69),
    "mean entropy": (1, 0, PASS, 0.66),
    "self-consistency": (0, 9, RESAMPLED, 0.88),
    "all neurons, L2": (1, 0, PASS, 0.79),
}
UNDEFINED = {"value": None, "low": None, "high": None, "n": 0}


def interval(value: float, half: float, n: int = 212) -> Json:
    return {"value": round(value, 4), "low": round(value - half, 4), "high": round(value + half, 4), "n": n}


def of_dataset(rng: np.random.Generator, data: Json, settings: Json, hostile: str) -> Json:
    """`peers confounds reliability guarantee outside_domains` of a data set."""
    own, n = data["h_neurons"]["auroc"], data["n"]
    odd = hostile if settings.get("hostile") else None
    outside = {odd or "nowhere": 7} if settings.get("domains") or odd else {}
    if settings.get("review") == "problems":
        skipped = {"answer word frequency": "The extra 'confounds' is missing."}
        confounds = {"format": "hneurons.confounds/1", "n": n, "confounds": {}, "skipped": skipped}
        empty = {"n": 0, "prevalence": 0.5, "bins": [], "ece": UNDEFINED, "ece_if_calibrated": None, "brier": UNDEFINED}
        return {
            "peers": PROBLEM,
            "confounds": confounds,
            "reliability": empty,
            "guarantee": None,
            "outside_domains": {},
        }
    found = {
        "peers": _peers(own, n, odd),
        "confounds": _confounds(own, n, odd),
        "reliability": _reliability(rng, n),
        "guarantee": _achieved(0.031),
        "outside_domains": outside,
    }
    if settings.get("nulls"):
        found["reliability"]["bins"][0]["rate"] = UNDEFINED
        found["confounds"]["confounds"]["response length"]["within"] = UNDEFINED
        found["peers"]["peers"]["mean entropy"].update(auroc=UNDEFINED, accuracy=None)
        found["guarantee"] = None
    return found


def asked_elsewhere() -> Json:
    """What a data set of `hneurons evaluate --on` has beyond the run's own."""
    return {
        "split": "all",
        "protocol": "one sample a question, as many faithful as hallucinated",
        "already_asked": 3,
        "answers": {"correct": 271, "wrong": 505, "abstained": 41, "unparsable": 2},
    }


def _peers(own: Json, n: int, odd: str | None) -> Json:
    rows: Json = {}
    for name, (passes, samples, note, score) in PEERS.items():
        rows[name] = {
            "cost": {"extra_forward_passes": passes, "extra_samples": samples, "note": odd or note},
            "fitted_on": "train" if "L2" in name else "validation",
            "chosen": {},
            "validation_auroc": score - 0.011,
            "auroc": interval(score, 0.06),
            "accuracy": interval(score - 0.05, 0.05),
            "combined": interval(score + 0.04, 0.05),
            "difference": interval(own["value"] - score, 0.07),
            "h_adds": interval(0.0437, 0.02),
            "adds_to_h": interval(0.0213, 0.03),
        }
    best = "minimum log-probability"
    if odd:
        rows[odd] = rows.pop("length")
    row = rows[best]
    increment = {"over": [best], "baseline": row["auroc"], "combined": row["combined"], "difference": row["h_adds"]}
    cost = {"extra_forward_passes": 1, "extra_samples": 0, "note": PASS}
    head = {"split": "test", "n": n, "faithful": n // 2, "hallucinated": n - n // 2, "questions": n}
    score = {"cost": cost, "auroc": own, "accuracy": interval(0.7, 0.06)}
    return head | {"h_neurons": score, "peers": rows, "increment": increment}


def _confounds(own: Json, n: int, odd: str | None) -> Json:
    def one(kind: str, within: float, word: str, name: str) -> Json:
        number = kind == "number"
        strata = [
            {
                "name": odd or f"{low} to {low + 4}",
                "faithful": 25,
                "hallucinated": 28,
                "auroc": interval(0.71 + low / 300, 0.1),
            }
            for low in (4, 9, 14)
        ]
        strata.append({"name": "19 to 40", "faithful": 3, "hallucinated": 50, "auroc": UNDEFINED})
        return {
            "kind": kind,
            "n": n,
            "left_out": 4 if number else 0,
            "finding": word,
            "sentence": odd or f"At equal {name}: {word}.",
            "auroc": own,
            "within": interval(within, 0.07),
            "difference": interval(own["value"] - within, 0.04),
            "matched_strata": 8,
            "pairs_share": 0.1031,
            "strata": strata,
            "confound": {"auroc": interval(0.6, 0.07), "within": interval(0.515, 0.07)} if number else None,
            "spearman": {k: interval(0.2, 0.2) for k in ("faithful", "hallucinated")} if number else None,
        }

    found = {
        "response length": one("number", 0.743, "partly explained", "response length"),
        "answer length": one("number", 0.511, "explained", "answer length"),
        odd or "answer type": one("category", 0.771, "not explained", "answer type"),
    }
    skipped = {"question domain": odd or "all examples are alike"}
    return {"format": "hneurons.confounds/1", "n": n, "confounds": found, "skipped": skipped}


def _reliability(rng: np.random.Generator, n: int) -> Json:
    bins = []
    for i in range(10):
        risk = 0.05 + 0.1 * i
        rate = float(np.clip(risk + rng.normal(0, 0.06), 0.02, 0.98))
        ends = {"low": round(max(0.0, rate - 0.16), 4), "high": round(min(1.0, rate + 0.16), 4)}
        bins.append({"risk": round(risk, 4), "rate": {"value": round(rate, 4), **ends, "n": 21}})
    return {
        "n": n,
        "prevalence": 0.5,
        "bins": bins,
        "ece": interval(0.0711, 0.02),
        "ece_if_calibrated": 0.0555,
        "brier": interval(0.1913, 0.02),
    }


def promise(method: str, threshold: float | None, delta: float | None) -> Json:
    """A guarantee as on the card."""
    return {
        "method": method,
        "alpha": 0.05,
        "delta": delta,
        "threshold": threshold,
        "n": 158,
        "flagged_share_on_calibration": 0.6203,
        "prevalence": None,
        "sentence": f"Flag scores from {threshold} up ({method})." if threshold is not None else "Flag everything.",
    }


def _achieved(rate: float, exceeded: bool | None = False) -> Json:
    return {
        "n": 212,
        "hallucinated": 112,
        "rate": interval(rate, 0.03),
        "exceeded": exceeded,
        "unflagged": interval(0.412, 0.07),
        "flagged_hallucinated": interval(0.953, 0.04),
        "flagged_faithful": interval(0.523, 0.1),
    }


def parts(rng: np.random.Generator, card: Json, settings: Json, hostile: str) -> Json:
    """`stability domain_calibration guarantees transfer verbosity transfer_between_sets`."""
    odd = hostile if settings.get("hostile") else None
    pooled = {"method": "platt", "slope": 0.489, "offset": 0.237, "n": 80}
    if settings.get("review") == "problems":
        none = {
            "guarantee": None,
            "problem": "Only 13 hallucinated calibration answers.",
            "remedy": "Ask more.",
            "test": None,
        }
        return {
            "stability": PROBLEM,
            "verbosity": {"problem": "No test answer could be rewritten.", "remedy": "Ask more."},
            "domain_calibration": {"pooled": pooled, "domains": {}, "covered": [], "left_to_pooled": {"capitals": 9}},
            "guarantees": {
                "unflagged": {
                    **none,
                    "guarantee": promise("learn then test", None, 0.1),
                    "problem": None,
                    "test": _achieved(0.0, None) | {"rate": UNDEFINED},
                },
                "missed": none,
            },
            "transfer": _transfer(rng, [], {"capitals": "only 9 faithful examples, 20 needed"}),
            "transfer_between_sets": PROBLEM,
        }
    names = [odd or "capitals", *DOMAINS[1 : settings.get("domains", 3)]]
    found = {
        "stability": {"bootstrap": _stability(card, "bootstrap", odd), "splits": _stability(card, "split", odd)},
        "domain_calibration": {
            "pooled": pooled,
            "domains": {names[0]: pooled | {"n": 44}},
            "covered": names[:1],
            "test": {
                "n": 61,
                "own": interval(0.19, 0.05, 61),
                "pooled": interval(0.21, 0.05, 61),
                "difference": interval(-0.02, 0.01, 61),
            },
            "left_to_pooled": {"": 5, "animals": 12},
        },
        "guarantees": {
            "unflagged": {
                "guarantee": promise("learn then test", 0.21, 0.1),
                "problem": None,
                "remedy": None,
                "test": _achieved(0.1271, True),
            },
            "missed": {
                "guarantee": promise("conformal risk control", -0.83, None),
                "problem": None,
                "remedy": None,
                "test": _achieved(0.0611),
            },
        },
        "transfer": _transfer(rng, names, {"sports": odd or "only 9 faithful examples, 20 needed"}),
        "verbosity": _verbosity(odd),
    }
    if settings.get("datasets"):
        found["transfer_between_sets"] = _transfer(rng, ["starter", "nq_open", "nonexist"][: settings["datasets"]], {})
    if settings.get("nulls"):
        found["transfer"]["cells"][1]["auroc"] = UNDEFINED
        found["verbosity"]["cells"]["wrong long"] = UNDEFINED
        found["stability"]["splits"] = None
    return found


def _transfer(rng: np.random.Generator, names: list[str], skipped: Json) -> Json:
    cells = [
        {"train": a, "test": b, "auroc": interval(0.79 if a == b else 0.56 + float(rng.normal(0, 0.06)), 0.08)}
        for b in names
        for a in names
    ]
    word = "transfers in part" if names else "too little data"
    rows = [
        {"name": n, "n": 60, "faithful": 28, "hallucinated": 32, "C": [1.0] * 3, "positives": [9, 12, 11]}
        for n in names
    ]
    return {
        "format": "hneurons.transfer/1",
        "folds": 3,
        "rule": "C = 30.15 times the smallest C with a neuron",
        "finding": word,
        "sentence": f"Transfer of {len(names)} parts: {word}.",
        "parts": rows,
        "skipped": skipped,
        "cells": cells,
        "in_domain": interval(0.79, 0.04) if names else UNDEFINED,
        "across": interval(0.56, 0.04) if names else UNDEFINED,
        "loss": interval(0.23, 0.04) if names else UNDEFINED,
    }


def _verbosity(odd: str | None) -> Json:
    means = {"right short": 0.447, "right long": 0.332, "wrong short": 1.345, "wrong long": 1.296}
    return {
        "format": "hneurons.verbosity/1",
        "n": 400,
        "questions": 100,
        "finding": "truth more than verbosity",
        "sentence": odd or "Truth counts for more than style.",
        "cells": {k: interval(v, 0.4) for k, v in means.items()},
        "pooled_sd": interval(2.127, 0.2),
        "truth": interval(0.4376, 0.2),
        "verbosity": interval(-0.0384, 0.13),
        "interaction": interval(0.0314, 0.2),
        "ratio": interval(0.0877, 0.08),
        "excess": interval(-0.399, 0.2),
        "auroc": {"short": interval(0.6135, 0.07), "long": interval(0.6083, 0.07)},
        "dropped": {odd or "answers alike": 1},
    }


def _stability(card: Json, kind: str, odd: str | None) -> Json:
    """Frequencies that fall with the place of a neuron among the H-Neurons."""
    width, own = (
        card["model"]["width"],
        sorted((n for n in card["neurons"] if n["weight"] > 0), key=lambda n: -n["weight"]),
    )
    rows = []
    for place, neuron in enumerate(own):
        frequency = round(1 - (place + 1) / (len(own) + 2), 2)
        rows.append(
            {
                "column": neuron["layer"] * width + neuron["index"],
                "in_card": True,
                "frequency": frequency,
                "opposite": 0.0,
                "mean_weight": 1.5,
                "stable": frequency >= 0.5,
            }
        )
    kept = sum(row["stable"] for row in rows)
    rows.append({"column": 5, "in_card": False, "frequency": 0.56, "opposite": 0.0, "mean_weight": 0.4, "stable": True})
    return {
        "format": "hneurons.stability/1",
        "kind": kind,
        "C": 3.0,
        "solver": "exact",
        "refits": 50,
        "sentence": odd or f"{kept} of {len(own)} H-Neurons appear in at least half of 50 {kind} refits.",
        "stable": kept,
        "marked": len(own) - kept,
        "sign_flips": 0,
        "pairwise_jaccard": 0.1648,
        "jaccard_to_card": 0.2591,
        "positives": {"mean": 40.98, "low": 30, "high": 52},
        "neurons": rows,
    }


def along_path(path: Json) -> Json:
    """`stability` of path.json."""
    points = [
        {
            "C": p["C"],
            "positives": p["positives"],
            "to_previous": 0.8 if i > 1 else None,
            "to_chosen": round(1 - abs(i - path["chosen"]) / 12, 4),
        }
        for i, p in enumerate(path["points"])
    ]
    return {
        "format": "hneurons.path_stability/1",
        "chosen": path["chosen"],
        "in_all": 2,
        "points": points,
        "neurons": [],
    }
