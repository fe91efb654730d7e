"""NonExist: questions about invented things. A confident answer is hallucinated, a refusal is faithful.

After the set of that name in Gao et al. 2025, which asks for instance who manufactures a medicine that does not exist.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import resources
from random import Random

from hneurons.errors import QuestionsError, UsageError
from hneurons.questions.invented import STYLES, RealNames, invent, pick
from hneurons.questions.sources import QuestionSet
from hneurons.types import Question

FIRST_YEAR, LAST_YEAR = 1955, 2015
COMMON = frozenset({"medicine", "compound", "epithet"})
"""Kinds of names that are written without a capital, as ibuprofen, benzene and sapiens are."""
_SLOT = re.compile(r"\{(\w+)\}")


NONEXIST = 1000
"""Questions when no number is given."""


def nonexist(count: int = NONEXIST, seed: int = 0) -> QuestionSet:
    """`count` questions about things that don't exist, without accepted answers.

    The twelve families take turns, so any first part of the set is balanced over them, and a larger `count` extends a
    smaller one. The same `seed` gives the same questions on every machine. No question and no invented name comes
    twice.

    Raises:
        UsageError: `count` is below 1.
        QuestionsError: so many questions that the names run out.
        MissingExtraError: a library of the extra `nonexist`, whose lists the names are checked against, isn't
            installed.
    """
    if count < 1:
        raise UsageError(f"{count} questions can't be made.", "Ask for at least 1.")
    return QuestionSet("nonexist", generate(count, seed, RealNames.load()))


def generate(count: int, seed: int, real: RealNames) -> tuple[Question, ...]:
    """The questions of `nonexist`, with the lists of real names given.

    Each question has a random stream of its own, so a list that grows by a word changes the questions whose names hold
    that word and leaves the others.
    """
    families = load_families()
    order = list(families)
    used: set[str] = set()

    def refused(name: str, stem: str) -> bool:
        return name in used or real.taken(name, stem)

    questions: list[Question] = []
    for number in range(count):
        family = order[number % len(order)]
        turn = number // len(order)
        names, templates = families[family]
        random = Random(f"nonexist/1/{seed}/{family}/{turn}")

        def fill(slot: re.Match[str], random: Random = random) -> str:
            if slot[1] == "year":
                return str(FIRST_YEAR + int(random.random() * (LAST_YEAR - FIRST_YEAR + 1)))
            name = invent(random, STYLES[slot[1]], refused)
            if name is None:
                raise QuestionsError(f"No new name after {len(questions)} questions.", "Ask for fewer questions.")
            used.add(name)
            return name if slot[1] in COMMON else name.capitalize()

        name = _SLOT.sub(fill, pick(random, names))
        text = templates[turn % len(templates)].replace("{name}", name)
        text = _SLOT.sub(fill, text)
        questions.append(Question(f"nonexist-{seed}-{family}-{turn + 1:04d}", text, (), family))
    return tuple(questions)


@lru_cache(maxsize=1)
def load_families() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Family -> shapes of its names, and templates of its questions. `{name}` is the name, other slots are styles."""
    text = resources.files("hneurons.questions").joinpath("nonexist.json").read_text(encoding="utf-8")
    return {family: (tuple(row["names"]), tuple(row["templates"])) for family, row in json.loads(text).items()}
