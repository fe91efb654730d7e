import inspect
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases_spans import CASES
from hneurons.answers.spans import RuleSpanFinder, SpanFinder, to_token_span
from hneurons.types import Span

FINDER: SpanFinder = RuleSpanFinder()
PIECES = [
    "Sydney",
    "is",
    "the",
    "capital",
    "of",
    "**Paris**",
    '"Au"',
    "U.S.",
    "St. Paul",
    "C++",
    "3.14",
    "not",
    "7 + 5 =",
    "13",
    ".",
    ",",
    "\n",
    "1.",
    "- ",
    "Answer:",
    "I don't know",
    "but",
    "東京",
    "written by",
    "in 1603",
    "(",
    ")",
]
REPLY = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join))
QUESTION = st.one_of(st.sampled_from(sorted({question for question, _, _ in CASES})), st.text())


def marked(question: str, response: str) -> str | None:
    span = FINDER.find(question, response)
    return response[span.start : span.end] if span else None


@pytest.mark.parametrize(("question", "response", "claim"), CASES)
def test_claim(question: str, response: str, claim: str | None):
    assert marked(question, response) == claim


def test_the_table_is_large():
    assert len(CASES) >= 80


def test_a_finder_cannot_see_gold_answers():
    assert list(inspect.signature(RuleSpanFinder.find).parameters) == ["self", "question", "response"]


@given(QUESTION, REPLY)
def test_a_span_is_clean_and_inside_the_text(question: str, response: str):
    span = FINDER.find(question, response)
    assert span == RuleSpanFinder().find(question, response)
    if span is None:
        return
    assert span.end <= len(response)
    text = response[span.start : span.end]
    assert text == text.strip()
    assert text[0] not in ".,;:!?*\"'”’"
    assert text[-1] not in ',;:!?*"“‘'
    assert text[-1] != "." or re.search(r"(?:[^\W\d_]\.){2,}$", text)


@given(st.sampled_from(CASES), st.sampled_from(["", " ", "\n"]), st.sampled_from(["", " ", "\n"]))
def test_blanks_around_a_response_do_not_move_the_claim(case: tuple[str, str, str | None], before: str, after: str):
    question, response, claim = case
    assert marked(question, before + response + after) == claim


@given(st.text(min_size=1, max_size=40), st.data())
def test_token_span_covers_every_character_and_nothing_it_need_not(text: str, data: st.DataObject):
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text))))})
    offsets = list(itertools.pairwise(cuts))
    start = data.draw(st.integers(0, len(text) - 1))
    chars = Span(start, data.draw(st.integers(start + 1, len(text))))
    tokens = to_token_span(chars, [*offsets, (len(text), len(text))])
    assert tokens is not None
    assert tokens.end <= len(offsets)
    first, last = offsets[tokens.start], offsets[tokens.end - 1]
    assert first[0] <= chars.start < first[1]
    assert last[0] < chars.end <= last[1]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_a_span_of_whole_tokens_comes_back(widths: list[int], data: st.DataObject):
    edges = [0, *itertools.accumulate(widths)]
    offsets = list(itertools.pairwise(edges))
    start = data.draw(st.integers(0, len(widths) - 1))
    tokens = Span(start, data.draw(st.integers(start + 1, len(widths))))
    assert to_token_span(Span(offsets[tokens.start][0], offsets[tokens.end - 1][1]), offsets) == tokens


def test_zero_width_tokens_never_count():
    assert to_token_span(Span(0, 5), [(0, 0), (0, 5), (5, 5)]) == Span(1, 2)
    assert to_token_span(Span(0, 5), [(0, 0), (5, 5)]) is None
    assert to_token_span(Span(6, 9), [(0, 3), (3, 6)]) is None
    assert to_token_span(Span(2, 3), []) is None
