"""The second half of the paper's rule for C: how many questions the model still gets right with neurons silenced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hneurons.answers.consistency import right_verdict
from hneurons.answers.engine import Engine, Request
from hneurons.neurons.probe import Fit
from hneurons.neurons.scaling import scale
from hneurons.runfolder import hash_json
from hneurons.studies.collect import Collection, sampling
from hneurons.types import Question


class Suppression:
    """Accuracy of the model on a run's own questions while neurons are silenced (alpha = 0), greedily decoded.

    Questions of test examples are left out, so that the choice of C never sees them. Every set of neurons that was
    measured is in suppressed.jsonl: a killed run measures none twice.
    """

    def __init__(self, data: Collection, engine: Callable[[], Engine] | None = None) -> None:
        self.data = data
        self.make_engine = engine or self._engine
        test = {example.question_id for example in data.kept if example.split == "test"}
        asked = [question for question in data.questions.questions if question.id not in test]
        self.questions: list[Question] = asked[: data.settings.suppression_questions]

    def _engine(self) -> Engine:
        from hneurons.answers.hf import HFEngine

        return HFEngine(self.data.weights)

    def accuracies(self, fits: Sequence[Fit]) -> list[float]:
        """Share of right answers with the H-Neurons of each fit silenced."""
        layout = self.data.model.layout
        journal = self.data.folder.journal("suppressed.jsonl")
        known = {str(row["neurons"]): float(row["accuracy"]) for row in journal.read()}
        found: list[float] = []
        with self.data.progress.bar("Silencing each C's H-Neurons", len(fits)) as tick:
            for fit in fits:
                columns = np.sort(fit.support[fit.weights > 0])
                key = hash_json(columns.tolist())
                if key not in known:
                    with scale(self.data.weights, layout.ids(columns), 0.0):
                        known[key] = self._accuracy()
                    journal.append([{"neurons": key, "count": len(columns), "C": fit.C, "accuracy": known[key]}])
                found.append(known[key])
                tick(1)
        return found

    def _accuracy(self) -> float:
        # A new engine for each set: prefilled prompts belong to the neurons they were made with.
        greedy = sampling(self.data.settings.model_copy(update={"temperature": 0.0}))
        responses = self.make_engine().sample([Request(question, 0) for question in self.questions], greedy)
        judge = self.data.tools.judge
        right = sum(
            judge.judge(question, response.text) is right_verdict(question)
            for question, response in zip(self.questions, responses, strict=True)
        )
        return right / len(self.questions)
