"""A run over a cluster, in a process that can be killed: python driver.py MODEL FOLDER ADDRESS."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import tiny
from hneurons.models.load import load_model
from hneurons.report import page
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Tools
from hneurons.studies.identify import identify
from hneurons.types import Question, Verdict

SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=5, chunk=8, max_share=0.2,
    temperature=0.8, max_new_tokens=6, batch_tokens=600, refits=4,
)  # fmt: skip


class QuestionJudge:
    """Half of the questions are always answered right, half always wrong; at its `at`-th verdict something happens."""

    name = "by question"

    def __init__(self, at: int = -1, happens: Any = None) -> None:
        self.left, self.happens = at, happens

    def judge(self, question: Question, text: str) -> Verdict:
        self.left -= 1
        if self.left == 0:
            self.happens()
        return Verdict.CORRECT if zlib.crc32(question.id.encode()) % 2 else Verdict.WRONG


def main(place: str, folder: str, address: str) -> None:
    from hneurons.cluster.opening import open_cluster

    page.draw = lambda *_: {}
    model = load_model(place, device="cpu")
    with open_cluster(address, model, say=lambda line: print(line, file=sys.stderr)) as cluster:
        tools = cluster.tools(Tools(judge=QuestionJudge(), finder=tiny.WholeFinder()))
        identify(model, Path(folder) / "cities.jsonl", Path(folder) / "out", SETTINGS, tools=tools)


if __name__ == "__main__":
    main(*sys.argv[1:])
