"""`hneurons score`: parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hneurons.cli.common import fields_of
from hneurons.cli.options import Json, ModelPlace, RunArgument, Trust


def score(
    run: RunArgument,
    responses: Annotated[
        Path,
        typer.Option(help="JSONL, JSON, CSV, TSV or Parquet file with columns question (or messages) and response."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL to write; continued if it is there. [FILE.scored.jsonl]")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", help="Which column holds what, e.g. response=Output; repeatable. [guessed]"),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Multiply the H-Neurons by this, 0 to 100, while reading.")] = 1.0,
    threshold: Annotated[float | None, typer.Option(help="Risk from which a response is flagged. [the card's]")] = None,
    tokens: Annotated[bool, typer.Option("--tokens/--no-tokens", help="Write the risk of every token.")] = True,
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Add the risk of each response in a file, written by any server, as the H-Neurons of RUN see it."""
    from hneurons.errors import UsageError
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps

    opened = Run(run)
    card = opened.card  # complains before the model is loaded
    if not responses.is_file():
        raise UsageError(f"There is no file {responses}.", "Give a file of responses.")
    from hneurons.live.monitor import Monitor
    from hneurons.live.score import score_file
    from hneurons.studies.evaluate import load_model_of

    progress = TerminalProgress()
    monitor = Monitor(
        load_model_of(opened.manifest, progress, model, trust_remote_code=trust_remote_code), card, threshold=threshold
    )
    target = out or responses.with_suffix(".scored.jsonl")
    fields = fields_of(field)
    done = score_file(monitor, responses, target, fields=fields, alpha=alpha, tokens=tokens, progress=progress)
    if as_json:
        typer.echo(dumps(done))
        return
    rows, scored = done["rows"], done["scored"]
    problems = f"; {rows - scored:,} could not be scored" if rows > scored else ""
    typer.echo(f"{done['flagged']:,} of {scored:,} responses flagged{problems}: {target}")
