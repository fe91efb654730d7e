"""The `hneurons` command; a file for each of its commands. Heavy imports wait until one runs."""

from __future__ import annotations

import signal
import sys

import typer

from hneurons.cli.chat import chat
from hneurons.cli.demo import demo
from hneurons.cli.doctor import doctor
from hneurons.cli.evaluate import evaluate
from hneurons.cli.export import export
from hneurons.cli.identify import identify
from hneurons.cli.impact import impact
from hneurons.cli.origin import origin
from hneurons.cli.pull import pull
from hneurons.cli.report import report
from hneurons.cli.score import score
from hneurons.cli.serve import serve
from hneurons.cli.verify import verify
from hneurons.errors import HNeuronsError

app = typer.Typer(
    name="hneurons",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find the hallucination-associated neurons (H-Neurons) of a language model, and say how well they predict.",
)
# In the order in which one needs them, which --help keeps.
for command in (
    demo, identify, evaluate, impact, origin, export, chat, serve, score, report, verify, pull, doctor,
):  # fmt: skip
    app.command()(command)


class _Stopped(BaseException):
    """Ctrl-C. Not a KeyboardInterrupt, which typer would answer itself, without saying how to go on."""


def _stop(*_: object) -> None:
    raise _Stopped


def main() -> None:
    """Entry point: one line and a status for every error that has a remedy."""
    then = signal.signal(signal.SIGINT, _stop)
    try:
        app()
    except HNeuronsError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    except _Stopped:
        then = signal.SIG_DFL  # Python's end waits for what threads have under way; a second Ctrl-C doesn't
        typer.echo("\nStopped. The same command continues where it stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    finally:
        signal.signal(signal.SIGINT, then)
