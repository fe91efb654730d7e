"""The run folder survives crashes, full disks and second processes, and never loses what it has written."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hneurons.errors import RunError, RunLockedError, RunMismatchError, StorageError
from hneurons.runfolder import (
    Journal,
    RunFolder,
    dumps,
    hash_file,
    hash_json,
    read_json,
    write_json,
    write_text,
)

ROWS: list[dict[str, Any]] = [
    {"id": 0, "text": "Zoë said \u2028 \x85 no\nnewline"},
    {"id": 1, "text": "漢字 🧠", "value": 0.1},
    {"id": 2, "text": "", "none": None, "list": [1, 2.5, "x"]},
]
START: dict[str, Any] = {
    "model": {"id": "tiny", "layers": 2},
    "settings": {"samples": 10, "temperature": 1.0, "C": None},
    "data": {"starter": {"sha256": "abc", "questions": 3}},
    "notes": ["a note"],
}


def disk_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(part: str, **values: Any) -> dict[str, Any]:
    return {**START, part: {**START[part], **values}}


# -- JSON and whole files -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_dumps_refuses_numbers_that_json_has_not(number: float):
    with pytest.raises(ValueError):
        dumps({"value": [number]})
    with pytest.raises(ValueError):
        hash_json({"value": number})


def test_hash_json_ignores_key_order_and_nothing_else():
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json({"a": 1, "b": [1, 2]}) != hash_json({"a": 1, "b": [2, 1]})
    assert hash_json({}).startswith("sha256:")


def test_hash_file_is_the_usual_digest_and_reports_progress(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    seen: list[int] = []
    assert hash_file(path, seen.append) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert seen == [3]


def test_whole_files_round_trip_and_make_their_folder(tmp_path: Path):
    path = tmp_path / "new" / "deep" / "a.json"
    write_json(path, ROWS[0])
    assert read_json(path) == ROWS[0]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    before = snapshot(tmp_path)
    monkeypatch.setattr(os, where, disk_full)
    with pytest.raises(StorageError, match="No space left") as caught:
        write_json(path, {"new": "x" * 10_000})
    assert str(path) in str(caught.value)
    assert "Free some space" in caught.value.remedy
    assert snapshot(tmp_path) == before


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"old": True})
    before = snapshot(tmp_path)
    with pytest.raises(ValueError):
        write_json(path, {"new": math.nan})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "Can't write"),
        (errno.EACCES, "Can't write"),
        (errno.EIO, "Input/output"),
        (errno.EDQUOT, "No space"),
    ],
)
def test_storage_errors_name_the_file_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=words) as caught:
        write_text(tmp_path / "a.txt", "text")
    assert "a.txt" in caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}}', b"[1]", b"3", b'{"a": "\xff"}'])
def test_read_json_of_a_damaged_file_names_it(tmp_path: Path, content: bytes):
    path = tmp_path / "path.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"path\.json") as caught:
        read_json(path)
    assert caught.value.remedy
    assert path.read_bytes() == content


def test_read_json_of_a_missing_file(tmp_path: Path):
    with pytest.raises(RunError, match="missing"):
        read_json(tmp_path / "path.json")


# -- journals -----------------------------------------------------------------------------------------


def test_journal_round_trip(tmp_path: Path):
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.read() == []
    journal.append(ROWS[:1])
    journal.append([])
    journal.append(iter(ROWS[1:]))
    assert journal.read() == ROWS
    assert Journal(journal.path).read() == ROWS
    assert journal.path.read_bytes().count(b"\n") == len(ROWS)


def test_appending_nothing_makes_no_file(tmp_path: Path):
    Journal(tmp_path / "j.jsonl").append([])
    assert not (tmp_path / "j.jsonl").exists()


JSON_ROWS = st.dictionaries(
    st.text(max_size=4),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    max_size=3,
)  # fmt: skip


@settings(max_examples=150)
@given(rows=st.lists(JSON_ROWS, min_size=1, max_size=6), data=st.data())
def test_a_journal_cut_at_any_byte_keeps_every_whole_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
):
    journal = Journal(tmp_path_factory.getbasetemp() / "cut.jsonl")
    journal.path.unlink(missing_ok=True)
    journal.append(rows)
    whole = journal.path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    journal.path.write_bytes(whole[:cut])
    survivors = whole[:cut].count(b"\n")
    assert journal.read() == rows[:survivors]
    journal.append([{"later": 1}])
    assert Journal(journal.path).read() == [*rows[:survivors], {"later": 1}]


def test_every_cut_of_a_long_last_line_is_repaired(tmp_path: Path):
    # Longer than the block that the repair reads backwards.
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([*ROWS, {"text": "é" * 100_000}])
    whole = journal.path.read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[: len(ROWS)])
    assert len(whole) - len(kept) > 2 * (1 << 16)
    for cut in (len(whole) - 1, len(kept) + (1 << 16), len(kept) + (1 << 16) + 1, len(kept) + 1, len(kept)):
        journal.path.write_bytes(whole[:cut])
        assert journal.read() == ROWS
        assert journal.path.read_bytes() == kept


def test_appending_to_a_cut_journal_without_reading_it_first(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(ROWS)
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    Journal(journal.path).append([{"later": 1}])
    assert Journal(journal.path).read() == [*ROWS[:-1], {"later": 1}]


@pytest.mark.parametrize("damage", [b"{broken\n", b"\n", b"[1, 2]\n", b'{"a": 1} {"b": 2}\n'])
def test_damage_in_the_middle_names_the_line(tmp_path: Path, damage: bytes):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(ROWS)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    content = b"".join([lines[0], damage, *lines[2:]])
    journal.path.write_bytes(content)
    with pytest.raises(RunError, match=r"j\.jsonl is damaged in line 2\b") as caught:
        journal.read()
    assert "Delete the file" in caught.value.remedy
    assert "\n" not in str(caught.value)
    assert journal.path.read_bytes() == content


def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path):
    path = tmp_path / "j.jsonl"
    lines = [b'{"id": %d}\n' % number for number in range(3000)]
    lines[2499] = b'{"id": "\xff"}\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=r"in line 2500\b"):
        Journal(path).read()


def test_a_full_disk_takes_half_a_row_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(ROWS)
    before = journal.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(StorageError, match="No space left") as caught:
            journal.append([{"id": 3, "text": "x" * 100_000}])
    assert "Free some space" in caught.value.remedy
    assert journal.path.read_bytes() == before
    journal.append([{"id": 4}])
    assert journal.read() == [*ROWS, {"id": 4}]


def test_a_row_that_is_not_json_leaves_the_journal_whole(tmp_path: Path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append(ROWS)
    with pytest.raises(ValueError):
        journal.append([{"fine": 1}, {"logprob": -math.inf}])
    assert journal.read() == ROWS


# -- the lock -----------------------------------------------------------------------------------------

HOLD = """
import sys
from hneurons.runfolder import RunFolder
with RunFolder(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
TRY = """
import sys
from hneurons.errors import RunLockedError
from hneurons.runfolder import RunFolder
try:
    with RunFolder(sys.argv[1]):
        print("opened")
except RunLockedError as error:
    print("refused", error)
"""


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path: Path):
    def attempt() -> str:
        return subprocess.run(
            [sys.executable, "-c", TRY, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
        ).stdout

    with RunFolder(tmp_path):
        assert attempt().startswith(f"refused Another process is working in {tmp_path}")
    assert attempt() == "opened\n"


def test_a_killed_process_leaves_no_lock(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunLockedError, match="Another process"), RunFolder(tmp_path):
            pass
        holder.kill()
    with RunFolder(tmp_path):
        pass


# -- starting and resuming ----------------------------------------------------------------------------


def test_start_writes_the_manifest_of_a_new_run(tmp_path: Path):
    with RunFolder(tmp_path / "new") as folder:
        assert folder.start(**START) is False
    manifest = read_json(tmp_path / "new" / "run.json")
    assert manifest["format"] == "hneurons.run/1"
    for part in ("model", "settings", "data", "notes"):
        assert manifest[part] == START[part]
    assert manifest["stages"] == {}
    assert manifest["counts"] == {}
    assert manifest["settings_hash"].startswith("sha256:")
    assert {"version", "git", "python", "torch", "transformers"} <= set(manifest["package"])


def test_the_same_settings_resume_and_change_nothing(tmp_path: Path):
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        with folder.stage("sample"):
            pass
        folder.count(questions=3)
    before = snapshot(tmp_path)
    with RunFolder(tmp_path) as folder:
        assert folder.start(**START) is True
        assert folder.done("sample")
        assert folder.manifest["counts"] == {"questions": 3}
    assert snapshot(tmp_path) == before


def test_a_run_of_an_older_version_goes_on_with_new_settings_at_their_defaults(tmp_path: Path):
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
    before = snapshot(tmp_path)
    with RunFolder(tmp_path) as folder:
        assert folder.start(**changed("settings", extra=1), defaults={"extra": 1, "samples": 99}) is True
        with pytest.raises(RunMismatchError, match="extra: 1 there, 2 now"):
            folder.start(**changed("settings", extra=2), defaults={"extra": 1})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (changed("settings", samples=5), "samples: 10 there, 5 now"),
        (changed("settings", C=1.0), "C: None there, 1.0 now"),
        (changed("settings", extra=1), "extra: None there, 1 now"),
        (changed("model", id="big"), "id: 'tiny' there, 'big' now"),
        (changed("data", starter={"sha256": "def", "questions": 3}), "def"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, other: dict[str, Any], named: str):
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        with folder.stage("sample"):
            pass
    before = snapshot(tmp_path)
    with RunFolder(tmp_path) as folder, pytest.raises(RunMismatchError) as caught:
        folder.start(**other)
    assert named in caught.value.problem
    assert "temperature" not in caught.value.problem
    assert "--out" in caught.value.remedy
    assert snapshot(tmp_path) == before


def test_a_folder_with_other_things_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    with RunFolder(tmp_path) as folder, pytest.raises(RunMismatchError, match=r"thesis\.tex"):
        folder.start(**START)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "run.json").exists()


