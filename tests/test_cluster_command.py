"""`--cluster` on the command line: who loads what, and bad input in one line."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import planted
import tiny
from fake_pool import FakeWorker
from hneurons import cli
from hneurons.cluster import onray, opening
from hneurons.cluster.replica import Loading, Replica
from hneurons.studies.collect import Tools
from hneurons.types import Verdict

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hneurons(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hneurons", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capfd.readouterr())  # type: ignore[return-value]

    return run


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Loading, onray.Share]]:
    """A cluster of two nodes in this process; what each replica was made of."""
    made: list[tuple[Loading, onray.Share]] = []
    lock = threading.Lock()  # while it loads a model, transformers changes what holds for the whole process

    def worker(loading: Loading, share: onray.Share) -> FakeWorker:
        with lock:
            made.append((loading, share))
            return FakeWorker(len(made), Replica.load(loading, onray.version("hneurons")), lambda _: True)

    @contextmanager
    def connected(address: str) -> Iterator[Any]:
        assert address == "head:6379"
        yield lambda: [{"CPU": 4.0}, {"CPU": 4.0}]

    monkeypatch.setattr(opening, "connected", connected)
    monkeypatch.setattr(opening, "RayWorker", worker)
    monkeypatch.setattr(onray, "check_address", lambda address: None)
    return made


OVER = ["--cluster", "head:6379"]


def test_identify_samples_and_measures_there(hneurons: Command, nodes: list[Any], tmp_path: Path):
    folder = tiny.save(tmp_path / "tiny-llama")
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 30)
    work = ["identify", folder, "--questions", questions, "--samples", 2, "--max-new-tokens", 5, "--dtype", "bfloat16"]
    plain = hneurons(*work, "--out", tmp_path / "plain")
    there = hneurons(*work, "--out", tmp_path / "there", *OVER, "--replicas", 4)
    # A random model knows no city: both end with the same error, after the same responses.
    assert there[0] == plain[0] == 1
    assert there[2].splitlines()[-1] == plain[2].splitlines()[-1]
    assert "0 faithful examples" in there[2]
    assert (tmp_path / "there/responses.jsonl").read_bytes() == (tmp_path / "plain/responses.jsonl").read_bytes()
    assert "Cluster head:6379: 4 replicas on 2 nodes, each with 2 CPUs." in there[2]
    assert len(nodes) == 4
    for loading, share in nodes:
        assert (loading.model, loading.dtype, loading.device) == (str(folder), "bfloat16", "cpu")
        assert (share.cpus, share.gpus) == (2, 0)


def test_evaluate_and_impact_go_there(
    hneurons: Command, nodes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from hneurons.models.load import load_model

    model = load_model(tiny.save(tmp_path / "tiny-llama"), device="cpu")
    run = planted.write_run(tmp_path / "run", model)
    seen: dict[str, Any] = {}

    class Stop(SystemExit):
        pass

    def evaluate_run(run: Any, sets: Any, model: Any, *, tools: Tools, **_: Any) -> None:
        seen["evaluate"] = tools
        raise Stop(0)

    def impact(run: Any, chosen: Any, model: Any, *, open_engine: Any, together: int, **_: Any) -> None:
        seen["impact"] = open_engine, together
        raise Stop(0)

    monkeypatch.setattr("hneurons.studies.evaluate.evaluate_run", evaluate_run)
    monkeypatch.setattr("hneurons.studies.evaluate.recorded_judging", lambda _: type("J", (), {
        "judge": "alias", "spans": "rule", "endpoint": {}})())  # fmt: skip
    monkeypatch.setattr("hneurons.studies.impact.impact", impact)
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 4)
    place = ["--model", model.location, *OVER]
    assert hneurons("evaluate", run, "--on", questions, *place)[0] == 0
    assert hneurons("impact", run, "--benchmark", "falseqa", *place)[0] == 0
    assert type(seen["evaluate"].engine).__name__ == "ClusterEngine"
    assert seen["evaluate"].ahead == 3
    assert type(seen["evaluate"].extractor([])).__name__ == "ClusterExtractor"
    assert seen["evaluate"].judge.judge(tiny_question(), "Paris") is Verdict.CORRECT
    with seen["impact"][0]([]) as engine:
        assert type(engine).__name__ == "ClusterEngine"
    assert seen["impact"][1] == 3


def tiny_question() -> Any:
    from hneurons.types import Question

    return Question("a", "Which city?", ("Paris",))


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--replicas", "2"], 2, "Replicas belong to a cluster. Add --cluster local"),
        (["--replica-gpus", "1"], 2, "Replicas belong to a cluster."),
        (["--cluster", "nowhere"], 2, "'nowhere' is no address of a cluster. Give local, auto or HOST:PORT"),
        (["--cluster", "127.0.0.1:1"], 1, "Nothing answers at 127.0.0.1:1"),
        (["--cluster", "127.0.0.1:1"], 1, "ray start --head"),
        (["--cluster", "ray://127.0.0.1:1"], 2, "are not supported. Run this on a node of the cluster"),
    ],
)
@pytest.mark.parametrize("command", ["identify", "evaluate", "impact"])
def test_bad_clusters_are_one_line_before_anything_is_loaded(
    hneurons: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, options: list[str], status: int,
    words: str,
):  # fmt: skip
    monkeypatch.setattr(onray, "need", lambda package, extra: None)
    run = planted.write_run(tmp_path / "run", tiny.study())
    on = {"identify": ["no/model"], "evaluate": [run, "--on", "starter"], "impact": [run, "--benchmark", "falseqa"]}
    found, out, err = hneurons(command, *on[command], *options)
    (line,) = err.strip().splitlines()
    assert (found, out) == (status, "")
    assert line.startswith("error: ")
    assert words in line


def test_without_ray_it_says_what_to_install(hneurons: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    status, _, err = hneurons("identify", "no/model", "--cluster", "auto")
    assert (status, err) == (1, "error: ray is not installed. Install it with: pip install 'hneurons[ray]'\n")
