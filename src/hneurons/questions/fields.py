"""Which column holds the question, the accepted answers, the id and the domain: guessed, shown, overridable."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hneurons.errors import QuestionsError

GUESSES: dict[str, tuple[tuple[str, ...], ...]] = {
    "question": (("question",), ("prompt",), ("query",), ("q",), ("problem",), ("body",)),
    "answers": (
        ("answers",),
        ("answer", "aliases"),
        ("golden_answers",),
        ("gold_answers",),
        ("gold_answer",),
        ("gold",),
        ("possible_answers",),
        ("exact_answer",),
        ("best_answer", "correct_answers"),
        ("correct_answer",),
        ("targets",),
        ("target",),
        ("aliases",),
    ),
    "id": (("id",), ("qid",), ("question_id",), ("uid",), ("_id",)),
    "domain": (("domain",), ("category",), ("topic",), ("subject",), ("prop",), ("relation",)),
}
"""For each role the column names tried, in this order; names of one group are read together. Case, blanks and hyphens
don't count: `Best Answer` is `best_answer`."""

_PARTS = ("value", "text", "aliases", "normalized_aliases")
"""Where an object holds answers: TriviaQA's `answer` and SQuAD's `answers`."""
_DEPTH = 3
"""Lists may be nested this deep (BioASQ's synonyms take 2)."""


@dataclass(frozen=True)
class Fields:
    """The columns of each role, and a note of those that rows were read from."""

    columns: tuple[str, ...]
    """Every column of the table."""
    groups: dict[str, tuple[tuple[str, ...], ...]]
    """For each role the groups of columns; a row is read from the first group it has a column of."""
    used: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])

    @property
    def mapping(self) -> dict[str, str]:
        """Role -> columns read so far, joined by commas: what `fields=` takes."""
        return {role: ",".join(self.used[role]) for role in GUESSES if role in self.used}

    @property
    def hint(self) -> str:
        """The remedy that names the columns there are."""
        return f"{_list(self.columns)} Say which to use, e.g. fields={{'question': 'q', 'answers': 'a,b'}}."

    @property
    def candidates(self) -> set[str]:
        """The columns that some role may be read from."""
        names = (name for groups in self.groups.values() for group in groups for name in group)
        return {column for name in names if (column := _top(name, self.columns)) is not None}

    def values(self, role: str, row: Mapping[str, Any]) -> list[Any]:
        """What the row holds for the role, a value a column; empty if it has none of the columns."""
        for group in self.groups[role]:
            present = [name for name in group if _top(name, row) is not None]
            if present:
                self.used.setdefault(role, {}).update(dict.fromkeys(present))
                return [_value(row, name) for name in present]
        return []


def choose_fields(
    columns: Sequence[str], fields: Mapping[str, str] | None = None, hints: Mapping[str, str] | None = None
) -> Fields:
    """The columns to read, from `fields` where it names the role, then from `hints`, then guessed (`GUESSES`).

    Args:
        columns: all columns of the table.
        fields: role -> column, several joined by commas, or `column.key` for an entry of an object in the column;
            an empty text leaves the role out.
        hints: the same; those whose columns are missing are passed over.

    Raises:
        QuestionsError: an unknown role, or a column that isn't there; names those that are.
    """
    fields = fields or {}
    unknown = [role for role in fields if role not in GUESSES]
    if unknown:
        raise QuestionsError(f"There is no field {unknown[0]!r}.", f"Fields are: {', '.join(GUESSES)}.")
    if "question" in fields and not fields["question"].strip():
        raise QuestionsError("The field 'question' can't be left out.", _list(columns))
    names = {_plain_name(column): column for column in reversed(columns)}
    groups: dict[str, tuple[tuple[str, ...], ...]] = {}
    for role, guesses in GUESSES.items():
        if role in fields:
            groups[role] = _given(role, fields[role], columns, names)
        elif hints and role in hints and _top(hints[role], columns) is not None:
            groups[role] = ((hints[role],),)
        else:
            found = (tuple(names[guess] for guess in group if guess in names) for group in guesses)
            groups[role] = tuple(group for group in found if group)
    return Fields(tuple(columns), groups)


def _given(role: str, text: str, columns: Sequence[str], names: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    if not text.strip():
        return ()
    wanted = [text] if text in columns else [name.strip() for name in text.split(",")]
    group: list[str] = []
    for name in wanted:
        known = name if _top(name, columns) is not None else names.get(_plain_name(name))
        if known is None:
            raise QuestionsError(f"There is no column {name!r} to take the {role} from.", _list(columns))
        group.append(known)
    return (tuple(group),)


def _list(columns: Sequence[str]) -> str:
    shown = ", ".join(columns)
    if len(shown) > 400:
        shown = shown[:400] + "..."
    return f"Its columns are: {shown}." if columns else "It has no columns."


def _plain_name(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _top(name: str, columns: Iterable[str]) -> str | None:
    """The column that holds `name`: itself, or what stands before its first dot."""
    head = name.partition(".")[0]
    return name if name in columns else head if head != name and head in columns else None


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name in row:
        return row[name]
    head, _, path = name.partition(".")
    value: Any = row[head]
    for key in path.split("."):
        if isinstance(value, str):
            value = _object(value)
        value = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
    return value


def _object(text: str) -> Any:
    """The object that a text spells in JSON or, like SimpleQA's metadata, as a Python literal; else None."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN or a blank text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (
        isinstance(value, str) and not value.strip()
    )  # fmt: skip


def answer_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """The accepted answers in the cells, stripped, without blanks and repetitions, in their order.

    A cell is a text, a number, a list (of lists) of them, a list spelt as JSON in a text, an array, or an object with
    `value`, `text`, `aliases` or `normalized_aliases`.

    Raises:
        ValueError: it holds something else; says what.
    """
    found: dict[str, None] = {}
    for value in values:
        if not is_missing(value):
            found.update(dict.fromkeys(_texts(_whole(value), 0)))
    return tuple(found)


def _whole(value: Any) -> Any:
    """The cell as a list, if that is what it spells or says."""
    if isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]":
        try:
            listed = json.loads(value)
        except (ValueError, RecursionError) as error:
            # Python's and numpy's spellings of a list: taken for a text, they would be one answer that nobody gives.
            if re.search(r"""['"]""", value):
                raise ValueError("a list of answers that is not JSON") from error
            return value
        # "[0, 1]" may well be the answer itself.
        return listed if _all_texts(listed) else value
    if isinstance(value, dict):
        parts = cast("dict[str, Any]", value)
        if not any(part in parts for part in _PARTS):
            raise ValueError("no answers in a known form")
        return [parts[part] for part in _PARTS if not is_missing(parts.get(part))]
    return value


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) or _all_texts(one) for one in cast("list[Any]", value))


def _texts(value: Any, depth: int) -> list[str]:
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        value = value.tolist()
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, list | tuple) and depth < _DEPTH:
        return [text for one in cast("Sequence[Any]", value) for text in _texts(one, depth + 1)]
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return [str(value)]
    raise ValueError("an answer that is no text")
