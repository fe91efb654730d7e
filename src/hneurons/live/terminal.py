"""A chat in the terminal: tokens coloured by their risk as it becomes known, a dial, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.text import Text

from hneurons.errors import HNeuronsError, UsageError
from hneurons.live.jobs import Done, Failed, Job, Message, Piece, Reading
from hneurons.live.service import BatchService, events
from hneurons.neurons.dial import checked_alpha

if TYPE_CHECKING:
    from rich.console import Console

# From calm to alarming, told apart without red and green; the risky ones are underlined too.
STYLES = ((0.35, ""), (0.5, "yellow"), (0.7, "dark_orange underline"), (1.01, "bold magenta underline"))
HELP = """\
/alpha [NUMBER]   show or set what the H-Neurons are multiplied by: 0 silences, 1 changes nothing
/why              the neurons that counted most in the last answer
/clear            forget the conversation
/quit             end (also Ctrl-D); Ctrl-C stops an answer"""


def style_of(risk: float) -> str:
    """How a token of this risk is shown."""
    return next(style for limit, style in STYLES if risk < limit)


class Chat:
    """A conversation in the terminal.

    Args:
        service: makes the answers.
        console: where they go.
        alpha: what the H-Neurons are multiplied by at first.
        max_tokens: of an answer.
        temperature: 0 is greedy.
    """

    def __init__(
        self,
        service: BatchService,
        console: Console,
        *,
        alpha: float = 1.0,
        max_tokens: int = 200,
        temperature: float = 0.7,
    ) -> None:
        checked_alpha(alpha)
        self.service, self.console = service, console
        self.alpha, self.max_tokens, self.temperature = alpha, max_tokens, temperature
        self.turns: list[Message] = []
        self.last: Reading | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/alpha": self._set_alpha,
            "/why": self._why,
            "/clear": self._clear,
            "/help": lambda _: self.console.print(HELP, markup=False, highlight=False),
        }

    def run(self, lines: Iterable[str]) -> None:
        """Answer each line, until they end or one says /quit."""
        for line in lines:
            said = line.strip()
            if said in ("/quit", "/exit"):
                return
            if not said:
                continue
            try:
                if said.startswith("/"):
                    word, _, rest = said.partition(" ")
                    if word not in self._commands:
                        raise UsageError(f"There is no command {word}.", "/help lists them.")
                    self._commands[word](rest.strip())
                else:
                    self.say(said)
            except HNeuronsError as error:
                self.console.print(f"[bold]{escape(str(error))}[/bold]", highlight=False)

    def say(self, question: str) -> None:
        """Put a question and show the answer as it comes; Ctrl-C keeps what was said so far."""
        turns = (*self.turns, Message("user", question))
        job = Job(turns, max_tokens=self.max_tokens, temperature=self.temperature, alpha=self.alpha)
        stream = events(self.service, job)
        waiting: dict[int, str] = {}
        text = ""
        self.last = None  # until this answer is whole
        try:
            for event in stream:
                if isinstance(event, Piece):
                    text += event.text
                    self._show(event, waiting)
                elif isinstance(event, Failed):
                    raise HNeuronsError(event.message)
                else:
                    self.last = event.reading
                    text = event.text
                    self._summary(event)
        except KeyboardInterrupt:
            self.console.print("\n(stopped)", style="dim")
        finally:
            stream.close()
        self.turns = [*turns, Message("assistant", text)]

    def _show(self, piece: Piece, waiting: dict[int, str]) -> None:
        # A terminal can't colour what it has shown: a token waits for its risk, which comes one step later.
        for token in piece.tokens:
            waiting[token.index] = piece.text
        if piece.text and not piece.tokens:
            waiting[max(waiting, default=0) + 1] = piece.text
        for mark in piece.marks:
            for index in [index for index in waiting if index <= mark.index]:
                self.console.print(Text(waiting.pop(index), style=style_of(mark.risk)), end="", soft_wrap=True)

    def _summary(self, done: Done) -> None:
        self.console.print()
        reading = done.reading
        if reading is None:
            return
        flag = "flagged" if reading.flagged else "not flagged"
        alpha = f", alpha {done.alpha:g}" if done.alpha != 1 else ""
        line = Text(f"risk {reading.risk:.0%}", style=style_of(reading.risk))
        line.append(f" ({flag} at {reading.threshold:.0%}{alpha})", style="dim")
        self.console.print(line)

    def _set_alpha(self, text: str) -> None:
        if text:
            try:
                alpha = float(text)
            except ValueError as error:
                raise UsageError(f"{text!r} is no number.", "/alpha 0.5") from error
            checked_alpha(alpha)
            self.alpha = alpha
        self.console.print(f"alpha {self.alpha:g}", style="dim", highlight=False)

    def _why(self, _: str) -> None:
        if self.last is None:
            self.console.print("There is no whole answer to explain yet.", style="dim")
            return
        for neuron, value in self.last.top:
            expert = "" if neuron.expert is None else f", expert {neuron.expert}"
            name = f"layer {neuron.layer}{expert}, neuron {neuron.index}"
            self.console.print(f"{value:+.3f}  {name}", highlight=False)
        self.console.print("(weight times contribution; together with the others they make up the score)", style="dim")

    def _clear(self, _: str) -> None:
        self.turns, self.last = [], None
        self.console.print("Forgotten.", style="dim")
