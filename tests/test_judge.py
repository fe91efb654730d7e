import string

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from num2words import num2words

from cases_judge import CASES
from hneurons.answers.judge import AliasJudge, FixedJudge, Judge
from hneurons.answers.normalise import clauses, contains, normalise, positions
from hneurons.answers.reading import read
from hneurons.types import Question, Verdict

VERDICTS = {"C": Verdict.CORRECT, "W": Verdict.WRONG, "A": Verdict.ABSTAINED, "U": Verdict.UNPARSABLE}
JUDGE: Judge = AliasJudge()
WORD = st.text(string.ascii_lowercase, min_size=4, max_size=12)


def ask(question: str, answers: tuple[str, ...], reply: str) -> Verdict:
    return JUDGE.judge(Question("q", question, answers), reply)


@pytest.mark.parametrize(("asked", "reply", "verdict"), CASES)
def test_verdict(asked: tuple[str, tuple[str, ...]], reply: str, verdict: str):
    assert ask(*asked, reply) is VERDICTS[verdict]


def test_the_table_is_large_and_has_every_verdict():
    assert len(CASES) >= 120
    assert {verdict for _, _, verdict in CASES} == set(VERDICTS)


def test_fixed_judge_is_a_judge():
    judge: Judge = FixedJudge(Verdict.WRONG)
    assert judge.judge(Question("q", "Who?", ("me",)), "me") is Verdict.WRONG


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("O'Neill’s", "oneills"),
        ("The First", "1st"),
        ("twenty-one", "21"),
        ("one hundred and five", "105"),
        ("1,500", "1500"),
        ("H₂O", "h2o"),
        ("C++ and C#", "c++ and c#"),
        ("Vitamin A", "vitamin a"),
        ("A", "a"),
        ("The A-Team", "ateam"),
        ("The The", "the the"),
        ("$5 million", "5000000 $"),
        ("fifty per cent", "50 %"),
        ("J. S. Bach", "js bach"),
        ("J.S. Bach", "js bach"),
        ("U.S.A.", "usa"),
        ("nineteen eighty-four", "1984"),
        ("東京都", "東 京 都"),
        ("Łódź", "lodz"),
        ("Straße", "strasse"),
        ("हिन्दी", "हिन्दी"),
        ("서울", "서울"),
        ("ガ", "ガ"),
        ("100°C", "100 degrees celsius"),
        ("3.14", "3.14"),
        ("2.0", "2"),
        ("½", "1/2"),
        ("1.5 million", "1500000"),
        ("twenty, one", "20 1"),
        ("one of the three", "one of 3"),
        ("Louis XIV", "louis xiv"),
        ("5km", "5 km"),
        ("A+", "a+"),
        ("a hundred", "100"),
        ("9/11", "9/11"),
        ("-5", "-5"),
        ("1914-1918", "1914 1918"),
        ("AT&T", "at and t"),
        ("100,200", "100200"),
        ("12,34", "12 34"),
        ("30's", "30s"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalise(text: str, tokens: str):
    assert " ".join(normalise(text)) == tokens


@given(st.integers(0, 999_999_999))
def test_number_words_become_digits(number: int):
    assert normalise(num2words(number).replace(",", "")) == (str(number),)
    assert normalise(num2words(number, to="ordinal").replace(",", "")) == (num2words(number, to="ordinal_num"),)


PIECES = """a an the one two twenty hundred thousand million first and of no vitamin is 5 5.0 1,500 $5 5km C++
J. U.S. per cent , . - O'Neill -3 9/11""".split()  # noqa: SIM905


@given(st.one_of(st.text(), st.text("aA1,.-$%&'°+#/:; B"), st.lists(st.sampled_from(PIECES)).map(" ".join)))
@example("5 dollars 6")
@example("PER#CENT")
def test_normalise_is_idempotent_on_joined_tokens(text: str):
    tokens = normalise(text)
    assert normalise(" ".join(tokens)) == tokens
    assert all(tokens)
    assert not any(" " in token for token in tokens)


@given(st.lists(WORD, min_size=1, max_size=5), st.sampled_from(',;:!?*"()[]_'))
def test_normalise_ignores_case_accents_and_punctuation(words: list[str], mark: str):
    plain = normalise(" ".join(words))
    assert normalise(" ".join(words).upper()) == plain
    assert normalise(" ".join(word[0] + "\u0301" + word[1:] for word in words)) == plain
    assert normalise(mark + " ".join(words) + mark) == plain


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=3))
def test_contains_agrees_with_positions(haystack: list[str], needle: list[str]):
    slow = any(haystack[i : i + len(needle)] == needle for i in range(len(haystack))) and bool(needle)
    assert contains(haystack, needle) is slow
    assert bool(positions(haystack, needle)) is slow


@given(st.text(), st.text())
def test_an_alias_alone_is_always_correct(question: str, alias: str):
    assume(normalise(alias))
    assert ask(question, (alias,), alias) is Verdict.CORRECT


@given(
    st.sampled_from(["Canberra", "art", "Au", "8", "Louis XIV", "William Shakespeare"]),
    st.text(string.ascii_letters, min_size=1, max_size=6),
)
def test_letters_stuck_to_an_alias_are_not_a_match(alias: str, letters: str):
    changed = normalise(alias + letters)
    assume(len(changed) == len(normalise(alias)) and changed != normalise(alias))  # "8km" is 8 km
    for reply in (alias + letters, f"It is {alias}{letters}."):
        assert ask("Which one is it?", (alias,), reply) is not Verdict.CORRECT
    if alias.isalpha():
        assert ask("Which one is it?", (alias,), letters + alias) is not Verdict.CORRECT


@given(st.text(), st.text())
def test_any_text_gets_a_verdict_and_no_accepted_answer_is_never_correct(question: str, reply: str):
    verdict = ask(question, (), reply)
    assert verdict is not Verdict.CORRECT
    assert (verdict is Verdict.UNPARSABLE) is (not normalise(reply))


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(" \n.,;-?1*")))
def test_clauses_lie_in_order_inside_the_text(text: str):
    end = 0
    for span in clauses(text):
        assert end <= span.start < span.end <= len(text)
        assert text[span.start : span.end] == text[span.start : span.end].strip()
        end = span.end


def test_read_sees_both_a_refusal_and_a_claim():
    text = "I'm not sure, but I think it is Paris."
    reading = read("What is the capital of France?", text)
    assert reading.refused
    assert reading.claim is not None
    assert text[reading.claim.start : reading.claim.end] == "but I think it is Paris."
