"""Columns and cells: what is taken for what, and what is refused rather than guessed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hneurons.errors import QuestionsError
from hneurons.questions.fields import GUESSES, answer_texts, choose_fields

# -- columns ------------------------------------------------------------------------------------------

HUB = {
    "triviaqa": (
        ["question", "question_id", "question_source", "entity_pages", "search_results", "answer"],
        {"question": "question", "answers": "answer", "id": "question_id"},
    ),
    "nq_open": (["question", "answer"], {"question": "question", "answers": "answer"}),
    "aliases": (["question", "aliases", "answer"], {"question": "question", "answers": "answer,aliases"}),
    "mrqa": (["context", "question", "answers", "key", "labels"], {"question": "question", "answers": "answers"}),
    "bioasq": (
        ["body", "documents", "ideal_answer", "exact_answer", "type", "id", "snippets"],
        {"question": "body", "answers": "exact_answer", "id": "id"},
    ),
    "popqa": (
        ["id", "subj", "prop", "obj", "s_aliases", "o_aliases", "s_pop", "question", "possible_answers"],
        {"question": "question", "answers": "possible_answers", "id": "id", "domain": "prop"},
    ),
    "simpleqa": (["metadata", "problem", "answer"], {"question": "problem", "answers": "answer"}),
    "truthfulqa": (
        ["type", "category", "question", "best_answer", "correct_answers", "incorrect_answers", "source"],
        {"question": "question", "answers": "best_answer,correct_answers", "domain": "category"},
    ),
}


def read_all(columns: list[str], **given: Any) -> dict[str, str]:
    chosen = choose_fields(columns, **given)
    for role in GUESSES:
        chosen.values(role, dict.fromkeys(columns, "x"))
    return chosen.mapping


@pytest.mark.parametrize("name", HUB)
def test_the_columns_of_published_sets(name: str):
    columns, wanted = HUB[name]
    assert read_all(columns) == wanted
    spelt = [column.upper().replace("_", " ") for column in columns]
    assert read_all(spelt) == {role: text.upper().replace("_", " ") for role, text in wanted.items()}
    assert read_all(columns[::-1]) == wanted


@given(st.permutations([name for groups in GUESSES.values() for group in groups for name in group]))
def test_the_order_of_the_columns_never_matters(columns: list[str]):
    assert read_all(list(dict.fromkeys(columns))) == {
        "question": "question", "answers": "answers", "id": "id", "domain": "domain"
    }  # fmt: skip


def test_of_two_spellings_the_first_column_counts():
    assert read_all(["Question", "question", "answer"])["question"] == "Question"


def test_fields_come_before_hints_and_hints_before_guesses():
    columns = ["question", "answer", "key", "id", "topic"]
    assert read_all(columns)["id"] == "id"
    assert read_all(columns, hints={"id": "key", "domain": "gone"}) == {
        "question": "question", "answers": "answer", "id": "key", "domain": "topic"
    }  # fmt: skip
    assert read_all(columns, hints={"id": "key"}, fields={"id": "topic"})["id"] == "topic"


def test_an_empty_text_leaves_a_field_out():
    assert read_all(["question", "answer", "id"], fields={"id": "", "answers": " "}) == {"question": "question"}
    with pytest.raises(QuestionsError, match="can't be left out"):
        choose_fields(["question"], {"question": ""})


def test_a_named_column_may_be_spelt_loosely_and_hold_a_comma():
    assert read_all(["My Text", "a"], fields={"question": "my_text"})["question"] == "My Text"
    assert read_all(["a,b", "a", "b", "q"], fields={"answers": "a,b"})["answers"] == "a,b"
    assert choose_fields(["a,b", "q"], {"answers": "a,b"}).values("answers", {"a,b": 1}) == [1]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"question": "nope"}, "no column 'nope' to take the question from"),
        ({"answers": "q,nope"}, "no column 'nope' to take the answers from"),
        ({"answers": "q,"}, "no column ''"),
        ({"id": "nope.x"}, "no column 'nope.x'"),
        ({"anwser": "a"}, "no field 'anwser'"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, str], says: str):
    with pytest.raises(QuestionsError, match=says) as caught:
        choose_fields(["q", "a"], fields)
    assert "q, a" in caught.value.remedy or "question, answers" in caught.value.remedy


def test_many_columns_are_not_all_shown():
    with pytest.raises(QuestionsError) as caught:
        choose_fields([f"column {i}" for i in range(500)], {"question": "nope"})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "cell", [{"topic": "Art", "n": {"a": 1}}, "{'topic': 'Art', 'urls': []}", '{"topic": "Art"}'], ids=repr
)
def test_a_dot_reaches_into_an_object_or_the_text_of_one(cell: Any):
    chosen = choose_fields(["metadata", "q"], {"question": "q", "domain": "metadata.topic"})
    assert chosen.values("domain", {"metadata": cell, "q": "Who?"}) == ["Art"]
    assert chosen.candidates == {"metadata", "q"}


@pytest.mark.parametrize("cell", [None, 3, "Art", "{", [1], {"other": 1}, "(" * 5000])
def test_a_dot_into_anything_else_finds_nothing(cell: Any):
    chosen = choose_fields(["m"], {"question": "m", "domain": "m.topic"})
    assert chosen.values("domain", {"m": cell}) == [None]


def test_a_column_with_a_dot_in_its_name_is_itself():
    chosen = choose_fields(["m", "m.topic"], {"question": "m", "domain": "m.topic"})
    assert chosen.values("domain", {"m": {"topic": "inner"}, "m.topic": "outer"}) == ["outer"]


# -- answers ------------------------------------------------------------------------------------------

TRIVIA = {
    "aliases": ["Sinclair Lewis", "Harry Sinclair Lewis"],
    "matched_wiki_entity_name": "",
    "normalized_aliases": ["sinclair lewis", "lewis harry sinclair"],
    "normalized_value": "sinclair lewis",
    "type": "WikipediaEntity",
    "value": "Sinclair Lewis",
}


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("Paris", ("Paris",)),
        (" Paris ", ("Paris",)),
        (1969, ("1969",)),
        (2.5, ("2.5",)),
        (["Paris", "paris", "Paris", " "], ("Paris", "paris")),
        (("a", "b"), ("a", "b")),
        ([["TP53", "p53"], ["tumour protein"]], ("TP53", "p53", "tumour protein")),
        ('["politician", "political leader"]', ("politician", "political leader")),
        ('[["TP53", "p53"]]', ("TP53", "p53")),
        (TRIVIA, ("Sinclair Lewis", "Harry Sinclair Lewis", "sinclair lewis", "lewis harry sinclair")),
        ({"text": ["in 1066"], "answer_start": [12]}, ("in 1066",)),
        ({"value": None, "aliases": ["a"]}, ("a",)),
        (np.array(["a", "b"], dtype=object), ("a", "b")),
        (np.array([np.array(["a"], dtype=object), "b"], dtype=object), ("a", "b")),
        (np.int64(7), ("7",)),
        ("[0, 1]", ("[0, 1]",)),
        ('["a", 1]', ('["a", 1]',)),
        ("[sic]", ("[sic]",)),
        ('["a"', ('["a"',)),
        (["[0, 1]", '["a"]'], ("[0, 1]", '["a"]')),
        ("", ()),
        ("[]", ()),
        ([], ()),
        (None, ()),
        (float("nan"), ()),
    ],
    ids=repr,
)
def test_the_forms_of_answers(cell: Any, wanted: tuple[str, ...]):
    assert answer_texts([cell]) == wanted


@pytest.mark.parametrize(
    "cell",
    [True, [None], [True], {"I": 1}, [{"text": "a"}], float("inf"), [float("nan")], object(), b"a", "['a', 'b']",
     "['a' 'b']", [[[["a"]]]]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_answer_is_refused(cell: Any):
    with pytest.raises(ValueError, match="answer"):
        answer_texts([cell])


@given(st.lists(st.lists(st.text(max_size=5), max_size=3), max_size=4))
def test_a_list_reads_the_same_in_every_spelling(lists: list[list[str]]):
    flat = [text.strip() for part in lists for text in part if text.strip()]
    wanted = tuple(dict.fromkeys(flat))
    assert answer_texts([lists]) == wanted
    assert answer_texts([json.dumps(lists)]) == wanted
    assert answer_texts(lists) == wanted
    array = np.empty(len(lists), dtype=object)
    array[:] = [np.array(part, dtype=object) for part in lists]
    assert answer_texts([array]) == wanted
