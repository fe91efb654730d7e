"""`hneurons evaluate`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hneurons.cli.common import fields_of, judging_of, read_questions
from hneurons.cli.options import (
    BaseUrl,
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
    ModelPlace,
    PromptPrice,
    ReplyPrice,
    RunArgument,
    ServedModel,
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
    engine: EngineName = None,
    features: Features = None,
    base_url: BaseUrl = None,
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
    from hneurons.studies.evaluate import evaluate_run, loading_recorded, recorded_judging
    from hneurons.studies.judging import open_tools

    progress = TerminalProgress()
    opened = Run(run)
    fields = fields_of(field)
    sets = [read_questions(name, progress, fields=fields, allow_empty=allow_empty) for name in [*on, *(more or [])]]
    usual = recorded_judging(opened.manifest)
    judging = judging_of(
        judge or usual.judge, spans or usual.spans, judge_model or usual.endpoint.get("model"), judge_url,
        judge_key_env, judge_calls, prompt_price, completion_price,
    )  # fmt: skip
    asked = [question for questions in sets for question in questions.questions[:limit]]
    chosen = recorded_engines(
        opened.manifest, engine=engine, features=features, base_url=base_url, served_model=served_model,
        key_env=engine_key_env, args=engine_args(engine_arg),
    )  # fmt: skip
    where, loading = loading_recorded(opened.manifest, model)
    progress.say(f"Loading {where}")
    with (
        open_engine(chosen, where, loading, progress.say) as made,
        open_tools(judging, run / "judge-cache", asked, 1, progress.say, made.engine, made.extractor) as tools,
    ):
        done = evaluate_run(opened, sets, made.model, tools=tools, limit=limit, per_class=per_class, progress=progress)
    if as_json:
        typer.echo(dumps({"run": str(done.path), "report": str(done.report), "rows": done.rows()}))
        return
    typer.echo(done.table())
    typer.echo(f"Report:  {done.report.resolve()}")
