"""`hneurons chat`: parses, calls one function."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import suppress
from importlib import import_module
from typing import Annotated

import typer

from hneurons.cli.options import ModelPlace, RunArgument, Trust


def chat(
    run: RunArgument,
    alpha: Annotated[float, typer.Option(help="Multiply the H-Neurons by 0 to 100; /alpha turns it later.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    threshold: Annotated[float | None, typer.Option(help="Risk from which an answer is flagged. [the card's]")] = None,
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
) -> None:
    """Chat with the model of RUN in the terminal, tokens coloured by risk; /help lists the commands."""
    from rich.console import Console

    from hneurons.progress import TerminalProgress
    from hneurons.results import Run

    opened = Run(run)
    card = opened.card  # complains before the model is loaded
    from hneurons.live.service import BatchService
    from hneurons.live.terminal import HELP, Chat
    from hneurons.studies.evaluate import load_model_of

    loaded = load_model_of(opened.manifest, TerminalProgress(), model, trust_remote_code=trust_remote_code)
    console = Console()
    with BatchService(loaded, card, threshold=threshold) as service:
        talk = Chat(service, console, alpha=alpha, max_tokens=max_tokens, temperature=temperature)
        if sys.stdin.isatty():
            console.print(
                f"{service.name}, {card.h_neurons!r} H-Neurons. {opened.verdict}", highlight=False, markup=False
            )
            console.print(HELP, style="dim", highlight=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # stops an answer, not the chat
        talk.run(_lines())


def _lines() -> Generator[str]:
    """What is typed, or piped in."""
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # arrow keys and history in input(); not on every system
            import_module("readline")
    while True:
        try:
            yield input("> " if terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo("\n/quit ends the chat.", err=True)
