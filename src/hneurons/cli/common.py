"""What several commands share: reading options, questions and models."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


def read_questions(source: str, progress: Any, **options: Any) -> Any:
    """The questions of a name or file; says how the columns were read and what was left out."""
    from hneurons.questions.sources import load_questions

    asked = load_questions(source, **options)
    read = ", ".join(f"{role} from {columns}" for role, columns in asked.mapping.items() if role != columns)
    dropped = ", ".join(f"{name} {count:,}" for name, count in asked.dropped.items())
    if read or dropped:
        progress.say(
            f"{asked.name}: {len(asked.questions):,} questions" + _after("; ", read) + _after("; left out: ", dropped)
        )
    return asked


def _after(lead: str, text: str) -> str:
    return lead + text if text else ""


def fields_of(given: list[str] | None) -> dict[str, str] | None:
    """Role -> column, from `role=column` options."""
    from hneurons.errors import UsageError

    fields: dict[str, str] = {}
    for each in given or []:
        role, found, columns = each.partition("=")
        if not found:
            raise UsageError(f"--field {each!r} has no '='.", "Write it as --field question=COLUMN.")
        fields[role] = columns
    return fields or None


def judging_of(
    judge: str, spans: str | None, model: str | None, url: str | None, key_env: str | None, calls: int | None,
    prompt_price: float | None, completion_price: float | None,
) -> Any:  # fmt: skip
    """Who judges and marks answers, from the options of a command."""
    from hneurons.studies.judging import Judging

    where = {
        "model": model, "base_url": url, "key_env": key_env, "max_calls": calls, "prompt_price": prompt_price,
        "completion_price": completion_price,
    }  # fmt: skip
    return Judging(judge, spans or "rule", where)


def judging_again(
    manifest: dict[str, Any], judge: str | None, spans: str | None, model: str | None, url: str | None,
    key_env: str | None, calls: int | None = None, prompt_price: float | None = None,
    completion_price: float | None = None,
) -> Any:  # fmt: skip
    """As the run had it judged, but for what the options say. A key goes to no other endpoint than the run's."""
    from hneurons.studies.evaluate import recorded_judging

    usual = recorded_judging(manifest)
    known: dict[str, Any] = {} if url else usual.endpoint
    return judging_of(
        judge or usual.judge, spans or usual.spans, model or usual.endpoint.get("model"), url or known.get("base_url"),
        key_env or known.get("key_env"), calls, prompt_price, completion_price,
    )  # fmt: skip


def loading_of(dtype: str, device: str, revision: str | None, ffn: str | None, trust: bool) -> dict[str, Any]:
    """Options of `load_model` as the commands take them."""
    return {"dtype": dtype, "device": device, "revision": revision, "ffn": ffn, "trust_remote_code": trust}


def load(model: str, progress: Any, loading: dict[str, Any]) -> Any:
    """The model, as `loading_of` says."""
    progress.say(f"Loading {model}")
    from hneurons.models.load import load_model

    return load_model(model, say=progress.say, **loading)


def clustered(
    address: str | None, replicas: int | None, gpus: float | None, engine: str | None = None
) -> dict[str, Any] | None:
    """Options of `open_cluster` as the commands take them; None to work on this machine alone."""
    from hneurons.errors import UsageError

    if address is None and (replicas, gpus) != (None, None):
        raise UsageError("Replicas belong to a cluster.", "Add --cluster local, or the address of one.")
    if address is None:
        return None
    if engine not in (None, "hf"):
        raise UsageError(f"The replicas of a cluster run transformers, not {engine}.", "Use --engine hf there.")
    from hneurons.cluster.onray import check_address

    check_address(address)  # before the long load of a model
    return {"address": address, "replicas": replicas, "replica_gpus": gpus}


def opened(cluster: dict[str, Any] | None, model: Any, progress: Any, loading: dict[str, Any] | None = None) -> Any:
    """The cluster of those options, as a context; None in place of one."""
    if cluster is None:
        return nullcontext(None)
    from hneurons.cluster.opening import open_cluster

    trust = bool((loading or {}).get("trust_remote_code"))
    return open_cluster(**cluster, model=model, say=progress.say, trust_remote_code=trust)
