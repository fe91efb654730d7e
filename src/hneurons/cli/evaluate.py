"""`hneurons evaluate`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hneurons.cli.common import clustered, fields_of, judging_again, opened, read_questions
from hneurons.cli.options import (
    ClusterAddress,
    Empty,
    EngineArg,
    EngineKey,
    Field,
    Json,
    JudgeCalls,
    ModelPlace,
    PromptPrice,
    ReplicaGpus,
    Replicas,
    ReplyPrice,
    RunArgument,
    RunsBaseUrl,
    RunsEngine,
    RunsFeatures,
    RunsJudge,
    RunsJudgeKey,
    RunsJudgeModel,
    RunsJudgeUrl,
    RunsSpans,
    ServedModel,
    Trust,
)


def evaluate(
    run: RunArgument,
    on: Annotated[list[str], typer.Option("--on", help="Data set or file; more may follow.")],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="More of them, after --on.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask a random sample of so many questions of each.")] = None,
    per_class: Annotated[int, typer.Option(min=10, help="Stop at this many examples of each class.")] = 500,
    model: ModelPlace = None,
    trust_remote_code: Trust = False,
    field: Field = None,
    allow_empty: Empty = False,
    judge: RunsJudge = None,
    spans: RunsSpans = None,
    judge_model: RunsJudgeModel = None,
    judge_url: RunsJudgeUrl = None,
    judge_key_env: RunsJudgeKey = None,
    judge_calls: JudgeCalls = None,
    prompt_price: PromptPrice = None,
    completion_price: ReplyPrice = None,
    cluster: ClusterAddress = None,
    replicas: Replicas = None,
    replica_gpus: ReplicaGpus = None,
    engine: RunsEngine = None,
    features: RunsFeatures = None,
    base_url: RunsBaseUrl = None,
    served_model: ServedModel = None,
    engine_key_env: EngineKey = None,
    engine_arg: EngineArg = None,
    as_json: Json = False,
) -> None:
    """Score the H-Neurons of RUN on other data sets: `hneurons evaluate RUN --on nq_open bioasq nonexist`."""
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps
    from hneurons.studies.engines import engine_args, open_engine, recorded_engines
    from hneurons.studies.evaluate import evaluate_run, loading_recorded
    from hneurons.studies.judging import open_tools

    progress = TerminalProgress()
    evaluated = Run(run)
    chosen = recorded_engines(
        evaluated.manifest, engine=engine, features=features, base_url=base_url, served_model=served_model,
        key_env=engine_key_env, args=engine_args(engine_arg),
    )  # fmt: skip
    over = clustered(cluster, replicas, replica_gpus, chosen.engine)
    fields = fields_of(field)
    sets = [read_questions(name, progress, fields=fields, allow_empty=allow_empty) for name in [*on, *(more or [])]]
    judging = judging_again(
        evaluated.manifest, judge, spans, judge_model, judge_url, judge_key_env, judge_calls, prompt_price,
        completion_price,
    )  # fmt: skip
    asked = [question for questions in sets for question in questions.questions[:limit]]
    where, loading = loading_recorded(evaluated.manifest, model, trust_remote_code=trust_remote_code)
    progress.say(f"Loading {where}")
    with (
        open_engine(chosen, where, loading, progress.say) as made,
        open_tools(judging, run / "judge-cache", asked, 1, progress.say, made.engine, made.extractor) as tools,
        opened(over, made.model, progress, loading) as there,
    ):
        done = evaluate_run(
            evaluated, sets, made.model, tools=there.tools(tools) if there else tools, limit=limit,
            per_class=per_class, progress=progress,
        )  # fmt: skip
    if as_json:
        typer.echo(dumps({"run": str(done.path), "report": str(done.report), "rows": done.rows()}))
        return
    typer.echo(done.table())
    typer.echo(f"Report:  {done.report.resolve()}")
