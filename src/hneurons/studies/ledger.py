"""The ledger of a study: a journal with a line for each item, arm and alpha, filled chunk by chunk, resumable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hneurons.answers.engine import Engine
from hneurons.errors import RunMismatchError
from hneurons.parallel import ordered
from hneurons.runfolder import Journal, Json, RunFolder, hash_json, read_json, write_json
from hneurons.studies.arms import NONE, Arm
from hneurons.studies.turned import OpenEngine

Key = tuple[str, str, float]
"""Item, arm, alpha."""
Asked = TypeVar("Asked")
FORMAT = "hneurons.impact_study/1"


def short_hash(value: object) -> str:
    """Twelve hexadecimal digits that tell `value` from others."""
    return hash_json(value)[-12:]


class Ledger:
    """What is known of every item, arm and alpha.

    Args:
        folder: the run.
        name: of the journal, `impact/NAME.jsonl`.
        identity: what the lines depend on; a study with another one can't go on here.

    Raises:
        RunMismatchError: the journal belongs to another study.
    """

    def __init__(self, folder: RunFolder, name: str, identity: Json) -> None:
        self.name = name
        self.journal: Journal = folder.journal(f"impact/{name}.jsonl")
        self.rows: dict[Key, Json] = {}
        self._lock = threading.Lock()
        said = folder / "impact" / f"{name}.study.json"
        identity = {"format": FORMAT, **identity}
        if said.exists():
            old = read_json(said)
            wrong = [key for key in sorted({*old, *identity}) if old.get(key) != identity.get(key)]
            if wrong:
                shown = "; ".join(f"{key}: {old.get(key)!r:.60} there, {identity.get(key)!r:.60} now" for key in wrong)
                raise RunMismatchError(
                    f"{self.journal.path} belongs to a study with other settings ({shown}).",
                    "Use those settings to continue it, or delete that file and the .study.json beside it.",
                )
        else:
            if self.journal.path.exists() and self.journal.read():
                raise RunMismatchError(
                    f"{self.journal.path} is there without {said.name}.", "Delete it, or restore both from a copy."
                )
            write_json(said, identity)
        for line in self.journal.read():
            self._learn(line)

    def _learn(self, line: Json) -> None:
        key = (str(line["item"]), str(line["arm"]), float(line["alpha"]))
        old = self.rows.get(key, {})
        outcomes = {**old.get("outcomes", {}), **line.get("outcomes", {})}
        self.rows[key] = {**old, **line, **({"outcomes": outcomes} if outcomes else {})}

    def check_asked(self, asked: Mapping[str, str]) -> None:
        """Refuse to go on when items changed: `asked` has the hash of each.

        Raises:
            RunMismatchError: a line was made with another text under the same id.
        """
        for (item, _, _), row in self.rows.items():
            if item in asked and row.get("asked") not in (None, asked[item]):
                raise RunMismatchError(
                    f"{self.journal.path}: item {item!r:.60} is not what was asked before.",
                    "Give the same items, or delete that file and the .study.json beside it.",
                )

    def add(self, rows: Iterable[Json]) -> None:
        """Append what is new: whole rows, or lines that add outcomes to rows that are there."""
        made = list(rows)  # may take long
        with self._lock:
            new: list[Json] = []
            for row in made:
                key = (str(row["item"]), str(row["arm"]), float(row["alpha"]))
                old = self.rows.get(key)
                if old is None:
                    new.append(row)
                elif more := {k: v for k, v in row.get("outcomes", {}).items() if k not in old.get("outcomes", {})}:
                    new.append({"item": row["item"], "arm": row["arm"], "alpha": row["alpha"], "outcomes": more})
            self.journal.append(new)
            for row in new:
                self._learn(row)

    def todo(
        self, items: Sequence[str], arm: str, alphas: Sequence[float], whole: Callable[[Json], bool]
    ) -> tuple[float, ...]:
        """The alphas that these items must be asked at.

        After a kill in mid-write all of them, so that the batches are those of an undisturbed run; where some alphas
        are complete and others were never begun, only the latter.
        """
        there = {alpha: [self._is_whole((item, arm, alpha), whole) for item in items] for alpha in alphas}
        if any(any(each) and not all(each) for each in there.values()):
            return tuple(alphas)
        return tuple(alpha for alpha, each in there.items() if not all(each))

    def _is_whole(self, key: Key, whole: Callable[[Json], bool]) -> bool:
        row = self.rows.get(key)
        return row is not None and whole(row)

    def get(self, item: str, arm: str, alpha: float) -> Json:
        """A row that is there; alpha = 1 is the same for every arm."""
        return self.rows[item, NONE.name if alpha == 1.0 else arm, alpha]


def fill(
    ledger: Ledger,
    chunks: Sequence[Sequence[Asked]],
    name_of: Callable[[Asked], str],
    arms: Sequence[Arm],
    alphas: Sequence[float],
    open_engine: OpenEngine,
    make: Callable[[Engine, Sequence[Asked], Arm, tuple[float, ...]], None],
    *,
    whole: Callable[[Json], bool] = lambda _: True,
    tick: Callable[[int], None] = lambda _: None,
    together: int = 1,
) -> None:
    """Let `make` fill what the ledger lacks: each chunk of items in each arm, all alphas of an item together.

    Args:
        ledger: gets the rows, from `make`.
        chunks: items that are asked together.
        name_of: the id of an item.
        arms: alpha = 1 is asked once, for all of them.
        alphas: in rising order.
        open_engine: opens the engine of an arm.
        make: engine, items, arm and alphas -> rows in the ledger.
        whole: whether a row has all that is needed.
        tick: gets the number of rows done.
        together: sets of neurons that are in work at a time.
    """
    scaled = [alpha for alpha in alphas if alpha != 1.0]
    wanted = [(NONE, [1.0]), *((arm, scaled) for arm in arms)]

    def ask(part: tuple[Sequence[Asked], Arm, list[float]]) -> int:
        chunk, arm, own = part
        missing = ledger.todo([name_of(item) for item in chunk], arm.name, own, whole)
        if missing:
            with open_engine(arm.neurons) as engine:
                make(engine, chunk, arm, missing)
        return len(chunk) * len(own)

    parts = [(chunk, arm, own) for chunk in chunks for arm, own in wanted]
    if together == 1:
        for part in parts:
            tick(ask(part))
        return
    pool = ThreadPoolExecutor(together)
    try:
        for count in ordered(pool, ask, parts, ahead=together):
            tick(count)
    finally:
        # What the others have in work goes into the ledger before the run folder is let go of.
        pool.shutdown(cancel_futures=True)


def chunked(items: Sequence[Asked], size: int) -> list[Sequence[Asked]]:
    """The items in parts of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]
