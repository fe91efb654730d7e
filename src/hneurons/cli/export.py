"""`hneurons export`: parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hneurons.cli.options import Device, Json, ModelPlace, RunArgument, Trust


def export(
    run: RunArgument,
    format: Annotated[
        str, typer.Option(help="lora or ia3 (PEFT adapters), weights (a checkpoint), gguf-lora (llama.cpp's adapter).")
    ] = "lora",
    alpha: Annotated[
        float, typer.Option(help="What to multiply the H-Neurons by: 0 silences, 1 changes nothing, at most 100.")
    ] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must not exist or be empty.")] = Path("dial"),
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. [the run's]")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write the H-Neurons of RUN times ALPHA as an adapter or as weights, for other engines."""
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps

    opened = Run(run)
    card = opened.card  # complains before the model is loaded
    from hneurons.live.export import check, export
    from hneurons.studies.evaluate import load_model_of

    target = check(card, format, out, alpha)
    loaded = load_model_of(
        opened.manifest, TerminalProgress(), model, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    export(card, loaded, format=format, out=target, alpha=alpha)
    if as_json:
        typer.echo(dumps({"out": str(target), "format": format, "alpha": alpha, "neurons": len(card.h_neurons)}))
        return
    typer.echo(f"{len(card.h_neurons)} H-Neurons times {alpha:g} in {target}; its README.md says how to use it.")
