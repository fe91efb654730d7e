"""`hneurons pull`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer


def pull(
    name: Annotated[str | None, typer.Argument(help="Demo model to fetch and convert; without it, list them.")] = None,
) -> None:
    """Fetch a demo model into the cache, once."""
    from hneurons.models.demo import DEMO_MODELS
    from hneurons.models.demo import pull as fetch
    from hneurons.progress import TerminalProgress

    if name is None:
        for demo_model in DEMO_MODELS.values():
            typer.echo(f"{demo_model.name:<20}{demo_model.licence:<14}{demo_model.about}")
        return
    typer.echo(fetch(name, TerminalProgress().say))
