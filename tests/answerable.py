"""Questions of which a tiny random model answers about half right, so that a whole command runs on it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import tiny
from hneurons.answers.engine import Request, Sampling
from hneurons.answers.hf import HFEngine
from hneurons.models.load import load_model
from hneurons.types import Question

GREEDY = ["--temperature", "0", "--max-new-tokens", "5"]
"""Options with which it answers as it did when the questions were written."""


def write(path: Path, place: Path, ask: str = "What is the name of city {}?", count: int = 130, **options: str) -> Path:
    """A question file for the model in `place`: the accepted answer is what it says, or something else."""
    model = load_model(place, device="cpu", **options)
    asked = [Question(f"q{i}", ask.format(name), ("x",)) for i, name in enumerate(tiny.names(count))]
    said = HFEngine(model).sample([Request(question, 0) for question in asked], Sampling(0.0, max_new_tokens=5))
    rows = [
        {
            "id": question.id,
            "question": question.question,
            "answers": [response.text if zlib.crc32(question.id.encode()) % 2 else f"Nowhere {question.id}"],
        }
        for question, response in zip(asked, said, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
