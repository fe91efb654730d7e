import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import planted
import tiny
from completions_server import CompletionsServer, completion
from fake_run import write_run
from hneurons import cli
from hneurons.models import demo
from hneurons.runfolder import RunFolder
from hneurons.types import Question

COMMANDS = [
    "demo", "identify", "evaluate", "impact", "origin", "export", "chat", "serve", "score", "report", "verify", "pull",
    "doctor",
]  # fmt: skip
"""In the order of the help."""
QUICK = [
    "--samples", "2", "--per-class", "20", "--temperature", "0.7", "--max-new-tokens", "5",
]  # fmt: skip


class Result:
    def __init__(self, status: object, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err
        assert "Traceback" not in out + err

    @property
    def error(self) -> str:
        """The one line that says what is wrong; nothing but progress stands before it."""
        lines = self.err.strip().splitlines()
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert all(line.startswith(("Loading", "Checking", "Converting", "Fetching")) for line in lines[:-1])
        return lines[-1]


@pytest.fixture
def hneurons(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run the command in this process."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["hneurons", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Result(caught.value.code or 0, *capfd.readouterr())

    before = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, before)


def command(*arguments: object, **environment: str) -> Result:
    """Run the installed command in a process of its own."""
    script = Path(sys.executable).parent / "hneurons"
    done = subprocess.run(
        [str(script), *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return tiny.write_questions(tmp_path / "cities.jsonl", 30)


# -- help ---------------------------------------------------------------------------------------------


def test_help_lists_the_commands():
    result = command("--help")
    assert result.status == 0
    assert re.findall(r"^  (\w+) {2,}[A-Z]", result.out, re.MULTILINE) == COMMANDS
    assert result.err == ""


def test_help_imports_no_heavy_library():
    code = (
        "import sys; sys.argv = ['hneurons', '--help']\n"
        "from hneurons.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(hneurons, name: str):
    result = hneurons(name, "--help")
    assert result.status == 0
    assert re.search(rf"Usage: .* {name} ", result.out)


def test_no_command_shows_the_help(hneurons):
    result = hneurons()
    assert "identify" in result.out + result.err
    assert result.status in (0, 2)


# -- wrong usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["nonsense"],
        ["impact"],
        ["identify"],
        ["identify", "smollm2-135m", "--sampels", "3"],
        ["identify", "smollm2-135m", "--samples", "many"],
        ["demo", "--questions", "0"],
        ["report"],
    ],
)
def test_a_wrong_option_is_status_2(hneurons, arguments: list[str]):
    result = hneurons(*arguments)
    assert result.status == 2
    assert "Usage" in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--alphas", "0,-1"),
        ("--alphas", "0,nan"),
        ("--alphas", "1e9"),
        ("--alphas", "one"),
        ("--alphas", ""),
        ("--judge", "me"),
        ("--judge", "llm"),
        ("--benchmark", "falsqa"),
        ("--benchmark", "falseqa"),
        ("--templates", "x.txt"),
        ("--random-sets", "1"),
    ],
)
def test_a_bad_value_of_impact_is_one_line(hneurons, tmp_path: Path, option: str, value: str):
    run = planted.write_run(tmp_path / "run", tiny.study())
    result = hneurons("impact", run, "--benchmark", "falseqa", option, value)
    assert (result.status, result.out) == (2, "")
    assert result.error.startswith("error: ")
    assert "Value error" not in result.error


