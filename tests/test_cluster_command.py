"""`--cluster` on the command line: who loads what, and bad input in one line."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import answerable
import planted
import tiny
from fake_pool import FakeWorker
from hneurons import cli
from hneurons.cluster import onray, opening
from hneurons.cluster.replica import Loading, Replica
from hneurons.errors import UsageError
from hneurons.runfolder import RunFolder
from hneurons.studies.collect import Tools
from hneurons.types import REGIONS, Verdict

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
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Loading, onray.Share, FakeWorker]]:
    """A cluster of two nodes in this process; what each replica was made of, and what runs it."""
    made: list[tuple[Loading, onray.Share, FakeWorker]] = []
    lock = threading.Lock()  # while it loads a model, transformers changes what holds for the whole process

    def worker(loading: Loading, share: onray.Share) -> FakeWorker:
        with lock:
            replica = Replica.load(loading, onray.version("hneurons"))
            made.append((loading, share, FakeWorker(len(made), replica, lambda _: True)))
            return made[-1][-1]

    @contextmanager
    def connected(address: str) -> Iterator[Any]:
        assert address == "head:6379"
        yield lambda: [{"CPU": 4.0}, {"CPU": 4.0}]

    monkeypatch.setattr(opening, "connected", connected)
    monkeypatch.setattr(opening, "RayWorker", worker)
    monkeypatch.setattr(onray, "check_address", lambda address: None)
    return made


OVER = ["--cluster", "head:6379"]


SAME = ["questions.jsonl", "responses.jsonl", "examples.jsonl", "path.json", "neurons.json", "evaluation.json"]


@pytest.mark.usefixtures("no_figures")
def test_identify_samples_and_measures_there(hneurons: Command, nodes: list[Any], tmp_path: Path):
    folder = tiny.save(tmp_path / "tiny-llama")
    questions = answerable.write(tmp_path / "cities.jsonl", folder, dtype="bfloat16")
    options = [*answerable.GREEDY, "--samples", 2, "--C", 1, "--dtype", "bfloat16"]
    work = ["identify", folder, "--questions", questions, *options]
    plain = hneurons(*work, "--out", tmp_path / "plain")
    there = hneurons(*work, "--out", tmp_path / "there", *OVER, "--replicas", 4)
    assert there[0] == plain[0] == 0, there[2]
    for name in SAME:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    for region in REGIONS:
        one, other = (np.load(tmp_path / f"{run}/features/{region}.npy") for run in ("plain", "there"))
        np.testing.assert_array_equal(other, one)
        assert other.any()
    assert "Cluster head:6379: 4 replicas on 2 nodes, each with 2 CPUs." in there[2]
    assert len(nodes) == 4
    for loading, share, _ in nodes:
        assert (loading.model, loading.dtype, loading.device) == (str(folder), "bfloat16", "cpu")
        assert (share.cpus, share.gpus) == (2, 0)
    shards = [shard for _, _, worker in nodes for shard in worker.shards]
    for kind in ("responses to questions", "contributions of"):
        assert any(kind in shard for shard in shards), kind


@pytest.mark.usefixtures("nodes")
def test_memory_that_runs_out_there_ends_the_command_in_one_line(
    hneurons: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("hneurons.answers.hf.HFEngine.sample", fail)
    folder, questions = tiny.save(tmp_path / "tiny-llama"), tiny.write_questions(tmp_path / "cities.jsonl", 30)
    status, _, err = hneurons("identify", folder, "--questions", questions, "--out", tmp_path / "run", *OVER)
    assert status == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: The replica on node ")
    for words in ("ran out of memory", "--replicas", "--replica-gpus"):
        assert words in err.splitlines()[-1]


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket", "hdfs://host:9000/a/run", "file:///tmp/run"])
def test_runs_are_not_written_to_addresses(
    hneurons: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
):
    monkeypatch.chdir(tmp_path)
    work = (["identify", "no/model", "--out"], ["evaluate", "--on", "starter"], ["impact", "--benchmark", "falseqa"])
    for command in work:
        status, out, err = hneurons(*command, address)
        (line,) = err.strip().splitlines()
        assert (status, out) == (2, "")
        assert line.startswith(f"error: A run can't be written to {address.partition(':')[0]}:// addresses")
        assert "mounted" in line
    for given in (address, Path(address)):
        with pytest.raises(UsageError, match="copy the run afterwards"):
            RunFolder(given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a:/run", "12:30", "runs/s3:/x"])
def test_a_folder_with_a_colon_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder(name):
        assert (tmp_path / name).is_dir()


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
