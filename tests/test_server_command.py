"""`hneurons serve`: what it refuses before a model is loaded, and what it says once it serves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_run import write_run
from fake_service import FakeService
from hneurons import cli
from hneurons.live import server as live_server
from hneurons.live import service as live_service
from hneurons.live.server import ServerSettings, bind
from hneurons.studies import evaluate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "supported")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs it in this process: (status, what it wrote on stderr). Loading a model fails the test."""
    monkeypatch.delenv("HNEURONS_API_KEY", raising=False)
    monkeypatch.setattr(evaluate, "load_model_of", lambda *_, **__: pytest.fail("the model was loaded"))

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hneurons", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(caught.value.code or 0), err.strip()

    return call


Command = Callable[..., tuple[int, str]]


def test_an_address_for_others_needs_a_token(command: Command, run: Path):
    status, said = command(run, "--host", "0.0.0.0", "--key-env", "MY_TOKEN")
    assert status == 2
    assert said == (
        "error: Without a token the server listens on this machine only, not on 0.0.0.0. "
        "Set MY_TOKEN to a secret of your own, or leave --host out."
    )


def test_a_port_that_is_taken(command: Command, run: Path):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        status, said = command(run, "--port", taken.getsockname()[1])
    assert status == 2
    assert said.startswith("error: Can't listen at 127.0.0.1:")


def test_a_folder_that_is_no_run(command: Command, tmp_path: Path):
    status, said = command(tmp_path)
    assert (status, said[:7]) == (1, "error: ")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_package_that_is_missing(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, package: str):
    monkeypatch.setitem(sys.modules, package, None)
    status, said = command(run)
    assert status == 1
    assert said == f"error: {package} is not installed. Install it with: pip install 'hneurons[serve]'"


def test_what_it_serves_and_says(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def load(manifest: Any, _: object, at: str | None, **options: str) -> str:
        seen["load"] = (manifest["model"]["id"], at, options)
        return "the model"

    def make(model: str, card: Any, **options: int) -> Any:
        seen["service"] = (model, len(card.h_neurons), options)
        return SimpleNamespace(name="smollm2-135m", card=card)

    def serve(service: Any, settings: ServerSettings, listener: Any, ready: Callable[[str], None]) -> None:
        seen["settings"] = settings
        seen["port"] = listener.getsockname()[1]
        ready("http://127.0.0.1:1234")

    monkeypatch.setattr(evaluate, "load_model_of", load)
    monkeypatch.setattr(live_service, "BatchService", make)
    monkeypatch.setattr(live_server, "serve", serve)
    monkeypatch.setenv("HNEURONS_API_KEY", "hush")
    status, said = command(
        run, "--port", 0, "--dtype", "bfloat16", "--device", "cpu", "--model", "elsewhere", "--max-batch", 3,
        "--max-waiting", 4, "--max-output-tokens", 50, "--max-body", 2048, "--alpha", 0.5, "--drain-seconds", 7,
        "--host", "0.0.0.0", "--log-text",
    )  # fmt: skip
    assert status == 0
    loading = {"device": "cpu", "dtype": "bfloat16", "trust_remote_code": False}
    assert seen["load"] == ("smollm2-135m", "elsewhere", loading)
    assert seen["service"] == ("the model", 32, {"max_batch": 3, "max_waiting": 4, "max_tokens": 50})
    settings = seen["settings"]
    assert (settings.host, settings.key, settings.alpha, settings.max_body) == ("0.0.0.0", "hush", 0.5, 2048)
    assert (settings.max_output_tokens, settings.drain_seconds, settings.log_text) == (50, 7, True)
    first, second, third = said.splitlines()
    assert first == "Serving smollm2-135m; H-Neurons: 32 of 46,080 (0.69 per mille)."
    assert second == settings.verdict
    assert "better than chance (AUROC" in second
    assert "http://127.0.0.1:1234/v1" in third
    assert "hush" not in said


def test_without_an_evaluation_the_card_tells(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch):
    (run / "evaluation.json").unlink()
    monkeypatch.setattr(evaluate, "load_model_of", lambda *_, **__: None)
    monkeypatch.setattr(live_service, "BatchService", lambda *_, **__: FakeService())
    monkeypatch.setattr(live_server, "serve", lambda *given: given[3]("http://x"))
    assert "How well they predict was never evaluated." in command(run, "--port", 0)[1]
