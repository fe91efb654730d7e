"""The README.md of an exported folder: what it is, where it comes from, what it was worth, and how to use it."""

from __future__ import annotations

import json
from typing import Any

from hneurons.models.load import StudyModel
from hneurons.neurons.card import Card

TITLES = {
    "lora": "LoRA adapter (PEFT)",
    "ia3": "IA3 adapter (PEFT)",
    "weights": "model weights",
    "gguf-lora": "LoRA adapter (llama.cpp)",
}


def readme(card: Card, model: StudyModel, format: str, alpha: float, told: dict[str, Any]) -> str:
    """Markdown, with the header that the model hub reads.

    Args:
        card: the card.
        model: the model it belongs to.
        format: one of `TITLES`.
        alpha: what the H-Neurons are multiplied by.
        told: what the writer of that format says: `layers`, `dtype`, and for LoRA the `rank`.
    """
    name = model.name
    parts = [
        _header(name, format),
        f"# H-Neurons of {name}, alpha = {alpha:g}: {TITLES[format]}",
        f"Made by [hneurons](https://arxiv.org/abs/2512.01797) from the card beside this file (`neurons.json`). "
        f"{_effect(alpha)} They are {card.h_neurons!r} feed-forward neurons, in {told['layers']} layers. "
        f"Everything else is as in {name}.",
        "## Where they come from",
        _origin(card),
        "## What they were worth",
        _metrics(card),
        "## How to use it",
        _use(name, format, alpha, told),
        "## Limits",
        _limits(format, told),
    ]
    return "\n\n".join(parts) + "\n"


def _header(name: str, format: str) -> str:
    library = {"weights": "transformers", "gguf-lora": "llama.cpp"}.get(format, "peft")
    relation = "finetune" if format == "weights" else "adapter"
    # A JSON string is a YAML string.
    return (
        f"---\nbase_model: {json.dumps(name)}\nbase_model_relation: {relation}\nlibrary_name: {library}\n"
        "tags:\n- hneurons\n---"
    )


def _effect(alpha: float) -> str:
    does = {0.0: "silences", 1.0: "leaves as they are"}.get(alpha, f"multiplies by {alpha:g}")
    return f"It {does} the neurons that are associated with hallucination in this model."


def _origin(card: Card) -> str:
    model, probe = card.model, card.probe
    revision = f", revision `{model.revision}`" if model.revision else ""
    return (
        f"Model: {model.id}{revision} ({model.architecture}, {model.layers} layers, {model.neurons:,} neurons). "
        f"Probe: {probe.penalty.upper()} logistic regression on {probe.feature.upper()} of the {probe.region} tokens, "
        f"{probe.labelling}, C = {probe.C:g}, solver {probe.solver}; {len(card.neurons)} weights other than zero, of "
        f"which the {len(card.h_neurons)} positive ones are the H-Neurons."
    )


def _metrics(card: Card) -> str:
    rows: list[str] = []
    for data, numbers in card.metrics.items():
        for metric, value in numbers.items() if isinstance(numbers, dict) else ():
            if isinstance(value, dict) and isinstance(value.get("value"), int | float):
                rows.append(f"| {data} | {metric} | {_interval(value)} | {value.get('n', '')} |")
    if not rows:
        return "The card holds no metrics."
    told = "As a classifier of the model's answers on held-out questions; this says nothing of what scaling them does."
    return f"{told}\n\n| data | metric | value [95 %] | n |\n|---|---|---|---|\n" + "\n".join(rows)


def _interval(value: dict[str, Any]) -> str:
    text = f"{value['value']:.3f}"
    if isinstance(value.get("low"), int | float) and isinstance(value.get("high"), int | float):
        text += f" [{value['low']:.3f}, {value['high']:.3f}]"
    return text


def _use(name: str, format: str, alpha: float, told: dict[str, Any]) -> str:
    load = "from transformers import AutoModelForCausalLM\n"
    base = f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
    if format == "weights":
        return f"```python\n{load}model = AutoModelForCausalLM.from_pretrained('.')  # this folder\n```"
    if format == "ia3":
        return (
            f"```python\nfrom peft import PeftModel\n{load}{base}model = PeftModel.from_pretrained(model, '.')\n```\n\n"
            f"The file holds the factor {alpha:g} itself. For another alpha export again."
        )
    if format == "lora":
        return (
            f"```python\nfrom peft import PeftModel\n{load}{base}model = PeftModel.from_pretrained(model, '.')\n```\n\n"
            f"Its scaling is alpha - 1 = {alpha - 1:g}. Another alpha without another file:\n\n"
            "```python\nfrom peft.tuners.lora import LoraLayer\n\n"
            "for module in model.modules():\n    if isinstance(module, LoraLayer):\n"
            "        module.scaling['default'] = alpha - 1\n```\n\n"
            f"vLLM: `--enable-lora --max-lora-rank N --lora-modules hneurons=FOLDER`, N at least the rank, "
            f"{told['rank']}; one folder for each alpha. Requests for the model as it is need one of alpha 1: vLLM "
            "0.32.0 answers those without an adapter with another's answers when both are in one batch."
        )
    scale = f"alpha = 1 + scale x {alpha - 1:g}"
    return (
        f"```\nllama-server -m MODEL.gguf --lora adapter.gguf\n```\n\n"
        f"Scale 1 is alpha = {alpha:g}, scale 0 turns it off, and any other is {scale}. A request chooses its own with "
        f'`"lora": [{{"id": 0, "scale": 0.5}}]`; `--lora-scaled adapter.gguf:0.5` sets the default. Where requests of '
        'several scales come at the same time, each needs `"cache_prompt": false` as well: llama.cpp otherwise goes on '
        "from what it kept of a prompt at another scale."
    )


def _limits(format: str, told: dict[str, Any]) -> str:
    exact = {
        "lora": f"Exact: B holds columns of the down projections as they are ({told['dtype']}). Merging it into "
        "weights of a narrow type rounds them once more.",
        "ia3": "Exact: z is multiplied as hneurons itself does it.",
        "weights": f"Saved in {told['dtype']}. In bfloat16 or float16 each changed weight is rounded to that type "
        "once, unless alpha is 0 or a power of two.",
        "gguf-lora": "The adapter is exact (float32). The base model must be a GGUF file of the same model; where "
        "that one is quantised, its columns differ a little from the adapter's, so that alpha = 0 leaves a remainder.",
    }[format]
    return (
        f"{exact} Scaling moves how readily the model goes along with what it is told, and hard suppression also costs "
        "fluency: measure on your own data before you rely on it."
    )
