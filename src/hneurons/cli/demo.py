"""`hneurons demo`: parses, calls one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hneurons.cli.identify import find
from hneurons.cli.options import Json, Out


def demo(
    questions: Annotated[
        int | None, typer.Option("--questions", min=1, help="How many starter questions to ask; fewer is quicker.")
    ] = None,
    out: Out = Path("runs/demo"),
    model: Annotated[str, typer.Option("--model", help="Model to study.")] = "smollm2-135m",
    as_json: Json = False,
) -> None:
    """The main job on a small model and the built-in questions: identify, evaluate, report."""
    from hneurons.settings import DEMO_NOTE, demo_settings

    find(model, "starter", out, demo_settings(questions), as_json, notes=[DEMO_NOTE])
