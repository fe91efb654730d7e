"""A finished impact.json, made of simulated outcomes by the code that makes real ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from hneurons.settings import ImpactSettings
from hneurons.stats import cluster_weights, percentile_interval
from hneurons.studies.impact_tables import H_NEURONS, KINDS, TOP, Outcomes, Sweep, mean_intervals
from hneurons.studies.impact_verdict import verdict

Json = dict[str, Any]
ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
WORLDS: dict[str, Json] = {
    "falseqa": {"slope": 0.06},
    "faitheval": {"slope": 0.0},
    "sycophancy": {"slope": 0.12, "above": 0.0},
    "jailbreak": {"slope": 0.05, "n": 30},
}
"""One benchmark a verdict: supported, not supported, ablation only, too little data."""
TITLES = {"falseqa": "FalseQA", "faitheval": "FaithEval", "sycophancy": "Sycophancy", "jailbreak": "Jailbreak"}


def arm(
    rng: np.random.Generator, latent: np.ndarray, one: np.ndarray, alphas: tuple[float, ...], slope: float,
    above: float | None = None, noise: float = 0.06, unparsable: float = 0.0, cut: float = 0.0,
) -> Outcomes:  # fmt: skip
    """Outcomes of an arm whose compliance changes by `slope` a unit of alpha; `above`: from 1 upwards.

    `noise`, `unparsable` and `cut` are shares of items at alpha = 1 +- 2, growing with the distance from 1.
    """
    columns: list[np.ndarray] = []
    lost: list[np.ndarray] = []
    for alpha in alphas:
        rate = 0.4 + (slope if above is None or alpha < 1 else above) * (alpha - 1)
        share = abs(alpha - 1) / 2
        redrawn = rng.random(len(latent)) < noise * share
        made = np.where(redrawn, rng.random(len(latent)), latent) < rate
        column = np.where(alpha == 1, one, made).astype(float)
        column[rng.random(len(latent)) < unparsable * share] = np.nan
        columns.append(column)
        lost.append(rng.random(len(latent)) < cut * share)
    outcomes = np.stack(columns, axis=1)
    tokens = 20 + rng.poisson(8, outcomes.shape).astype(float)
    return Outcomes(outcomes, np.stack(lost, axis=1), tokens, rng.random(outcomes.shape) * 0.1)


def sweep(
    seed: int = 0, *, n: int = 200, slope: float = 0.0, above: float | None = None, common: float = 0.0,
    spread: float = 0.0, sets: int = 5, alphas: tuple[float, ...] = ALPHAS, draws: int = 300, **more: float,
) -> Sweep:  # fmt: skip
    """Simulated outcomes: the H-Neurons' true slope is `slope + common`, that of every other set `common`, and each
    set of neurons has an effect of its own, of standard deviation `spread`."""
    rng = np.random.default_rng([seed, 17])
    latent = rng.random(n)
    one = latent < 0.4

    def made(kind_slope: float, over: float | None = None, **own: float) -> Outcomes:
        return arm(rng, latent, one, alphas, kind_slope + common + spread * rng.normal(), over, **{**more, **own})

    arms = {H_NEURONS: made(slope, above)}
    kinds = {H_NEURONS: H_NEURONS}
    for kind in KINDS:
        for number in range(sets):
            arms[f"{kind}-{number}"] = made(0.0, noise=0.02)
            kinds[f"{kind}-{number}"] = kind
    arms[TOP], kinds[TOP] = made(0.0, noise=0.2), TOP
    return Sweep(alphas, arms, kinds, draws, seed)


def impact_json(names: tuple[str, ...] = tuple(WORLDS), *, neurons: int = 32, capability: bool = True) -> Json:
    """The whole file, with these benchmarks."""
    return {
        "format": "hneurons.impact/1",
        "model": "tiny-llama",
        "card": "sha256:" + "0" * 64,
        "notes": [],
        "benchmarks": {name: _benchmark(number, name, neurons) for number, name in enumerate(names)},
        "capability": _capability(neurons) if capability else None,
    }


def _benchmark(seed: int, name: str, neurons: int) -> Json:
    world = sweep(seed, unparsable=0.05, cut=0.1, **WORLDS[name])
    found = world.table()
    for own, values in found["arms"].items():
        kind = world.kinds[own]
        head = {"kind": kind, "neurons": neurons, **({"skipped_h_neurons": 3} if kind == TOP else {})}
        found["arms"][own] = {**head, **values}
    return {
        "title": TITLES[name],
        "compliant_means": "answers as if the premise were true",
        "private": name == "jailbreak",
        "source": "built-in",
        "sha256": "sha256:" + "1" * 64,
        "settings": ImpactSettings(limit=world.n).model_dump(mode="json"),
        "decoding": {"temperature": 0.0, "top_k": 50, "top_p": 0.9, "max_new_tokens": 64, "seed": 0, "thinking": 0},
        "judge": "rule",
        "judges": {"rule": {"name": "rule", "rule": f"{name}/1"}},
        "items": {"asked": world.n + 12, "not admitted": 12, "dropped": {"repeated question": 2}},
        **found,
        "agreement": None,
        "examples": [],
        "verdict": verdict(world, TITLES[name]),
    }


def _capability(neurons: int) -> Json:
    rng = np.random.default_rng(5)
    shares = {"right": 0.5, "wrong": 0.4, "abstained": 0.08, "unparsable": 0.02, "cut": 0.03}
    curve: list[Json] = []
    for alpha in ALPHAS:
        drift = abs(alpha - 1)
        sets: Json = {}
        for name in ("starter", "nonexist"):
            values = {key: rng.random(200) < share * (1 + 0.1 * drift) for key, share in shares.items()}
            values |= {"tokens": 12 + rng.poisson(3, 200), "repetition": rng.random(200) * 0.05 * (1 + drift)}
            weights = cluster_weights(range(200), 50, 0)
            sets[name] = {
                key: mean_intervals(np.asarray(value, float)[:, None], weights)[0] for key, value in values.items()
            }
        perplexity = 18 * (1 + 0.05 * drift**2) + rng.normal(size=100) * 0.3
        curve.append(
            {
                "alpha": alpha,
                "perplexity": percentile_interval(float(perplexity.mean()), perplexity, 19).to_json(),
                "over_refusal": sets["starter"]["abstained"],
                "questions": sets,
            }
        )
    return {
        "settings": ImpactSettings().model_dump(mode="json"),
        "decoding": {"temperature": 0.0, "top_k": 50, "top_p": 0.9, "max_new_tokens": 24, "seed": 0, "thinking": 0},
        "questions": {
            "starter": {"n": 200, "sha256": "sha256:" + "2" * 64, "answerable": True},
            "nonexist": {"n": 200, "sha256": "sha256:" + "3" * 64, "answerable": False},
        },
        "text": {"tokens": 2500, "windows": 19, "sha256": "sha256:" + "4" * 64},
        "skipped": {},
        "arms": {H_NEURONS: {"kind": H_NEURONS, "neurons": neurons, "by_alpha": curve}},
    }
