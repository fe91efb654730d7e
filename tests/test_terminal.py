import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

import tiny
from hneurons.errors import UsageError
from hneurons.live.jobs import Done
from hneurons.live.service import BatchService, events
from hneurons.live.terminal import Chat, style_of
from test_service import ask
from test_tokens import NEURONS, card_of


@pytest.fixture(scope="module")
def service() -> Iterator[BatchService]:
    model = tiny.study(double=True)
    with BatchService(model, card_of(model, NEURONS)) as made:
        yield made


def talk(service: BatchService, lines: list[str], **options: Any) -> tuple[Chat, str]:
    out = io.StringIO()
    chat = Chat(service, Console(file=out, width=100), temperature=0.0, max_tokens=8, **options)
    chat.run(lines)
    return chat, out.getvalue()


def test_an_answer_is_shown_whole_with_its_risk(service: BatchService):
    done = list(events(service, ask("Who?", temperature=0.0)))[-1]
    assert isinstance(done, Done)
    assert done.reading is not None
    chat, shown = talk(service, ["Who?"])
    printable = "".join(letter for letter in done.text if letter.isprintable())
    assert all(letter in shown for letter in printable)
    assert f"risk {done.reading.risk:.0%}" in shown
    assert [turn.role for turn in chat.turns] == ["user", "assistant"]
    assert chat.turns[1].content == done.text


def test_the_dial_turns_what_is_said_next(service: BatchService):
    _, plain = talk(service, ["Where is Paris?"])
    chat, turned = talk(service, ["/alpha 30", "Where is Paris?"])
    assert chat.alpha == 30
    assert "alpha 30" in turned
    assert turned.removeprefix("alpha 30\n") != plain
    assert talk(service, ["/alpha"], alpha=0.5)[1] == "alpha 0.5\n"


def test_why_names_the_neurons_of_the_last_answer(service: BatchService):
    assert "no whole answer" in talk(service, ["/why"])[1]
    chat, shown = talk(service, ["Who?", "/why"])
    assert chat.last is not None
    for neuron, value in chat.last.top:
        assert f"{value:+.3f}  layer {neuron.layer}, neuron {neuron.index}" in shown


def test_why_says_nothing_of_an_answer_that_was_stopped(service: BatchService, monkeypatch: pytest.MonkeyPatch):
    chat, _ = talk(service, ["Who?"])
    assert chat.last is not None

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_show", stopped)
    chat.say("Where?")
    assert chat.last is None


def test_wrong_commands_are_answered_and_the_chat_goes_on(service: BatchService):
    chat, shown = talk(
        service, ["/alpha minus", "/alpha -1", "/alpha nan", "/nope", "", "word " * 300, "Who?", "/quit", "x"]
    )
    assert "is no number" in shown
    assert shown.count("alpha must be between") == 2
    assert "no command /nope" in shown
    assert "reads 256" in shown
    assert chat.alpha == 1.0
    assert len(chat.turns) == 2


def test_clear_forgets(service: BatchService):
    chat, shown = talk(service, ["Who?", "/clear", "/help"])
    assert chat.turns == []
    assert "Forgotten" in shown
    assert "/why" in shown


def test_riskier_tokens_look_more_alarming():
    styles = [style_of(risk) for risk in (0.0, 0.4, 0.6, 0.9, 1.0)]
    assert styles[0] == ""
    assert len(set(styles)) == 4


def test_a_bad_alpha_is_refused_at_once(service: BatchService):
    with pytest.raises(UsageError, match="alpha"):
        Chat(service, Console(), alpha=-1)
