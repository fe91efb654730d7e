"""Questions from files: everything that can be wrong with one is one line that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hneurons.errors import QuestionsError
from hneurons.questions.sources import load_questions
from hneurons.types import Question

GOOD: list[dict[str, Any]] = [
    {"id": "a", "question": "What is the capital of France?", "answers": ["Paris", "City of Light"], "domain": "geo"},
    {"id": "b", "question": "Who wrote Emma?", "answers": "Jane Austen"},
    {"question": "How many legs has a spider?", "answer": ["8"]},
]


def write(folder: Path, content: str | bytes, name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[Any], end: str = "\n") -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)


def by_id(path: Path) -> dict[str, Question]:
    return {question.id: question for question in load_questions(path).questions}


WANTED = {
    "a": Question("a", "What is the capital of France?", ("Paris", "City of Light"), "geo"),
    "b": Question("b", "Who wrote Emma?", ("Jane Austen",)),
    "q3": Question("q3", "How many legs has a spider?", ("8",)),
}


# -- good files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", lines(GOOD)),
        ("q.jsonl", lines(GOOD).rstrip("\n")),
        ("q.jsonl", lines(GOOD, "\r\n")),
        ("q.jsonl", "\ufeff" + lines(GOOD)),
        ("q.json", json.dumps(GOOD, indent=2)),
        ("q.JSON", "\ufeff" + json.dumps(GOOD)),
        ("q.txt", lines(GOOD)),
    ],
    ids=["plain", "no last newline", "crlf", "bom", "list", "list with bom", "other suffix"],
)
def test_the_same_questions_in_every_form(tmp_path: Path, name: str, content: str):
    assert by_id(write(tmp_path, content, name)) == WANTED


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv(tmp_path: Path, end: str, bom: str):
    content = end.join(
        [
            "id,question,answers,domain",
            'a,"What, in French, is a ""chien""?",dog,words',
            "b,Who wrote Emma?,Jane Austen,",
            "",
        ]
    )
    found = by_id(write(tmp_path, bom + content, "q.csv"))
    assert found == {
        "a": Question("a", 'What, in French, is a "chien"?', ("dog",), "words"),
        "b": Question("b", "Who wrote Emma?", ("Jane Austen",)),
    }


def test_blank_lines_are_skipped_but_counted(tmp_path: Path):
    path = write(tmp_path, "\n" + lines(GOOD[:1]) + "  \n\n{bad\n")
    with pytest.raises(QuestionsError, match="line 5"):
        load_questions(path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_unicode_line_separators_do_not_split_a_line(tmp_path: Path, separator: str):
    text = f"Who wrote{separator}Emma?"
    raw = json.dumps(text, ensure_ascii=False)
    path = write(tmp_path, f'{{"question": {raw}, "answers": ["Jane{separator}Austen"]}}\n' if separator > "\x1f" else
                 json.dumps({"question": text, "answers": [f"Jane{separator}Austen"]}) + "\n")  # fmt: skip
    (question,) = load_questions(path).questions
    assert (question.question, question.answers) == (text, (f"Jane{separator}Austen",))


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\n", "\r\n"])
def test_csv_fields_keep_their_line_breaks(tmp_path: Path, separator: str):
    path = write(tmp_path, f'question,answers\n"Who wrote{separator}Emma?",Jane Austen\nWhat is 1 + 1?,2\n', "q.csv")
    found = by_id(path)
    assert {" ".join(question.question.split()) for question in found.values()} == {"Who wrote Emma?", "What is 1 + 1?"}
    assert {question.answers for question in found.values()} == {("Jane Austen",), ("2",)}


def test_blanks_around_texts_go(tmp_path: Path):
    (question,) = load_questions(write(tmp_path, '{"question": " Who? ", "answers": [" I ", "", "  "]}')).questions
    assert (question.question, question.answers) == ("Who?", ("I",))


def test_numbers_as_answers_are_texts(tmp_path: Path):
    (question,) = load_questions(write(tmp_path, '{"question": "When?", "answers": [1969, 2.5]}')).questions
    assert question.answers == ("1969", "2.5")


# -- bad files ----------------------------------------------------------------------------------------

ROW = lines(GOOD[:1])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.jsonl", "", "holds no questions"),
        ("q.jsonl", "\n \n\n", "holds no questions"),
        ("q.jsonl", "\ufeff", "holds no questions"),
        ("q.json", "[]", "holds no questions"),
        ("q.csv", "", "holds no questions"),
        ("q.csv", "question,answers\n", "holds no questions"),
        ("q.jsonl", ROW + "{'question': 'Who?'}\n", "line 2 is not JSON"),
        ("q.jsonl", ROW + ROW[:20], "line 2 is not JSON"),
        ("q.jsonl", "What is the capital of France?\tParis\n", "line 1 is not JSON"),
        ("q.jsonl", ROW + '["Who?", "I"]\n', "row 2 is not an object"),
        ("q.jsonl", ROW + '"Who?"\n', "row 2 is not an object"),
        ("q.jsonl", ROW + "null\n", "row 2 is not an object"),
        ("q.jsonl", ROW + '{"answers": ["I"]}\n', "row 2 has no question"),
        ("q.jsonl", ROW + '{"question": "  ", "answers": ["I"]}\n', "row 2 has no question"),
        ("q.jsonl", ROW + '{"question": 3, "answers": ["I"]}\n', "row 2 has no question"),
        ("q.jsonl", ROW + '{"question": "Who?"}\n', "row 2 has no answers"),
        ("q.jsonl", ROW + '{"question": "Who?", "answers": []}\n', "row 2 has no answers"),
        ("q.jsonl", ROW + '{"question": "Who?", "answers": ["", " "]}\n', "row 2 has no answers"),
        ("q.jsonl", ROW + '{"question": "Who?", "answers": null}\n', "row 2 has no answers"),
        ("q.jsonl", ROW + '{"question": "Who?", "answers": {"I": 1}}\n', "row 2 has no answers"),
        ("q.jsonl", ROW + "\n" + ROW, "row 3 has the id 'a' of row 1"),
        ("q.json", "[{]", "is not JSON"),
        ("q.json", ROW, "is not a JSON list"),
        ("q.json", "[1]", "row 1 is not an object"),
        ("q.csv", "frage,antwort\nWer?,Ich\n", "row 2 has no question"),
        ("q.csv", "question;answers\nWho?;I\n", "row 2 has no question"),
        ("q.csv", "question,answers\nWho?\n", "row 2 has no answers"),
        ("q.csv", "id,question,answers\na,Who?,I\na,What?,It\n", "row 3 has the id 'a' of row 2"),
        ("q.jsonl", "Qué\n".encode("latin-1"), "Can't read"),
        ("q.jsonl", b"\x1f\x8b\x08\x00gz", "Can't read"),
        ("q.jsonl", lines(GOOD).encode("utf-16"), "Can't read"),
    ],
)  # fmt: skip
def test_a_bad_file_says_what_and_where(tmp_path: Path, name: str, content: str | bytes, says: str):
    path = write(tmp_path, content, name)
    with pytest.raises(QuestionsError) as caught:
        load_questions(path)
    assert says in caught.value.problem
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answers", [[None], ["I", None], [["I", "me"]], [{"text": "I"}], [True]])
def test_an_answer_that_is_no_text_is_refused(tmp_path: Path, answers: list[Any]):
    # It would silently become the accepted answer "None" or "['I', 'me']".
    path = write(tmp_path, lines([{"question": "Who?", "answers": answers}]))
    with pytest.raises(QuestionsError, match="row 1"):
        load_questions(path)


def test_half_a_character_is_refused(tmp_path: Path):
    # JSON can spell half a surrogate pair; UTF-8, and so the hash and the journals, can't hold it.
    path = write(tmp_path, '{"question": "What is \\ud83e?", "answers": ["a brain"]}\n')
    with pytest.raises(QuestionsError, match="row 1"):
        load_questions(path)


def test_a_huge_csv_field_is_one_line(tmp_path: Path):
    path = write(tmp_path, "question,answers\n" + "x" * 200_000 + ",I\n", "q.csv")
    with pytest.raises(QuestionsError):
        load_questions(path)


LONG = pytest.param("Who wrote Emma? " * 300, id="long")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "triviaqa", "", ".", "a\0b", LONG])
def test_no_such_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuestionsError, match="There is no question set or file") as caught:
        load_questions(source)
    assert "starter" in caught.value.remedy


def test_a_folder_is_no_source(tmp_path: Path):
    with pytest.raises(QuestionsError, match="There is no question set or file"):
        load_questions(tmp_path)


# -- order, limit, hash -------------------------------------------------------------------------------


def many(folder: Path, count: int = 60) -> Path:
    return write(folder, lines([{"id": str(i), "question": f"{i}?", "answers": [str(i)]} for i in range(count)]))


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path: Path):
    path = many(tmp_path)
    first, again, other = (load_questions(path, seed=seed).questions for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [question.id for question in first] != [str(i) for i in range(60)]
    assert set(first) == set(other)


def test_a_limit_takes_the_first_of_the_shuffled_order(tmp_path: Path):
    path = many(tmp_path)
    everything = load_questions(path, seed=3).questions
    for limit in (1, 20, 60, 1000):
        assert load_questions(path, seed=3, limit=limit).questions == everything[:limit]


def test_the_hash_is_of_the_content(tmp_path: Path):
    def sha(rows: list[dict[str, Any]], seed: int = 0, limit: int | None = None) -> str:
        return load_questions(write(tmp_path, lines(rows)), seed=seed, limit=limit).sha256

    base = sha(GOOD)
    assert sha(GOOD) == base
    for changed in (
        [{**GOOD[0], "question": "What was the capital of France?"}, *GOOD[1:]],
        [{**GOOD[0], "answers": ["Paris"]}, *GOOD[1:]],
        [{**GOOD[0], "answers": ["City of Light", "Paris"]}, *GOOD[1:]],
        [{**GOOD[0], "id": "z"}, *GOOD[1:]],
        GOOD[:2],
    ):
        assert sha(changed) != base
    assert sha(GOOD, limit=2) != base
    assert len({sha(GOOD, seed=seed) for seed in range(20)}) > 1


def test_the_name_is_the_files(tmp_path: Path):
    assert load_questions(write(tmp_path, ROW, "my set.v2.jsonl")).name == "my set.v2"
    assert load_questions("starter", limit=1).name == "starter"