def test_impact_prints_the_headline_table_and_json(hneurons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hneurons.studies import impact as study

    model = planted.model()
    run = planted.write_run(tmp_path / "run", model)
    monkeypatch.setattr(study, "open_study", lambda manifest, given, progress: model)
    asked = ["impact", run, "--benchmark", "falseqa", "--alphas", "0,3", "--limit", "20", "--random-sets", "2",
             "--max-new-tokens", "3", "--no-capability"]  # fmt: skip
    result = hneurons(*asked)
    assert result.status == 0
    for part in ("compliance %", "unparsable %", "cut %", "random, uniform %", "Verdict: FalseQA: "):
        assert part in result.out
    found = json.loads(hneurons(*asked, "--json").out)
    assert found["benchmarks"]["falseqa"]["settings"]["alphas"] == [0, 1, 3]
    assert found["capability"] is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--samples", "0"),
        ("--agreement", "20"),
        ("--agreement", "3"),
        ("--temperature", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--labelling", "2-vs-1"),
        ("--other", "some"),
        ("--solver", "guess"),
        ("--C", "0"),
        ("--seed", "-1"),
        ("--limit", "0"),
    ],
)
def test_a_wrong_value_is_status_2_and_one_line(hneurons, option: str, value: str):
    result = hneurons("identify", "no/model", option, value)
    assert result.status == 2
    assert "Usage" in result.err or "--help" in result.error
    assert option.strip("-").replace("-", "_") in result.err.replace("-", "_")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "sglang"], "hf, vllm, openai"),
        (["--engine", "openai"], "--base-url"),
        (["--base-url", "http://localhost:8000/v1"], "--engine openai"),
        (["--engine", "vllm", "--engine-arg", "max_model_len"], "max_model_len=4096"),
        (["--engine", "openai", "--base-url", "http://h/v1", "--features", "vllm"], "--engine vllm"),
    ],
)
def test_a_wrong_engine_is_status_2_and_one_line(hneurons, options: list[str], words: str):
    result = hneurons("identify", "no/model", *options)
    assert result.status == 2
    assert words in result.error


def test_identify_through_a_server(hneurons, folder: Path, tmp_path: Path):
    pytest.importorskip("openai", reason="needs the extra `judge`")
    model, questions = tiny.study(), tiny.write_questions(tmp_path / "cities.jsonl", 80)
    listed = [json.loads(line) for line in questions.read_text().splitlines()]
    texts = {
        tuple(model.prompt_ids(row["question"])): tiny.half_right(
            Question(row["id"], row["question"], tuple(row["answers"])), 0
        )
        for row in listed
    }  # fmt: skip

    def say(body: dict[str, Any]) -> Any:
        text = texts[tuple(body["prompt"])]
        ids = [*model.tokenizer.encode(text, add_special_tokens=False), 2]
        return completion(text, [-0.5 - 0.1 * i for i in range(len(ids))], ids=ids)

    with CompletionsServer(say, names=["served"]) as server:
        common = [
            "identify", folder, "--questions", questions, "--out", tmp_path / "out", "--samples", "2", "--C", "1",
            "--engine", "openai", "--base-url", server.url,
        ]  # fmt: skip
        result = hneurons(*common)
        assert result.status == 0
        assert "Verdict: " in result.out
        asked = len(server.requests)
        assert hneurons(*common).status == 0
        assert len(server.requests) == asked  # the second call found everything done
    manifest = json.loads((tmp_path / "out/run.json").read_text())
    assert manifest["settings"]["engine"] == "openai"
    assert manifest["engine"]["base_url"] == server.url


# -- failures -----------------------------------------------------------------------------------------


def test_an_unknown_model_is_one_line_with_a_remedy(tmp_path: Path):
    result = command("identify", "someone/unknown-model", "--out", tmp_path / "out", HF_HUB_OFFLINE="1")
    assert result.status == 1
    assert "someone/unknown-model" in result.error
    assert "demo model" in result.error
    assert result.out == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_no_model(hneurons, tmp_path: Path):
    result = hneurons("identify", tmp_path, "--out", tmp_path / "out")
    assert (result.status, "config.json" in result.error) == (1, True)


@pytest.mark.parametrize("content", [None, "", "not json", '{"question": "Who?"}', '{"answers": ["x"]}'])
def test_bad_questions_are_found_before_the_model_is_loaded(hneurons, tmp_path: Path, content: str | None):
    path = tmp_path / "questions.jsonl"
    if content is not None:
        path.write_text(content)
    result = hneurons("identify", "no/model", "--questions", path, "--out", tmp_path / "out")
    assert result.status == 1
    assert "questions.jsonl" in result.error
    assert "Loading" not in result.err


