"""`hneurons verify`: parses, calls one function, prints."""

from __future__ import annotations

import typer

from hneurons.cli.common import load, loading_of
from hneurons.cli.options import Device, Dtype, Json, ModelArgument, Pattern, Revision, Trust


def verify(
    model: ModelArgument,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    ffn: Pattern = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Check that the neurons of MODEL are found, measured and scaled as they should be."""
    from hneurons.progress import TerminalProgress
    from hneurons.runfolder import dumps

    progress = TerminalProgress()
    loading = loading_of(dtype, device, revision, ffn, trust_remote_code)
    loaded = load(model, progress, loading)
    from hneurons.neurons.verify import verify as check

    result = check(loaded)
    typer.echo(dumps(result.to_json()) if as_json else str(result))
    if not result.passed:
        raise typer.Exit(1)
