"""Questions from the package, from a local file, or from a set known by name."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hneurons.errors import QuestionsError
from hneurons.questions.fields import Fields, answer_texts, choose_fields, is_missing
from hneurons.questions.files import SUFFIXES, Table, read_table
from hneurons.questions.hub import KNOWN, KnownSet, download, find_local
from hneurons.runfolder import hash_json
from hneurons.types import Question, to_json

REMEDY = 'Each row needs "question" and "answers" (a text or a list of texts); "id" and "domain" are optional.'
REPEATED = "repeated question"


@dataclass(frozen=True)
class QuestionSet:
    """Questions with the name of their source and the hash of their content."""

    name: str
    questions: tuple[Question, ...]
    origin: str = ""
    """`starter`, `file`, or `hub:REPO@COMMIT`."""
    mapping: dict[str, str] = field(default_factory=dict[str, str])
    """Role -> the columns it was read from, joined by commas: as `load_questions` takes it for `fields`."""
    dropped: dict[str, int] = field(default_factory=dict[str, int])
    """Why rows were left out -> how many, of the whole source, whatever the limit."""

    @property
    def sha256(self) -> str:
        """Hash of ids, texts and answers, in order."""
        return hash_json([to_json(question) for question in self.questions])


def load_questions(
    source: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
    allow_empty: bool = False,
) -> QuestionSet:
    """The questions of `source`, in an order shuffled by `seed`, so that `limit` takes a sample over all domains.

    Args:
        source: `starter`; `nonexist`, questions about invented things; the path of a .jsonl, .json, .csv, .tsv or
            .parquet file; or the name of a known set (`hneurons.questions.hub.KNOWN`), taken from the data folder or
            else from the hub.
        limit: how many questions at most.
        seed: of the shuffling.
        fields: `question`, `answers`, `id` or `domain` -> the column that holds it, where the guess is wrong. Several
            columns are joined by commas, `column.key` reaches into an object, an empty text leaves the field out.
        allow_empty: keep questions without answers, whose right reply is to abstain, instead of refusing the file.

    Raises:
        QuestionsError: the source is missing, empty or malformed (says which line), or can't be fetched (says where
            to put it).
        MissingExtraError: a Parquet file, and pyarrow isn't installed.
    """
    if str(source) == "nonexist":
        from hneurons.questions.nonexist import NONEXIST, nonexist  # it needs QuestionSet

        return nonexist(limit or NONEXIST, seed)
    name, origin, path, known = _find(source)
    # A file of the hub lies deep in a cache: its name on the hub says more.
    label = f"{known.repo}/{known.file}" if known and origin != "file" else str(path)
    hints = known.hints if known else None

    def wanted(columns: tuple[str, ...]) -> set[str]:
        kept = {known.keep[0]} if known and known.keep else set[str]()
        return choose_fields(columns, fields, hints).candidates | kept

    table = read_table(path, wanted)
    if not table.rows:
        raise QuestionsError(f"{label} holds no questions.", REMEDY)
    chosen = choose_fields(table.columns, fields, hints)
    dropped: dict[str, int] = {}
    if known and known.keep:
        table = _keep(table, *known.keep, dropped)
    questions = _questions(label, table, chosen, allow_empty, known is not None, dropped)
    if not questions:
        raise QuestionsError(f"{label} holds no questions of {name}.", REMEDY)
    random.Random(seed).shuffle(questions)
    return QuestionSet(name, tuple(questions[:limit]), origin, chosen.mapping, dropped)


def _find(source: str | Path) -> tuple[str, str, Path, KnownSet | None]:
    """Name, origin and file of the source, and what is known of it."""
    if str(source) == "starter":
        return "starter", "starter", Path(__file__).with_name("starter.jsonl"), None
    path = Path(source)
    if is_file(path):
        return path.stem, "file", path, None
    known = KNOWN.get(str(source))
    if known is None:
        raise QuestionsError(
            f"There is no question set or file {str(source)[:200]!r}.",
            f"Give `starter`, `nonexist`, {', '.join(f'`{name}`' for name in KNOWN)}, "
            f"or the path of a {', '.join(SUFFIXES)} file.",
        )
    local = find_local(known)
    if local is not None:
        return known.name, "file", local, known
    path, commit = download(known)
    return known.name, f"hub:{known.repo}@{commit}", path, known


def is_file(path: Path) -> bool:
    """Whether there is such a file; a path that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        return False


