"""Where a benchmark's items come from: the package, a user's file or the hub; and what most benchmarks share."""

from __future__ import annotations

import ast
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from hneurons.errors import QuestionsError
from hneurons.questions.fields import answer_texts, is_missing
from hneurons.questions.files import SUFFIXES, Table, read_table
from hneurons.questions.hub import KNOWN, KnownSet, download, find_local
from hneurons.questions.sources import is_file
from hneurons.runfolder import Json, hash_json
from hneurons.studies.benchmarks.base import Case, Item, ItemSet, Outcome
from hneurons.studies.benchmarks.choices import LETTERS

DATA = Path(__file__).with_name("data")
"""The built-in sets."""
HUB = "hub"
REPEATED = "repeated question"
NO_QUESTION = "no question"
Row = dict[str, Any]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Found:
    """A file of items."""

    path: Path
    source: str
    """As `ItemSet.source` has it."""
    label: str
    """As an error names it."""


def find(source: str | Path | None, builtin: str, published: KnownSet) -> Found:
    """The file behind `source`: built in when None, the benchmark's published set for `hub`, a known set, or a path.

    A published set is taken from the data folder (`$HNEURONS_DATA`) if it is there, else fetched.

    Raises:
        QuestionsError: there is no such file or set, or it can't be fetched.
    """
    if source is None:
        return Found(DATA / builtin, "built-in", f"the built-in {builtin}")
    path = Path(source)
    if str(source) != HUB and is_file(path):
        return Found(path, str(path), str(path))
    known = published if str(source) == HUB else KNOWN.get(str(source))
    if known is None:
        raise QuestionsError(
            f"There is no file {str(source)[:200]!r}.",
            f"Give a {', '.join(SUFFIXES)} file, `{HUB}`, or nothing for the built-in items.",
        )
    local = find_local(known)
    if local is not None:
        return Found(local, str(local), str(local))
    path, commit = download(known)
    return Found(path, known.origin(commit), f"{known.repo}/{known.file}")


def table_of(found: Found, columns: Collection[str] | None = None) -> Table:
    """The table of the file; of Parquet with only these columns. Raises QuestionsError if it's empty or unreadable."""
    table = read_table(found.path, lambda known: known if columns is None else [c for c in known if c in columns])
    if not table.rows:
        raise QuestionsError(f"{found.label} holds no items.", "Give a file with one item a line.")
    return table


def open_items(source: str | Path | None, builtin: str, published: KnownSet) -> tuple[Found, Table]:
    """The file behind `source` and its table; raises as `find` and `table_of`."""
    found = find(source, builtin, published)
    return found, table_of(found)


def column(table: Table, found: Found, *names: str, what: str = "") -> str:
    """The first of the columns `names` that the table has.

    Raises:
        QuestionsError: it has none of them; names the file, the field and the columns there are.
    """
    for name in names:
        if name in table.columns:
            return name
    wanted = " or ".join(repr(name) for name in names)
    raise QuestionsError(
        f"{found.label} has no field {wanted}{f' ({what})' if what else ''}.",
        f"Its fields are: {', '.join(table.columns)[:400]}.",
    )


def collect(
    found: Found,
    table: Table,
    make: Callable[[str, Row], Item | str],
    *,
    limit: int | None,
    seed: int,
    same: Callable[[Item], object] = lambda item: " ".join(item.prompt.casefold().split()),
    finish: Callable[[int, Item], Item] = lambda _, item: item,
) -> ItemSet:
    """The items of the table in an order shuffled by `seed`, the first `limit` of them.

    Args:
        found: where the table is from.
        table: the rows.
        make: an id and a row -> the item, or why the row is left out.
        limit: how many items at most.
        seed: of the shuffling.
        same: items that share it are one; the first is kept.
        finish: place in the shuffled order and item -> the item as it is asked.

    Raises:
        QuestionsError: a row that is no object, an id that comes twice, or no item left.
    """
    dropped: Counter[str] = Counter()
    items: list[Item] = []
    seen: set[object] = set()
    ids: dict[str, int] = {}
    for number, row in table.rows:
        if not isinstance(row, dict):
            raise QuestionsError(f"{found.label}, row {number} is not an object.", "Give one JSON object a line.")
        cells = cast("Row", row)
        name = cells.get("id")
        name = f"q{number}" if is_missing(name) else str(name)
        item = make(name, cells)
        if not isinstance(item, Item):
            dropped[item] += 1
        elif same(item) in seen:
            dropped[REPEATED] += 1
        elif name in ids:
            raise QuestionsError(
                f"{found.label}, row {number} has the id {name!r} of row {ids[name]}.", "Give every item its own id."
            )
        else:
            ids[name] = number
            seen.add(same(item))
            items.append(item)
    return finished(found, items, dropped, limit=limit, seed=seed, finish=finish)


