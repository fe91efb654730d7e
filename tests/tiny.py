"""Tiny random models, tokenizers, GGUF files and scripted engines. Nothing is downloaded."""

from __future__ import annotations

import functools
import json
import random
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from hneurons.answers.engine import Request, Sampling, uniforms
from hneurons.models.ffn import find_ffns
from hneurons.models.load import StudyModel
from hneurons.results import Run
from hneurons.settings import IdentifySettings
from hneurons.types import Question, Response, Span

HIDDEN, LAYERS, WIDTH = 32, 3, 48
PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "What is the capital of France? The capital of France is Paris.",
    "Who wrote the novel? The novel was written by a writer from Vienna, in the year 1925.",
    "Respond with the answer only, without any explanation.",
    "user assistant Question: Answer: The answer is not known to me, I think.",
]


def tokenizer(*, chat: bool = True) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE of about 330 tokens: every text can be written, most characters beyond ASCII in pieces."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES, trainer)
    made = hf.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END, pad_token=PAD)
    if chat:
        made.chat_template = CHATML
    return made


def _common(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 330,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": WIDTH,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
        **IDS,
        **more,
    }


def _gpt2(width: int = WIDTH) -> hf.GPT2Config:
    return hf.GPT2Config(
        vocab_size=330, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_inner=width, n_positions=256, initializer_range=0.3,
        **IDS,
    )  # fmt: skip


def _opt(width: int = WIDTH) -> hf.OPTConfig:
    return hf.OPTConfig(
        vocab_size=330, hidden_size=HIDDEN, num_hidden_layers=LAYERS, ffn_dim=width, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=HIDDEN, init_std=0.3, dropout=0.0, **IDS,
    )  # fmt: skip


IDS = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_common(num_key_value_heads=2)),
    "llama-square": lambda: hf.LlamaConfig(**_common(intermediate_size=HIDDEN)),
    "qwen2": lambda: hf.Qwen2Config(**_common(num_key_value_heads=2)),
    "mistral": lambda: hf.MistralConfig(**_common(num_key_value_heads=2)),
    "phi3": lambda: hf.Phi3Config(**_common()),
    "gemma3": lambda: hf.Gemma3TextConfig(**_common(num_key_value_heads=2, head_dim=8, sliding_window=8)),
    "gpt2": _gpt2,
    "gpt2-square": lambda: _gpt2(HIDDEN),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**_common()),
    "opt": _opt,
    "opt-square": lambda: _opt(HIDDEN),
    "falcon": lambda: hf.FalconConfig(**_common(ffn_hidden_size=WIDTH)),
    "mixtral": lambda: hf.MixtralConfig(**_common(num_key_value_heads=2, num_local_experts=4)),
}

DOWN = {
    "llama": "model.layers.{}.mlp.down_proj",
    "llama-square": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj",
    "mistral": "model.layers.{}.mlp.down_proj",
    "phi3": "model.layers.{}.mlp.down_proj",
    "gemma3": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt2-square": "transformer.h.{}.mlp.c_proj",
    "gpt-neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
    "opt-square": "model.decoder.layers.{}.fc2",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h",
}
"""Path of the down projection of each layer, as the architecture's own code names it."""


def network(kind: str, seed: int = 0) -> Any:
    """A random model of that kind, in evaluation mode."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hf.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    for name, parameter in made.named_parameters():
        # Biases start at zero: without values of their own they would hide a mistake in their treatment.
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    made.generation_config.eos_token_id = 2
    return made.eval().requires_grad_(False)


def study(kind: str = "llama", *, chat: bool = True, seed: int = 0, double: bool = False) -> StudyModel:
    """A fresh tiny model with its tokenizer."""
    made = network(kind, seed)
    made = made.double() if double else made
    return StudyModel(kind, "object", made, tokenizer(chat=chat), None, find_ffns(made))


def save(folder: Path, kind: str = "llama", *, chat: bool = True) -> Path:
    """A model folder as `save_pretrained` writes it."""
    network(kind).save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder


def write_gguf(path: Path) -> Path:
    """A tiny random Llama as a GGUF file with its tokenizer."""
    import gguf

    made, tok = network("llama"), tokenizer()
    inner = json.loads(tok.backend_tokenizer.to_str())["model"]
    tokens = sorted(inner["vocab"], key=inner["vocab"].get)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(330)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(merge) for merge in inner["merges"]])
    writer.add_token_types([3 if token in (PAD, START, END) else 1 for token in tokens])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(2)
    writer.add_chat_template(CHATML)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    for layer in range(LAYERS):
        names |= {f"model.layers.{layer}.{own}.weight": f"blk.{layer}.{his}.weight" for own, his in parts.items()}
    for name, value in made.state_dict().items():
        writer.add_tensor(names[name], value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class ScriptedEngine:
    """Says what `answer(question, sample)` says, tokenised by the model's tokenizer, end of turn included."""

    def __init__(self, model: StudyModel, answer: Callable[[Question, int], str]) -> None:
        self.model = model
        self.answer = answer
        self.requests = 0

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.requests += len(requests)
        made: list[Response] = []
        for request in requests:
            text = self.answer(request.question, request.sample)
            ids = (*self.model.tokenizer.encode(text, add_special_tokens=False), self.model.tokenizer.eos_token_id)
            seed = Sampling(seed=sampling.seed, max_new_tokens=len(ids))
            logprobs = tuple((-2 * uniforms(seed, request)).round(6).tolist())
            made.append(Response(request.question.id, request.sample, text, ids, logprobs, "stop"))
        return made


class WholeFinder:
    """Marks the whole response."""

    name = "whole"

    def find(self, question: str, response: str) -> Span | None:
        return Span(0, len(response)) if response else None


@functools.cache
def names(count: int, seed: int = 0) -> list[str]:
    """Made-up names, all different."""
    rng = random.Random(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)).capitalize()] = None
    return list(made)


def write_questions(path: Path, count: int) -> Path:
    """A question file with one made-up answer each."""
    rows = [
        {"id": f"n{i:03}", "question": f"What is the name of city number {i}?", "answers": [name], "domain": "made up"}
        for i, name in enumerate(names(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def half_right(question: Question, sample: int) -> str:
    """The right name for about half of the questions, a made-up one of its own for each other; always the same."""
    number = int(question.id[1:])
    name = question.answers[0] if right(question) else names(2000, 1)[number]
    return f"The city is {name}."


def right(question: Question) -> bool:
    """Whether `half_right` answers this question right."""
    return zlib.crc32(f"half {question.id}".encode()) % 2 == 0


def made_run(folder: Path, settings: IdentifySettings, count: int = 90) -> Run:
    """A complete run, `folder`/out, of the tiny Llama; it answers half of `folder`/cities.jsonl right."""
    from hneurons.studies.identify import identify

    model, questions = study(), write_questions(folder / "cities.jsonl", count)
    return identify(model, questions, folder / "out", settings, engine=ScriptedEngine(model, half_right))
