"""What the L1 benchmarks share: the training data, liblinear as scikit-learn runs it, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from real_features import real_features
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from hneurons.neurons.choose import TrainingData
from hneurons.neurons.matrix import Stored
from hneurons.types import Region

QUICK = (120, 1500)
FEATURES = {True: f"made up, {QUICK}", False: "answers of SmolLM2-135M to starter questions"}
"""What the data are, quick or not, as `settings` says it."""


def training(quick: bool) -> TrainingData:
    """2,000 answers of the demo model, 3-vs-1: 4,000 x 46,080. Quick: 120 made-up ones, 240 x 1,500."""
    if quick:
        return made_up(*QUICK)
    real = real_features()
    rows = np.arange(real.examples)
    answer, other = (np.asarray(Stored(real.store, region, rows)) for region in (Region.ANSWER, Region.OTHER))
    return TrainingData(answer, other, np.ones(real.examples, bool), real.hallucinated, real.groups)


def made_up(examples: int, neurons: int) -> TrainingData:
    """Positive, correlated features, some of which tell the label."""
    rng = np.random.default_rng(0)
    label = np.arange(examples) % 2 == 0
    parts: list[NDArray[np.float32]] = []
    for _ in range(2):
        common = rng.normal(size=(examples, 8)) @ rng.normal(size=(8, neurons))
        parts.append((0.01 * np.exp(0.3 * common + 0.5 * rng.normal(size=common.shape))).astype(np.float32))
    parts[0][np.ix_(label, np.arange(0, neurons, 100))] *= 1.5
    return TrainingData(parts[0], parts[1], np.ones(examples, bool), label, np.arange(examples).astype(str))


def liblinear(features: NDArray[np.float32], positive: NDArray[np.bool_], C: float) -> LogisticRegression:
    """scikit-learn's L1 logistic regression with its default tolerance, 1e-4, and the public code's max_iter, 1000."""
    model = LogisticRegression(l1_ratio=1.0, C=C, solver="liblinear", random_state=0, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, positive)
    return model


def objective(model: LogisticRegression, features: NDArray[np.float32], positive: NDArray[np.bool_], C: float) -> float:
    """The stated objective of liblinear's weights, with the best intercept for them: liblinear penalises its own."""
    theta = model.coef_[0]
    on = np.flatnonzero(theta)
    margin = features[:, on].astype(np.float64) @ theta[on]
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-np.clip(margin + middle, -700, 700)))).mean()
        low, high = (middle, high) if mean < positive.mean() else (low, middle)
    signed = np.where(positive, 1.0, -1.0) * (margin + low)
    return C * float(np.logaddexp(0.0, -signed).sum()) + float(np.abs(theta).sum())


def memory(field: str) -> int:
    """Resident size of this process, in bytes: `VmRSS` now, `VmHWM` the largest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError("needs Linux")


def in_a_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """The object that `script --child ...` prints."""
    done = subprocess.run(
        [sys.executable, script, "--child", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)
