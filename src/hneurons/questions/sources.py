"""Questions from the package, or from a local JSONL, JSON or CSV file."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

from hneurons.errors import QuestionsError
from hneurons.runfolder import hash_json
from hneurons.types import Question, to_json

REMEDY = 'Each row needs "question" and "answers" (a text or a list of texts); "id" and "domain" are optional.'


@dataclass(frozen=True)
class QuestionSet:
    """Questions with the name of their source and the hash of their content."""

    name: str
    questions: tuple[Question, ...]

    @property
    def sha256(self) -> str:
        """Hash of ids, texts and answers, in order."""
        return hash_json([to_json(question) for question in self.questions])


def load_questions(source: str | Path, *, limit: int | None = None, seed: int = 0) -> QuestionSet:
    """The questions of `source`: `starter` or the path of a .jsonl, .json or .csv file.

    They come in an order shuffled by `seed`, so that `limit` takes a sample over all domains.

    Raises:
        QuestionsError: the source is missing, empty or malformed; says which line.
    """
    if str(source) == "starter":
        name, rows = "starter", list(_read_starter())
    else:
        path = Path(source)
        if not _is_file(path):
            raise QuestionsError(
                f"There is no question set or file {str(source)[:200]!r}.",
                "Give `starter` or the path of a .jsonl, .json or .csv file.",
            )
        name, rows = path.stem, list(_read_file(path))
    if not rows:
        raise QuestionsError(f"{source} holds no questions.", REMEDY)
    questions = _check(str(source), rows)
    random.Random(seed).shuffle(questions)
    if limit is not None:
        questions = questions[:limit]
    return QuestionSet(name, tuple(questions))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _read_starter() -> Iterator[tuple[int, Any]]:
    text = resources.files("hneurons.questions").joinpath("starter.jsonl").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        yield number, json.loads(line)


def _read_file(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionsError(f"Can't read {path} ({error}).", "Give a readable UTF-8 file.") from error
    if path.suffix.lower() == ".csv":
        try:
            yield from enumerate(csv.DictReader(io.StringIO(text, newline="")), 2)
        except csv.Error as error:
            raise QuestionsError(f"{path} is not usable as CSV ({error}).", "Mend it, or use .jsonl.") from error
        return
    if path.suffix.lower() == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise QuestionsError(f"{path} is not JSON ({error}).", "Give a JSON list or use .jsonl.") from error
        if not isinstance(rows, list):
            raise QuestionsError(f"{path} is not a JSON list.", REMEDY)
        yield from enumerate(cast("list[Any]", rows), 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise QuestionsError(
                    f"{path}, line {number} is not JSON ({error}).", "Mend or delete that line."
                ) from error


def _check(source: str, rows: list[tuple[int, Any]]) -> list[Question]:
    questions: list[Question] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        where = f"{source}, row {number}"
        if not isinstance(row, dict):
            raise QuestionsError(f"{where} is not an object.", REMEDY)
        fields = cast("dict[str, Any]", row)
        text = fields.get("question")
        if not isinstance(text, str) or not text.strip():
            raise QuestionsError(f"{where} has no question.", REMEDY)
        answers = fields.get("answers", fields.get("answer"))
        if isinstance(answers, str):
            answers = [answers]
        listed = cast("list[Any]", answers) if isinstance(answers, list) else []
        texts = [str(a) for a in listed if isinstance(a, str | int | float) and not isinstance(a, bool)]
        if len(texts) < len(listed):
            raise QuestionsError(f"{where} has an answer that is no text.", REMEDY)
        accepted = tuple(answer.strip() for answer in texts if answer.strip())
        if not accepted:
            raise QuestionsError(f"{where} has no answers.", REMEDY)
        given = fields.get("id")
        identifier = f"q{number}" if given is None or given == "" else str(given)
        if identifier in seen:
            raise QuestionsError(
                f"{where} has the id {identifier!r} of row {seen[identifier]}.", "Give every question its own id."
            )
        if any("\ud800" <= letter <= "\udfff" for part in (text, identifier, *accepted) for letter in part):
            raise QuestionsError(f"{where} holds half a character (a lone surrogate).", "Mend the text of that row.")
        seen[identifier] = number
        questions.append(Question(identifier, text.strip(), accepted, str(fields.get("domain") or "")))
    return questions
