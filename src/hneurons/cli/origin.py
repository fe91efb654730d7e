"""`hneurons origin`: parses, calls one function, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from hneurons.cli.common import judging_again
from hneurons.cli.options import (
    Device,
    Dtype,
    Json,
    ModelPlace,
    Pattern,
    RunArgument,
    RunsJudgeKey,
    RunsJudgeUrl,
    Shots,
    Trust,
)


def origin(
    run: RunArgument,
    base: Annotated[list[str], typer.Option("--base", help="Checkpoint to compare with; repeat it, in order of time.")],
    model: ModelPlace = None,
    few_shot: Shots = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template where there is one.")] = False,
    no_own: Annotated[bool, typer.Option("--no-own", help="Find no card of each checkpoint's own.")] = False,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Compare weights; ask nothing.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many questions of each data set at most.")] = None,
    per_class: Annotated[int, typer.Option(min=10, help="Stop at this many examples of each class.")] = 500,
    judge_url: RunsJudgeUrl = None,
    judge_key_env: RunsJudgeKey = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    ffn: Pattern = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Trace the H-Neurons of RUN to its base model: were they there before instruction tuning?"""
    from hneurons.progress import TerminalProgress
    from hneurons.results import Run
    from hneurons.runfolder import dumps
    from hneurons.studies.backward import read_questions
    from hneurons.studies.judging import open_tools
    from hneurons.studies.origin import Loading
    from hneurons.studies.origin import origin as trace

    progress, opened = TerminalProgress(), Run(run)
    judging = judging_again(opened.manifest, None, None, None, judge_url, judge_key_env)
    with open_tools(judging, run / "judge-cache", read_questions(run)[:limit], 1, progress.say) as tools:
        done = trace(
            opened, base, model=model, few_shot=few_shot, chat=chat, own=not no_own, answers=not weights_only,
            limit=limit, per_class=per_class, tools=tools, progress=progress,
            loading=Loading(dtype, device, ffn, trust_remote_code),
        )  # fmt: skip
    if as_json:
        typer.echo(dumps({"run": str(done.path), "report": str(done.report), **done.origin}))
        return
    for checkpoint in done.origin["checkpoints"]:
        typer.echo(f"{checkpoint['name']}: {checkpoint['verdict']['sentence']}")
    typer.echo(f"Report:  {done.report.resolve()}")
