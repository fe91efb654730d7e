"""Risks of responses that somebody else's server wrote: rows in, the same rows with their risks out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hneurons.answers.text import decode
from hneurons.errors import RunError, UsageError
from hneurons.live.jobs import Reading
from hneurons.live.monitor import Monitor
from hneurons.live.prompts import Prompt, as_messages
from hneurons.live.replies import answer_in, top_neurons
from hneurons.neurons.dial import checked_alpha
from hneurons.progress import NoProgress, Progress
from hneurons.questions.files import read_table
from hneurons.runfolder import Journal, Json, dumps, hash_json

ROLES: dict[str, tuple[str, ...]] = {
    "question": ("question", "messages", "prompt", "instruction", "input", "query"),
    "response": ("response", "answer", "completion", "output", "reply", "generation", "text"),
}
"""Columns that are looked for, the likeliest first."""
KEY = "hneurons"
"""Of what is added to a row."""
CHUNK = 64
"""Rows scored and written together; a kill costs at most the work on them."""


def score_file(
    monitor: Monitor,
    source: Path,
    out: Path,
    *,
    fields: dict[str, str] | None = None,
    alpha: float = 1.0,
    tokens: bool = True,
    progress: Progress | None = None,
) -> Json:
    """Write each row of `source` with its risks to `out` as JSONL; goes on where a killed call stopped.

    Args:
        monitor: whose card scores.
        source: JSONL, JSON, CSV, TSV or Parquet; a row holds what was asked (a question, or a conversation as
            `messages`) and the response.
        out: a row gets `hneurons` beside its columns: the risks, or `problem` where it can't be scored.
        fields: column of `question` and of `response`; guessed where not given.
        alpha: what the H-Neurons are multiplied by while the responses are read.
        tokens: whether to write the risk of every token too.
        progress: a bar.

    Returns:
        Counts: rows, scored, flagged, and those of this call.

    Raises:
        QuestionsError: the file can't be read.
        UsageError: no column for the question or the response.
        RunError: `out` holds other rows, or those of another card or alpha.
    """
    checked_alpha(alpha)
    if out.resolve() == source.resolve():
        raise UsageError("The scores would overwrite the responses.", "Give another file with --out.")
    table = read_table(source)
    columns = _columns(table.columns, fields or {}, source)
    rows = [_row(row, number, source) for number, row in table.rows]
    made_by = {"card": hash_json(monitor.card.model_dump())[:16], "alpha": alpha}
    journal = Journal(out)
    done = journal.read()
    _check(done, rows, made_by, out)
    progress = progress or NoProgress()
    fresh = len(rows) - len(done)
    with progress.bar("Scoring", len(rows), len(done)) as step:
        for start in range(len(done), len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            scores = _scores(monitor, part, columns, alpha, tokens)
            made = [{**row, KEY: {**made_by, **found}} for row, found in zip(part, scores, strict=True)]
            journal.append(made)
            done += made
            step(len(made))
    read = [row[KEY] for row in done if "risk" in row[KEY]]
    flagged = sum(bool(entry["flagged"]) for entry in read)
    return {"out": str(out), "rows": len(rows), "scored": len(read), "flagged": flagged, "new": fresh}


def _scores(monitor: Monitor, rows: Sequence[Json], columns: dict[str, str], alpha: float, tokens: bool) -> list[Json]:
    found: dict[int, Json] = {}
    pairs: list[tuple[int, Prompt, str]] = []
    for place, row in enumerate(rows):
        try:
            pairs.append((place, *_pair(row, columns)))
        except UsageError as error:
            found[place] = {"problem": str(error)}
    try:
        readings = monitor.score_many([(asked, said) for _, asked, said in pairs], alpha=alpha)
        for (place, _, said), reading in zip(pairs, readings, strict=True):
            found[place] = _told(monitor, said, reading, tokens)
    except UsageError as error:
        if len(rows) == 1:
            return [{"problem": str(error)}]
        # One row of these is too long, or refused by the template: only that one goes without.
        return [entry for row in rows for entry in _scores(monitor, [row], columns, alpha, tokens)]
    return [found[place] for place in range(len(rows))]


def _told(monitor: Monitor, said: str, reading: Reading | None, tokens: bool) -> Json:
    if reading is None:
        return {"problem": "The response says nothing."}
    told: Json = {
        "risk": reading.risk,
        "flagged": reading.flagged,
        "threshold": reading.threshold,
        "response_risk": reading.response_risk,
        "answer": answer_in(said, reading),
        "top": top_neurons(reading.top),
    }
    if tokens:
        ids = monitor.tokens(said)[-len(reading.scores) :]
        risks = monitor.card.risk(reading.scores).tolist()
        told["tokens"] = [
            {"text": decode(monitor.model, [token]), "risk": risk} for token, risk in zip(ids, risks, strict=True)
        ]
    return told


def _pair(row: Json, columns: dict[str, str]) -> tuple[Prompt, str]:
    asked, said = row.get(columns["question"]), row.get(columns.get("response", ""))
    if isinstance(asked, list):
        turns = list(as_messages(cast("list[dict[str, str]]", asked)))
        if said is None and turns and turns[-1].role == "assistant":
            said = turns.pop().content
        asked = turns
    if not isinstance(asked, str | list) or not isinstance(said, str):
        raise UsageError("The row lacks a question or a response.")
    return asked, said


def _columns(known: Sequence[str], fields: dict[str, str], source: Path) -> dict[str, str]:
    if wrong := sorted(set(fields) - set(ROLES)):
        raise UsageError(f"There is no role {wrong[0]!r}.", "Roles: question, response.")
    found = dict(fields)
    for role, names in ROLES.items():
        if role not in found and (name := next((name for name in names if name in known), None)):
            found[role] = name
        if found.get(role, role) not in known and not (role == "response" and found.get("question") == "messages"):
            raise UsageError(
                f"{source} has no column {found.get(role, role)!r}; it has {', '.join(known) or 'none'}.",
                f"Name it with --field {role}=COLUMN.",
            )
    if found["question"] == found.get("response"):
        raise UsageError("Question and response are the same column.", "Name them with --field.")
    return found


def _row(row: Any, number: int, source: Path) -> Json:
    if not isinstance(row, dict):
        raise UsageError(f"{source}, row {number} is no object.", "Give one object a line.")
    if KEY in row:
        raise UsageError(f"{source}, row {number} has a column {KEY!r} already.", "Rename it.")
    try:
        plain = json.loads(dumps(row))  # as it will be read again
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source}, row {number} holds what JSON can't ({error}).", "Write it as text.") from error
    return cast("Json", plain)


def _check(done: Sequence[Json], rows: Sequence[Json], made_by: Json, out: Path) -> None:
    """Refuse to go on in a file that another call began."""
    if len(done) > len(rows):
        raise RunError(f"{out} has more rows than the responses.", "Give another file with --out.")
    for number, (made, row) in enumerate(zip(done, rows, strict=False), 1):
        added: Any = made.get(KEY)
        if not isinstance(added, dict) or {key: value for key, value in made.items() if key != KEY} != row:
            raise RunError(f"{out}, line {number} holds another row than the responses.", "Give another --out.")
        if {key: added.get(key) for key in made_by} != made_by:
            raise RunError(f"{out} holds the scores of another card or alpha.", "Give another file with --out.")
