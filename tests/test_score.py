import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from hneurons.errors import QuestionsError, RunError, UsageError
from hneurons.live import score as module
from hneurons.live.monitor import Monitor
from hneurons.live.score import score_file
from test_tokens import NEURONS, card_of

ROWS: list[dict[str, Any]] = [
    {"id": n, "question": f"What is number {n}?", "response": f"The number is {n}.", "extra": {"kept": [n, None]}}
    for n in range(10)
]


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    model = tiny.study()
    return Monitor(model, card_of(model, NEURONS))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_in_order_with_their_risks(monitor: Monitor, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    done = score_file(monitor, write(tmp_path / "in.jsonl", ROWS), out)
    made = read(out)
    assert done == {"out": str(out), "rows": 10, "scored": 10, "flagged": done["flagged"], "new": 10}
    assert [{k: v for k, v in row.items() if k != "hneurons"} for row in made] == ROWS
    for row in made:
        reading = monitor.score(row["question"], row["response"])
        assert reading is not None
        told = row["hneurons"]
        assert told["risk"] == pytest.approx(reading.risk, abs=1e-4)
        assert told["flagged"] == reading.flagged
        assert "".join(token["text"] for token in told["tokens"]) == row["response"]
        assert told["answer"]["text"] == row["response"][told["answer"]["start"] : told["answer"]["end"]]


def test_a_stopped_call_goes_on_and_ends_the_same(monitor: Monitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    source = write(tmp_path / "in.jsonl", ROWS)
    score_file(monitor, source, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    calls: list[int] = []
    real = module._scores

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "_scores", dies)
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_file(monitor, source, out)
    assert len(read(out)) == 4
    with out.open("ab") as file:
        file.write(b'{"id": 4, "quest')  # a line that was being written
    assert score_file(monitor, source, out)["new"] == 6
    assert out.read_bytes() == whole
    assert score_file(monitor, source, out)["new"] == 0


def test_a_file_of_other_rows_or_of_another_alpha_is_not_continued(monitor: Monitor, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", ROWS)
    score_file(monitor, source, out)
    before = out.read_bytes()
    with pytest.raises(RunError, match="another card or alpha"):
        score_file(monitor, source, out, alpha=0.0)
    with pytest.raises(RunError, match="line 1 holds another row"):
        score_file(monitor, write(tmp_path / "in.jsonl", ROWS[::-1]), out)
    with pytest.raises(RunError, match="more rows"):
        score_file(monitor, write(tmp_path / "in.jsonl", ROWS[:3]), out)
    with pytest.raises(UsageError, match="overwrite"):
        score_file(monitor, out, out)
    assert out.read_bytes() == before


def test_one_bad_row_goes_without_and_the_others_do_not(monitor: Monitor, tmp_path: Path):
    rows = [
        ROWS[0],
        {"question": "Who?", "response": ""},
        {"question": "Who?", "response": None},
        {"question": "Who?", "response": "word " * 400},
        ROWS[1],
    ]
    score_file(monitor, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    made = [row["hneurons"] for row in read(tmp_path / "out.jsonl")]
    assert ["risk" in told for told in made] == [True, False, False, False, True]
    assert "says nothing" in made[1]["problem"]
    assert "lacks" in made[2]["problem"]
    assert "reads 256" in made[3]["problem"]


def test_conversations_and_other_columns(monitor: Monitor, tmp_path: Path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
    ]
    rows = [{"messages": turns}]
    score_file(monitor, write(tmp_path / "a.jsonl", rows), tmp_path / "a.out")
    assert read(tmp_path / "a.out")[0]["hneurons"]["answer"]["text"] == "Paris"
    (tmp_path / "b.csv").write_text("Frage,Antwort\nWho?,It is Paris.\n", encoding="utf-8")
    fields = {"question": "Frage", "response": "Antwort"}
    score_file(monitor, tmp_path / "b.csv", tmp_path / "b.out", fields=fields, tokens=False)
    made = read(tmp_path / "b.out")[0]
    assert made["Antwort"] == "It is Paris."
    assert "tokens" not in made["hneurons"]


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"a": 1}], {}, "no column 'question'"),
        ([{"question": "x"}], {}, "no column 'response'"),
        (ROWS, {"response": "nope"}, "no column 'nope'"),
        (ROWS, {"reply": "response"}, "no role 'reply'"),
        ([{"prompt": "x"}], {"question": "prompt", "response": "prompt"}, "same column"),
        ([{**ROWS[0], "hneurons": 1}], {}, "row 1 has a column 'hneurons'"),
    ],
)
def test_files_that_cannot_be_scored_say_why(monitor: Monitor, tmp_path: Path, rows: Any, fields: Any, message: str):
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(UsageError, match=message):
        score_file(monitor, source, tmp_path / "out.jsonl", fields=fields)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_value_that_json_has_not_is_refused(monitor: Monitor, tmp_path: Path):
    (tmp_path / "in.jsonl").write_text('{"question": "x", "response": "y", "v": NaN}\n')
    with pytest.raises(UsageError, match="row 1 holds what JSON can't"):
        score_file(monitor, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "in.jsonl").write_text("not json\n")
    with pytest.raises(QuestionsError, match="line 1"):
        score_file(monitor, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