def test_too_few_examples_is_one_line_and_the_run_is_kept(hneurons, folder: Path, questions: Path, tmp_path: Path):
    result = hneurons("identify", folder, "--questions", questions, "--out", tmp_path / "out", *QUICK)
    assert result.status == 1
    lines = result.err.strip().splitlines()
    assert "0 faithful examples" in lines[-1]
    assert lines[-1].startswith("error: ")
    assert RunFolder(tmp_path / "out").load()["counts"]["questions"] == 30


def test_other_settings_in_the_same_folder(hneurons, folder: Path, questions: Path, tmp_path: Path):
    common = ["identify", folder, "--questions", questions, "--out", tmp_path / "out"]
    hneurons(*common, *QUICK)
    result = hneurons(*common, *QUICK, "--seed", "1")
    assert result.status == 1
    assert "seed: 0 there, 1 now" in result.error


@pytest.mark.parametrize("place", ["file", "under a file"])
def test_an_out_that_can_be_no_folder(hneurons, folder: Path, questions: Path, tmp_path: Path, place: str):
    (tmp_path / "taken").write_text("x")
    out = tmp_path / "taken" / ("" if place == "file" else "run")
    result = hneurons("identify", folder, "--questions", questions, "--out", out, *QUICK)
    assert result.status == 1
    assert "taken" in result.error


