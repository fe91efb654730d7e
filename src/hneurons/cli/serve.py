"""`hneurons serve`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hneurons.cli.options import Device, ModelPlace, RunArgument, Trust


def serve(
    run: RunArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Any but this machine's own needs a token (--key-env).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_env: Annotated[
        str, typer.Option(help="Variable that holds the token which requests must carry.")
    ] = "HNEURONS_API_KEY",
    alpha: Annotated[
        float, typer.Option(min=0, max=100, help="What the plain model name multiplies the H-Neurons by.")
    ] = 1.0,
    max_batch: Annotated[int, typer.Option(min=1, help="Responses made at a time.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="Responses that may wait; beyond that 429.")] = 128,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt; beyond that 422. [what the context has room for]")
    ] = None,
    max_output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a response; beyond that 422.")] = 1024,
    max_choices: Annotated[int, typer.Option(min=1, help="Responses of one request; beyond that 422.")] = 8,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request; beyond that 413.")] = 1 << 20,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="How long begun responses may go on after SIGTERM or Ctrl-C.")
    ] = 30.0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Put prompts and responses in the log.")] = False,
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. [the run's]")] = None,
    device: Device = "auto",
) -> None:
    """Serve the model of RUN with its monitor and its dial: OpenAI's API, and a playground for the browser."""
    import os

    from hneurons.extras import need
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve")
    from hneurons.live.replies import worth
    from hneurons.live.server import ServerSettings, bind
    from hneurons.live.server import serve as run_server

    opened = Run(run)
    card = opened.card
    verdict = opened.verdict if (run / "evaluation.json").exists() else worth(card)
    settings = ServerSettings(
        host=host,
        key=os.environ.get(key_env) or None,
        key_variable=key_env,
        alpha=alpha,
        max_body=max_body,
        max_prompt_tokens=max_prompt_tokens,
        max_output_tokens=max_output_tokens,
        max_choices=max_choices,
        drain_seconds=drain_seconds,
        log_text=log_text,
        verdict=verdict,
    )
    # Whatever can be wrong without the model is found before it is loaded.
    settings.check()
    with bind(host, port) as listener:
        from hneurons.live.service import BatchService
        from hneurons.studies.evaluate import load_model_of

        loaded = load_model_of(
            opened.manifest, TerminalProgress(), model, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        service = BatchService(loaded, card, max_batch=max_batch, max_waiting=max_waiting, max_tokens=max_output_tokens)

        def ready(url: str) -> None:
            typer.echo(f"Serving {service.name}; H-Neurons: {card.h_neurons!r}.", err=True)
            typer.echo(verdict or "How well they predict was never evaluated.", err=True)
            typer.echo(f"Playground: {url}  API: {url}/v1  Ctrl-C finishes what was begun, and ends.", err=True)

        run_server(service, settings, listener, ready)
