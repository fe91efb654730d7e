"""Real answers, and how well a probe on their features predicts: for benchmarks that ask what AUROC something costs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from passages import passages
from real_features import real_features

from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage
from hneurons.neurons.choose import auroc
from hneurons.neurons.probe import l1_path
from hneurons.studies.records import example_from_json, passage_of

GRID = [float(c) for c in np.geomspace(1, 1000, 8)]


def answers(model: StudyModel, quick: bool) -> tuple[list[Passage], NDArray[np.bool_], Sequence[str]]:
    """Passages, which of them are wrong, and their groups: 800 real answers; in a quick test a few, labelled anyhow."""
    if quick:
        texts = passages(model, 16)
        return texts, np.arange(16) % 2 == 0, [text.name for text in texts]
    known = real_features(800)
    texts = [passage_of(model, example_from_json({**line, "extra": {}})) for line in known.lines]
    return texts, known.hallucinated, known.groups.tolist()


def half(groups: Sequence[str]) -> NDArray[np.bool_]:
    """Half to fit and half to score, by group, so that no answer is on both sides."""
    return np.array([hashlib.sha256(group.encode()).digest()[0] % 2 for group in groups], dtype=bool)


def aurocs(features: NDArray[np.float32], wrong: NDArray[np.bool_], fitted: NDArray[np.bool_]) -> list[float]:
    """Held-out AUROC at each C of the grid."""
    fits = l1_path(features[fitted], wrong[fitted], GRID)
    return [round(auroc(wrong[~fitted], fit.score(features[~fitted])), 6) for fit in fits]
