"""`hneurons report`: parses, calls one function, prints."""

from __future__ import annotations

import typer

from hneurons.cli.options import RunArgument


def report(run: RunArgument) -> None:
    """Write report.html and the figures of RUN again."""
    from hneurons.report.page import write_report

    typer.echo(write_report(run))
