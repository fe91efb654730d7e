"""Replies as tokens that compare, and as clauses that can be judged one by one. Pure functions, no torch.

Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one token a character, so
that a match on token boundaries is a match on characters there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction

from hneurons.types import Span


def _listed(words: str) -> list[str]:
    return words.split()


def word_set(words: str) -> frozenset[str]:
    """The words of a blank-separated list."""
    return frozenset(words.split())


_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼʻ`´′‛＇", "'") | {"−": "-", "–": " - ", "—": " - "})
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
# Latin, Greek and Cyrillic accents, and the optional points of Hebrew and Arabic. Marks of other scripts
# are vowels.
_ACCENTS = re.compile("[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670]")

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
)
_INDIC = "\u0900-\u0963\u0966-\u0dff"  # vowel signs are marks, which \w leaves out
_NUMBER = r"(?<![^\W_])-?\d+(?:[.:/]\d+)+(?![^\W_])|(?<![^\W_])-\d+(?![^\W_])"
_SIGNED = r"(?<![^\W_])[^\W\d_][^\W_]{0,2}(?:\+\+|\+|#)(?![^\W_+#])"
_BREAK = r"[,;.!?()\n]"
_ASCII_TOKENS = re.compile(rf"{_NUMBER}|{_SIGNED}|[a-z0-9]+|[%$]|{_BREAK}")
_TOKENS = re.compile(
    rf"[{_UNSPACED}]|{_NUMBER}|{_SIGNED}|(?:(?![{_UNSPACED}])(?:[^\W_]|[{_INDIC}]))+|[%$€£¥]|[。、！？]|{_BREAK}"
)

_SCALE_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = [*range(20), *range(20, 100, 10)]
# Ordered, unlike a set: the position gives the value.
_CARDINALS: list[str] = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
_RANKS: list[str] = _listed(
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
    "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth "
    "sixtieth seventieth eightieth ninetieth"
)
_SMALL: dict[str, int] = dict(zip(_CARDINALS, _VALUES, strict=True))
_ORDINALS: dict[str, int] = dict(zip(_RANKS, _VALUES, strict=True))
_LARGE_ORDINALS = {"hundredth": 100} | {f"{word}th": value for word, value in _SCALE_WORDS.items()}
_NUMBER_WORDS = {*_SMALL, "hundred", *_SCALE_WORDS, *_ORDINALS, *_LARGE_ORDINALS}
_SAME = {"percent": "%", "dollar": "$", "dollars": "$"}

_BREAKS = frozenset(",;.!?()\n。、！？")


def _join(match: re.Match[str]) -> str:
    """The match without its separators: 1,500 -> 1500, j. s. -> js; a closing full stop leaves a space."""
    found = match.group()
    return re.sub(r"[., ]", "", found) + (" " if found.endswith(".") else "")


_REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?<=[^\W_])'(?=[^\W_])"), ""),
    (
        re.compile(r"([$€£¥])(\d(?:[\d.,]*\d)?(?: (?:hundred|thousand|million|billion|trillion)\b)?)"),
        r"\2 \1 ",
    ),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)"), _join),
    (re.compile(r"(?<![^\W_.])[^\W\d_](?:\.[^\W\d_])+(?![^\W_])"), _join),  # "U.S"
    (re.compile(r"(?<![^\W_])[^\W\d_](?:\. ?[^\W\d_](?=\.))+\."), _join),  # "J. S.", "U.S.A."
    (re.compile(r"(?<![^\W_])a-(?=[^\W_])"), "a"),  # the "a" of "A-Team" is no article
    (
        re.compile(
            r"(?<![^\W_])(\d+)(km|kg|cm|mm|mg|ml|mph|ft|lbs?|[kmg]?hz|[kmgt]b|[ap]m"
            r"|(?:day|year|hour|minute|second|mile|month|week)s?)(?![^\W_])"
        ),
        r"\1 \2",
    ),
    (re.compile(r"° ?c(?![^\W_])"), " degrees celsius "),
    (re.compile(r"° ?f(?![^\W_])"), " degrees fahrenheit "),
    (re.compile(r"°"), " degrees "),
    (re.compile(r"&"), " and "),
    (re.compile(r"♯"), " sharp "),
    (re.compile(r"♭"), " flat "),
)

# "Vitamin A" must not become "vitamin": "a" is an article only where a noun can follow it.
_NOT_A_NOUN = word_set("is are was were be has have had can and or of in on at to for from with by as that which who")
_BEFORE_LETTER = word_set("vitamin hepatitis type grade group letter plan class influenza level blood note")


def normalise(text: str) -> tuple[str, ...]:
    """The tokens of `text` that decide whether two answers are the same.

    Compatibility forms, accents and case go; apostrophes inside words close up (O'Neill -> oneill), other
    punctuation separates. Articles go unless nothing would be left or "a" is a name (Vitamin A). Number
    words become digits (twenty-one -> 21, first -> 1st, nineteen eighty-four -> 1984), 1,500 becomes 1500.
    Initials close up (J. S. -> js). C++, C#, A+, 3.14, 1/2, 3:16 and -5 stay whole; %, $ and other currency
    signs are tokens ($5 -> 5 $). Roman numerals stay. Joining the tokens with spaces and normalising again
    gives the same tokens.
    """
    text = text.translate(_APOSTROPHES)
    if text.isascii():
        text, pattern = text.lower(), _ASCII_TOKENS
    else:
        text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", text).translate(_LETTERS)).replace("\u2044", "/")
        pattern = _TOKENS
    for regex, replacement in _REWRITES:
        text = regex.sub(replacement, text)
    found: list[str] = pattern.findall(text)
    tokens = _drop_articles([_SAME.get(token, token) for token in found])
    result = [token for token in _digits(tokens) if token not in _BREAKS]
    for at in reversed(positions(result, ("per", "cent")) if "cent" in result else []):
        result[at : at + 2] = ["%"]
    return tuple(result)


def _drop_articles(tokens: list[str]) -> list[str]:
    words = [token for token in tokens if token not in _BREAKS]
    if all(word in ("a", "an", "the") for word in words):
        return words
    kept: list[str] = []
    seen = 0  # words so far, articles included
    for token in tokens:
        seen += token not in _BREAKS
        following = words[seen] if seen < len(words) else ""
        name = not following or following in _NOT_A_NOUN or (seen > 1 and words[seen - 2] in _BEFORE_LETTER)
        if token in ("an", "the") or (token == "a" and not name):
            continue
        kept.append(token)
    return kept


def _digits(tokens: list[str]) -> list[str]:
    """The tokens with every number phrase replaced by its digits. Punctuation ends a phrase."""
    result: list[str] = []
    index = 0
    while index < len(tokens):
        token = tokens[index]
        following = tokens[index + 1] if index + 1 < len(tokens) else ""
        if token == "one" and (following == "of" or (index and tokens[index - 1] == "no")):
            result.append(token)  # "one of the largest" and "no one" count nothing
        elif token in _NUMBER_WORDS or (token[-1].isdigit() and following in _SCALE_WORDS):
            value, index = _phrase(tokens, index)
            result.append(value)
            continue
        elif re.fullmatch(r"-?\d+\.0+", token):
            result.append(token.partition(".")[0])
        else:
            result.append(token)
        index += 1
    return result


def _phrase(tokens: list[str], start: int) -> tuple[str, int]:
    """The digits of the longest number phrase at `start`, and the index after it."""
    total, group, smallest = Fraction(0), Fraction(0), 10**15
    # What the next small number must stay under: 100 at a group's start, 10 after "twenty", 0 after a unit.
    room = 100
    suffix = ""
    index = start
    if re.fullmatch(r"\d{1,15}(\.\d{1,15})?", tokens[index]):
        group, room = Fraction(tokens[index]), 0
        index += 1
    while index < len(tokens) and not suffix:
        token = tokens[index]
        small = _SMALL.get(token, _ORDINALS.get(token))
        if small is not None and (index == start or 0 < small < room):
            group += small
            room = 10 if small >= 20 else 0
            suffix = _suffix(int(group)) if token in _ORDINALS else ""
        elif small is not None and not total and 10 <= group <= 20 and small >= 10 and index == start + 1:
            # a year read in pairs: nineteen eighty-four
            group, room = group * 100 + small, (10 if small >= 20 else 0)
            suffix = _suffix(int(group)) if token in _ORDINALS else ""
        elif token in ("hundred", "hundredth") and group < 100:
            group, room = (group or 1) * 100, 100
            suffix = "th" if token == "hundredth" else ""
        elif (scale := _SCALE_WORDS.get(token.removesuffix("th"))) and scale < smallest and (group or index == start):
            total, group, room, smallest = total + (group or 1) * scale, Fraction(0), 100, scale
            suffix = "th" if token.endswith("th") else ""
        elif token == "and" and room == 100 and index > start and index + 1 < len(tokens):
            small = _SMALL.get(tokens[index + 1], _ORDINALS.get(tokens[index + 1], 0))
            if not small:
                break
        else:
            break
        index += 1
    if index == start:  # a digit that no scale word follows after all
        return tokens[start], start + 1
    value = total + group
    digits = str(value.numerator) if value.denominator == 1 else str(float(value))
    return digits + suffix, index


def _suffix(value: int) -> str:
    if value % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")


def positions(haystack: Sequence[str], needle: Sequence[str]) -> list[int]:
    """Every index at which `needle` occurs in `haystack` as a contiguous run; none for an empty needle."""
    width = len(needle)
    if not width:
        return []
    wanted = tuple(needle)
    return [i for i in range(len(haystack) - width + 1) if tuple(haystack[i : i + width]) == wanted]


def contains(haystack: Sequence[str], needle: Sequence[str]) -> bool:
    """Whether `needle` occurs in `haystack` as a contiguous run of whole tokens; never for an empty
    needle."""
    return bool(needle) and f" {' '.join(needle)} " in f" {' '.join(haystack)} "


_ABBREVIATION = re.compile(
    r"(?:\b(?:St|Dr|Mr|Mrs|Ms|Mt|Prof|Jr|Sr|vs|No|Gen|Col|Sgt|Lt|Capt|Rev|Inc|Ltd|Co|approx|ca|e\.g|i\.e)"
    r"|\b[A-Z](?:\.[A-Z])*)\.$"
)
_OPENERS = word_set("It The This That He She They In Its A An There However But I We You Its These Those")
_BOUNDARY = re.compile(
    r"(?P<stop>[.!?]+[\"'”’)*_]*(?:\s+|(?=[A-Z][a-z])))|\n+|[。！？]|;\s*"
    r"|(?<!\d)\s+[-–—]+\s+|\s+[-–—]+\s+(?!\d)|—"
    r"|,?\s+(?=(?:but|however|whereas|although|even though)\b)"
    r"|,\s+(?=(?:maybe|perhaps|probably|possibly|not|which|who|whose|whom|where|while|though|near|located"
    r"|situated|rather than|instead|unlike|followed by|along with|famous for"
    r"|(?:and\s+)?(?:it|its|he|she|they|that|this|there)(?:['’]s|\s)"
    r"|(?:and|or)\s+(?:I|maybe|perhaps)\b|I\s|I['’]|my\s(?:best\s)?guess)\b)"
    r"|(?<=\S)\s+(?=\d[.)]\s+\S)",
    re.IGNORECASE,
)
_MARKER = re.compile(r"[\s\"'“”‘’*_#>`(\[-]*(?:(?<![^\s*_#>`-])(?:\d{1,2}[.)]|[-*•])\s+)?[\s\"'“”‘*_`(\[]*")


def clauses(text: str) -> list[Span]:
    """The character ranges of the clauses of `text`: sentences and lines, cut again before "but", ",
    which", ", not"...

    List markers and blanks around a clause are outside it; clauses without a letter or digit are left out.
    """
    edges = [0]
    for match in _BOUNDARY.finditer(text):
        if match.group("stop") and match.group("stop")[0] == ".":
            before, after = text[: match.start() + 1], text[match.end() :]
            word = re.match(r"[^\W\d_]+(?![\w.])", after)
            abbreviated = bool(_ABBREVIATION.search(before[-12:]))
            if abbreviated and after and not (word and word.group() in _OPENERS):
                continue  # "J. K. Rowling", "St. Paul"; but "Vitamin C. It is ..." ends a sentence
            if before[:-1].strip(" *-\n").isdigit() and before[:-1].strip(" *-\n") == "1" and after:
                continue  # "1. Paris": a list marker, taken off below
            if re.search(r"\n\W*\d{1,2}\.$", before) or (
                re.match(r"\W*1\.\s", text) and re.search(r"\s\d{1,2}\.$", before)
            ):
                continue
        edges += [match.start() if not match.group("stop") else match.end(), match.end()]
    edges.append(len(text))
    found: list[Span] = []
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        marker = _MARKER.match(text, low, high)
        start = marker.end() if marker and (low or not re.match(r"\W*(?!1[.)])\d", text)) else low
        piece = text[start:high]
        if any(character.isalnum() or character in "%$" for character in piece):
            start += len(piece) - len(piece.lstrip())
            found.append(Span(start, start + len(piece.strip())))
        elif any(character.isalnum() for character in text[low:high]):
            whole = text[low:high]  # the marker was all there was: "7."
            found.append(Span(low + len(whole) - len(whole.lstrip()), low + len(whole.rstrip())))
    return found
