"""Sets known by name: the data folder, the hub's cache, the hub itself (a small server here), and no network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from hneurons.errors import QuestionsError
from hneurons.questions.hub import KNOWN, KnownSet, by_hand, data_folder, download
from hneurons.questions.sources import load_questions

ROW = '{"question": "Who wrote Emma?", "answers": ["Jane Austen"]}\n'
NEWEST = "ab" * 20
POPQA = (
    "id\tsubj\tprop\tobj\ts_pop\tquestion\tpossible_answers\n"
    '42\tGeorge\toccupation\tpolitician\t142\tWhat is George\'s occupation?\t"[""politician"", ""political leader""]"\n'
)
SIMPLEQA = (
    "metadata,problem,answer\n"
    "\"{'topic': 'Science and technology', 'answer_type': 'Person', 'urls': ['https://x.org']}\","
    "Who received the award in 2010?,Michio Sugeno\n"
)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub and an empty data folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HNEURONS_DATA", str(tmp_path / "data"))
    return tmp_path / "hub"


def cached(folder: Path, known: KnownSet, commit: str, content: str) -> None:
    """Lay the file out as the hub's library does."""
    repo = folder / f"datasets--{known.repo.replace('/', '--')}"
    path = repo / "snapshots" / commit / known.file
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)


def test_every_set_is_pinned_and_documented():
    docs = (Path(__file__).parents[1] / "docs" / "questions.md").read_text(encoding="utf-8")
    for name, known in KNOWN.items():
        assert name == known.name
        assert re.fullmatch("[0-9a-f]{40}", known.revision or ""), name
        (row,) = [line for line in docs.splitlines() if line.startswith(f"| `{name}` ")]
        assert all(text in row for text in (known.repo, known.file, known.revision or ""))


# -- the data folder ----------------------------------------------------------------------------------


def test_the_data_folder_is_in_the_cache_unless_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HNEURONS_CACHE", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "data"
    monkeypatch.delenv("HNEURONS_DATA")
    assert data_folder() == tmp_path / "cache" / "data"


@pytest.mark.parametrize(
    ("name", "file"),
    [("triviaqa", "triviaqa.jsonl"), ("nq_open", "nq_open_dev.jsonl"), ("bioasq", "bioasq_factoid.jsonl")],
)
def test_a_file_in_the_data_folder_comes_before_the_hub(tmp_path: Path, hub_cache: Path, name: str, file: str):
    known = KNOWN[name]
    cached(hub_cache, known, known.revision or "", "never read")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / file).write_text(ROW)
    asked = load_questions(name)
    assert (asked.name, asked.origin, asked.questions[0].answers) == (name, "file", ("Jane Austen",))


def test_a_file_of_that_name_comes_before_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "popqa.jsonl").write_text("never read")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "popqa").write_text(ROW)
    assert load_questions("popqa").questions[0].answers == ("Jane Austen",)


def test_only_the_factoid_questions_of_bioasqs_own_file(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bioasq.json").write_text(
        '{"questions": [{"type": "factoid", "body": "Which gene?", "id": "5a", "exact_answer": [["TP53", "p53"]],'
        ' "ideal_answer": ["The gene is TP53."]}, {"type": "yesno", "body": "Is it?", "exact_answer": "yes"}]}'
    )
    asked = load_questions("bioasq")
    assert [(q.id, q.question, q.answers) for q in asked.questions] == [("5a", "Which gene?", ("TP53", "p53"))]
    assert asked.dropped == {"type is not factoid": 1}
    # A file given by its path is taken as it is.
    assert len(load_questions(tmp_path / "data" / "bioasq.json").questions) == 2


