"""Quality must not move: AUROC and H-Neurons of a small real study, worked out plainly and by the package's fast ways.

    python tests/real/test_quality.py     writes what the package finds into quality.json, beside this file

200 right and wrong answers to starter questions are teacher forced, so nothing is drawn and nothing depends on random
numbers. Plainly: one passage a forward pass, every activation kept, contributions by the formula in float64, the probe
by liblinear. The package: prompts' common beginning once, batches, pooling on the fly, features stored in float16, its
own solver. quality.json fixes what the package found, so that a change which moves both ways alike shows too.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import hneurons
from hneurons.answers.judge import AliasJudge
from hneurons.models.load import StudyModel
from hneurons.neurons.cett import Passage, PooledExtractor, batches
from hneurons.neurons.features import FeatureStore
from hneurons.neurons.probe import Fit, l1_path
from hneurons.types import Question, Region, Verdict

pytestmark = pytest.mark.real
FIXED = Path(__file__).with_name("quality.json")
EXAMPLES, C = 200, 5.0
TOLERANCE = 0.01
"""Of a weight, as a share of the largest: rounding to float16 and what is left of liblinear's penalty on its intercept
move them by less. A neuron whose weight is below that may be an H-Neuron one way and not the other."""
FORMS = (("The answer is", " {}", "."), ("", "{}", ""))
"""What stands before the answer, how the answer is written, and what stands after it."""
REGIONS = (Region.ANSWER, Region.OTHER)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Study:
    """Answers, every second one wrong, and what was measured of their tokens: (examples, answer and other, neurons)."""

    plain: Floats
    fast: NDArray[np.float32]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(examples,)"""
        return np.arange(len(self.plain)) % 2 == 1

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Two of five blocks of four, which have both labels in both forms; the others are scored."""
        return np.arange(len(self.plain)) // 4 % 5 < 2

    def design(self, features: Floats | NDArray[np.float32]) -> tuple[Floats, NDArray[np.bool_]]:
        """Rows and labels of the probe, 3-vs-1."""
        answer, other = features[self.trained, 0], features[self.trained, 1]
        return np.concatenate([answer, other]), np.concatenate([self.wrong[self.trained], np.zeros(len(other), bool)])

    def auroc(self, features: Floats | NDArray[np.float32], theta: Floats) -> float:
        """Of the answers that the probe wasn't fitted on."""
        return float(roc_auc_score(self.wrong[~self.trained], features[~self.trained, 0] @ theta))

    def probe(self) -> tuple[Fit, Floats]:
        """The package's, on its own features: the fit, and all weights (neurons,)."""
        (fit,) = l1_path(*self.design(self.fast), [C])
        theta = np.zeros(self.fast.shape[2])
        theta[fit.support] = fit.weights
        return fit, theta


