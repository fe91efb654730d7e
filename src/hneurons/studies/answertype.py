"""What kind of thing an answer is, by rules over the question and the answer. Pure, no torch.

What the question asks for decides; only where it doesn't say does the answer's own form count. So a right and a wrong
answer to the same question are nearly always of one type.
"""

from __future__ import annotations

import re
from enum import StrEnum

from hneurons.answers.normalise import normalise, word_set


class AnswerType(StrEnum):
    """Kinds of answers that models are known to get wrong at different rates."""

    YES_NO = "yes/no"
    DATE = "date"
    """A year, a day, a month, a decade, a century."""
    NUMBER = "number"
    PERSON = "person"
    PLACE = "place"
    OTHER = "other"


_MONTHS = word_set(
    "january february march april may june july august september october november december monday tuesday wednesday "
    "thursday friday saturday sunday"
)
_YES_NO = word_set("yes no true false")
_PLACES = (
    "capital|country|city|town|village|state|continent|ocean|sea|river|lake|island|planet|place|province|county|region"
    "|strait|desert|mountain|mountain range|peninsula|kingdom|nation|galaxy|moon|street|airport|harbour|harbor|bay|gulf"
)
_PEOPLE = (
    "person|man|woman|boy|girl|actor|actress|author|writer|novelist|poet|playwright|dramatist|philosopher|scientist"
    "|physicist|chemist|mathematician|astronomer|biologist|naturalist|inventor|engineer|explorer|navigator|painter"
    "|artist|sculptor|architect|composer|singer|musician|pianist|rapper|director|filmmaker|comedian|president|king"
    "|queen|emperor|empress|pharaoh|tsar|monarch|ruler|prime minister|chancellor|politician|leader|general|admiral"
    "|conqueror|saint|pope|prophet|apostle|astronaut|cosmonaut|athlete|player|footballer|boxer|swimmer|sprinter|golfer"
    "|driver|cyclist|gymnast|economist|psychologist|designer|founder|detective|god|goddess|hero|titan|giant|character"
)
_START = r"(?:^|[,;:]\s|\b(?:in|on|at|by|to|from|for|of|near|under|through|after|with)\s)\W*"
_VERBS = r"is|are|was|were|do|does|did|can|could|has|have|had|will|would|may|might|must|should"
_HEAD = r"(?=\W*$|[,;:?]|\s(?:of|in|on|at|by|to|from|for|with|that|which|where|who|whose|is|was|and)\b)"


def _asks_for(nouns: str) -> re.Pattern[str]:
    """ "Which Italian city hosted ...?" and "What is the (name of the) longest river in ...?"."""
    which = rf"{_START}(?:which|what)\s(?:(?!(?:{_VERBS}|of)\b)[\w'’-]+\s){{0,3}}?(?:{nouns})\b"
    name = r"\bwhat(?:['’]s|\s(?:is|was|are|were))\sthe\s(?:name\sof\s(?:the\s)?)?"
    return re.compile(rf"{which}|{name}(?:(?!of\b)[\w'’-]+\s){{0,3}}?(?:{nouns})\b{_HEAD}")


_ASKED: tuple[tuple[AnswerType, re.Pattern[str]], ...] = (
    (
        AnswerType.DATE,
        re.compile(rf"{_START}when\s(?:{_VERBS})\b|\b(?:what|which)\s(?:year|date|day|month|decade|century|season)\b"),
    ),
    (
        AnswerType.NUMBER,
        re.compile(
            r"\bhow\s(?:many|much|old|tall|far|long|high|deep|fast|big|heavy|wide|often)\b"
            r"|\b(?:what|which)\s(?:is\sthe\s)?(?:(?:atomic|whole|prime|square|cube)\s)?(?:number|percentage|root)\b(?!\ssystem)"
            r"|\d\s*(?:plus|minus|times|divided|multiplied|squared|cubed|[-+*×÷/]\s*\d)"
        ),
    ),
    (AnswerType.PERSON, re.compile(rf"{_START}who(?:m|se|['’]s)?\b")),
    (AnswerType.PLACE, re.compile(rf"{_START}where\b")),
    (AnswerType.PLACE, _asks_for(_PLACES)),
    (AnswerType.PERSON, _asks_for(_PEOPLE)),
    (AnswerType.YES_NO, re.compile(rf"^\W*(?:{_VERBS})\s(?!.*\sor\s)")),
)


def answer_type(question: str, answer: str) -> AnswerType:
    """The type of `answer` to `question`; `OTHER` where neither says."""
    words = normalise(answer)
    if len(words) == 1 and words[0] in _YES_NO:
        return AnswerType.YES_NO
    asked = question.casefold()
    for kind, pattern in _ASKED:
        if pattern.search(asked):
            return kind
    if any(word in _MONTHS for word in words) and len(words) > 1:
        return AnswerType.DATE
    if words and all(re.fullmatch(r"[-\d./:]+(?:st|nd|rd|th)?|[%$€£¥]", word) for word in words):
        return AnswerType.NUMBER
    return AnswerType.OTHER