def finished(
    found: Found,
    items: Sequence[Item],
    dropped: dict[str, int],
    *,
    limit: int | None,
    seed: int,
    finish: Callable[[int, Item], Item] = lambda _, item: item,
) -> ItemSet:
    """The item set of these items; arguments as `collect`."""
    if not items:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise QuestionsError(f"{found.label} holds no usable items ({reasons or 'it is empty'}).", "Give another file.")
    order = list(items)
    random.Random(seed).shuffle(order)
    kept = tuple(finish(place, item) for place, item in enumerate(order[:limit]))
    return ItemSet(kept, found.source, hash_json([asdict(item) for item in kept]), dict(dropped))


def text_of(row: Row, name: str) -> str:
    """The cell as a text without blanks around it; empty if it holds none."""
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ""


def texts_of(row: Row, name: str) -> tuple[str, ...]:
    """The texts that a cell lists, blanks and repetitions left out; empty if it lists none."""
    value = row.get(name)
    try:
        return answer_texts([value])
    except ValueError:  # FalseQA spells its lists as Python does
        return answer_texts([_literal(value)])


def _literal(value: Any) -> list[str]:
    try:
        listed = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return []
    return [one for one in cast("list[Any]", listed) if isinstance(one, str)] if isinstance(listed, list) else []


def options_of(row: Row, name: str) -> tuple[list[str], list[str]]:
    """Labels and texts of a row's options.

    Of a list, or of the hub's object of two lists, `label` and `text`. Labels that a list has in its texts ("A)21") are
    taken off; without any they are A, B, C...
    """
    value = row.get(name)
    if isinstance(value, dict):
        cells = cast("dict[str, Any]", value)
        labels, texts = (_plain(cells.get(part)) for part in ("label", "text"))
        return (labels, texts) if len(labels) == len(texts) else ([], [])
    texts = _plain(value)
    labels = list(LETTERS[: len(texts)])
    if texts and all(re.match(rf"\(?{label}[).:]", text) for label, text in zip(labels, texts, strict=False)):
        texts = [re.sub(r"^\(?[A-Z][).:]\s*", "", text) for text in texts]
    return labels, texts


def _plain(value: Any) -> list[str]:
    """The cells of a list as texts; a list spelt as JSON in a text is one too."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [str(one).strip() for one in cast("list[Any]", value)] if isinstance(value, list | tuple) else []


class SingleTurn:
    """What benchmarks of one question and one reply share."""

    unscaled_turns = 0
    private = False

    def next_turn(self, item: Item, replies: Sequence[str]) -> str | None:
        """Nothing: the first reply ends it."""
        return None

    def admits(self, item: Item, replies: Sequence[str]) -> bool:
        """Every item counts."""
        return True


@dataclass(frozen=True)
class RuleJudge:
    """An `OutcomeJudge` that decides each case by a function."""

    rule: str
    """Which function, and its version: changes whenever an outcome may."""
    decide: Callable[[Case], Outcome]
    name: str = "rule"

    def describe(self) -> Json:
        """What the outcomes depend on, for the manifest."""
        return {"name": self.name, "rule": self.rule}

    def judge_many(self, cases: Sequence[Case]) -> list[Outcome]:
        """One outcome a case, in order."""
        return [self.decide(case) for case in cases]
