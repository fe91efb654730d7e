"""`hneurons doctor`: parses, calls one function, prints."""

from __future__ import annotations

import typer

from hneurons.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Show what this machine has, and which settings follow from it."""
    from hneurons.doctor import examine, table
    from hneurons.runfolder import dumps

    found = examine()
    typer.echo(dumps(found) if as_json else table(found))