def passages(model: StudyModel) -> list[Passage]:
    """Questions with their answer or, every second one, that of another question of the same domain."""
    questions, judge = hneurons.load_questions("starter", seed=0).questions, AliasJudge()
    made: list[Passage] = []
    for place, question in enumerate(questions[:EXAMPLES]):
        answer = question.answers[0]
        if place % 2:
            others = (q.answers[0] for q in questions[place + 1 :] if q.domain == question.domain)
            answer = next(text for text in others if judge.judge(question, text) is Verdict.WRONG)
        made.append(passage(model, question, answer, FORMS[place // 2 % 2]))
    return made


def passage(model: StudyModel, question: Question, answer: str, form: tuple[str, str, str]) -> Passage:
    before, said, after = (
        model.tokenizer.encode(part.format(answer), add_special_tokens=False) if part else [] for part in form
    )
    prompt = model.prompt_ids(question.question)
    ids = (*prompt, *before, *said, *after, model.end_ids[0])
    return Passage(question.id, ids, len(prompt), (len(before), len(before) + len(said)))


@torch.no_grad()
def plainly(model: StudyModel, passages: list[Passage]) -> Floats:
    """One passage a forward pass, every activation kept, the formula in float64."""
    downs = [layer.mlp.down_proj for layer in model.model.model.layers]
    lengths = torch.stack([down.weight.double().norm(dim=0) for down in downs])
    rows: list[Floats] = []
    for text in passages:
        kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        hooks = [down.register_forward_hook(lambda _, z, h, kept=kept: kept.append((z[0][0], h[0]))) for down in downs]
        model.model(input_ids=torch.tensor([text.ids]), logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        z, h = (torch.stack([pair[part] for pair in kept])[:, text.prompt_tokens :].double() for part in (0, 1))
        contributions = z.abs() * lengths[:, None] / h.norm(dim=-1, keepdim=True)  # (layers, tokens, width)
        answer = torch.zeros(contributions.shape[1], dtype=torch.bool)
        answer[slice(*text.answer)] = True
        rows.append(np.stack([contributions[:, on].mean(dim=1).flatten() for on in (answer, ~answer)]))
    return np.stack(rows)


def quickly(model: StudyModel, passages: list[Passage], folder: Path) -> NDArray[np.float32]:
    """As a run does it: batches, the prompts' common beginning once, stored and read again."""
    store = FeatureStore(folder, len(passages), model.neurons, REGIONS)
    plan = batches([len(text.ids) for text in passages], 1024)
    groups = [[passages[row] for row in rows] for rows in plan]
    for rows, found in zip(plan, PooledExtractor(model, REGIONS).many(groups), strict=True):
        store.write(rows, found)
    return np.stack([store.read(region, range(len(passages))) for region in REGIONS], axis=1)


def write(found: Study) -> None:
    """quality.json, from what the package finds."""
    _, theta = found.probe()
    fixed = {
        "examples": len(found.wrong),
        "C": C,
        "auroc": round(found.auroc(found.fast, theta), 6),
        "h_neurons": np.flatnonzero(theta > 0).tolist(),
    }
    FIXED.write_text(json.dumps(fixed) + "\n")
    print(f"AUROC {fixed['auroc']}, {len(fixed['h_neurons'])} H-Neurons: {FIXED}")


@pytest.fixture(scope="module")
def study(model: StudyModel, tmp_path_factory: pytest.TempPathFactory) -> Study:
    texts = passages(model)
    return Study(plainly(model, texts), quickly(model, texts, tmp_path_factory.mktemp("quality") / "features"))


def test_both_ways_measure_the_same_contributions(study: Study):
    # float16 keeps 11 bits; the rest is float32 in batches of another shape.
    np.testing.assert_allclose(study.fast, study.plain, rtol=2**-11 + 1e-4, atol=1e-6)


def test_the_probe_is_optimal_among_all_neurons(study: Study):
    fit, theta = study.probe()
    rows, positive = study.design(study.fast)
    rows = rows.astype(np.float64)
    error = 1 / (1 + np.exp(-(rows @ theta + fit.intercept))) - positive
    slope = C * (error @ rows)
    assert np.abs(slope).max() <= 1 + 2e-6
    np.testing.assert_allclose(slope[theta != 0], -np.sign(theta[theta != 0]), atol=2e-6)
    assert abs(error.mean()) < 2e-6


def test_both_ways_find_the_same_neurons(study: Study):
    # liblinear penalises the intercept, divided by its scale: at 100 that hardly counts.
    plain = LogisticRegression(
        l1_ratio=1.0, C=C, solver="liblinear", tol=1e-6, max_iter=5000, intercept_scaling=100, random_state=0
    )
    plain.fit(*study.design(study.plain))
    wanted, (_, theta) = plain.coef_[0], study.probe()
    near = TOLERANCE * np.abs(wanted).max()
    assert (wanted > near).sum() >= 5, "a set to compare"
    np.testing.assert_allclose(theta, wanted, atol=near)
    differ = (theta > 0) != (wanted > 0)
    assert (np.abs(wanted[differ]) < near).all()
    assert study.auroc(study.fast, theta) == pytest.approx(study.auroc(study.plain, wanted), abs=1e-3)


def test_they_are_those_of_before(study: Study):
    assert FIXED.exists(), "write it: python tests/real/test_quality.py"
    fixed, (_, theta) = json.loads(FIXED.read_text()), study.probe()
    assert (fixed["examples"], fixed["C"]) == (len(study.wrong), C), "written for another study: write it anew"
    # Another machine rounds otherwise: a neuron at the edge may come or go, and answers of like score change places.
    assert study.auroc(study.fast, theta) == pytest.approx(fixed["auroc"], abs=0.01)
    now, before = set(np.flatnonzero(theta > 0).tolist()), set(fixed["h_neurons"])
    assert len(now & before) / len(now | before) >= 0.9


if __name__ == "__main__":
    demo = hneurons.load_model("smollm2-135m", device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        measured = quickly(demo, passages(demo), Path(scratch) / "features")
    write(Study(measured, measured))
