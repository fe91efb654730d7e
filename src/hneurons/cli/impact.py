"""`hneurons impact`: parses, calls one function, prints."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from hneurons.cli.common import clustered, judging_of, opened
from hneurons.cli.options import (
    ClusterAddress,
    Json,
    JudgeCalls,
    JudgeKey,
    JudgeModel,
    JudgeUrl,
    ModelPlace,
    PromptPrice,
    ReplicaGpus,
    Replicas,
    ReplyPrice,
    RunArgument,
    Trust,
)


def impact(
    run: RunArgument,
    benchmark: Annotated[
        list[str],
        typer.Option(
            "--benchmark",
            metavar="NAME[=FILE]",
            help="falseqa, faitheval, sycophancy, sycophancy-mc or jailbreak, with the built-in items, or those of "
            "=FILE or =hub; repeatable.",
        ),
    ],
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
    alphas: Annotated[
        str | None, typer.Option(help="Scales, separated by commas; 1 is always added. [0,0.5,1,1.5,2,2.5,3]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items of each benchmark. [200]")] = None,
    random_sets: Annotated[int | None, typer.Option(help="Random neuron sets of each of two kinds. [5]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="[the benchmark's own limit]")] = None,
    templates: Annotated[Path | None, typer.Option(help="File of jailbreak templates.")] = None,
    judge: Annotated[str, typer.Option(help="rule, or llm: then both judge, and their agreement is told.")] = "rule",
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_key_env: JudgeKey = None,
    judge_calls: JudgeCalls = None,
    prompt_price: PromptPrice = None,
    completion_price: ReplyPrice = None,
    capability: Annotated[
        bool, typer.Option("--capability/--no-capability", help="Answers and fluency at every alpha as well.")
    ] = True,
    questions: Annotated[
        list[str] | None,
        typer.Option("--questions", help="Question set of the capability curve; repeatable. [starter, nonexist]"),
    ] = None,
    capability_limit: Annotated[int | None, typer.Option(help="Questions of each. [200]")] = None,
    capability_controls: Annotated[
        bool, typer.Option("--capability-controls", help="The capability curve for the other neuron sets too.")
    ] = False,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Keep the replies to private benchmarks too.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="[0]")] = None,
    cluster: ClusterAddress = None,
    replicas: Replicas = None,
    replica_gpus: ReplicaGpus = None,
    as_json: Json = False,
) -> None:
    """Turn the H-Neurons of RUN up and down, beside random neurons, and measure what it does."""
    from hneurons.errors import UsageError
    from hneurons.settings import impact_settings

    if judge not in ("rule", "llm"):
        raise UsageError(f"There is no judge {judge!r} of behaviour.", "Judges: rule, llm.")
    settings = impact_settings(
        alphas=_numbers(alphas),
        limit=limit,
        random_sets=random_sets,
        max_new_tokens=max_new_tokens,
        capability=(tuple(questions) if questions else None) if capability else (),
        capability_limit=capability_limit,
        capability_controls=capability_controls,
        keep_outputs=keep_outputs,
        seed=seed,
    )
    from hneurons.cli.impact_text import impact_text
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps

    progress = TerminalProgress()
    turned, over = Run(run), clustered(cluster, replicas, replica_gpus)
    from hneurons.studies.evaluate import open_study
    from hneurons.studies.impact import choose
    from hneurons.studies.impact import impact as measure

    chosen = choose(_sources(benchmark), templates)
    judging = None
    if judge == "llm":
        judging = judging_of(
            judge, None, judge_model, judge_url, judge_key_env, judge_calls, prompt_price, completion_price
        )
    trust, study = {"trust_remote_code": trust_remote_code}, model
    if over or trust_remote_code:
        study = open_study(turned.manifest, model, progress, **trust)
    with _client(judging, run) as client, opened(over, study, progress, trust) as there:
        where = {"open_engine": there.open_engine, "together": there.ahead} if there else {}
        done = measure(turned, chosen, study, settings=settings, client=client, progress=progress, **where)
    if as_json:
        typer.echo(dumps(done.impact))
        return
    typer.echo(impact_text(done.impact, [each.name for each in chosen]))
    if done.report.exists():
        typer.echo(f"Report:  {done.report.resolve()}")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    from hneurons.errors import UsageError

    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--alphas {text!r:.60} isn't numbers separated by commas.", "E.g. --alphas 0,1,3.") from None


def _sources(given: list[str]) -> list[tuple[str, str | None]]:
    pairs = [each.partition("=") for each in given]
    return [(name, source if found else None) for name, found, source in pairs]


def _client(judging: Any, run: Path) -> Any:
    """A language model that judges, as the other commands open it; none if `judging` is None."""
    if judging is None:
        return nullcontext(None)
    from hneurons.answers.endpoint import endpoint
    from hneurons.answers.llm import LLMClient

    given = {key: value for key, value in judging.endpoint.items() if value is not None}
    return LLMClient(endpoint(**given), run / "judge-cache")
