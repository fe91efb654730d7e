"""Where in a response the factual claim stands: the answer tokens of Gao et al. 2025. No torch.

A span finder sees the question and the response only: gold answers and labels never reach it, so no span
leaks them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hneurons.answers.normalise import normalise, word_set
from hneurons.answers.reading import FILLERS, FUNCTION_WORDS, PARTICIPLES, echoes, read
from hneurons.types import Span


class SpanFinder(Protocol):
    """Marks the characters of a response that carry its factual claim."""

    @property
    def name(self) -> str:
        """What the run folder calls this finder."""
        ...

    def find(self, question: str, response: str) -> Span | None:
        """Characters of `response` that carry the claim; None when it makes none."""
        ...


def to_token_span(chars: Span, offsets: Sequence[tuple[int, int]]) -> Span | None:
    """Tokens that overlap the characters `chars`, from the first to the last; None if none does.

    `offsets`: the (start, end) characters of each token in the response. Zero-width tokens (end of turn)
    never count.
    """
    hit = [i for i, (start, end) in enumerate(offsets) if start < end and start < chars.end and chars.start < end]
    return Span(hit[0], hit[-1] + 1) if hit else None


_WORD = re.compile(
    r"(?:[^\W\d_]\.){2,}(?![^\W_])|[-$€£]{0,2}\d+(?:[.,:/]\d+)*(?:[^\W\d_]+|\s?%)?(?:[-’'][^\W_]+)*"
    r"|[^\W_]+(?:['’-][^\W_]+)*(?:\+\+|[+#](?![^\W_]))?|[%$€£]"
)
_COPULA = word_set("is was are were means equals = ’s 's")
_LEAD_INS = PARTICIPLES | word_set(
    "one first approximately about around roughly exactly nearly almost over s type kind form sort by a an the"
)
_PREPOSITIONS = word_set("in by from with on at during for near into after before since around through via under")
_CONNECTORS = word_set("of the de la le du van von der den del della da dos and & y bin al ibn")
_STOPS = word_set(
    "which that who whom whose where when because since while and or so as if although though but than whereas using"
)
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)?(?:\sof)?\s)?{_MONTH}(?:\s\d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,?\s\d{{3,4}})?\b"
    r"|\b(?:(?:early|late|mid)[- ])?(?:the )?\d{1,2}(?:st|nd|rd|th) century(?: (?:BCE?|AD))?"
    r"|\b\d{1,4} ?(?:BCE?|AD|CE)\b|\b(?:(?:early|late|mid)[- ])?(?:AD )?\d{3,4}s?(?:\s?[-–]\s?\d{2,4})?\b",
    re.IGNORECASE,
)
_NUMBER_WORD = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    r"eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|trillion)"
)
_NUMBER = re.compile(
    rf"(?<![\w.])[-−]?[$€£]?\d+(?:[.,:/]\d+)*(?:\s(?:hundred|thousand|million|billion|trillion)\b|\s?%)?"
    rf"|\b{_NUMBER_WORD}(?:(?:[ -]|\sand\s){_NUMBER_WORD})*\b",
    re.IGNORECASE,
)
_HOW_MANY = re.compile(
    r"\bhow (?:many|much|old|tall|far|long|high|deep|fast|big)\b|\bwhat number\b"
    r"|\d\W*(?:plus|minus|times|divided|multiplied|[-+*×÷/x])"
)
_WHERE = re.compile(
    r"\bwhere\b|\b(?:what|which) (?:\w+ ){0,3}"
    r"(?:capital|place|country|city|state|continent|ocean|river|town|island|planet)\b"
)
_TITLE = re.compile(r"\b(?:book|novel|play|film|movie|song|opera|poem|album|title|series|show|story|painting)\b")
_MARKED = re.compile(
    r"\*\*(?P<bold>[^*\n]+)\*\*|[\"“](?P<quoted>[^\"”\n]+)[\"”]|(?<![*\w])\*(?P<italic>[^*\n]+)\*(?!\w)"
)
_LABEL = re.compile(r"[^:\n]{0,80}:\W*(?=\S)")


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    text: str
    plain: bool
    """A function word, a filler or a repeat of the question."""
    function: bool

    @property
    def capital(self) -> bool:
        """Whether the word begins like a name or a number."""
        return self.text[0].isupper() or self.text[0].isdigit()


class RuleSpanFinder:
    """Marks the claim by rules; the clause is the one that the alias judge reads.

    Within that clause: what stands after "Answer:"; then the side of "is", "was", "means"... that does not
    echo the question; there the bold or quoted phrase, or what the question word asks for (a name for who
    and where, a date for when, a number for how many); otherwise the first phrase up to a comma, a
    conjunction or a preposition.
    """

    name = "rule"

    def find(self, question: str, response: str) -> Span | None:
        """Characters of `response` that carry the claim; None when it is empty, a refusal or only an echo."""
        clause = read(question, response).claim
        if clause is None:
            return None
        asked = question.casefold()
        start, end = _skip_label(question, response, clause.start, clause.end)
        words = _words(question, response, start, end)
        if not words:
            return None
        side = _side(words)
        if not side:
            return None
        low, high = side[0].start, side[-1].end
        for match in _MARKED.finditer(response, max(low - 3, 0), min(high + 3, len(response))):
            inside = _words(question, response, *match.span(match.lastgroup or 0))
            if any(not word.plain for word in inside) and match.end() <= end + 3:
                return _tidy(response, inside)
        typed = _typed(asked, response, side)
        return typed or _tidy(response, _phrase(asked, response, side, words[0].start))


def _words(question: str, response: str, start: int, end: int) -> list[_Word]:
    asked = frozenset(normalise(question))
    found: list[_Word] = []
    for match in _WORD.finditer(response, start, end):
        token = normalise(match.group())
        initial = match.group().isupper() and len(match.group()) == 1 and response[match.end() : match.end() + 1] == "."
        inner = initial and match.end() + 1 < len(response) and response[match.end() + 1 :].lstrip()[:1].isupper()
        function = match.group() in ("a", "A") or all(t in FUNCTION_WORDS for t in token)
        function = function and not inner
        plain = function or (
            (not inner and bool(token)) and all(t in FUNCTION_WORDS or t in FILLERS or echoes(t, asked) for t in token)
        )
        found.append(_Word(match.start(), match.end(), match.group(), plain, function))
    return found


def _skip_label(question: str, response: str, start: int, end: int) -> tuple[int, int]:
    """The clause without a label: "Answer: Paris", "Capital: Canberra"."""
    label = _LABEL.match(response, start, end)
    if label and all(word.plain or len(word.text) == 1 for word in _words(question, response, start, label.end())):
        return label.end(), end
    return start, end


def _side(words: list[_Word]) -> list[_Word]:
    """The words on the side of the first copula that says something beyond the question."""
    for index, word in enumerate(words):
        if word.text.casefold() not in _COPULA:
            continue
        left, right = words[:index], words[index + 1 :]
        left_new = any(not w.plain for w in left)
        right_new = any(not w.plain and w.text.casefold() not in _LEAD_INS for w in right)
        if right_new and not left_new:
            return right
        if left_new and not right_new:
            return left
        if not left_new and not right_new and right:
            return right  # "The plural of sheep is sheep"
    return words


def _typed(asked: str, response: str, side: list[_Word]) -> Span | None:
    """The date, number or name that the question word asks for, if the side holds one."""
    low, high = side[0].start, side[-1].end
    if re.search(r"\bwhen\b|\b(?:what|which) (?:year|date|day|month|decade|century)\b", asked):
        return _first(_DATE, asked, response, low, high)
    if _HOW_MANY.search(asked):
        return _first(_NUMBER, asked, response, low, high)
    names = _names(response, side)
    if re.match(r"\W*who(?:m|se)?\b", asked) or re.search(r"\b(?:by|to|for|from) whom\b", asked):
        return _tidy(response, names[0]) if names else None
    if _WHERE.search(asked):
        if not names:
            return None
        run = names[0]
        for other in names[1:]:  # "Paris, France"
            if response[run[-1].end : other[0].start].strip() != ",":
                break
            run = run + other
        return _tidy(response, run)
    return None


def _first(pattern: re.Pattern[str], asked: str, response: str, low: int, high: int) -> Span | None:
    """The first match that does not repeat the question, else the last match."""
    found = [match.span() for match in pattern.finditer(response, low, high) if match.group().strip()]
    known = normalise(asked)
    for start, end in found:
        token = normalise(response[start:end])
        if token and not all(t in known for t in token):
            return _trim(response, start, end)
    return _trim(response, *found[-1]) if found else None


def _names(response: str, side: list[_Word]) -> list[list[_Word]]:
    """Runs of capitalised words with something new in them, in order."""
    runs: list[list[_Word]] = []
    run: list[_Word] = []
    pending: list[_Word] = []
    for word in side:
        source = run[-1] if run else None
        gap = response[(pending[-1] if pending else source or word).end : word.start] if source else ""
        joined = bool(source) and (not gap.strip() or (gap.strip() == "." and _initial(source))) and "\n" not in gap
        if source and not joined:
            runs.append(run)
            run, pending = [], []
        if word.capital and not (word.function and not run):
            run, pending = [*run, *pending, word], []
        elif run and word.text in _CONNECTORS:
            pending.append(word)
        elif run:
            runs.append(run)
            run, pending = [], []
    if run:
        runs.append(run)
    return [r for r in runs if any(not word.plain for word in r) and any(c.isalpha() for w in r for c in w.text)]


def _initial(word: _Word | None) -> bool:
    return word is not None and (len(word.text) == 1 or word.text in ("St", "Dr", "Mr", "Mrs", "Ms", "Mt", "Jr", "Sr"))


def _phrase(asked: str, response: str, side: list[_Word], start: int) -> list[_Word]:
    """The first phrase: leading function words, participles and lower-case echoes off; cut where another
    phrase begins."""
    words = list(side)
    bare = len(side) <= 6 and side[0].start == start and not any(word.text.casefold() in _COPULA for word in side)
    while (
        len(words) > 1
        and not re.search(r"[(&]", response[words[0].end : words[1].start])
        and _droppable(words[0], words[1])
    ):
        if bare and words[0] is side[0] and len(side) <= 3 and not words[0].function and not words[1].plain:
            break  # "Victim blaming"
        words.pop(0)
    if all(word.function for word in words) and len(words) > 1:
        words = [word for word in side if not word.function] or side
    title = bool(_TITLE.search(asked))
    kept = [words[0]]
    for word in words[1:]:
        gap = response[kept[-1].end : word.start]
        if re.search(r"[,;:\n(]", gap) or (re.search(r"[.!?]", gap) and not _initial(kept[-1])):
            break
        lowered = word.text.casefold()
        if (not word.capital and lowered in _STOPS and lowered not in ("and",)) or lowered in _COPULA:
            break
        if lowered in _PREPOSITIONS and not word.capital and not title and any(not w.plain for w in kept):
            following = next((w for w in side if w.start > word.start), None)
            if not (bare and kept[0].capital and following and (following.capital or following.function)):
                break  # but "Another Day in Paradise" as the whole reply is one name
        kept.append(word)
    # "Elizabeth I" keeps its last word
    while len(kept) > 1 and kept[-1].function and not (kept[-1].capital and kept[-2].capital):
        kept.pop()
    echoed = next((n for n, word in enumerate(reversed(kept)) if not word.plain or word.capital), 0)
    # One repeated word may belong to the name ("Emperor penguin"); more repeat the question ("Bees make
    # honey").
    return kept[: len(kept) - echoed] if echoed > 1 else kept


def _droppable(word: _Word, following: _Word) -> bool:
    """Whether a phrase can't begin with `word`: "You use your [nose]", "Plants absorb [carbon dioxide]"."""
    if word.function or word.text.casefold() in _LEAD_INS:
        return word.text not in _NAMES
    joined = following.capital or following.text in _CONNECTORS
    return word.plain and not (word.capital and joined)


_NAMES = frozenset({"I", "As", "In", "He", "At", "Be", "Am", "No"})  # chemical symbols that are words


def _tidy(response: str, words: list[_Word]) -> Span | None:
    """From the first to the last word, without a leading article or trailing function words."""
    while len(words) > 1 and words[0].function and words[0].text.casefold() in ("a", "an", "the"):
        words = words[1:]
    return _trim(response, words[0].start, words[-1].end) if words else None


def _trim(response: str, start: int, end: int) -> Span | None:
    """The range without blanks, quotes and sentence punctuation at its ends; the full stop of "U.S."
    stays."""
    while start < end and (response[start].isspace() or response[start] in "\"'“”‘’*_`.,;:!?()[]{}<>"):
        start += 1
    while start < end and (response[end - 1].isspace() or response[end - 1] in "\"'“”‘’*_`.,;:!?()[]{}<>"):
        if re.search(r"(?:^|[^\w])(?:[^\W\d_]\.){2,}$", response[start:end]):
            break
        end -= 1
    return Span(start, end) if start < end else None
