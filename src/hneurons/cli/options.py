"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hneurons.runfolder import local

Out = Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run in it is continued.", callback=local)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file or demo model (see `hneurons pull`).")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, or spread over all there are.")]
Revision = Annotated[str | None, typer.Option(help="Commit or tag on the hub.")]
Pattern = Annotated[str | None, typer.Option(help="Path pattern of the down projections, for architectures not known.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Questions = Annotated[
    str,
    typer.Option(
        "--questions", help="starter, nonexist, a set by name (triviaqa, nq_open, ...), or a file of questions."
    ),
]
Field = Annotated[
    list[str] | None,
    typer.Option("--field", help="Which column holds what, e.g. question=Frage or answers=a,b; repeatable. [guessed]"),
]
Empty = Annotated[
    bool, typer.Option("--allow-empty", help="Keep questions without answers: the right reply is to abstain.")
]
RunsJudge = Annotated[str | None, typer.Option("--judge", help="alias, substring or llm. [the run's]")]
RunsSpans = Annotated[str | None, typer.Option("--spans", help="Who marks the answer: rule or llm. [the run's]")]
RunsJudgeModel = Annotated[str | None, typer.Option("--judge-model", help="Model that judges. [the run's]")]
RunsJudgeUrl = Annotated[
    str | None, typer.Option("--judge-url", help="Endpoint of a language model that judges. [the run's]")
]
RunsJudgeKey = Annotated[
    str | None, typer.Option("--judge-key-env", help="Variable with its API key. [the run's; OPENAI_API_KEY elsewhere]")
]
RunsEngine = Annotated[str | None, typer.Option("--engine", help="Who samples: hf, vllm or openai. [the run's]")]
RunsFeatures = Annotated[
    str | None, typer.Option("--features", help="Where neurons are measured, if vLLM samples: hf or vllm. [the run's]")
]
RunsBaseUrl = Annotated[
    str | None, typer.Option("--base-url", help="Of the server, e.g. http://localhost:8000/v1. [the run's]")
]
JudgeName = Annotated[
    str | None, typer.Option("--judge", help="alias, substring or llm. [alias; substring with --preset reference]")
]
Spans = Annotated[str | None, typer.Option("--spans", help="Who marks the answer in a response: rule or llm. [rule]")]
JudgeModel = Annotated[str | None, typer.Option(help="Model that judges, for --judge llm.")]
JudgeUrl = Annotated[str | None, typer.Option(help="OpenAI-compatible endpoint. [https://api.openai.com/v1]")]
JudgeKey = Annotated[str | None, typer.Option("--judge-key-env", help="Variable with the API key. [OPENAI_API_KEY]")]
JudgeCalls = Annotated[int | None, typer.Option(min=1, help="Stop after so many requests to the judge.")]
PromptPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million prompt tokens, for the estimate.")]
ReplyPrice = Annotated[float | None, typer.Option(min=0, help="Price of a million completion tokens.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", help="Who samples: hf, vllm (in this process), or openai (a server). [hf]")
]
Features = Annotated[
    str | None, typer.Option("--features", help="Where neurons are measured, if vLLM samples: hf or vllm. [hf]")
]
BaseUrl = Annotated[str | None, typer.Option(help="Of the server, e.g. http://localhost:8000/v1.")]
ServedModel = Annotated[str | None, typer.Option(help="The model's name on the server. [its own, or the only one]")]
EngineKey = Annotated[
    str | None, typer.Option("--engine-key-env", help="Variable with the server's API key. [OPENAI_API_KEY]")
]
EngineArg = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        metavar="KEY=VALUE",
        help="For vLLM, e.g. tensor_parallel_size=4; for a server, e.g. concurrency=128; repeatable.",
    ),
]
ModelPlace = Annotated[str | None, typer.Option("--model", help="Where the run's model is. [where it was]")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Shots = Annotated[
    str | None,
    typer.Option("--few-shot", help="So many training questions with answers before each, or a file of questions."),
]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Sample and measure on a Ray cluster: local (starts one), auto, or HOST:PORT.",
    ),
]
Replicas = Annotated[
    int | None, typer.Option(min=1, help="Replicas of the model on the cluster. [one a GPU, or one a node without]")
]
ReplicaGpus = Annotated[
    float | None, typer.Option(min=0, help="GPUs of each replica; 0 for CPUs. [1 where there are any]")
]