def test_control_c_says_how_to_go_on(hneurons, monkeypatch: pytest.MonkeyPatch):
    def stop(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr("hneurons.questions.sources.load_questions", stop)
    result = hneurons("identify", "no/model")
    assert result.status == 130
    assert "continues" in result.err


def test_what_control_c_does_is_afterwards_what_it_was(hneurons):
    before = signal.getsignal(signal.SIGINT)
    hneurons("report", "nowhere")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_control_c_waits_for_nothing():
    """Python's end waits for threads: for a server that hangs, say."""
    code = (
        "import os, signal, sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from hneurons import cli\n"
        "from hneurons.questions import sources\n"
        "def stop(*_, **__):\n"
        "    ThreadPoolExecutor().submit(time.sleep, 300)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(300)\n"
        "sources.load_questions = stop\n"
        "sys.argv = ['hneurons', 'identify', 'no/model']\n"
        "cli.main()\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert running.stderr is not None
        while "Stopped." not in running.stderr.readline():
            assert running.poll() is None
        time.sleep(0.5)  # it is at its end by now, and waits
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == -signal.SIGINT
        assert "Traceback" not in running.stderr.read()
    finally:
        running.kill()
        running.communicate()


# -- commands that work -------------------------------------------------------------------------------


def test_report_writes_the_report_again(hneurons, tmp_path: Path):
    run = write_run(tmp_path / "run", finished=False)  # with a figure or two
    result = hneurons("report", run)
    assert result.status == 0
    assert Path(result.out.strip()).is_file()
    assert Path(result.out.strip()).suffix == ".html"


def test_report_of_no_run(hneurons, tmp_path: Path):
    result = hneurons("report", tmp_path / "nothing")
    assert (result.status, "nothing" in result.error) == (1, True)
    assert not (tmp_path / "nothing").exists()


def test_report_of_a_damaged_run(hneurons, tmp_path: Path):
    run = Path(write_run(tmp_path / "run"))
    (run / "evaluation.json").write_text('{"format": ')
    result = hneurons("report", run)
    assert (result.status, "evaluation.json" in result.error) == (1, True)


def card_for(folder: Path, run: Path, neurons: int = 2) -> None:
    """Let a made-up run be one of the tiny Llama in `folder`."""
    described = hneurons_load(folder).describe()
    manifest = json.loads((run / "run.json").read_text())
    manifest["model"] |= {key: described[key] for key in ("id", "source", "revision", "dtype")}
    (run / "run.json").write_text(json.dumps(manifest))
    card = json.loads((run / "neurons.json").read_text())
    card["model"] = {key: described[key] for key in ("id", "revision", "architecture", "layers", "width", "neurons")}
    card["neurons"] = [{"layer": n, "index": 5 * n, "weight": 1.0} for n in range(neurons)]
    (run / "neurons.json").write_text(json.dumps(card))


def hneurons_load(folder: Path):
    import hneurons

    return hneurons.load_model(folder, device="cpu")


def test_export_writes_a_folder(hneurons, folder: Path, tmp_path: Path):
    run = Path(write_run(tmp_path / "run"))
    card_for(folder, run)
    common = ["export", run, "--model", folder]
    first = hneurons(*common, "--out", tmp_path / "dial")
    assert (first.status, str(tmp_path / "dial") in first.out) == (0, True)
    config = json.loads((tmp_path / "dial/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (1, -1.0)
    again = hneurons(*common, "--out", tmp_path / "dial")
    assert (again.status, "not empty" in again.error, "Loading" in again.err) == (1, True, False)
    options = ["--format", "weights", "--alpha", "2", "--dtype", "bfloat16", "--out", tmp_path / "baked", "--json"]
    told = json.loads(hneurons(*common, *options).out)
    assert told == {"out": str(tmp_path / "baked"), "format": "weights", "alpha": 2.0, "neurons": 2}
    assert json.loads((tmp_path / "baked/config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--format", "onnx"], 2, "gguf-lora"),
        (["--alpha", "-1"], 2, "between 0 and 100"),
        (["--model", "no/"], 1, "no"),
    ],
)
def test_export_says_what_is_wrong(hneurons, options: list[str], status: int, words: str, folder: Path, tmp_path: Path):
    run = Path(write_run(tmp_path / "run"))
    card_for(folder, run)
    result = hneurons("export", run, "--out", tmp_path / "dial", *options)
    assert (result.status, words in result.error) == (status, True)
    assert not (tmp_path / "dial").exists()


def test_export_of_a_card_without_neurons(hneurons, folder: Path, tmp_path: Path):
    run = Path(write_run(tmp_path / "run"))
    card_for(folder, run, 0)
    result = hneurons("export", run, "--out", tmp_path / "dial")
    assert (result.status, "no H-Neurons" in result.error) == (1, True)


def test_pull_lists_the_demo_models(hneurons):
    result = hneurons("pull")
    assert result.status == 0
    for name, model in demo.DEMO_MODELS.items():
        assert name in result.out
        assert model.licence in result.out
    assert result.err == ""


def test_pull_of_an_unknown_name(hneurons):
    result = hneurons("pull", "gpt-5")
    assert (result.status, "smollm2-135m" in result.error) == (1, True)


def test_pull_without_network(hneurons, monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: failed)
    result = hneurons("pull", "smollm2-135m")
    assert result.status == 1
    assert "no network" in result.error


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """Let the transformers engine say what the script says."""
    engines = []

    def engine(model):
        engines.append(tiny.ScriptedEngine(model, tiny.half_right))
        return engines[-1]

    monkeypatch.setattr("hneurons.answers.hf.HFEngine", engine)
    return engines


def test_identify_prints_the_verdict_and_the_report(hneurons, scripted, folder: Path, tmp_path: Path):
    questions = tiny.write_questions(tmp_path / "cities.jsonl", 80)
    common = ["identify", folder, "--questions", questions, "--out", tmp_path / "out", "--samples", "2", "--C", "1"]
    first = hneurons(*common)
    assert first.status == 0
    assert "Verdict: " in first.out
    assert str((tmp_path / "out/report.html").resolve()) in first.out
    assert "Loading" in first.err
    second = hneurons(*common, "--json")
    assert second.status == 0
    printed = json.loads(second.out)
    assert printed["verdict"] in ("supported", "not supported", "too little data")
    assert printed["sentence"] in first.out
    assert Path(printed["report"]).is_file()
    assert len(scripted) == 1  # the second call found everything done
    shutil.rmtree(tmp_path / "out/figures")
    assert hneurons("report", tmp_path / "out").status == 0
    assert list((tmp_path / "out/figures").iterdir())
