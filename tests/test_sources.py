"""Questions from files: every format says the same, and what is wrong with one is one line that says where."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hneurons.errors import MissingExtraError, QuestionsError
from hneurons.questions.sources import QuestionSet, load_questions
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


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\n", "\r\n", "\r"])
def test_csv_fields_keep_their_line_breaks(tmp_path: Path, separator: str):
    path = write(tmp_path, f'question,answers\n"Who wrote{separator}Emma?",Jane Austen\nWhat is 1 + 1?,2\n', "q.csv")
    found = by_id(path)
    assert {question.question for question in found.values()} == {f"Who wrote{separator}Emma?", "What is 1 + 1?"}
    assert {question.answers for question in found.values()} == {("Jane Austen",), ("2",)}


def test_blanks_around_texts_go(tmp_path: Path):
    (question,) = load_questions(write(tmp_path, '{"question": " Who? ", "answers": [" I ", "", "  "]}')).questions
    assert (question.question, question.answers) == ("Who?", ("I",))


def test_one_list_of_objects_in_a_json_object_is_the_rows(tmp_path: Path):
    assert by_id(write(tmp_path, json.dumps({"version": 2, "tags": ["x"], "data": GOOD}), "q.json")) == WANTED


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
        ("q.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("q.json", "[" * 100_000, "is not JSON"),
        ("q.json", '{"a": [{"question": "Who?"}], "b": [{"question": "Who?"}]}', "is not a JSON list"),
        ("q.csv", "question,answers\nWho, me?,I\n", "row 2 has more cells"),
        ("q.csv", 'question,answers\n"Who?,I\nWhat?,It\n', "line 3 is not usable as CSV"),
        ("q.csv", "question,answers,answers\nWho?,I,me\n", "more than one column 'answers'"),
        ("q.csv", "question,answers\nWho?,\"['I', 'me']\"\n", "row 2 has a list of answers that is not JSON"),
        ("q.csv", "question,answers\nWho?,['I' 'me']\n", "row 2 has a list of answers that is not JSON"),
        ("q.csv", "question,answers\nWho?,[]\n", "row 2 has no answers"),
        ("q.tsv", "question,answers\nWho?,I\n", "row 2 has no question"),
        ("q.jsonl", '{"question": "Who?", "answers": "I", "domain": {"a": 1}}\n', "row 1 has a domain"),
        ("q.parquet", ROW, "Can't read"),
        ("q.parquet", "", "Can't read"),
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
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    path = write(tmp_path, content, name)
    with pytest.raises(QuestionsError) as caught:
        load_questions(path)
    assert says in caught.value.problem
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answers", [[None], ["I", None], [{"text": "I"}], [True], True, [[[["I"]]]], [float("inf")]])
def test_an_answer_that_is_no_text_is_refused(tmp_path: Path, answers: Any):
    # It would silently become the accepted answer "None" or "True".
    path = write(tmp_path, lines([{"question": "Who?", "answers": answers}]))
    with pytest.raises(QuestionsError, match="row 1"):
        load_questions(path)


@pytest.mark.parametrize("part", ["question", "answers", "id", "domain"])
def test_half_a_character_is_refused(tmp_path: Path, part: str):
    # JSON can spell half a surrogate pair; UTF-8, and so the hash and the journals, can't hold it.
    path = write(tmp_path, json.dumps({**GOOD[0], part: "What is \ud83e?"}) + "\n")
    with pytest.raises(QuestionsError, match="row 1"):
        load_questions(path)


def test_a_huge_csv_field_is_one_line(tmp_path: Path):
    path = write(tmp_path, "question,answers\n" + "x" * 200_000 + ",I\n", "q.csv")
    with pytest.raises(QuestionsError):
        load_questions(path)


LONG = pytest.param("Who wrote Emma? " * 300, id="long")


@pytest.mark.parametrize("source", ["nowhere.jsonl", "trivia", "TriviaQA", "", ".", "a\0b", LONG])
def test_no_such_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuestionsError, match="There is no question set or file") as caught:
        load_questions(source)
    assert all(name in caught.value.remedy for name in ("starter", "triviaqa", "simpleqa", ".parquet"))


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


def test_the_name_starter_is_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ROW, "starter")
    assert load_questions("starter", limit=3).origin == "starter"
    assert load_questions(Path("starter").resolve()).origin == "file"


# -- every format --------------------------------------------------------------------------------------


def write_separated(delimiter: str) -> Callable[[Path, list[str], list[dict[str, Any]]], None]:
    def write_it(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(columns)
            for row in rows:
                cells = [row[column] for column in columns]
                writer.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])

    return write_it


def write_jsonl(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.write_text(lines([{column: row[column] for column in columns} for row in rows]), encoding="utf-8")


def write_json(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps([{column: row[column] for column in columns} for row in rows]), encoding="utf-8")


def write_parquet(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({column: [row[column] for row in rows] for column in columns}), path
    )


WRITERS = {
    "csv": write_separated(","),
    "tsv": write_separated("\t"),
    "jsonl": write_jsonl,
    "json": write_json,
    "parquet": write_parquet,
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SOLID = TEXT.filter(lambda text: text.strip() != "")
NAMES = {
    "question": ["question", "Prompt", "QUERY", "q", "problem", "Body"],
    "answers": ["answers", "Answer", "gold", "target", "Exact Answer", "possible-answers", "correct_answers"],
    "id": ["id", "QID", "question_id"],
    "domain": ["domain", "Category", "topic", "prop"],
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[dict[str, Any]], dict[str, Question], dict[str, str]]:
    """Columns in some order, rows, and the questions and mapping they must give."""
    roles = {role: draw(st.sampled_from(names)) for role, names in NAMES.items()}
    for optional in ("id", "domain"):
        if draw(st.booleans()):
            del roles[optional]
    columns = draw(st.permutations([*roles.values(), "note", "s_pop"]))
    rows: list[dict[str, Any]] = []
    wanted: dict[str, Question] = {}
    for number in range(draw(st.integers(1, 5))):
        text, answers, domain = f"{number} {draw(TEXT)}", draw(st.lists(SOLID, min_size=1, max_size=3)), draw(SOLID)
        cells = {"question": text, "answers": answers, "id": f"{draw(TEXT)}{number}", "domain": domain}
        rows.append({name: cells[role] for role, name in roles.items()} | {"note": draw(TEXT), "s_pop": "7"})
        name = cells["id"] if "id" in roles else str(number)
        stripped = tuple(dict.fromkeys(answer.strip() for answer in answers))
        wanted[name] = Question(name, text.strip(), stripped, domain.strip() if "domain" in roles else "")
    return columns, rows, wanted, roles


@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=60)
@given(table=tables())
def test_any_table_comes_back_from_any_format(tmp_path_factory: pytest.TempPathFactory, suffix: str, table: Any):
    columns, rows, wanted, roles = table
    path = tmp_path_factory.mktemp("table") / f"q.{suffix}"
    WRITERS[suffix](path, columns, rows)
    asked = load_questions(path)
    first = 2 if suffix in ("csv", "tsv") else 1
    found = {q.id if "id" in roles else str(int(q.id[1:]) - first): q for q in asked.questions}
    assert {name: (q.question, q.answers, q.domain) for name, q in found.items()} == {
        name: (q.question, q.answers, q.domain) for name, q in wanted.items()
    }
    assert asked.mapping == roles
    # What it shows is what it takes.
    assert load_questions(path, fields=asked.mapping) == asked


@pytest.mark.parametrize("domain", ["[]", "['x']", '["a", "b"]', "[history"])
def test_a_domain_in_brackets_is_a_text(domain: str, tmp_path: Path):
    """As an answer it would be a list, or spelt like one."""
    row = {"question": "Who?", "answers": ["x"], "domain": domain}
    (asked,) = load_questions(write(tmp_path, json.dumps(row).encode(), "q.jsonl")).questions
    assert asked.domain == domain


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"hneurons\[data\]"):
        load_questions(write(tmp_path, b"PAR1", "q.parquet"))


def test_parquet_columns_that_mean_nothing_here_are_not_read(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    from hneurons.questions.files import read_table

    path = tmp_path / "q.parquet"
    nested = arrow.array([{"value": "I", "aliases": ["me"], "type": "x"}])
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"search_results": ["x" * 1000], "answer": nested, "question": ["Who?"]}), path
    )
    table = read_table(path, lambda columns: [name for name in columns if name != "search_results"])
    assert table.columns == ("search_results", "answer", "question")
    assert [set(row) for _, row in table.rows] == [{"answer", "question"}]
    assert load_questions(path).questions[0].answers == ("I", "me")


# -- which column is what ------------------------------------------------------------------------------


def test_a_column_can_be_named(tmp_path: Path):
    path = write(tmp_path, "Frage,a,b,answer\nWer?,ich,mich,falsch\n", "q.csv")
    asked = load_questions(path, fields={"question": "Frage", "answers": "a, b"})
    assert [(q.question, q.answers) for q in asked.questions] == [("Wer?", ("ich", "mich"))]
    assert asked.mapping == {"question": "Frage", "answers": "a,b"}


def test_a_wrong_column_names_those_that_exist(tmp_path: Path):
    path = write(tmp_path, "Frage,answer\nWer?,ich\n", "q.csv")
    with pytest.raises(QuestionsError, match="no column 'frag' to take the question from") as caught:
        load_questions(path, fields={"question": "frag"})
    assert "Frage, answer" in caught.value.remedy
    with pytest.raises(QuestionsError, match="row 2 has no question") as caught:
        load_questions(path)
    assert "Frage, answer" in caught.value.remedy


def test_rows_may_name_their_answers_differently(tmp_path: Path):
    asked = load_questions(write(tmp_path, lines(GOOD)))
    assert asked.mapping == {"question": "question", "answers": "answers,answer", "id": "id", "domain": "domain"}


# -- what is left out -----------------------------------------------------------------------------------

EMPTY = [GOOD[0], {"question": "Who?", "answers": []}, {"question": "What?"}, {"question": "Why?", "answers": " "}]


def test_rows_without_answers_are_refused_with_their_count(tmp_path: Path):
    path = write(tmp_path, lines(EMPTY))
    with pytest.raises(QuestionsError, match=r"row 2 has no answers \(3 rows have none\)") as caught:
        load_questions(path)
    assert "allow_empty" in caught.value.remedy


def test_rows_without_answers_are_kept_when_allowed(tmp_path: Path):
    asked = load_questions(write(tmp_path, lines(EMPTY)), allow_empty=True)
    assert {q.question: q.answers for q in asked.questions} == {
        GOOD[0]["question"]: ("Paris", "City of Light"), "Who?": (), "What?": (), "Why?": ()
    }  # fmt: skip


@pytest.mark.parametrize("answers", [{"I": 1}, [None], "['I', 'me']"])
def test_answers_that_make_no_sense_are_never_empty(tmp_path: Path, answers: Any):
    path = write(tmp_path, lines([{"question": "Who?", "answers": answers}]))
    with pytest.raises(QuestionsError, match="row 1"):
        load_questions(path, allow_empty=True)


def test_a_repeated_question_is_dropped_and_counted(tmp_path: Path):
    texts = [
        "Who wrote Emma?",
        " who  WROTE emma",
        "Who wrote Emma.",
        "Who wrote Emma II?",
        "What is 10²?",
        "What is 102?",
    ]
    path = write(tmp_path, lines([{"question": text, "answers": [str(i)]} for i, text in enumerate(texts)]))
    asked = load_questions(path)
    assert {q.answers[0] for q in asked.questions} == {"0", "3", "4", "5"}
    assert asked.dropped == {"repeated question": 2}
    assert load_questions(path, limit=1).dropped == asked.dropped
    assert load_questions(write(tmp_path, ROW)).dropped == {}


def test_a_set_needs_only_a_name_and_questions():
    plain = QuestionSet("mine", (Question("a", "Who?", ("I",)),))
    assert (plain.origin, plain.mapping, plain.dropped) == ("", {}, {})


# -- the real sets --------------------------------------------------------------------------------------

DATA = Path(os.environ.get("HNEURONS_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.parametrize(
    ("name", "rows"), [("triviaqa", 6500), ("nq_open", 3610), ("bioasq", 1600), ("truthfulqa", 817)]
)
def test_a_known_set_from_the_data_folder(monkeypatch: pytest.MonkeyPatch, name: str, rows: int):
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    monkeypatch.setenv("HNEURONS_DATA", str(DATA))
    asked = load_questions(name)
    assert (asked.name, asked.origin) == (name, "file")
    assert len(asked.questions) + sum(asked.dropped.values()) == rows
    assert len(asked.questions) > 0.99 * rows
    if name == "truthfulqa":
        assert asked.mapping["answers"] == "best_answer,correct_answers"
        assert asked.mapping["domain"] == "category"
        assert all(len(set(question.answers)) == len(question.answers) for question in asked.questions)