def test_bioasq_of_the_shared_task_has_its_ids_in_another_column(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bioasq.jsonl").write_text('{"question": "Which gene?", "answers": ["TP53"], "key": "7f"}')
    assert load_questions("bioasq").questions[0].id == "7f"


def test_the_kind_of_question_is_read_from_parquet_too(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    (tmp_path / "data").mkdir()
    for kinds, dropped in ((["factoid", "list"], {"type is not factoid": 1}), (["factoid", "factoid"], {})):
        table = arrow.table({"type": kinds, "body": ["Which gene?", "Which genes?"], "exact_answer": ["A", "B"]})
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "data" / "bioasq.parquet")
        assert load_questions("bioasq").dropped == dropped


def test_a_file_without_any_question_of_the_set_is_refused(tmp_path: Path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "bioasq.json"
    path.write_text('[{"type": "yesno", "body": "Is it?", "exact_answer": "yes"}]')
    with pytest.raises(QuestionsError, match="holds no questions of bioasq") as caught:
        load_questions("bioasq")
    assert str(path) in caught.value.problem


def test_a_published_set_may_repeat_a_question_under_its_id(tmp_path: Path):
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "triviaqa.jsonl"
    row = '{"question": "Who?", "question_id": "tc_1", "answer": {"value": "I", "aliases": ["me"]}}\n'
    path.write_text(row + row)
    asked = load_questions("triviaqa")
    assert [(q.id, q.answers) for q in asked.questions] == [("tc_1", ("I", "me"))]
    assert asked.dropped == {"repeated question": 1}
    with pytest.raises(QuestionsError, match="row 2 has the id 'tc_1' of row 1"):
        load_questions(path)
    path.write_text(row + row.replace("Who", "What"))
    with pytest.raises(QuestionsError, match="row 2 has the id 'tc_1' of row 1"):
        load_questions("triviaqa")


# -- without a network --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_offline_the_error_says_where_to_put_a_file(tmp_path: Path, name: str):
    with pytest.raises(QuestionsError, match="hub can't be reached") as caught:
        load_questions(name)
    assert str(tmp_path / "data" / f"{name}.jsonl") in caught.value.remedy
    assert '"question" and "answers"' in caught.value.remedy
    assert "\n" not in str(caught.value)
    # And that is so.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{name}.jsonl").write_text(ROW)
    assert len(load_questions(name).questions) == 1


def test_offline_the_hubs_own_cache_is_used(hub_cache: Path):
    known = KNOWN["popqa"]
    cached(hub_cache, known, known.revision or "", POPQA)
    asked = load_questions("popqa")
    (question,) = asked.questions
    assert (question.id, question.domain) == ("42", "occupation")
    assert question.answers == ("politician", "political leader")
    assert asked.origin == f"hub:akariasai/PopQA@{known.revision}"


def test_another_commit_in_the_cache_is_not_taken_for_the_pinned_one(hub_cache: Path):
    cached(hub_cache, KNOWN["popqa"], NEWEST, POPQA)
    with pytest.raises(QuestionsError, match="hub can't be reached"):
        load_questions("popqa")


def test_without_a_pinned_commit_the_newest_is_named(hub_cache: Path):
    known = KnownSet("mine", "me/mine", "deep/down/q.jsonl", None, "mine")
    cached(hub_cache, known, NEWEST, ROW)
    path, commit = download(known)
    assert commit == NEWEST
    assert path.read_text() == ROW


# -- with a network -----------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._reply(body=False)

    def do_GET(self) -> None:
        self._reply(body=True)

    def _reply(self, body: bool) -> None:
        self.asked.append(self.path)
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        match = re.search("/resolve/([^/]+)/", self.path)
        commit = match[1] if match and match[1] != "main" else NEWEST
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "asked", [])
    close_session()
    yield Hub
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_set_is_fetched_at_its_commit_once(hub: type[Hub]):
    known = KNOWN["simpleqa"]
    hub.files[f"/datasets/{known.repo}/resolve/{known.revision}/{known.file}"] = SIMPLEQA.encode()
    asked = load_questions("simpleqa")
    (question,) = asked.questions
    assert question.question == "Who received the award in 2010?"
    assert (question.answers, question.domain) == (("Michio Sugeno",), "Science and technology")
    assert asked.mapping == {"question": "problem", "answers": "answer", "domain": "metadata.topic"}
    assert asked.origin == f"hub:basicv8vc/SimpleQA@{known.revision}"
    requests = len(hub.asked)
    assert load_questions("simpleqa") == asked
    assert len(hub.asked) == requests


def test_without_a_pinned_commit_the_newest_is_fetched_and_named(hub: type[Hub]):
    known = KnownSet("mine", "me/mine", "q.jsonl", None, "mine")
    hub.files["/datasets/me/mine/resolve/main/q.jsonl"] = ROW.encode()
    hub.files[f"/datasets/me/mine/resolve/{NEWEST}/q.jsonl"] = ROW.encode()
    path, commit = download(known)
    assert (path.read_text(), commit) == (ROW, NEWEST)


def test_a_file_that_the_hub_lacks_is_one_line(hub: type[Hub]):
    with pytest.raises(QuestionsError, match=r"hub doesn't give test\.tsv of akariasai/PopQA") as caught:
        load_questions("popqa")
    assert caught.value.remedy == " ".join(by_hand(KNOWN["popqa"]).split())
