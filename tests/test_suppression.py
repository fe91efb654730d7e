"""The paper's joint rule for C: held-out accuracy plus accuracy with that C's H-Neurons silenced."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.neurons.choose import JOINT, TrainingData, choose_probe
from hneurons.neurons.probe import Fit
from hneurons.runfolder import RunFolder
from hneurons.settings import PRESETS, IdentifySettings, identify_settings
from hneurons.studies.collect import Collection, Tools
from hneurons.studies.suppression import Suppression
from hneurons.types import Response

pytestmark = pytest.mark.usefixtures("no_figures")
SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=4, chunk=16, max_share=0.2,
    suppression_questions=12, max_new_tokens=4, refits=4,
)  # fmt: skip


class Looking(tiny.ScriptedEngine):
    """Answers right as long as a probe neuron is not silenced; and remembers what it was asked."""

    def __init__(self, model: Any, seen: list[tuple[Sampling, list[str], bool]]) -> None:
        super().__init__(model, lambda question, sample: "")
        self.seen = seen
        with torch.no_grad():
            self.plain = LOGITS(model)

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        changed = not torch.equal(LOGITS(self.model), PLAIN[0])
        self.seen.append((sampling, [request.question.id for request in requests], changed))
        self.answer = lambda q, sample: "Nothing." if changed and int(q.id[1:]) % 3 == 0 else q.answers[0]
        return super().sample(requests, sampling)


PLAIN: list[torch.Tensor] = []


def LOGITS(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.model(input_ids=torch.arange(5, 25)[None]).logits


def fit(columns: list[int], weights: list[float]) -> Fit:
    return Fit(1.0, np.array(columns, dtype=np.intp), np.array(weights), 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.made_run(tmp_path_factory.mktemp("run"), SETTINGS).path


def collection(folder: Path) -> Collection:
    from hneurons.progress import default_progress
    from hneurons.questions.sources import load_questions

    model = tiny.study()
    opened = RunFolder(folder)
    opened.load()
    questions = load_questions(folder.parent / "cities.jsonl")
    return Collection(opened, model, questions, SETTINGS, Tools(), default_progress())


def test_accuracy_is_measured_with_the_neurons_silenced_and_each_set_once(made: Path):
    data, seen = collection(made), []
    PLAIN[:] = [LOGITS(data.model)]
    test = {
        row["question_id"]
        for row in map(json.loads, (made / "examples.jsonl").read_text().splitlines())
        if row["split"] == "test"
    }
    fits = [fit([], []), fit([3, 50], [1.0, 2.0]), fit([3, 50, 60], [2.0, 1.0, -1.0]), fit([60], [-1.0])]
    suppression = Suppression(data, lambda: Looking(data.model, seen))
    found = suppression.accuracies(fits)
    third = sum(int(q.id[1:]) % 3 == 0 for q in suppression.questions) / 12
    # The second and third silence the same H-Neurons; negative weights are none.
    assert found == pytest.approx([1.0, 1 - third, 1 - third, 1.0])
    assert 0 < third < 1
    assert [changed for _, _, changed in seen] == [False, True]
    assert all(sampling.temperature == 0 for sampling, _, _ in seen)
    for _, ids, _ in seen:
        assert len(ids) == 12
        assert test.isdisjoint(ids)
    assert torch.equal(LOGITS(data.model), PLAIN[0])
    again = Suppression(collection(made), lambda: pytest.fail("measured twice"))
    assert again.accuracies(fits) == found


def world(seed: int = 0, n: int = 120, neurons: int = 60) -> TrainingData:
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2 == 0
    answer = rng.random((n, neurons)).astype(np.float32)
    answer[label, :5] += 0.4
    other = rng.random((n, neurons)).astype(np.float32)
    return TrainingData(answer, other, np.ones(n, bool), label, np.array([f"g{i}" for i in range(n)]))


def test_the_joint_rule_takes_the_largest_sum():
    settings = IdentifySettings(folds=3, path_points=6, max_share=1.0)
    train, validation = world(), world(1)
    alone = choose_probe(train, validation, settings)
    wanted = 1
    loss = [1.0 if i == wanted else 0.2 for i in range(len(alone.points))]
    joint = choose_probe(train, validation, settings, suppressed=lambda fits: loss)
    assert joint.chosen == wanted != alone.chosen
    assert joint.rule == JOINT
    assert [point["suppressed_accuracy"] for point in joint.points] == loss
    assert all(point["suppressed_accuracy"] is None for point in alone.points)
    flat = choose_probe(train, validation, settings, suppressed=lambda fits: [0.5] * len(fits))
    assert flat.chosen == int(np.argmax([point["cv_accuracy"] for point in flat.points]))


def test_identify_with_the_paper_s_preset(tmp_path: Path):
    run = tiny.made_run(tmp_path, SETTINGS.model_copy(update=PRESETS["paper"]))
    path = json.loads((run.path / "path.json").read_text())
    assert path["rule"] == JOINT
    # The random model itself answers nothing right, whatever is silenced.
    assert [point["suppressed_accuracy"] for point in path["points"]] == [0.0] * len(path["points"])
    assert path["chosen"] == int(np.argmax([point["cv_accuracy"] for point in path["points"]]))


def test_presets():
    paper, reference = identify_settings("paper"), identify_settings("reference")
    assert (paper.samples, paper.temperature, paper.top_k, paper.top_p, paper.max_new_tokens) == (10, 1.0, 50, 0.9, 50)
    assert (paper.choose, paper.labelling, paper.per_class) == ("joint", "3-vs-1", 1000)
    assert (reference.other, reference.solver, reference.C) == ("all", "liblinear", 1.0)
    assert identify_settings("reference", C=0.5).C == 0.5
