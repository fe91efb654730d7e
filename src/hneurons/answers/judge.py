"""Whether a response is right, wrong or a refusal: the judge's Protocol and the alias judge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from hneurons.answers.normalise import clauses, contains, normalise, positions
from hneurons.answers.reading import (
    COPULAS,
    FILLERS,
    FUNCTION_WORDS,
    NEGATIONS,
    PARTICIPLES,
    Reading,
    echoes,
    question_words,
    read,
    refuses,
    says_nobody,
)
from hneurons.types import Question, Verdict


class Judge(Protocol):
    """Says whether a response answers a question."""

    @property
    def name(self) -> str:
        """What the run folder calls this judge."""
        ...

    def judge(self, question: Question, text: str) -> Verdict:
        """The verdict on one response."""
        ...


@dataclass(frozen=True, slots=True)
class FixedJudge:
    """A fake that gives every response the same verdict."""

    verdict: Verdict = Verdict.CORRECT
    name: str = "fixed"

    def judge(self, question: Question, text: str) -> Verdict:
        """The verdict this judge was made with."""
        return self.verdict


@lru_cache(maxsize=8192)
def _aliases(answers: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], bool, bool], ...]:
    """Each alias as tokens, whether it is weak (only function words, or a refusal), and whether clauses cut
    it."""
    found: dict[tuple[str, ...], tuple[bool, bool]] = {}
    for answer in answers:
        if tokens := normalise(answer):
            weak = set(tokens) <= FUNCTION_WORDS or refuses(tokens, frozenset())
            cut = len(clauses(answer)) > 1 or answer.count(",") > 1
            found[tokens] = (weak, cut or found.get(tokens, (weak, False))[1])
    return tuple((tokens, weak, cut) for tokens, (weak, cut) in found.items())


class AliasJudge:
    """Looks for an accepted answer in the clause of the response that commits to one.

    In this order:

    1. Nothing but punctuation: UNPARSABLE.
    2. The whole response is an alias: CORRECT, even if it reads like a refusal (a film called "Unknown").
    3. The clause that commits (`read`) holds an alias on token boundaries: CORRECT, unless every occurrence
       is
       - denied: "not Paris", "isn't Paris", "Paris is incorrect", "rather than Paris", "bigger than Paris";
       - one of several alternatives: "Paris or Lyon", "either ... or", "5 to 7" ("Paris, or Lutetia" is an
         apposition);
       - an echo: it stands beside the same neighbour as in the question ("14 minus 7 is 8" does not answer
         7);
       - not the first of an enumeration: lists, and bare series of four or more, are judged by their first
         item.
    4. Some clause refuses, and no clause commits or the one that does says "nobody": ABSTAINED. A refusal
       with a claim ("I'm not sure, but I think it is Paris") is judged by the claim.
    5. Anything else: WRONG. Without accepted answers (NonExist) every claim is WRONG.

    An alias made of function words or reading like a refusal ("It", "I Don't Know") counts only where the
    clause names it: alone, after "is", "called"..., or as the subject of an echo of the question.
    """

    name = "alias"

    def judge(self, question: Question, text: str) -> Verdict:
        """The verdict on one response."""
        tokens = normalise(text)
        if not tokens:
            symbol = any(unicodedata.category(character)[0] == "S" for character in text)  # "∞"
            return Verdict.CORRECT if symbol and text.strip() in question.answers else Verdict.UNPARSABLE
        aliases = _aliases(question.answers)
        if any(tokens == alias for alias, _, _ in aliases):
            return Verdict.CORRECT
        if _SUM_WORDS.search(question.question):
            text = spell_out(text)
            tokens = normalise(text)
        asked, words, _ = question_words(question.question)
        reading = read(question.question, text)
        claim = text[reading.claim.start : reading.claim.end] if reading.claim else ""
        for alias, weak, cut in aliases:
            # The cuts between clauses would also cut such an alias ("Nothing but the Truth"): search the
            # whole text.
            scope = tokens if cut or (weak and reading.refused) else normalise(_first_item(claim))
            if not contains(scope, alias):
                continue
            answers_no = alias == ("no",) and claim[:3].lower() == "no,"
            if weak and not answers_no and not _named(scope, alias, words):
                continue
            if any(_holds(scope, at, alias, asked, words, claim) for at in positions(scope, alias)) and not _hedged(
                text if cut else claim, alias, aliases, asked, words
            ):
                return Verdict.CORRECT
        return _without_answer(question, text, reading)


def _first_item(claim: str) -> str:
    """The first item of a bare series of four or more; any other clause unchanged."""
    items = re.split(r",\s+(?!\d)", claim)
    if len(items) >= 4 and all(len(item.split()) <= 4 for item in items) and not COPULAS.intersection(normalise(claim)):
        return items[0]
    return claim


def _named(scope: tuple[str, ...], alias: tuple[str, ...], words: frozenset[str]) -> bool:
    for at in positions(scope, alias):
        rest = scope[at + len(alias) :]
        if scope[:at] and scope[at - 1] in {*COPULAS, "called", "titled", "named", "by", "as", "answer"} and not rest:
            return True
        if not at and rest and rest[0] in COPULAS and all(t in FUNCTION_WORDS or t in words for t in rest):
            return True
        if not at and not rest:
            return True
    return False


def _holds(
    scope: tuple[str, ...],
    at: int,
    alias: tuple[str, ...],
    asked: tuple[str, ...],
    words: frozenset[str],
    claim: str,
) -> bool:
    """Whether the alias at token `at` is asserted: neither denied nor an echo nor one end of a range."""
    end = at + len(alias)
    numeric = alias[0].replace(".", "").isdigit()
    through = (
        FUNCTION_WORDS
        | words
        | {"think", "believe", "called", "known", "located", "city", "named", "correct"}
        | PARTICIPLES
    )
    for index in range(at - 1, max(at - 8, -1), -1):
        token = scope[index]
        if token in NEGATIONS and scope[index + 1 : index + 2] != ("only",):
            return False
        if token == "than" and not numeric:
            return False
        if token == "no" and index and scope[index - 1] in {*COPULAS, "theres"}:
            return False
        if token not in through or token == "but":
            break
    after = " ".join(scope[end : end + 5])
    if re.match(
        r"(?:(?:is|was|are|were|did|does|do|has|had|would|could|can) (?:\w+ly |also )?not\b(?! only)|"
        r"(?:isnt|wasnt|arent|werent|didnt|doesnt|never|cannot|cant)\b|"
        r"(?:is|was|would be) (?:\w+ly |also )?(?:incorrect|wrong|false)\b|(?:incorrect|wrong|false)$)",
        after,
    ):
        return False
    if numeric and len(alias) == 1 and len(alias[0]) <= 3:
        number = re.escape(alias[0])
        if re.search(rf"\b(?:{number}\s*(?:-|–|to)\s*\d|\d+\s*(?:-|–|to)\s*{number}\b)", claim):
            return False
        if re.search(rf"\bbetween (?:\S+ and )?{number}\b", claim):
            return False
    return not _is_echo(scope, at, end, asked, alias)


_OPERATORS = {
    "-": "minus",
    "–": "minus",
    "+": "plus",
    "x": "times",
    "*": "times",
    "×": "times",
    "/": "divided by",
    "÷": "divided by",
}
_SUM_WORDS = re.compile(r"\d\s*(?:plus|minus|times|multiplied by|divided by|added to|[+*×÷])\s*\d|\d - \d")
_SUM = re.compile(r"(?<=\d)\s*([-–+x*×/÷])\s*(?=\d)")


def spell_out(text: str) -> str:
    """`text` with the operators between numbers as words, so that "14 - 7" echoes "14 minus 7"."""
    return _SUM.sub(lambda match: f" {_OPERATORS[match.group(1)]} ", text).replace("=", " equals ")


_NO_NEIGHBOUR = frozenset({"", "is", "are", "was", "were", "or", "and", "what", "which", "who"})


def _is_echo(scope: tuple[str, ...], at: int, end: int, asked: tuple[str, ...], alias: tuple[str, ...]) -> bool:
    """Whether the alias stands beside a neighbour that it also has in the question."""
    for start in positions(asked, alias):
        stop = start + len(alias)
        before, after = asked[start - 1] if start else "", asked[stop] if stop < len(asked) else ""
        mine_before, mine_after = scope[at - 1] if at else "", scope[end] if end < len(scope) else ""
        if mine_before == before and before not in _NO_NEIGHBOUR:
            return True
        if mine_after == after and after not in _NO_NEIGHBOUR:
            return True
    return False


def _hedged(
    claim: str,
    alias: tuple[str, ...],
    aliases: tuple[tuple[tuple[str, ...], bool, bool], ...],
    asked: tuple[str, ...],
    words: frozenset[str],
) -> bool:
    """Whether the claim offers the alias beside an alternative that is neither an alias nor an echo."""
    if "or" in alias:
        return False
    if claim.count(",") == 1:
        claim = re.sub(r",\s+or\b", ",", claim, flags=re.IGNORECASE)
    pieces = re.split(r"\bor\b", claim, flags=re.IGNORECASE)
    if len(pieces) < 2:
        return False
    chosen = bool(positions(asked, alias))
    parts = [normalise(piece) for piece in pieces]
    for index, part in enumerate(parts):
        if not contains(part, alias):
            continue
        for other in parts[max(index - 1, 0) : index] + parts[index + 1 : index + 2]:
            fresh = [t for t in other if t not in FUNCTION_WORDS and t not in FILLERS]
            if not chosen:
                fresh = [t for t in fresh if not echoes(t, words)]
            if fresh and not any(contains(other, name) for name, _, _ in aliases):
                return True
    return False


def _without_answer(question: Question, text: str, reading: Reading) -> Verdict:
    claim = text[reading.claim.start : reading.claim.end] if reading.claim else ""
    refused = reading.refused and (not claim or says_nobody(question.question, claim))
    return Verdict.ABSTAINED if refused else Verdict.WRONG


class SubstringJudge:
    """The public reference code's rule: right if the lower-cased text contains a lower-cased alias anywhere.

    For comparisons only (`--preset reference`): it finds "art" in "Bartholomew", and takes "not Paris" for Paris.
    Refusals are told as the alias judge tells them.
    """

    name = "substring"

    def judge(self, question: Question, text: str) -> Verdict:
        """The verdict on one response."""
        if not text.strip():
            return Verdict.UNPARSABLE
        if any(answer.lower() in text.lower() for answer in question.answers):
            return Verdict.CORRECT
        reading = read(question.question, text)
        return _without_answer(question, text, reading)


JUDGES: dict[str, Callable[[], Judge]] = {"alias": AliasJudge, "substring": SubstringJudge}
"""Judges that need nothing but their name."""