def _keep(table: Table, column: str, value: str, dropped: dict[str, int]) -> Table:
    if column not in table.columns:
        return table
    rows = tuple((number, row) for number, row in table.rows if not isinstance(row, dict) or row.get(column) == value)
    if len(rows) < len(table.rows):
        dropped[f"{column} is not {value}"] = len(table.rows) - len(rows)
    return Table(table.columns, rows)


def _questions(
    label: str, table: Table, chosen: Fields, allow_empty: bool, published: bool, dropped: dict[str, int]
) -> list[Question]:
    """The table's questions, each text once; `published` sets may repeat an id along with its question."""
    questions: list[Question] = []
    empty: list[int] = []
    ids: dict[str, tuple[int, str]] = {}
    texts: set[str] = set()
    for number, row in table.rows:
        where = f"{label}, row {number}"
        question = _question(where, number, row, chosen)
        text = _same(question.question)
        earlier = ids.setdefault(question.id, (number, text))
        # TriviaQA's rc files have a row for each source of evidence, so the same question under the same id.
        if earlier[0] != number and not (published and earlier[1] == text):
            raise QuestionsError(
                f"{where} has the id {question.id!r} of row {earlier[0]}.",
                "Give every question its own id, or number them with fields={'id': ''}.",
            )
        if not question.answers:
            empty.append(number)
        if text in texts:
            dropped[REPEATED] = dropped.get(REPEATED, 0) + 1
            continue
        texts.add(text)
        questions.append(question)
    if empty and not allow_empty:
        others = f" ({len(empty)} rows have none)" if len(empty) > 1 else ""
        raise QuestionsError(
            f"{label}, row {empty[0]} has no answers{others}.",
            f"{REMEDY} {chosen.hint} With allow_empty=True such questions stay: the right reply is then to abstain.",
        )
    return questions


def _question(where: str, number: int, row: Any, chosen: Fields) -> Question:
    if not isinstance(row, dict):
        raise QuestionsError(f"{where} is not an object.", REMEDY)
    cells = cast("dict[str, Any]", row)
    text = next(iter(chosen.values("question", cells)), None)
    if not isinstance(text, str) or not text.strip():
        raise QuestionsError(f"{where} has no question.", f"{REMEDY} {chosen.hint}")
    try:
        answers = answer_texts(chosen.values("answers", cells))
    except ValueError as error:
        raise QuestionsError(f"{where} has {error}.", f"{REMEDY} {chosen.hint}") from error
    try:
        # A text is the domain itself, also one such as "[math]", which as an answer would be read as a list.
        named = [[cell] if isinstance(cell, str) else cell for cell in chosen.values("domain", cells)]
        domain = ", ".join(answer_texts(named))
    except ValueError as error:
        raise QuestionsError(
            f"{where} has a domain that is no text.", "Leave it out with fields={'domain': ''}."
        ) from error
    given = next(iter(chosen.values("id", cells)), None)
    identifier = f"q{number}" if is_missing(given) else str(given)
    if any("\ud800" <= letter <= "\udfff" for part in (text, identifier, domain, *answers) for letter in part):
        raise QuestionsError(f"{where} holds half a character (a lone surrogate).", "Mend the text of that row.")
    return Question(identifier, text.strip(), answers, domain)


def _same(text: str) -> str:
    """What two spellings of one question share: case, blanks and the closing mark don't count."""
    # Not NFKC, to which "10²" is "102".
    return " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(" ?？؟.。")
