"""`hneurons evaluate`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hneurons.cli.common import clustered, fields_of, judging_of, opened, read_questions
from hneurons.cli.options import (
    ClusterAddress,
    Empty,
    Field,
    Json,
    JudgeCalls,
    JudgeKey,
    JudgeModel,
    JudgeName,
    JudgeUrl,
    ModelPlace,
    PromptPrice,
    ReplicaGpus,
    Replicas,
    ReplyPrice,
    RunArgument,
    Spans,
)


def evaluate(
    run: RunArgument,
    on: Annotated[list[str], typer.Option("--on", help="Data set or file; more may follow.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask a random sample of so many questions of each.")] = None,
    per_class: Annotated[int, typer.Option(min=10, help="Stop at this many examples of each class.")] = 500,
    model: ModelPlace = None,
    field: Field = None,
    allow_empty: Empty = False,
    judge: JudgeName = None,
    spans: Spans = None,
    judge_model: JudgeModel = None,
    judge_url: JudgeUrl = None,
    judge_key_env: JudgeKey = None,
    judge_calls: JudgeCalls = None,
    prompt_price: PromptPrice = None,
    completion_price: ReplyPrice = None,
    cluster: ClusterAddress = None,
    replicas: Replicas = None,
    replica_gpus: ReplicaGpus = None,
    as_json: Json = False,
) -> None:
    """Score the H-Neurons of RUN on other data sets: `hneurons evaluate RUN --on nq_open bioasq nonexist`."""
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps
    from hneurons.studies.evaluate import evaluate_run, open_study, recorded_judging
    from hneurons.studies.judging import open_tools

    progress = TerminalProgress()
    evaluated, over = Run(run), clustered(cluster, replicas, replica_gpus)
    fields = fields_of(field)
    sets = [read_questions(name, progress, fields=fields, allow_empty=allow_empty) for name in [*on, *(more or [])]]
    usual = recorded_judging(evaluated.manifest)
    judging = judging_of(
        judge or usual.judge, spans or usual.spans, judge_model or usual.endpoint.get("model"), judge_url,
        judge_key_env, judge_calls, prompt_price, completion_price,
    )  # fmt: skip
    asked = [question for questions in sets for question in questions.questions[:limit]]
    with open_tools(judging, run / "judge-cache", asked, 1, progress.say) as tools:
        study = open_study(evaluated.manifest, model, progress) if over else model
        with opened(over, study, progress) as there:
            tools = there.tools(tools) if there else tools
            done = evaluate_run(
                evaluated, sets, study, tools=tools, limit=limit, per_class=per_class, progress=progress
            )
    if as_json:
        typer.echo(dumps({"run": str(done.path), "report": str(done.report), "rows": done.rows()}))
        return
    typer.echo(done.table())
    typer.echo(f"Report:  {done.report.resolve()}")
