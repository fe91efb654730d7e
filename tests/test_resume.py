"""A run that is killed, again and again, ends as one that never was."""

import json
import os
import random
import shutil
import signal
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from hneurons.questions.sources import QuestionSet
from hneurons.report import page
from hneurons.runfolder import RunFolder
from hneurons.settings import IdentifySettings
from hneurons.studies.collect import Tools
from hneurons.studies.evaluate import evaluate_run
from hneurons.studies.identify import identify
from hneurons.types import REGIONS, Question, Verdict
from killing import KILLED, begin, die_at, run

SETTINGS = IdentifySettings(
    samples=3, folds=3, random_sets=2, bootstrap=100, per_class=40, path_points=5, chunk=8, max_share=0.2,
    temperature=0.8, max_new_tokens=6, batch_tokens=600, refits=4,
)  # fmt: skip
SAME = ["questions.jsonl", "responses.jsonl", "examples.jsonl", "path.json", "neurons.json", "evaluation.json"]


class QuestionJudge:
    """Half of the questions are always answered right, half always wrong, whatever the random model says."""

    name = "by question"

    def judge(self, question: Question, text: str) -> Verdict:
        return Verdict.CORRECT if zlib.crc32(question.id.encode()) % 2 else Verdict.WRONG


def work(out: str, kill: tuple[str, int] | None = None) -> None:
    """Identify with the real engine; `kill`: die at the n-th write that a stage syncs to the disk."""
    begin_quietly()
    if kill:
        stage, at = kill
        die_at(at, lambda: reached(Path(out), stage))
    questions = tiny.write_questions(Path(out).parent / f"cities-{os.getpid()}.jsonl", 84)
    questions = questions.rename(Path(out).parent / "cities.jsonl")
    Path(f"{out}.ready").touch()
    identify(tiny.study(), questions, out, SETTINGS, judge=QuestionJudge(), finder=tiny.WholeFinder())


def look_elsewhere(out: str, kill: int | None = None) -> None:
    """Evaluate on two other data sets; `kill`: die at the n-th write that is synced to the disk."""
    begin_quietly()
    if kill:
        die_at(kill)
    sets = [
        QuestionSet(name, tuple(Question(f"{name}{i}", f"Which {name} is number {i}?", ("Yes",)) for i in range(60)))
        for name in ("town", "river")
    ]
    tools = Tools(judge=QuestionJudge(), finder=tiny.WholeFinder())
    evaluate_run(out, sets, tiny.study(), tools=tools)


def begin_quietly() -> None:
    """One thread, and reports without figures."""
    torch.set_num_threads(1)
    page.draw = lambda *_: {}


def reached(out: Path, stage: str) -> bool:
    now = state(out)
    return now.get(stage) == "running" or (stage == "start" and not now)


def state(out: Path) -> dict[str, str]:
    """State of each stage, as the manifest on the disk has it."""
    try:
        stages = json.loads((out / "run.json").read_text())["stages"]
    except FileNotFoundError:
        return {}
    return {name: stage["state"] for name, stage in stages.items()}


def finish(out: Path) -> None:
    assert run(work, str(out)) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nobody disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "out"
    child = begin(work, str(out))
    while not Path(f"{out}.ready").exists():
        time.sleep(0.01)
    began = time.monotonic()
    child.join(120)
    assert child.exitcode == 0
    return out, time.monotonic() - began


def check_same(out: Path, whole: Path) -> None:
    assert set(state(out).values()) == {"done"}
    for name in SAME:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    for region in REGIONS:
        one, other = np.load(out / f"features/{region}.npy"), np.load(whole / f"features/{region}.npy")
        np.testing.assert_array_equal(one, other)
    own, reference = RunFolder(out).load(), RunFolder(whole).load()
    for key in ("model", "settings", "settings_hash", "data", "counts", "notes"):
        assert own[key] == reference[key], key


def test_the_card_has_neurons_and_metrics(whole: tuple[Path, float]):
    card = json.loads((whole[0] / "neurons.json").read_text())
    assert card["neurons"]
    assert card["metrics"]["cities"]["auroc"]["n"] > 0
    counts = RunFolder(whole[0]).load()["counts"]
    assert (counts["faithful"], counts["hallucinated"]) >= (30, 30)


def test_killed_at_random_moments(whole: tuple[Path, float], tmp_path: Path):
    out, rng = tmp_path / "out", random.Random(7)
    killed: list[str] = []
    share = 0.35  # of the time that the first run took, when nothing was in any cache
    while len(killed) < 5:
        ready = Path(f"{out}.ready")
        ready.unlink(missing_ok=True)
        child = begin(work, str(out))
        while not ready.exists():
            time.sleep(0.005)
        child.join(rng.uniform(0.02, share) * whole[1])
        if child.exitcode is not None:
            assert child.exitcode == 0
            if len(killed) >= 3:
                break
            shutil.rmtree(out)
            killed, share = [], share / 2
            continue
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == KILLED
        killed.append(next((name for name, now in state(out).items() if now == "running"), "before"))
    finish(out)
    check_same(out, whole[0])


POINTS = [
    ("sample", 4), ("sample", 7), ("examples", 1), ("examples", 3), ("agree", 1), ("extract", 1), ("extract", 3),
    ("read_out", 2), ("fit", 2), ("evaluate", 2), ("report", 1),
]  # fmt: skip


def test_killed_in_every_stage(whole: tuple[Path, float], tmp_path: Path):
    assert {stage for stage, _ in POINTS} == set(state(whole[0]))
    out = tmp_path / "out"
    for point in POINTS:
        assert run(work, str(out), point) == KILLED, point
        assert state(out)[point[0]] == "running"
    finish(out)
    check_same(out, whole[0])


def test_killed_while_the_manifest_is_first_written(whole: tuple[Path, float], tmp_path: Path):
    assert run(work, str(tmp_path / "out"), ("start", 1)) == KILLED
    assert not (tmp_path / "out/run.json").exists()
    finish(tmp_path / "out")
    check_same(tmp_path / "out", whole[0])


def test_evaluate_killed_again_and_again(whole: tuple[Path, float], tmp_path: Path):
    reference, out = (shutil.copytree(whole[0], tmp_path / name) for name in ("reference", "out"))

    assert run(look_elsewhere, str(reference)) == 0
    kills = 0
    for at in (1, 4, 9, 14, 23, 8, 12, 3):
        kills += run(look_elsewhere, str(out), at) == KILLED
        json.loads((out / "evaluation.json").read_text())
    assert kills >= 6
    assert run(look_elsewhere, str(out)) == 0
    assert set(json.loads((out / "evaluation.json").read_text())["datasets"]) == {"cities", "town", "river"}
    assert (out / "evaluation.json").read_bytes() == (reference / "evaluation.json").read_bytes()
    for name in ("town/responses.jsonl", "river/examples.jsonl"):
        assert (out / "on" / name).read_bytes() == (reference / "on" / name).read_bytes()


def test_what_a_killed_process_left_half_written_is_taken_away(whole: tuple[Path, float], tmp_path: Path):
    out = shutil.copytree(whole[0], tmp_path / "out")
    shutil.copy(whole[0].parent / "cities.jsonl", tmp_path)
    (out / ".neurons.json.99999.tmp").write_text('{"format": "hneur')
    finish(out)
    assert not list(out.rglob(".*.tmp"))


def test_a_finished_run_is_left_as_it_is(whole: tuple[Path, float], tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")}
    finish(whole[0])
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob("*")} == before
