"""`hneurons identify`: parses, calls one function, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hneurons.cli.common import clustered, fields_of, judging_of, loading_of, opened, read_questions
from hneurons.cli.options import (
    BaseUrl,
    ClusterAddress,
    Device,
    Dtype,
    Empty,
    EngineArg,
    EngineKey,
    EngineName,
    Features,
    Field,
    Json,
    JudgeCalls,
    JudgeKey,
    JudgeModel,
    JudgeName,
    JudgeUrl,
    ModelArgument,
    Out,
    Pattern,
    PromptPrice,
    Questions,
    ReplicaGpus,
    Replicas,
    ReplyPrice,
    Revision,
    ServedModel,
    Spans,
    Trust,
)


def identify(
    model: ModelArgument,
    questions: Questions = "starter",
    out: Out = Path("runs/identify"),
    field: Field = None,
    allow_empty: Empty = False,
    limit: Annotated[int | None, typer.Option(help="Use a random sample of this many questions.")] = None,
    samples: Annotated[int | None, typer.Option(help="Responses a question. [10]")] = None,
    agreement: Annotated[int | None, typer.Option(help="How many of them must agree. [all]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy. [1.0]")] = None,
    top_k: Annotated[int | None, typer.Option(help="0 for no limit. [50]")] = None,
    top_p: Annotated[float | None, typer.Option(help="[0.9]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="[50]")] = None,
    thinking: Annotated[
        int | None, typer.Option(help="Let a reasoning model think for so many tokens first. [not at all]")
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Stop at this many examples of each class. [1000]")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="paper: C by the paper's joint rule. reference: the public code's choices, to compare with."),
    ] = None,
    judge: JudgeName = None,
    spans: Spans = None,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_key_env: JudgeKey = None,
    judge_calls: JudgeCalls = None,
    prompt_price: PromptPrice = None,
    completion_price: ReplyPrice = None,
    labelling: Annotated[str | None, typer.Option(help="3-vs-1 or 1-vs-1. [3-vs-1]")] = None,
    other: Annotated[str | None, typer.Option(help="The other tokens: response or all. [response]")] = None,
    solver: Annotated[str | None, typer.Option(help="exact or liblinear. [exact]")] = None,
    c: Annotated[float | None, typer.Option("--C", help="Inverse penalty. [chosen by cross-validation]")] = None,
    seed: Annotated[int | None, typer.Option(help="[0]")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    ffn: Pattern = None,
    trust_remote_code: Trust = False,
    cluster: ClusterAddress = None,
    replicas: Replicas = None,
    replica_gpus: ReplicaGpus = None,
    engine: EngineName = None,
    features: Features = None,
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    engine_key_env: EngineKey = None,
    engine_arg: EngineArg = None,
    as_json: Json = False,
) -> None:
    """Find the H-Neurons of MODEL and evaluate them on held-out questions."""
    from hneurons.settings import identify_settings

    settings = identify_settings(
        preset,
        limit=limit,
        samples=samples,
        agreement=agreement,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        thinking=thinking,
        per_class=per_class,
        labelling=labelling,
        other=other,
        solver=solver,
        C=c,
        seed=seed,
    )
    over = clustered(cluster, replicas, replica_gpus, engine)
    engines: dict[str, Any] = {
        "engine": engine or "hf", "features": features, "base_url": base_url, "served_model": served_model,
        "key_env": engine_key_env, "args": engine_arg,
    }  # fmt: skip
    loading = loading_of(dtype, device, revision, ffn, trust_remote_code)
    judging = judging_of(
        judge or ("substring" if preset == "reference" else "alias"), spans, judge_model, judge_url, judge_key_env,
        judge_calls, prompt_price, completion_price,
    )  # fmt: skip
    reading = {"fields": fields_of(field), "allow_empty": allow_empty}
    find(
        model, questions, out, settings, as_json, loading=loading, judging=judging, reading=reading, engines=engines,
        cluster=over,
    )  # fmt: skip


def find(
    model: str,
    questions: str,
    out: Path,
    settings: Any,
    as_json: bool,
    *,
    loading: dict[str, Any] | None = None,
    notes: list[str] | None = None,
    judging: Any = None,
    reading: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    engines: dict[str, Any] | None = None,
) -> None:
    """Identify as the settings say, and print the outcome; `hneurons demo` does so too."""
    from hneurons.progress import TerminalProgress
    from hneurons.runfolder import dumps

    progress = TerminalProgress()
    # Look at the questions before the model: a slip in the file shows at once, not after a long load.
    asked = read_questions(questions, progress, limit=settings.limit, seed=settings.seed, **(reading or {}))
    from hneurons.studies.engines import Engines, engine_args, open_engine
    from hneurons.studies.identify import identify as study
    from hneurons.studies.judging import Judging, open_tools

    named = dict(engines or {})
    args = engine_args(named.pop("args", None))
    chosen = Engines(args=args, **named)
    progress.say(f"Loading {model}")
    judging, asks = judging or Judging(), (asked.questions, settings.samples, progress.say)
    with (
        open_engine(chosen, model, loading or {}, progress.say) as made,
        open_tools(judging, out / "judge-cache", *asks, made.engine, made.extractor) as tools,
        opened(cluster, made.model, progress, loading) as over,
    ):
        tools = over.tools(tools) if over else tools
        run = study(made.model, asked, out, settings, tools=tools, notes=notes or [], progress=progress)
    if as_json:
        typer.echo(dumps({"run": str(run.path), "report": str(run.report), **run.evaluation["verdict"]}))
        return
    counts = run.manifest["counts"]
    typer.echo(
        f"\n{counts['faithful']} faithful and {counts['hallucinated']} hallucinated examples from "
        f"{counts['questions']:,} questions; H-Neurons: {run.card.h_neurons!r}."
    )
    typer.echo(f"Verdict: {run.verdict}")
    typer.echo(f"Report:  {run.report.resolve()}")