def test_a_kill_during_the_very_first_write_does_not_block_the_folder(tmp_path: Path):
    code = """
import os, signal, sys
from hneurons.runfolder import RunFolder
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with RunFolder(sys.argv[1]) as folder:
    folder.start(model={}, settings={}, data={}, notes=[])
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert killed.returncode == -9
    with RunFolder(tmp_path) as folder:
        assert folder.start(**START) is False


@pytest.mark.parametrize("inside", ["file", "file/run"])
def test_an_out_that_is_a_file_is_one_line(tmp_path: Path, inside: str):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunError), RunFolder(tmp_path / inside):
        pass
    assert (tmp_path / "file").read_text() == "precious"


def test_loading_no_run_or_another_format(tmp_path: Path):
    with pytest.raises(RunError, match="holds no run"):
        RunFolder(tmp_path).load()
    write_json(tmp_path / "run.json", {"format": "hneurons.run/9"})
    with pytest.raises(RunError, match=r"hneurons\.run/9"):
        RunFolder(tmp_path).load()


# -- stages -------------------------------------------------------------------------------------------


def test_a_stage_is_running_then_done(tmp_path: Path):
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        assert not folder.done("sample")
        with folder.stage("sample"):
            assert read_json(tmp_path / "run.json")["stages"] == {"sample": {"state": "running"}}
            assert not folder.done("sample")
        assert folder.done("sample")
    assert read_json(tmp_path / "run.json")["stages"]["sample"]["state"] == "done"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_is_not_done_and_its_seconds_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
):
    clock = iter([100.0, 102.5, 200.0, 201.0])
    monkeypatch.setattr("hneurons.runfolder.time.monotonic", lambda: next(clock))
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        with pytest.raises(kind), folder.stage("fit"):
            raise kind
        assert not folder.done("fit")
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        assert not folder.done("fit")
        assert folder.manifest["stages"]["fit"]["seconds"] == 2.5
        with folder.stage("fit"):
            pass
    assert read_json(tmp_path / "run.json")["stages"]["fit"] == {"state": "done", "seconds": 3.5}


def test_counts_merge(tmp_path: Path):
    with RunFolder(tmp_path) as folder:
        folder.start(**START)
        folder.count(questions=3, faithful=1)
        folder.count(faithful=2)
    assert json.loads((tmp_path / "run.json").read_text())["counts"] == {"questions": 3, "faithful": 2}
